//! What a trainer takes, whatever the task.

use std::ops::{AddAssign, Range};

use spanforge_spans::Span;
use spanforge_spans::protocol::{
    Fallback, NameError, SelfSpanAttention, SelfSpanPrompt, TagProtocol,
};
use spanforge_spans::trace::{Recorder, Response, ResponseError};

use crate::{Vocabulary, VocabularyError};

/// A prompt with the response to learn, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// From the beginning of the sequence up to where the response starts.
    pub prompt: String,
    /// Parts of the prompt that the response can refer to, in bytes of the prompt.
    pub names: Vec<(String, Range<usize>)>,
    /// The steps and the end.
    pub response: String,
}

impl Sample {
    /// The prompt as the protocol takes it. `offsets` are the bytes of each prompt token, in order,
    /// as a tokenizer gives them; a token that reaches into a named part belongs to it.
    ///
    /// Fails where a name is no name or given twice, which no generator of this crate does.
    pub fn span_prompt(&self, offsets: &[Range<usize>]) -> Result<SelfSpanPrompt, NameError> {
        let named = self.names.iter().map(|(name, bytes)| {
            let first = offsets.partition_point(|token| token.end <= bytes.start);
            let end = offsets.partition_point(|token| token.start < bytes.end);
            (name.clone(), Span::from(first as u32..end as u32))
        });
        SelfSpanPrompt::with_names(offsets.len() as u32, named.collect())
    }

    /// What the gold response attends to, cut into tokens by `vocabulary`.
    pub fn attended_pairs(&self, vocabulary: &Vocabulary) -> Result<AttendedPairs, SampleError> {
        let prompt = self.span_prompt(&vocabulary.encode(&self.prompt)?.offsets)?;
        let response = vocabulary.encode(&self.response)?;
        let mut state = SelfSpanAttention::new(prompt, Fallback::Dense);
        let mut pairs = AttendedPairs::default();
        for piece in response.ids.iter().filter_map(|id| vocabulary.piece(*id)) {
            pairs.attended += state.spans().len_tokens();
            pairs.available += u64::from(state.kv_len());
            state.push_token(piece);
        }
        Ok(pairs)
    }

    /// What each character of the gold response attends to, as a response of a decode trace whose
    /// tokens are characters. A trainer with a tokenizer of its own makes its masks of it.
    pub fn by_character(&self) -> Result<Response, SampleError> {
        let characters = self.prompt.char_indices().map(|(at, c)| at..at + c.len_utf8());
        let prompt = self.span_prompt(&characters.collect::<Vec<_>>())?;
        let mut state = SelfSpanAttention::new(prompt, Fallback::Dense);
        let mut recorder = Recorder::new(state.kv_len());
        for c in self.response.chars() {
            state.push_token(c.encode_utf8(&mut [0; 4]));
            recorder.push(&state.spans())?;
        }
        Ok(recorder.finish(None)?)
    }
}

/// Why a sample has no mask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// Its text is outside the vocabulary.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A named part is malformed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An empty response, or one beyond what a trace counts.
    #[error(transparent)]
    Response(#[from] ResponseError),
}

/// Pairs of a query that predicts a token of the response and a token that it may see, itself
/// included. The first such query is the prompt's last token; the end of the response is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttendedPairs {
    /// Pairs that are attended.
    pub attended: u64,
    /// Pairs under causal attention to everything.
    pub available: u64,
}

impl AttendedPairs {
    /// Attended pairs of the available ones; 1 where there are none.
    pub fn share(&self) -> f64 {
        if self.available == 0 { 1.0 } else { self.attended as f64 / self.available as f64 }
    }
}

impl AddAssign for AttendedPairs {
    fn add_assign(&mut self, other: Self) {
        self.attended += other.attended;
        self.available += other.available;
    }
}
