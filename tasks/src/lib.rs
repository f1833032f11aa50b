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
//! - `evaluate`: what a model answers, dense and by its own spans (with the feature `model`).
//! - [`rouge`]: ROUGE-1, ROUGE-2 and ROUGE-L.
//!
//! The grammar of responses and the mask that they imply are those of
//! [`SelfSpanAttention`](spanforge_spans::protocol::SelfSpanAttention). This room makes and judges
//! text.
//!
//! ```
//! use spanforge_spans::protocol::{Fallback, SelfSpanAttention, TagProtocol};
//! use spanforge_tasks::Split;
//! use spanforge_tasks::arithmetic::{Difficulty, Generator, evaluate, vocabulary};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vocabulary = vocabulary();
//! let sample = Generator::new(Difficulty::default(), Split::Train, 1)?.next().unwrap().sample;
//!
//! // The mask of the gold response: what each token attends to as a query.
//! let prompt = vocabulary.encode(&sample.prompt)?;
//! let response = vocabulary.encode(&sample.response)?;
//! let named = sample.span_prompt(&prompt.offsets)?;
//! let mut attention = SelfSpanAttention::new(named, Fallback::Dense);
//! for id in &response.ids {
//!     attention.push_token(vocabulary.piece(*id).unwrap());
//!     assert!(attention.spans().len_tokens() <= u64::from(attention.kv_len()));
//! }
//!
//! assert!(evaluate(&sample.prompt, &sample.response)?.correct);
//! # Ok(())
//! # }
//! ```

pub mod arithmetic;
#[cfg(feature = "model")]
pub mod evaluate;
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
