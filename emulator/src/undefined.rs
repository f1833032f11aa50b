//! Where a value may turn up that nothing has written, found when a kernel is linked, so that
//! kernels without one are not slowed down.
//!
//! A register that is alive at the start of a kernel may be read before it is written. What could
//! receive its value is followed through registers, without regard to control flow. For each
//! instruction that touches one of these, [`Effect`] says what becomes of undefined bits; `poison`
//! applies it while the kernel runs.

use crate::decode::Pending;
use crate::link::Value;
use crate::op::Code;
use crate::syntax::Type;

/// What an instruction does with undefined bits of its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It depends on all of them, in words; its results are defined.
    Uses(&'static str),
    /// Any undefined bit makes the results of its lane undefined.
    All,
    /// Any undefined bit makes the results of all lanes undefined.
    AllLanes,
    /// Each bit of the result depends on the same bit of the sources.
    Bitwise,
    /// The same, but a 0 decides.
    And,
    /// The same, but a 1 decides.
    Or,
    /// A bit of the result depends on no higher bits of the sources.
    Upward,
    /// Each half of the result depends on the same half of the sources.
    Halves,
    /// The first source becomes the upper half of the result, the second one the lower half.
    PackedHalves,
    /// The instruction only moves bits: run on the undefined bits, it moves those. Sources from
    /// this number on say where to.
    Moves(usize),
    /// The third source selects one of the others.
    Select,
    /// A comparison of the first two sources, combined with the third.
    Combine,
    Shuffle,
    Vote,
    Store,
    /// A matrix product.
    Product,
}

/// A register that may hold an undefined value.
pub(crate) struct Cell {
    /// Its name, where nothing has written it at the start of the kernel.
    pub name: Option<String>,
    /// All of its bits.
    pub bits: u64,
}

/// An instruction that may meet undefined values. Registers are numbers of cells.
pub(crate) struct Watched {
    pub effect: Effect,
    pub guard: Option<usize>,
    pub d: Vec<Option<usize>>,
    pub s: Vec<Option<usize>>,
}

/// The registers of a kernel that may hold undefined values, and the instructions that touch them.
#[derive(Default)]
pub(crate) struct Undefined {
    pub cells: Vec<Cell>,
    /// Cell of each register; empty where there are no cells.
    cell_of: Vec<Option<usize>>,
    /// By instruction; empty where there are no cells.
    pub watched: Vec<Option<Watched>>,
}

/// `at_start`: the registers that are alive at the start of the kernel.
pub(crate) fn undefined(
    code: &[Pending],
    registers: &[Type],
    at_start: &[u32],
    name: impl Fn(u32) -> String,
) -> Undefined {
    if at_start.is_empty() {
        return Undefined::default();
    }
    let mut cell_of: Vec<Option<usize>> = vec![None; registers.len()];
    let mut cells = Vec::new();
    let mut add = |register: u32, name: Option<String>, cell_of: &mut [Option<usize>]| {
        let bits = match registers[register as usize] {
            Type::Pred => 1,
            ty => u64::MAX >> (64 - 8 * ty.bytes().clamp(1, 8)),
        };
        cell_of[register as usize] = Some(cells.len());
        cells.push(Cell { name, bits });
    };
    for &register in at_start {
        add(register, Some(name(register)), &mut cell_of);
    }
    let effects: Vec<Effect> = code.iter().map(effect).collect();
    let mut changed = true;
    while changed {
        changed = false;
        for (pending, effect) in code.iter().zip(&effects) {
            let followed = !matches!(effect, Effect::Uses(_) | Effect::Store);
            if !followed || !of(&pending.s, &cell_of).any(|cell| cell.is_some()) {
                continue;
            }
            for value in &pending.d {
                if let Value::Register(register) = *value
                    && cell_of[register as usize].is_none()
                {
                    add(register, None, &mut cell_of);
                    changed = true;
                }
            }
        }
    }
    let watch = |(pending, effect): (&Pending, Effect)| {
        let watched = Watched {
            effect,
            guard: pending.guard.and_then(|(register, _)| cell_of[register as usize]),
            d: of(&pending.d, &cell_of).collect(),
            s: of(&pending.s[..followed_sources(pending)], &cell_of).collect(),
        };
        let touches = [&watched.d, &watched.s].into_iter().flatten().any(Option::is_some);
        (touches || watched.guard.is_some()).then_some(watched)
    };
    let watched = code.iter().zip(effects).map(watch).collect();
    Undefined { cells, cell_of, watched }
}

impl Undefined {
    /// Whether a register may hold an undefined value.
    pub(crate) fn may_hold(&self, register: u32) -> bool {
        self.cell_of.get(register as usize).is_some_and(Option::is_some)
    }
}

fn of<'a>(
    values: &'a [Value],
    cell_of: &'a [Option<usize>],
) -> impl Iterator<Item = Option<usize>> + 'a {
    values.iter().map(|value| match *value {
        Value::Register(register) => cell_of[register as usize],
        _ => None,
    })
}

/// Arguments of functions may be structures of which only a part is set, and so may fragments of
/// matrices: what is stored of them is not followed. A product reads its registers later.
fn followed_sources(pending: &Pending) -> usize {
    let all = pending.s.len();
    match pending.op.code {
        Code::MatrixStore => all.min(1),
        Code::Store if has(opcode(pending), "param") => all.min(1),
        Code::Warpgroup => 0,
        _ => all,
    }
}

fn opcode(pending: &Pending) -> &str {
    pending.text.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or_default()
}

fn has(opcode: &str, word: &str) -> bool {
    opcode.split('.').any(|part| part.trim_end_matches(';') == word)
}

fn effect(pending: &Pending) -> Effect {
    match pending.op.code {
        Code::Arithmetic => arithmetic(pending),
        Code::Load | Code::MatrixLoad => Effect::Uses("the address of a read"),
        Code::MatrixStore => Effect::Uses("the address of a write"),
        Code::Store => Effect::Store,
        Code::Atomic => Effect::Uses("an atomic update"),
        Code::CopyAsync | Code::Asynchronous => Effect::Uses("an asynchronous operation"),
        Code::BarrierSync | Code::BarrierArrive | Code::BarrierReduce => {
            Effect::Uses("what is told to a barrier")
        }
        Code::WarpSync | Code::Elect => Effect::Uses("a member mask"),
        Code::BranchIndexed | Code::Call | Code::Return => Effect::Uses("the target of a branch"),
        Code::Print => Effect::Uses("what is printed"),
        Code::Shuffle => Effect::Shuffle,
        Code::Vote => Effect::Vote,
        Code::Match | Code::Reduce => Effect::AllLanes,
        Code::MatrixMultiply => Effect::Product,
        Code::MatrixTranspose => Effect::Moves(usize::MAX),
        // These have no sources that are followed.
        Code::Nothing
        | Code::Branch
        | Code::Exit
        | Code::Trap
        | Code::CopyCommit
        | Code::CopyWait
        | Code::CopyWaitAll
        | Code::ActiveMask
        | Code::Clock
        | Code::Fence
        | Code::Warpgroup => Effect::Uses("nothing"),
    }
}

fn arithmetic(pending: &Pending) -> Effect {
    let opcode = opcode(pending);
    let base = opcode.split('.').next().unwrap_or_default();
    let any = |words: &[&str]| words.iter().any(|word| has(opcode, word));
    let integers = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"];
    match base {
        "mov" | "not" | "xor" if any(&["pred"]) => Effect::Bitwise,
        "mov" => Effect::Moves(usize::MAX),
        "and" => Effect::And,
        "or" => Effect::Or,
        "not" | "xor" | "lop3" => Effect::Bitwise,
        "shl" | "shr" | "bfe" => Effect::Moves(1),
        "shf" | "prmt" | "bfi" => Effect::Moves(2),
        "selp" => Effect::Select,
        "setp" if pending.op.count != 0 => Effect::Combine,
        "cvt" if any(&["f16x2", "bf16x2"]) && pending.s.len() == 2 => Effect::PackedHalves,
        "cvt" if opcode.split('.').skip(1).all(|word| integers.contains(&word)) => {
            Effect::Moves(usize::MAX)
        }
        "add" | "sub" | "mul" | "mad" | "neg" | "cvta"
            if any(&integers) && !any(&["hi", "sat", "cc"]) =>
        {
            Effect::Upward
        }
        "add" | "sub" | "mul" | "fma" | "neg" | "abs" | "min" | "max" | "ex2" | "tanh"
            if any(&["f16x2", "bf16x2"]) =>
        {
            Effect::Halves
        }
        _ => Effect::All,
    }
}
