//! What a decode step takes, by the steps of a trace.

use super::attend::{AttendError, Step};
use super::decoder::Decoder;
use rayon::prelude::*;
use spanforge_spans::SpanSet;
use spanforge_spans::trace::TraceBatch;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What the rows of a step attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All tokens before them.
    Everything,
    /// The spans that the trace has.
    Spans,
    /// Themselves alone: what is left of a step without attention.
    Itself,
}

/// What one step took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// From tokens to logits.
    pub time: Duration,
    /// Tokens that its rows attended to.
    pub attended: u64,
    /// Tokens that its rows could attend to.
    pub available: u64,
}

/// Tokens per page of the cache.
pub const PAGE_SIZE: u32 = 16;

/// The pages that the largest of some batches needs.
pub fn pages(batches: &[TraceBatch]) -> usize {
    let needed = |batch: &TraceBatch| -> usize {
        batch.kv_len.iter().map(|tokens| (*tokens as usize).div_ceil(PAGE_SIZE as usize)).sum()
    };
    batches.iter().map(needed).max().unwrap_or(0)
}

/// One step of the rows of `batch`, whose cache holds something at every position.
///
/// # Errors
/// A batch that the cache was not made for, and what the decoder finds.
pub fn time_step(
    decoder: &mut dyn Decoder,
    batch: &TraceBatch,
    reach: Reach,
) -> Result<StepTime, AttendError> {
    let pages = decoder.pages_mut();
    for request in 0..pages.requests() {
        pages.release(request)?;
    }
    let mut step = Step::default();
    for (request, row) in batch.rows.iter().enumerate() {
        pages.extend(request, row.kv_len as usize)?;
        step.requests.push(request);
        step.positions.push(row.kv_len as usize - 1);
        step.spans.push(match reach {
            Reach::Everything => SpanSet::full(row.kv_len),
            Reach::Spans => row.spans.clone(),
            Reach::Itself => SpanSet::from(row.kv_len - 1..row.kv_len),
        });
    }
    let (rows, vocabulary) = (batch.rows.len(), decoder.config().vocab_size);
    let tokens: Vec<u32> = (0..rows).map(|row| (row * 7919 % vocabulary) as u32).collect();
    let wanted: Vec<usize> = (0..rows).collect();
    let begun = Instant::now();
    black_box(decoder.step(&tokens, &step, &wanted)?);
    Ok(StepTime {
        time: begun.elapsed(),
        attended: step.spans.iter().map(SpanSet::len_tokens).sum(),
        available: batch.rows.iter().map(|row| u64::from(row.kv_len)).sum(),
    })
}

/// Bytes a second at which all cores together read memory: the best of some passes over more than
/// the caches hold.
pub fn read_bandwidth() -> f64 {
    const WORDS: usize = 1 << 26;
    const PASSES: usize = 5;
    let words: Vec<u64> = (0..WORDS as u64).into_par_iter().collect();
    let pass = || {
        let begun = Instant::now();
        let sum = |chunk: &[u64]| chunk.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word));
        black_box(words.par_chunks(1 << 16).map(sum).reduce(|| 0, u64::wrapping_add));
        begun.elapsed().as_secs_f64()
    };
    let best = (0..PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min);
    (WORDS * size_of::<u64>()) as f64 / best
}
