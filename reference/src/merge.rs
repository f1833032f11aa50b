//! Merging attention over shares of the selected tokens, the reference of the kernels that do.

use crate::compare::CompareError;
use crate::oracle::{F32_ROUNDOFF, Output};
use crate::problem::to_f32;
use crate::rounded::RoundedOutput;
use spanforge_spans::Dtype;

/// Attention of one query head over a share of its tokens: the normalised output and its LSE.
/// `lse == -inf` marks the empty share, whose output is not looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct PartialState {
    /// `[head_dim]`.
    pub out: Vec<f64>,
    /// Natural logarithm.
    pub lse: f64,
}

impl PartialState {
    /// The state of no tokens: +0 and -inf.
    pub fn empty(head_dim: usize) -> Self {
        Self { out: vec![0.0; head_dim], lse: f64::NEG_INFINITY }
    }

    /// Whether no token has weight in it.
    pub fn is_empty(&self) -> bool {
        self.lse == f64::NEG_INFINITY
    }

    /// Attention over both shares: outputs weighted by e^lse. Merging with the empty state returns
    /// the other bit for bit. Both must have the same head_dim.
    pub fn merge(&self, other: &Self) -> Self {
        if other.is_empty() {
            // Two empty ones give the canonical empty state, whatever their outputs held.
            return if self.is_empty() { Self::empty(self.out.len()) } else { self.clone() };
        }
        if self.is_empty() {
            return other.clone();
        }
        // A NaN on either side stays one: max passes over it, the exponents do not.
        let max = self.lse.max(other.lse);
        let (a, b) = ((self.lse - max).exp(), (other.lse - max).exp());
        let sum = a + b;
        let out = self.out.iter().zip(&other.out).map(|(x, y)| (a * x + b * y) / sum).collect();
        Self { out, lse: max + sum.ln() }
    }

    /// Merges in the order given; the empty state if there is none.
    pub fn merge_all<'a>(head_dim: usize, states: impl IntoIterator<Item = &'a Self>) -> Self {
        states.into_iter().fold(Self::empty(head_dim), |merged, state| merged.merge(state))
    }
}

/// Attention over two parts of the tokens, each as a kernel has written it, merged in f64; the bounds on
/// errors are those of this merging alone. `shape` is `[rows, query_heads, head_dim]`.
///
/// # Errors
/// [`CompareError`] where one of the parts has another size.
pub fn merge_outputs_f64(
    dtype: Dtype,
    shape: [usize; 3],
    one: &RoundedOutput,
    other: &RoundedOutput,
) -> Result<Output, CompareError> {
    let [rows, query_heads, head_dim] = shape;
    let heads = rows * query_heads;
    for (what, expected, found) in [
        ("out", heads * head_dim, one.out.len()),
        ("out", heads * head_dim, other.out.len()),
        ("lse", heads, one.lse.len()),
        ("lse", heads, other.lse.len()),
    ] {
        if expected != found {
            return Err(CompareError { what, expected, found });
        }
    }
    let states = |part: &RoundedOutput| -> Vec<PartialState> {
        let mut values = vec![0.0; part.out.len()];
        to_f32(dtype, &part.out, &mut values);
        let heads = values.chunks(head_dim.max(1)).zip(&part.lse);
        let state = |(out, lse): (&[f32], &f32)| PartialState {
            out: out.iter().map(|x| f64::from(*x)).collect(),
            lse: f64::from(*lse),
        };
        heads.map(state).collect()
    };
    let (mut out, mut lse, mut magnitude, mut logit_error) = (vec![], vec![], vec![], vec![]);
    for (a, b) in states(one).iter().zip(&states(other)) {
        let merged = a.merge(b);
        let sizes = |state: &PartialState| PartialState {
            out: state.out.iter().map(|x| x.abs()).collect(),
            lse: state.lse,
        };
        magnitude.extend(sizes(a).merge(&sizes(b)).out);
        let both = !a.is_empty() && !b.is_empty();
        // Of the difference, of the change of base and of the exponential.
        logit_error.push(if both { F32_ROUNDOFF * 8.0 * (a.lse.abs() + b.lse.abs()) } else { 0.0 });
        out.extend(merged.out);
        lse.push(merged.lse);
    }
    let tokens = vec![2; rows];
    Ok(Output { rows, query_heads, head_dim, out, lse, magnitude, logit_error, tokens })
}
