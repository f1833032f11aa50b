//! What lanes of a warp tell each other: shuffles, votes, matches and reductions.

use crate::lanes::whole;
use crate::op::{Exec, Op, SIGNED, WIDE_DATA};
use crate::registers::{FULL, Registers};

/// `shfl.sync.bfly`, as the immediate of a shuffle says it.
pub(crate) const BUTTERFLY: i64 = 2;

/// `shfl.sync`: s = (value, lane or distance, segment, members).
#[inline(always)]
pub(crate) fn shuffle(registers: &mut Registers, op: &Op, mask: u32) {
    let value = *registers.read::<u32>(op.s[0]);
    let by = registers.read::<u32>(op.s[1]);
    let segment = registers.read::<u32>(op.s[2]);
    let mut out = [0u32; 32];
    let (mut same_by, mut same_segment) = (0, 0);
    for lane in 0..32 {
        same_by |= by[lane] ^ by[0];
        same_segment |= segment[lane] ^ 0x1f;
    }
    let mut inside = u32::MAX;
    if op.imm == BUTTERFLY && same_by == 0 && same_segment == 0 {
        let distance = by[0] as usize & 31;
        for lane in 0..32 {
            out[lane] = value[lane ^ distance];
        }
    } else {
        inside = 0;
        for lane in 0..32i32 {
            let c = segment[lane as usize];
            let clamp = (c & 0x1f) as i32;
            let keep = (c >> 8 & 0x1f) as i32;
            let b = (by[lane as usize] & 0x1f) as i32;
            let most = (lane & keep) | (clamp & !keep);
            let (from, fits) = match op.imm {
                0 => (lane - b, lane - b >= most),
                1 => (lane + b, lane + b <= most),
                BUTTERFLY => (lane ^ b, lane ^ b <= most),
                _ => {
                    let from = (lane & keep) | (b & !keep);
                    (from, from <= most)
                }
            };
            let from = if fits { from } else { lane };
            inside |= u32::from(fits) << lane;
            out[lane as usize] = value[(from & 31) as usize];
        }
    }
    registers.put(op.d[0], &out, mask);
    registers.put_predicate(op.d[1], inside, mask);
}

/// `shfl.sync.bfly` for a warp all of whose lanes have come, with operands that are the same in all
/// lanes and one segment.
pub(crate) fn butterfly(wide: bool) -> Exec {
    whole!(wide, swapped)
}

#[inline(always)]
fn swapped(registers: &mut Registers, op: &Op, mask: u32) {
    let distance = registers.read::<u32>(op.s[1])[0] as usize & 31;
    match distance & 7 {
        0 => swap::<0>(registers, op, mask, distance),
        1 => swap::<1>(registers, op, mask, distance),
        2 => swap::<2>(registers, op, mask, distance),
        3 => swap::<3>(registers, op, mask, distance),
        4 => swap::<4>(registers, op, mask, distance),
        5 => swap::<5>(registers, op, mask, distance),
        6 => swap::<6>(registers, op, mask, distance),
        _ => swap::<7>(registers, op, mask, distance),
    }
}

/// `NEAR`, the lower bits of the distance, picks one of eight neighbours; known when this is
/// compiled, it becomes one permutation of a vector.
#[inline(always)]
fn swap<const NEAR: usize>(registers: &mut Registers, op: &Op, mask: u32, distance: usize) {
    let value = registers.read::<u32>(op.s[0]);
    let far = distance / 8;
    let mut out = [0u32; 32];
    for (block, out) in out.chunks_exact_mut(8).enumerate() {
        let from = 8 * ((block ^ far) & 3);
        for lane in 0..8 {
            out[lane] = value[from + (lane ^ NEAR)];
        }
    }
    registers.put(op.d[0], &out, mask);
    registers.put_predicate(op.d[1], FULL, mask);
}

/// `movmatrix.trans`: a lane has two 16-bit elements of row `lane / 4` of an 8x8 matrix, and gets
/// those of its column.
pub(crate) fn transpose(registers: &mut Registers, op: &Op, mask: u32) {
    let value = *registers.read::<u32>(op.s[0]);
    let element =
        |row: usize, column: usize| value[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    let out = std::array::from_fn(|lane| {
        let (column, row) = (lane / 4, 2 * (lane % 4));
        element(row, column) | element(row + 1, column) << 16
    });
    registers.put(op.d[0], &out, mask);
}

/// [`transpose`] for what runs operations without knowing them.
pub(crate) unsafe fn transposes(registers: &mut Registers, ops: &[Op], mask: u32) {
    for op in ops {
        transpose(registers, op, mask);
    }
}

/// `vote.sync`: s = (predicate, members).
pub(crate) fn vote(registers: &mut Registers, op: &Op, mask: u32) {
    let predicate = registers.predicates[op.s[0] as usize];
    let yes = if op.flags & 1 != 0 { !predicate } else { predicate } & mask;
    match op.imm {
        0 => registers.put_predicate(op.d[0], if yes == mask { u32::MAX } else { 0 }, mask),
        1 => registers.put_predicate(op.d[0], if yes != 0 { u32::MAX } else { 0 }, mask),
        2 => {
            let uniform = yes == mask || yes == 0;
            registers.put_predicate(op.d[0], if uniform { u32::MAX } else { 0 }, mask);
        }
        _ => registers.put(op.d[0], &[yes; 32], mask),
    }
}

/// `match.sync`: s = (value, members).
pub(crate) fn matching(registers: &mut Registers, op: &Op, mask: u32) {
    let values: [u64; 32] = if op.flags & WIDE_DATA != 0 {
        *registers.read::<u64>(op.s[0])
    } else {
        registers.read::<u32>(op.s[0]).map(u64::from)
    };
    let on = |lane: usize| mask >> lane & 1 != 0;
    let mut out = [0u32; 32];
    for lane in (0..32).filter(|&lane| on(lane)) {
        for other in (0..32).filter(|&other| on(other)) {
            out[lane] |= u32::from(values[lane] == values[other]) << other;
        }
    }
    if op.imm != 0 {
        let all = (0..32).filter(|&lane| on(lane)).all(|lane| out[lane] == mask);
        registers.put(op.d[0], &[if all { mask } else { 0 }; 32], mask);
        registers.put_predicate(op.d[1], if all { u32::MAX } else { 0 }, mask);
    } else {
        registers.put(op.d[0], &out, mask);
    }
}

/// `redux.sync`: s = (value, members).
pub(crate) fn reduce(registers: &mut Registers, op: &Op, mask: u32) {
    let values = *registers.read::<u32>(op.s[0]);
    let signed = op.flags & SIGNED != 0;
    let step = |x: u32, y: u32| match (op.imm, signed) {
        (0, _) => x.wrapping_add(y),
        (1, false) => x.min(y),
        (2, false) => x.max(y),
        (1, true) => (x as i32).min(y as i32) as u32,
        (2, true) => (x as i32).max(y as i32) as u32,
        (3, _) => x & y,
        (4, _) => x | y,
        _ => x ^ y,
    };
    let result = (0..32)
        .filter(|lane| mask >> lane & 1 != 0)
        .map(|lane| values[lane])
        .reduce(step)
        .unwrap_or(0);
    registers.put(op.d[0], &[result; 32], mask);
}

/// `elect.sync`: the lowest lane of the members leads.
pub(crate) fn elect(registers: &mut Registers, op: &Op, mask: u32) {
    registers.put(op.d[0], &[mask.trailing_zeros(); 32], mask);
    registers.put_predicate(op.d[1], mask & mask.wrapping_neg(), mask);
}
