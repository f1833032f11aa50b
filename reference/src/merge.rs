//! Merging attention over shares of the selected tokens, the reference of the merge kernel.

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
