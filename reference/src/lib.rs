//! What a span-attention kernel must compute, and how close to it a correct one comes.
//!
//! - [`Problem`]: one decode launch over paged keys and values.
//! - [`attention_f64`]: the oracle, in f64 over the same rounded inputs.
//! - [`attention_rounded`]: the same in the launch dtype's roundings: the error that a correct
//!   kernel may have.
//! - [`compare`], [`Tolerance`]: a kernel's answer against the oracle.
//! - [`PartialState`], [`merge_outputs_f64`]: merging attention over shares of the selected tokens.
//!
//! # Semantics
//! For row `r` and query head `h`: softmax over the selected tokens of `q . k * scale`, times v;
//! LSE is the natural logarithm of the sum of the exponentials. A soft cap turns logits into
//! `cap * tanh(logit / cap)`; a sink is one more logit in the sums of its query head, whose value is
//! zero, so the LSE has it in it. An empty set gives +0 and an LSE of -inf (of the sink, where there is
//! one), and so does a set whose logits are all -inf. Otherwise NaN and infinities of selected
//! tokens propagate as in IEEE arithmetic; a logit of NaN or +inf makes the head's output and LSE
//! NaN, since every online softmax forms inf - inf. Keys and values outside the set are not read.
//!
//! The comparison is meant for problems that f32 arithmetic can compute: dot products and sums of
//! values below `f32::MAX`.

mod compare;
mod merge;
mod oracle;
mod problem;
mod rounded;

pub use compare::{CompareError, Comparison, Tolerance, WorstElement, WorstLse, compare};
pub use merge::{PartialState, merge_outputs_f64};
pub use oracle::{Output, attention_f64};
pub use problem::{Problem, ProblemError};
pub use rounded::{RoundedOutput, attention_rounded};
