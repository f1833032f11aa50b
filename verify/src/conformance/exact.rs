//! Numbers as they are: an integer times a power of two, from which a result is rounded once, in any
//! mode, to any format. The models of floating-point instructions are written in this arithmetic,
//! which has nothing in common with the emulator's. Some lines long, as formats and numbers round alike.

/// A binary floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the whole number.
    pub bits: u32,
    /// Bits of the significand, the implicit one included.
    pub precision: u32,
    /// Exponent of the smallest normal number.
    pub least: i32,
    /// Whether there are infinities (E4M3 has none, and one NaN per sign).
    pub infinite: bool,
}

/// IEEE binary64.
pub const F64: Format = Format { bits: 64, precision: 53, least: -1022, infinite: true };
/// IEEE binary32.
pub const F32: Format = Format { bits: 32, precision: 24, least: -126, infinite: true };
/// IEEE binary16.
pub const F16: Format = Format { bits: 16, precision: 11, least: -14, infinite: true };
/// The upper half of a binary32.
pub const BF16: Format = Format { bits: 16, precision: 8, least: -126, infinite: true };
/// 8-bit floats of four and five exponent bits.
pub const E4M3: Format = Format { bits: 8, precision: 4, least: -6, infinite: false };
/// 8-bit floats of five exponent bits.
pub const E5M2: Format = Format { bits: 8, precision: 3, least: -14, infinite: true };
/// A binary32 whose low 13 bits are zero.
pub const TF32: Format = Format { bits: 19, precision: 11, least: -126, infinite: true };

/// How a result between two numbers of a format is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero.
    Away,
    /// Toward zero.
    Zero,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
}

impl Mode {
    /// What rounding makes of a magnitude whose last `digits`, at least one, are dropped.
    fn drop(self, negative: bool, magnitude: u128, digits: i32) -> u128 {
        let (kept, half, rest) = if digits > 127 {
            (0, false, magnitude != 0)
        } else {
            let below = magnitude & ((1 << digits) - 1);
            let half = 1u128 << (digits - 1);
            (magnitude >> digits, below & half != 0, below & (half - 1) != 0)
        };
        let up = match self {
            Mode::Nearest => half && (rest || kept & 1 == 1),
            Mode::Away => half,
            Mode::Zero => false,
            Mode::Down => negative && (half || rest),
            Mode::Up => !negative && (half || rest),
        };
        kept + u128::from(up)
    }
}

/// A number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Not a number.
    Nan,
    /// Infinity, negative or not.
    Infinite(bool),
    /// `(-1)^negative * magnitude * 2^exponent`; zero has a sign too. The last bit of a magnitude
    /// above 2^120 may stand for everything below it.
    Finite {
        /// The sign.
        negative: bool,
        /// The digits.
        magnitude: u128,
        /// The power of two of the last digit.
        exponent: i32,
    },
}

use Number::{Finite, Infinite, Nan};

impl Format {
    fn fraction(self) -> u32 {
        self.precision - 1
    }

    fn top(self) -> u64 {
        (1 << (self.bits - 1 - self.fraction())) - 1
    }

    /// The sign bit.
    pub fn sign(self) -> u64 {
        1 << (self.bits - 1)
    }

    /// The bits of plus infinity.
    pub fn infinity(self) -> u64 {
        self.top() << self.fraction()
    }

    /// The NaN that single and half precision results are: all bits but the sign.
    pub fn canonical_nan(self) -> u64 {
        self.sign() - 1
    }

    /// The bits of the greatest finite number.
    pub fn greatest(self) -> u64 {
        if self.infinite { self.infinity() - 1 } else { self.canonical_nan() - 1 }
    }

    /// Whether the bits are a NaN.
    pub fn is_nan(self, bits: u64) -> bool {
        self.number(bits) == Nan
    }

    /// Whether the bits are a subnormal.
    pub fn is_subnormal(self, bits: u64) -> bool {
        bits >> self.fraction() & self.top() == 0 && bits & ((1 << self.fraction()) - 1) != 0
    }

    /// A subnormal as a zero of its sign, anything else as it is.
    pub fn flushed(self, bits: u64) -> u64 {
        if self.is_subnormal(bits) { bits & self.sign() } else { bits }
    }

    /// The number that bits stand for.
    pub fn number(self, bits: u64) -> Number {
        let negative = bits & self.sign() != 0;
        let fraction = bits & ((1 << self.fraction()) - 1);
        let field = bits >> self.fraction() & self.top();
        if self.infinite && field == self.top() {
            return if fraction == 0 { Infinite(negative) } else { Nan };
        }
        if !self.infinite && bits & self.canonical_nan() == self.canonical_nan() {
            return Nan;
        }
        let implicit = if field == 0 { 0 } else { 1 << self.fraction() };
        let exponent = self.least - self.fraction() as i32 + field.max(1) as i32 - 1;
        Finite { negative, magnitude: u128::from(fraction | implicit), exponent }
    }

    /// The bits of a number rounded to this format; NaN is the canonical one.
    pub fn round(self, number: Number, mode: Mode) -> u64 {
        let (negative, magnitude, exponent) = match number {
            Nan => return self.canonical_nan(),
            Infinite(negative) if self.infinite => return self.signed(negative, self.infinity()),
            Infinite(negative) => return self.signed(negative, self.canonical_nan()),
            Finite { negative, magnitude, exponent } => (negative, magnitude, exponent),
        };
        if magnitude == 0 {
            return self.signed(negative, 0);
        }
        let length = 128 - magnitude.leading_zeros() as i32;
        // The exponent of the last digit that the format keeps here.
        let last =
            (exponent + length - self.precision as i32).max(self.least - self.fraction() as i32);
        let drop = last - exponent;
        let kept = match drop {
            ..=0 => magnitude << -drop,
            _ => mode.drop(negative, magnitude, drop),
        } as u64;
        // The field counts from the least exponent; a carry into it, or out of the subnormals, is
        // what adding the digits does.
        let above = (last + self.fraction() as i32 - self.least) as u64;
        let bits = (above << self.fraction()) + kept;
        if bits > self.greatest() {
            let away = match mode {
                Mode::Nearest | Mode::Away => true,
                Mode::Zero => false,
                Mode::Down => negative,
                Mode::Up => !negative,
            };
            let limit = if !away {
                self.greatest()
            } else if self.infinite {
                self.infinity()
            } else {
                self.canonical_nan()
            };
            return self.signed(negative, limit);
        }
        self.signed(negative, bits)
    }

    fn signed(self, negative: bool, bits: u64) -> u64 {
        if negative { bits | self.sign() } else { bits }
    }

    /// The value as an f64; exact for every format.
    pub fn value(self, bits: u64) -> f64 {
        f64::from_bits(F64.round(self.number(bits), Mode::Nearest))
    }

    /// How far apart two results are, in steps between neighbouring numbers of the format; `None`
    /// where exactly one is a NaN.
    pub fn steps(self, one: u64, other: u64) -> Option<u64> {
        match (self.is_nan(one), self.is_nan(other)) {
            (true, true) => return Some(0),
            (false, false) => {}
            _ => return None,
        }
        let place = |bits: u64| {
            let magnitude = (bits & (self.sign() - 1)) as i128;
            if bits & self.sign() != 0 { -magnitude } else { magnitude }
        };
        u64::try_from((place(one) - place(other)).unsigned_abs()).ok()
    }
}

impl Number {
    /// An integer.
    pub fn integer(value: i128) -> Self {
        Finite { negative: value < 0, magnitude: value.unsigned_abs(), exponent: 0 }
    }

    /// Whether the sign is minus; false for NaN.
    pub fn is_negative(self) -> bool {
        matches!(self, Infinite(true) | Finite { negative: true, .. })
    }

    /// The number with the other sign.
    pub fn negated(self) -> Self {
        match self {
            Nan => Nan,
            Infinite(negative) => Infinite(!negative),
            Finite { negative, magnitude, exponent } => {
                Finite { negative: !negative, magnitude, exponent }
            }
        }
    }

    /// Whether the number is a zero of either sign.
    pub fn is_zero(self) -> bool {
        matches!(self, Finite { magnitude: 0, .. })
    }

    /// The exact product; factors have at most 60 digits.
    pub fn times(self, other: Self) -> Self {
        let negative = self.is_negative() != other.is_negative();
        match (self, other) {
            (Nan, _) | (_, Nan) => Nan,
            (Infinite(_), x) | (x, Infinite(_)) => {
                if x.is_zero() {
                    Nan
                } else {
                    Infinite(negative)
                }
            }
            (
                Finite { magnitude: a, exponent: p, .. },
                Finite { magnitude: b, exponent: q, .. },
            ) => Finite { negative, magnitude: a * b, exponent: p + q },
        }
    }

    /// The sum, for rounding in `mode` (which decides the sign of an exact zero). Digits so far
    /// below the others that only their presence counts become one last digit.
    pub fn plus(self, other: Self, mode: Mode) -> Self {
        match (self, other) {
            (Nan, _) | (_, Nan) => Nan,
            (Infinite(a), Infinite(b)) => {
                if a == b {
                    self
                } else {
                    Nan
                }
            }
            (Infinite(_), _) => self,
            (_, Infinite(_)) => other,
            (
                Finite { negative: a, magnitude: m, exponent: p },
                Finite { negative: b, magnitude: n, exponent: q },
            ) => {
                if m == 0 && n == 0 {
                    let negative = if a == b { a } else { mode == Mode::Down };
                    return Finite { negative, magnitude: 0, exponent: 0 };
                }
                if m == 0 {
                    return other;
                }
                if n == 0 {
                    return self;
                }
                let top = |magnitude: u128, exponent: i32| {
                    exponent + 128 - magnitude.leading_zeros() as i32
                };
                // The greater one ends at digit 125, which leaves room for a carry.
                let exponent = top(m, p).max(top(n, q)) - 125;
                let m = placed(m, p - exponent) as i128;
                let n = placed(n, q - exponent) as i128;
                let sum = if a { -m } else { m } + if b { -n } else { n };
                let negative = if sum == 0 { mode == Mode::Down } else { sum < 0 };
                Finite { negative, magnitude: sum.unsigned_abs(), exponent }
            }
        }
    }

    /// The quotient to 60 digits more than any format has, the last one standing for the rest.
    pub fn over(self, other: Self) -> Self {
        let negative = self.is_negative() != other.is_negative();
        match (self, other) {
            (Nan, _) | (_, Nan) | (Infinite(_), Infinite(_)) => Nan,
            (Infinite(_), _) => Infinite(negative),
            (_, Infinite(_)) => Finite { negative, magnitude: 0, exponent: 0 },
            (
                Finite { magnitude: a, exponent: p, .. },
                Finite { magnitude: b, exponent: q, .. },
            ) => match (a, b) {
                (0, 0) => Nan,
                (_, 0) => Infinite(negative),
                (0, _) => Finite { negative, magnitude: 0, exponent: 0 },
                _ => {
                    let shift = a.leading_zeros();
                    let a = a << shift;
                    let quotient = a / b;
                    let sticky = u128::from(!a.is_multiple_of(b));
                    // One digit more, so that the sticky one never covers a digit that counts.
                    Finite {
                        negative,
                        magnitude: (quotient >> 2) << 1 | sticky | u128::from(quotient & 3 != 0),
                        exponent: p - shift as i32 - q + 1,
                    }
                }
            },
        }
    }

    /// The square root to 60 digits, the last one standing for the rest.
    pub fn root(self) -> Self {
        match self {
            Nan | Infinite(true) => Nan,
            Infinite(false) => self,
            Finite { magnitude: 0, .. } => self,
            Finite { negative: true, .. } => Nan,
            Finite { magnitude, exponent, .. } => {
                let shift = magnitude.leading_zeros() as i32 - 2;
                let shift = shift - (exponent - shift).rem_euclid(2);
                let scaled = magnitude << shift;
                let root = scaled.isqrt();
                let sticky = u128::from(root * root != scaled);
                Finite {
                    negative: false,
                    magnitude: root << 1 | sticky,
                    exponent: (exponent - shift) / 2 - 1,
                }
            }
        }
    }

    /// The nearest integer in a mode, with the sign of the number also where it is zero. Beyond 2^120
    /// it is some integer of that size.
    pub fn whole(self, mode: Mode) -> Self {
        let Finite { negative, magnitude, exponent } = self else { return self };
        if exponent >= 0 {
            return self;
        }
        let drop = -exponent;
        Finite { negative, magnitude: mode.drop(negative, magnitude, drop), exponent: 0 }
    }

    /// An integer's value, held to `least..=most`; `None` for NaN.
    pub fn clamped(self, least: i128, most: i128) -> Option<i128> {
        match self {
            Nan => None,
            Infinite(negative) => Some(if negative { least } else { most }),
            Finite { negative, magnitude, exponent } => {
                let length = 128 - magnitude.leading_zeros() as i32;
                if magnitude != 0 && length + exponent > 120 {
                    return Some(if negative { least } else { most });
                }
                let value = (magnitude << exponent.clamp(0, 120)) as i128;
                Some(if negative { -value } else { value }.clamp(least, most))
            }
        }
    }
}

/// Digits moved up, or down with what falls off kept as the last digit.
fn placed(magnitude: u128, up: i32) -> u128 {
    if up >= 0 {
        return magnitude << up;
    }
    let down = -up;
    if down > 127 {
        return u128::from(magnitude != 0);
    }
    magnitude >> down | u128::from(magnitude & ((1 << down) - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CASES: [u32; 14] = [
        0,
        1,
        0x8000_0000,
        0x007f_ffff,
        0x0080_0000,
        0x3f80_0000,
        0x3f80_0001,
        0xbf80_0000,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x3400_0000,
        0x4b7f_ffff,
    ];

    fn single() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), prop::sample::select(CASES.to_vec()), 0x3e00_0000..0x4100_0000u32]
    }

    fn same32(mine: u64, host: f32) -> bool {
        F32.is_nan(mine) && host.is_nan() || mine == u64::from(host.to_bits())
    }

    fn same64(mine: u64, host: f64) -> bool {
        F64.is_nan(mine) && host.is_nan() || mine == host.to_bits()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// The processor's own arithmetic rounds to nearest as this does.
        #[test]
        fn nearest_is_what_the_host_computes(a in single(), b in single(), c in single()) {
            let (x, y, z) = (f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
            let [p, q, r] = [a, b, c].map(|bits| F32.number(u64::from(bits)));
            let round = |n| F32.round(n, Mode::Nearest);
            prop_assert!(same32(round(p.plus(q, Mode::Nearest)), x + y));
            prop_assert!(same32(round(p.times(q)), x * y));
            prop_assert!(same32(round(p.over(q)), x / y));
            prop_assert!(same32(round(p.root()), x.sqrt()));
            prop_assert!(same32(round(p.times(q).plus(r, Mode::Nearest)), x.mul_add(y, z)));
            prop_assert!(same32(round(p.whole(Mode::Nearest)), x.round_ties_even()));
            prop_assert!(same32(round(p.whole(Mode::Zero)), x.trunc()));
            prop_assert!(same32(round(p.whole(Mode::Down)), x.floor()));
            prop_assert!(same32(round(p.whole(Mode::Up)), x.ceil()));
            let bits = F16.round(p, Mode::Nearest);
            let half = half::f16::from_f32(x);
            prop_assert!(F16.is_nan(bits) && x.is_nan() || bits == u64::from(half.to_bits()));
            let bits = BF16.round(p, Mode::Nearest);
            let brain = half::bf16::from_f32(x);
            prop_assert!(BF16.is_nan(bits) && x.is_nan() || bits == u64::from(brain.to_bits()));
        }

        #[test]
        fn doubles_too(a in any::<u64>(), b in any::<u64>(), c in any::<u64>(), close in any::<bool>()) {
            // Exponents near each other, where sums cancel.
            let near = |bits: u64| if close { bits & 0x803f_ffff_ffff_ffff | 0x3fc0_0000_0000_0000 } else { bits };
            let [a, b, c] = [a, b, c].map(near);
            let (x, y, z) = (f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
            let [p, q, r] = [a, b, c].map(|bits| F64.number(bits));
            let round = |n| F64.round(n, Mode::Nearest);
            prop_assert!(same64(round(p.plus(q, Mode::Nearest)), x + y));
            prop_assert!(same64(round(p.times(q)), x * y));
            prop_assert!(same64(round(p.over(q)), x / y));
            prop_assert!(same64(round(p.root()), x.sqrt()));
            prop_assert!(same64(round(p.times(q).plus(r, Mode::Nearest)), x.mul_add(y, z)));
            prop_assert!(same64(round(p.times(q).plus(p.times(q).negated(), Mode::Nearest)), x * y - x * y)
                || !(x * y).is_finite());
        }

        /// Directed results are the neighbours that enclose the exact one.
        #[test]
        fn directed_results_enclose(a in single(), b in single()) {
            let [p, q] = [a, b].map(|bits| F32.number(u64::from(bits)));
            let exact = p.over(q);
            if !matches!(exact, Number::Finite { .. }) {
                return Ok(());
            }
            let [down, up, zero, near] = [Mode::Down, Mode::Up, Mode::Zero, Mode::Nearest]
                .map(|mode| F32.round(exact, mode));
            prop_assert!(F32.steps(down, up).is_some_and(|steps| steps <= 1));
            prop_assert!(near == down || near == up);
            let inward = if exact.is_negative() { up } else { down };
            prop_assert_eq!(zero, inward);
        }
    }

    #[test]
    fn overflow_and_the_missing_infinity() {
        let big = Number::integer(1 << 100);
        assert_eq!(F16.round(big, Mode::Nearest), 0x7c00);
        assert_eq!(F16.round(big, Mode::Zero), 0x7bff);
        assert_eq!(F16.round(big.negated(), Mode::Up), 0xfbff);
        assert_eq!(E4M3.round(big, Mode::Nearest), 0x7f);
        assert_eq!(E4M3.round(big, Mode::Zero), 0x7e);
        assert_eq!(E4M3.value(0x7e), 448.0);
        assert_eq!(E5M2.value(0x7b), 57344.0);
        assert_eq!(TF32.round(F32.number(0x3f80_1000), Mode::Away), 0x3f80_2000 >> 13);
    }
}
