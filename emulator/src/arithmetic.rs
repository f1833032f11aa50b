//! What each arithmetic instruction computes, one lane at a time: integers, logic, floats.
//! To add one, add a line to the match of its family and, if its operands are of a new shape, a
//! case in `decode`. The file is long because it is a table: one entry per instruction and type.

use crate::directed;
use crate::lanes::{lane, test};
use crate::math::{
    self, Rounding, add_mode, b, brain_fma, brain_to_single, d, divide_mode, f, fma, fma_mode, ftz,
    greatest, half_fma, half_to_single, least, multiply_mode, sat, single_to_brain, single_to_half,
    sqrt_mode,
};
use crate::op::{Class, Exec};
use crate::syntax::Type;

/// Flags in the immediate of a floating-point operation: the low two bits are the rounding.
pub(crate) const FTZ: i64 = 4;
pub(crate) const SAT: i64 = 8;
pub(crate) const NAN: i64 = 16;

type Chosen = Option<(Exec, Class)>;

/// `f32` results: flush and saturate as the flags say.
#[inline(always)]
fn finish(bits: u32, k: i64) -> u32 {
    let bits = if k & FTZ != 0 { ftz(bits) } else { bits };
    if k & SAT != 0 { sat(bits) } else { bits }
}

#[inline(always)]
fn input(bits: u32, k: i64) -> f32 {
    f(if k & FTZ != 0 { ftz(bits) } else { bits })
}

/// Bits of an f64 result, NaN canonical.
pub(crate) fn double(value: f64) -> u64 {
    if value.is_nan() { 0xfff8_0000_0000_0000 } else { value.to_bits() }
}

fn sx16(value: u32) -> i32 {
    i32::from(value as u16 as i16)
}

/// Applies an f32 function to both halves of a packed pair.
#[inline(always)]
fn pair(x: u32, y: u32, op: impl Fn(u32, u32) -> u32) -> u32 {
    op(x & 0xffff, y & 0xffff) | op(x >> 16, y >> 16) << 16
}

#[inline(always)]
fn half_finish(bits: u32, k: i64) -> u32 {
    // Subnormal f16 is flushed by .ftz; bf16 has no such form.
    let bits = if k & FTZ != 0 && bits & 0x7c00 == 0 { bits & 0x8000 } else { bits };
    if k & SAT == 0 {
        return bits;
    }
    let value = half_to_single(bits);
    if value >= 1.0 {
        0x3c00
    } else if value > 0.0 {
        bits
    } else {
        0
    }
}

#[inline(always)]
fn half_op(x: u32, y: u32, k: i64, op: impl Fn(f32, f32) -> f32) -> u32 {
    let (x, y) = (half_input(x, k), half_input(y, k));
    half_finish(single_to_half(op(half_to_single(x), half_to_single(y))), k)
}

#[inline(always)]
fn half_input(bits: u32, k: i64) -> u32 {
    if k & FTZ != 0 && bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

#[inline(always)]
fn brain_op(x: u32, y: u32, op: impl Fn(f32, f32) -> f32) -> u32 {
    single_to_brain(op(brain_to_single(x), brain_to_single(y)))
}

fn half_extreme(x: u32, y: u32, k: i64, up: bool) -> u32 {
    let to = |v| half_to_single(half_input(v, k)).to_bits();
    let chosen = extreme(to(x), to(y), k, up);
    single_to_half(f(chosen))
}

fn brain_extreme(x: u32, y: u32, k: i64, up: bool) -> u32 {
    let chosen = extreme(x << 16, y << 16, k, up);
    if f(chosen).is_nan() { math::NAN16 } else { chosen >> 16 }
}

fn extreme(x: u32, y: u32, k: i64, up: bool) -> u32 {
    if up { greatest(x, y, k & NAN != 0) } else { least(x, y, k & NAN != 0) }
}

fn double_extreme(x: u64, y: u64, up: bool) -> u64 {
    let (p, q) = (d(x), d(y));
    match (p.is_nan(), q.is_nan()) {
        (true, true) => double(f64::NAN),
        (true, false) => y,
        (false, true) => x,
        _ if p == q => {
            let first = p.is_sign_negative() != up;
            if first { x } else { y }
        }
        _ => {
            if (p > q) == up {
                x
            } else {
                y
            }
        }
    }
}

fn brain_multiply_add(x: u32, y: u32, z: u32) -> u32 {
    brain_fma(x, y, z)
}

/// `.relu` of a signed integer.
fn signed_extreme(value: i32, k: i64) -> u32 {
    (if k & RELU != 0 { value.max(0) } else { value }) as u32
}

/// f64 in a directed rounding; the operation is add, subtract, multiply or divide.
fn directed_double(w: bool, operation: u8) -> Exec {
    match operation {
        0 => lane!(w, [k] |x: u64, y: u64| -> u64 {
            double(directed::add(d(x), d(y), Rounding::from_bits(k)))
        }),
        1 => lane!(w, [k] |x: u64, y: u64| -> u64 {
            double(directed::add(d(x), -d(y), Rounding::from_bits(k)))
        }),
        2 => lane!(w, [k] |x: u64, y: u64| -> u64 {
            double(directed::multiply(d(x), d(y), Rounding::from_bits(k)))
        }),
        _ => lane!(w, [k] |x: u64, y: u64| -> u64 {
            double(directed::divide(d(x), d(y), Rounding::from_bits(k)))
        }),
    }
}

/// Two-operand instructions whose operands and result have one type.
pub(crate) fn binary(w: bool, name: &str, ty: Type, k: i64) -> Chosen {
    use Type::*;
    let plain = k == 0;
    let flushed = k == FTZ;
    let (exec, class) = match (name, ty) {
        ("add", U32 | S32 | B32) => {
            (lane!(w, |x: u32, y: u32| -> u32 { x.wrapping_add(y) }), Class::Integer)
        }
        ("add", U64 | S64 | B64) => {
            (lane!(w, |x: u64, y: u64| -> u64 { x.wrapping_add(y) }), Class::Integer)
        }
        ("add", U16 | S16) => {
            (lane!(w, |x: u32, y: u32| -> u32 { x.wrapping_add(y) & 0xffff }), Class::Integer)
        }
        ("add.sat", S32) => (
            lane!(w, |x: u32, y: u32| -> u32 { (x as i32).saturating_add(y as i32) as u32 }),
            Class::Integer,
        ),
        ("sub", U32 | S32 | B32) => {
            (lane!(w, |x: u32, y: u32| -> u32 { x.wrapping_sub(y) }), Class::Integer)
        }
        ("sub", U64 | S64 | B64) => {
            (lane!(w, |x: u64, y: u64| -> u64 { x.wrapping_sub(y) }), Class::Integer)
        }
        ("sub", U16 | S16) => {
            (lane!(w, |x: u32, y: u32| -> u32 { x.wrapping_sub(y) & 0xffff }), Class::Integer)
        }
        ("sub.sat", S32) => (
            lane!(w, |x: u32, y: u32| -> u32 { (x as i32).saturating_sub(y as i32) as u32 }),
            Class::Integer,
        ),
        ("mul.lo", U32 | S32) => {
            (lane!(w, |x: u32, y: u32| -> u32 { x.wrapping_mul(y) }), Class::Integer)
        }
        ("mul.lo", U64 | S64) => {
            (lane!(w, |x: u64, y: u64| -> u64 { x.wrapping_mul(y) }), Class::Integer)
        }
        ("mul.lo", U16 | S16) => {
            (lane!(w, |x: u32, y: u32| -> u32 { x.wrapping_mul(y) & 0xffff }), Class::Integer)
        }
        ("mul.hi", U16) => {
            (lane!(w, |x: u32, y: u32| -> u32 { x.wrapping_mul(y) >> 16 }), Class::Integer)
        }
        ("mul.hi", S16) => (
            lane!(w, |x: u32, y: u32| -> u32 { ((sx16(x) * sx16(y)) >> 16) as u32 & 0xffff }),
            Class::Integer,
        ),
        ("mul.hi", U32) => (
            lane!(w, |x: u32, y: u32| -> u32 { ((u64::from(x) * u64::from(y)) >> 32) as u32 }),
            Class::Integer,
        ),
        ("mul.hi", S32) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32
            }),
            Class::Integer,
        ),
        ("mul.hi", U64) => (
            lane!(w, |x: u64, y: u64| -> u64 { ((u128::from(x) * u128::from(y)) >> 64) as u64 }),
            Class::Integer,
        ),
        ("mul.hi", S64) => (
            lane!(w, |x: u64, y: u64| -> u64 {
                ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64
            }),
            Class::Integer,
        ),
        ("mul24.lo", U32) => (
            lane!(w, |x: u32, y: u32| -> u32 { (x & 0xff_ffff).wrapping_mul(y & 0xff_ffff) }),
            Class::Integer,
        ),
        ("mul24.lo", S32) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                (((x << 8) as i32) >> 8).wrapping_mul(((y << 8) as i32) >> 8) as u32
            }),
            Class::Integer,
        ),
        ("mul24.hi", U32) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                ((u64::from(x & 0xff_ffff) * u64::from(y & 0xff_ffff)) >> 16) as u32
            }),
            Class::Integer,
        ),
        ("mul24.hi", S32) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                ((i64::from(((x << 8) as i32) >> 8) * i64::from(((y << 8) as i32) >> 8)) >> 16)
                    as u32
            }),
            Class::Integer,
        ),
        // Division by zero gives all ones, as on the GPU; PTX leaves it unspecified.
        ("div", U16) => (
            lane!(w, |x: u32, y: u32| -> u32 { x.checked_div(y).unwrap_or(u32::MAX) & 0xffff }),
            Class::Special,
        ),
        ("div", S16) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                if y == 0 { 0xffff } else { sx16(x).wrapping_div(sx16(y)) as u32 & 0xffff }
            }),
            Class::Special,
        ),
        ("div", U32) => (
            lane!(w, |x: u32, y: u32| -> u32 { x.checked_div(y).unwrap_or(u32::MAX) }),
            Class::Special,
        ),
        ("div", S32) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                if y == 0 { u32::MAX } else { (x as i32).wrapping_div(y as i32) as u32 }
            }),
            Class::Special,
        ),
        ("div", U64) => (
            lane!(w, |x: u64, y: u64| -> u64 { x.checked_div(y).unwrap_or(u64::MAX) }),
            Class::Special,
        ),
        ("div", S64) => (
            lane!(w, |x: u64, y: u64| -> u64 {
                if y == 0 { u64::MAX } else { (x as i64).wrapping_div(y as i64) as u64 }
            }),
            Class::Special,
        ),
        ("rem", U16 | U32) => {
            (lane!(w, |x: u32, y: u32| -> u32 { x.checked_rem(y).unwrap_or(x) }), Class::Special)
        }
        ("rem", S16) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                if y == 0 { x } else { sx16(x).wrapping_rem(sx16(y)) as u32 & 0xffff }
            }),
            Class::Special,
        ),
        ("rem", S32) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                if y == 0 { x } else { (x as i32).wrapping_rem(y as i32) as u32 }
            }),
            Class::Special,
        ),
        ("rem", U64) => {
            (lane!(w, |x: u64, y: u64| -> u64 { x.checked_rem(y).unwrap_or(x) }), Class::Special)
        }
        ("rem", S64) => (
            lane!(w, |x: u64, y: u64| -> u64 {
                if y == 0 { x } else { (x as i64).wrapping_rem(y as i64) as u64 }
            }),
            Class::Special,
        ),
        ("min", U16 | U32) => (lane!(w, |x: u32, y: u32| -> u32 { x.min(y) }), Class::Integer),
        ("max", U16 | U32) => (lane!(w, |x: u32, y: u32| -> u32 { x.max(y) }), Class::Integer),
        ("min", S16) => (
            lane!(w, |x: u32, y: u32| -> u32 { sx16(x).min(sx16(y)) as u32 & 0xffff }),
            Class::Integer,
        ),
        ("max", S16) => (
            lane!(w, |x: u32, y: u32| -> u32 { sx16(x).max(sx16(y)) as u32 & 0xffff }),
            Class::Integer,
        ),
        ("min", S32) if k & RELU == 0 => {
            (lane!(w, |x: u32, y: u32| -> u32 { (x as i32).min(y as i32) as u32 }), Class::Integer)
        }
        ("max", S32) if k & RELU == 0 => {
            (lane!(w, |x: u32, y: u32| -> u32 { (x as i32).max(y as i32) as u32 }), Class::Integer)
        }
        ("min", U64) => (lane!(w, |x: u64, y: u64| -> u64 { x.min(y) }), Class::Integer),
        ("max", U64) => (lane!(w, |x: u64, y: u64| -> u64 { x.max(y) }), Class::Integer),
        ("min", S64) => {
            (lane!(w, |x: u64, y: u64| -> u64 { (x as i64).min(y as i64) as u64 }), Class::Integer)
        }
        ("max", S64) => {
            (lane!(w, |x: u64, y: u64| -> u64 { (x as i64).max(y as i64) as u64 }), Class::Integer)
        }
        ("and", B16 | B32) => (lane!(w, |x: u32, y: u32| -> u32 { x & y }), Class::Integer),
        ("or", B16 | B32) => (lane!(w, |x: u32, y: u32| -> u32 { x | y }), Class::Integer),
        ("xor", B16 | B32) => (lane!(w, |x: u32, y: u32| -> u32 { x ^ y }), Class::Integer),
        ("and", B64) => (lane!(w, |x: u64, y: u64| -> u64 { x & y }), Class::Integer),
        ("or", B64) => (lane!(w, |x: u64, y: u64| -> u64 { x | y }), Class::Integer),
        ("xor", B64) => (lane!(w, |x: u64, y: u64| -> u64 { x ^ y }), Class::Integer),
        ("shl", B16) => (
            lane!(w, |x: u32, y: u32| -> u32 { if y < 16 { x << y & 0xffff } else { 0 } }),
            Class::Integer,
        ),
        ("shl", B32) => (
            lane!(w, |x: u32, y: u32| -> u32 { if y < 32 { x << (y & 31) } else { 0 } }),
            Class::Integer,
        ),
        ("shl", B64) => (
            lane!(w, |x: u64, y: u32| -> u64 { if y < 64 { x << (y & 63) } else { 0 } }),
            Class::Integer,
        ),
        ("shr", U16 | B16) => (
            lane!(w, |x: u32, y: u32| -> u32 { if y < 16 { x >> (y & 15) } else { 0 } }),
            Class::Integer,
        ),
        ("shr", S16) => (
            lane!(w, |x: u32, y: u32| -> u32 { (sx16(x) >> y.min(15)) as u32 & 0xffff }),
            Class::Integer,
        ),
        ("shr", U32 | B32) => (
            lane!(w, |x: u32, y: u32| -> u32 { if y < 32 { x >> (y & 31) } else { 0 } }),
            Class::Integer,
        ),
        ("shr", S32) => {
            (lane!(w, |x: u32, y: u32| -> u32 { ((x as i32) >> y.min(31)) as u32 }), Class::Integer)
        }
        ("shr", U64 | B64) => (
            lane!(w, |x: u64, y: u32| -> u64 { if y < 64 { x >> (y & 63) } else { 0 } }),
            Class::Integer,
        ),
        ("shr", S64) => {
            (lane!(w, |x: u64, y: u32| -> u64 { ((x as i64) >> y.min(63)) as u64 }), Class::Integer)
        }

        ("add", F32) if plain => {
            (lane!(w, |x: u32, y: u32| -> u32 { b(f(x) + f(y)) }), Class::Float32)
        }
        ("sub", F32) if plain => {
            (lane!(w, |x: u32, y: u32| -> u32 { b(f(x) - f(y)) }), Class::Float32)
        }
        ("mul", F32) if plain => {
            (lane!(w, |x: u32, y: u32| -> u32 { b(f(x) * f(y)) }), Class::Float32)
        }
        ("add", F32) if flushed => {
            (lane!(w, |x: u32, y: u32| -> u32 { ftz(b(f(ftz(x)) + f(ftz(y)))) }), Class::Float32)
        }
        ("sub", F32) if flushed => {
            (lane!(w, |x: u32, y: u32| -> u32 { ftz(b(f(ftz(x)) - f(ftz(y)))) }), Class::Float32)
        }
        ("mul", F32) if flushed => {
            (lane!(w, |x: u32, y: u32| -> u32 { ftz(b(f(ftz(x)) * f(ftz(y)))) }), Class::Float32)
        }
        ("min", F32) if plain => {
            (lane!(w, |x: u32, y: u32| -> u32 { least(x, y, false) }), Class::Float32)
        }
        ("max", F32) if plain => {
            (lane!(w, |x: u32, y: u32| -> u32 { greatest(x, y, false) }), Class::Float32)
        }
        ("min", F32) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 {
                least(input(x, k).to_bits(), input(y, k).to_bits(), k & NAN != 0)
            }),
            Class::Float32,
        ),
        ("max", F32) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 {
                greatest(input(x, k).to_bits(), input(y, k).to_bits(), k & NAN != 0)
            }),
            Class::Float32,
        ),
        ("add", F32) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 {
                finish(add_mode(input(x, k), input(y, k), Rounding::from_bits(k)), k)
            }),
            Class::Float32,
        ),
        ("sub", F32) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 {
                finish(add_mode(input(x, k), -input(y, k), Rounding::from_bits(k)), k)
            }),
            Class::Float32,
        ),
        ("mul", F32) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 {
                finish(multiply_mode(input(x, k), input(y, k), Rounding::from_bits(k)), k)
            }),
            Class::Float32,
        ),
        ("div", F32) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 {
                finish(divide_mode(input(x, k), input(y, k), Rounding::from_bits(k)), k)
            }),
            Class::Special,
        ),
        // The product with a reciprocal, which beyond 2^126 is flushed to zero.
        ("div.approx", F32) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 {
                let (x, y) = (input(x, k), input(y, k));
                let beyond = y.is_finite() && y.abs() > f(0x7e80_0000);
                finish(if beyond { b(x * 0f32.copysign(y)) } else { b(x / y) }, k)
            }),
            Class::Special,
        ),
        ("copysign", F32) => (
            lane!(w, |x: u32, y: u32| -> u32 { (x & 0x8000_0000) | (y & 0x7fff_ffff) }),
            Class::Float32,
        ),
        ("copysign", F64) => {
            (lane!(w, |x: u64, y: u64| -> u64 { (x & 1 << 63) | (y & !(1 << 63)) }), Class::Float64)
        }
        ("add" | "sub" | "mul" | "div", F64) if !plain => {
            let code = match name {
                "add" => 0,
                "sub" => 1,
                "mul" => 2,
                _ => 3,
            };
            (directed_double(w, code), Class::Float64)
        }
        ("add", U16x2 | S16x2) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                (x & 0xffff).wrapping_add(y) & 0xffff | (x >> 16).wrapping_add(y >> 16) << 16
            }),
            Class::Integer,
        ),
        ("min" | "max", U16x2) => {
            let exec = if name == "min" {
                lane!(w, |x: u32, y: u32| -> u32 { pair(x, y, |p, q| p.min(q)) })
            } else {
                lane!(w, |x: u32, y: u32| -> u32 { pair(x, y, |p, q| p.max(q)) })
            };
            (exec, Class::Integer)
        }
        ("min" | "max", S16x2) => {
            let exec = if name == "min" {
                lane!(w, [k] |x: u32, y: u32| -> u32 {
                    pair(x, y, |p, q| signed_extreme(sx16(p).min(sx16(q)), k) & 0xffff)
                })
            } else {
                lane!(w, [k] |x: u32, y: u32| -> u32 {
                    pair(x, y, |p, q| signed_extreme(sx16(p).max(sx16(q)), k) & 0xffff)
                })
            };
            (exec, Class::Integer)
        }
        ("min" | "max", S32) if k & RELU != 0 => {
            let exec = if name == "min" {
                lane!(w, [k] |x: u32, y: u32| -> u32 {
                    signed_extreme((x as i32).min(y as i32), k)
                })
            } else {
                lane!(w, [k] |x: u32, y: u32| -> u32 {
                    signed_extreme((x as i32).max(y as i32), k)
                })
            };
            (exec, Class::Integer)
        }
        ("add", F64) if plain => {
            (lane!(w, |x: u64, y: u64| -> u64 { double(d(x) + d(y)) }), Class::Float64)
        }
        ("sub", F64) if plain => {
            (lane!(w, |x: u64, y: u64| -> u64 { double(d(x) - d(y)) }), Class::Float64)
        }
        ("mul", F64) if plain => {
            (lane!(w, |x: u64, y: u64| -> u64 { double(d(x) * d(y)) }), Class::Float64)
        }
        ("div", F64) if plain => {
            (lane!(w, |x: u64, y: u64| -> u64 { double(d(x) / d(y)) }), Class::Float64)
        }
        ("min", F64) => {
            (lane!(w, |x: u64, y: u64| -> u64 { double_extreme(x, y, false) }), Class::Float64)
        }
        ("max", F64) => {
            (lane!(w, |x: u64, y: u64| -> u64 { double_extreme(x, y, true) }), Class::Float64)
        }

        ("add", F16) => {
            (lane!(w, [k] |x: u32, y: u32| -> u32 { half_op(x, y, k, |p, q| p + q) }), Class::Half)
        }
        ("sub", F16) => {
            (lane!(w, [k] |x: u32, y: u32| -> u32 { half_op(x, y, k, |p, q| p - q) }), Class::Half)
        }
        ("mul", F16) => {
            (lane!(w, [k] |x: u32, y: u32| -> u32 { half_op(x, y, k, |p, q| p * q) }), Class::Half)
        }
        ("add", F16x2) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 { pair(x, y, |x, y| half_op(x, y, k, |p, q| p + q)) }),
            Class::Half,
        ),
        ("sub", F16x2) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 { pair(x, y, |x, y| half_op(x, y, k, |p, q| p - q)) }),
            Class::Half,
        ),
        ("mul", F16x2) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 { pair(x, y, |x, y| half_op(x, y, k, |p, q| p * q)) }),
            Class::Half,
        ),
        ("min", F16) => {
            (lane!(w, [k] |x: u32, y: u32| -> u32 { half_extreme(x, y, k, false) }), Class::Half)
        }
        ("max", F16) => {
            (lane!(w, [k] |x: u32, y: u32| -> u32 { half_extreme(x, y, k, true) }), Class::Half)
        }
        ("min", F16x2) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 { pair(x, y, |x, y| half_extreme(x, y, k, false)) }),
            Class::Half,
        ),
        ("max", F16x2) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 { pair(x, y, |x, y| half_extreme(x, y, k, true)) }),
            Class::Half,
        ),
        ("add", Bf16) => {
            (lane!(w, |x: u32, y: u32| -> u32 { brain_op(x, y, |p, q| p + q) }), Class::Half)
        }
        ("sub", Bf16) => {
            (lane!(w, |x: u32, y: u32| -> u32 { brain_op(x, y, |p, q| p - q) }), Class::Half)
        }
        ("mul", Bf16) => {
            (lane!(w, |x: u32, y: u32| -> u32 { brain_multiply_add(x, y, 0x8000) }), Class::Half)
        }
        ("add", Bf16x2) => (
            lane!(w, |x: u32, y: u32| -> u32 { pair(x, y, |x, y| brain_op(x, y, |p, q| p + q)) }),
            Class::Half,
        ),
        ("sub", Bf16x2) => (
            lane!(w, |x: u32, y: u32| -> u32 { pair(x, y, |x, y| brain_op(x, y, |p, q| p - q)) }),
            Class::Half,
        ),
        ("mul", Bf16x2) => (
            lane!(w, |x: u32, y: u32| -> u32 {
                pair(x, y, |x, y| brain_multiply_add(x, y, 0x8000))
            }),
            Class::Half,
        ),
        ("min", Bf16) => {
            (lane!(w, [k] |x: u32, y: u32| -> u32 { brain_extreme(x, y, k, false) }), Class::Half)
        }
        ("max", Bf16) => {
            (lane!(w, [k] |x: u32, y: u32| -> u32 { brain_extreme(x, y, k, true) }), Class::Half)
        }
        ("min", Bf16x2) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 { pair(x, y, |x, y| brain_extreme(x, y, k, false)) }),
            Class::Half,
        ),
        ("max", Bf16x2) => (
            lane!(w, [k] |x: u32, y: u32| -> u32 { pair(x, y, |x, y| brain_extreme(x, y, k, true)) }),
            Class::Half,
        ),
        _ => return None,
    };
    Some((exec, class))
}

/// `mul.wide` and its like: a result twice as wide as the operands.
pub(crate) fn widening(w: bool, ty: Type) -> Option<Exec> {
    Some(match ty {
        Type::U16 => lane!(w, |x: u32, y: u32| -> u32 { x.wrapping_mul(y) }),
        Type::S16 => lane!(w, |x: u32, y: u32| -> u32 { (sx16(x) * sx16(y)) as u32 }),
        Type::U32 => lane!(w, |x: u32, y: u32| -> u64 { u64::from(x) * u64::from(y) }),
        Type::S32 => {
            lane!(w, |x: u32, y: u32| -> u64 { (i64::from(x as i32) * i64::from(y as i32)) as u64 })
        }
        _ => return None,
    })
}

/// Three-operand instructions.
pub(crate) fn ternary(w: bool, name: &str, ty: Type, k: i64) -> Chosen {
    use Type::*;
    let (exec, class) = match (name, ty) {
        ("mad.lo", U32 | S32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { x.wrapping_mul(y).wrapping_add(z) }),
            Class::Integer,
        ),
        ("mad.lo", U64 | S64) => (
            lane!(w, |x: u64, y: u64, z: u64| -> u64 { x.wrapping_mul(y).wrapping_add(z) }),
            Class::Integer,
        ),
        ("mad.lo", U16 | S16) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 {
                x.wrapping_mul(y).wrapping_add(z) & 0xffff
            }),
            Class::Integer,
        ),
        ("mad.hi", U32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 {
                (((u64::from(x) * u64::from(y)) >> 32) as u32).wrapping_add(z)
            }),
            Class::Integer,
        ),
        ("mad.hi", S32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 {
                (((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32).wrapping_add(z)
            }),
            Class::Integer,
        ),
        ("mad.wide", U16) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { x.wrapping_mul(y).wrapping_add(z) }),
            Class::Integer,
        ),
        ("mad.wide", S16) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 {
                ((sx16(x) * sx16(y)) as u32).wrapping_add(z)
            }),
            Class::Integer,
        ),
        ("mad.wide", U32) => (
            lane!(w, |x: u32, y: u32, z: u64| -> u64 {
                (u64::from(x) * u64::from(y)).wrapping_add(z)
            }),
            Class::Integer,
        ),
        ("mad.wide", S32) => (
            lane!(w, |x: u32, y: u32, z: u64| -> u64 {
                ((i64::from(x as i32) * i64::from(y as i32)) as u64).wrapping_add(z)
            }),
            Class::Integer,
        ),
        ("mad24.lo", U32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 {
                (x & 0xff_ffff).wrapping_mul(y & 0xff_ffff).wrapping_add(z)
            }),
            Class::Integer,
        ),
        ("mad24.lo", S32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 {
                ((((x << 8) as i32) >> 8).wrapping_mul(((y << 8) as i32) >> 8) as u32)
                    .wrapping_add(z)
            }),
            Class::Integer,
        ),
        ("sad", U16) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { x.abs_diff(y).wrapping_add(z) & 0xffff }),
            Class::Integer,
        ),
        ("sad", U32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { x.abs_diff(y).wrapping_add(z) }),
            Class::Integer,
        ),
        ("sad", S32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 {
                (x as i32).abs_diff(y as i32).wrapping_add(z)
            }),
            Class::Integer,
        ),
        ("shf.l.wrap", B32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { funnel_left(x, y, z & 31) }),
            Class::Integer,
        ),
        ("shf.l.clamp", B32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { funnel_left(x, y, z.min(32)) }),
            Class::Integer,
        ),
        ("shf.r.wrap", B32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { funnel_right(x, y, z & 31) }),
            Class::Integer,
        ),
        ("shf.r.clamp", B32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { funnel_right(x, y, z.min(32)) }),
            Class::Integer,
        ),
        ("bfe", U32) => (
            lane!(w, |x: u32, p: u32, l: u32| -> u32 {
                extract(u64::from(x), p, l, 32, false) as u32
            }),
            Class::Integer,
        ),
        ("bfe", S32) => (
            lane!(w, |x: u32, p: u32, l: u32| -> u32 {
                extract(x as i32 as u64, p, l, 32, true) as u32
            }),
            Class::Integer,
        ),
        ("bfe", U64) => (
            lane!(w, |x: u64, p: u32, l: u32| -> u64 { extract(x, p, l, 64, false) }),
            Class::Integer,
        ),
        ("bfe", S64) => (
            lane!(w, |x: u64, p: u32, l: u32| -> u64 { extract(x, p, l, 64, true) }),
            Class::Integer,
        ),
        ("prmt", B32) => {
            (lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 { permute(x, y, z, k) }), Class::Integer)
        }
        ("lop3", B32) => (
            lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 {
                let mut out = 0;
                for row in 0..8u32 {
                    if k >> row & 1 != 0 {
                        let p = if row & 4 != 0 { x } else { !x };
                        let q = if row & 2 != 0 { y } else { !y };
                        let r = if row & 1 != 0 { z } else { !z };
                        out |= p & q & r;
                    }
                }
                out
            }),
            Class::Integer,
        ),
        ("dp4a", _) => {
            (lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 { dot4(x, y, z, k) }), Class::Integer)
        }
        ("dp2a", _) => {
            (lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 { dot2(x, y, z, k) }), Class::Integer)
        }
        ("slct.s32", B32 | U32 | S32 | F32) => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { if (z as i32) >= 0 { x } else { y } }),
            Class::Integer,
        ),
        ("slct.s32", B64 | U64 | S64 | F64) => (
            lane!(w, |x: u64, y: u64, z: u32| -> u64 { if (z as i32) >= 0 { x } else { y } }),
            Class::Integer,
        ),
        ("slct.f32", B32 | U32 | S32 | F32) => (
            lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 { if input(z, k) >= 0.0 { x } else { y } }),
            Class::Integer,
        ),
        ("slct.f32", B64 | U64 | S64 | F64) => (
            lane!(w, [k] |x: u64, y: u64, z: u32| -> u64 { if input(z, k) >= 0.0 { x } else { y } }),
            Class::Integer,
        ),
        ("fma", F32) if k == 0 => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 { b(fma::<H>(f(x), f(y), f(z))) }),
            Class::Float32,
        ),
        ("fma", F32) if k == FTZ => (
            lane!(w, |x: u32, y: u32, z: u32| -> u32 {
                ftz(b(fma::<H>(f(ftz(x)), f(ftz(y)), f(ftz(z)))))
            }),
            Class::Float32,
        ),
        ("fma", F32) => (
            lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 {
                finish(fma_mode(input(x, k), input(y, k), input(z, k), Rounding::from_bits(k)), k)
            }),
            Class::Float32,
        ),
        ("fma", F64) if k == 0 => (
            lane!(w, |x: u64, y: u64, z: u64| -> u64 { double(d(x).mul_add(d(y), d(z))) }),
            Class::Float64,
        ),
        ("fma", F64) => (
            lane!(w, [k] |x: u64, y: u64, z: u64| -> u64 {
                double(directed::multiply_add(d(x), d(y), d(z), Rounding::from_bits(k)))
            }),
            Class::Float64,
        ),
        ("fma", F16) => (
            lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 { half_multiply_add(x, y, z, k) }),
            Class::Half,
        ),
        ("fma", F16x2) => (
            lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 {
                half_multiply_add(x & 0xffff, y & 0xffff, z & 0xffff, k)
                    | half_multiply_add(x >> 16, y >> 16, z >> 16, k) << 16
            }),
            Class::Half,
        ),
        ("fma", Bf16) => (
            lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 { brain_relu(brain_fma(x, y, z), k) }),
            Class::Half,
        ),
        ("fma", Bf16x2) => (
            lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 {
                brain_relu(brain_fma(x & 0xffff, y & 0xffff, z & 0xffff), k)
                    | brain_relu(brain_fma(x >> 16, y >> 16, z >> 16), k) << 16
            }),
            Class::Half,
        ),
        _ => return None,
    };
    Some((exec, class))
}

/// `.relu`: negative results become +0. NaN, which is canonical, stays.
pub(crate) const RELU: i64 = 32;

#[inline(always)]
fn brain_relu(bits: u32, k: i64) -> u32 {
    if k & RELU != 0 && bits & 0x8000 != 0 { 0 } else { bits }
}

#[inline(always)]
fn half_multiply_add(x: u32, y: u32, z: u32, k: i64) -> u32 {
    let bits = half_fma(half_input(x, k), half_input(y, k), half_input(z, k));
    let bits = half_finish(bits, k);
    if k & RELU != 0 && bits & 0x8000 != 0 { 0 } else { bits }
}

/// Shifts [high:low] left and returns the high word.
#[inline(always)]
fn funnel_left(low: u32, high: u32, by: u32) -> u32 {
    let both = u64::from(high) << 32 | u64::from(low);
    ((both << by) >> 32) as u32
}

#[inline(always)]
fn funnel_right(low: u32, high: u32, by: u32) -> u32 {
    let both = u64::from(high) << 32 | u64::from(low);
    (both >> by) as u32
}

/// Operations of the SIMD video instructions, in the order of their codes.
pub(crate) const VIDEO: [&str; 7] = ["vadd", "vsub", "vavrg", "vabsdiff", "vmin", "vmax", "vset"];
pub(crate) const VIDEO_SIGNED: [i64; 3] = [8, 16, 32];
pub(crate) const VIDEO_FOUR: i64 = 64;
pub(crate) const VIDEO_SATURATE: i64 = 128;
pub(crate) const VIDEO_SUM: i64 = 256;
/// The comparison of `vset` stands above this bit.
pub(crate) const VIDEO_COMPARISON: u32 = 9;

/// `vadd4` and its like. The immediate: the code of [`VIDEO`], whether result, first and second
/// operand are signed, four lanes instead of two, saturation, the sum of all lanes and z instead
/// of the lanes.
pub(crate) fn video(w: bool) -> Exec {
    lane!(w, [k] |x: u32, y: u32, z: u32| -> u32 {
        let (lanes, bits) = if k & VIDEO_FOUR != 0 { (4, 8) } else { (2, 16) };
        let ones = (1u32 << bits) - 1;
        let part = |word: u32, at: u32, signed: bool| {
            let value = (word >> (at * bits) & ones) as i32;
            if signed { value << (32 - bits) >> (32 - bits) } else { value }
        };
        let signed = k & VIDEO_SIGNED[0] != 0;
        let (least, most) = if signed {
            (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        } else {
            (0, ones as i32)
        };
        let mut out = if k & VIDEO_SUM != 0 { z } else { 0 };
        for at in 0..lanes {
            let p = part(x, at, k & VIDEO_SIGNED[1] != 0);
            let q = part(y, at, k & VIDEO_SIGNED[2] != 0);
            let mut value = match k & 7 {
                0 => p + q,
                1 => p - q,
                2 => (p + q + i32::from(p + q >= 0)) >> 1,
                3 => (p - q).abs(),
                4 => p.min(q),
                5 => p.max(q),
                _ => i32::from(match k >> VIDEO_COMPARISON {
                    0 => p == q,
                    1 => p != q,
                    2 => p < q,
                    3 => p <= q,
                    4 => p > q,
                    _ => p >= q,
                }),
            };
            if k & VIDEO_SATURATE != 0 {
                value = value.clamp(least, most);
            }
            if k & VIDEO_SUM != 0 {
                out = out.wrapping_add(value as u32);
            } else {
                out |= (value as u32 & ones) << (at * bits);
            }
        }
        out
    })
}

fn extract(value: u64, position: u32, length: u32, bits: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let top = bits - 1;
    let sign_at = (position + length - 1).min(top);
    let sign = signed && value >> sign_at & 1 != 0;
    let mut out = if position < bits { (value & (u64::MAX >> (64 - bits))) >> position } else { 0 };
    let kept = length.min(bits.saturating_sub(position));
    if kept < 64 {
        let mask = (1u64 << kept) - 1;
        out = if sign { out | !mask } else { out & mask };
    }
    out
}

/// Four-operand bit field insert, as a lane of (value, base, position | length << 8).
pub(crate) fn insert(value: u64, base: u64, position: u32, length: u32, bits: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= bits || length == 0 {
        return base;
    }
    let kept = length.min(bits - position);
    let ones = if kept >= 64 { u64::MAX } else { (1u64 << kept) - 1 };
    (base & !(ones << position)) | (value & ones) << position
}

/// Modes of `prmt`, in the order of their codes.
pub(crate) const PERMUTES: [&str; 7] = ["", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];

fn permute(x: u32, y: u32, select: u32, mode: i64) -> u32 {
    let both = u64::from(y) << 32 | u64::from(x);
    let byte = |index: u32| (both >> (8 * (index & 7)) & 0xff) as u32;
    let s = select & 3;
    let mut out = 0;
    for i in 0..4u32 {
        let value = match mode {
            0 => {
                let control = select >> (4 * i) & 0xf;
                let value = byte(control);
                if control & 8 != 0 { if value & 0x80 != 0 { 0xff } else { 0 } } else { value }
            }
            1 => byte(s + i),
            2 => byte(s.wrapping_sub(i)),
            3 => byte(s),
            4 => byte(i.max(s)),
            5 => byte(i.min(s)),
            _ => byte((s & 1) * 2 + (i & 1)),
        };
        out |= value << (8 * i);
    }
    out
}

/// Bit 0: first operand signed; bit 1: second operand signed; bit 2: `dp2a.hi`.
fn dot4(x: u32, y: u32, z: u32, k: i64) -> u32 {
    let mut sum = z;
    for i in 0..4 {
        let part = |v: u32, signed: bool| {
            let byte = (v >> (8 * i)) as u8;
            if signed { i32::from(byte as i8) } else { i32::from(byte) }
        };
        sum = sum.wrapping_add((part(x, k & 1 != 0) * part(y, k & 2 != 0)) as u32);
    }
    sum
}

fn dot2(x: u32, y: u32, z: u32, k: i64) -> u32 {
    let mut sum = z;
    for i in 0..2 {
        let half = (x >> (16 * i)) as u16;
        let half = if k & 1 != 0 { i32::from(half as i16) } else { i32::from(half) };
        let byte = (y >> (8 * i + if k & 4 != 0 { 16 } else { 0 })) as u8;
        let byte = if k & 2 != 0 { i32::from(byte as i8) } else { i32::from(byte) };
        sum = sum.wrapping_add(half.wrapping_mul(byte) as u32);
    }
    sum
}

/// One-operand instructions.
pub(crate) fn unary(w: bool, name: &str, ty: Type) -> Chosen {
    use Type::*;
    let (exec, class) = match (name, ty) {
        ("not", B16) => (lane!(w, |x: u32| -> u32 { !x & 0xffff }), Class::Integer),
        ("not", B32) => (lane!(w, |x: u32| -> u32 { !x }), Class::Integer),
        ("not", B64) => (lane!(w, |x: u64| -> u64 { !x }), Class::Integer),
        ("cnot", B16 | B32) => (lane!(w, |x: u32| -> u32 { u32::from(x == 0) }), Class::Integer),
        ("cnot", B64) => (lane!(w, |x: u64| -> u64 { u64::from(x == 0) }), Class::Integer),
        ("neg", S16) => (lane!(w, |x: u32| -> u32 { x.wrapping_neg() & 0xffff }), Class::Integer),
        ("neg", S32) => (lane!(w, |x: u32| -> u32 { x.wrapping_neg() }), Class::Integer),
        ("neg", S64) => (lane!(w, |x: u64| -> u64 { x.wrapping_neg() }), Class::Integer),
        ("abs", S16) => {
            (lane!(w, |x: u32| -> u32 { sx16(x).wrapping_abs() as u32 & 0xffff }), Class::Integer)
        }
        ("abs", S32) => {
            (lane!(w, |x: u32| -> u32 { (x as i32).wrapping_abs() as u32 }), Class::Integer)
        }
        ("abs", S64) => {
            (lane!(w, |x: u64| -> u64 { (x as i64).wrapping_abs() as u64 }), Class::Integer)
        }
        ("popc", B32) => (lane!(w, |x: u32| -> u32 { x.count_ones() }), Class::Integer),
        ("popc", B64) => (lane!(w, |x: u64| -> u32 { x.count_ones() }), Class::Integer),
        ("clz", B32) => (lane!(w, |x: u32| -> u32 { x.leading_zeros() }), Class::Integer),
        ("clz", B64) => (lane!(w, |x: u64| -> u32 { x.leading_zeros() }), Class::Integer),
        ("brev", B32) => (lane!(w, |x: u32| -> u32 { x.reverse_bits() }), Class::Integer),
        ("brev", B64) => (lane!(w, |x: u64| -> u64 { x.reverse_bits() }), Class::Integer),
        ("bfind", U32) => {
            (lane!(w, |x: u32| -> u32 { 31u32.wrapping_sub(x.leading_zeros()) }), Class::Integer)
        }
        ("bfind", S32) => (
            lane!(w, |x: u32| -> u32 {
                31u32.wrapping_sub((x ^ ((x as i32) >> 31) as u32).leading_zeros())
            }),
            Class::Integer,
        ),
        ("bfind", U64) => {
            (lane!(w, |x: u64| -> u32 { 63u32.wrapping_sub(x.leading_zeros()) }), Class::Integer)
        }
        ("bfind", S64) => (
            lane!(w, |x: u64| -> u32 {
                63u32.wrapping_sub((x ^ ((x as i64) >> 63) as u64).leading_zeros())
            }),
            Class::Integer,
        ),
        ("bfind.shiftamt", U32) => (
            lane!(w, |x: u32| -> u32 { if x == 0 { u32::MAX } else { x.leading_zeros() } }),
            Class::Integer,
        ),
        ("bfind.shiftamt", U64) => (
            lane!(w, |x: u64| -> u32 { if x == 0 { u32::MAX } else { x.leading_zeros() } }),
            Class::Integer,
        ),
        ("bfind.shiftamt", S32) => (
            lane!(w, |x: u32| -> u32 {
                let x = x ^ ((x as i32) >> 31) as u32;
                if x == 0 { u32::MAX } else { x.leading_zeros() }
            }),
            Class::Integer,
        ),
        ("bfind.shiftamt", S64) => (
            lane!(w, |x: u64| -> u32 {
                let x = x ^ ((x as i64) >> 63) as u64;
                if x == 0 { u32::MAX } else { x.leading_zeros() }
            }),
            Class::Integer,
        ),
        ("neg", F32) => (
            lane!(w, [k] |x: u32| -> u32 { (if k & FTZ != 0 { ftz(x) } else { x }) ^ 0x8000_0000 }),
            Class::Float32,
        ),
        ("abs", F32) => (
            lane!(w, [k] |x: u32| -> u32 { (if k & FTZ != 0 { ftz(x) } else { x }) & 0x7fff_ffff }),
            Class::Float32,
        ),
        ("neg", F64) => (lane!(w, |x: u64| -> u64 { x ^ 1 << 63 }), Class::Float64),
        ("abs", F64) => (lane!(w, |x: u64| -> u64 { x & !(1 << 63) }), Class::Float64),
        ("neg", F16 | Bf16) => {
            (lane!(w, [k] |x: u32| -> u32 { half_input(x, k) ^ 0x8000 }), Class::Half)
        }
        ("abs", F16 | Bf16) => {
            (lane!(w, [k] |x: u32| -> u32 { half_input(x, k) & 0x7fff }), Class::Half)
        }
        ("neg", F16x2 | Bf16x2) => (
            lane!(w, [k] |x: u32| -> u32 {
                (half_input(x & 0xffff, k) | half_input(x >> 16, k) << 16) ^ 0x8000_8000
            }),
            Class::Half,
        ),
        ("abs", F16x2 | Bf16x2) => (
            lane!(w, [k] |x: u32| -> u32 {
                (half_input(x & 0xffff, k) | half_input(x >> 16, k) << 16) & 0x7fff_7fff
            }),
            Class::Half,
        ),
        ("ex2", F32) => (
            lane!(w, [k] |x: u32| -> u32 { finish(b(math::exp2(input(x, k))), k) }),
            Class::Special,
        ),
        ("lg2", F32) => (
            lane!(w, [k] |x: u32| -> u32 { finish(b(math::log2(input(x, k))), k) }),
            Class::Special,
        ),
        ("sin", F32) => (
            lane!(w, [k] |x: u32| -> u32 { finish(b(math::sine(input(x, k))), k) }),
            Class::Special,
        ),
        ("cos", F32) => (
            lane!(w, [k] |x: u32| -> u32 { finish(b(math::cosine(input(x, k))), k) }),
            Class::Special,
        ),
        ("tanh", F32) => (
            lane!(w, [k] |x: u32| -> u32 { finish(b(math::tangent_hyperbolic(input(x, k))), k) }),
            Class::Special,
        ),
        ("rcp", F32) => (
            lane!(w, [k] |x: u32| -> u32 {
                finish(divide_mode(1.0, input(x, k), Rounding::from_bits(k)), k)
            }),
            Class::Special,
        ),
        ("sqrt", F32) => (
            lane!(w, [k] |x: u32| -> u32 { finish(sqrt_mode(input(x, k), Rounding::from_bits(k)), k) }),
            Class::Special,
        ),
        ("rsqrt", F32) => (
            lane!(w, [k] |x: u32| -> u32 {
                let x = input(x, k);
                finish(b(if x == 0.0 { 1.0 / x } else { (1.0 / f64::from(x).sqrt()) as f32 }), k)
            }),
            Class::Special,
        ),
        ("rcp", F64) => (
            lane!(w, [k] |x: u64| -> u64 {
                double(directed::divide(1.0, d(x), Rounding::from_bits(k)))
            }),
            Class::Special,
        ),
        ("sqrt", F64) => (
            lane!(w, [k] |x: u64| -> u64 {
                double(directed::root(d(x), Rounding::from_bits(k)))
            }),
            Class::Special,
        ),
        ("rsqrt", F64) => (lane!(w, |x: u64| -> u64 { double(1.0 / d(x).sqrt()) }), Class::Special),
        ("rcp.approx", F64) => {
            (lane!(w, |x: u64| -> u64 { math::gross(x, |x| 1.0 / x) }), Class::Special)
        }
        ("rsqrt.approx", F64) => (
            lane!(w, |x: u64| -> u64 {
                math::gross(x, |x| if x == 0.0 { 1.0 / x } else { 1.0 / x.sqrt() })
            }),
            Class::Special,
        ),
        ("ex2", F16) => (
            lane!(w, |x: u32| -> u32 { single_to_half(math::exp2(half_to_single(x))) }),
            Class::Special,
        ),
        ("ex2", F16x2) => (
            lane!(w, |x: u32| -> u32 {
                pair(x, 0, |x, _| single_to_half(math::exp2(half_to_single(x))))
            }),
            Class::Special,
        ),
        ("ex2", Bf16) => (
            lane!(w, |x: u32| -> u32 { single_to_brain(math::exp2(brain_to_single(x))) }),
            Class::Special,
        ),
        ("ex2", Bf16x2) => (
            lane!(w, |x: u32| -> u32 {
                pair(x, 0, |x, _| single_to_brain(math::exp2(brain_to_single(x))))
            }),
            Class::Special,
        ),
        ("tanh", F16) => (
            lane!(w, |x: u32| -> u32 {
                single_to_half(math::tangent_hyperbolic(half_to_single(x)))
            }),
            Class::Special,
        ),
        ("tanh", F16x2) => (
            lane!(w, |x: u32| -> u32 {
                pair(x, 0, |x, _| single_to_half(math::tangent_hyperbolic(half_to_single(x))))
            }),
            Class::Special,
        ),
        ("tanh", Bf16) => (
            lane!(w, |x: u32| -> u32 {
                single_to_brain(math::tangent_hyperbolic(brain_to_single(x)))
            }),
            Class::Special,
        ),
        ("tanh", Bf16x2) => (
            lane!(w, |x: u32| -> u32 {
                pair(x, 0, |x, _| single_to_brain(math::tangent_hyperbolic(brain_to_single(x))))
            }),
            Class::Special,
        ),
        _ => return None,
    };
    Some((exec, class))
}

/// The comparison of a `setp` or `set`. The last flag is `.ftz`.
pub(crate) fn comparison(w: bool, name: &str, ty: Type, flush: bool) -> Option<Exec> {
    macro_rules! integers {
        ($A:ty, $to:expr) => {
            match name {
                "eq" => test!(w, |x, y: $A| $to(x) == $to(y)),
                "ne" => test!(w, |x, y: $A| $to(x) != $to(y)),
                "lt" | "lo" => test!(w, |x, y: $A| $to(x) < $to(y)),
                "le" | "ls" => test!(w, |x, y: $A| $to(x) <= $to(y)),
                "gt" | "hi" => test!(w, |x, y: $A| $to(x) > $to(y)),
                "ge" | "hs" => test!(w, |x, y: $A| $to(x) >= $to(y)),
                _ => return None,
            }
        };
    }
    macro_rules! floats {
        ($A:ty, $to:expr) => {
            match name {
                "eq" => test!(w, |x, y: $A| $to(x) == $to(y)),
                "ne" => test!(w, |x, y: $A| $to(x) < $to(y) || $to(x) > $to(y)),
                "lt" => test!(w, |x, y: $A| $to(x) < $to(y)),
                "le" => test!(w, |x, y: $A| $to(x) <= $to(y)),
                "gt" => test!(w, |x, y: $A| $to(x) > $to(y)),
                "ge" => test!(w, |x, y: $A| $to(x) >= $to(y)),
                "equ" => test!(w, |x, y: $A| !($to(x) < $to(y) || $to(x) > $to(y))),
                "neu" => test!(w, |x, y: $A| $to(x) != $to(y)),
                "ltu" => test!(w, |x, y: $A| !($to(x) >= $to(y))),
                "leu" => test!(w, |x, y: $A| !($to(x) > $to(y))),
                "gtu" => test!(w, |x, y: $A| !($to(x) <= $to(y))),
                "geu" => test!(w, |x, y: $A| !($to(x) < $to(y))),
                "num" => test!(w, |x, y: $A| !$to(x).is_nan() && !$to(y).is_nan()),
                "nan" => test!(w, |x, y: $A| $to(x).is_nan() || $to(y).is_nan()),
                _ => return None,
            }
        };
    }
    use Type::*;
    Some(match ty {
        U16 | B16 | U32 | B32 => integers!(u32, |v: u32| v),
        S16 => integers!(u32, sx16),
        S32 => integers!(u32, |v: u32| v as i32),
        U64 | B64 => integers!(u64, |v: u64| v),
        S64 => integers!(u64, |v: u64| v as i64),
        F32 if flush => floats!(u32, |v: u32| f(ftz(v))),
        F32 => floats!(u32, f),
        F64 => floats!(u64, d),
        F16 if flush => floats!(u32, |v: u32| half_to_single(half_input(v, FTZ))),
        F16 => floats!(u32, half_to_single),
        Bf16 => floats!(u32, brain_to_single),
        _ => return None,
    })
}

/// `testp`: the property of one float, as a comparison of the operand with itself. Zeros count as
/// normal numbers.
pub(crate) fn property(w: bool, name: &str, ty: Type) -> Option<Exec> {
    Some(match (name, ty) {
        ("finite", Type::F32) => test!(w, |x, _y: u32| f(x).is_finite()),
        ("infinite", Type::F32) => test!(w, |x, _y: u32| f(x).is_infinite()),
        ("number", Type::F32) => test!(w, |x, _y: u32| !f(x).is_nan()),
        ("notanumber", Type::F32) => test!(w, |x, _y: u32| f(x).is_nan()),
        ("normal", Type::F32) => test!(w, |x, _y: u32| f(x).is_normal() || f(x) == 0.0),
        ("subnormal", Type::F32) => test!(w, |x, _y: u32| f(x).is_subnormal()),
        ("finite", Type::F64) => test!(w, |x, _y: u64| d(x).is_finite()),
        ("infinite", Type::F64) => test!(w, |x, _y: u64| d(x).is_infinite()),
        ("number", Type::F64) => test!(w, |x, _y: u64| !d(x).is_nan()),
        ("notanumber", Type::F64) => test!(w, |x, _y: u64| d(x).is_nan()),
        ("normal", Type::F64) => test!(w, |x, _y: u64| d(x).is_normal() || d(x) == 0.0),
        ("subnormal", Type::F64) => test!(w, |x, _y: u64| d(x).is_subnormal()),
        _ => return None,
    })
}
