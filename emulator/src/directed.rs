//! f64 arithmetic in directed roundings, by integers: an exact result as digits and a power of two,
//! the last digit standing for all below it, rounded once. Subnormal results and operands need no
//! case of their own, which is where corrections of a rounded result go wrong.

use crate::math::Rounding;

/// `(-1)^negative * magnitude * 2^exponent`.
#[derive(Clone, Copy)]
struct Digits {
    negative: bool,
    magnitude: u128,
    exponent: i32,
}

impl Digits {
    /// Of a finite number; 53 digits unless it is zero.
    fn of(value: f64) -> Self {
        let bits = value.to_bits();
        let field = (bits >> 52 & 0x7ff) as i32;
        let fraction = u128::from(bits & ((1 << 52) - 1));
        let (magnitude, exponent) =
            if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
        // Normalised, so that quotients have all digits.
        let up = if magnitude == 0 { 0 } else { magnitude.leading_zeros() - 75 };
        Self {
            negative: value.is_sign_negative(),
            magnitude: magnitude << up,
            exponent: exponent - up as i32,
        }
    }

    fn times(self, other: Self) -> Self {
        Self {
            negative: self.negative != other.negative,
            magnitude: self.magnitude * other.magnitude,
            exponent: self.exponent + other.exponent,
        }
    }

    /// The sum of two that are not both zero; `None` if it is zero.
    fn plus(self, other: Self) -> Option<Self> {
        if self.magnitude == 0 || other.magnitude == 0 {
            return Some(if self.magnitude == 0 { other } else { self });
        }
        let top = |d: Self| d.exponent - d.magnitude.leading_zeros() as i32;
        // The greater one's first digit goes to bit 124: there is room for a carry and a sign.
        let exponent = top(self).max(top(other)) + 3;
        let at = |d: Self| {
            let by = d.exponent - exponent;
            let kept = match by {
                0.. => d.magnitude << by,
                -127..0 => {
                    let lost = d.magnitude & ((1 << -by) - 1) != 0;
                    d.magnitude >> -by | u128::from(lost)
                }
                _ => 1,
            } as i128;
            if d.negative { -kept } else { kept }
        };
        let sum = at(self) + at(other);
        (sum != 0).then_some(Self { negative: sum < 0, magnitude: sum.unsigned_abs(), exponent })
    }

    fn over(self, other: Self) -> Self {
        let numerator = self.magnitude << 70;
        let quotient = numerator / other.magnitude;
        let rest = !numerator.is_multiple_of(other.magnitude);
        Self {
            negative: self.negative != other.negative,
            magnitude: quotient << 1 | u128::from(rest),
            exponent: self.exponent - other.exponent - 71,
        }
    }

    fn root(self) -> Self {
        let odd = self.exponent & 1;
        let scaled = self.magnitude << (70 + odd);
        let root = scaled.isqrt();
        Self {
            negative: false,
            magnitude: root << 1 | u128::from(root * root != scaled),
            exponent: (self.exponent - 70 - odd) / 2 - 1,
        }
    }

    fn rounded(self, mode: Rounding) -> f64 {
        let signed = |value: f64| if self.negative { -value } else { value };
        if self.magnitude == 0 {
            return signed(0.0);
        }
        let length = 128 - self.magnitude.leading_zeros() as i32;
        let last = (self.exponent + length - 53).max(-1074);
        let drop = last - self.exponent;
        let (kept, lost) = match drop {
            ..=0 => (self.magnitude << -drop, 0),
            1..=127 => (self.magnitude >> drop, self.magnitude & ((1 << drop) - 1)),
            _ => (0, self.magnitude),
        };
        let up = match mode {
            Rounding::Nearest => {
                let half = if drop > 127 { u128::MAX } else { 1 << (drop.max(1) - 1) };
                lost > half || (drop > 0 && lost == half && kept & 1 == 1)
            }
            Rounding::Zero => false,
            Rounding::Down => lost != 0 && self.negative,
            Rounding::Up => lost != 0 && !self.negative,
        };
        let bits = (((last + 1074) as u64) << 52) + kept as u64 + u64::from(up);
        if bits < 0x7ff0_0000_0000_0000 {
            return signed(f64::from_bits(bits));
        }
        let away = match mode {
            Rounding::Nearest => true,
            Rounding::Zero => false,
            Rounding::Down => self.negative,
            Rounding::Up => !self.negative,
        };
        signed(if away { f64::INFINITY } else { f64::MAX })
    }
}

/// The zero that a sum of `x` and `y` is.
fn zero(x: bool, y: bool, mode: Rounding) -> f64 {
    let negative = if x == y { x } else { mode == Rounding::Down };
    if negative { -0.0 } else { 0.0 }
}

/// x + y.
pub(crate) fn add(x: f64, y: f64, mode: Rounding) -> f64 {
    if !(x.is_finite() && y.is_finite()) {
        return x + y;
    }
    if x == 0.0 && y == 0.0 {
        return zero(x.is_sign_negative(), y.is_sign_negative(), mode);
    }
    Digits::of(x).plus(Digits::of(y)).map_or(zero(true, false, mode), |sum| sum.rounded(mode))
}

/// x * y.
pub(crate) fn multiply(x: f64, y: f64, mode: Rounding) -> f64 {
    if !(x.is_finite() && y.is_finite()) {
        return x * y;
    }
    Digits::of(x).times(Digits::of(y)).rounded(mode)
}

/// x / y.
pub(crate) fn divide(x: f64, y: f64, mode: Rounding) -> f64 {
    if !(x.is_finite() && y.is_finite()) || x == 0.0 || y == 0.0 {
        return x / y;
    }
    Digits::of(x).over(Digits::of(y)).rounded(mode)
}

/// x * y + z.
pub(crate) fn multiply_add(x: f64, y: f64, z: f64, mode: Rounding) -> f64 {
    if !(x.is_finite() && y.is_finite() && z.is_finite()) {
        // Without a rounding: infinite or not a number, also where x * y alone would overflow.
        return if z.is_finite() || !(x.is_finite() && y.is_finite()) { x * y + z } else { z };
    }
    let product = Digits::of(x).times(Digits::of(y));
    if product.magnitude == 0 && z == 0.0 {
        return zero(product.negative, z.is_sign_negative(), mode);
    }
    product.plus(Digits::of(z)).map_or(zero(true, false, mode), |sum| sum.rounded(mode))
}

/// The square root of x.
pub(crate) fn root(x: f64, mode: Rounding) -> f64 {
    if !x.is_finite() || x <= 0.0 {
        return x.sqrt();
    }
    Digits::of(x).root().rounded(mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// To nearest it is the processor's own arithmetic; the directed results enclose that.
        #[test]
        fn nearest_is_what_the_processor_computes(
            bits in any::<[u64; 3]>(),
            shape in 0..4u32,
        ) {
            let [x, y, z] = bits.map(|bits| f64::from_bits(match shape {
                0 => bits,
                1 => bits & 0x803f_ffff_ffff_ffff | 0x3fc0_0000_0000_0000,
                // Subnormals and what is near them.
                2 => bits & 0x803f_ffff_ffff_ffff,
                _ => bits & 0xbfff_0000_0000_0003,
            }));
            type Computed = Box<dyn Fn(Rounding) -> f64>;
            let all: [(Computed, f64); 5] = [
                (Box::new(move |m| add(x, y, m)), x + y),
                (Box::new(move |m| multiply(x, y, m)), x * y),
                (Box::new(move |m| divide(x, y, m)), x / y),
                (Box::new(move |m| multiply_add(x, y, z, m)), x.mul_add(y, z)),
                (Box::new(move |m| root(x, m)), x.sqrt()),
            ];
            for (at, (mine, host)) in all.iter().enumerate() {
                let near = mine(Rounding::Nearest);
                prop_assert!(near.to_bits() == host.to_bits() || near.is_nan() && host.is_nan(),
                    "{at}: {x:e} {y:e} {z:e}: {near:e}, not {host:e}");
                if near.is_nan() {
                    continue;
                }
                let (down, up) = (mine(Rounding::Down), mine(Rounding::Up));
                prop_assert!(down <= near && near <= up);
                prop_assert!(down == up || down.next_up() == up);
            }
        }
    }
}
