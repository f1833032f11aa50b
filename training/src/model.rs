//! The model in training: a Llama whose projections that read the same input are one matrix.

use crate::ops::{Heads, RmsNorm, Rows, SpanAttention, SwiGlu};
use anyhow::Result;
use candle_core::{Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// Base of the rotary angles.
const THETA: f64 = 10_000.0;

/// Added to the mean square.
const EPS: f32 = 1e-5;

/// Positions that angles are made for.
pub const POSITIONS: usize = 1024;

/// Shapes of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    pub hidden: usize,
    pub inner: usize,
    pub layers: usize,
    pub query_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
}

impl Shape {
    fn heads(&self) -> Heads {
        Heads { query: self.query_heads, kv: self.kv_heads, head_dim: self.head_dim }
    }

    /// `config.json` as Hugging Face has it.
    pub fn config(&self, bos: u32, eos: u32) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": EPS,
            "rope_theta": THETA,
            "max_position_embeddings": POSITIONS,
            "tie_word_embeddings": false,
            "attention_bias": false,
            "mlp_bias": false,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "torch_dtype": "float32",
        })
    }

    /// Names, shapes and initial standard deviations of the weights; none for gains, which begin at 1.
    fn parts(&self) -> Vec<(String, Vec<usize>, Option<f64>)> {
        let fan_in = |size: usize| 1.0 / (size as f64).sqrt();
        let (hidden, inner) = (self.hidden, self.inner);
        let query = self.query_heads * self.head_dim;
        // What is added to the residual stream is the less, the more layers do.
        let residual = 1.0 / (2.0 * self.layers as f64).sqrt();
        let mut parts = vec![
            ("embedding".to_owned(), vec![self.vocabulary, hidden], Some(0.5)),
            ("norm".to_owned(), vec![hidden], None),
            ("head".to_owned(), vec![self.vocabulary, hidden], Some(fan_in(hidden))),
        ];
        for layer in 0..self.layers {
            for (part, shape, deviation) in [
                ("attention_norm", vec![hidden], None),
                ("qkv", vec![self.heads().width(), hidden], Some(fan_in(hidden))),
                ("o", vec![hidden, query], Some(residual * fan_in(query))),
                ("mlp_norm", vec![hidden], None),
                ("gate_up", vec![2 * inner, hidden], Some(fan_in(hidden))),
                ("down", vec![hidden, inner], Some(residual * fan_in(inner))),
            ] {
                parts.push((format!("{layer}.{part}"), shape, deviation));
            }
        }
        parts
    }
}

/// A model's weights.
pub struct Model {
    shape: Shape,
    vars: Vec<(String, Var)>,
    places: HashMap<String, usize>,
    turns: Arc<Vec<(f32, f32)>>,
}

impl Model {
    /// Random weights.
    pub fn new(shape: &Shape, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Box and Muller's normal numbers.
        let mut normal = || {
            let (u, angle) =
                (1.0 - rng.random::<f64>(), std::f64::consts::TAU * rng.random::<f64>());
            (-2.0 * u.ln()).sqrt() * angle.cos()
        };
        let mut vars = Vec::new();
        for (name, shape, deviation) in shape.parts() {
            let count: usize = shape.iter().product();
            let mut value = || deviation.map_or(1.0, |deviation| (deviation * normal()) as f32);
            let values: Vec<f32> = (0..count).map(|_| value()).collect();
            vars.push((name, Var::from_vec(values, shape, &Device::Cpu)?));
        }
        let places = vars.iter().enumerate().map(|(place, var)| (var.0.clone(), place)).collect();
        let pairs = shape.head_dim / 2;
        let angle = |pair: usize| THETA.powf(-2.0 * pair as f64 / shape.head_dim as f64);
        let turns = (0..POSITIONS).flat_map(|position| {
            (0..pairs).map(move |pair| {
                let (sin, cos) = (position as f64 * angle(pair)).sin_cos();
                (cos as f32, sin as f32)
            })
        });
        Ok(Self { shape: shape.clone(), vars, places, turns: Arc::new(turns.collect()) })
    }

    /// The weights with their names.
    pub fn vars(&self) -> &[(String, Var)] {
        &self.vars
    }

    /// Number of weights.
    pub fn count(&self) -> usize {
        self.vars.iter().map(|(_, var)| var.elem_count()).sum()
    }

    fn var(&self, name: &str) -> &Tensor {
        self.vars[self.places[name]].1.as_tensor()
    }

    /// Logits `[wanted, vocabulary]` of the rows `wanted` of a batch of `tokens` `[rows]`.
    pub fn logits(&self, tokens: &Tensor, rows: &Arc<Rows>, wanted: &Tensor) -> Result<Tensor> {
        let norm = |x: &Tensor, gain: &str| x.apply_op2(self.var(gain), RmsNorm { eps: EPS });
        let linear = |x: &Tensor, name: &str| x.matmul(&self.var(name).t()?);
        let mut x = self.var("embedding").index_select(tokens, 0)?;
        for layer in 0..self.shape.layers {
            let named = |part: &str| format!("{layer}.{part}");
            let attention = SpanAttention {
                rows: rows.clone(),
                heads: self.shape.heads(),
                turns: self.turns.clone(),
            };
            let qkv = linear(&norm(&x, &named("attention_norm"))?, &named("qkv"))?;
            x = (x + linear(&qkv.apply_op1(attention)?, &named("o"))?)?;
            let gate_up = linear(&norm(&x, &named("mlp_norm"))?, &named("gate_up"))?;
            x = (x + linear(&gate_up.apply_op1(SwiGlu)?, &named("down"))?)?;
        }
        let x = x.index_select(wanted, 0)?;
        Ok(linear(&norm(&x, "norm")?, "head")?)
    }

    /// The weights under the names that Hugging Face has for them.
    pub fn exported(&self) -> Result<HashMap<String, Tensor>> {
        let Shape { inner, query_heads, kv_heads, head_dim, .. } = self.shape;
        let (query, kv) = (query_heads * head_dim, kv_heads * head_dim);
        let mut out = HashMap::new();
        let mut put = |name: String, tensor: Tensor| -> Result<()> {
            out.insert(format!("{name}.weight"), tensor.contiguous()?);
            Ok(())
        };
        put("model.embed_tokens".into(), self.var("embedding").clone())?;
        put("model.norm".into(), self.var("norm").clone())?;
        put("lm_head".into(), self.var("head").clone())?;
        for layer in 0..self.shape.layers {
            let var = |part: &str| self.var(&format!("{layer}.{part}"));
            let to = |part: &str| format!("model.layers.{layer}.{part}");
            let (qkv, gate_up) = (var("qkv"), var("gate_up"));
            put(to("input_layernorm"), var("attention_norm").clone())?;
            put(to("self_attn.q_proj"), qkv.narrow(0, 0, query)?)?;
            put(to("self_attn.k_proj"), qkv.narrow(0, query, kv)?)?;
            put(to("self_attn.v_proj"), qkv.narrow(0, query + kv, kv)?)?;
            put(to("self_attn.o_proj"), var("o").clone())?;
            put(to("post_attention_layernorm"), var("mlp_norm").clone())?;
            put(to("mlp.gate_proj"), gate_up.narrow(0, 0, inner)?)?;
            put(to("mlp.up_proj"), gate_up.narrow(0, inner, inner)?)?;
            put(to("mlp.down_proj"), var("down").clone())?;
        }
        Ok(out)
    }
}
