//! Folders of models with random weights, as Hugging Face lays them out.

use fs_err as fs;
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tempfile::TempDir;

/// Characters of the vocabulary; the last ends a response.
pub const CHARACTERS: &str = "^0123456789+-*()<>=;abcdefghijkl$";

/// The configuration that tests begin with: 6 query heads for 2 KV heads.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 96, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": CHARACTERS.len(),
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "eos_token_id": CHARACTERS.len() - 1, "bos_token_id": 0, "tie_word_embeddings": false
    })
}

/// [`config`] with other fields.
pub fn config_with(changes: Value) -> Value {
    let mut config = config();
    for (key, value) in changes.as_object().expect("fields") {
        config[key] = value.clone();
    }
    config
}

/// Names and shapes of a model's weights.
fn shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |key: &str| config[key].as_u64().expect(key) as usize;
    let (hidden, inner) = (size("hidden_size"), size("intermediate_size"));
    let (heads, kv_heads) = (size("num_attention_heads"), size("num_key_value_heads"));
    let head_dim = config["head_dim"].as_u64().map_or(hidden / heads, |d| d as usize);
    let mut out = vec![
        ("model.embed_tokens".to_owned(), vec![size("vocab_size"), hidden]),
        ("model.norm".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] != true {
        out.push(("lm_head".to_owned(), vec![size("vocab_size"), hidden]));
    }
    for layer in 0..size("num_hidden_layers") {
        for (part, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![heads * head_dim, hidden]),
            ("self_attn.k_proj", vec![kv_heads * head_dim, hidden]),
            ("self_attn.v_proj", vec![kv_heads * head_dim, hidden]),
            ("self_attn.o_proj", vec![hidden, heads * head_dim]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            out.push((format!("model.layers.{layer}.{part}"), shape));
        }
    }
    out.into_iter().map(|(name, shape)| (format!("{name}.weight"), shape)).collect()
}

/// A folder with the model of `config`, its weights drawn by `seed`, in files of `dtype`: one, or as
/// many as `files` with an index.
pub fn model(config: &Value, dtype: Dtype, files: usize, seed: u64) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("config.json"), config.to_string()).expect("written");
    fs::write(path("tokenizer.json"), tokenizer().to_string()).expect("written");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, shape) in shapes(config) {
        // Gains around 1, sums of about 1; logits far enough apart for a clear first.
        let inner = *shape.last().expect("a shape") as f32;
        let (middle, width) = match shape.len() {
            1 => (1.0, 0.3),
            _ => (
                0.0,
                (3.0 / inner).sqrt() * if name.starts_with("model.layers") { 1.5 } else { 4.0 },
            ),
        };
        let count: usize = shape.iter().product();
        let values = (0..count).map(|_| middle + width * rng.random_range(-1.0..1.0_f32));
        let bytes = match dtype {
            Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
            Dtype::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            other => panic!("no weights in {other:?}"),
        };
        tensors.push((name, shape, bytes));
    }
    let mut weight_map = BTreeMap::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(files)).enumerate() {
        let file = match files {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{files:05}.safetensors", number + 1),
        };
        let views = part.iter().map(|(name, shape, bytes)| {
            weight_map.insert(name.clone(), file.clone());
            (name, TensorView::new(dtype, shape.clone(), bytes).expect("a tensor"))
        });
        safetensors::serialize_to_file(views, None, &path(&file)).expect("written");
    }
    if files > 1 {
        let index = json!({ "metadata": {}, "weight_map": weight_map });
        fs::write(path("model.safetensors.index.json"), index.to_string()).expect("written");
    }
    folder
}

/// One token per character.
pub fn tokenizer() -> Value {
    let vocabulary: BTreeMap<String, usize> =
        CHARACTERS.chars().enumerate().map(|(id, c)| (c.to_string(), id)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "post_processor": null,
        "pre_tokenizer": {
            "type": "Split", "pattern": { "Regex": "." }, "behavior": "Isolated", "invert": false
        },
        "decoder": { "type": "Fuse" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "^" }
    })
}
