//! Responses as they are decoded, put together to phases.

use super::{Phase, Response, ResponseError};
use crate::{Span, SpanSet};

/// The mode of steps that attend to everything.
const GLOBAL: &str = "global";

/// The mode of steps that attend to a part.
const FOCUS: &str = "focus";

/// Puts the steps of one response together to phases.
#[derive(Debug, Clone)]
pub struct Recorder {
    prompt_tokens: u32,
    steps: u32,
    phases: Vec<Phase>,
}

impl Recorder {
    /// A response to a prompt, without a step.
    pub fn new(prompt_tokens: u32) -> Self {
        Self { prompt_tokens, steps: 0, phases: Vec::new() }
    }

    /// The next step, which attends to `spans`.
    ///
    /// # Errors
    /// A step that does not attend to itself, which the format cannot say, and more tokens than it
    /// counts.
    pub fn push(&mut self, spans: &SpanSet) -> Result<(), ResponseError> {
        let step = self.steps;
        let kv_len = self.prompt_tokens.checked_add(step).and_then(|n| n.checked_add(1));
        let kv_len = kv_len.filter(|n| *n <= i32::MAX as u32).ok_or(ResponseError::TooLong)?;
        let Some((tail, rest)) = spans.spans().split_last().filter(|(s, _)| s.end() == kv_len)
        else {
            return Err(ResponseError::NotItself { step });
        };
        self.steps += 1;
        if let Some(phase) = self.phases.last_mut() {
            let grown = Span::from(phase.tail_start..kv_len);
            if phase.spans.union(&SpanSet::from_raw([grown])) == *spans {
                phase.tokens += 1;
                return Ok(());
            }
        }
        let mode = if *spans == SpanSet::full(kv_len) { GLOBAL } else { FOCUS };
        self.phases.push(Phase {
            mode: mode.to_owned(),
            tokens: 1,
            spans: SpanSet::from_raw(rest.iter().copied()),
            tail_start: tail.start(),
        });
        Ok(())
    }

    /// The response; `source` says what kind of request it stands for.
    ///
    /// # Errors
    /// A response without a step.
    pub fn finish(self, source: Option<String>) -> Result<Response, ResponseError> {
        Response::new(source, self.prompt_tokens, self.phases)
    }
}
