//! From the tree of one instruction to operations: opcode, modifiers and operands are checked
//! here, once, so that the execution loop meets nothing it does not know.
//!
//! This file is long because it is the list of PTX: one case per instruction family.

use crate::arithmetic::{self, FTZ, NAN, PERMUTES, RELU, SAT};
use crate::arithmetic::{VIDEO_COMPARISON, VIDEO_FOUR, VIDEO_SATURATE, VIDEO_SIGNED, VIDEO_SUM};
use crate::convert::{self, WHOLE};
use crate::error::LoadError;
use crate::exchange;
use crate::hopper::Action;
use crate::lanes::{COMBINE, lane, test};
use crate::link::{Linker, SpecialRegister, Value};
use crate::matrix;
use crate::memory::{LOCAL_BASE, PARAMETER_BASE, SHARED_BASE, WINDOW_BITS};
use crate::moves;
use crate::op::{
    ACQUIRE, ALIGNED, ASYNC_PROXY, Class, Code, DEVICE_SCOPE, Exec, NON_COHERENT, Op, RELEASE,
    SIGNED, STRONG, UNGUARDED, WIDE_ADDRESS, WIDE_DATA, nothing,
};
use crate::syntax::{Found, Instruction, Operand, Place, Space, Type};

mod hopper;

/// An operation whose operands are not yet slots.
#[derive(Clone)]
pub(crate) struct Pending {
    pub op: Op,
    pub class: Class,
    pub d: Vec<Value>,
    pub s: Vec<Value>,
    /// It does nothing but give its destination the bits of its source.
    pub copies: bool,
    /// Guard register and whether it is negated.
    pub guard: Option<(u32, bool)>,
    pub targets: Vec<Target>,
    pub line: u32,
    pub text: String,
    pub source: Option<Place>,
}

/// Where control may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Index of an instruction of a function's body.
    Label(usize, usize),
    /// First instruction of a function.
    Function(usize),
}

pub(crate) fn blank(code: Code) -> Op {
    Op {
        exec: nothing,
        alike: 1,
        imm: 0,
        d: [0; 4],
        s: [0; 5],
        guard: UNGUARDED,
        code,
        space: Space::Generic,
        size: 0,
        count: 0,
        flags: 0,
        order: 0,
        action: Action::Nothing,
        straight: 0,
        batch: 0,
    }
}

type Decoded<T> = Result<T, LoadError>;

/// The modifiers of an opcode, taken one by one; what is left over is an error.
struct Modifiers<'a> {
    left: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    fn has(&mut self, name: &str) -> bool {
        let found = self.left.iter().position(|&m| m == name);
        if let Some(at) = found {
            self.left.remove(at);
        }
        found.is_some()
    }

    fn any(&mut self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().find(|name| self.has(name)).copied()
    }

    fn ty(&mut self) -> Option<Type> {
        let at = self.left.iter().position(|m| Type::parse(m).is_some())?;
        Type::parse(self.left.remove(at))
    }

    /// Rounding, `.ftz`, `.sat`, `.NaN`, `.relu` as flags.
    fn float_flags(&mut self) -> i64 {
        let mut flags = match self.any(&["rn", "rz", "rm", "rp", "approx", "full"]) {
            Some("rz") => 1,
            Some("rm") => 2,
            Some("rp") => 3,
            _ => 0,
        };
        for (name, flag) in [("ftz", FTZ), ("sat", SAT), ("NaN", NAN), ("relu", RELU)] {
            if self.has(name) {
                flags |= flag;
            }
        }
        flags
    }
}

impl<'t> Linker<'t> {
    /// Decodes one instruction of function `index` and appends its operations.
    pub(crate) fn instruction(
        &mut self,
        index: usize,
        instruction: &'t Instruction<'t>,
    ) -> Decoded<()> {
        let mut at = At { linker: self, function: index, i: instruction, guard: None };
        at.decode().map_err(|mut error| {
            if error.line == 0 {
                error.line = instruction.line;
            }
            error.with_text(instruction.text)
        })
    }
}

struct At<'l, 't> {
    linker: &'l mut Linker<'t>,
    function: usize,
    i: &'t Instruction<'t>,
    guard: Option<(u32, bool)>,
}

/// Why a call whose callee is not known is refused.
pub(crate) const INDIRECT: &str =
    "calls through pointers (function pointers, virtual functions) are not supported";

fn bad<T>(reason: impl Into<String>) -> Decoded<T> {
    Err(LoadError::new(0, reason))
}

/// Words on memory operations that change timing or ordering between blocks, not results here.
pub(crate) const MEMORY_HINTS: [&str; 33] = [
    "weak",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "cta",
    "gpu",
    "sys",
    "mmio",
    "cluster",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::evict_last",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "noftz",
    "unified",
    "sc",
];

/// How an access with these modifiers orders others. One without a scope reaches `wide`.
fn ordering(words: &[&str], wide: bool) -> u8 {
    let has = |word: &str| words.contains(&word);
    let strong = ["volatile", "relaxed", "acquire", "release", "acq_rel", "sc", "mmio"];
    let mut order = 0;
    if strong.iter().any(|word| has(word)) {
        order |= STRONG;
    }
    if has("gpu") || has("gl") || has("sys") || wide && !has("cta") && !has("cluster") {
        order |= DEVICE_SCOPE;
    }
    if has("acquire") || has("acq_rel") || has("sc") {
        order |= ACQUIRE;
    }
    if has("release") || has("acq_rel") || has("sc") {
        order |= RELEASE;
    }
    if has("nc") {
        order |= NON_COHERENT;
    }
    order
}

impl<'t> At<'_, 't> {
    fn decode(&mut self) -> Decoded<()> {
        if let Some((name, negated)) = self.i.guard {
            self.guard = Some((self.predicate_register(name)?, negated));
        }
        let mut words = self.i.opcode.split('.');
        let base = words.next().unwrap_or("");
        let mut m = Modifiers { left: words.collect() };
        if let Some(reason) = crate::forms::refusal(base, &m.left) {
            return bad(reason);
        }
        self.family(base, &mut m)?;
        if let Some(left) = m.left.first() {
            return bad(format!("modifier `.{left}` of `{base}` is not supported"));
        }
        Ok(())
    }

    fn family(&mut self, base: &str, m: &mut Modifiers<'t>) -> Decoded<()> {
        match base {
            "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor"
            | "shl" | "shr" | "copysign" | "mul24" => self.binary(base, m),
            "mad" | "fma" | "sad" | "shf" | "bfe" | "prmt" | "lop3" | "dp4a" | "dp2a" | "slct"
            | "mad24" => self.ternary(base, m),
            "addc" | "subc" | "madc" => {
                m.left.push("with-carry");
                self.carry(base, m)
            }
            "abs" | "neg" | "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" | "ex2" | "lg2"
            | "sin" | "cos" | "tanh" | "rcp" | "sqrt" | "rsqrt" => self.unary(base, m),
            _ if base.trim_end_matches(['2', '4']) != base
                && arithmetic::VIDEO.contains(&base.trim_end_matches(['2', '4'])) =>
            {
                self.video(base, m)
            }
            "bfi" => {
                let Some(ty @ (Type::B32 | Type::B64)) = m.ty() else {
                    return bad("bfi is .b32 or .b64");
                };
                let wide = ty == Type::B64;
                self.count(5)?;
                let d = self.destination(0, wide)?;
                let s = vec![
                    self.read(1, wide)?,
                    self.read(2, wide)?,
                    self.read(3, false)?,
                    self.read(4, false)?,
                ];
                self.arithmetic(moves::inserting(wide), Class::Integer, 0, vec![d], s);
                Ok(())
            }
            "mov" => self.mov(m),
            "cvt" => self.cvt(m),
            "cvta" => self.cvta(m),
            "isspacep" => self.is_space(m),
            "setp" => self.setp(m),
            "set" => self.set(m),
            "selp" => {
                let ty = self.typed(m)?;
                self.count(4)?;
                let wide = ty.bytes() == 8;
                let d = self.destination(0, wide)?;
                let mut s = vec![self.read(1, wide)?, self.read(2, wide)?, self.read_predicate(3)?];
                narrow_constants(&mut s, ty);
                let exec = moves::selecting(self.linker.wide, wide);
                self.arithmetic(exec, Class::Integer, 0, vec![d], s);
                Ok(())
            }
            "testp" => {
                let names = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
                let Some(which) = m.any(&names) else { return bad("testp needs a property") };
                let ty = self.typed(m)?;
                let Some(exec) = arithmetic::property(self.linker.wide, which, ty) else {
                    return bad("testp is .f32 or .f64");
                };
                self.count(2)?;
                let d = vec![self.destination_predicate(0)?, Value::SinkPredicate];
                let x = self.read(1, ty.bytes() == 8)?;
                self.arithmetic(exec, Class::Float32, 0, d, vec![x, x]);
                Ok(())
            }
            "ld" | "ldu" => self.load(m),
            "st" => self.store(m),
            "atom" | "red" => self.atomic(base, m),
            "cp" => self.copy(m),
            "prefetch" | "prefetchu" | "applypriority" | "discard" => {
                m.left.clear();
                self.push(blank(Code::Nothing), Class::Memory, vec![], vec![]);
                Ok(())
            }
            "membar" | "fence" => {
                let mut op = blank(Code::Fence);
                op.order = ordering(&m.left, true);
                if m.left.iter().any(|word| *word == "proxy" || word.starts_with("proxy::")) {
                    if m.left.contains(&"async") {
                        op.order = ASYNC_PROXY;
                    } else {
                        op.code = Code::Nothing;
                    }
                }
                m.left.clear();
                self.push(op, Class::Synchronise, vec![], vec![]);
                Ok(())
            }
            "nanosleep" | "pmevent" => {
                m.left.clear();
                self.push(blank(Code::Nothing), Class::Control, vec![], vec![]);
                Ok(())
            }
            "griddepcontrol" => {
                m.left.clear();
                self.push(blank(Code::Nothing), Class::Synchronise, vec![], vec![]);
                Ok(())
            }
            "bar" | "barrier" => self.barrier(base, m),
            "shfl" => self.shuffle(m),
            "vote" => self.vote(m),
            "match" => self.match_(m),
            "activemask" => {
                m.has("b32");
                self.count(1)?;
                let d = self.destination(0, false)?;
                self.push(blank(Code::ActiveMask), Class::Exchange, vec![d], vec![]);
                Ok(())
            }
            "redux" => self.redux(m),
            "elect" => {
                m.has("sync");
                self.count(2)?;
                let Operand::Pair(d, p) = self.operand(0)? else {
                    return bad("expected a destination and a predicate, d|p");
                };
                let d = vec![
                    self.destination_named(d, false)?,
                    Value::Register(self.predicate_register(p)?),
                ];
                let members = self.read(1, false)?;
                self.push(blank(Code::Elect), Class::Exchange, d, vec![members, members]);
                Ok(())
            }
            "mbarrier" => self.mbarrier(m),
            "wgmma" => self.warpgroup(m),
            "setmaxnreg" => self.set_registers(m),
            "mapa" => self.map_shared(m),
            "getctarank" => self.block_rank(m),
            "ldmatrix" | "stmatrix" => self.matrix_move(base == "ldmatrix", m),
            "movmatrix" => self.transpose(m),
            "mma" => self.mma(m),
            "bra" => {
                m.has("uni");
                self.count(1)?;
                let target = self.label(0)?;
                let mut op = blank(Code::Branch);
                op.count = 1;
                self.push(op, Class::Control, vec![], vec![]).targets = vec![target];
                Ok(())
            }
            "brx" => self.branch_indexed(m),
            "ret" => {
                m.has("uni");
                if self.linker.tree.functions[self.function].entry {
                    self.push(blank(Code::Exit), Class::Control, vec![], vec![]);
                } else {
                    let back = self.linker.return_register(self.function);
                    self.push(blank(Code::Return), Class::Control, vec![], vec![back]);
                }
                Ok(())
            }
            "exit" => {
                self.push(blank(Code::Exit), Class::Control, vec![], vec![]);
                Ok(())
            }
            "trap" | "brkpt" => {
                self.push(blank(Code::Trap), Class::Control, vec![], vec![]);
                Ok(())
            }
            "call" => self.call(m),
            _ => bad(format!("opcode `{base}` is not supported")),
        }
    }

    // ---- operands -------------------------------------------------------------------------

    fn count(&self, expected: usize) -> Decoded<()> {
        let given = self.i.operands.len();
        if given == expected {
            Ok(())
        } else {
            bad(format!("expected {expected} operands, found {given}"))
        }
    }

    fn find(&self, name: &str) -> Option<Found<'t>> {
        self.linker.tree.functions[self.function].find(self.i.scope, name)
    }

    fn operand(&self, index: usize) -> Decoded<&'t Operand<'t>> {
        match self.i.operands.get(index) {
            Some(operand) => Ok(operand),
            None => bad(format!("operand {} is missing", index + 1)),
        }
    }

    fn typed(&self, m: &mut Modifiers<'t>) -> Decoded<Type> {
        match m.ty() {
            Some(ty) => Ok(ty),
            None => bad("the instruction has no type"),
        }
    }

    fn register(&self, name: &str) -> Decoded<(Value, Type)> {
        match self.find(name) {
            Some(Found::Register(number)) => {
                let ty = self.linker.tree.functions[self.function].registers[number as usize];
                Ok((Value::Register(self.linker.register(self.function, number)), ty))
            }
            Some(_) => bad(format!("`{name}` is not a register")),
            None => bad(format!("`{name}` is not declared")),
        }
    }

    fn predicate_register(&self, name: &str) -> Decoded<u32> {
        match self.register(name)? {
            (Value::Register(number), Type::Pred) => Ok(number),
            _ => bad(format!("`{name}` is not a predicate register")),
        }
    }

    /// The address of a variable in its own space, and that space (parameters of functions live
    /// in local memory).
    fn variable(&self, name: &str) -> Option<(Space, u64)> {
        match self.find(name) {
            Some(Found::Variable(index)) => self.linker.local_variable(self.function, index),
            Some(_) => None,
            None => self.linker.module_variable(name),
        }
    }

    fn value(&self, operand: &Operand<'t>, wide: bool) -> Decoded<Value> {
        match operand {
            Operand::Integer(value) => {
                Ok(Value::Constant(if wide { *value } else { *value & 0xffff_ffff }, wide))
            }
            Operand::Single(bits) if !wide => Ok(Value::Constant(u64::from(*bits), false)),
            Operand::Double(bits) if wide => Ok(Value::Constant(*bits, true)),
            Operand::Single(bits) => {
                Ok(Value::Constant(f64::from(f32::from_bits(*bits)).to_bits(), true))
            }
            Operand::Double(bits) => {
                Ok(Value::Constant(u64::from((f64::from_bits(*bits) as f32).to_bits()), false))
            }
            Operand::Offset(name, offset) => match self.variable(name) {
                Some((_, address)) => {
                    Ok(Value::Constant(address.wrapping_add(*offset as u64), wide))
                }
                None => bad(format!("`{name}` is not a variable")),
            },
            Operand::Name("WARP_SZ") => Ok(Value::Constant(32, wide)),
            Operand::Name(name) => {
                if let Some(Found::Register(_)) = self.find(name) {
                    let (value, ty) = self.register(name)?;
                    if ty == Type::Pred {
                        return bad(format!("`{name}` is a predicate, a number was expected"));
                    }
                    if (ty.bytes() == 8) != wide {
                        return bad(format!(
                            "`{name}` is {} bits wide, {} were expected",
                            8 * ty.bytes(),
                            if wide { 64 } else { 32 }
                        ));
                    }
                    return Ok(value);
                }
                if name.starts_with('%')
                    && let Some(special) = SpecialRegister::parse(name)
                {
                    if wide {
                        return bad(format!("`{name}` is 32 bits wide, 64 were expected"));
                    }
                    return Ok(Value::Special(special));
                }
                match self.variable(name) {
                    Some((_, address)) => Ok(Value::Constant(address, wide)),
                    None => bad(format!("`{name}` is not declared")),
                }
            }
            _ => bad("expected a register or an immediate"),
        }
    }

    fn read(&self, index: usize, wide: bool) -> Decoded<Value> {
        self.value(self.operand(index)?, wide)
    }

    fn read_predicate(&self, index: usize) -> Decoded<Value> {
        match self.operand(index)? {
            // Blocks are launched without clusters.
            Operand::Name("%is_explicit_cluster") => Ok(Value::ConstantPredicate(false)),
            Operand::Name(name) => Ok(Value::Register(self.predicate_register(name)?)),
            Operand::Integer(value) => Ok(Value::ConstantPredicate(*value != 0)),
            _ => bad("expected a predicate register"),
        }
    }

    /// A predicate that may be negated with `!`.
    fn read_signed_predicate(&self, index: usize) -> Decoded<(Value, bool)> {
        match self.operand(index)? {
            Operand::Not(name) => Ok((Value::Register(self.predicate_register(name)?), true)),
            _ => Ok((self.read_predicate(index)?, false)),
        }
    }

    fn destination_named(&self, name: &str, wide: bool) -> Decoded<Value> {
        if name == "_" {
            return Ok(Value::Sink);
        }
        let (value, ty) = self.register(name)?;
        if ty == Type::Pred || (ty.bytes() == 8) != wide {
            return bad(format!(
                "destination `{name}` should be {} bits wide",
                if wide { 64 } else { 32 }
            ));
        }
        Ok(value)
    }

    fn destination(&self, index: usize, wide: bool) -> Decoded<Value> {
        match self.operand(index)? {
            Operand::Name(name) => self.destination_named(name, wide),
            _ => bad("expected a destination register"),
        }
    }

    fn destination_predicate(&self, index: usize) -> Decoded<Value> {
        match self.operand(index)? {
            Operand::Name("_") => Ok(Value::SinkPredicate),
            Operand::Name(name) => Ok(Value::Register(self.predicate_register(name)?)),
            _ => bad("expected a destination predicate"),
        }
    }

    fn is_wide_register(&self, name: &str) -> Option<bool> {
        match self.find(name) {
            Some(Found::Register(number)) => {
                let ty = self.linker.tree.functions[self.function].registers[number as usize];
                Some(ty.bytes() == 8)
            }
            _ => None,
        }
    }

    fn label_named(&self, name: &str) -> Decoded<Target> {
        match self.find(name) {
            Some(Found::Label(at)) => Ok(Target::Label(self.function, at)),
            _ => bad(format!("label `{name}` is not declared")),
        }
    }

    fn label(&self, index: usize) -> Decoded<Target> {
        match self.operand(index)? {
            Operand::Name(name) => self.label_named(name),
            _ => bad("expected a label"),
        }
    }

    // ---- emission -------------------------------------------------------------------------

    fn push(&mut self, op: Op, class: Class, d: Vec<Value>, s: Vec<Value>) -> &mut Pending {
        let at = self.linker.code.len();
        self.linker.code.push(Pending {
            op,
            class,
            d,
            s,
            copies: false,
            guard: self.guard,
            targets: Vec::new(),
            line: self.i.line,
            text: String::new(),
            source: self.i.source.clone(),
        });
        let pending = &mut self.linker.code[at];
        pending.text = self.i.text.split_whitespace().collect::<Vec<_>>().join(" ");
        pending
    }

    fn arithmetic(
        &mut self,
        exec: Exec,
        class: Class,
        imm: i64,
        d: Vec<Value>,
        s: Vec<Value>,
    ) -> &mut Pending {
        let mut op = blank(Code::Arithmetic);
        op.exec = exec;
        op.imm = imm;
        self.push(op, class, d, s)
    }

    /// One register receives the bits of a value of its width.
    fn assign(&mut self, d: Value, value: Value, wide: bool) {
        let w = self.linker.wide;
        let exec =
            if wide { lane!(w, |x: u64| -> u64 { x }) } else { lane!(w, |x: u32| -> u32 { x }) };
        self.arithmetic(exec, Class::Moves, 0, vec![d], vec![value]).copies = true;
    }

    /// Emits `cvt` between register widths where an operand is wider than its type allows.
    fn resized(&mut self, value: Value, to_wide: bool, signed: bool) -> Value {
        let out = self.linker.temporary(if to_wide { Type::B64 } else { Type::B32 });
        let w = self.linker.wide;
        let exec = match (to_wide, signed) {
            (true, true) => lane!(w, |x: u32| -> u64 { x as i32 as u64 }),
            (true, false) => lane!(w, |x: u32| -> u64 { u64::from(x) }),
            (false, _) => lane!(w, |x: u64| -> u32 { x as u32 }),
        };
        self.arithmetic(exec, Class::Convert, 0, vec![out], vec![value]);
        out
    }

    // ---- arithmetic -----------------------------------------------------------------------

    fn binary(&mut self, base: &str, m: &mut Modifiers<'t>) -> Decoded<()> {
        if m.has("cc") {
            return self.carry(base, m);
        }
        let ty = self.typed(m)?;
        self.count(3)?;
        if ty == Type::Pred {
            let Some((exec, which)) = moves::on_predicates(base) else {
                return bad(format!("`{base}` does not take predicates"));
            };
            let d = self.destination_predicate(0)?;
            let (a, not_a) = self.read_signed_predicate(1)?;
            let (b, not_b) = self.read_signed_predicate(2)?;
            let pending = self.arithmetic(exec, Class::Integer, which, vec![d], vec![a, b]);
            pending.op.flags = u8::from(not_a) | u8::from(not_b) << 1;
            return Ok(());
        }
        let wide = ty.bytes() == 8;
        let mut name = base.to_owned();
        let mut flags = 0;
        if ty.is_float() {
            if base == "div" && m.has("approx") {
                name = "div.approx".to_owned();
            }
            flags = m.float_flags();
        } else {
            if base == "mul" && m.has("wide") {
                let Some(exec) = arithmetic::widening(self.linker.wide, ty) else {
                    return bad("mul.wide takes 16- and 32-bit integers");
                };
                let d = self.destination(0, ty.bytes() == 4)?;
                let mut s = vec![self.read(1, false)?, self.read(2, false)?];
                narrow_constants(&mut s, ty);
                self.arithmetic(exec, Class::Integer, 0, vec![d], s);
                return Ok(());
            }
            if let Some(part) = m.any(&["lo", "hi"]) {
                name = format!("{base}.{part}");
            }
            if m.has("sat") {
                name.push_str(".sat");
            }
            if m.has("relu") {
                if !matches!(base, "min" | "max") || !ty.is_signed() {
                    return bad("of the integers only min and max of signed ones have .relu");
                }
                flags |= RELU;
            }
        }
        let shift = matches!(base, "shl" | "shr");
        let Some((exec, class)) = arithmetic::binary(self.linker.wide, &name, ty, flags) else {
            return bad(format!("this form of `{base}` is not supported"));
        };
        let d = self.destination(0, wide)?;
        let mut s = vec![self.read(1, wide)?, self.read(2, wide && !shift)?];
        narrow_constants(&mut s, ty);
        self.arithmetic(exec, class, flags, vec![d], s);
        Ok(())
    }

    fn ternary(&mut self, base: &str, m: &mut Modifiers<'t>) -> Decoded<()> {
        if m.has("cc") {
            return self.carry(base, m);
        }
        let mut name = base.to_owned();
        let mut flags = 0;
        match base {
            "shf" => {
                let direction = m.any(&["l", "r"]).unwrap_or("");
                let end = m.any(&["wrap", "clamp"]).unwrap_or("");
                name = format!("shf.{direction}.{end}");
            }
            "mad" | "mad24" => {
                if let Some(part) = m.any(&["lo", "hi", "wide"]) {
                    name = format!("{base}.{part}");
                }
            }
            "dp2a" => flags |= if m.any(&["lo", "hi"]) == Some("hi") { 4 } else { 0 },
            "slct" => flags |= if m.has("ftz") { FTZ } else { 0 },
            "prmt" => {
                if let Some(mode) = m.any(&PERMUTES[1..]) {
                    flags = PERMUTES.iter().position(|&p| p == mode).unwrap_or(0) as i64;
                }
            }
            _ => {}
        }
        let mut ty = self.typed(m)?;
        if base == "mad" && ty.is_float() {
            name = "fma".to_owned();
        }
        match base {
            "dp4a" | "dp2a" => {
                let other = self.typed(m)?;
                flags |= i64::from(ty.is_signed()) | i64::from(other.is_signed()) << 1;
            }
            "slct" => {
                let by = self.typed(m)?;
                name = match by {
                    Type::S32 => "slct.s32".to_owned(),
                    Type::F32 => "slct.f32".to_owned(),
                    _ => return bad("slct selects by .s32 or .f32"),
                };
            }
            _ if ty.is_float() => flags = m.float_flags(),
            _ => {}
        }
        if base == "lop3" {
            if self.i.operands.len() != 5 {
                return bad("lop3 with a predicate is not supported");
            }
            let Operand::Integer(table) = self.operand(4)? else {
                return bad("the table of lop3 must be an immediate");
            };
            flags = (*table & 0xff) as i64;
        } else {
            self.count(4)?;
        }
        if base == "dp4a" || base == "dp2a" {
            ty = Type::B32;
        }
        let Some((exec, class)) = arithmetic::ternary(self.linker.wide, &name, ty, flags) else {
            return bad(format!("this form of `{base}` is not supported"));
        };
        let wide = ty.bytes() == 8;
        let (d_wide, s_wide) = match base {
            "mad" if name == "mad.wide" => (ty.bytes() == 4, [false, false, ty.bytes() == 4]),
            "bfe" => (wide, [wide, false, false]),
            "slct" => (wide, [wide, wide, false]),
            _ => (wide, [wide; 3]),
        };
        let d = self.destination(0, d_wide)?;
        let mut s =
            vec![self.read(1, s_wide[0])?, self.read(2, s_wide[1])?, self.read(3, s_wide[2])?];
        // The addend of mad.wide has twice the width of the factors.
        let narrow = if name == "mad.wide" { 2 } else { 3 };
        narrow_constants(&mut s[..narrow], ty);
        self.arithmetic(exec, class, flags, vec![d], s);
        Ok(())
    }

    fn carry(&mut self, base: &str, m: &mut Modifiers<'t>) -> Decoded<()> {
        let with = m.has("with-carry");
        // What is not `.cc` leaves the carry as it is.
        let writes = m.has("cc") || !with;
        let part = m.any(&["lo", "hi"]);
        let ty = self.typed(m)?;
        let which = match (base, part) {
            ("add" | "addc", None) => 0,
            ("sub" | "subc", None) => 1,
            ("mad" | "madc", Some("lo")) => 2,
            ("mad" | "madc", Some("hi")) if !ty.is_signed() => 3,
            ("mad" | "madc", Some("hi")) => 4,
            _ => return bad(format!("this form of `{base}` is not supported")),
        };
        if !ty.is_integer() || ty.bytes() < 4 {
            return bad("carry arithmetic takes 32- and 64-bit integers");
        }
        let wide = ty.bytes() == 8;
        let sources = if which >= 2 { 3 } else { 2 };
        self.count(1 + sources)?;
        let d = self.destination(0, wide)?;
        let mut s = Vec::new();
        for index in 0..3 {
            s.push(if index < sources {
                self.read(1 + index, wide)?
            } else {
                Value::Constant(0, wide)
            });
        }
        let flag = self.linker.carry_register();
        s.push(if with { flag } else { Value::ConstantPredicate(false) });
        let imm = which
            | if with { moves::USES_CARRY } else { 0 }
            | if wide { moves::CARRY_WIDE } else { 0 };
        let out = if writes { flag } else { Value::SinkPredicate };
        self.arithmetic(moves::carrying(), Class::Integer, imm, vec![d, out], s);
        Ok(())
    }

    /// SIMD video instructions, `vadd2` to `vset4`, without masks and selectors.
    fn video(&mut self, base: &str, m: &mut Modifiers<'t>) -> Decoded<()> {
        let name = base.trim_end_matches(['2', '4']);
        let mut k = arithmetic::VIDEO.iter().position(|&v| v == name).unwrap_or(0) as i64;
        if base.ends_with('4') {
            k |= VIDEO_FOUR;
        }
        if name == "vset" {
            let names = ["eq", "ne", "lt", "le", "gt", "ge"];
            let Some(comparison) = m.any(&names) else { return bad("vset needs a comparison") };
            let which = names.iter().position(|&n| n == comparison).unwrap_or(0) as i64;
            k |= which << VIDEO_COMPARISON;
            // The type of the result is not written.
            m.left.insert(0, "u32");
        }
        for signed in VIDEO_SIGNED {
            match self.typed(m)? {
                Type::U32 => {}
                Type::S32 => k |= signed,
                _ => return bad(format!("`{base}` takes .u32 and .s32")),
            }
        }
        if m.has("sat") {
            k |= VIDEO_SATURATE;
        }
        if m.has("add") {
            k |= VIDEO_SUM;
        }
        if self.i.operands.len() == 3 && k & VIDEO_SUM == 0 {
            self.count(3)?;
        } else {
            self.count(4)?;
        }
        let d = self.destination(0, false)?;
        let c = if self.i.operands.len() == 4 {
            self.read(3, false)?
        } else {
            Value::Constant(0, false)
        };
        let s = vec![self.read(1, false)?, self.read(2, false)?, c];
        let exec = arithmetic::video(self.linker.wide);
        self.arithmetic(exec, Class::Integer, k, vec![d], s);
        Ok(())
    }

    fn unary(&mut self, base: &str, m: &mut Modifiers<'t>) -> Decoded<()> {
        let mut name = base.to_owned();
        if base == "bfind" && m.has("shiftamt") {
            name.push_str(".shiftamt");
        }
        let ty = self.typed(m)?;
        if ty == Type::F64 && m.has("approx") && m.has("ftz") {
            name.push_str(".approx");
        }
        let flags = if ty.is_float() { m.float_flags() } else { 0 };
        self.count(2)?;
        if ty == Type::Pred {
            let Some((exec, which)) = moves::on_predicates(base) else {
                return bad(format!("`{base}` does not take predicates"));
            };
            let d = self.destination_predicate(0)?;
            let (a, not_a) = self.read_signed_predicate(1)?;
            let pending = self.arithmetic(exec, Class::Integer, which, vec![d], vec![a, a]);
            pending.op.flags = u8::from(not_a);
            return Ok(());
        }
        let Some((exec, class)) = arithmetic::unary(self.linker.wide, &name, ty) else {
            return bad(format!("this form of `{base}` is not supported"));
        };
        let wide = ty.bytes() == 8;
        let narrow = matches!(base, "popc" | "clz" | "bfind");
        let d = self.destination(0, wide && !narrow)?;
        let s = vec![self.read(1, wide)?];
        self.arithmetic(exec, class, flags, vec![d], s);
        Ok(())
    }

    fn mov(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let ty = self.typed(m)?;
        self.count(2)?;
        let wide = ty.bytes() == 8;
        if ty == Type::Pred {
            let d = self.destination_predicate(0)?;
            let (a, not_a) = self.read_signed_predicate(1)?;
            let Some((exec, which)) = moves::on_predicates("mov") else {
                return bad("mov does not take predicates");
            };
            let pending = self.arithmetic(exec, Class::Moves, which, vec![d], vec![a, a]);
            pending.op.flags = u8::from(not_a);
            return Ok(());
        }
        let part = |count: usize| -> Decoded<(u8, u8)> {
            let bytes = ty.bytes() as usize;
            if !(2..=4).contains(&count) || !bytes.is_multiple_of(count) {
                return bad("a vector of this length does not divide the type");
            }
            Ok(((bytes / count) as u8, count as u8))
        };
        if let Operand::Vector(parts) = self.operand(1)? {
            let (size, count) = part(parts.len())?;
            let d = self.destination(0, wide)?;
            let s = parts.iter().map(|p| self.value(p, false)).collect::<Decoded<Vec<_>>>()?;
            let pending = self.arithmetic(
                moves::packing(self.linker.wide, size, count),
                Class::Moves,
                0,
                vec![d],
                s,
            );
            (pending.op.size, pending.op.count) = (size, count);
            return Ok(());
        }
        if let Operand::Vector(parts) = self.operand(0)? {
            let (size, count) = part(parts.len())?;
            let mut d = Vec::new();
            for p in parts {
                let Operand::Name(name) = p else { return bad("expected destination registers") };
                d.push(self.destination_named(name, false)?);
            }
            let s = vec![self.read(1, wide)?];
            let pending = self.arithmetic(
                moves::unpacking(self.linker.wide, size, count),
                Class::Moves,
                0,
                d,
                s,
            );
            (pending.op.size, pending.op.count) = (size, count);
            return Ok(());
        }
        if let Operand::Name(name) = self.operand(1)? {
            let clock_wide = match *name {
                "%clock64" | "%globaltimer" => Some(true),
                "%clock" | "%clock_hi" | "%globaltimer_lo" | "%globaltimer_hi" => Some(false),
                _ => None,
            };
            if let Some(clock_wide) = clock_wide {
                if clock_wide != wide {
                    return bad(format!("`{name}` has another width"));
                }
                let d = self.destination(0, wide)?;
                let mut op = blank(Code::Clock);
                op.flags = if wide { WIDE_DATA } else { 0 };
                op.imm = if name.ends_with("_hi") { 32 } else { 0 };
                self.push(op, Class::Moves, vec![d], vec![]);
                return Ok(());
            }
        }
        let d = self.destination(0, wide)?;
        let mut value = self.read(1, wide)?;
        if ty.bytes() == 2
            && let Value::Constant(bits, _) = &mut value
        {
            *bits &= 0xffff;
        }
        self.assign(d, value, wide);
        Ok(())
    }

    fn cvt(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let mut flags = 0;
        let mut away = false;
        if m.has("pack") {
            m.has("sat");
            let to = self.typed(m)?;
            if self.typed(m)? != Type::S32 {
                return bad("cvt.pack converts from .s32");
            }
            if m.has("b32") {
                self.count(4)?;
            } else {
                self.count(3)?;
            }
            let Some(exec) = convert::pack_saturated(self.linker.wide, to) else {
                return bad("this form of cvt.pack is not supported");
            };
            let d = self.destination(0, false)?;
            let mut s = vec![self.read(1, false)?, self.read(2, false)?];
            if self.i.operands.len() == 4 {
                s.push(self.read(3, false)?);
            }
            self.arithmetic(exec, Class::Convert, 0, vec![d], s);
            return Ok(());
        }
        match m.any(&["rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna"]) {
            Some("rz") => flags |= 1,
            Some("rm") => flags |= 2,
            Some("rp") => flags |= 3,
            Some("rni") => flags |= WHOLE,
            Some("rzi") => flags |= 1 | WHOLE,
            Some("rmi") => flags |= 2 | WHOLE,
            Some("rpi") => flags |= 3 | WHOLE,
            Some("rna") => away = true,
            _ => {}
        }
        for (name, flag) in [("ftz", FTZ), ("sat", SAT), ("relu", RELU)] {
            if m.has(name) {
                flags |= flag;
            }
        }
        let finite = m.has("satfinite");
        let to = self.typed(m)?;
        let from = self.typed(m)?;
        let w = self.linker.wide;
        let eighth = |ty| matches!(ty, Type::E4m3x2 | Type::E5m2x2);
        if eighth(to) || eighth(from) {
            let sources = if from == Type::F32 { 2 } else { 1 };
            self.count(1 + sources)?;
            let exec = convert::eighths(w, to, from).filter(|_| finite == eighth(to));
            let Some(exec) = exec.filter(|_| flags & !RELU == 0 && !away) else {
                return bad("this conversion of 8-bit floats is not supported");
            };
            let d = self.destination(0, false)?;
            let s = (1..=sources).map(|at| self.read(at, false)).collect::<Decoded<Vec<_>>>()?;
            self.arithmetic(exec, Class::Convert, flags, vec![d], s);
            return Ok(());
        }
        if to == Type::Tf32 {
            if from != Type::F32 || flags & !1 != 0 || finite {
                return bad("this conversion to .tf32 is not supported");
            }
            self.count(2)?;
            let d = self.destination(0, false)?;
            let s = vec![self.read(1, false)?];
            let exec = convert::to_tf32(w, away, flags & 1 != 0);
            self.arithmetic(exec, Class::Convert, 0, vec![d], s);
            return Ok(());
        }
        if away || finite {
            return bad("this conversion is not supported");
        }
        if matches!(to, Type::F16x2 | Type::Bf16x2) {
            if from != Type::F32 {
                return bad("packed conversions are from .f32");
            }
            self.count(3)?;
            let Some(exec) = convert::packing(w, to, flags & !FTZ) else {
                return bad("this packed conversion is not supported");
            };
            let d = self.destination(0, false)?;
            let s = vec![self.read(1, false)?, self.read(2, false)?];
            self.arithmetic(exec, Class::Convert, flags & !FTZ, vec![d], s);
            return Ok(());
        }
        self.count(2)?;
        // A directed rounding of a widening or integer conversion changes nothing, and .ftz only
        // concerns f32.
        if to != Type::F32 && from != Type::F32 {
            flags &= !FTZ;
        }
        let Some((exec, imm)) = convert::conversion(w, to, from, flags) else {
            return bad("this conversion is not supported");
        };
        let (to_wide, from_wide) = (to.bytes() == 8, from.bytes() == 8);
        let source_wide = match self.operand(1)? {
            Operand::Name(name) => self.is_wide_register(name).unwrap_or(from_wide),
            _ => from_wide,
        };
        let mut source = self.read(1, source_wide)?;
        if source_wide && !from_wide {
            source = self.resized(source, false, false);
        } else if source_wide != from_wide {
            return bad("the source register is narrower than its type");
        }
        let d_bytes = match self.operand(0)? {
            Operand::Name(name) => self.register(name).map_or(to.bytes(), |(_, ty)| ty.bytes()),
            _ => to.bytes(),
        };
        let d_wide = d_bytes == 8;
        let d = self.destination(0, d_wide)?;
        if d_bytes < to.bytes() {
            return bad("the destination register is narrower than its type");
        }
        // A signed integer fills a register that is wider than its type with its sign; one of 16
        // bits is kept without what is above them.
        let extend = match (to, d_bytes) {
            (Type::S8 | Type::S16, 8) => Some(lane!(w, |x: u32| -> u64 { x as u16 as i16 as u64 })),
            (_, 8) if !to_wide && to.is_signed() => {
                Some(lane!(w, |x: u32| -> u64 { x as i32 as u64 }))
            }
            (_, 8) if !to_wide => Some(lane!(w, |x: u32| -> u64 { u64::from(x) })),
            (Type::S8, 2) => Some(lane!(w, |x: u32| -> u32 { x & 0xffff })),
            (Type::S16, 4) => Some(lane!(w, |x: u32| -> u32 { x as u16 as i16 as u32 })),
            _ => None,
        };
        let Some(extend) = extend else {
            self.arithmetic(exec, Class::Convert, imm, vec![d], vec![source]);
            return Ok(());
        };
        let middle = self.linker.temporary(Type::B32);
        self.arithmetic(exec, Class::Convert, imm, vec![middle], vec![source]);
        self.arithmetic(extend, Class::Convert, 0, vec![d], vec![middle]);
        Ok(())
    }

    fn space(&self, m: &mut Modifiers<'t>) -> Decoded<Space> {
        Ok(
            match m.any(&[
                "global",
                "shared",
                "shared::cta",
                "shared::cluster",
                "local",
                "const",
                "param",
                "param::entry",
                "param::func",
            ]) {
                Some("global") => Space::Global,
                Some("shared" | "shared::cta" | "shared::cluster") => Space::Shared,
                Some("local") => Space::Local,
                Some("const") => Space::Const,
                Some(_) => Space::Param,
                None => Space::Generic,
            },
        )
    }

    fn cvta(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let to = m.has("to");
        let space = self.space(m)?;
        if m.ty() != Some(Type::U64) {
            return bad("cvta is .u64");
        }
        self.count(2)?;
        let base = window(space);
        let d = self.destination(0, true)?;
        let x = self.read(1, true)?;
        if base == 0 {
            self.assign(d, x, true);
            return Ok(());
        }
        let s = vec![x, Value::Constant(if to { base.wrapping_neg() } else { base }, true)];
        let w = self.linker.wide;
        let exec = lane!(w, |x: u64, y: u64| -> u64 { x.wrapping_add(y) });
        self.arithmetic(exec, Class::Moves, 0, vec![d], s);
        Ok(())
    }

    fn is_space(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let space = self.space(m)?;
        self.count(2)?;
        let d = vec![self.destination_predicate(0)?, Value::SinkPredicate];
        let x = self.read(1, true)?;
        let w = self.linker.wide;
        let (exec, base) = match space {
            Space::Shared | Space::Local | Space::Param => {
                (test!(w, |x, y: u64| x >> WINDOW_BITS == y >> WINDOW_BITS), window(space))
            }
            Space::Global => (test!(w, |x, y: u64| x < y), LOCAL_BASE),
            _ => return bad("isspacep of this space is not supported"),
        };
        self.arithmetic(exec, Class::Integer, 0, d, vec![x, Value::Constant(base, true)]);
        Ok(())
    }

    // ---- comparison -----------------------------------------------------------------------

    fn comparison(&self, m: &mut Modifiers<'t>) -> Decoded<&'static str> {
        match m.any(&[
            "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num",
            "nan", "lo", "ls", "hi", "hs",
        ]) {
            Some(name) => Ok(name),
            None => bad("expected a comparison such as .eq or .lt"),
        }
    }

    fn setp(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let name = self.comparison(m)?;
        let combine = m.any(&COMBINE[1..]);
        let flush = m.has("ftz");
        let ty = self.typed(m)?;
        let (d, first) = match self.operand(0)? {
            Operand::Pair(p, q) => {
                let one = |name: &str| -> Decoded<Value> {
                    if name == "_" {
                        Ok(Value::SinkPredicate)
                    } else {
                        Ok(Value::Register(self.predicate_register(name)?))
                    }
                };
                (vec![one(p)?, one(q)?], 1)
            }
            _ => (vec![self.destination_predicate(0)?, Value::SinkPredicate], 1),
        };
        self.count(if combine.is_some() { 4 } else { 3 })?;
        let wide = ty.bytes() == 8;
        let mut s = vec![self.read(first, wide)?, self.read(first + 1, wide)?];
        narrow_constants(&mut s, ty);
        let class = match ty {
            Type::F32 => Class::Float32,
            Type::F64 => Class::Float64,
            _ if ty.is_float() => Class::Half,
            _ => Class::Integer,
        };
        if matches!(ty, Type::F16x2 | Type::Bf16x2) {
            if combine.is_some() {
                return bad("combining a packed comparison is not supported");
            }
            let Some(which) = moves::COMPARISONS.iter().position(|&c| c == name) else {
                return bad("unknown comparison of floats");
            };
            let imm = moves::pair_comparison(which, ty == Type::Bf16x2, flush);
            self.arithmetic(moves::comparing_pairs(), class, imm, d, s);
            return Ok(());
        }
        let Some(exec) = arithmetic::comparison(self.linker.wide, name, ty, flush) else {
            return bad("this comparison is not supported");
        };
        let mut negated = false;
        let mut count = 0;
        if let Some(combine) = combine {
            let (other, not) = self.read_signed_predicate(3)?;
            s.push(other);
            negated = not;
            count = COMBINE.iter().position(|&c| c == combine).unwrap_or(0) as u8;
        }
        let pending = self.arithmetic(exec, class, 0, d, s);
        pending.op.count = count;
        pending.op.flags = u8::from(negated);
        Ok(())
    }

    fn set(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let name = self.comparison(m)?;
        let flush = m.has("ftz");
        let to = self.typed(m)?;
        let from = self.typed(m)?;
        self.count(3)?;
        let wide = from.bytes() == 8;
        let d = self.destination(0, false)?;
        let s = vec![self.read(1, wide)?, self.read(2, wide)?];
        let w = self.linker.wide;
        let select = moves::selecting(w, false);
        let (yes, packed) = match to {
            Type::U32 | Type::S32 => (0xffff_ffff, false),
            Type::F32 => (0x3f80_0000, false),
            Type::F16 => (0x3c00, false),
            Type::Bf16 => (0x3f80, false),
            Type::U16 | Type::S16 => (0xffff, false),
            Type::F16x2 => (0x3c00, true),
            Type::Bf16x2 => (0x3f80, true),
            _ => return bad("this result type of `set` is not supported"),
        };
        let low = self.linker.temporary(Type::Pred);
        if matches!(from, Type::F16x2 | Type::Bf16x2) {
            let high = self.linker.temporary(Type::Pred);
            let Some(which) = moves::COMPARISONS.iter().position(|&c| c == name) else {
                return bad("unknown comparison of floats");
            };
            let (yes, yes_high) = if packed { (yes, yes << 16) } else { (0xffff, 0xffff_0000) };
            let imm = moves::pair_comparison(which, from == Type::Bf16x2, flush);
            self.arithmetic(moves::comparing_pairs(), Class::Half, imm, vec![low, high], s);
            let (p, q) = (self.linker.temporary(Type::B32), self.linker.temporary(Type::B32));
            let zero = Value::Constant(0, false);
            self.arithmetic(
                select,
                Class::Half,
                0,
                vec![p],
                vec![Value::Constant(yes, false), zero, low],
            );
            self.arithmetic(
                select,
                Class::Half,
                0,
                vec![q],
                vec![Value::Constant(yes_high, false), zero, high],
            );
            let or = lane!(w, |x: u32, y: u32| -> u32 { x | y });
            self.arithmetic(or, Class::Half, 0, vec![d], vec![p, q]);
            return Ok(());
        }
        let Some(exec) = arithmetic::comparison(w, name, from, flush) else {
            return bad("this comparison is not supported");
        };
        self.arithmetic(exec, Class::Integer, 0, vec![low, Value::SinkPredicate], s);
        let s = vec![Value::Constant(yes, false), Value::Constant(0, false), low];
        self.arithmetic(select, Class::Integer, 0, vec![d], s);
        Ok(())
    }

    // ---- memory ---------------------------------------------------------------------------

    /// The base of an address, its offset, whether the base is 64 bits wide, and the space a
    /// variable named there lives in.
    fn address(&self, index: usize) -> Decoded<(Value, i64, bool, Option<Space>)> {
        let Operand::Address(base, offset) = self.operand(index)? else {
            return bad("expected an address in brackets");
        };
        match &**base {
            Operand::Name(name) => {
                if let Some(wide) = self.is_wide_register(name) {
                    return Ok((self.value(base, wide)?, *offset, wide, None));
                }
                match self.variable(name) {
                    Some((space, address)) => {
                        Ok((Value::Constant(address, true), *offset, true, Some(space)))
                    }
                    None => bad(format!("`{name}` is not declared")),
                }
            }
            Operand::Integer(value) => Ok((Value::Constant(*value, true), *offset, true, None)),
            _ => bad("expected a register or a variable as the base of an address"),
        }
    }

    fn vector_length(&self, m: &mut Modifiers<'t>) -> u8 {
        match m.any(&["v2", "v4"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            _ => 1,
        }
    }

    fn elements(&self, index: usize, count: u8) -> Decoded<Vec<&'t Operand<'t>>> {
        let operand = self.operand(index)?;
        let elements: Vec<_> = match operand {
            Operand::Vector(elements) => elements.iter().collect(),
            other => vec![other],
        };
        if elements.len() != count as usize {
            return bad(format!("expected {count} data registers, found {}", elements.len()));
        }
        Ok(elements)
    }

    fn hints(&self, m: &mut Modifiers<'t>) {
        while m.any(&MEMORY_HINTS).is_some() {}
    }

    /// Most operands an access may have: one more with a cache policy, which is ignored.
    fn cache_policy(&self, m: &mut Modifiers<'t>, expected: usize) -> Decoded<()> {
        self.count(expected + usize::from(m.has("L2::cache_hint")))
    }

    /// A parameter space access resolved: kernel parameters stay, function parameters are local.
    fn settled(&self, space: Space, named: Option<Space>) -> Space {
        let entry = self.linker.tree.functions[self.function].entry;
        match (space, named) {
            (Space::Param, Some(space)) => space,
            (Space::Param, None) if !entry => Space::Local,
            (space, _) => space,
        }
    }

    fn load(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let order = ordering(&m.left, true);
        self.hints(m);
        let space = self.space(m)?;
        let count = self.vector_length(m);
        let ty = self.typed(m)?;
        self.cache_policy(m, 2)?;
        let (base, offset, wide_address, named) = self.address(1)?;
        let space = self.settled(space, named);
        let elements = self.elements(0, count)?;
        let mut d = Vec::new();
        let mut wide = ty.bytes() == 8;
        for (at, element) in elements.iter().enumerate() {
            let Operand::Name(name) = element else { return bad("expected destination registers") };
            if *name != "_" {
                let this = self.is_wide_register(name).unwrap_or(wide);
                if at == 0 {
                    wide = this;
                }
            }
            d.push(self.destination_named(name, wide)?);
        }
        if !wide && ty.bytes() == 8 {
            return bad("the destination register is narrower than its type");
        }
        if ty == Type::Pred || ty.bytes() * u32::from(count) > 16 {
            return bad("predicates and more than 16 bytes at a time cannot be loaded");
        }
        if space == Space::Param
            && let Value::Constant(address, _) = base
        {
            // A parameter of the kernel: its bytes are known at launch.
            for (k, d) in d.into_iter().enumerate() {
                let at = address
                    .wrapping_add(offset as u64)
                    .wrapping_add(k as u64 * u64::from(ty.bytes()));
                let value = self.linker.parameter(self.function, at, ty, wide)?;
                self.assign(d, value, wide);
            }
            return Ok(());
        }
        let mut op = blank(Code::Load);
        op.order = order;
        op.imm = offset;
        op.space = space;
        op.size = ty.bytes() as u8;
        op.count = count;
        op.flags = if wide_address { WIDE_ADDRESS } else { 0 }
            | if ty.is_signed() { SIGNED } else { 0 }
            | if wide { WIDE_DATA } else { 0 };
        self.push(op, Class::Memory, d, vec![base]);
        Ok(())
    }

    fn store(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let order = ordering(&m.left, true);
        self.hints(m);
        let space = self.space(m)?;
        let count = self.vector_length(m);
        let ty = self.typed(m)?;
        self.cache_policy(m, 2)?;
        let (base, offset, wide_address, named) = self.address(0)?;
        let space = self.settled(space, named);
        if matches!(space, Space::Const | Space::Param) {
            return bad("this space cannot be stored to");
        }
        if ty == Type::Pred || ty.bytes() * u32::from(count) > 16 {
            return bad("predicates and more than 16 bytes at a time cannot be stored");
        }
        let mut wide = ty.bytes() == 8;
        let mut s = vec![base];
        for (at, element) in self.elements(1, count)?.into_iter().enumerate() {
            if let (Operand::Name(name), 0) = (element, at) {
                wide = self.is_wide_register(name).unwrap_or(wide);
            }
            s.push(self.value(element, wide)?);
        }
        let mut op = blank(Code::Store);
        op.order = order;
        op.imm = offset;
        op.space = space;
        op.size = ty.bytes() as u8;
        op.count = count;
        op.flags = if wide_address { WIDE_ADDRESS } else { 0 } | if wide { WIDE_DATA } else { 0 };
        self.push(op, Class::Memory, vec![], s);
        Ok(())
    }

    fn atomic(&mut self, base: &str, m: &mut Modifiers<'t>) -> Decoded<()> {
        let order = STRONG | ordering(&m.left, true);
        self.hints(m);
        let space = self.space(m)?;
        let elements = match m.any(&["v2", "v4", "v8"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            Some(_) => 8,
            None => 1,
        };
        let names = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];
        let Some(which) = m.any(&names) else {
            return bad("this atomic operation is not supported");
        };
        let ty = self.typed(m)?;
        let reduction = base == "red";
        let operands = 2 + usize::from(which == "cas");
        self.cache_policy(m, operands + usize::from(!reduction))?;
        let first = usize::from(!reduction);
        let (base, offset, wide_address, named) = self.address(first)?;
        let space = self.settled(space, named);
        let flushes = which == "add" && ty == Type::F32 && space == Space::Global;
        let Some(code) = crate::atomic::code(if flushes { "add.ftz" } else { which }, ty) else {
            return bad(format!("`{which}` on this type is not supported"));
        };
        let wide = ty.bytes() == 8;
        let named = |at: &Self, index: usize| at.elements(index, elements);
        let destinations = if reduction { vec![] } else { named(self, 0)? };
        let mut sources = Vec::new();
        for index in 1..operands {
            sources.push(named(self, first + index)?);
        }
        // A vector is as many atomics as it has elements, which is all that PTX promises of it.
        for element in 0..elements as usize {
            let d = match destinations.get(element) {
                None => Value::Sink,
                Some(Operand::Name(name)) => self.destination_named(name, wide)?,
                Some(_) => return bad("expected a destination register"),
            };
            let mut s = vec![base];
            for source in &sources {
                s.push(self.value(source[element], wide)?);
            }
            let mut op = blank(Code::Atomic);
            op.order = order;
            op.imm = offset + element as i64 * i64::from(ty.bytes());
            op.space = space;
            op.size = ty.bytes() as u8;
            op.count = code;
            op.flags =
                if wide_address { WIDE_ADDRESS } else { 0 } | if wide { WIDE_DATA } else { 0 };
            self.push(op, Class::Memory, vec![d], s);
        }
        Ok(())
    }

    fn copy(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        if !m.has("async") {
            return bad("only cp.async is supported");
        }
        let reduces = m.has("reduce");
        if m.has("bulk") {
            return self.bulk_copy(m, reduces);
        }
        if m.has("mbarrier") {
            return self.copy_arrive(m);
        }
        if m.has("commit_group") {
            self.push(blank(Code::CopyCommit), Class::Memory, vec![], vec![]);
            return Ok(());
        }
        if m.has("wait_all") {
            self.push(blank(Code::CopyWaitAll), Class::Synchronise, vec![], vec![]);
            return Ok(());
        }
        if m.has("wait_group") {
            let Operand::Integer(groups) = self.operand(0)? else {
                return bad("wait_group takes an immediate");
            };
            let mut op = blank(Code::CopyWait);
            op.imm = (*groups).min(1 << 30) as i64;
            self.push(op, Class::Synchronise, vec![], vec![]);
            return Ok(());
        }
        let bypass = m.any(&["ca", "cg"]) == Some("cg");
        self.hints(m);
        if m.any(&["shared", "shared::cta"]).is_none() || !m.has("global") {
            return bad("cp.async copies from .global to .shared");
        }
        let policy = usize::from(m.has("L2::cache_hint"));
        let given = self.i.operands.len() - policy.min(self.i.operands.len());
        if !(3..=4).contains(&given) {
            return bad(format!("expected 3 or 4 operands, found {given}"));
        }
        let (to, to_offset, to_wide, _) = self.address(0)?;
        let (from, from_offset, from_wide, _) = self.address(1)?;
        let &Operand::Integer(size @ (4 | 8 | 16)) = self.operand(2)? else {
            return bad("cp.async copies 4, 8 or 16 bytes");
        };
        if bypass && size != 16 {
            return bad("cp.async.cg copies 16 bytes");
        }
        // The offsets of both addresses share the immediate.
        let far = |offset: i64| i32::try_from(offset).is_err();
        if far(to_offset) || far(from_offset) || !from_wide {
            return bad("this addressing of cp.async is not supported");
        }
        let mut s = vec![to, from];
        let mut flags = if to_wide { WIDE_ADDRESS } else { 0 };
        if given == 4 {
            match self.operand(3)? {
                Operand::Name(name)
                    if matches!(self.find(name), Some(Found::Register(_)))
                        && self.predicate_register(name).is_ok() =>
                {
                    return bad("the ignore-src form of cp.async is not supported");
                }
                _ => s.push(self.read(3, false)?),
            }
            flags |= SIGNED;
        }
        let mut op = blank(Code::CopyAsync);
        op.imm = (to_offset << 32) | (from_offset & 0xffff_ffff);
        op.space = Space::Shared;
        op.size = size as u8;
        op.flags = flags;
        self.push(op, Class::Memory, vec![], s);
        Ok(())
    }

    // ---- synchronisation and exchange -----------------------------------------------------

    fn barrier(&mut self, base: &str, m: &mut Modifiers<'t>) -> Decoded<()> {
        if m.has("warp") {
            m.has("sync");
            self.count(1)?;
            let members = self.read(0, false)?;
            self.push(blank(Code::WarpSync), Class::Synchronise, vec![], vec![members]);
            return Ok(());
        }
        if m.has("cluster") {
            return self.cluster_barrier(m);
        }
        m.has("cta");
        let aligned = m.has("aligned") || base == "bar";
        let flags = if aligned { ALIGNED } else { 0 };
        if m.has("red") {
            let which = m.any(&["popc", "and", "or"]);
            let Some(which) = which else { return bad("bar.red is .popc, .and or .or") };
            let _ = m.ty();
            let given = self.i.operands.len();
            if !(3..=4).contains(&given) {
                return bad(format!("expected 3 or 4 operands, found {given}"));
            }
            let (p, negated) = self.read_signed_predicate(given - 1)?;
            let d = if which == "popc" {
                self.destination(0, false)?
            } else {
                self.destination_predicate(0)?
            };
            let count = if given == 4 { self.read(2, false)? } else { Value::Constant(0, false) };
            let s = vec![self.read(1, false)?, count, p];
            let mut op = blank(Code::BarrierReduce);
            op.flags = flags;
            op.count = match which {
                "popc" => 0,
                "and" => 1,
                _ => 2,
            };
            op.size = u8::from(negated);
            self.push(op, Class::Synchronise, vec![d], s);
            return Ok(());
        }
        let code = match m.any(&["sync", "arrive"]) {
            Some("arrive") => Code::BarrierArrive,
            Some(_) => Code::BarrierSync,
            None => return bad("this form of barrier is not supported"),
        };
        let given = self.i.operands.len();
        if !(1..=2).contains(&given) {
            return bad(format!("expected 1 or 2 operands, found {given}"));
        }
        let count = if given == 2 { self.read(1, false)? } else { Value::Constant(0, false) };
        let s = vec![self.read(0, false)?, count];
        let mut op = blank(code);
        op.flags = flags;
        self.push(op, Class::Synchronise, vec![], s);
        Ok(())
    }

    fn shuffle(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        if !m.has("sync") {
            return bad("shfl without .sync is not supported");
        }
        let names = ["up", "down", "bfly", "idx"];
        let Some(mode) = m.any(&names) else { return bad("shfl needs a mode") };
        m.has("b32");
        self.count(5)?;
        let d = match self.operand(0)? {
            Operand::Pair(d, p) => {
                let p = if *p == "_" {
                    Value::SinkPredicate
                } else {
                    Value::Register(self.predicate_register(p)?)
                };
                vec![self.destination_named(d, false)?, p]
            }
            _ => vec![self.destination(0, false)?, Value::SinkPredicate],
        };
        let s = (1..5).map(|index| self.read(index, false)).collect::<Decoded<Vec<_>>>()?;
        let mut op = blank(Code::Shuffle);
        op.imm = names.iter().position(|&n| n == mode).unwrap_or(0) as i64;
        if mode == "bfly" {
            op.exec = exchange::butterfly(self.linker.wide);
        }
        self.push(op, Class::Exchange, d, s);
        Ok(())
    }

    fn vote(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        if !m.has("sync") {
            return bad("vote without .sync is not supported");
        }
        let names = ["all", "any", "uni", "ballot"];
        let Some(mode) = m.any(&names) else { return bad("vote needs a mode") };
        let _ = m.ty();
        self.count(3)?;
        let d = if mode == "ballot" {
            self.destination(0, false)?
        } else {
            self.destination_predicate(0)?
        };
        let (p, negated) = self.read_signed_predicate(1)?;
        let s = vec![p, self.read(2, false)?];
        let mut op = blank(Code::Vote);
        op.imm = names.iter().position(|&n| n == mode).unwrap_or(0) as i64;
        op.flags = u8::from(negated);
        self.push(op, Class::Exchange, vec![d], s);
        Ok(())
    }

    fn match_(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        m.has("sync");
        let Some(mode) = m.any(&["any", "all"]) else { return bad("match is .any or .all") };
        let ty = self.typed(m)?;
        self.count(3)?;
        let d = match self.operand(0)? {
            Operand::Pair(d, p) => {
                let p = if *p == "_" {
                    Value::SinkPredicate
                } else {
                    Value::Register(self.predicate_register(p)?)
                };
                vec![self.destination_named(d, false)?, p]
            }
            _ => vec![self.destination(0, false)?, Value::SinkPredicate],
        };
        let wide = ty.bytes() == 8;
        let s = vec![self.read(1, wide)?, self.read(2, false)?];
        let mut op = blank(Code::Match);
        op.imm = i64::from(mode == "all");
        op.flags = if wide { WIDE_DATA } else { 0 };
        self.push(op, Class::Exchange, d, s);
        Ok(())
    }

    fn redux(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        m.has("sync");
        let names = ["add", "min", "max", "and", "or", "xor"];
        let Some(mode) = m.any(&names) else { return bad("this redux is not supported") };
        let ty = self.typed(m)?;
        if !matches!(ty, Type::U32 | Type::S32 | Type::B32) {
            return bad("redux takes 32-bit integers");
        }
        self.count(3)?;
        let d = self.destination(0, false)?;
        let s = vec![self.read(1, false)?, self.read(2, false)?];
        let mut op = blank(Code::Reduce);
        op.imm = names.iter().position(|&n| n == mode).unwrap_or(0) as i64;
        op.flags = if ty == Type::S32 { SIGNED } else { 0 };
        self.push(op, Class::Exchange, vec![d], s);
        Ok(())
    }

    fn matrix_move(&mut self, load: bool, m: &mut Modifiers<'t>) -> Decoded<()> {
        m.has("sync");
        m.has("aligned");
        if !m.has("m8n8") {
            return bad("only 8x8 matrices are supported");
        }
        let count = match m.any(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some("x4") => 4,
            _ => return bad("expected .x1, .x2 or .x4"),
        };
        let transposed = m.has("trans");
        let _ = m.any(&["shared", "shared::cta"]);
        if m.ty() != Some(Type::B16) {
            return bad("matrices are .b16");
        }
        self.count(2)?;
        let (data, address) = if load { (0, 1) } else { (1, 0) };
        let (base, offset, wide, _) = self.address(address)?;
        let mut registers = Vec::new();
        for element in self.elements(data, count)? {
            let Operand::Name(name) = element else { return bad("expected registers") };
            registers.push(if load {
                self.destination_named(name, false)?
            } else {
                self.value(element, false)?
            });
        }
        let mut op = blank(if load { Code::MatrixLoad } else { Code::MatrixStore });
        op.imm = offset;
        op.space = Space::Shared;
        op.size = 16;
        op.count = count;
        op.flags = if wide { WIDE_ADDRESS } else { 0 } | if transposed { SIGNED } else { 0 };
        if load {
            self.push(op, Class::Memory, registers, vec![base]);
        } else {
            let mut s = vec![base];
            s.extend(registers);
            self.push(op, Class::Memory, vec![], s);
        }
        Ok(())
    }

    fn transpose(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        m.has("sync");
        m.has("aligned");
        if !m.has("m8n8") || !m.has("trans") || m.ty() != Some(Type::B16) {
            return bad("movmatrix is .sync.aligned.m8n8.trans.b16");
        }
        self.count(2)?;
        let d = self.destination(0, false)?;
        let s = self.read(1, false)?;
        let mut op = blank(Code::MatrixTranspose);
        op.exec = exchange::transposes;
        self.push(op, Class::Exchange, vec![d], vec![s]);
        Ok(())
    }

    fn mma(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        m.has("sync");
        m.has("aligned");
        let names = ["m16n8k16", "m16n8k8", "m16n8k4", "m16n8k32", "m8n8k16", "m8n8k4"];
        let Some(shape) = m.any(&names) else {
            return bad(format!("the shapes supported are {}", names.join(", ")));
        };
        if !m.has("row") || !m.has("col") {
            return bad("mma takes .row.col operands");
        }
        let saturate = m.has("satfinite");
        m.has("rn");
        let types = [self.typed(m)?, self.typed(m)?, self.typed(m)?, self.typed(m)?];
        let Some(form) = matrix::Form::of(shape, types, saturate) else {
            return bad("this combination of shape and types of `mma` is not supported");
        };
        self.count(4)?;
        let wide = form.wide();
        let [to, na, nb, from] = form.registers();
        let mut d = Vec::new();
        for element in self.elements(0, to)? {
            let Operand::Name(name) = element else { return bad("expected registers") };
            d.push(self.destination_named(name, wide)?);
        }
        let mut s = Vec::new();
        for (index, count) in [(1, na), (2, nb), (3, from)] {
            for element in self.elements(index, count)? {
                s.push(self.value(element, wide)?);
            }
        }
        let mut op = blank(Code::MatrixMultiply);
        form.encode(&mut op);
        self.push(op, Class::Matrix, d, s);
        Ok(())
    }

    // ---- control --------------------------------------------------------------------------

    fn branch_indexed(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        m.has("idx");
        m.has("uni");
        self.count(2)?;
        let index = self.read(0, false)?;
        let Operand::Name(list) = self.operand(1)? else {
            return bad("expected a list of targets");
        };
        let Some(Found::Targets(names)) = self.find(list) else {
            return bad(format!("`{list}` is not a .branchtargets list"));
        };
        let targets = names.iter().map(|n| self.label_named(n)).collect::<Decoded<Vec<_>>>()?;
        self.push(blank(Code::BranchIndexed), Class::Control, vec![], vec![index]).targets =
            targets;
        Ok(())
    }

    fn call(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        m.has("uni");
        let name = self.i.operands.iter().find_map(|operand| match operand {
            Operand::Name(name) => Some(*name),
            _ => None,
        });
        let Some(name) = name else { return bad("expected the name of a function") };
        let Some(callee) = self.linker.function(name) else {
            return bad(match self.find(name) {
                Some(Found::Register(_)) => INDIRECT.to_owned(),
                _ => format!("function `{name}` is not declared"),
            });
        };
        if self.linker.tree.functions[callee].body.is_none() {
            return match name {
                "vprintf" => self.print(),
                "__assertfail" => {
                    let mut op = blank(Code::Trap);
                    op.flags = 1;
                    self.push(op, Class::Control, vec![], vec![]);
                    Ok(())
                }
                _ => bad(format!("function `{name}` has no body")),
            };
        }
        let back = self.linker.return_register(callee);
        self.linker.calls.push((self.function, callee, self.i.line));
        self.push(blank(Code::Call), Class::Control, vec![back], vec![]).targets =
            vec![Target::Function(callee)];
        Ok(())
    }
}

impl At<'_, '_> {
    /// `call (count), vprintf, (format, arguments)`: the variables are in local memory.
    fn print(&mut self) -> Decoded<()> {
        let lists: Vec<_> = self
            .i
            .operands
            .iter()
            .filter_map(|operand| match operand {
                Operand::List(names) => Some(names.as_slice()),
                _ => None,
            })
            .collect();
        let [[Operand::Name(count)], [Operand::Name(format), Operand::Name(arguments)]] = lists[..]
        else {
            return bad("vprintf takes a format and arguments and returns a count");
        };
        let place = |name: &str| match self.variable(name) {
            Some((Space::Local, address)) => Ok(Value::Constant(address, true)),
            _ => bad(format!("`{name}` is not a .param variable")),
        };
        let (count, sources) = (place(count)?, [place(format)?, place(arguments)?]);
        let mut s = Vec::new();
        for source in sources {
            let mut op = blank(Code::Load);
            op.space = Space::Local;
            (op.size, op.count, op.flags) = (8, 1, WIDE_ADDRESS | WIDE_DATA);
            let to = self.linker.temporary(Type::B64);
            self.push(op, Class::Memory, vec![to], vec![source]);
            s.push(to);
        }
        let printed = self.linker.temporary(Type::B32);
        self.push(blank(Code::Print), Class::Control, vec![printed], s);
        let mut op = blank(Code::Store);
        op.space = Space::Local;
        (op.size, op.count, op.flags) = (4, 1, WIDE_ADDRESS);
        self.push(op, Class::Memory, vec![], vec![count, printed]);
        Ok(())
    }
}

/// Registers of 16 bits hold nothing above them, and neither may their immediates.
fn narrow_constants(values: &mut [Value], ty: Type) {
    if ty.bytes() == 2 && ty.is_integer() {
        for value in values {
            if let Value::Constant(bits, _) = value {
                *bits &= 0xffff;
            }
        }
    }
}

fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_BASE,
        Space::Local => LOCAL_BASE,
        Space::Param => PARAMETER_BASE,
        _ => 0,
    }
}
