//! How tensor cores add. The PTX manual leaves order and rounding of the sums of `mma` and `wgmma`
//! open; hardware takes a group of products and the accumulator at once: it aligns all of them to the
//! largest exponent, cuts each off some bits below that, adds what is left exactly, and cuts the sum
//! to f32, or rounds it to f16 (Fasi et al., PeerJ Comput. Sci. 2021; the MMA-Sim project measured
//! the bits for each architecture).

use crate::math::{HALF, Rounding, SINGLE, f, narrow};
use crate::syntax::Type;

/// How sums of products of matrices are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatrixModel {
    /// Each product is added in f32, rounded to nearest, in the order of k: quick, and as accurate as
    /// a plain loop.
    #[default]
    Fast,
    /// As tensor cores of sm_80 and sm_86 add, and those of sm_89 for 8-bit floats: 24 bits below the
    /// largest exponent (13 for 8-bit floats), in two halves of k.
    Ampere,
    /// As those of sm_90 add: 25 bits below the largest exponent, all of k at once; `wgmma` of 8-bit
    /// floats keeps 13.
    Hopper,
}

impl MatrixModel {
    /// The names of the models.
    pub const NAMES: [&str; 3] = ["fast", "ampere", "hopper"];

    /// The model of a name.
    pub fn parse(name: &str) -> Option<Self> {
        let all = [Self::Fast, Self::Ampere, Self::Hopper];
        Self::NAMES.iter().position(|&known| known == name).map(|at| all[at])
    }

    /// How `mma` adds products of these types to sums in f16 (`half`) or f32; `None` for
    /// [`Self::Fast`].
    pub(crate) fn of_mma(self, types: [Type; 2], half: bool, depth: usize) -> Option<Sum> {
        let eighth = matches!(types[0], Type::E4m3 | Type::E5m2);
        let whole = match types[0] {
            Type::Tf32 => 8,
            Type::E4m3 | Type::E5m2 => 32,
            _ => 16,
        };
        let (fraction, groups) = match self {
            Self::Fast => return None,
            Self::Ampere => (if eighth { 13 } else { 24 }, if depth == whole { 2 } else { 1 }),
            Self::Hopper => (25, 1),
        };
        Some(Sum { least: types.map(least), half, fraction, groups, short: fraction == 13 })
    }

    /// The same for `wgmma`, which only Hopper has.
    pub(crate) fn of_wgmma(self, types: [Type; 2], half: bool) -> Option<Sum> {
        if self == Self::Fast {
            return None;
        }
        let fraction = if matches!(types[0], Type::E4m3 | Type::E5m2) { 13 } else { 25 };
        Some(Sum { least: types.map(least), half, fraction, groups: 1, short: fraction == 13 })
    }
}

/// Exponent of the smallest normal number of a type.
fn least(ty: Type) -> i32 {
    match ty {
        Type::F16 | Type::E5m2 => -14,
        Type::E4m3 => -6,
        _ => -126,
    }
}

/// One way to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    /// Least exponents of the types of the factors.
    least: [i32; 2],
    /// The accumulator is f16.
    half: bool,
    /// Bits that are kept below the largest exponent.
    fraction: i32,
    /// Groups that k falls into, added one after another.
    groups: usize,
    /// An f32 result keeps 13 bits of its fraction.
    short: bool,
}

/// The digits of a finite number, 23 of them behind the point, and its exponent: that of subnormals
/// is the least of the format, that of zero the least of f32.
fn digits(value: f32, least: i32) -> (i64, i32) {
    let bits = value.to_bits();
    let field = (bits >> 23 & 0xff) as i32;
    let fraction = i64::from(bits & 0x7f_ffff);
    let (mut digits, mut exponent) =
        if field == 0 { (fraction, -126) } else { (fraction | 1 << 23, field - 127) };
    if digits != 0 && exponent < least {
        digits >>= least - exponent;
        exponent = least;
    }
    (if bits >> 31 == 1 { -digits } else { digits }, exponent)
}

/// Moved down by `by` bits, cut toward zero.
fn cut(value: i64, by: i32) -> i64 {
    let magnitude = value.abs();
    let kept = match by {
        ..=0 => magnitude << -by,
        1..=62 => magnitude >> by,
        _ => 0,
    };
    if value < 0 { -kept } else { kept }
}

impl Sum {
    /// `start` plus the products of the factors, given as the f32 they are. The result is an f32, of
    /// an f16 where sums are.
    pub(crate) fn of(self, start: f32, factors: &[(f32, f32)]) -> f32 {
        let size = factors.len().div_ceil(self.groups).max(1);
        factors.chunks(size).fold(start, |sum, group| self.group(sum, group))
    }

    fn group(self, start: f32, factors: &[(f32, f32)]) -> f32 {
        let products = factors.iter().map(|&(a, b)| f64::from(a) * f64::from(b));
        let special = products.fold(f64::from(start), |sum, product| sum + product);
        if !special.is_finite() {
            return f(narrow(special, SINGLE, Rounding::Nearest));
        }
        let (start, start_exponent) = digits(start, if self.half { -14 } else { -126 });
        let product = |&(a, b): &(f32, f32)| {
            let ((a, p), (b, q)) = (digits(a, self.least[0]), digits(b, self.least[1]));
            (a * b, p + q)
        };
        let largest =
            factors.iter().map(|pair| product(pair).1).fold(start_exponent, |most, e| most.max(e));
        // In units of 2^(largest - fraction).
        let mut sum = cut(start, 23 - self.fraction + largest - start_exponent);
        for pair in factors {
            let (digits, exponent) = product(pair);
            sum += cut(digits, 46 - self.fraction + largest - exponent);
        }
        let unit = f64::from_bits(((largest - self.fraction + 1023) as u64) << 52);
        let exact = sum as f64 * unit;
        if self.half {
            let bits = narrow(exact, HALF, Rounding::Nearest);
            return crate::math::half_to_single(bits);
        }
        if exact.abs() >= 2.0 * f64::from(f(0x7f00_0000)) {
            return f32::INFINITY.copysign(exact as f32);
        }
        let bits = narrow(exact, SINGLE, Rounding::Zero);
        f(if self.short { bits & !0x3ff } else { bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TWO_M24: f32 = 1.0 / 16_777_216.0;

    fn sum(model: MatrixModel, start: f32, factors: &[(f32, f32)]) -> f32 {
        let way = model.of_mma([Type::F16; 2], false, factors.len()).expect("not fast");
        way.of(start, factors)
    }

    /// The places where the architectures differ, by hand.
    #[test]
    fn small_terms_are_cut_at_the_last_bit_of_the_largest() {
        let tiny = 2f32.powi(-12);
        // 2^-24 beside 1: the last of Ampere's 24 bits; two of them make the last bit of an f32.
        let mut factors = [(0.0, 0.0); 16];
        factors[0] = (tiny, tiny);
        factors[1] = (tiny, tiny);
        for model in [MatrixModel::Ampere, MatrixModel::Hopper] {
            assert_eq!(sum(model, 1.0, &factors), 1.0 + 2.0 * TWO_M24);
        }
        // One alone is there and cut off by the last step, toward zero.
        factors[1] = (0.0, 0.0);
        for model in [MatrixModel::Ampere, MatrixModel::Hopper] {
            assert_eq!(sum(model, 1.0, &factors), 1.0);
        }
        // Four of 2^-25: Ampere loses each, Hopper none.
        let mut factors = [(0.0, 0.0); 16];
        factors[..4].fill((tiny, tiny / 2.0));
        assert_eq!(sum(MatrixModel::Ampere, 1.0, &factors), 1.0);
        assert_eq!(sum(MatrixModel::Hopper, 1.0, &factors), 1.0 + 2.0 * TWO_M24);
        // And sixteen of 2^-26 are lost by both, though together they are 2^-22.
        let factors = [(tiny / 2.0, tiny / 2.0); 16];
        for model in [MatrixModel::Ampere, MatrixModel::Hopper] {
            assert_eq!(sum(model, 1.0, &factors), 1.0);
        }
        // Negative ones are cut toward zero too: nothing is lost below -1 either.
        let factors = [(tiny / 2.0, -tiny / 2.0); 16];
        assert_eq!(sum(MatrixModel::Hopper, -1.0, &factors), -1.0);
    }

    #[test]
    fn ampere_adds_the_halves_of_k_one_after_the_other() {
        // In the first half 1 cancels, so that what is small in the second survives there and is
        // lost where all is added at once.
        let small = 2f32.powi(-14);
        let mut factors = [(0.0, 0.0); 16];
        factors[0] = (1.0, -1.0);
        factors[8] = (small, small);
        assert_eq!(sum(MatrixModel::Ampere, 1.0, &factors), small * small);
        assert_eq!(sum(MatrixModel::Hopper, 1.0, &factors), 0.0);
        // k8 is one group on both.
        assert_eq!(sum(MatrixModel::Ampere, 1.0, &[(1.0, -1.0), (small, small)]), 0.0);
    }

    #[test]
    fn sums_in_f16_are_rounded_and_those_of_eighths_are_short() {
        let half = MatrixModel::Hopper.of_mma([Type::F16; 2], true, 16).expect("not fast");
        // 2049 lies between 2048 and 2050: to even.
        assert_eq!(half.of(2048.0, &[(1.0, 1.0)]), 2048.0);
        assert_eq!(half.of(2050.0, &[(1.0, 1.0)]), 2052.0);
        assert_eq!(half.of(65504.0, &[(16.0, 1.0)]), f32::INFINITY);
        let short = MatrixModel::Hopper.of_wgmma([Type::E4m3; 2], false).expect("not fast");
        assert_eq!(short.of(1.0, &[(2f32.powi(-6), 2f32.powi(-7))]), 1.0 + 2f32.powi(-13));
        assert_eq!(short.of(1.0, &[(2f32.powi(-7), 2f32.powi(-7))]), 1.0);
        let long = MatrixModel::Hopper.of_mma([Type::E4m3; 2], false, 32).expect("not fast");
        assert_eq!(long.of(1.0, &[(2f32.powi(-7), 2f32.powi(-7))]), 1.0 + 2f32.powi(-14));
    }

    #[test]
    fn special_values_pass() {
        let way = MatrixModel::Ampere.of_mma([Type::Bf16; 2], false, 16).expect("not fast");
        assert_eq!(way.of(f32::INFINITY, &[(1.0, 1.0)]), f32::INFINITY);
        assert_eq!(way.of(0.0, &[(f32::NEG_INFINITY, 1.0)]), f32::NEG_INFINITY);
        assert_eq!(way.of(f32::INFINITY, &[(f32::INFINITY, -1.0)]).to_bits(), 0x7fff_ffff);
        assert_eq!(way.of(0.0, &[(f32::MAX, 2.0)]), f32::INFINITY);
        assert_eq!(MatrixModel::parse("hopper"), Some(MatrixModel::Hopper));
        assert_eq!(MatrixModel::parse("volta"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        /// Each term loses less than a unit of the largest's last bit, and the sum another at the end;
        /// with two groups both happen twice.
        #[test]
        fn the_loss_is_bounded(
            start in -8.0..8.0f32,
            factors in prop::collection::vec((-4.0..4.0f32, -4.0..4.0f32), 16),
            scale in -20..20i32,
        ) {
            let short = |v: f32| f(v.to_bits() & !0xffff);
            let factors: Vec<(f32, f32)> =
                factors.iter().map(|&(a, b)| (short(a * 2f32.powi(scale)), short(b))).collect();
            let terms: Vec<f64> =
                factors.iter().map(|&(a, b)| f64::from(a) * f64::from(b)).chain([f64::from(start)]).collect();
            let exact: f64 = terms.iter().sum();
            let size = terms.iter().fold(0f64, |most, term| most.max(term.abs()));
            let total: f64 = terms.iter().map(|term| term.abs()).sum();
            for (model, fraction, groups) in [(MatrixModel::Ampere, 24, 2.0), (MatrixModel::Hopper, 25, 1.0)] {
                let way = model.of_mma([Type::Bf16; 2], false, 16).expect("not fast");
                let got = f64::from(way.of(start, &factors));
                // A partial sum may be larger than any term.
                let largest = if groups > 1.0 { total } else { size };
                let bound = groups * (17.0 * largest * 2f64.powi(-fraction) + total * 2f64.powi(-23));
                prop_assert!((got - exact).abs() <= bound, "{model:?}: {got:e} {exact:e} {bound:e}");
                let fast = factors.iter().fold(start, |sum, &(a, b)| sum + a * b);
                let apart = (got - f64::from(fast)).abs();
                prop_assert!(apart <= bound + 17.0 * total * 2f64.powi(-24));
            }
        }
    }
}
