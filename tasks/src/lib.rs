//! Data of the two tasks of *Self-Selected Attention Span* (arXiv 2404.09336): samples whose
//! responses declare, step by step, what they rest on, and the measures of what a model answers.
//!
//! - [`arithmetic`]: nested expressions evaluated one operation a step.
//! - [`news`]: articles and their summaries, generated with known facts or read from JSON Lines and
//!   aligned sentence by sentence.
//! - [`Sample`], [`Split`]: what a trainer takes, and which of it is kept for the end.
//! - [`Vocabulary`]: the closed vocabulary of a task, and the `tokenizer.json` that says the same.
//! - [`StepVerdict`]: what is right in a step of a response.
//! - [`AttendedPairs`]: how much of its context a response attends to.
//! - [`rouge`]: ROUGE-1, ROUGE-2 and ROUGE-L.
//!
//! The grammar of responses and the mask that they imply are those of
//! [`SelfSpanAttention`](spanforge_spans::protocol::SelfSpanAttention). This room makes and judges
//! text; it knows no model.

pub mod arithmetic;
pub mod news;
pub mod rouge;
mod sample;
mod split;
mod verdict;
mod vocabulary;

pub use sample::{AttendedPairs, Sample, SampleError};
pub use split::Split;
pub use verdict::StepVerdict;
pub use vocabulary::{BOS, EOS, Encoding, PAD, Vocabulary, VocabularyError};
