//! Where a decode step's keys and values are kept, and attended to.

use super::config::ModelConfig;
use crate::attention::AttentionError;
use crate::cache::CacheError;
use crate::pages::Pages;
use spanforge_spans::SpanSet;

/// The rows of one step: tokens, each the query of its own position.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// `[rows]`: request of each row.
    pub requests: Vec<usize>,
    /// `[rows]`: its position. Rows of one request come in ascending order, and take the positions
    /// that follow those that the cache has.
    pub positions: Vec<usize>,
    /// `[rows]`: what it attends to, itself included if it should.
    pub spans: Vec<SpanSet>,
}

impl Step {
    /// Refuses rows that do not belong together, or to the model: as many as `tokens`, each in its
    /// vocabulary, and `wanted` among them.
    pub(super) fn check(
        &self,
        config: &ModelConfig,
        tokens: &[u32],
        wanted: &[usize],
    ) -> Result<(), AttendError> {
        let rows = tokens.len();
        for (what, found) in [
            ("requests", self.requests.len()),
            ("positions", self.positions.len()),
            ("spans", self.spans.len()),
        ] {
            if found != rows {
                let fault = format!("{found} of them for {rows} tokens");
                return Err(AttendError::Step { what, fault });
            }
        }
        let vocabulary = config.vocab_size;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            let fault = format!("{token} is not one of the vocabulary's {vocabulary}");
            return Err(AttendError::Step { what: "tokens", fault });
        }
        if let Some(row) = wanted.iter().find(|row| **row >= rows) {
            let fault = format!("row {row} of {rows}");
            return Err(AttendError::Step { what: "wanted rows", fault });
        }
        Ok(())
    }

    /// Refuses rows at, or attending to, positions that their request has not.
    pub(super) fn check_room(&self, pages: &Pages) -> Result<(), AttendError> {
        for (row, request) in self.requests.iter().enumerate() {
            let tokens = pages.tokens(*request)?;
            let (position, end) = (self.positions[row], self.spans[row].end() as usize);
            if position >= tokens || end > tokens {
                let fault = format!(
                    "row {row} is at {position} and attends up to {end}, and request {request} has \
                     {tokens} tokens"
                );
                return Err(AttendError::Step { what: "spans", fault });
            }
        }
        Ok(())
    }
}

/// What can go wrong with the attention of a step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttendError {
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The kernel, or the device.
    #[error(transparent)]
    Attention(#[from] AttentionError),
    /// Rows that do not belong together.
    #[error("a step's {what}: {fault}")]
    Step {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        fault: String,
    },
}

/// A paged cache and the attention over it. A step is begun once, then run layer by layer.
pub trait Attend {
    /// Which pages requests have, to give them room and take it back.
    fn pages_mut(&mut self) -> &mut Pages;

    /// Prepares for a step: its rows' positions have room.
    ///
    /// # Errors
    /// A step that does not fit the cache or the device.
    fn begin(&mut self, step: &Step) -> Result<(), AttendError>;

    /// Keeps the rows' keys and values of one layer, `k` and `v` `[rows, kv_heads, head_dim]`, and
    /// attends with `q` `[rows, query_heads, head_dim]`, each row to its spans. The result has the
    /// shape of `q`; a row without a span has zeros.
    ///
    /// # Errors
    /// A layer that there is not, and what the device finds.
    fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Result<Vec<f32>, AttendError>;
}
