//! What instructions make of undefined bits: for every effect, which bits of the results depend
//! on them.

use super::{Bits, DEFINED};
use crate::access::{lanes, lanes_where};
use crate::exchange;
use crate::kernel::Kernel;
use crate::lanes::COMBINE;
use crate::machine::Warp;
use crate::matrix::{self, Form};
use crate::op::Op;
use crate::registers::Registers;
use crate::tensor_cores::MatrixModel;
use crate::undefined::{Cell, Effect, Watched};

/// Registers of the scratch file that an instruction runs on to see where it moves bits: two
/// slots for each destination and source.
const SCRATCH_D: [u16; 4] = [0, 2, 4, 6];
const SCRATCH_S: [u16; 5] = [8, 10, 12, 14, 16];
pub(super) const SCRATCH_SLOTS: usize = 18;

/// Where something is undefined, everything is.
fn whole(bits: &Bits) -> Bits {
    bits.map(|bits| if bits != 0 { u64::MAX } else { 0 })
}

fn union(all: impl IntoIterator<Item = Bits>) -> Bits {
    all.into_iter().fold(DEFINED, |all, bits| std::array::from_fn(|lane| all[lane] | bits[lane]))
}

/// What a source holds: of a predicate, whether it is set, with its negation.
fn values(registers: &Registers, op: &Op, index: usize, bits: u64) -> Bits {
    let slot = op.s[index];
    match bits {
        1 => {
            let negated = op.flags >> index & 1 != 0;
            let predicate = registers.predicates[slot as usize];
            let predicate = if negated { !predicate } else { predicate };
            std::array::from_fn(|lane| u64::from(predicate >> lane & 1))
        }
        u64::MAX => *registers.read::<u64>(slot),
        _ => registers.read::<u32>(slot).map(u64::from),
    }
}

/// Undefined bits of every destination.
pub(super) fn results(
    kernel: &Kernel,
    warp: &mut Warp,
    watched: &Watched,
    op: &Op,
    mask: u32,
) -> Vec<Bits> {
    let cells = &kernel.undefined.cells;
    let s = |index: usize| warp.poison.of(watched.s[index]);
    let all = || union(watched.s.iter().map(|&cell| warp.poison.of(cell)));
    let width = watched.d.first().copied().flatten().map_or(0, |cell| cells[cell].bits);
    let value = |index: usize| values(&warp.registers, op, index, width);
    let one = match watched.effect {
        Effect::Uses(_) | Effect::Store => DEFINED,
        Effect::All => whole(&all()),
        Effect::AllLanes => {
            let data = s(0);
            let any = lanes(mask).any(|lane| data[lane] != 0);
            if any { [u64::MAX; 32] } else { DEFINED }
        }
        Effect::Bitwise => all(),
        Effect::And | Effect::Or => {
            let flip = if watched.effect == Effect::Or { u64::MAX } else { 0 };
            let (p, q, a, b) = (s(0), s(1), value(0), value(1));
            std::array::from_fn(|lane| {
                let undecided = |bits: u64, value: u64| bits | value ^ flip;
                (p[lane] | q[lane]) & undecided(p[lane], a[lane]) & undecided(q[lane], b[lane])
            })
        }
        Effect::Upward => all().map(|bits| bits | bits.wrapping_neg()),
        Effect::Halves => all().map(|bits| elements(bits, 16)),
        Effect::PackedHalves => {
            let (high, low) = (whole(&s(0)), whole(&s(1)));
            std::array::from_fn(|lane| high[lane] & 0xffff_0000 | low[lane] & 0xffff)
        }
        Effect::Select => {
            let (yes, no, unknown) = (s(0), s(1), s(2));
            let chosen = warp.registers.predicates[op.s[2] as usize];
            std::array::from_fn(|lane| match (unknown[lane], chosen >> lane & 1) {
                (0, 0) => no[lane],
                (0, _) => yes[lane],
                _ => u64::MAX,
            })
        }
        Effect::Combine => {
            let other = warp.registers.predicates[op.s[2] as usize];
            let other = if op.flags & 1 != 0 { !other } else { other };
            let (all, unknown) = (whole(&all()), s(2));
            std::array::from_fn(|lane| {
                let set = other >> lane & 1 != 0;
                let decides = match COMBINE[op.count as usize & 3] {
                    "and" => !set,
                    "or" => set,
                    _ => false,
                };
                if decides && unknown[lane] == 0 { 0 } else { all[lane] }
            })
        }
        Effect::Vote => {
            let unknown = s(0);
            let unknown = lanes_where(mask, |lane| unknown[lane] != 0);
            if op.imm == 3 {
                [u64::from(unknown); 32]
            } else if unknown != 0 {
                [u64::MAX; 32]
            } else {
                DEFINED
            }
        }
        Effect::Product => return product(warp, watched, op),
        Effect::Moves(controls) => return moved(warp, watched, op, cells, controls, mask),
        Effect::Shuffle => {
            let data = s(0);
            return vec![shuffled(warp, op, &data, mask), DEFINED];
        }
    };
    vec![one; watched.d.len()]
}

/// Runs an instruction that moves bits on the undefined ones.
fn moved(
    warp: &mut Warp,
    watched: &Watched,
    op: &Op,
    cells: &[Cell],
    controls: usize,
    mask: u32,
) -> Vec<Bits> {
    let poison = &mut warp.poison;
    let mut unknown = DEFINED;
    for (index, &cell) in watched.s.iter().enumerate() {
        let bits = poison.of(cell);
        if index >= controls {
            unknown = union([unknown, bits]);
            *poison.scratch.write::<u64>(SCRATCH_S[index]) =
                *warp.registers.read::<u64>(op.s[index]);
        } else if cell.is_none_or(|cell| cells[cell].bits > u64::from(u32::MAX)) {
            *poison.scratch.write::<u64>(SCRATCH_S[index]) = bits;
        } else {
            *poison.scratch.write::<u32>(SCRATCH_S[index]) = bits.map(|bits| bits as u32);
        }
    }
    let on_scratch = Op { d: SCRATCH_D, s: SCRATCH_S, ..*op };
    // SAFETY: functions for a wide processor were chosen only where the running one is, and there
    // are `SCRATCH_SLOTS`.
    unsafe { (op.exec)(&mut poison.scratch, &[on_scratch], mask) };
    let unknown = whole(&unknown);
    let result = |(&cell, slot): (&Option<usize>, u16)| match cell {
        Some(cell) if cells[cell].bits > u64::from(u32::MAX) => {
            union([unknown, *poison.scratch.read::<u64>(slot)])
        }
        _ => union([unknown, poison.scratch.read::<u32>(slot).map(u64::from)]),
    };
    watched.d.iter().zip(SCRATCH_D).map(result).collect()
}

/// Every lane gets the undefined bits of the lane that it reads from.
fn shuffled(warp: &mut Warp, op: &Op, data: &Bits, mask: u32) -> Bits {
    let scratch = &mut warp.poison.scratch;
    *scratch.write::<u32>(SCRATCH_S[0]) = data.map(|bits| bits as u32);
    for index in 1..4 {
        *scratch.write::<u32>(SCRATCH_S[index]) = *warp.registers.read::<u32>(op.s[index]);
    }
    let on_scratch = Op { d: [SCRATCH_D[0], 0, 0, 0], s: SCRATCH_S, ..*op };
    exchange::shuffle(scratch, &on_scratch, mask);
    scratch.read::<u32>(SCRATCH_D[0]).map(u64::from)
}

/// A product of floats runs on NaN for what is undefined and on 0 for all else: NaN reaches what
/// its row and column reach. Of other products only the addend, which stands last in the layout
/// of the result, is followed.
fn product(warp: &mut Warp, watched: &Watched, op: &Op) -> Vec<Bits> {
    let poison = &mut warp.poison;
    let (results, sources) = (watched.d.len(), watched.s.len());
    let addend = sources - results;
    let (size, half) = match Form::decode(op) {
        Form::Halves { half, .. } => (16, half),
        Form::Tf32 { .. } => (32, false),
        Form::Eighths { half, .. } => (8, half),
        Form::Bytes { .. } | Form::Doubles => {
            return watched.s[addend..].iter().map(|&cell| whole(&poison.of(cell))).collect();
        }
    };
    let sum_size = if half { 16 } else { 32 };
    for (index, &cell) in watched.s.iter().enumerate() {
        let size = if index < addend { size } else { sum_size };
        let bits = poison.of(cell).map(|bits| elements(bits, size) as u32);
        *poison.scratch.write::<u32>((results + index) as u16) = bits;
    }
    let list: Vec<u16> = (0..(results + sources) as u16).collect();
    matrix::multiply(&mut poison.scratch, &list, op, MatrixModel::Fast);
    let result = |slot: u16| {
        let sums = poison.scratch.read::<u32>(slot);
        sums.map(|bits| elements(u64::from(bits), sum_size))
    };
    (0..results as u16).map(result).collect()
}

/// Elements of a word of which any bit is set, with all of their bits: NaN in every type of float.
fn elements(word: u64, size: u32) -> u64 {
    let ones = u64::MAX >> (64 - size);
    let starts = (0..32).step_by(size as usize);
    starts.filter(|at| word >> at & ones != 0).fold(0, |all, at| all | ones << at)
}
