//! A launch as a trail sees it: the flow of its kernel, which lines its instructions tell of, and
//! which of its stores go where a load reads.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{LINE, Node, Scene, writes_memory};
use crate::dataflow::Dataflow;
use crate::findings::{SourceLine, Why};
use crate::kernel::Kernel;
use crate::link::Value;
use crate::memory::{Allocation, MODULE_BASE, WINDOW_BITS};
use crate::op::{Class, Code};
use crate::order::Epoch;
use crate::syntax::Space;

/// What a line costs more than the step to its instruction: where that only loads or sets a value;
/// where it is a branch whose condition was computed elsewhere; where it follows from the number of
/// the thread alone, which is seldom what is wrong.
const PLAIN: u32 = 1;
const BRANCH: u32 = 8;
const OF_THREAD: u32 = 6;
/// The line of a call by which an instruction was inlined: of a short function, which is little
/// without its call, and of a long one.
const CALL_OF_SHORT: u32 = 1;
const CALL_OF_LONG: u32 = 8;
/// Lines of a short function.
const SHORT: usize = 4;

type Place<'a> = &'a [(u32, u32)];

pub(super) struct Launched<'a> {
    pub flow: Dataflow<'a>,
    /// Where each instruction comes from. Those without a line, as the compiler leaves them in
    /// divisions, belong to the line before.
    pub places: Vec<Place<'a>>,
    parameters: &'a [u8],
    /// After the first and up to the second.
    epochs: (Epoch, Epoch),
    roots: HashMap<usize, Roots>,
    /// Lines of what was inlined at each call.
    lengths: HashMap<Place<'a>, BTreeSet<(u32, u32)>>,
    /// A call by which nearly everything of the kernel was inlined.
    outermost: Option<(u32, u32)>,
    /// By register, whether it follows from the number of the thread alone.
    of_thread: Vec<bool>,
}

/// What an address is computed from.
#[derive(Clone, Default)]
struct Roots {
    /// Windows of allocations.
    windows: BTreeSet<u64>,
    /// Shared variables: where they begin.
    shared: BTreeSet<u64>,
}

impl<'a> Launched<'a> {
    pub(super) fn new(kernel: &'a Kernel, parameters: &'a [u8], epochs: (Epoch, Epoch)) -> Self {
        let mut last: Place<'a> = &[];
        let places: Vec<Place<'a>> = kernel
            .notes
            .iter()
            .map(|note| {
                last = note.source.as_deref().unwrap_or(last);
                last
            })
            .collect();
        let mut lengths: HashMap<Place<'a>, BTreeSet<(u32, u32)>> = HashMap::new();
        let mut calls: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        for place in &places {
            for depth in 1..place.len() {
                lengths.entry(&place[depth..]).or_default().insert(place[depth - 1]);
            }
            if let [_, .., call] = place {
                *calls.entry(*call).or_default() += 1;
            }
        }
        let most = calls.into_iter().max_by_key(|(_, count)| *count);
        let outermost = most.filter(|(_, count)| 2 * count > places.len()).map(|(call, _)| call);
        Self {
            flow: Dataflow::new(kernel),
            places,
            parameters,
            epochs,
            roots: HashMap::new(),
            lengths,
            outermost,
            of_thread: of_thread(kernel),
        }
    }

    fn is_of_thread(&self, register: u32) -> bool {
        self.of_thread.get(register as usize).copied().unwrap_or(false)
    }

    /// Whether a branch goes by the number of the thread alone.
    pub(super) fn guard_is_of_thread(&self, at: usize) -> bool {
        self.flow.kernel.operands.guard(at).is_none_or(|guard| self.is_of_thread(guard))
    }

    /// The lines that an instruction tells of: its own, then those of the calls that inlined it, as
    /// far as the instruction `from` has others; each with what it costs more than the step.
    pub(super) fn lines(&self, at: usize, from: Option<usize>, why: Why) -> Vec<(SourceLine, u32)> {
        let Some(mut cost) = self.tells(at, why) else { return Vec::new() };
        let place = self.places[at];
        let before = from.map_or(&[][..], |from| self.places[from]);
        let common = place.iter().rev().zip(before.iter().rev()).take_while(|(a, b)| a == b);
        let new = (place.len() - common.count()).max(1);
        let mut out = Vec::new();
        for (depth, entry) in place.iter().enumerate().take(new) {
            if depth > 0 {
                let length = self.lengths.get(&place[depth..]).map_or(0, BTreeSet::len);
                cost += if length <= SHORT { CALL_OF_SHORT } else { CALL_OF_LONG };
                if self.outermost == Some(*entry) {
                    break;
                }
            }
            if let (Some(file), line @ 1..) = (self.flow.kernel.files.get(&entry.0), entry.1) {
                out.push((SourceLine { file: file.clone(), line }, cost));
            }
        }
        out
    }

    /// What more a line costs than the step to its instruction; `None` where that says nothing.
    fn tells(&self, at: usize, why: Why) -> Option<u32> {
        let kernel = self.flow.kernel;
        let (reads, class) = (kernel.operands.reads(at), kernel.notes[at].class);
        let more = if why == Why::Condition { LINE + OF_THREAD } else { OF_THREAD };
        match kernel.code[at].code {
            Code::Branch => {
                let back = kernel.code[at].imm as usize <= at;
                let thread = if self.guard_is_of_thread(at) { LINE + OF_THREAD } else { 0 };
                Some(thread + if back { PLAIN } else { BRANCH })
            }
            Code::Load => Some(PLAIN),
            _ if class == Class::Moves => {
                let constant = |value: &Value| matches!(value, Value::Constant(..));
                (!reads.is_empty() && reads.iter().all(constant)).then_some(PLAIN)
            }
            Code::Arithmetic => {
                let of_thread = kernel.operands.writes(at).iter().all(|value| match value {
                    Value::Register(register) => self.is_of_thread(*register),
                    _ => true,
                });
                let plain = if class == Class::Convert { PLAIN } else { 0 };
                Some(plain + if of_thread { more } else { 0 })
            }
            _ => Some(0),
        }
    }

    /// What the address of an access is computed from, without regard to the flow of control.
    fn find_roots(&self, scene: &Scene<'_>, access: usize) -> Roots {
        let kernel = self.flow.kernel;
        let in_shared = kernel.code[access].space != Space::Global;
        let mut roots = Roots::default();
        let mut seen = BTreeSet::new();
        let base = kernel.operands.reads(access).first();
        let mut left: Vec<(usize, Value)> = base.map(|base| (access, *base)).into_iter().collect();
        while let Some((at, value)) = left.pop() {
            match value {
                Value::Parameter(index) => {
                    let load = &kernel.parameter_loads[index as usize];
                    let bytes = self.parameters.get(load.offset..load.offset + load.bytes);
                    if let Some(Ok(bits)) = bytes.map(<[u8; 8]>::try_from) {
                        roots.windows.insert(u64::from_le_bytes(bits) >> WINDOW_BITS);
                    }
                }
                Value::Constant(bits, _) if allocation(scene, bits >> WINDOW_BITS).is_some() => {
                    roots.windows.insert(bits >> WINDOW_BITS);
                }
                Value::Constant(bits, _) if in_shared && at == access => {
                    let offset = match kernel.code[at].code {
                        Code::Load | Code::Store | Code::Atomic => kernel.code[at].imm as u64,
                        _ => 0,
                    };
                    roots.shared.insert(variable(kernel, bits.wrapping_add(offset)));
                }
                Value::Constant(bits, _) if in_shared && names_variable(kernel, at) => {
                    roots.shared.insert(variable(kernel, bits));
                }
                Value::Register(register) if seen.insert(register) => {
                    for &definition in self.flow.definitions(register) {
                        if matches!(kernel.code[definition].code, Code::Arithmetic | Code::Shuffle)
                        {
                            let reads = kernel.operands.reads(definition).iter();
                            left.extend(reads.map(|value| (definition, *value)));
                        }
                    }
                }
                _ => {}
            }
        }
        roots
    }

    fn roots(&mut self, scene: &Scene<'_>, access: usize) -> Roots {
        if let Some(roots) = self.roots.get(&access) {
            return roots.clone();
        }
        let roots = self.find_roots(scene, access);
        self.roots.insert(access, roots.clone());
        roots
    }
}

/// The instructions that wrote what an access addresses, and whether they ran: those that the cells
/// of its memory remember, and where there are none, or all are wanted, every store to that memory.
pub(super) fn stores_to(
    launches: &mut [Launched<'_>],
    scene: &Scene<'_>,
    (launch, at): Node,
    all: bool,
) -> Vec<(Node, bool)> {
    let local = launches[launch].flow.kernel.code[at].space == Space::Local;
    let roots = launches[launch].roots(scene, at);
    let mut out: BTreeMap<Node, bool> = BTreeMap::new();
    for allocation in roots.windows.iter().filter_map(|&window| allocation(scene, window)) {
        for (epoch, at) in allocation.cells.writers() {
            let holds = |l: &Launched<'_>| epoch > l.epochs.0 && epoch <= l.epochs.1;
            // A later launch has written over it; what it wrote was not what was loaded.
            if let Some(writer) = launches.iter().position(holds)
                && writer >= launch
                && at < launches[writer].flow.kernel.code.len()
            {
                out.insert((writer, at), true);
            }
        }
    }
    if !all && !out.is_empty() {
        return out.into_iter().collect();
    }
    // Shared and local memory end with their block.
    let among = if roots.windows.is_empty() { launch..launch + 1 } else { launch..launches.len() };
    for launch in among {
        let kernel = launches[launch].flow.kernel;
        for at in (0..kernel.code.len()).filter(|&at| writes_memory(kernel.code[at].code)) {
            let theirs = launches[launch].roots(scene, at);
            if local && kernel.code[at].space == Space::Local
                || !theirs.windows.is_disjoint(&roots.windows)
                || !theirs.shared.is_disjoint(&roots.shared)
            {
                out.entry((launch, at)).or_insert(false);
            }
        }
    }
    out.into_iter().collect()
}

fn allocation<'a>(scene: &Scene<'a>, window: u64) -> Option<&'a Allocation> {
    let module = MODULE_BASE >> WINDOW_BITS;
    if window >= module {
        return scene.module.get((window - module) as usize);
    }
    scene.allocations.get((window as usize).wrapping_sub(1))?.as_ref()
}

/// Whether an instruction moves the address of a variable: its last operand is a name. Other
/// constants are sizes and strides.
fn names_variable(kernel: &Kernel, at: usize) -> bool {
    let note = &kernel.notes[at];
    let last = note.text.trim_end_matches(';').rsplit(',').next().unwrap_or_default().trim();
    note.class == Class::Moves && last.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The start of the shared variable that has an address.
fn variable(kernel: &Kernel, address: u64) -> u64 {
    let offset = address & 0xffff_ffff;
    let starts = kernel.shared.iter().map(|variable| variable.start);
    let starts = starts.chain([kernel.dynamic_base]).map(u64::from);
    starts.filter(|&start| start <= offset).max().unwrap_or(0)
}

/// By register, whether its value follows from special registers and constants, and from at least
/// one of the former.
fn of_thread(kernel: &Kernel) -> Vec<bool> {
    let operands = &kernel.operands;
    let registers = |values: &[Value]| -> Vec<usize> {
        let registers = values.iter().filter_map(|value| match value {
            Value::Register(register) => Some(*register as usize),
            _ => None,
        });
        registers.collect()
    };
    let count = (0..kernel.code.len())
        .flat_map(|at| {
            registers(operands.writes(at)).into_iter().chain(registers(operands.reads(at)))
        })
        .chain((0..kernel.code.len()).filter_map(|at| operands.guard(at).map(|g| g as usize)))
        .max()
        .map_or(0, |most| most + 1);
    // What comes from memory, parameters or other lanes; and what comes from special registers.
    let (mut data, mut special) = (vec![false; count], vec![false; count]);
    let mut changed = true;
    while changed {
        changed = false;
        for at in 0..kernel.code.len() {
            let reads = operands.reads(at);
            let from = registers(reads);
            let given = reads.iter().any(|value| matches!(value, Value::Parameter(_)));
            let is_data = given
                || matches!(kernel.code[at].code, Code::Load | Code::Atomic | Code::Shuffle)
                || from.iter().any(|&register| data[register])
                || operands.guard(at).is_some_and(|guard| data[guard as usize]);
            let is_special = reads.iter().any(|value| matches!(value, Value::Special(_)))
                || from.iter().any(|&register| special[register]);
            for register in registers(operands.writes(at)) {
                changed |= is_data && !std::mem::replace(&mut data[register], true);
                changed |= is_special && !std::mem::replace(&mut special[register], true);
            }
        }
    }
    special.into_iter().zip(data).map(|(special, data)| special && !data).collect()
}
