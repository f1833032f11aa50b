//! Self-selected attention spans: each step of the response names the earlier steps that it reads.
//!
//! This is an annotation grammar of our own in the spirit of *Self-Selected Attention Span* (arXiv
//! 2404.09336), whose own grammar is not public. A response is a list of steps:
//!
//! ```text
//! response = { step } "$"
//! step     = name "<" declaration ">" computation ";"
//! ```
//!
//! A name is letters, digits and `_`, beginning with a letter. The declaration is any text; every
//! name in it is a reference to an earlier step or to a named span of the prompt, and a word that
//! begins with a digit is a literal. The computation is any text without `;`. White space around
//! names is ignored. In arithmetic the declaration is the operation itself:
//!
//! ```text
//! ^(((8-2)+(1*9))+4);a<8-2>8-2=6;b<1*9>1*9=9;c<a+b>6+9=15;d<c+4>15+4=19;$
//! ```
//!
//! Line 0 is the prompt; line k is step k with its `;`. What a token attends to as a query:
//!
//! | token | attends to |
//! |---|---|
//! | from the step's first up to before `>` | sink, own line, line 0 |
//! | from `>` up to before `;` | sink, own line, exactly the declared lines |
//! | `;` | sink, own line, line 0: it predicts the next step's name |
//!
//! so the query that predicts the first token of the computation is already sparse. The sink is the
//! first prompt token. A token whose text crosses the end of a line belongs to both lines, and the
//! state after its last character is the one that counts.
//!
//! Policy for what is malformed: a declaration with an unknown, forward or own name, or with a
//! nested `<`, or too long, attends to everything until the step ends ([`Fallback::Dense`]) or to
//! the lines that were understood ([`Fallback::Empty`]). A step that ends before its declaration is
//! closed keeps the scope of line 0. A step that takes an earlier name hides the earlier one; one
//! without a name cannot be referred to.

use super::{Fallback, Fault, FaultCounts, TagProtocol};
use crate::{Span, SpanSet};

/// The first prompt token is always attended.
const SINK_TOKENS: u32 = 1;

/// Characters of a name or declaration beyond which it is no annotation.
const MAX_HEAD_CHARS: usize = 256;

/// What is wrong with a named span of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a name.
    #[error("{0:?} is not a name: letters, digits and _, beginning with a letter")]
    Malformed(String),
    /// Given twice.
    #[error("{0:?} names two spans of the prompt")]
    Duplicate(String),
    /// Behind the prompt.
    #[error("{name:?} is {span}, which ends past the prompt's {prompt_tokens} tokens")]
    PastPrompt {
        /// The name.
        name: String,
        /// Its span.
        span: Span,
        /// Length of the prompt.
        prompt_tokens: u32,
    },
}

/// A prompt whose parts can be referred to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfSpanPrompt {
    tokens: u32,
    names: Vec<(String, Span)>,
}

impl SelfSpanPrompt {
    /// A prompt of `tokens` tokens without named parts.
    pub fn new(tokens: u32) -> Self {
        Self { tokens, names: Vec::new() }
    }

    /// A prompt with named spans, such as the sentences of an article.
    pub fn with_names(tokens: u32, names: Vec<(String, Span)>) -> Result<Self, NameError> {
        for (at, (name, span)) in names.iter().enumerate() {
            if words(name).next() != Some(name) || !is_name(name) {
                return Err(NameError::Malformed(name.clone()));
            }
            if names[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(NameError::Duplicate(name.clone()));
            }
            if span.end() > tokens {
                let (name, span) = (name.clone(), *span);
                return Err(NameError::PastPrompt { name, span, prompt_tokens: tokens });
            }
        }
        Ok(Self { tokens, names })
    }
}

/// Where in a step the text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Region {
    /// Before `<`.
    Name,
    /// Between `<` and `>`.
    Declaration,
    /// Behind `>`, or behind a head that is no annotation.
    Computation,
    /// Behind `$`.
    End,
}

/// The state machine over one response.
#[derive(Debug, Clone)]
pub struct SelfSpanAttention {
    prompt_tokens: u32,
    fallback: Fallback,
    /// What can be referred to: named spans of the prompt, then the steps in order.
    lines: Vec<(String, Span)>,
    region: Region,
    /// Text of the present region up to its end.
    head: String,
    name: String,
    /// The declared lines of the present step, or `None` for everything.
    declared: Option<SpanSet>,
    /// First token of the present line.
    line_start: u32,
    /// Union of the lines that the newest token ended.
    ended: SpanSet,
    kv_len: u32,
    steps: u32,
    faults: FaultCounts,
}

impl SelfSpanAttention {
    /// Starts a response to a prompt.
    pub fn new(prompt: SelfSpanPrompt, fallback: Fallback) -> Self {
        Self {
            prompt_tokens: prompt.tokens,
            fallback,
            lines: prompt.names,
            region: Region::Name,
            head: String::new(),
            name: String::new(),
            declared: Some(SpanSet::empty()),
            line_start: prompt.tokens,
            ended: SpanSet::empty(),
            kv_len: prompt.tokens,
            steps: 0,
            faults: FaultCounts::default(),
        }
    }

    /// Steps that have ended.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Whether the response has ended with `$`.
    pub fn is_finished(&self) -> bool {
        self.region == Region::End
    }

    /// The lines that the present step declared, in tokens; `None` where the fallback attends to
    /// everything. Empty until the declaration is closed.
    pub fn declared(&self) -> Option<&SpanSet> {
        self.declared.as_ref()
    }

    fn push_char(&mut self, c: char) {
        // A token that ends one line and goes on belongs to the next as well.
        if self.line_start == self.kv_len {
            self.line_start = self.kv_len - 1;
        }
        match (self.region, c) {
            (Region::End, _) => {}
            (_, ';') => self.end_line(),
            (Region::Computation, _) => {}
            (Region::Name, '$') if self.head.trim().is_empty() => self.region = Region::End,
            (Region::Name, '<') => {
                self.name = self.head.trim().to_owned();
                if !is_name(&self.name) {
                    self.faults.add(Fault::MissingName);
                    self.name.clear();
                }
                self.head.clear();
                self.region = Region::Declaration;
            }
            (Region::Name, '>') => self.give_up(Fault::UnmatchedClose),
            (Region::Declaration, '<') => self.give_up(Fault::Nested),
            (Region::Declaration, '>') => self.declare(),
            (Region::Name | Region::Declaration, _) => {
                self.head.push(c);
                if self.head.chars().count() > MAX_HEAD_CHARS {
                    self.give_up(Fault::TooLong);
                }
            }
        }
    }

    /// Resolves the references of a declaration that was just closed.
    fn declare(&mut self) {
        let head = std::mem::take(&mut self.head);
        let mut spans = Vec::new();
        let mut unknown = false;
        for reference in words(&head).filter(|word| is_name(word)) {
            match self.lines.iter().rev().find(|(name, _)| name == reference) {
                Some((_, span)) => spans.push(*span),
                None => unknown = true,
            }
        }
        self.declared = Some(SpanSet::from_raw(spans));
        self.region = Region::Computation;
        if unknown {
            self.give_up(Fault::UnknownReference);
        }
    }

    /// Counts a fault of the step's head; the rest of the step is computation under the fallback.
    fn give_up(&mut self, fault: Fault) {
        self.faults.add(fault);
        self.head.clear();
        self.region = Region::Computation;
        if self.fallback == Fallback::Dense {
            self.declared = None;
        }
    }

    fn end_line(&mut self) {
        match self.region {
            Region::Name => self.faults.add(Fault::MissingDeclaration),
            Region::Declaration => self.faults.add(Fault::Unfinished),
            Region::Computation | Region::End => {}
        }
        let line = Span::from(self.line_start..self.kv_len);
        self.ended = self.ended.union(&SpanSet::from_raw([line]));
        let name = std::mem::take(&mut self.name);
        if !name.is_empty() {
            if self.lines.iter().any(|(earlier, _)| *earlier == name) {
                self.faults.add(Fault::RedefinedName);
            }
            self.lines.push((name, line));
        }
        self.steps = self.steps.saturating_add(1);
        self.line_start = self.kv_len;
        self.region = Region::Name;
        self.head.clear();
        self.declared = Some(SpanSet::empty());
    }

    /// The lines in scope now, besides the sink and the own line.
    fn scope(&self) -> SpanSet {
        match (self.region, &self.declared) {
            (Region::Computation, Some(declared)) => declared.clone(),
            (Region::Computation, None) => SpanSet::full(self.kv_len),
            _ => SpanSet::full(self.prompt_tokens),
        }
    }
}

impl TagProtocol for SelfSpanAttention {
    fn push_token(&mut self, text: &str) -> bool {
        let mut grown = self.spans();
        let token = self.kv_len;
        self.ended = SpanSet::empty();
        self.kv_len = self.kv_len.saturating_add(1);
        text.chars().for_each(|c| self.push_char(c));
        // Beyond the last position nothing grows.
        grown.append_token(token).is_err() || self.spans() != grown
    }

    fn spans(&self) -> SpanSet {
        let sink = Span::from(0..SINK_TOKENS.min(self.prompt_tokens));
        let own = SpanSet::from_raw([sink, Span::from(self.line_start..self.kv_len)]);
        own.union(&self.ended).union(&self.scope())
    }

    fn kv_len(&self) -> u32 {
        self.kv_len
    }

    fn faults(&self) -> &FaultCounts {
        &self.faults
    }

    fn finish(&mut self) {
        if self.region != Region::End
            && (self.region != Region::Name || !self.head.trim().is_empty())
        {
            self.faults.add(Fault::Unfinished);
        }
        self.region = Region::End;
    }
}

/// Maximal runs of letters, digits and `_`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Whether text is one word that begins with a letter.
fn is_name(text: &str) -> bool {
    text.starts_with(char::is_alphabetic) && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}
