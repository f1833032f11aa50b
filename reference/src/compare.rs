//! A kernel's answer against the oracle.
//!
//! An element passes if its error is within one of three bounds: absolute, relative, or what f32
//! arithmetic and one rounding to the dtype may cost on these very inputs ([`Output::out_error`]).
//! The third exceeds the first two only where logits run into the hundreds or values cancel, where
//! a correct kernel cannot do better; [`Comparison::within_rounding_only`] counts its use. The
//! cosine distance is taken per row and head, so that an error in one small head is not hidden by
//! the others. Positions of NaN and infinities must match, and empty rows are exactly +0 and -inf.

use std::fmt;

use spanforge_spans::Dtype;

use crate::oracle::Output;
use crate::problem::to_f32;

/// Arrays that do not belong to the oracle's problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} has {found} elements: the oracle's answer has {expected}")]
pub struct CompareError {
    /// `out` or `lse`.
    pub what: &'static str,
    /// Elements of the oracle's.
    pub expected: usize,
    /// Elements given.
    pub found: usize,
}

/// How far an answer may be from the oracle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Absolute error of an output element.
    pub out_abs: f64,
    /// Relative error of an output element.
    pub out_rel: f64,
    /// Cosine distance `1 - 2 x.y / (x.x + y.y)` of the output of a row and head.
    pub cosine: f64,
    /// Absolute error of an LSE.
    pub lse_abs: f64,
    /// Relative error of an LSE.
    pub lse_rel: f64,
    /// Roundoff of the softmax weights where a kernel rounds them before they meet the values
    /// (2^-8 for bf16, 2^-11 for f16); 0 where they stay f32.
    pub weight_roundoff: f64,
}

impl Tolerance {
    /// The tolerance of kernels that keep weights in f32.
    ///
    /// bf16: the figures of FlashMLA's tests for outputs: 1e-3, 2.01 / 128 (two units in the last
    /// place), cosine 5e-6. f16 has three more bits of mantissa: an eighth of the first two, and
    /// cosine 1e-6. LSE: FlashMLA's 1e-6 absolute; relative 1e-5 as in FlashAttention's tests, where
    /// FlashMLA allows 8.01 / 65536.
    pub const fn of(dtype: Dtype) -> Self {
        let (out_abs, out_rel, cosine) = match dtype {
            Dtype::Bf16 => (1e-3, 2.01 / 128.0, 5e-6),
            Dtype::F16 => (1.25e-4, 2.01 / 1024.0, 1e-6),
        };
        Self { out_abs, out_rel, cosine, lse_abs: 1e-6, lse_rel: 1e-5, weight_roundoff: 0.0 }
    }

    /// The tolerance of kernels that round weights to the dtype, as tensor cores take them.
    pub const fn of_rounded_weights(dtype: Dtype) -> Self {
        let weight_roundoff = match dtype {
            Dtype::Bf16 => 1.0 / 256.0,
            Dtype::F16 => 1.0 / 2048.0,
        };
        Self { weight_roundoff, ..Self::of(dtype) }
    }
}

/// The output element furthest beyond, or nearest to, what is allowed of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorstElement {
    /// Row.
    pub row: usize,
    /// Query head.
    pub head: usize,
    /// Element of the head.
    pub dim: usize,
    /// The kernel's value.
    pub found: f64,
    /// The oracle's value.
    pub expected: f64,
    /// Error allowed here; 0 where the value must match exactly.
    pub allowed: f64,
}

/// The LSE furthest beyond, or nearest to, what is allowed of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorstLse {
    /// Row.
    pub row: usize,
    /// Query head.
    pub head: usize,
    /// The kernel's value.
    pub found: f64,
    /// The oracle's value.
    pub expected: f64,
    /// Error allowed here; 0 where the value must match exactly.
    pub allowed: f64,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Whether everything is within the tolerance.
    pub passed: bool,
    /// Output elements compared.
    pub elements: usize,
    /// Finite output elements out of tolerance.
    pub failed_elements: usize,
    /// Output elements and LSEs where one side is NaN or infinite and the other is not the same.
    pub mismatched_special_values: usize,
    /// Output elements of empty rows that are not exactly +0.
    pub nonzero_in_empty_rows: usize,
    /// Rows and heads whose cosine distance is out of tolerance.
    pub failed_cosines: usize,
    /// Finite LSEs out of tolerance.
    pub failed_lse: usize,
    /// Output elements that only the f32 rounding bound lets pass.
    pub within_rounding_only: usize,
    /// Largest absolute error of a finite output element.
    pub max_abs: f64,
    /// Largest relative error of finite output elements above the absolute tolerance.
    pub max_rel: f64,
    /// Largest cosine distance of a row and head.
    pub cosine_distance: f64,
    /// Largest absolute error of a finite LSE.
    pub lse_max_abs: f64,
    /// The output element that comes worst against what is allowed.
    pub worst: Option<WorstElement>,
    /// The LSE that comes worst against what is allowed.
    pub worst_lse: Option<WorstLse>,
}

/// Compares a kernel's `out` (`[rows, query_heads, head_dim]`, bits of `dtype`) and `lse`
/// (`[rows, query_heads]`) with the oracle.
pub fn compare(
    out: &[u16],
    lse: &[f32],
    oracle: &Output,
    dtype: Dtype,
    tolerance: &Tolerance,
) -> Result<Comparison, CompareError> {
    let sizes = [("out", oracle.out.len(), out.len()), ("lse", oracle.lse.len(), lse.len())];
    for (what, expected, found) in sizes {
        if expected != found {
            return Err(CompareError { what, expected, found });
        }
    }
    let mut values = vec![0.0; out.len()];
    to_f32(dtype, out, &mut values);
    let mut tally = Tally::new(out.len());
    for row in 0..oracle.rows {
        for head in 0..oracle.query_heads {
            let at = row * oracle.query_heads + head;
            tally.lse(row, head, f64::from(lse[at]), oracle, tolerance);
            let range = at * oracle.head_dim..(at + 1) * oracle.head_dim;
            let (bits, values) = (&out[range.clone()], &values[range]);
            if oracle.lse[at] == f64::NEG_INFINITY {
                tally.empty(row, head, bits, values);
            } else {
                tally.head(row, head, values, oracle, dtype, tolerance);
            }
        }
    }
    Ok(tally.finish())
}

/// A comparison in the making.
struct Tally {
    result: Comparison,
    /// Error over allowance of `worst` and of `worst_lse`.
    worst_ratio: f64,
    worst_lse_ratio: f64,
}

impl Tally {
    fn new(elements: usize) -> Self {
        let result = Comparison {
            passed: false,
            elements,
            failed_elements: 0,
            mismatched_special_values: 0,
            nonzero_in_empty_rows: 0,
            failed_cosines: 0,
            failed_lse: 0,
            within_rounding_only: 0,
            max_abs: 0.0,
            max_rel: 0.0,
            cosine_distance: 0.0,
            lse_max_abs: 0.0,
            worst: None,
            worst_lse: None,
        };
        Self { result, worst_ratio: -1.0, worst_lse_ratio: -1.0 }
    }

    /// Keeps the element if it is the worst so far; a mismatch that no error measures is infinitely
    /// bad.
    fn element(&mut self, ratio: f64, element: WorstElement) {
        if ratio > self.worst_ratio {
            self.worst_ratio = ratio;
            self.result.worst = Some(element);
        }
    }

    fn lse(&mut self, row: usize, head: usize, found: f64, oracle: &Output, tol: &Tolerance) {
        let expected = oracle.lse[row * oracle.query_heads + head];
        let (ratio, allowed) = if !expected.is_finite() || !found.is_finite() {
            let same = found == expected || (found.is_nan() && expected.is_nan());
            self.result.mismatched_special_values += usize::from(!same);
            (if same { 0.0 } else { f64::INFINITY }, 0.0)
        } else {
            let error = (found - expected).abs();
            let allowed =
                tol.lse_abs.max(tol.lse_rel * expected.abs()).max(oracle.lse_error(row, head));
            self.result.lse_max_abs = self.result.lse_max_abs.max(error);
            self.result.failed_lse += usize::from(error > allowed);
            (error / allowed, allowed)
        };
        if ratio > self.worst_lse_ratio {
            self.worst_lse_ratio = ratio;
            self.result.worst_lse = Some(WorstLse { row, head, found, expected, allowed });
        }
    }

    fn empty(&mut self, row: usize, head: usize, bits: &[u16], values: &[f32]) {
        for (dim, (&bits, &found)) in bits.iter().zip(values).enumerate() {
            if bits != 0 {
                self.result.nonzero_in_empty_rows += 1;
                let found = f64::from(found);
                let element = WorstElement { row, head, dim, found, expected: 0.0, allowed: 0.0 };
                self.element(f64::INFINITY, element);
            }
        }
    }

    fn head(
        &mut self,
        row: usize,
        head: usize,
        values: &[f32],
        oracle: &Output,
        dtype: Dtype,
        tol: &Tolerance,
    ) {
        let first = (row * oracle.query_heads + head) * oracle.head_dim;
        let (mut errors, mut roundings, mut squares) = (0.0, 0.0, 0.0);
        for (dim, &found) in values.iter().enumerate() {
            let (found, expected) = (f64::from(found), oracle.out[first + dim]);
            let arithmetic = oracle.out_error(row, head, dim)
                + tol.weight_roundoff * oracle.magnitude[first + dim];
            let rounding = half_ulp(dtype, expected) + arithmetic;
            let allowed = tol.out_abs.max(tol.out_rel * expected.abs()).max(rounding);
            let element = WorstElement { row, head, dim, found, expected, allowed };
            if !expected.is_finite() || !found.is_finite() {
                // A finite value at the very edge of the dtype's range may round to infinity.
                let overflow = overflow_threshold(dtype);
                let same = found == expected
                    || (found.is_nan() && expected.is_nan())
                    || (found.is_infinite()
                        && expected.is_finite()
                        && found.signum() == expected.signum()
                        && expected.abs() + arithmetic >= overflow);
                if !same {
                    self.result.mismatched_special_values += 1;
                    self.element(f64::INFINITY, WorstElement { allowed: 0.0, ..element });
                }
                continue;
            }
            let error = (found - expected).abs();
            self.result.max_abs = self.result.max_abs.max(error);
            if expected.abs() >= tol.out_abs {
                self.result.max_rel = self.result.max_rel.max(error / expected.abs());
            }
            self.result.failed_elements += usize::from(error > allowed);
            let plain = tol.out_abs.max(tol.out_rel * expected.abs());
            self.result.within_rounding_only += usize::from(error > plain && error <= allowed);
            self.element(error / allowed, element);
            errors += error * error;
            roundings += rounding * rounding;
            squares += found * found + expected * expected;
        }
        // 1 - 2 x.y / (x.x + y.y) = |x - y|^2 / (x.x + y.y), without the cancellation.
        if squares > 0.0 {
            let distance = errors / squares;
            self.result.cosine_distance = self.result.cosine_distance.max(distance);
            let failed = distance > tol.cosine && errors > roundings;
            self.result.failed_cosines += usize::from(failed);
        }
    }

    fn finish(self) -> Comparison {
        let mut result = self.result;
        result.passed = result.failed_elements == 0
            && result.mismatched_special_values == 0
            && result.nonzero_in_empty_rows == 0
            && result.failed_cosines == 0
            && result.failed_lse == 0;
        result
    }
}

/// Half a unit in the last place of `dtype` at `value`; subnormals share that of the smallest
/// normal.
fn half_ulp(dtype: Dtype, value: f64) -> f64 {
    let (mantissa_bits, smallest_exponent) = match dtype {
        Dtype::F16 => (10, -14),
        Dtype::Bf16 => (7, -126),
    };
    let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    2f64.powi(exponent.max(smallest_exponent) - mantissa_bits - 1)
}

/// The least magnitude that rounds to infinity in `dtype`.
fn overflow_threshold(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 65520.0,
        Dtype::Bf16 => 2f64.powi(128) - 2f64.powi(119),
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} elements, max error {:.2e} absolute, {:.2e} relative, cosine distance {:.1e}, \
             LSE {:.2e}",
            if self.passed { "passed" } else { "FAILED" },
            self.elements,
            self.max_abs,
            self.max_rel,
            self.cosine_distance,
            self.lse_max_abs
        )?;
        if self.passed {
            return Ok(());
        }
        for (count, what) in [
            (self.failed_elements, "output elements out of tolerance"),
            (self.mismatched_special_values, "positions of NaN or infinity that differ"),
            (self.nonzero_in_empty_rows, "elements of empty rows that are not +0"),
            (self.failed_cosines, "heads out of the cosine tolerance"),
            (self.failed_lse, "LSEs out of tolerance"),
        ] {
            if count > 0 {
                write!(f, "\n  {count} {what}")?;
            }
        }
        if let Some(w) = self.worst {
            write!(
                f,
                "\n  worst output: row {}, head {}, dim {}: found {:e}, expected {:e}, allowed \
                 error {:.1e}",
                w.row, w.head, w.dim, w.found, w.expected, w.allowed
            )?;
        }
        if let Some(w) = self.worst_lse {
            write!(
                f,
                "\n  worst LSE: row {}, head {}: found {:e}, expected {:e}, allowed error {:.1e}",
                w.row, w.head, w.found, w.expected, w.allowed
            )?;
        }
        Ok(())
    }
}
