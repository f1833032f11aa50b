//! Logit by logit against candle's Llama, which shares no code with ours.

use crate::folder::{config_with, model};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama as Candle, LlamaConfig};
use fs_err as fs;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use spanforge_runtime::CacheSize;
use spanforge_runtime::model::{Attend, HostAttention, Llama, Step};
use spanforge_spans::SpanSet;
use std::collections::HashMap;
use std::path::Path;

/// What candle says follows each of the tokens, `[tokens][vocabulary]`.
fn candles(folder: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let text = fs::read_to_string(folder.join("config.json")).unwrap();
    let config: LlamaConfig = serde_json::from_str(&text).unwrap();
    let config = config.into_config(false);
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            tensors.extend(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
        }
    }
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let candle = Candle::load(weights, &config).unwrap();
    let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
    let logits = |(position, token): (usize, &u32)| {
        let token = Tensor::new(&[[*token]], &Device::Cpu).unwrap();
        let logits = candle.forward(&token, position, &mut cache).unwrap();
        logits.squeeze(0).unwrap().to_vec1().unwrap()
    };
    tokens.iter().enumerate().map(logits).collect()
}

/// What ours says, with the first `prompt` tokens in one step and the others one by one.
fn ours(folder: &Path, tokens: &[u32], prompt: usize) -> Vec<Vec<f32>> {
    let model = Llama::load(folder).unwrap();
    let size = CacheSize { layers: model.config().layers, pages: 9, requests: 2, max_pages: 8 };
    let mut attention = HostAttention::new(model.config(), 5, &size).unwrap();
    let mut out = Vec::new();
    let mut from = 0;
    while from < tokens.len() {
        let to = if from == 0 { prompt } else { from + 1 };
        attention.pages_mut().extend(1, to - from).unwrap();
        let step = Step {
            requests: vec![1; to - from],
            positions: (from..to).collect(),
            spans: (from..to).map(|position| SpanSet::full(position as u32 + 1)).collect(),
        };
        let all: Vec<usize> = (0..to - from).collect();
        let logits = model.step(&tokens[from..to], &step, &all, &mut attention).unwrap();
        out.extend(logits.chunks_exact(model.config().vocab_size).map(<[f32]>::to_vec));
        from = to;
    }
    out
}

#[track_caller]
fn assert_alike(config: Value, dtype: Dtype, files: usize) {
    let folder = model(&config, dtype, files, 11);
    let tokens: Vec<u32> = (0..30).map(|i| (i * i * 7 + 3 * i) % 32).collect();
    let (ours, candles) = (ours(folder.path(), &tokens, 13), candles(folder.path(), &tokens));
    assert_eq!(ours.len(), tokens.len());
    for (position, (ours, candles)) in ours.iter().zip(&candles).enumerate() {
        let largest = candles.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
        assert!(largest > 0.5, "logits that say something");
        for (a, b) in ours.iter().zip(candles) {
            assert!((a - b).abs() < 2e-5 * largest.max(1.0), "position {position}: {a} and {b}");
        }
    }
}

#[test]
fn grouped_query_attention() {
    assert_alike(config_with(json!({})), Dtype::F32, 1);
}

#[test]
fn multi_head_and_multi_query_attention() {
    assert_alike(config_with(json!({ "num_key_value_heads": 6 })), Dtype::F32, 1);
    assert_alike(config_with(json!({ "num_key_value_heads": 1 })), Dtype::F32, 1);
}

#[test]
fn tied_embeddings_and_another_base() {
    let changes = json!({ "tie_word_embeddings": true, "rope_theta": 500000.0 });
    assert_alike(config_with(changes), Dtype::F32, 1);
}

#[test]
fn rotation_as_in_llama_3_1() {
    let scaling = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_type": "llama3"
    });
    assert_alike(config_with(json!({ "rope_scaling": scaling })), Dtype::F32, 1);
}

#[test]
fn weights_of_16_bits_in_several_files() {
    assert_alike(config_with(json!({})), Dtype::BF16, 3);
    assert_alike(config_with(json!({})), Dtype::F16, 2);
}
