//! Instructions on predicates, packed registers, carries and four operands: those whose operands
//! fit neither the one-lane form nor the comparison form of `lanes`.

use crate::arithmetic::insert;
use crate::lanes::whole;
use crate::op::{Exec, Op};
use crate::registers::{Registers, Word, halved};

/// `selp`: s\[0\] where the predicate s\[2\] holds, else s\[1\].
#[inline(always)]
fn select<W: Word>(registers: &mut Registers, op: &Op, mask: u32) {
    let chosen = registers.predicates[op.s[2] as usize];
    let mut out = [W::default(); 32];
    {
        let a = registers.read::<W>(op.s[0]);
        let b = registers.read::<W>(op.s[1]);
        for lane in 0..32 {
            out[lane] = W::blend(b[lane], a[lane], chosen >> lane & 1 != 0);
        }
    }
    registers.put(op.d[0], &out, mask);
}

/// `selp` for a register width.
pub(crate) fn selecting(wide: bool, eight_bytes: bool) -> Exec {
    if eight_bytes { whole!(wide, select::<u64>) } else { whole!(wide, select::<u32>) }
}

fn predicate_binary(registers: &mut Registers, op: &Op, mask: u32) {
    let a = registers.predicates[op.s[0] as usize];
    let b = registers.predicates[op.s[1] as usize];
    let a = if op.flags & 1 != 0 { !a } else { a };
    let b = if op.flags & 2 != 0 { !b } else { b };
    let value = match op.imm {
        0 => a & b,
        1 => a | b,
        2 => a ^ b,
        3 => !a,
        _ => a,
    };
    registers.put_predicate(op.d[0], value, mask);
}

/// `and`, `or`, `xor`, `not` and `mov` of predicates, with the immediate that says which.
pub(crate) fn on_predicates(name: &str) -> Option<(Exec, i64)> {
    let which = match name {
        "and" => 0,
        "or" => 1,
        "xor" => 2,
        "not" => 3,
        "mov" => 4,
        _ => return None,
    };
    Some((whole!(false, predicate_binary), which))
}

/// `mov.b64 d, {a, b}`: `count` parts of `size` bytes into one register of 8 bytes at most.
#[inline(always)]
fn pack(registers: &mut Registers, op: &Op, mask: u32) {
    let mut out = [0u64; 32];
    let bits = 8 * u32::from(op.size);
    for part in 0..op.count as usize {
        let shift = bits * part as u32;
        let source = registers.read::<u32>(op.s[part]);
        let keep = if bits == 32 { u32::MAX } else { (1 << bits) - 1 };
        for lane in 0..32 {
            out[lane] |= u64::from(source[lane] & keep) << shift;
        }
    }
    if bits * u32::from(op.count) == 64 {
        registers.put(op.d[0], &out, mask);
    } else {
        registers.put(op.d[0], &halved(&out), mask);
    }
}

/// `mov.b32 {a, b}, s`: the reverse of `pack`.
#[inline(always)]
fn unpack(registers: &mut Registers, op: &Op, mask: u32) {
    let bits = 8 * u32::from(op.size);
    let mut source = [0u64; 32];
    if bits * u32::from(op.count) == 64 {
        source = *registers.read::<u64>(op.s[0]);
    } else {
        for (value, half) in source.iter_mut().zip(registers.read::<u32>(op.s[0])) {
            *value = u64::from(*half);
        }
    }
    let keep = if bits == 32 { u32::MAX } else { (1 << bits) - 1 };
    for part in 0..op.count as usize {
        let shift = bits * part as u32;
        let mut value = [0u32; 32];
        for lane in 0..32 {
            value[lane] = (source[lane] >> shift) as u32 & keep;
        }
        registers.put(op.d[part], &value, mask);
    }
}

/// Packing of 32 bits from two halves, the form that fills 16-bit kernels.
#[inline(always)]
fn pack_halves(registers: &mut Registers, op: &Op, mask: u32) {
    let mut out = [0u32; 32];
    {
        let a = registers.read::<u32>(op.s[0]);
        let b = registers.read::<u32>(op.s[1]);
        for lane in 0..32 {
            out[lane] = a[lane] & 0xffff | b[lane] << 16;
        }
    }
    registers.put(op.d[0], &out, mask);
}

#[inline(always)]
fn unpack_halves(registers: &mut Registers, op: &Op, mask: u32) {
    let source = registers.read::<u32>(op.s[0]);
    let (mut low, mut high) = ([0u32; 32], [0u32; 32]);
    for lane in 0..32 {
        low[lane] = source[lane] & 0xffff;
        high[lane] = source[lane] >> 16;
    }
    registers.put(op.d[0], &low, mask);
    registers.put(op.d[1], &high, mask);
}

pub(crate) fn packing(wide: bool, size: u8, count: u8) -> Exec {
    if (size, count) == (2, 2) { whole!(wide, pack_halves) } else { whole!(wide, pack) }
}

pub(crate) fn unpacking(wide: bool, size: u8, count: u8) -> Exec {
    if (size, count) == (2, 2) { whole!(wide, unpack_halves) } else { whole!(wide, unpack) }
}

/// `bfi`: s = (value, base, position, length).
fn insert32(registers: &mut Registers, op: &Op, mask: u32) {
    let mut out = [0u32; 32];
    for (lane, out) in out.iter_mut().enumerate() {
        let read = |index: usize| registers.read::<u32>(op.s[index])[lane];
        *out = insert(u64::from(read(0)), u64::from(read(1)), read(2), read(3), 32) as u32;
    }
    registers.put(op.d[0], &out, mask);
}

fn insert64(registers: &mut Registers, op: &Op, mask: u32) {
    let mut out = [0u64; 32];
    for (lane, out) in out.iter_mut().enumerate() {
        let read = |index: usize| registers.read::<u64>(op.s[index])[lane];
        let field = |index: usize| registers.read::<u32>(op.s[index])[lane];
        *out = insert(read(0), read(1), field(2), field(3), 64);
    }
    registers.put(op.d[0], &out, mask);
}

pub(crate) fn inserting(eight_bytes: bool) -> Exec {
    if eight_bytes { whole!(false, insert64) } else { whole!(false, insert32) }
}

/// Immediate of a carry instruction: 0 add, 1 subtract, 2 multiply-add low, 3 high, 4 high signed;
/// bit 8 to use the carry, bit 9 for 64 bits.
pub(crate) const USES_CARRY: i64 = 256;
pub(crate) const CARRY_WIDE: i64 = 512;

/// s = (a, b, c), d\[0\] the result; the carry is predicate d\[1\], read from predicate s\[3\].
fn carry(registers: &mut Registers, op: &Op, mask: u32) {
    let incoming =
        if op.imm & USES_CARRY != 0 { registers.predicates[op.s[3] as usize] } else { 0 };
    let wide = op.imm & CARRY_WIDE != 0;
    let mut out = [0u64; 32];
    let mut carries = 0u32;
    for lane in 0..32 {
        let read = |index: usize| {
            if wide {
                registers.read::<u64>(op.s[index])[lane]
            } else {
                u64::from(registers.read::<u32>(op.s[index])[lane])
            }
        };
        let (a, b) = (read(0), read(1));
        let one = u64::from(incoming >> lane & 1);
        let bits = if wide { 64 } else { 32 };
        let total = match op.imm & 255 {
            0 => u128::from(a) + u128::from(b) + u128::from(one),
            // A subtraction adds the complement, so its carry is set where nothing was borrowed.
            // PTX speaks of a borrow, but NVRTC's own 128-bit division reads it with `addc`.
            1 => {
                let one = if op.imm & USES_CARRY != 0 { one } else { 1 };
                let complement = if wide { !b } else { u64::from(!(b as u32)) };
                u128::from(a) + u128::from(complement) + u128::from(one)
            }
            2 => {
                let low = if wide {
                    a.wrapping_mul(b)
                } else {
                    u64::from((a as u32).wrapping_mul(b as u32))
                };
                u128::from(low) + u128::from(read(2)) + u128::from(one)
            }
            3 => {
                let high = ((u128::from(a) * u128::from(b)) >> bits) as u64;
                u128::from(high) + u128::from(read(2)) + u128::from(one)
            }
            _ => {
                let high = if wide {
                    ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
                } else {
                    u64::from(
                        ((i64::from(a as u32 as i32) * i64::from(b as u32 as i32)) >> 32) as u32,
                    )
                };
                u128::from(high) + u128::from(read(2)) + u128::from(one)
            }
        };
        out[lane] = total as u64;
        carries |= ((total >> bits & 1) as u32) << lane;
    }
    if wide {
        registers.put(op.d[0], &out, mask);
    } else {
        registers.put(op.d[0], &halved(&out), mask);
    }
    registers.put_predicate(op.d[1], carries, mask);
}

pub(crate) fn carrying() -> Exec {
    whole!(false, carry)
}

/// The immediate of a comparison of packed halves: its index in `COMPARISONS`, bit 8 for bf16, bit 9
/// for `.ftz`.
pub(crate) fn pair_comparison(which: usize, brain: bool, flush: bool) -> i64 {
    which as i64 | i64::from(brain) << 8 | i64::from(flush) << 9
}

/// `setp` on packed halves: d\[0\] compares the low halves, d\[1\] the high ones.
fn compare_pairs(registers: &mut Registers, op: &Op, mask: u32) {
    let (a, b) = (*registers.read::<u32>(op.s[0]), *registers.read::<u32>(op.s[1]));
    let (mut low, mut high) = (0u32, 0u32);
    for lane in 0..32 {
        let test = |shift: u32| {
            let to = |v: u32| {
                let half = v >> shift & 0xffff;
                if op.imm & 256 != 0 {
                    crate::math::brain_to_single(half)
                } else if op.imm & 512 != 0 && half & 0x7c00 == 0 {
                    0.0
                } else {
                    crate::math::half_to_single(half)
                }
            };
            let (x, y) = (to(a[lane]), to(b[lane]));
            let unordered = x.is_nan() || y.is_nan();
            match op.imm & 255 {
                0 => x == y,
                1 => !unordered && x != y,
                2 => x < y,
                3 => x <= y,
                4 => x > y,
                5 => x >= y,
                6 => unordered || x == y,
                7 => x != y,
                8 => unordered || x < y,
                9 => unordered || x <= y,
                10 => unordered || x > y,
                11 => unordered || x >= y,
                12 => !unordered,
                _ => unordered,
            }
        };
        low |= u32::from(test(0)) << lane;
        high |= u32::from(test(16)) << lane;
    }
    registers.put_predicate(op.d[0], low, mask);
    registers.put_predicate(op.d[1], high, mask);
}

/// Comparisons in the order of their codes.
pub(crate) const COMPARISONS: [&str; 14] =
    ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

pub(crate) fn comparing_pairs() -> Exec {
    whole!(false, compare_pairs)
}
