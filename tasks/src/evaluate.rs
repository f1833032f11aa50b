//! What a model answers: samples decoded together, each with its own mask.

use crate::Sample;
use spanforge_runtime::model::{
    Decoder, Engine, EngineError, Finish, ROWS, Request, RequestId, Sampling, Selection,
    Vocabulary, VocabularyError,
};
use spanforge_spans::SpanSet;
use spanforge_spans::protocol::{
    Fallback, FaultCounts, NameError, SelfSpanAttention, SelfSpanPrompt, TagProtocol,
};
use spanforge_spans::trace::{Recorder, Response, ResponseError};
use std::collections::HashMap;

/// What generated tokens attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything.
    Dense,
    /// What the response declares.
    Span,
    /// What the response declares, without the declared lines: a control. A model that still answers
    /// did not need them.
    Withheld,
}

/// A response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its text, up to and including the end.
    pub text: String,
    /// How it has ended, and what it attended to.
    pub finish: Finish,
    /// Its decode steps; none where the first token has ended it.
    pub steps: Option<Response>,
}

/// Why samples cannot be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The model's vocabulary is another task's.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A named part of a prompt is malformed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Decode steps that a trace cannot hold.
    #[error(transparent)]
    Response(#[from] ResponseError),
}

/// Tokens that a response may have beyond twice those of the gold one. What is longer is wrong.
const SPARE: usize = 16;

/// The model's answers to the prompts of some samples, in their order, each token the most probable
/// one. `progress` is told how many are finished.
///
/// # Errors
/// A model that does not know the task's text, a cache too small for a sample, and what the attention
/// finds.
pub fn answers(
    decoder: Box<dyn Decoder + '_>,
    vocabulary: &Vocabulary,
    samples: &[Sample],
    mode: Mode,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Answer>, EvaluateError> {
    let mut engine = Engine::new(decoder, vocabulary, ROWS);
    let mut places: HashMap<RequestId, usize> = HashMap::new();
    let mut texts = vec![String::new(); samples.len()];
    let mut recorders = Vec::with_capacity(samples.len());
    for (place, sample) in samples.iter().enumerate() {
        let prompt = vocabulary.encode(&sample.prompt, false)?;
        let gold = vocabulary.encode(&sample.response, false)?.tokens.len();
        let begun = |prompt| SelfSpanAttention::new(prompt, Fallback::Dense);
        let named = sample.span_prompt(&prompt.offsets)?;
        recorders.push(Recorder::new(prompt.tokens.len() as u32));
        let id = engine.submit(Request {
            prompt: prompt.tokens,
            selection: match mode {
                Mode::Dense => Selection::Dense,
                Mode::Span => Selection::Protocol(Box::new(begun(named))),
                Mode::Withheld => Selection::Protocol(Box::new(Withheld::new(named))),
            },
            sampling: Sampling::Greedy,
            seed: 0,
            max_tokens: 2 * gold + SPARE,
        })?;
        places.insert(id, place);
    }
    let mut finishes: Vec<Option<Finish>> = vec![None; samples.len()];
    let mut finished = 0;
    while !engine.is_idle() {
        for event in engine.step()? {
            let Some(&place) = places.get(&event.request) else { continue };
            texts[place] += &event.text;
            if event.finish.is_some() {
                finishes[place] = event.finish;
                finished += 1;
                progress(finished);
            } else {
                recorders[place].push(&event.spans)?;
            }
        }
    }
    let all = texts.into_iter().zip(finishes).zip(recorders);
    let answer = |((text, finish), steps): ((String, Option<Finish>), Recorder)| {
        Some(Answer { text, finish: finish?, steps: steps.finish(None).ok() })
    };
    Ok(all.filter_map(answer).collect())
}

/// [`SelfSpanAttention`] without the lines that a step has declared.
struct Withheld(SelfSpanAttention);

impl Withheld {
    fn new(prompt: SelfSpanPrompt) -> Self {
        Self(SelfSpanAttention::new(prompt, Fallback::Dense))
    }
}

impl TagProtocol for Withheld {
    fn push_token(&mut self, text: &str) -> bool {
        self.0.push_token(text)
    }

    fn spans(&self) -> SpanSet {
        match self.0.declared() {
            Some(declared) => self.0.spans().difference(declared),
            None => self.0.spans(),
        }
    }

    fn kv_len(&self) -> u32 {
        self.0.kv_len()
    }

    fn faults(&self) -> &FaultCounts {
        self.0.faults()
    }

    fn finish(&mut self) {
        self.0.finish();
    }
}
