//! A model with its cache, wherever it is computed.

use super::attend::{Attend, AttendError, Step};
use super::config::ModelConfig;
use super::llama::Llama;
use crate::pages::Pages;

/// From the tokens of a step to logits.
pub trait Decoder {
    /// What the model is.
    fn config(&self) -> &ModelConfig;

    /// Which pages requests have, to give them room and take it back.
    fn pages_mut(&mut self) -> &mut Pages;

    /// One step: `tokens` `[rows]`, each below the vocabulary's size, at the positions of `step`, whose
    /// room has been taken. Returns the logits of the rows `wanted`, in their order, `[wanted,
    /// vocab_size]`.
    ///
    /// # Errors
    /// Rows that do not belong together, and what attention or the device finds.
    fn step(
        &mut self,
        tokens: &[u32],
        step: &Step,
        wanted: &[usize],
    ) -> Result<Vec<f32>, AttendError>;
}

/// A model on the CPU, its attention wherever it is.
pub struct HostDecoder<'m> {
    model: &'m Llama,
    attention: Box<dyn Attend + 'm>,
}

impl<'m> HostDecoder<'m> {
    /// A model with the cache of `attention`.
    pub fn new(model: &'m Llama, attention: Box<dyn Attend + 'm>) -> Self {
        Self { model, attention }
    }
}

impl Decoder for HostDecoder<'_> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn pages_mut(&mut self) -> &mut Pages {
        self.attention.pages_mut()
    }

    fn step(
        &mut self,
        tokens: &[u32],
        step: &Step,
        wanted: &[usize],
    ) -> Result<Vec<f32>, AttendError> {
        self.model.step(tokens, step, wanted, self.attention.as_mut())
    }
}
