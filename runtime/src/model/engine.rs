//! Decoding: requests join and leave a batch, and each selects the spans of its next step by what it
//! has written.
//!
//! A step has one row per token: the prompts of new requests in stretches, and the newest token of
//! each other request. Prompt tokens attend to all before them; a generated token to what its
//! request's protocol says. A request is admitted when the cache has pages for all that it may come
//! to, so that none is ever put off in the middle.

use super::attend::{AttendError, Step};
use super::decoder::Decoder;
use super::sampling::Sampling;
use super::vocabulary::{TextStream, Vocabulary};
use crate::pages::Pages;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use spanforge_spans::protocol::{FaultCounts, TagProtocol};
use spanforge_spans::{SpanError, SpanSet};
use std::collections::VecDeque;

/// Rows of a step, where nothing speaks for another number: a prompt is taken in stretches of so many
/// tokens. An attention on a device is loaded for as many.
pub const ROWS: usize = 256;

/// What generated tokens attend to.
pub enum Selection {
    /// Everything.
    Dense,
    /// What the protocol makes of the response; it has begun with the request's prompt.
    Protocol(Box<dyn TagProtocol + Send>),
}

/// A text to go on with.
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// What generated tokens attend to.
    pub selection: Selection,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of that.
    pub seed: u64,
    /// The most to generate, at least one; fewer where the cache or the model's positions end before.
    pub max_tokens: usize,
}

/// Names a request of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Why a request is not taken, or a step fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A prompt that leaves no room for a response.
    #[error(
        "the prompt has {prompt} tokens, and with at least one more the {what} holds {room}: shorten it, or make a larger cache"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that there is room for.
        room: usize,
        /// What the limit is of.
        what: &'static str,
    },
    /// A prompt without a token.
    #[error("the prompt is empty: a response begins with what follows its last token")]
    EmptyPrompt,
    /// A request that asks for nothing.
    #[error("0 tokens are to be generated")]
    NoTokens,
    /// A token that the model does not have.
    #[error(
        "token {token} of the prompt is not one of the model's {vocabulary}: the tokenizer is another model's"
    )]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the model's vocabulary.
        vocabulary: usize,
    },
    /// A protocol that has begun with another prompt.
    #[error("the protocol counts {protocol} prompt tokens, and the prompt has {prompt}")]
    OtherPrompt {
        /// Of the protocol.
        protocol: u32,
        /// Of the prompt.
        prompt: usize,
    },
    /// Temperature or probability out of range.
    #[error(
        "a temperature of {temperature} and a probability of {top_p}: both are positive, the latter at most 1"
    )]
    Sampling {
        /// As given.
        temperature: f32,
        /// As given.
        top_p: f32,
    },
    /// Spans that are none.
    #[error(transparent)]
    Span(#[from] SpanError),
    /// The step.
    #[error(transparent)]
    Attend(#[from] AttendError),
}

/// A token that was generated.
#[derive(Clone, Debug)]
pub struct Event {
    /// The request.
    pub request: RequestId,
    /// The token.
    pub token: u32,
    /// The text that it adds; none while a character is unfinished.
    pub text: String,
    /// What the token attends to as the next query.
    pub spans: SpanSet,
    /// Whether that is another selection than that of the token before, besides the new token.
    pub changed: bool,
    /// Where the request has ended.
    pub finish: Option<Finish>,
}

/// How a request has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Generated tokens, the last one included.
    pub tokens: usize,
    /// Pairs of a query that predicted a token of the response and a token that it attended to,
    /// itself included. The first such query is the prompt's last token, which attends to everything.
    pub attended: u64,
    /// Such pairs, if each attended to all before it.
    pub available: u64,
    /// Annotations that were malformed, each of which fell back.
    pub faults: FaultCounts,
}

/// Why a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model has said so.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The cache, or the model's positions, hold no more.
    Full,
}

struct Active {
    id: RequestId,
    request: Request,
    /// Tokens whose keys are in the cache.
    cached: usize,
    /// The response.
    generated: Vec<u32>,
    /// Tokens that prompt and response may have together.
    room: usize,
    stream: TextStream,
    rng: ChaCha8Rng,
    attended: u64,
    available: u64,
}

/// Requests that are decoded together.
pub struct Engine<'m> {
    decoder: Box<dyn Decoder + 'm>,
    vocabulary: &'m Vocabulary,
    /// Rows of a step at most.
    rows: usize,
    /// By request number of the cache.
    active: Vec<Option<Active>>,
    waiting: VecDeque<(RequestId, Request)>,
    submitted: u64,
}

impl<'m> Engine<'m> {
    /// An engine whose steps have at most `rows` rows, or one per request that the cache of `decoder`
    /// has, if those are more. An attention on a device was loaded for as many.
    pub fn new(
        mut decoder: Box<dyn Decoder + 'm>,
        vocabulary: &'m Vocabulary,
        rows: usize,
    ) -> Self {
        let requests = decoder.pages_mut().requests();
        let active = (0..requests).map(|_| None).collect();
        let (rows, waiting) = (rows.max(requests), VecDeque::new());
        Self { decoder, vocabulary, rows, active, waiting, submitted: 0 }
    }

    /// Takes a request, which is begun when there is room for it.
    ///
    /// # Errors
    /// A request that could never be served; the others go on.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        let prompt = request.prompt.len();
        let (room, what) = self.room();
        if prompt == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if request.max_tokens == 0 {
            return Err(EngineError::NoTokens);
        }
        if prompt >= room {
            return Err(EngineError::TooLong { prompt, room, what });
        }
        let vocabulary = self.decoder.config().vocab_size;
        if let Some(&token) = request.prompt.iter().find(|token| **token as usize >= vocabulary) {
            return Err(EngineError::UnknownToken { token, vocabulary });
        }
        if let Selection::Protocol(protocol) = &request.selection
            && protocol.kv_len() as usize != prompt
        {
            return Err(EngineError::OtherPrompt { protocol: protocol.kv_len(), prompt });
        }
        if let Sampling::Random { temperature, top_p } = request.sampling {
            let positive = |value: f32| value.is_finite() && value > 0.0;
            if !(positive(temperature) && positive(top_p) && top_p <= 1.0) {
                return Err(EngineError::Sampling { temperature, top_p });
            }
        }
        let id = RequestId(self.submitted);
        self.submitted += 1;
        self.waiting.push_back((id, request));
        Ok(id)
    }

    /// Whether all requests have ended.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.iter().all(Option::is_none)
    }

    /// Which pages requests have.
    pub fn pages_mut(&mut self) -> &mut Pages {
        self.decoder.pages_mut()
    }

    /// Tokens that one request may come to, and what limits them.
    fn room(&mut self) -> (usize, &'static str) {
        let positions = self.decoder.config().max_positions;
        let cache = self.decoder.pages_mut().room();
        if cache < positions { (cache, "cache") } else { (positions, "model") }
    }

    /// Begins waiting requests, in their order, while the cache has pages for all they may need.
    fn admit(&mut self) {
        let (room, _) = self.room();
        let pages = self.decoder.pages_mut();
        let taken: usize =
            self.active.iter().flatten().map(|active| pages.needed(active.room)).sum();
        let mut free = pages.count().saturating_sub(taken);
        for slot in self.active.iter_mut().filter(|slot| slot.is_none()) {
            let Some((_, next)) = self.waiting.front() else { return };
            let room = room.min(next.prompt.len().saturating_add(next.max_tokens));
            let needed = pages.needed(room);
            if needed > free {
                return;
            }
            free -= needed;
            let Some((id, request)) = self.waiting.pop_front() else { return };
            *slot = Some(Active {
                id,
                rng: ChaCha8Rng::seed_from_u64(request.seed),
                request,
                cached: 0,
                generated: Vec::new(),
                room,
                stream: self.vocabulary.stream(),
                attended: 0,
                available: 0,
            });
        }
    }

    /// One step of all requests: what it generated, nothing where it was taken up with prompts or
    /// nothing is to be done.
    ///
    /// # Errors
    /// What the model's step finds; requests are as they were before then, but for their pages.
    pub fn step(&mut self) -> Result<Vec<Event>, EngineError> {
        self.admit();
        let mut step = Step::default();
        let (mut tokens, mut wanted, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        // Those that generate come first: a long prompt does not hold them up.
        let by_kind = [false, true].into_iter().flat_map(|prompts| {
            let is_it = move |active: &Active| active.generated.is_empty() == prompts;
            self.active.iter().enumerate().filter_map(move |(slot, active)| {
                active.as_ref().filter(|active| is_it(active)).map(|active| (slot, active))
            })
        });
        for (slot, active) in by_kind {
            let left = self.rows - tokens.len();
            let prompt = &active.request.prompt;
            let length = prompt.len() + active.generated.len();
            let stretch = (length - active.cached).min(left);
            for position in active.cached..active.cached + stretch {
                step.requests.push(slot);
                step.positions.push(position);
                step.spans.push(active.spans(position)?);
                let response = || active.generated[position - prompt.len()];
                tokens.push(prompt.get(position).copied().unwrap_or_else(response));
            }
            if stretch > 0 && active.cached + stretch == length {
                wanted.push(tokens.len() - 1);
                ends.push(slot);
            }
        }
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let pages = self.decoder.pages_mut();
        for (slot, position) in step.requests.iter().zip(&step.positions) {
            if pages.tokens(*slot).map_err(AttendError::from)? <= *position {
                pages.extend(*slot, 1).map_err(AttendError::from)?;
            }
        }
        let logits = self.decoder.step(&tokens, &step, &wanted)?;
        for (row, slot) in step.requests.iter().enumerate() {
            if let Some(active) = &mut self.active[*slot] {
                active.cached = step.positions[row] + 1;
                if active.cached >= active.request.prompt.len() {
                    active.attended += step.spans[row].len_tokens();
                    active.available += active.cached as u64;
                }
            }
        }
        let vocabulary = self.decoder.config().vocab_size;
        let mut events = Vec::with_capacity(ends.len());
        for (slot, logits) in ends.into_iter().zip(logits.chunks_exact(vocabulary)) {
            let Some(active) = &mut self.active[slot] else { continue };
            let event = active.take(logits, self.vocabulary, &self.decoder.config().end_tokens)?;
            if event.finish.is_some() {
                self.active[slot] = None;
                self.decoder.pages_mut().release(slot).map_err(AttendError::from)?;
            }
            events.push(event);
        }
        Ok(events)
    }
}

impl Active {
    /// What the token at a position attends to. Of generated tokens only the newest is a query.
    fn spans(&self, position: usize) -> Result<SpanSet, SpanError> {
        match &self.request.selection {
            Selection::Protocol(protocol) if position >= self.request.prompt.len() => {
                Ok(protocol.spans())
            }
            // Positions are those of a cache, which are counted in 32 bits.
            _ => Ok(SpanSet::full(position as u32 + 1)),
        }
    }

    /// Takes the next token of the response.
    fn take(
        &mut self,
        logits: &[f32],
        vocabulary: &Vocabulary,
        ends: &[u32],
    ) -> Result<Event, EngineError> {
        let token = self.request.sampling.choose(logits, &mut self.rng);
        self.generated.push(token);
        let text = vocabulary.push(&mut self.stream, token);
        let length = self.request.prompt.len() + self.generated.len();
        let changed = match &mut self.request.selection {
            Selection::Protocol(protocol) => protocol.push_token(&text),
            Selection::Dense => false,
        };
        let reason = match () {
            () if ends.contains(&token) => Some(FinishReason::Stop),
            () if self.generated.len() >= self.request.max_tokens => Some(FinishReason::Length),
            () if length >= self.room => Some(FinishReason::Full),
            () => None,
        };
        let finish = reason.map(|reason| {
            let faults = match &mut self.request.selection {
                Selection::Protocol(protocol) => {
                    protocol.finish();
                    protocol.faults().clone()
                }
                Selection::Dense => FaultCounts::default(),
            };
            let Self { attended, available, .. } = *self;
            Finish { reason, tokens: self.generated.len(), attended, available, faults }
        });
        let spans = self.spans(length - 1)?;
        Ok(Event { request: self.id, token, text, spans, changed, finish })
    }
}
