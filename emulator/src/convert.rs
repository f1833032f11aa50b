//! `cvt` between all integer and floating-point types.

use crate::arithmetic::{FTZ, RELU, SAT};
use crate::lanes::lane;
use crate::math::{
    BRAIN, E4M3, E5M2, Format, HALF, Rounding, SINGLE, b, brain_to_single, d, f, from_e4m3,
    from_e5m2, ftz, half_to_single, integer_to_double, integer_to_odd, narrow, sat,
    single_to_brain, single_to_half, to_eighth, to_whole,
};
use crate::op::Exec;
use crate::syntax::Type;

/// Round to an integer value, in a conversion between floats.
pub(crate) const WHOLE: i64 = 64;

/// Flags of `.rzi`.
const TOWARD_ZERO: i64 = 1 | WHOLE;

const TYPES: [Type; 16] = [
    Type::U8,
    Type::U16,
    Type::U32,
    Type::U64,
    Type::S8,
    Type::S16,
    Type::S32,
    Type::S64,
    Type::B8,
    Type::B16,
    Type::B32,
    Type::B64,
    Type::F16,
    Type::Bf16,
    Type::F32,
    Type::F64,
];

fn code(ty: Type) -> Option<i64> {
    TYPES.iter().position(|&other| other == ty).map(|index| index as i64)
}

/// The function and the immediate it needs, or `None` for types it does not convert.
pub(crate) fn conversion(w: bool, to: Type, from: Type, flags: i64) -> Option<(Exec, i64)> {
    use Type::*;
    let k = code(from)? | code(to)? << 8 | flags << 16;
    // The forms that fill attention kernels run vectorised; all others share one function.
    let exec = match (to, from, flags) {
        (F32, F16, 0) => lane!(w, |x: u32| -> u32 { b(half_to_single(x & 0xffff)) }),
        (F16, F32, 0) => lane!(w, |x: u32| -> u32 { single_to_half(f(x)) }),
        (F32, Bf16, 0) => lane!(w, |x: u32| -> u32 { x << 16 }),
        (Bf16, F32, 0) => lane!(w, |x: u32| -> u32 { single_to_brain(f(x)) }),
        (F32, S32, 0) => lane!(w, |x: u32| -> u32 { (x as i32 as f32).to_bits() }),
        (F32, U32, 0) => lane!(w, |x: u32| -> u32 { (x as f32).to_bits() }),
        // Rust's casts saturate and take NaN to 0, as PTX does for these.
        (S32, F32, TOWARD_ZERO) => lane!(w, |x: u32| -> u32 { f(x) as i32 as u32 }),
        (U32, F32, TOWARD_ZERO) => lane!(w, |x: u32| -> u32 { f(x) as u32 }),
        (F64, F32, 0) => lane!(w, |x: u32| -> u64 {
            if f(x).is_nan() { f64::NAN.to_bits() } else { f64::from(f(x)).to_bits() }
        }),
        (S64, S32, 0) | (U64, S32, 0) => lane!(w, |x: u32| -> u64 { x as i32 as u64 }),
        (U64 | S64, U32, 0) => lane!(w, |x: u32| -> u64 { u64::from(x) }),
        (U32 | S32, U64 | S64, 0) => lane!(w, |x: u64| -> u32 { x as u32 }),
        (U32 | S32, U16, 0) => lane!(w, |x: u32| -> u32 { x & 0xffff }),
        (U32 | S32, S16, 0) => lane!(w, |x: u32| -> u32 { x as u16 as i16 as i32 as u32 }),
        (U16 | S16, U32 | S32, 0) => lane!(w, |x: u32| -> u32 { x & 0xffff }),
        (U32 | S32, U32 | S32, 0) => lane!(w, |x: u32| -> u32 { x }),
        _ => match (to.bytes() == 8, from.bytes() == 8) {
            (false, false) => lane!(w, [k] |x: u32| -> u32 { convert(u64::from(x), k) as u32 }),
            (false, true) => lane!(w, [k] |x: u64| -> u32 { convert(x, k) as u32 }),
            (true, false) => lane!(w, [k] |x: u32| -> u64 { convert(u64::from(x), k) }),
            (true, true) => lane!(w, [k] |x: u64| -> u64 { convert(x, k) }),
        },
    };
    Some((exec, k))
}

/// Sign- or zero-extends the low bits of an integer type.
fn extended(bits: u64, ty: Type) -> i128 {
    let width = 8 * ty.bytes();
    let low = bits & (u64::MAX >> (64 - width));
    if ty.is_signed() {
        i128::from(((low << (64 - width)) as i64) >> (64 - width))
    } else {
        i128::from(low)
    }
}

/// Least and greatest value of an integer type.
fn range(ty: Type) -> (i128, i128) {
    let width = 8 * ty.bytes();
    if ty.is_signed() {
        (-(1i128 << (width - 1)), (1i128 << (width - 1)) - 1)
    } else {
        (0, (1i128 << width) - 1)
    }
}

/// An integer as the bits of a register: signed types below 32 bits extend to the register,
/// which is 16 bits wide for 16-bit types.
fn placed(value: i128, ty: Type) -> u64 {
    match ty {
        Type::U16 | Type::S16 | Type::B16 => value as u64 & 0xffff,
        Type::U8 | Type::B8 => value as u64 & 0xff,
        Type::S8 => value as u64 & 0xffff_ffff,
        _ => value as u64,
    }
}

fn convert(bits: u64, k: i64) -> u64 {
    let from = TYPES[(k & 15) as usize];
    let to = TYPES[(k >> 8 & 15) as usize];
    let flags = k >> 16;
    let mode = Rounding::from_bits(flags);
    match (from.is_float(), to.is_float()) {
        (false, false) => {
            let value = extended(bits, from);
            if flags & SAT != 0 {
                let (low, high) = range(to);
                return placed(value.clamp(low, high), to);
            }
            placed(extended(value as u64, to), to)
        }
        (false, true) => {
            let value = extended(bits, from);
            let (magnitude, negative) = (value.unsigned_abs() as u64, value < 0);
            let out = match to {
                Type::F64 => integer_to_double(magnitude, negative, mode).to_bits(),
                Type::F32 => u64::from(narrow(integer_to_odd(magnitude, negative), SINGLE, mode)),
                Type::F16 => u64::from(narrow(integer_to_odd(magnitude, negative), HALF, mode)),
                _ => u64::from(narrow(integer_to_odd(magnitude, negative), BRAIN, mode)),
            };
            if flags & SAT != 0 { saturated(out, to) } else { out }
        }
        (true, false) => {
            let value = widen(bits, from, flags);
            let (low, high) = range(to);
            if value.is_nan() {
                let odd = from == Type::F64 || to.bytes() == 8;
                return match (odd, to.is_signed()) {
                    (false, _) => 0,
                    (true, true) => placed(low, to),
                    (true, false) => placed((high >> 1) + 1, to),
                };
            }
            placed((to_whole(value, mode) as i128).clamp(low, high), to)
        }
        (true, true) => {
            let mut value = widen(bits, from, flags);
            if flags & WHOLE != 0 {
                value = to_whole(value, mode).copysign(value);
            }
            let out = match to {
                Type::F64 => {
                    if value.is_nan() {
                        f64::NAN.to_bits()
                    } else {
                        value.to_bits()
                    }
                }
                Type::F32 => {
                    let bits = narrow(value, SINGLE, mode);
                    u64::from(if flags & FTZ != 0 { ftz(bits) } else { bits })
                }
                Type::F16 => u64::from(narrow(value, HALF, mode)),
                _ => u64::from(narrow(value, BRAIN, mode)),
            };
            if flags & SAT != 0 {
                saturated(out, to)
            } else if flags & RELU != 0 && value.is_sign_negative() && !value.is_nan() {
                0
            } else {
                out
            }
        }
    }
}

fn widen(bits: u64, from: Type, flags: i64) -> f64 {
    match from {
        Type::F64 => d(bits),
        Type::F32 => {
            let bits = bits as u32;
            f64::from(f(if flags & FTZ != 0 { ftz(bits) } else { bits }))
        }
        Type::F16 => f64::from(half_to_single(bits as u32 & 0xffff)),
        _ => f64::from(brain_to_single(bits as u32 & 0xffff)),
    }
}

fn saturated(bits: u64, to: Type) -> u64 {
    let clamp = |value: f64| {
        if value >= 1.0 {
            1.0
        } else if value > 0.0 {
            value
        } else {
            0.0
        }
    };
    match to {
        Type::F64 => clamp(d(bits)).to_bits(),
        Type::F32 => u64::from(sat(bits as u32)),
        Type::F16 => {
            u64::from(single_to_half(clamp(f64::from(half_to_single(bits as u32))) as f32))
        }
        _ => u64::from(single_to_brain(clamp(f64::from(brain_to_single(bits as u32))) as f32)),
    }
}

/// Whether `.relu` makes a zero of an f32: of what is negative, and not of NaN.
fn relu(bits: u32, k: i64) -> bool {
    k & RELU != 0 && bits >> 31 == 1 && !f(bits).is_nan()
}

/// `cvt.rn.f16x2.f32 d, a, b`: a to the upper half, b to the lower.
pub(crate) fn packing(w: bool, to: Type, flags: i64) -> Option<Exec> {
    let nearest = flags == 0;
    Some(match to {
        Type::F16x2 if nearest => {
            lane!(w, |x: u32, y: u32| -> u32 { single_to_half(f(x)) << 16 | single_to_half(f(y)) })
        }
        Type::Bf16x2 if nearest => lane!(w, |x: u32, y: u32| -> u32 {
            single_to_brain(f(x)) << 16 | single_to_brain(f(y))
        }),
        Type::F16x2 => lane!(w, [k] |x: u32, y: u32| -> u32 {
            let one = |v: u32| {
                if relu(v, k) { 0 } else { narrow(f64::from(f(v)), HALF, Rounding::from_bits(k)) }
            };
            one(x) << 16 | one(y)
        }),
        Type::Bf16x2 => lane!(w, [k] |x: u32, y: u32| -> u32 {
            let one = |v: u32| {
                if relu(v, k) { 0 } else { narrow(f64::from(f(v)), BRAIN, Rounding::from_bits(k)) }
            };
            one(x) << 16 | one(y)
        }),
        _ => return None,
    })
}

/// `cvt` between pairs of 8-bit floats and f32, f16 and bf16: for a pair of f32 the first operand
/// is the upper half.
pub(crate) fn eighths(w: bool, to: Type, from: Type) -> Option<Exec> {
    fn held(value: f32, k: i64) -> f64 {
        f64::from(if relu(value.to_bits(), k) { 0.0 } else { value })
    }
    fn halves(x: u32) -> (f32, f32) {
        (half_to_single(x >> 16), half_to_single(x & 0xffff))
    }
    fn brains(x: u32) -> (f32, f32) {
        (brain_to_single(x >> 16), brain_to_single(x & 0xffff))
    }
    fn pair(high: f32, low: f32, format: Format, k: i64) -> u32 {
        to_eighth(held(high, k), format) << 8 | to_eighth(held(low, k), format)
    }
    fn to_halves(high: f32, low: f32, k: i64) -> u32 {
        let one = |value: f32| single_to_half(held(value, k) as f32);
        one(high) << 16 | one(low)
    }
    use Type::*;
    Some(match (to, from) {
        (E4m3x2, F32) => lane!(w, [k] |x: u32, y: u32| -> u32 { pair(f(x), f(y), E4M3, k) }),
        (E5m2x2, F32) => lane!(w, [k] |x: u32, y: u32| -> u32 { pair(f(x), f(y), E5M2, k) }),
        (E4m3x2, F16x2) => lane!(w, [k] |x: u32| -> u32 {
            let (high, low) = halves(x);
            pair(high, low, E4M3, k)
        }),
        (E5m2x2, F16x2) => lane!(w, [k] |x: u32| -> u32 {
            let (high, low) = halves(x);
            pair(high, low, E5M2, k)
        }),
        (E4m3x2, Bf16x2) => lane!(w, [k] |x: u32| -> u32 {
            let (high, low) = brains(x);
            pair(high, low, E4M3, k)
        }),
        (E5m2x2, Bf16x2) => lane!(w, [k] |x: u32| -> u32 {
            let (high, low) = brains(x);
            pair(high, low, E5M2, k)
        }),
        (F16x2, E4m3x2) => lane!(w, [k] |x: u32| -> u32 {
            to_halves(from_e4m3(x >> 8 & 0xff), from_e4m3(x & 0xff), k)
        }),
        (F16x2, E5m2x2) => lane!(w, [k] |x: u32| -> u32 {
            to_halves(from_e5m2(x >> 8 & 0xff), from_e5m2(x & 0xff), k)
        }),
        _ => return None,
    })
}

/// `cvt.rna.tf32.f32` (ties away from zero), `.rn` and `.rz`: the low 13 bits become zero.
pub(crate) fn to_tf32(w: bool, away: bool, toward_zero: bool) -> Exec {
    let k = i64::from(away) | i64::from(toward_zero) << 1;
    match k {
        0 => lane!(w, |x: u32| -> u32 { shortened(x, 0x0fff + (x >> 13 & 1)) }),
        1 => lane!(w, |x: u32| -> u32 { shortened(x, 0x1000) }),
        _ => lane!(w, |x: u32| -> u32 { shortened(x, 0) }),
    }
}

fn shortened(x: u32, add: u32) -> u32 {
    if f(x).is_nan() { 0x7fff_ffff } else { (x + add) & !0x1fff }
}

/// `cvt.pack.sat.type.s32`: saturates two integers into the low half of a word, above which the
/// low half of `c` (for 8-bit results) is kept.
pub(crate) fn pack_saturated(w: bool, to: Type) -> Option<Exec> {
    fn clamp(value: u32, low: i32, high: i32) -> u32 {
        (value as i32).clamp(low, high) as u32
    }
    Some(match to {
        Type::S16 => lane!(w, |x: u32, y: u32| -> u32 {
            (clamp(x, -32768, 32767) & 0xffff) << 16 | clamp(y, -32768, 32767) & 0xffff
        }),
        Type::U16 => {
            lane!(w, |x: u32, y: u32| -> u32 { clamp(x, 0, 65535) << 16 | clamp(y, 0, 65535) })
        }
        Type::S8 => lane!(w, |x: u32, y: u32, z: u32| -> u32 {
            z << 16 | (clamp(x, -128, 127) & 0xff) << 8 | clamp(y, -128, 127) & 0xff
        }),
        Type::U8 => lane!(w, |x: u32, y: u32, z: u32| -> u32 {
            z << 16 | clamp(x, 0, 255) << 8 | clamp(y, 0, 255)
        }),
        _ => return None,
    })
}
