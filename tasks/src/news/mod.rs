//! News articles and their summaries, each line of which declares the sentences that it rests on.
//!
//! ```text
//! ^ the perth doctor is called anna s0 . tickets cost 20 dollars s1 . anna paid 40 dollars s2 . ;
//! anna < s0 s2 > doctor in perth , paid 40 ; $
//!
//! prompt    = "^" { sentence id "." } ";"
//! response  = { step } "$"
//! step      = name "<" { id } ">" statement { "," statement } ";"
//! id        = "s0" | "s1" | ...
//! ```
//!
//! The sentences are named spans of the prompt. An id stands behind its sentence, where a causal
//! model has read what it names.
//!
//! - [`Generator`]: articles with known facts, in a closed vocabulary of words; [`evaluate`] judges
//!   the lines of a summary, and [`fact_recall`] counts the facts that it states.
//! - [`Stories`]: articles and highlights from JSON Lines; [`Story::align`] finds the sentences that
//!   each highlight rests on.

mod align;
mod facts;
mod generate;
mod sentences;
mod stories;
mod verdict;
mod words;

pub use align::{AlignedLine, AlignedStory, LEAST_GAIN, content_recall};
pub use facts::{Fact, FactRecall};
pub use generate::{Article, Difficulty, DifficultyError, Generator, MAX_PEOPLE, Person};
pub use sentences::sentences;
pub use stories::{Stories, Story, StoryError};
pub use verdict::{Verdict, evaluate, fact_recall};
pub use words::vocabulary;
