//! Protocols by which a model says, in the text it generates, what its next steps attend to.
//!
//! Each is a state machine fed with generated tokens as text. Text may be cut into tokens anywhere;
//! only the concatenation matters for what is declared. A malformed annotation is counted by kind
//! ([`FaultCounts`]) and resolved by a [`Fallback`]; no text makes a protocol fail.

mod declarative;
mod self_span;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::SpanSet;

pub use declarative::{DeclarativeAttention, LayoutError, Mode, PromptLayout, Transition};
pub use self_span::{NameError, SelfSpanAttention, SelfSpanPrompt};

/// What an annotation that cannot be understood selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// Everything: costs time and loses nothing.
    #[default]
    Dense,
    /// Nothing beyond what is always attended and what was understood.
    Empty,
}

/// What can be wrong with an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// A tag whose attributes do not parse.
    BadAttribute,
    /// A reference to a segment or step that does not exist (yet).
    UnknownReference,
    /// A closing tag, or a closing bracket, without its opening one.
    UnmatchedClose,
    /// An opening tag or bracket inside an open one.
    Nested,
    /// A tag or declaration that was begun and not closed.
    Unfinished,
    /// A tag or declaration longer than any that is meant.
    TooLong,
    /// A step without a name.
    MissingName,
    /// A step that takes the name of an earlier one.
    RedefinedName,
    /// A step that declares nothing before it ends.
    MissingDeclaration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BadAttribute => "bad attribute",
            Self::UnknownReference => "unknown reference",
            Self::UnmatchedClose => "unmatched close",
            Self::Nested => "nested",
            Self::Unfinished => "unfinished",
            Self::TooLong => "too long",
            Self::MissingName => "missing name",
            Self::RedefinedName => "redefined name",
            Self::MissingDeclaration => "missing declaration",
        })
    }
}

/// Malformed annotations by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultCounts(BTreeMap<Fault, u64>);

impl FaultCounts {
    fn add(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    /// Faults of one kind.
    pub fn count(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }

    /// Faults of all kinds.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// The kinds that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Fault, u64)> + '_ {
        self.0.iter().map(|(fault, count)| (*fault, *count))
    }
}

/// A protocol as decoding uses it: token in, span set out.
pub trait TagProtocol {
    /// Takes the text of the next generated token. Returns whether the token changed what is
    /// selected, beyond the growth by the token itself; while it returns false a plan can be kept.
    fn push_token(&mut self, text: &str) -> bool;

    /// The tokens that the newest token attends to when it is the query of a decode step, itself
    /// included, in logical positions (prompt first, then response).
    fn spans(&self) -> SpanSet;

    /// Tokens of prompt and response so far, which is the KV length of that step.
    fn kv_len(&self) -> u32;

    /// Malformed annotations so far.
    fn faults(&self) -> &FaultCounts;

    /// Ends the response: what is still open is counted as unfinished.
    fn finish(&mut self);
}
