//! What a decode step takes, by the steps of a trace.

use super::attend::{Attend, AttendError, Step};
use super::host_attention::HostAttention;
use super::llama::Llama;
use crate::cache::CacheSize;
use crate::pages::Pages;
use rayon::prelude::*;
use spanforge_spans::SpanSet;
use spanforge_spans::trace::TraceBatch;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What one step took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// From tokens to logits.
    pub total: Duration,
    /// The attention of all layers, with keys and values kept.
    pub attention: Duration,
    /// Tokens that its rows attended to.
    pub attended: u64,
    /// Tokens that its rows could attend to.
    pub available: u64,
}

/// A model with a cache that holds the requests of some steps.
pub struct DecodeBench<'m> {
    model: &'m Llama,
    attention: Timed,
}

/// Tokens per page of the cache.
const PAGE_SIZE: u32 = 16;

/// The pages that the largest of some batches needs.
fn pages(batches: &[TraceBatch]) -> usize {
    let needed = |batch: &TraceBatch| -> usize {
        batch.kv_len.iter().map(|tokens| (*tokens as usize).div_ceil(PAGE_SIZE as usize)).sum()
    };
    batches.iter().map(needed).max().unwrap_or(0)
}

impl<'m> DecodeBench<'m> {
    /// Bytes of the cache that the steps `batches` need: a number to ask for before it is taken.
    pub fn cache_bytes(model: &Llama, batches: &[TraceBatch]) -> usize {
        let config = model.config();
        let token = 2 * size_of::<f32>() * config.kv_size() * config.layers;
        pages(batches).saturating_mul(PAGE_SIZE as usize).saturating_mul(token)
    }

    /// A cache of random keys and values for the steps `batches`.
    ///
    /// # Errors
    /// A size that cannot be counted.
    pub fn new(model: &'m Llama, batches: &[TraceBatch], seed: u64) -> Result<Self, AttendError> {
        let (layers, pages) = (model.config().layers, pages(batches));
        let requests = batches.iter().map(|batch| batch.rows.len()).max().unwrap_or(0);
        let size = CacheSize { layers, pages, requests, max_pages: pages };
        let mut cache = HostAttention::new(model.config(), PAGE_SIZE, &size)?;
        cache.fill_random(seed);
        Ok(Self { model, attention: Timed { cache, taken: Duration::ZERO } })
    }

    /// One step of the rows of `batch`, each of which attends to its spans, or to everything.
    ///
    /// # Errors
    /// A batch that the cache was not made for.
    pub fn step(&mut self, batch: &TraceBatch, dense: bool) -> Result<StepTime, AttendError> {
        let pages = self.attention.pages_mut();
        for request in 0..pages.requests() {
            pages.release(request)?;
        }
        let mut step = Step::default();
        for (request, row) in batch.rows.iter().enumerate() {
            pages.extend(request, row.kv_len as usize)?;
            step.requests.push(request);
            step.positions.push(row.kv_len as usize - 1);
            step.spans.push(if dense { SpanSet::full(row.kv_len) } else { row.spans.clone() });
        }
        let vocabulary = self.model.config().vocab_size;
        let tokens: Vec<u32> =
            (0..batch.rows.len()).map(|row| (row * 7919 % vocabulary) as u32).collect();
        let wanted: Vec<usize> = (0..batch.rows.len()).collect();
        self.attention.taken = Duration::ZERO;
        let begun = Instant::now();
        black_box(self.model.step(&tokens, &step, &wanted, &mut self.attention)?);
        Ok(StepTime {
            total: begun.elapsed(),
            attention: self.attention.taken,
            attended: step.spans.iter().map(SpanSet::len_tokens).sum(),
            available: batch.rows.iter().map(|row| u64::from(row.kv_len)).sum(),
        })
    }
}

/// An attention and the time that it took.
struct Timed {
    cache: HostAttention,
    taken: Duration,
}

impl Attend for Timed {
    fn pages_mut(&mut self) -> &mut Pages {
        self.cache.pages_mut()
    }

    fn begin(&mut self, step: &Step) -> Result<(), AttendError> {
        self.cache.begin(step)
    }

    fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Result<Vec<f32>, AttendError> {
        let begun = Instant::now();
        let attended = self.cache.attend(layer, q, k, v);
        self.taken += begun.elapsed();
        attended
    }
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
