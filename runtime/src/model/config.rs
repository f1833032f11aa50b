//! What a model is: `config.json` as Hugging Face lays it out, for the Llama architecture.

use super::ModelError;
use fs_err as fs;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// Shapes and constants of a Llama-architecture model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Elements of a token's hidden state.
    pub hidden_size: usize,
    /// Elements between the two halves of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub query_heads: usize,
    /// KV heads, a divisor of the query heads.
    pub kv_heads: usize,
    /// Elements of a head, an even number; need not be `hidden_size / query_heads`.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// The rotation of queries and keys.
    pub rope: Rope,
    /// Positions that the model was made for.
    pub max_positions: usize,
    /// Whether the output matrix is the embedding.
    pub tied_embeddings: bool,
    /// Tokens that end a response.
    pub end_tokens: Vec<u32>,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the angles.
    pub theta: f64,
    /// How positions are stretched.
    pub scaling: RopeScaling,
}

/// How angles differ from `theta^(-2i/d)` per position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions count for this many times less.
    Linear(f64),
    /// Llama 3.1: slow angles as if linear, fast ones as they are, those between smoothly.
    Llama3 {
        /// Of the slow angles.
        factor: f64,
        /// Turns over the original context below which an angle is slow.
        low_freq_factor: f64,
        /// Turns beyond which it is fast.
        high_freq_factor: f64,
        /// The context that the model was first trained on, in positions.
        original_positions: f64,
    },
}

/// The file's fields that matter; others are left alone.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    #[serde(alias = "rope_parameters")]
    rope_scaling: Option<serde_json::Map<String, Value>>,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    eos_token_id: Option<OneOrMany>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<u64>,
}

/// As `transformers` has it where the file says nothing.
fn default_positions() -> usize {
    2048
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// A file that cannot be read, is not of this architecture, or has shapes that no model has.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let text = fs::read_to_string(path)?;
        Self::parse(&text).map_err(|fault| ModelError::Config { path: path.to_owned(), fault })
    }

    /// From the text of `config.json`; the error says what is wrong with it.
    ///
    /// # Errors
    /// Text that is no JSON, and what [`read`](Self::read) refuses.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let kind = raw.model_type.as_deref().unwrap_or("llama");
        if !["llama", "mistral"].contains(&kind) {
            return Err(format!("model_type is {kind:?}, and \"llama\" or \"mistral\" is served"));
        }
        if let Some(other) = raw.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(format!("hidden_act is {other:?}, and \"silu\" is served"));
        }
        if raw.attention_bias || raw.mlp_bias {
            return Err("attention_bias or mlp_bias is set: linear layers have no biases".into());
        }
        if let Some(window) = raw.sliding_window {
            return Err(format!("sliding_window is {window}, and every layer attends to all"));
        }
        let query_heads = raw.num_attention_heads;
        let kv_heads = raw.num_key_value_heads.unwrap_or(query_heads);
        if query_heads == 0 || kv_heads == 0 || !query_heads.is_multiple_of(kv_heads) {
            return Err(format!("{query_heads} query heads cannot share {kv_heads} KV heads"));
        }
        let head_dim = match raw.head_dim {
            Some(head_dim) => head_dim,
            None if raw.hidden_size.is_multiple_of(query_heads) => raw.hidden_size / query_heads,
            None => {
                return Err(format!(
                    "hidden_size {} is not a multiple of {query_heads} heads, and there is no head_dim",
                    raw.hidden_size
                ));
            }
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim is {head_dim}, and rotation takes pairs"));
        }
        for (name, size) in [
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("vocab_size", raw.vocab_size),
            ("max_position_embeddings", raw.max_position_embeddings),
        ] {
            // More than any model has, and little enough that no product of two overflows.
            if !(1..=1 << 30).contains(&size) {
                return Err(format!("{name} is {size}"));
            }
        }
        if !(raw.rms_norm_eps.is_finite() && raw.rms_norm_eps >= 0.0) {
            return Err(format!("rms_norm_eps is {}", raw.rms_norm_eps));
        }
        let end_tokens = match raw.eos_token_id {
            None => Vec::new(),
            Some(OneOrMany::One(one)) => vec![one],
            Some(OneOrMany::Many(many)) => many,
        };
        Ok(Self {
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            query_heads,
            kv_heads,
            head_dim,
            vocab_size: raw.vocab_size,
            rms_norm_eps: raw.rms_norm_eps as f32,
            rope: Rope::new(raw.rope_theta, raw.rope_scaling.as_ref())?,
            max_positions: raw.max_position_embeddings,
            tied_embeddings: raw.tie_word_embeddings,
            end_tokens,
        })
    }

    /// Elements of all query heads of a token.
    pub fn query_size(&self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Elements of all KV heads of a token.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl Rope {
    /// Of the file's two fields; the newer `rope_parameters` holds the base too.
    fn new(
        theta: Option<f64>,
        scaling: Option<&serde_json::Map<String, Value>>,
    ) -> Result<Self, String> {
        let number = |key: &str| -> Result<f64, String> {
            let value = scaling.and_then(|fields| fields.get(key)).and_then(Value::as_f64);
            value
                .filter(|v| v.is_finite() && *v > 0.0)
                .ok_or(format!("rope_scaling has no positive `{key}`"))
        };
        let theta = match theta {
            Some(theta) => theta,
            None if scaling.is_some_and(|s| s.contains_key("rope_theta")) => number("rope_theta")?,
            None => 10_000.0,
        };
        if !(theta.is_finite() && theta > 0.0) {
            return Err(format!("rope_theta is {theta}"));
        }
        let kind = scaling.and_then(|fields| fields.get("rope_type").or(fields.get("type")));
        let scaling = match kind.and_then(Value::as_str).unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear(number("factor")?),
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_positions: number("original_max_position_embeddings")?,
            },
            other => {
                return Err(format!(
                    "rope type {other:?} is not served: \"default\", \"linear\" and \"llama3\" are"
                ));
            }
        };
        Ok(Self { theta, scaling })
    }

    /// Radians per position of each of the `head_dim / 2` pairs.
    pub fn angles(&self, head_dim: usize) -> Vec<f64> {
        let plain = |pair: usize| self.theta.powf(-2.0 * pair as f64 / head_dim as f64);
        (0..head_dim / 2).map(|pair| self.scaling.stretched(plain(pair))).collect()
    }
}

impl RopeScaling {
    fn stretched(&self, angle: f64) -> f64 {
        match *self {
            Self::None => angle,
            Self::Linear(factor) => angle / factor,
            // As in `transformers`, `_compute_llama3_parameters`.
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let turns = original_positions * angle / std::f64::consts::TAU;
                let share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let share = share.clamp(0.0, 1.0);
                (1.0 - share) * angle / factor + share * angle
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_3_1: &str = r#"{
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "max_position_embeddings": 131072,
        "eos_token_id": [128001, 128008, 128009], "tie_word_embeddings": false,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    }"#;

    #[test]
    fn a_published_file_is_read() {
        let config = ModelConfig::parse(LLAMA_3_1).expect("valid");
        assert_eq!((config.head_dim, config.kv_heads, config.kv_size()), (128, 8, 1024));
        assert_eq!(config.end_tokens, [128001, 128008, 128009]);
        // Fast angles stay, the slowest are an eighth.
        let (plain, angles) = (
            Rope { theta: 500_000.0, scaling: RopeScaling::None }.angles(128),
            config.rope.angles(128),
        );
        assert_eq!(angles[0], plain[0]);
        assert!((angles[63] / plain[63] - 0.125).abs() < 1e-12);
        assert!(angles.windows(2).all(|pair| pair[0] > pair[1]));
    }

    #[test]
    fn newer_rope_parameters_hold_the_base() {
        let text = LLAMA_3_1
            .replace("\"rope_theta\": 500000.0, ", "")
            .replace("\"rope_scaling\": {", "\"rope_parameters\": {\"rope_theta\": 1000000.0, ");
        assert_eq!(ModelConfig::parse(&text).expect("valid").rope.theta, 1e6);
    }

    #[test]
    fn what_is_not_served_is_said() {
        for (from, to, says) in [
            ("\"llama\"", "\"gemma3\"", "gemma3"),
            ("\"silu\"", "\"gelu\"", "gelu"),
            ("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 5", "5 KV heads"),
            ("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 0", "0 KV heads"),
            ("\"hidden_size\": 4096", "\"hidden_size\": 4097", "no head_dim"),
            ("\"hidden_size\": 4096", "\"head_dim\": 127, \"hidden_size\": 4096", "pairs"),
            ("\"vocab_size\": 128256", "\"vocab_size\": 99999999999", "vocab_size is"),
            ("\"vocab_size\": 128256,", "", "vocab_size"),
            ("\"rope_type\": \"llama3\"", "\"rope_type\": \"yarn\"", "yarn"),
            ("\"factor\": 8.0, ", "", "`factor`"),
            ("\"factor\": 8.0", "\"factor\": -8.0", "`factor`"),
            ("1e-05", "-1", "rms_norm_eps"),
            ("\"rope_theta\"", "\"sliding_window\": 4096, \"rope_theta\"", "sliding_window"),
            ("\"rope_theta\"", "\"attention_bias\": true, \"rope_theta\"", "attention_bias"),
            ("{", "[", ""),
        ] {
            let text = LLAMA_3_1.replacen(from, to, 1);
            let fault = ModelConfig::parse(&text).expect_err(to);
            assert!(fault.contains(says), "{to}: {fault}");
        }
    }
}
