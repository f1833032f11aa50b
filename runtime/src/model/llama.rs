//! The decoder: from tokens to logits on the CPU in f32, its attention wherever it is.

use super::ModelError;
use super::attend::{Attend, AttendError, Step};
use super::config::ModelConfig;
use super::linear::Matrix;
use super::weights::Weights;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use spanforge_device::Element;
use std::path::Path;
use std::sync::Arc;

/// A Llama-architecture model: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
pub struct Llama {
    config: ModelConfig,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) norm: Vec<f32>,
    /// The output matrix, where it is not the embedding.
    pub(super) output: Option<Matrix>,
    /// Radians per position, by pair of elements.
    pub(super) angles: Vec<f64>,
}

pub(super) struct Layer {
    pub attention_norm: Vec<f32>,
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    pub o: Matrix,
    pub mlp_norm: Vec<f32>,
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
}

impl Llama {
    /// Loads `config.json` and the weights of a folder. Weights stay in the element type of the files,
    /// all else is f32.
    ///
    /// # Errors
    /// See [`ModelError`]: files that are missing, damaged, or do not belong together.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let config = ModelConfig::read(&folder.join("config.json"))?;
        let mut weights = Weights::open(folder)?;
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, vocab_size, .. } = config;
        let (query, kv) = (config.query_size(), config.kv_size());
        let embedding = weights.matrix("model.embed_tokens.weight", vocab_size, hidden)?;
        let mut layer = |number: usize| {
            let name = |part: &str| format!("model.layers.{number}.{part}.weight");
            let mut matrix = |part, rows, columns| weights.matrix(&name(part), rows, columns);
            let (q, k) = (
                matrix("self_attn.q_proj", query, hidden)?,
                matrix("self_attn.k_proj", kv, hidden)?,
            );
            let (v, o) = (
                matrix("self_attn.v_proj", kv, hidden)?,
                matrix("self_attn.o_proj", hidden, query)?,
            );
            let (gate, up) =
                (matrix("mlp.gate_proj", inner, hidden)?, matrix("mlp.up_proj", inner, hidden)?);
            let down = matrix("mlp.down_proj", hidden, inner)?;
            let attention_norm = weights.vector(&name("input_layernorm"), hidden)?;
            let mlp_norm = weights.vector(&name("post_attention_layernorm"), hidden)?;
            Ok(Arc::new(Layer { attention_norm, q, k, v, o, mlp_norm, gate, up, down }))
        };
        let layers = (0..config.layers).map(&mut layer).collect::<Result<_, ModelError>>()?;
        let norm = weights.vector("model.norm.weight", hidden)?;
        let output = match config.tied_embeddings {
            true => None,
            false => Some(weights.matrix("lm_head.weight", vocab_size, hidden)?),
        };
        let angles = config.rope.angles(config.head_dim);
        Ok(Self { config, embedding, layers, norm, output, angles })
    }

    /// A model of random weights, to measure with. All layers have the same ones, so that the shape of
    /// a large model fits into memory; a step still reads them once per layer.
    pub fn random(config: ModelConfig, dtype: Element, seed: u64) -> Self {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, vocab_size, .. } = config;
        let (query, kv) = (config.query_size(), config.kv_size());
        let mut seeds = ChaCha8Rng::seed_from_u64(seed);
        let mut matrix = |rows, columns| Matrix::random(rows, columns, dtype, seeds.random());
        let embedding = matrix(vocab_size, hidden);
        let layer = Arc::new(Layer {
            attention_norm: vec![1.0; hidden],
            q: matrix(query, hidden),
            k: matrix(kv, hidden),
            v: matrix(kv, hidden),
            o: matrix(hidden, query),
            mlp_norm: vec![1.0; hidden],
            gate: matrix(inner, hidden),
            up: matrix(inner, hidden),
            down: matrix(hidden, inner),
        });
        let layers = vec![layer; config.layers];
        let output = (!config.tied_embeddings).then(|| matrix(vocab_size, hidden));
        let angles = config.rope.angles(config.head_dim);
        Self { config, embedding, layers, norm: vec![1.0; hidden], output, angles }
    }

    /// Bytes of weights that a step reads, however few its rows: all matrices but the embedding, of
    /// which it reads a row per token.
    pub fn bytes_per_step(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            let Layer { q, k, v, o, gate, up, down, .. } = &**layer;
            [q, k, v, o, gate, up, down].map(Matrix::bytes).iter().sum::<usize>()
        });
        layers.sum::<usize>() + self.output.as_ref().unwrap_or(&self.embedding).bytes()
    }

    /// What it is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// One step: `tokens` `[rows]`, each below the vocabulary's size, at the positions of `step`, whose
    /// room in the cache of `attention` has been taken. Returns the logits of the rows `wanted`, in
    /// their order, `[wanted, vocab_size]`.
    ///
    /// # Errors
    /// Those of the attention, and rows that do not belong together.
    pub fn step(
        &self,
        tokens: &[u32],
        step: &Step,
        wanted: &[usize],
        attention: &mut dyn Attend,
    ) -> Result<Vec<f32>, AttendError> {
        step.check(&self.config, tokens, wanted)?;
        attention.begin(step)?;
        let ModelConfig { hidden_size, rms_norm_eps, .. } = self.config;
        let mut x: Vec<f32> =
            tokens.iter().flat_map(|token| self.embedding.row(*token as usize)).collect();
        let turns = turns(&self.angles, &step.positions);
        for (number, layer) in self.layers.iter().enumerate() {
            let normed = rms_norm(&x, &layer.attention_norm, rms_norm_eps);
            let (mut q, mut k) = (layer.q.apply(&normed), layer.k.apply(&normed));
            let v = layer.v.apply(&normed);
            self.rotate(&mut q, &turns);
            self.rotate(&mut k, &turns);
            let attended = attention.attend(number, &q, &k, &v)?;
            add(&mut x, &layer.o.apply(&attended));
            let normed = rms_norm(&x, &layer.mlp_norm, rms_norm_eps);
            let (mut gate, up) = (layer.gate.apply(&normed), layer.up.apply(&normed));
            let swiglu = |(gate, up): (&mut f32, &f32)| *gate = *gate / (1.0 + (-*gate).exp()) * up;
            gate.iter_mut().zip(&up).for_each(swiglu);
            add(&mut x, &layer.down.apply(&gate));
        }
        let wanted: Vec<f32> =
            wanted.iter().flat_map(|row| &x[row * hidden_size..][..hidden_size]).copied().collect();
        let normed = rms_norm(&wanted, &self.norm, rms_norm_eps);
        Ok(self.output.as_ref().unwrap_or(&self.embedding).apply(&normed))
    }

    /// Turns the pairs (i, i + head_dim / 2) of every head of every row.
    fn rotate(&self, heads: &mut [f32], turns: &[(f32, f32)]) {
        let pairs = self.config.head_dim / 2;
        let rows = turns.len() / pairs;
        if rows == 0 {
            return;
        }
        let size = heads.len() / rows;
        for (row, turns) in heads.chunks_exact_mut(size).zip(turns.chunks_exact(pairs)) {
            for head in row.chunks_exact_mut(2 * pairs) {
                let (low, high) = head.split_at_mut(pairs);
                for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

/// Cosine and sine by row and pair, of angles by pair.
pub(super) fn turns(angles: &[f64], positions: &[usize]) -> Vec<(f32, f32)> {
    let turn = |position: usize| {
        angles.iter().map(move |angle| {
            let (sin, cos) = (position as f64 * angle).sin_cos();
            (cos as f32, sin as f32)
        })
    };
    positions.iter().flat_map(|position| turn(*position)).collect()
}

fn add(x: &mut [f32], more: &[f32]) {
    x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
}

/// Each vector over the root of its mean square, times `gain`.
fn rms_norm(vectors: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let mut out = vectors.to_vec();
    out.par_chunks_exact_mut(gain.len()).for_each(|vector| {
        let square = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / gain.len() as f64;
        let factor = (1.0 / (square + f64::from(eps)).sqrt()) as f32;
        vector.iter_mut().zip(gain).for_each(|(x, gain)| *x *= factor * gain);
    });
    out
}
