//! The decoded instruction: everything the execution loop needs, names resolved to slots.

use crate::hopper::Action;
use crate::registers::Registers;
use crate::syntax::{Place, Space};

/// Runs neighbouring arithmetic instructions that are all of this function, on the lanes of a mask:
/// one call for several, which processors predict and prepare better than one for each.
///
/// Unsafe to call because the function may be compiled for processor features, and because it does
/// not look whether the registers have the slots that the operation names. `lanes` only hands out
/// functions that the running processor can run; `allocate` sees to it that a kernel has every slot
/// that an operation of it names.
pub(crate) type Exec = unsafe fn(&mut Registers, &[Op], u32);

/// No guard predicate.
pub(crate) const UNGUARDED: u16 = u16::MAX;
/// Set in a guard that is negated.
pub(crate) const NEGATED: u16 = 1 << 15;

/// What the loop does with an instruction. Arithmetic is one code: its meaning is in `exec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Arithmetic,
    Nothing,
    Branch,
    BranchIndexed,
    Call,
    Return,
    Exit,
    Trap,
    Load,
    Store,
    Atomic,
    CopyAsync,
    CopyCommit,
    CopyWait,
    CopyWaitAll,
    BarrierSync,
    BarrierArrive,
    BarrierReduce,
    WarpSync,
    Shuffle,
    Vote,
    Match,
    ActiveMask,
    Reduce,
    Elect,
    MatrixLoad,
    MatrixStore,
    MatrixMultiply,
    MatrixTranspose,
    Clock,
    Print,
    Fence,
    /// What `hopper` does for each lane.
    Asynchronous,
    /// What it does for whole warps of a warpgroup.
    Warpgroup,
}

/// Pipelines of [`crate::counters::InstructionMix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Float32,
    Float64,
    Half,
    Integer,
    Convert,
    Special,
    Moves,
    Control,
    Memory,
    Exchange,
    Synchronise,
    Matrix,
}

/// The address operand is 64 bits wide.
pub(crate) const WIDE_ADDRESS: u8 = 1;
/// The loaded value is sign-extended.
pub(crate) const SIGNED: u8 = 2;
/// The data registers are 64 bits wide.
pub(crate) const WIDE_DATA: u8 = 4;
/// The instruction is `.aligned`: all lanes of the warp must run it together.
pub(crate) const ALIGNED: u8 = 8;
/// A shuffle for which `exec` does all when all 32 lanes have come.
pub(crate) const WHOLE_WARP: u8 = 16;

/// How an access orders others (`Op::order`). It is strong: volatile, relaxed or more.
pub(crate) const STRONG: u8 = 1;
/// Its scope is wider than the block.
pub(crate) const DEVICE_SCOPE: u8 = 2;
pub(crate) const ACQUIRE: u8 = 4;
pub(crate) const RELEASE: u8 = 8;
/// A fence between accesses of threads and those of asynchronous operations.
pub(crate) const ASYNC_PROXY: u8 = 16;
/// It reads through the path that is not coherent (`.nc`).
pub(crate) const NON_COHERENT: u8 = 16;

#[derive(Clone, Copy)]
pub(crate) struct Op {
    pub exec: Exec,
    /// Address offset, branch target, sub-operation: as the code needs.
    pub imm: i64,
    pub d: [u16; 4],
    pub s: [u16; 5],
    pub guard: u16,
    pub code: Code,
    pub space: Space,
    /// Bytes of one element of an access.
    pub size: u8,
    /// Elements of an access.
    pub count: u8,
    pub flags: u8,
    pub order: u8,
    /// What `hopper` does, for its codes.
    pub action: Action,
    /// How many operations from this one on are unwatched arithmetic, or shuffles that are nothing
    /// else once all 32 lanes have come: they need no dispatch.
    pub straight: u8,
    /// How many of these `exec` may run at once: they have the same one, and no guard.
    pub alike: u8,
    /// For a global load, the bytes per lane of the batch it belongs to.
    pub batch: u32,
}

pub(crate) fn nothing(_: &mut Registers, _: &[Op], _: u32) {}

/// What is known of an instruction but not needed to run it.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub line: u32,
    pub text: String,
    pub source: Option<Place>,
    pub class: Class,
}
