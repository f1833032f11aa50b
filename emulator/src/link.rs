//! One kernel with every function it calls, laid out as one run of operations.
//!
//! Functions are not inlined: each has one copy of its registers and of its parameters, which
//! suffices because recursion is refused, and a call stores the return address in a register of
//! the callee, lane by lane.
//!
//! The file is long because laying out code, parameters and variables share the linker's maps.

use std::collections::{BTreeSet, HashMap};

use crate::allocate;
use crate::dataflow::Operands;
use crate::decode::{Pending, Target, blank};
use crate::error::LoadError;
use crate::kernel::{Kernel, Parameter, ParameterLoad, SharedVariable};
use crate::op::{Class, Code, Exec, Note, UNGUARDED, WHOLE_WARP};
use crate::provenance::stores_through;
use crate::syntax::{Found, Instruction, Operand, Space, Tree, Type, Variable};
use crate::undefined::undefined;

/// Space left between shared variables, so that running past one is seen. A multiple of the 128
/// bytes that the banks span, so that bank conflicts stay what they were.
const RED_ZONE: u64 = 128;
/// Static shared memory that a kernel may have, and local memory per thread.
const MOST_SHARED: u64 = 228 * 1024;
const MOST_LOCAL: u64 = 512 * 1024;
/// Operations one kernel may have.
const MOST_OPERATIONS: usize = 1 << 22;

/// An operand before slots are assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Value {
    Register(u32),
    /// Bits, and whether it is 64 bits wide.
    Constant(u64, bool),
    Special(SpecialRegister),
    /// Index into the kernel's parameter loads.
    Parameter(u32),
    ConstantPredicate(bool),
    Sink,
    SinkPredicate,
}

/// Special registers that are constant while a block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SpecialRegister {
    Thread(usize),
    BlockSize(usize),
    Block(usize),
    GridSize(usize),
    Lane,
    Warp,
    Warps,
    Multiprocessor,
    Multiprocessors,
    Grid,
    MaskEqual,
    MaskLess,
    MaskLessEqual,
    MaskGreater,
    MaskGreaterEqual,
    DynamicShared,
    TotalShared,
    /// Of a cluster of one block.
    Zero,
    One,
}

impl SpecialRegister {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let axis = |name: &str| match name {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        Some(match name.trim_start_matches('%') {
            "laneid" => Self::Lane,
            "warpid" => Self::Warp,
            "nwarpid" => Self::Warps,
            "smid" => Self::Multiprocessor,
            "nsmid" => Self::Multiprocessors,
            "gridid" => Self::Grid,
            "lanemask_eq" => Self::MaskEqual,
            "lanemask_lt" => Self::MaskLess,
            "lanemask_le" => Self::MaskLessEqual,
            "lanemask_gt" => Self::MaskGreater,
            "lanemask_ge" => Self::MaskGreaterEqual,
            "dynamic_smem_size" => Self::DynamicShared,
            "total_smem_size" => Self::TotalShared,
            "cluster_ctarank" => Self::Zero,
            "cluster_nctarank" => Self::One,
            other => {
                let (head, tail) = other.split_once('.')?;
                let axis = axis(tail)?;
                match head {
                    "tid" => Self::Thread(axis),
                    "ntid" => Self::BlockSize(axis),
                    "ctaid" => Self::Block(axis),
                    "nctaid" => Self::GridSize(axis),
                    "clusterid" => Self::Block(axis),
                    "nclusterid" => Self::GridSize(axis),
                    "cluster_ctaid" => Self::Zero,
                    "cluster_nctaid" => Self::One,
                    _ => return None,
                }
            }
        })
    }
}

pub(crate) struct Linker<'t> {
    pub tree: &'t Tree<'t>,
    /// Whether functions for a wide processor are chosen.
    pub wide: bool,
    pub code: Vec<Pending>,
    /// Type of every register of every function, temporaries included.
    pub registers: Vec<Type>,
    /// (caller, callee, line).
    pub calls: Vec<(usize, usize, u32)>,
    /// First register of each function that is in.
    bases: HashMap<usize, u32>,
    returns: HashMap<usize, u32>,
    carry: Option<u32>,
    /// Addresses of variables of functions.
    placed: HashMap<(usize, usize), (Space, u64)>,
    module_placed: HashMap<String, (Space, u64)>,
    parameter_loads: Vec<ParameterLoad>,
    parameter_index: HashMap<(u64, Type, bool), u32>,
    parameters: Vec<Parameter>,
}

/// Links the entry with this index.
pub(crate) fn link<'t>(
    tree: &'t Tree<'t>,
    globals: &HashMap<String, (Space, u64)>,
    entry: usize,
    wide: bool,
) -> Result<Kernel, LoadError> {
    let mut linker = Linker {
        tree,
        wide,
        code: Vec::new(),
        registers: Vec::new(),
        calls: Vec::new(),
        bases: HashMap::new(),
        returns: HashMap::new(),
        carry: None,
        placed: HashMap::new(),
        module_placed: globals.clone(),
        parameter_loads: Vec::new(),
        parameter_index: HashMap::new(),
        parameters: Vec::new(),
    };
    let functions = linker.reachable(entry)?;
    let layout = linker.place(&functions)?;
    let mut starts = HashMap::new();
    let mut labels: HashMap<(usize, usize), usize> = HashMap::new();
    for &index in &functions {
        starts.insert(index, linker.code.len());
        let body = tree.functions[index].body.as_deref().unwrap_or(&[]);
        for (at, instruction) in body.iter().enumerate() {
            labels.insert((index, at), linker.code.len());
            linker.instruction(index, instruction)?;
            if linker.code.len() > MOST_OPERATIONS {
                return Err(LoadError::new(instruction.line, "the kernel is too long"));
            }
        }
        labels.insert((index, body.len()), linker.code.len());
        linker.finish(index);
    }
    let resolve = |target: &Target| match *target {
        Target::Label(function, at) => labels.get(&(function, at)).copied(),
        Target::Function(function) => starts.get(&function).copied(),
    };
    let mut targets = Vec::with_capacity(linker.code.len());
    for pending in &linker.code {
        let resolved: Option<Vec<usize>> = pending.targets.iter().map(resolve).collect();
        let Some(resolved) = resolved else {
            return Err(
                LoadError::new(pending.line, "a branch target is missing").with_text(&pending.text)
            );
        };
        targets.push(resolved);
    }
    for (bytes, pending) in batches(&linker.code, &targets).into_iter().zip(&mut linker.code) {
        pending.op.batch = bytes;
    }
    let notes = linker
        .code
        .iter()
        .map(|pending| Note {
            line: pending.line,
            text: pending.text.clone(),
            source: pending.source.clone(),
            class: pending.class,
        })
        .collect();
    let stores_through =
        stores_through(&linker.code, &linker.registers, linker.parameter_loads.len());
    let function = &tree.functions[entry];
    let refuse = |reason| LoadError::new(function.line, reason).with_text(function.name);
    let live = allocate::liveness(&linker.code, &targets, &linker.registers).map_err(refuse)?;
    let name = |register| linker.register_name(register);
    let undefined = undefined(&linker.code, &linker.registers, &live.at_start, name);
    let mut assigned = allocate::assign(
        &linker.code,
        &targets,
        &linker.registers,
        linker.parameter_loads.len(),
        &live,
        |register| undefined.may_hold(register),
    )
    .map_err(refuse)?;
    let watches = |at: usize| {
        assigned.warpgroup_uses.get(at).is_some_and(|uses| !uses.is_empty())
            || undefined.watched.get(at).is_some_and(Option::is_some)
    };
    let mut watched: Vec<bool> = (0..assigned.code.len()).map(watches).collect();
    if !watched.contains(&true) {
        watched.clear();
    }
    let mut straight = 0u8;
    let mut next: Option<(Exec, u8)> = None;
    for (at, op) in assigned.code.iter_mut().enumerate().rev() {
        let whole = op.code == Code::Shuffle && op.flags & WHOLE_WARP != 0 && op.guard == UNGUARDED;
        let simple = (op.code == Code::Arithmetic || whole) && watched.get(at) != Some(&true);
        straight = if simple { straight.saturating_add(1) } else { 0 };
        op.straight = straight;
        let open = simple && op.guard == UNGUARDED;
        let same = |exec: Exec| std::ptr::fn_addr_eq(exec, op.exec);
        op.alike = match next {
            Some((exec, alike)) if open && same(exec) => alike.saturating_add(1),
            _ => 1,
        };
        next = open.then_some((op.exec, op.alike));
    }
    for (load, slot) in linker.parameter_loads.iter_mut().zip(&assigned.parameters) {
        load.slot = *slot;
    }
    Ok(Kernel {
        name: function.name.to_owned(),
        code: assigned.code,
        lists: assigned.lists,
        tables: assigned.tables,
        warpgroup_uses: assigned.warpgroup_uses,
        undefined,
        watched,
        notes,
        operands: Operands::new(&linker.code),
        slots: assigned.slots,
        first_register: assigned.first_register,
        predicates: assigned.predicates,
        constants: assigned.constants,
        specials: assigned.specials,
        parameter_loads: linker.parameter_loads,
        parameters: linker.parameters,
        parameter_bytes: layout.parameter_bytes,
        local_bytes: layout.local_bytes,
        shared: layout.shared,
        static_shared_bytes: layout.static_shared_bytes,
        dynamic_base: layout.dynamic_base,
        max_threads: function.max_threads,
        files: tree.files.iter().map(|(&number, name)| (number, name.clone())).collect(),
        stores_through,
        whole_barriers: linker.code.iter().all(whole_barrier),
    })
}

struct Layout {
    parameter_bytes: u64,
    local_bytes: u32,
    shared: Vec<SharedVariable>,
    static_shared_bytes: u32,
    dynamic_base: u32,
}

fn align_up(value: u64, align: u64) -> u64 {
    value.div_ceil(align.max(1)) * align.max(1)
}

fn callee_name<'a>(instruction: &Instruction<'a>) -> Option<&'a str> {
    (instruction.opcode == "call" || instruction.opcode.starts_with("call."))
        .then(|| {
            instruction.operands.iter().find_map(|operand| match operand {
                Operand::Name(name) => Some(*name),
                _ => None,
            })
        })
        .flatten()
}

/// Every name an operand holds.
fn names<'a>(operand: &Operand<'a>, out: &mut Vec<&'a str>) {
    match operand {
        Operand::Name(name) | Operand::Offset(name, _) => out.push(name),
        Operand::Vector(parts) | Operand::List(parts) => parts.iter().for_each(|p| names(p, out)),
        Operand::Address(base, _) => names(base, out),
        Operand::Tensor(map, coordinates) => {
            names(map, out);
            coordinates.iter().for_each(|p| names(p, out));
        }
        _ => {}
    }
}

impl<'t> Linker<'t> {
    pub(crate) fn function(&self, name: &str) -> Option<usize> {
        self.tree.functions.iter().position(|f| f.name == name && !f.entry)
    }

    pub(crate) fn register(&self, function: usize, number: u32) -> u32 {
        self.bases.get(&function).copied().unwrap_or(0) + number
    }

    /// How the text spells a register, for messages.
    fn register_name(&self, register: u32) -> String {
        let (&function, &base) = self
            .bases
            .iter()
            .filter(|(_, base)| **base <= register)
            .max_by_key(|(_, base)| **base)
            .unwrap_or((&0, &0));
        let name = self.tree.functions[function].register_name(register - base);
        name.unwrap_or_else(|| "the carry".to_owned())
    }

    pub(crate) fn temporary(&mut self, ty: Type) -> Value {
        self.registers.push(ty);
        Value::Register(self.registers.len() as u32 - 1)
    }

    pub(crate) fn return_register(&self, function: usize) -> Value {
        Value::Register(self.returns.get(&function).copied().unwrap_or(0))
    }

    pub(crate) fn carry_register(&mut self) -> Value {
        if let Some(carry) = self.carry {
            return Value::Register(carry);
        }
        self.registers.push(Type::Pred);
        let carry = self.registers.len() as u32 - 1;
        self.carry = Some(carry);
        Value::Register(carry)
    }

    pub(crate) fn local_variable(&self, function: usize, index: usize) -> Option<(Space, u64)> {
        self.placed.get(&(function, index)).copied()
    }

    pub(crate) fn module_variable(&self, name: &str) -> Option<(Space, u64)> {
        self.module_placed.get(name).copied()
    }

    /// The value of kernel parameter bytes as a register would hold them after `ld.param`.
    pub(crate) fn parameter(
        &mut self,
        function: usize,
        offset: u64,
        ty: Type,
        wide: bool,
    ) -> Result<Value, LoadError> {
        if !self.tree.functions[function].entry {
            return Err(LoadError::new(0, "only kernels have parameters in this space"));
        }
        let total = self.parameters.last().map_or(0, |p| u64::from(p.offset) + u64::from(p.bytes));
        if offset.checked_add(u64::from(ty.bytes())).is_none_or(|end| end > total) {
            return Err(LoadError::new(0, format!("the kernel has {total} bytes of parameters")));
        }
        let next = self.parameter_loads.len() as u32;
        let index = *self.parameter_index.entry((offset, ty, wide)).or_insert(next);
        if index == next {
            self.parameter_loads.push(ParameterLoad {
                slot: 0,
                offset: offset as usize,
                bytes: ty.bytes() as usize,
                signed: ty.is_signed(),
                wide,
            });
        }
        Ok(Value::Parameter(index))
    }

    /// Functions that the entry reaches, itself first; refuses recursion.
    fn reachable(&mut self, entry: usize) -> Result<Vec<usize>, LoadError> {
        let mut order = vec![entry];
        let mut edges: HashMap<usize, BTreeSet<usize>> = HashMap::new();
        let mut at = 0;
        while at < order.len() {
            let index = order[at];
            at += 1;
            for instruction in self.tree.functions[index].body.as_deref().unwrap_or(&[]) {
                let Some(callee) = callee_name(instruction).and_then(|name| self.function(name))
                else {
                    continue;
                };
                if self.tree.functions[callee].body.is_none() {
                    continue;
                }
                edges.entry(index).or_default().insert(callee);
                if !order.contains(&callee) {
                    order.push(callee);
                }
            }
        }
        // Kahn's algorithm: what is left over after removing callers of nothing is a cycle.
        let mut left: BTreeSet<usize> = order.iter().copied().collect();
        loop {
            let done: Vec<usize> = left
                .iter()
                .copied()
                .filter(|f| edges.get(f).is_none_or(|to| to.iter().all(|t| !left.contains(t))))
                .collect();
            if done.is_empty() {
                break;
            }
            for function in done {
                left.remove(&function);
            }
        }
        if let Some(&function) = left.first() {
            let function = &self.tree.functions[function];
            return Err(LoadError::new(function.line, "recursive calls are not supported")
                .with_text(function.name));
        }
        for &index in &order {
            self.bases.insert(index, self.registers.len() as u32);
            self.registers.extend_from_slice(&self.tree.functions[index].registers);
            self.registers.push(Type::B32);
            self.returns.insert(index, self.registers.len() as u32 - 1);
        }
        Ok(order)
    }

    /// Gives every variable its address.
    fn place(&mut self, functions: &[usize]) -> Result<Layout, LoadError> {
        let tree = self.tree;
        let mut parameter_bytes = 0;
        let mut local = 0u64;
        let mut fixed: Vec<(Option<(usize, usize)>, &'t Variable)> = Vec::new();
        let mut dynamic: Vec<(Option<(usize, usize)>, &'t Variable)> = Vec::new();
        for &index in functions {
            let function = &tree.functions[index];
            for (number, variable) in function.variables.iter().enumerate() {
                let key = (index, number);
                match variable.space {
                    Space::Param if function.entry && function.parameters.contains(&number) => {
                        parameter_bytes = align_up(parameter_bytes, variable.align);
                        self.parameters.push(Parameter {
                            offset: parameter_bytes as u32,
                            bytes: variable.bytes as u32,
                            align: variable.align as u32,
                        });
                        self.placed.insert(key, (Space::Param, parameter_bytes));
                        parameter_bytes += variable.bytes;
                        if parameter_bytes > 32_764 {
                            return Err(LoadError::new(
                                variable.line,
                                "too many bytes of parameters",
                            ));
                        }
                    }
                    Space::Local | Space::Param => {
                        local = align_up(local, variable.align);
                        self.placed.insert(key, (Space::Local, local));
                        local += variable.bytes;
                        if local > MOST_LOCAL {
                            return Err(LoadError::new(variable.line, "too much local memory"));
                        }
                    }
                    Space::Shared if variable.external => dynamic.push((Some(key), variable)),
                    Space::Shared => fixed.push((Some(key), variable)),
                    _ => {
                        return Err(LoadError::new(
                            variable.line,
                            "global and constant variables inside a function are not supported",
                        )
                        .with_text(&variable.name));
                    }
                }
            }
        }
        // Arguments of a call share the memory of the callee's parameters.
        for &index in functions {
            let function = &tree.functions[index];
            for instruction in function.body.as_deref().unwrap_or(&[]) {
                let Some(name) = callee_name(instruction) else { continue };
                let Some(callee) = self.function(name) else { continue };
                let mut seen_name = false;
                for operand in &instruction.operands {
                    let Operand::List(parts) = operand else {
                        seen_name = true;
                        continue;
                    };
                    let formals = if seen_name {
                        &tree.functions[callee].parameters
                    } else {
                        &tree.functions[callee].returns
                    };
                    if tree.functions[callee].body.is_none() {
                        continue;
                    }
                    if parts.len() != formals.len() {
                        return Err(LoadError::new(
                            instruction.line,
                            format!(
                                "`{name}` has {} of these, {} given",
                                formals.len(),
                                parts.len()
                            ),
                        )
                        .with_text(instruction.text));
                    }
                    for (part, &formal) in parts.iter().zip(formals) {
                        let Operand::Name(part) = part else {
                            return Err(LoadError::new(
                                instruction.line,
                                "arguments must be .param variables",
                            )
                            .with_text(instruction.text));
                        };
                        let actual = match function.find(instruction.scope, part) {
                            Some(Found::Variable(actual)) => actual,
                            _ => {
                                return Err(LoadError::new(
                                    instruction.line,
                                    format!("`{part}` is not a .param variable"),
                                )
                                .with_text(instruction.text));
                            }
                        };
                        if function.variables[actual].bytes
                            > tree.functions[callee].variables[formal].bytes
                        {
                            return Err(LoadError::new(
                                instruction.line,
                                format!("`{part}` is larger than the parameter of `{name}`"),
                            )
                            .with_text(instruction.text));
                        }
                        if let Some(&place) = self.placed.get(&(callee, formal)) {
                            self.placed.insert((index, actual), place);
                        }
                    }
                }
            }
        }
        // Shared variables of the module, where a function in here names them.
        let module_shared: HashMap<&str, &'t Variable> = tree
            .variables
            .iter()
            .filter(|v| v.space == Space::Shared)
            .map(|v| (v.name.as_str(), v))
            .collect();
        let mut named = BTreeSet::new();
        let mut found = Vec::new();
        for &index in functions {
            for instruction in tree.functions[index].body.as_deref().unwrap_or(&[]) {
                found.clear();
                instruction.operands.iter().for_each(|operand| names(operand, &mut found));
                for name in &found {
                    if let Some(variable) = module_shared.get(name)
                        && tree.functions[index].find(instruction.scope, name).is_none()
                        && named.insert(*name)
                    {
                        if variable.external {
                            dynamic.push((None, variable));
                        } else {
                            fixed.push((None, variable));
                        }
                    }
                }
            }
        }
        let mut shared = Vec::new();
        let (mut at, mut unpadded) = (0u64, 0u64);
        for (key, variable) in fixed {
            if !shared.is_empty() {
                at = align_up(at, RED_ZONE) + RED_ZONE;
            }
            at = align_up(at, variable.align);
            unpadded = align_up(unpadded, variable.align) + variable.bytes;
            self.put(key, variable, at);
            shared.push(SharedVariable {
                name: variable.name.clone(),
                start: at as u32,
                bytes: variable.bytes as u32,
            });
            at += variable.bytes;
            if unpadded > MOST_SHARED {
                return Err(LoadError::new(variable.line, "too much static shared memory")
                    .with_text(&variable.name));
            }
        }
        if !shared.is_empty() {
            at = align_up(at, RED_ZONE) + RED_ZONE;
        }
        at = align_up(at, 1024.max(dynamic.iter().map(|(_, v)| v.align).max().unwrap_or(1)));
        for (key, variable) in dynamic {
            self.put(key, variable, at);
        }
        Ok(Layout {
            parameter_bytes,
            local_bytes: align_up(local, 16) as u32,
            shared,
            static_shared_bytes: unpadded as u32,
            dynamic_base: at as u32,
        })
    }

    fn put(&mut self, key: Option<(usize, usize)>, variable: &Variable, at: u64) {
        match key {
            Some(key) => {
                self.placed.insert(key, (Space::Shared, at));
            }
            None => {
                self.module_placed.insert(variable.name.clone(), (Space::Shared, at));
            }
        }
    }

    /// The end of a body returns, whether or not it says so.
    fn finish(&mut self, index: usize) {
        let function = &self.tree.functions[index];
        let (code, s) = if function.entry {
            (Code::Exit, vec![])
        } else {
            (Code::Return, vec![self.return_register(index)])
        };
        self.code.push(Pending {
            op: blank(code),
            class: Class::Control,
            d: vec![],
            s,
            copies: false,
            guard: None,
            targets: vec![],
            line: function.line,
            text: "(end of body)".to_owned(),
            source: None,
        });
    }
}

/// Not a barrier of some warps of a block, nor an mbarrier.
fn whole_barrier(pending: &Pending) -> bool {
    match pending.op.code {
        Code::BarrierSync | Code::BarrierReduce => {
            pending.s.get(1) == Some(&Value::Constant(0, false))
        }
        Code::BarrierArrive | Code::Asynchronous | Code::Warpgroup => false,
        _ => true,
    }
}

/// For every global load, the bytes per lane of its batch: the loads of one basic block that are
/// issued before the first use of a result of any of them.
fn batches(code: &[Pending], targets: &[Vec<usize>]) -> Vec<u32> {
    let mut leaders = vec![false; code.len() + 1];
    for target in targets.iter().flatten() {
        leaders[*target] = true;
    }
    let mut out = vec![0; code.len()];
    let mut batch: Vec<usize> = Vec::new();
    let mut pending: BTreeSet<u32> = BTreeSet::new();
    let mut close = |batch: &mut Vec<usize>, pending: &mut BTreeSet<u32>| {
        let bytes: u32 = batch.iter().map(|&at| access_bytes(&code[at])).sum();
        for at in batch.drain(..) {
            out[at] = bytes;
        }
        pending.clear();
    };
    for (at, op) in code.iter().enumerate() {
        let uses =
            op.s.iter().chain(&op.d).any(
                |value| matches!(value, Value::Register(register) if pending.contains(register)),
            ) || op.guard.is_some_and(|(register, _)| pending.contains(&register));
        if leaders[at] || uses {
            close(&mut batch, &mut pending);
        }
        if op.op.code == Code::Load && matches!(op.op.space, Space::Global | Space::Generic) {
            batch.push(at);
            for value in &op.d {
                if let Value::Register(register) = value {
                    pending.insert(*register);
                }
            }
        }
        if op.class == Class::Control {
            close(&mut batch, &mut pending);
        }
    }
    close(&mut batch, &mut pending);
    out
}

fn access_bytes(pending: &Pending) -> u32 {
    u32::from(pending.op.size) * u32::from(pending.op.count)
}
