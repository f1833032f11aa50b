//! One span and the canonical set of spans, the only form in which sets are compared, counted
//! or handed to a kernel.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What is wrong with a span or with moving one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpanError {
    /// The start lies behind the end.
    #[error(
        "span [{start}, {end}) is reversed: its start must not exceed its end (spans are half-open)"
    )]
    Reversed {
        /// Start as given.
        start: u32,
        /// End as given.
        end: u32,
    },
    /// Moving the span leaves the range of token positions.
    #[error("span [{start}, {end}) moved by {by} leaves the token positions 0 to {}", u32::MAX)]
    OutOfRange {
        /// Start before the move.
        start: u32,
        /// End before the move.
        end: u32,
        /// The distance asked for, in tokens.
        by: i64,
    },
    /// The last position has no half-open span behind it.
    #[error("token {0} cannot be appended: the span's end would not be a token position")]
    LastPosition(u32),
}

/// A half-open range `[start, end)` of logical token positions; `start <= end` always holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "[u32; 2]", into = "[u32; 2]")]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The span `[start, end)`; an empty one is allowed, a reversed one is an error.
    pub const fn new(start: u32, end: u32) -> Result<Self, SpanError> {
        if start > end {
            return Err(SpanError::Reversed { start, end });
        }
        Ok(Self { start, end })
    }

    /// First token.
    pub const fn start(self) -> u32 {
        self.start
    }

    /// One past the last token.
    pub const fn end(self) -> u32 {
        self.end
    }

    /// Number of tokens.
    pub const fn len(self) -> u32 {
        self.end - self.start
    }

    /// Whether it holds no token.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether `token` lies in it.
    pub const fn contains(self, token: u32) -> bool {
        self.start <= token && token < self.end
    }
}

/// A range becomes the span of the same tokens; as in the standard library a reversed range holds
/// none.
impl From<Range<u32>> for Span {
    fn from(range: Range<u32>) -> Self {
        Self { start: range.start, end: range.end.max(range.start) }
    }
}

impl TryFrom<[u32; 2]> for Span {
    type Error = SpanError;
    fn try_from([start, end]: [u32; 2]) -> Result<Self, SpanError> {
        Self::new(start, end)
    }
}

impl From<Span> for [u32; 2] {
    fn from(span: Span) -> Self {
        [span.start, span.end]
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of tokens as its canonical spans: sorted, disjoint, non-empty, adjacent ones merged. Two
/// sets of the same tokens are equal, and hash alike, so a set can be the key of a plan.
///
/// In JSON a set is a list of `[start, end]` pairs; any raw list is read, a reversed pair is an
/// error.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<[u32; 2]>", into = "Vec<[u32; 2]>")]
pub struct SpanSet {
    spans: Vec<Span>,
}

impl SpanSet {
    /// The set without tokens.
    pub const fn empty() -> Self {
        Self { spans: Vec::new() }
    }

    /// The tokens `0..tokens`.
    pub fn full(tokens: u32) -> Self {
        Self::from_raw([Span { start: 0, end: tokens }])
    }

    /// The union of spans in any order; they may overlap, repeat, touch and be empty.
    pub fn from_raw(spans: impl IntoIterator<Item = Span>) -> Self {
        let mut raw: Vec<Span> = spans.into_iter().filter(|s| !s.is_empty()).collect();
        raw.sort_unstable();
        let mut set = Self::empty();
        for span in raw {
            set.push_sorted(span);
        }
        set
    }

    /// [`from_raw`](Self::from_raw) over `(start, end)` pairs from outside, which may be reversed.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (u32, u32)>) -> Result<Self, SpanError> {
        let spans: Result<Vec<Span>, SpanError> =
            pairs.into_iter().map(|(start, end)| Span::new(start, end)).collect();
        Ok(Self::from_raw(spans?))
    }

    /// Adds a non-empty span that starts at or behind the start of the last one.
    fn push_sorted(&mut self, span: Span) {
        match self.spans.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => self.spans.push(span),
        }
    }

    /// The canonical spans, in order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Iterates over the canonical spans, in order.
    pub fn iter(&self) -> std::iter::Copied<std::slice::Iter<'_, Span>> {
        self.spans.iter().copied()
    }

    /// Iterates over the tokens, ascending.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.spans.iter().flat_map(|s| s.start..s.end)
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Number of tokens.
    pub fn len_tokens(&self) -> u64 {
        self.spans.iter().map(|s| u64::from(s.len())).sum()
    }

    /// One past the last token; 0 for the empty set. The KV length the set needs at least.
    pub fn end(&self) -> u32 {
        self.spans.last().map_or(0, |s| s.end)
    }

    /// Whether `token` is in the set.
    pub fn contains(&self, token: u32) -> bool {
        let behind = self.spans.partition_point(|s| s.start <= token);
        behind > 0 && self.spans[behind - 1].contains(token)
    }

    /// Tokens in either set.
    pub fn union(&self, other: &Self) -> Self {
        let (mut a, mut b) = (self.iter().peekable(), other.iter().peekable());
        let mut out = Self::empty();
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x <= y => a.next(),
                (_, Some(_)) => b.next(),
                _ => a.next(),
            };
            let Some(span) = next else { return out };
            out.push_sorted(span);
        }
    }

    /// Tokens in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut i, mut j) = (0, 0);
        let mut out = Self::empty();
        while let (Some(a), Some(b)) = (self.spans.get(i), other.spans.get(j)) {
            let span = Span::from(a.start.max(b.start)..a.end.min(b.end));
            if !span.is_empty() {
                out.push_sorted(span);
            }
            // The span that ends first can meet nothing further.
            if a.end <= b.end { i += 1 } else { j += 1 }
        }
        out
    }

    /// Tokens of this set that are not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self::empty();
        let mut j = 0;
        for a in self.iter() {
            let mut start = a.start;
            while other.spans.get(j).is_some_and(|b| b.end <= start) {
                j += 1;
            }
            // A span of `other` may reach into the next span of `self`, so `j` stays on it.
            let mut k = j;
            while let Some(b) = other.spans.get(k).filter(|b| b.start < a.end) {
                if b.start > start {
                    out.push_sorted(Span { start, end: b.start });
                }
                start = start.max(b.end);
                k += 1;
            }
            if start < a.end {
                out.push_sorted(Span { start, end: a.end });
            }
        }
        out
    }

    /// The set moved by `by` tokens, or an error where a span would leave the token positions.
    pub fn shift(&self, by: i64) -> Result<Self, SpanError> {
        let moved = |at: u32| i64::from(at).checked_add(by).and_then(|at| u32::try_from(at).ok());
        let spans: Result<Vec<Span>, SpanError> = self
            .iter()
            .map(|s| match (moved(s.start), moved(s.end)) {
                (Some(start), Some(end)) => Ok(Span { start, end }),
                _ => Err(SpanError::OutOfRange { start: s.start, end: s.end, by }),
            })
            .collect();
        Ok(Self { spans: spans? })
    }

    /// Adds one token. At the end of the set, where decoding appends, this is constant time: it
    /// grows the last span or adds `[token, token + 1)`.
    pub fn append_token(&mut self, token: u32) -> Result<(), SpanError> {
        let end = token.checked_add(1).ok_or(SpanError::LastPosition(token))?;
        let span = Span { start: token, end };
        if self.spans.last().is_none_or(|last| last.start <= token) {
            self.push_sorted(span);
        } else {
            *self = self.union(&Self { spans: vec![span] });
        }
        Ok(())
    }
}

impl FromIterator<Span> for SpanSet {
    fn from_iter<I: IntoIterator<Item = Span>>(spans: I) -> Self {
        Self::from_raw(spans)
    }
}

impl From<Range<u32>> for SpanSet {
    fn from(range: Range<u32>) -> Self {
        Self::from_raw([Span::from(range)])
    }
}

impl TryFrom<Vec<[u32; 2]>> for SpanSet {
    type Error = SpanError;
    fn try_from(pairs: Vec<[u32; 2]>) -> Result<Self, SpanError> {
        Self::from_pairs(pairs.into_iter().map(|[start, end]| (start, end)))
    }
}

impl From<SpanSet> for Vec<[u32; 2]> {
    fn from(set: SpanSet) -> Self {
        set.iter().map(Into::into).collect()
    }
}

impl fmt::Debug for SpanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.spans).finish()
    }
}
