//! Attention over spans on the CPU in f32: what the other ways are held against.

use super::attend::{Attend, AttendError, Step};
use super::config::ModelConfig;
use crate::cache::{CacheError, CacheSize};
use crate::pages::Pages;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// A paged cache in memory, `[pages, page_size, kv_heads, head_dim]` per layer, and the attention of
/// one step over it.
pub struct HostAttention {
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    page_size: usize,
    pages: Pages,
    layers: Vec<Layer>,
    step: Step,
}

struct Layer {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl HostAttention {
    /// A cache without tokens. What no token has written holds NaN: it is never read.
    ///
    /// # Errors
    /// A size that cannot be counted.
    pub fn new(
        config: &ModelConfig,
        page_size: u32,
        size: &CacheSize,
    ) -> Result<Self, AttendError> {
        let pages = Pages::new(page_size, size)?;
        let ModelConfig { query_heads, kv_heads, head_dim, .. } = *config;
        let elements = (kv_heads * head_dim)
            .checked_mul(page_size as usize)
            .and_then(|page| page.checked_mul(size.pages));
        let fault = "its size is no number";
        let elements = elements.ok_or(CacheError::Size { pages: size.pages, page_size, fault })?;
        let nothing = || vec![f32::NAN; elements];
        let layers = (0..size.layers).map(|_| Layer { k: nothing(), v: nothing() }).collect();
        let (page_size, step) = (page_size as usize, Step::default());
        Ok(Self { query_heads, kv_heads, head_dim, page_size, pages, layers, step })
    }

    /// Exchanges keys and values of a position in all layers, `kv` `[layers, 2, kv_heads, head_dim]`, as
    /// a test does with NaN to show that they are not read, and back again.
    ///
    /// # Errors
    /// A request that there is not, a position that it has not, or another number of elements.
    pub fn swap(
        &mut self,
        request: usize,
        position: usize,
        kv: &mut [f32],
    ) -> Result<(), AttendError> {
        let tokens = self.pages.tokens(request)?;
        let (size, layers) = (self.kv_heads * self.head_dim, self.layers.len());
        if position >= tokens || kv.len() != 2 * layers * size {
            let fault = format!(
                "{} elements of {position}, and the request has {tokens} of {}",
                kv.len(),
                2 * layers * size
            );
            return Err(AttendError::Step { what: "position", fault });
        }
        let at = self.token(request, position);
        let stored = self.layers.iter_mut().flat_map(|layer| [&mut layer.k, &mut layer.v]);
        for (stored, kv) in stored.zip(kv.chunks_exact_mut(size)) {
            stored[at..][..size].swap_with_slice(kv);
        }
        Ok(())
    }

    /// Fills the cache with random keys and values, to measure with.
    pub fn fill_random(&mut self, seed: u64) {
        for (number, layer) in self.layers.iter_mut().enumerate() {
            for (part, all) in [&mut layer.k, &mut layer.v].into_iter().enumerate() {
                all.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, out)| {
                    let place = ((number * 2 + part) << 40 | chunk) as u64;
                    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ place);
                    out.fill_with(|| rng.random_range(-1.0..1.0));
                });
            }
        }
    }

    /// Where a token's keys and values begin.
    fn token(&self, request: usize, position: usize) -> usize {
        let (page, slot) = self.pages.place(request, position);
        (page * self.page_size + slot) * self.kv_heads * self.head_dim
    }

    /// The heads of one row that share a KV head, `q` and `out` `[group_size, head_dim]`.
    fn group(&self, layer: &Layer, row: usize, kv_head: usize, q: &[f32], out: &mut [f32]) {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let request = self.step.requests[row];
        let tokens: Vec<usize> = self.step.spans[row]
            .tokens()
            .map(|token| self.token(request, token as usize) + kv_head * self.head_dim)
            .collect();
        let heads = q.chunks_exact(self.head_dim).zip(out.chunks_exact_mut(self.head_dim));
        for (q, out) in heads {
            let mut weights: Vec<f32> =
                tokens.iter().map(|at| scale * dot(q, &layer.k[*at..][..self.head_dim])).collect();
            let most = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights.iter_mut().for_each(|weight| *weight = (*weight - most).exp());
            let sum: f32 = weights.iter().sum();
            out.fill(0.0);
            for (at, weight) in tokens.iter().zip(&weights) {
                let share = weight / sum;
                let v = &layer.v[*at..][..self.head_dim];
                out.iter_mut().zip(v).for_each(|(out, v)| *out += share * v);
            }
        }
    }
}

impl Attend for HostAttention {
    fn pages_mut(&mut self) -> &mut Pages {
        &mut self.pages
    }

    fn begin(&mut self, step: &Step) -> Result<(), AttendError> {
        step.check_room(&self.pages)?;
        self.step = step.clone();
        Ok(())
    }

    fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Result<Vec<f32>, AttendError> {
        let layers = self.layers.len();
        if layer >= layers {
            return Err(CacheError::NoSuchLayer { layer, layers }.into());
        }
        let size = self.kv_heads * self.head_dim;
        for (row, (k, v)) in k.chunks_exact(size).zip(v.chunks_exact(size)).enumerate() {
            let at = self.token(self.step.requests[row], self.step.positions[row]);
            self.layers[layer].k[at..][..size].copy_from_slice(k);
            self.layers[layer].v[at..][..size].copy_from_slice(v);
        }
        let (this, layer) = (&*self, &self.layers[layer]);
        let group = self.query_heads / self.kv_heads * self.head_dim;
        let mut out = vec![0.0; q.len()];
        let groups = q.par_chunks_exact(group).zip(out.par_chunks_exact_mut(group)).enumerate();
        groups.for_each(|(at, (q, out))| {
            this.group(layer, at / this.kv_heads, at % this.kv_heads, q, out);
        });
        Ok(out)
    }
}

/// Eight sums beside each other, so that the compiler can use vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    let (a, b) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.0.iter().zip(b.0) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a.1.iter().zip(b.1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
