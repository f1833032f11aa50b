//! Declarative Attention (arXiv 2609.02737): modes that the model declares by tags.
//!
//! The prompt is cut into numbered segments. `<focus magic_chunks="2,5">` limits attention to
//! segments 2 and 5, `<local>` to no segment; the closing tag returns to the global mode, in which
//! the whole prompt is attended. A mode begins on the `>` of the opening tag and ends on that of the
//! matching closing tag. `<global>` and `</global>` are allowed and change nothing. Always attended:
//! the first 16 prompt tokens, the prompt from the question to its end, and the response so far.
//!
//! Policy for what is malformed:
//! - An opening focus or local tag that does not parse, or names a segment that does not exist,
//!   opens a mode that attends to everything ([`Fallback::Dense`]) or to no segment
//!   ([`Fallback::Empty`]), until its closing tag.
//! - An opening tag inside an open mode replaces it; a closing tag that does not match the open mode
//!   changes nothing; a tag that is interrupted by another `<`, or too long, is text.

use serde::{Deserialize, Serialize};

use super::{Fallback, Fault, FaultCounts, TagProtocol};
use crate::{Span, SpanSet};

/// Prompt tokens that are always attended as attention sinks.
const SINK_TOKENS: u32 = 16;

/// A focus tag names one to three segments.
const MAX_FOCUS_SEGMENTS: usize = 3;

/// Characters between `<` and `>` beyond which text is no tag.
const MAX_TAG_CHARS: usize = 128;

/// What is wrong with a prompt layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The question lies behind the prompt.
    #[error("the question starts at token {question_start} of a prompt of {prompt_tokens} tokens")]
    Question {
        /// Start of the question.
        question_start: u32,
        /// Length of the prompt.
        prompt_tokens: u32,
    },
    /// A segment that is empty, out of order, or reaches into the question.
    #[error(
        "segment {number} is {span}: segments must be non-empty, ascending and disjoint, and end \
         before the question at token {question_start}"
    )]
    Segment {
        /// Number of the segment, from 1.
        number: usize,
        /// The segment.
        span: Span,
        /// Start of the question.
        question_start: u32,
    },
}

/// Where the parts of a prompt lie, in tokens. Tokens between segments (the template) belong to
/// none and are attended in the global mode only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptLayout {
    segments: Vec<Span>,
    question_start: u32,
    prompt_tokens: u32,
}

impl PromptLayout {
    /// A layout of `prompt_tokens` tokens whose segments (numbered from 1) all end at or before
    /// `question_start`.
    pub fn new(
        segments: Vec<Span>,
        question_start: u32,
        prompt_tokens: u32,
    ) -> Result<Self, LayoutError> {
        if question_start > prompt_tokens {
            return Err(LayoutError::Question { question_start, prompt_tokens });
        }
        let mut previous_end = 0;
        for (at, &span) in segments.iter().enumerate() {
            if span.is_empty() || span.start() < previous_end || span.end() > question_start {
                return Err(LayoutError::Segment { number: at + 1, span, question_start });
            }
            previous_end = span.end();
        }
        Ok(Self { segments, question_start, prompt_tokens })
    }

    /// The segments, segment 1 first.
    pub fn segments(&self) -> &[Span] {
        &self.segments
    }

    /// Length of the prompt in tokens.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The prompt tokens that are attended in `mode`. Numbers without a segment select nothing.
    pub fn attended(&self, mode: &Mode) -> SpanSet {
        let numbers: &[u32] = match mode {
            Mode::Global => return SpanSet::full(self.prompt_tokens),
            Mode::Focus(numbers) => numbers,
            Mode::Local => &[],
        };
        let always = [
            Span::from(0..SINK_TOKENS.min(self.prompt_tokens)),
            Span::from(self.question_start..self.prompt_tokens),
        ];
        let segments = numbers.iter().filter_map(|&number| self.segment(number));
        SpanSet::from_raw(always.into_iter().chain(segments))
    }

    fn segment(&self, number: u32) -> Option<Span> {
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        self.segments.get(at).copied()
    }
}

/// What the response attends to in the prompt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The whole prompt.
    Global,
    /// The segments with these numbers (from 1), in the order of the tag.
    Focus(Vec<u32>),
    /// No segment.
    Local,
}

/// A change of mode, on a character of the response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Characters of the response up to and including the `>` that caused it.
    pub characters: u64,
    /// The mode from here on.
    pub mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TagName {
    Global,
    Focus,
    Local,
}

const NAMES: [(&str, TagName); 3] =
    [("global", TagName::Global), ("focus", TagName::Focus), ("local", TagName::Local)];

/// The state machine over one response.
#[derive(Debug, Clone)]
pub struct DeclarativeAttention {
    layout: PromptLayout,
    fallback: Fallback,
    mode: Mode,
    /// The focus or local tag that is open.
    open: Option<TagName>,
    /// Text since a `<` that can still become a tag.
    tag: Option<String>,
    characters: u64,
    response_tokens: u32,
    transitions: Vec<Transition>,
    faults: FaultCounts,
}

impl DeclarativeAttention {
    /// Starts a response to a prompt, in the global mode.
    pub fn new(layout: PromptLayout, fallback: Fallback) -> Self {
        Self {
            layout,
            fallback,
            mode: Mode::Global,
            open: None,
            tag: None,
            characters: 0,
            response_tokens: 0,
            transitions: Vec::new(),
            faults: FaultCounts::default(),
        }
    }

    /// The present mode.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// All changes of mode so far.
    pub fn transitions(&self) -> &[Transition] {
        &self.transitions
    }

    fn push_char(&mut self, c: char) {
        self.characters += 1;
        match (c, &mut self.tag) {
            ('<', _) => {
                self.abandon_tag(Fault::Unfinished);
                self.tag = Some(String::new());
            }
            ('>', Some(_)) => {
                let tag = self.tag.take().unwrap_or_default();
                self.close_tag(&tag);
            }
            (c, Some(tag)) => {
                tag.push(c);
                if !may_be_tag(tag) {
                    self.tag = None;
                } else if tag.chars().count() > MAX_TAG_CHARS {
                    self.abandon_tag(Fault::TooLong);
                }
            }
            _ => {}
        }
    }

    /// Drops text that began like a tag; a fault only if it had got as far as a tag's whole name.
    fn abandon_tag(&mut self, fault: Fault) {
        if self.tag.take().is_some_and(|tag| split_tag(&tag).is_some()) {
            self.faults.add(fault);
        }
    }

    fn close_tag(&mut self, tag: &str) {
        let Some((closing, name, attributes)) = split_tag(tag) else { return };
        if name == TagName::Global {
            return;
        }
        if closing {
            if self.open == Some(name) && attributes.trim().is_empty() {
                self.open = None;
                self.enter(Mode::Global);
            } else {
                let matched = self.open == Some(name);
                self.faults.add(if matched { Fault::BadAttribute } else { Fault::UnmatchedClose });
            }
            return;
        }
        if self.open.replace(name).is_some() {
            self.faults.add(Fault::Nested);
        }
        let mode = match name {
            TagName::Focus => self.parse_focus(attributes),
            _ if attributes.trim().is_empty() => Ok(Mode::Local),
            _ => Err(Fault::BadAttribute),
        };
        let mode = mode.unwrap_or_else(|fault| {
            self.faults.add(fault);
            match self.fallback {
                Fallback::Dense => Mode::Global,
                Fallback::Empty => Mode::Local,
            }
        });
        self.enter(mode);
    }

    /// `magic_chunks="K"`, `"K,M"` or `"K,M,N"`, in single or double quotes.
    fn parse_focus(&self, attributes: &str) -> Result<Mode, Fault> {
        let list = attributes
            .trim()
            .strip_prefix("magic_chunks")
            .and_then(|rest| rest.trim_start().strip_prefix('='))
            .map(str::trim_start)
            .and_then(|rest| {
                let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
                rest.strip_prefix(quote)?.strip_suffix(quote)
            })
            .ok_or(Fault::BadAttribute)?;
        let mut numbers = Vec::new();
        for number in list.split(',') {
            let number = number.trim();
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Fault::BadAttribute);
            }
            // A number too large for u32 names no segment either.
            let number = number.parse().map_err(|_| Fault::UnknownReference)?;
            self.layout.segment(number).ok_or(Fault::UnknownReference)?;
            numbers.push(number);
        }
        if numbers.len() > MAX_FOCUS_SEGMENTS {
            return Err(Fault::BadAttribute);
        }
        Ok(Mode::Focus(numbers))
    }

    fn enter(&mut self, mode: Mode) {
        if mode != self.mode {
            self.mode = mode.clone();
            self.transitions.push(Transition { characters: self.characters, mode });
        }
    }
}

impl TagProtocol for DeclarativeAttention {
    fn push_token(&mut self, text: &str) -> bool {
        let transitions = self.transitions.len();
        self.response_tokens = self.response_tokens.saturating_add(1);
        text.chars().for_each(|c| self.push_char(c));
        self.transitions.len() > transitions
    }

    fn spans(&self) -> SpanSet {
        let response = Span::from(self.layout.prompt_tokens..self.kv_len());
        self.layout.attended(&self.mode).union(&SpanSet::from_raw([response]))
    }

    fn kv_len(&self) -> u32 {
        self.layout.prompt_tokens.saturating_add(self.response_tokens)
    }

    fn faults(&self) -> &FaultCounts {
        &self.faults
    }

    fn finish(&mut self) {
        self.abandon_tag(Fault::Unfinished);
        if self.open.take().is_some() {
            self.faults.add(Fault::Unfinished);
        }
    }
}

/// Whether text behind a `<` is a tag of the protocol or the beginning of one.
fn may_be_tag(text: &str) -> bool {
    let name = text.strip_prefix('/').unwrap_or(text);
    split_tag(text).is_some() || NAMES.iter().any(|(full, _)| full.starts_with(name))
}

/// Whether a tag is a closing one, its name, and what follows the name.
fn split_tag(text: &str) -> Option<(bool, TagName, &str)> {
    let (closing, text) = match text.strip_prefix('/') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    NAMES.iter().find_map(|&(full, name)| {
        let rest = text.strip_prefix(full)?;
        let ends = rest.chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_');
        ends.then_some((closing, name, rest))
    })
}
