//! Floating point as PTX defines it, in plain arithmetic: no libm, so every host computes the
//! same bits. Where hardware approximates (`ex2.approx`, `sin.approx`, ...) these are within
//! 2 units in the last place of the exact value and differ from a GPU by as much.

/// How a value between two representable ones is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

impl Rounding {
    pub(crate) fn from_bits(bits: i64) -> Self {
        match bits & 3 {
            0 => Self::Nearest,
            1 => Self::Zero,
            2 => Self::Down,
            _ => Self::Up,
        }
    }
}

/// The NaN that arithmetic returns.
pub(crate) const NAN32: u32 = 0x7fff_ffff;
pub(crate) const NAN16: u32 = 0x7fff;

#[inline(always)]
pub(crate) fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

#[inline(always)]
pub(crate) fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// NaN results are canonical, as on the GPU.
#[inline(always)]
pub(crate) fn b(value: f32) -> u32 {
    if value.is_nan() { NAN32 } else { value.to_bits() }
}

/// Flushes a subnormal to a zero of its sign.
#[inline(always)]
pub(crate) fn ftz(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// `.sat`: to [0, 1], NaN to +0.
#[inline(always)]
pub(crate) fn sat(bits: u32) -> u32 {
    let value = f(bits);
    if value >= 1.0 {
        0x3f80_0000
    } else if value > 0.0 {
        bits
    } else {
        0
    }
}

/// What the executing machine offers; the results do not depend on it.
pub(crate) trait Host {
    /// Fused multiply-add is one instruction here.
    const FUSED: bool;
}

/// The sum rounded to odd: inexact results get an odd last bit, so that a second rounding to
/// fewer bits gives what a single rounding would have (Boldo and Melquiond, 2008).
#[inline(always)]
pub(crate) fn add_to_odd(x: f64, y: f64) -> f64 {
    let sum = x + y;
    let z = sum - x;
    let error = (x - (sum - z)) + (y - z);
    let bits = sum.to_bits();
    if error == 0.0 || !sum.is_finite() || error.is_nan() || bits & 1 == 1 {
        return sum;
    }
    // The exact sum lies between `sum` and its neighbour on the side of the error.
    if (error > 0.0) == (sum > 0.0) { f64::from_bits(bits + 1) } else { f64::from_bits(bits - 1) }
}

/// x * y + z rounded once.
#[inline(always)]
pub(crate) fn fma<H: Host>(x: f32, y: f32, z: f32) -> f32 {
    if H::FUSED {
        x.mul_add(y, z)
    } else {
        // The product of two f32 is exact in f64.
        add_to_odd(f64::from(x) * f64::from(y), f64::from(z)) as f32
    }
}

pub(crate) fn add_mode(x: f32, y: f32, mode: Rounding) -> u32 {
    sum_mode(f64::from(x), f64::from(y), mode)
}

/// A sum of two numbers that are exact in f64. One that is exactly zero is -0 where it is rounded
/// down, unless both terms are +0.
fn sum_mode(x: f64, y: f64, mode: Rounding) -> u32 {
    let sum = add_to_odd(x, y);
    if sum == 0.0 && mode == Rounding::Down && (x.is_sign_negative() || y.is_sign_negative()) {
        return narrow(-0.0, SINGLE, mode);
    }
    narrow(sum, SINGLE, mode)
}

pub(crate) fn multiply_mode(x: f32, y: f32, mode: Rounding) -> u32 {
    narrow(f64::from(x) * f64::from(y), SINGLE, mode)
}

pub(crate) fn fma_mode(x: f32, y: f32, z: f32, mode: Rounding) -> u32 {
    sum_mode(f64::from(x) * f64::from(y), f64::from(z), mode)
}

/// Quotient in a directed mode: the f64 quotient of two f32 is corrected by its exact remainder.
pub(crate) fn divide_mode(x: f32, y: f32, mode: Rounding) -> u32 {
    if mode == Rounding::Nearest {
        return b(x / y);
    }
    let (x, y) = (f64::from(x), f64::from(y));
    narrow(to_odd(x / y, |quotient| quotient.mul_add(-y, x) * y.signum()), SINGLE, mode)
}

pub(crate) fn sqrt_mode(x: f32, mode: Rounding) -> u32 {
    if mode == Rounding::Nearest {
        return b(x.sqrt());
    }
    let x = f64::from(x);
    narrow(to_odd(x.sqrt(), |root| root.mul_add(-root, x)), SINGLE, mode)
}

/// Makes a rounded result odd if `residual` (exact minus result, by sign) says it is inexact.
fn to_odd(value: f64, residual: impl Fn(f64) -> f64) -> f64 {
    if !value.is_finite() || value == 0.0 {
        return value;
    }
    let rest = residual(value);
    let bits = value.to_bits();
    if rest == 0.0 || rest.is_nan() || bits & 1 == 1 {
        return value;
    }
    if (rest > 0.0) == (value > 0.0) { f64::from_bits(bits + 1) } else { f64::from_bits(bits - 1) }
}

/// A binary format narrower than f64.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    /// Significant bits, the implicit one included.
    precision: u32,
    /// Exponent of the smallest normal number.
    least: i32,
    infinity: u32,
    nan: u32,
    sign: u32,
}

pub(crate) const SINGLE: Format =
    Format { precision: 24, least: -126, infinity: 0x7f80_0000, nan: NAN32, sign: 1 << 31 };
pub(crate) const HALF: Format =
    Format { precision: 11, least: -14, infinity: 0x7c00, nan: NAN16, sign: 1 << 15 };
/// 8-bit floats. E4M3 has no infinity: what would be it is the NaN.
pub(crate) const E4M3: Format =
    Format { precision: 4, least: -6, infinity: 0x7f, nan: 0x7f, sign: 0x80 };
pub(crate) const E5M2: Format =
    Format { precision: 3, least: -14, infinity: 0x7c, nan: 0x7f, sign: 0x80 };
pub(crate) const BRAIN: Format =
    Format { precision: 8, least: -126, infinity: 0x7f80, nan: NAN16, sign: 1 << 15 };

/// Rounds an f64 (exact, or rounded to odd) to a narrower format.
pub(crate) fn narrow(value: f64, format: Format, mode: Rounding) -> u32 {
    if value.is_nan() {
        return format.nan;
    }
    let sign = if value.is_sign_negative() { format.sign } else { 0 };
    if value.is_infinite() {
        return sign | format.infinity;
    }
    let bits = value.to_bits() & !(1 << 63);
    if bits == 0 {
        return sign;
    }
    let (mantissa, exponent) = if bits >> 52 == 0 {
        (bits, -1022)
    } else {
        (bits & ((1 << 52) - 1) | 1 << 52, (bits >> 52) as i32 - 1023)
    };
    let shown = exponent.max(format.least);
    let drop = (52 - (format.precision as i32 - 1) + (shown - exponent)).min(60) as u32;
    let kept = mantissa >> drop;
    let rest = mantissa & ((1 << drop) - 1);
    let half = 1u64 << (drop - 1);
    let up = match mode {
        Rounding::Nearest => rest > half || (rest == half && kept & 1 == 1),
        Rounding::Zero => false,
        Rounding::Down => rest != 0 && sign != 0,
        Rounding::Up => rest != 0 && sign == 0,
    };
    let biased = (shown - format.least) as u64;
    let result = (biased << (format.precision - 1)) + kept + u64::from(up);
    if result >= u64::from(format.infinity) {
        let to_infinity = match mode {
            Rounding::Nearest => true,
            Rounding::Zero => false,
            Rounding::Down => sign != 0,
            Rounding::Up => sign == 0,
        };
        return sign | if to_infinity { format.infinity } else { format.infinity - 1 };
    }
    sign | result as u32
}

/// An 8-bit float of a number, `.satfinite`: beyond the greatest finite one it is that one.
pub(crate) fn to_eighth(value: f64, format: Format) -> u32 {
    let bits = narrow(value, format, Rounding::Nearest);
    if !value.is_nan() && bits & 0x7f >= format.infinity {
        return bits & 0x80 | (format.infinity - 1);
    }
    bits
}

/// The number of an 8-bit float.
pub(crate) fn from_e4m3(bits: u32) -> f32 {
    let (exponent, mantissa) = (bits >> 3 & 0xf, (bits & 7) as f32);
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 120) << 23),
    };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The number of an 8-bit float: the upper half of an f16.
pub(crate) fn from_e5m2(bits: u32) -> f32 {
    half_to_single((bits & 0xff) << 8)
}

/// f64 of an integer magnitude, rounded to odd.
pub(crate) fn integer_to_odd(magnitude: u64, negative: bool) -> f64 {
    let spare = 64 - magnitude.leading_zeros();
    let value = if spare <= 53 {
        magnitude as f64
    } else {
        let drop = spare - 53;
        let sticky = u64::from(magnitude & ((1 << drop) - 1) != 0);
        ((magnitude >> drop) | sticky) as f64 * (1u64 << drop) as f64
    };
    if negative { -value } else { value }
}

/// Integer to f64 in a given mode.
pub(crate) fn integer_to_double(magnitude: u64, negative: bool, mode: Rounding) -> f64 {
    let nearest = magnitude as f64;
    let below = if (nearest as u128) > u128::from(magnitude) {
        f64::from_bits(nearest.to_bits() - 1)
    } else {
        nearest
    };
    let exact = below as u128 == u128::from(magnitude);
    let above = if exact { below } else { f64::from_bits(below.to_bits() + 1) };
    let value = match (mode, negative) {
        (Rounding::Nearest, _) => nearest,
        (Rounding::Zero, _) | (Rounding::Down, false) | (Rounding::Up, true) => below,
        _ => above,
    };
    if negative { -value } else { value }
}

#[inline(always)]
pub(crate) fn half_to_single(h: u32) -> f32 {
    let sign = (h & 0x8000) << 16;
    let rest = h & 0x7fff;
    // Scaling by 2^112 moves the exponent and normalises subnormals, exactly.
    let scaled = (f(rest << 13) * f(0x7780_0000)).to_bits();
    let value = if rest >= 0x7c00 { 0x7f80_0000 | rest << 13 } else { scaled };
    f(value | sign)
}

/// f32 to f16, nearest even.
#[inline(always)]
pub(crate) fn single_to_half(value: f32) -> u32 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let rest = bits & 0x7fff_ffff;
    // Subnormal halves: adding 0.5 makes the f32 adder round at the right bit.
    let small = (f(rest) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let normal = rest.wrapping_add(0xc800_0fff).wrapping_add((rest >> 13) & 1) >> 13;
    let infinite = if rest > 0x7f80_0000 { 0x7fff } else { 0x7c00 };
    let finite = if rest < 0x3880_0000 { small } else { normal };
    if rest > 0x7f80_0000 {
        NAN16
    } else {
        sign | if rest >= 0x4780_0000 { infinite } else { finite }
    }
}

#[inline(always)]
pub(crate) fn brain_to_single(bits: u32) -> f32 {
    f(bits << 16)
}

/// f32 to bf16, nearest even.
#[inline(always)]
pub(crate) fn single_to_brain(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { NAN16 } else { rounded }
}

/// f16 fused multiply-add: the product of two halves is exact in f32, and the f64 sum is rounded
/// to odd before the one rounding that counts.
#[inline(always)]
pub(crate) fn half_fma(x: u32, y: u32, z: u32) -> u32 {
    let product = half_to_single(x) * half_to_single(y);
    let z = half_to_single(z);
    let sum = product + z;
    let back = sum - product;
    let error = (product - (sum - back)) + (z - back);
    let bits = sum.to_bits();
    let odd = if error == 0.0 || !sum.is_finite() || error.is_nan() || bits & 1 == 1 {
        sum
    } else if (error > 0.0) == (sum > 0.0) {
        f(bits + 1)
    } else {
        f(bits - 1)
    };
    single_to_half(odd)
}

pub(crate) fn brain_fma(x: u32, y: u32, z: u32) -> u32 {
    let product = f64::from(brain_to_single(x)) * f64::from(brain_to_single(y));
    narrow(add_to_odd(product, f64::from(brain_to_single(z))), BRAIN, Rounding::Nearest)
}

/// min or max as PTX has it: -0 below +0, a NaN loses to a number unless `propagate`.
#[inline(always)]
pub(crate) fn least(x: u32, y: u32, propagate: bool) -> u32 {
    pick(x, y, propagate, |p, q| if p < q { p } else { q })
}

#[inline(always)]
pub(crate) fn greatest(x: u32, y: u32, propagate: bool) -> u32 {
    pick(x, y, propagate, |p, q| if p > q { p } else { q })
}

#[inline(always)]
fn pick(x: u32, y: u32, propagate: bool, choose: impl Fn(i32, i32) -> i32) -> u32 {
    // Flipping the magnitude bits of negative numbers orders f32 as integers, zeros included.
    let order = |v: u32| (v ^ (((v as i32) >> 31) as u32 >> 1)) as i32;
    let chosen = choose(order(x), order(y)) as u32;
    let number = chosen ^ (((chosen as i32) >> 31) as u32 >> 1);
    let (nan_x, nan_y) = (f(x).is_nan(), f(y).is_nan());
    let one = if nan_x { y } else { x };
    let lost = if propagate || (nan_x && nan_y) { NAN32 } else { one };
    if nan_x || nan_y { lost } else { number }
}

/// The gross approximations in f64 that divisions and roots begin with: the upper words of operand
/// and result count, subnormals are flushed, a NaN is 0x7fffffff_00000000.
pub(crate) fn gross(bits: u64, function: impl Fn(f64) -> f64) -> u64 {
    let flush = |bits: u64| if bits >> 52 & 0x7ff == 0 { bits & 1 << 63 } else { bits };
    if d(bits).is_nan() {
        return 0x7fff_ffff_0000_0000;
    }
    let value = function(d(flush(bits & !0xffff_ffff)));
    if value.is_nan() {
        return 0x7fff_ffff_0000_0000;
    }
    flush(value.to_bits()) & !0xffff_ffff
}

/// 2^x, within 1 unit in the last place; subnormal results are kept.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let bounded = if x < -160.0 { -160.0 } else { x };
    let bounded = if bounded > 160.0 { 160.0 } else { bounded };
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let rounded = bounded + ROUND;
    let whole = rounded - ROUND;
    let r = bounded - whole;
    // Minimax on [-1/2, 1/2] with the constant term fixed at 1.
    let mut p = 1.535_336_2e-4_f32;
    p = p * r + 1.339_887_4e-3;
    p = p * r + 9.618_437e-3;
    p = p * r + 5.550_332_6e-2;
    p = p * r + 2.402_264_5e-1;
    p = p * r + 6.931_472e-1;
    p = p * r + 1.0;
    // Two factors, so that neither leaves the range of normal numbers.
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let first = n >> 1;
    let second = n - first;
    let scale = |e: i32| f((e.wrapping_add(127) as u32) << 23);
    let result = p * scale(first) * scale(second);
    if x.is_nan() { f(NAN32) } else { result }
}

/// log2 in f64, for f32 results.
pub(crate) fn log2(x: f32) -> f32 {
    if x.is_nan() || x < 0.0 {
        return f(NAN32);
    }
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x == f32::INFINITY {
        return x;
    }
    let bits = f64::from(x).to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut mantissa = d(bits & ((1 << 52) - 1) | 1023 << 52);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // atanh series: log(m) = 2 (s + s^3/3 + ...), |s| < 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let q = s * s;
    let mut sum = 0.0;
    for k in (0..=10).rev() {
        sum = sum * q + 1.0 / f64::from(2 * k + 1);
    }
    (2.0 * s * sum * std::f64::consts::LOG2_E + exponent as f64) as f32
}

/// sin and cos in f64. Arguments beyond 2^30 lose accuracy in the reduction, as they do on
/// hardware.
fn sine_of_turns(turns: f64) -> f64 {
    // turns in [-1/2, 1/2] after reduction; fold to [-1/4, 1/4].
    let whole = (turns + 6_755_399_441_055_744.0) - 6_755_399_441_055_744.0;
    let mut t = turns - whole;
    if t > 0.25 {
        t = 0.5 - t;
    } else if t < -0.25 {
        t = -0.5 - t;
    }
    let x = t * std::f64::consts::TAU;
    let q = x * x;
    let mut term = 1.0;
    let mut sum = 1.0;
    for k in 1..=10 {
        term *= -q / f64::from((2 * k) * (2 * k + 1));
        sum += term;
    }
    x * sum
}

pub(crate) fn sine(x: f32) -> f32 {
    if !x.is_finite() {
        return f(NAN32);
    }
    sine_of_turns(f64::from(x) / std::f64::consts::TAU) as f32
}

pub(crate) fn cosine(x: f32) -> f32 {
    if !x.is_finite() {
        return f(NAN32);
    }
    sine_of_turns(f64::from(x) / std::f64::consts::TAU + 0.25) as f32
}

pub(crate) fn tangent_hyperbolic(x: f32) -> f32 {
    if x.is_nan() {
        return f(NAN32);
    }
    let bounded = f64::from(x).clamp(-20.0, 20.0);
    if bounded.abs() < 0.02 {
        let q = bounded * bounded;
        return (bounded * (1.0 - q / 3.0 + q * q * (2.0 / 15.0))) as f32;
    }
    // e^(2x) = 2^n * e^r, by Taylor series on |r| < 0.35.
    let y = 2.0 * bounded;
    let n = (y * std::f64::consts::LOG2_E + 6_755_399_441_055_744.0) - 6_755_399_441_055_744.0;
    let r = y - n * std::f64::consts::LN_2;
    let (mut term, mut sum) = (1.0, 1.0);
    for k in 1..=14 {
        term *= r / f64::from(k);
        sum += term;
    }
    let e = sum * d(((n as i64 + 1023) as u64) << 52);
    ((e - 1.0) / (e + 1.0)) as f32
}

/// Rounds to an integer value.
#[inline(always)]
pub(crate) fn to_whole(value: f64, mode: Rounding) -> f64 {
    match mode {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}
