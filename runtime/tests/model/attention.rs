//! Attention on the CPU against plain sums, and an artifact's kernel on an emulated GPU against it.

use crate::folder::{config_with, model};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::Dtype as FileDtype;
use serde_json::json;
use spanforge_device::{Compiler, Device, Settings};
use spanforge_kernels::configuration::AttentionShape;
use spanforge_runtime::model::{Attend, DeviceAttention, HostAttention, Llama, ModelConfig, Step};
use spanforge_runtime::run::compile_default;
use spanforge_runtime::{CacheSize, SpanAttention, SpanAttentionLimits};
use spanforge_spans::{Dtype, KvLayout, SpanSet};
use std::sync::Arc;

/// Spans of positions before and at `position`: often none, often touching, always in range.
fn spans(position: usize) -> impl Strategy<Value = SpanSet> {
    let end = position as u32 + 1;
    prop::collection::vec((0..end, 0..=end), 0..5).prop_map(move |pairs| {
        let ordered = pairs.into_iter().map(|(a, b)| (a.min(b), a.max(b)));
        SpanSet::from_pairs(ordered).expect("in order")
    })
}

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-2.0..2.0_f32)).collect()
}

proptest! {
    /// Two requests whose rows come mixed, in pages that end anywhere.
    #[test]
    fn a_row_is_the_softmax_over_its_spans(
        page_size in 1_u32..9,
        group_size in 1_usize..4,
        rows in (1_usize..12).prop_flat_map(|n| (0..n).map(spans).collect::<Vec<_>>()),
        seed in any::<u64>(),
    ) {
        let (kv_heads, head_dim) = (2, 10);
        let heads = kv_heads * group_size;
        let config = ModelConfig::parse(
            &config_with(json!({
                "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim
            }))
            .to_string(),
        )
        .expect("valid");
        let size = CacheSize { layers: 1, pages: 40, requests: 2, max_pages: 20 };
        let mut attention = HostAttention::new(&config, page_size, &size).expect("a cache");
        let count = rows.len();
        for request in 0..2 {
            attention.pages_mut().extend(request, count).expect("room");
        }
        // Row r of request 0, then of request 1.
        let step = Step {
            requests: (0..2 * count).map(|row| row % 2).collect(),
            positions: (0..2 * count).map(|row| row / 2).collect(),
            spans: (0..2 * count).map(|row| rows[row / 2].clone()).collect(),
        };
        let q = values(2 * count * heads * head_dim, seed);
        let k = values(2 * count * kv_heads * head_dim, seed ^ 1);
        let v = values(2 * count * kv_heads * head_dim, seed ^ 2);
        attention.begin(&step).expect("a step");
        let out = attention.attend(0, &q, &k, &v).expect("attention");
        prop_assert_eq!(out.len(), q.len());
        for row in 0..2 * count {
            for head in 0..heads {
                let q = &q[(row * heads + head) * head_dim..][..head_dim];
                let of = |all: &[f32], token: u32, at: usize| {
                    let row = 2 * token as usize + row % 2;
                    f64::from(all[(row * kv_heads + head / group_size) * head_dim + at])
                };
                let weight = |token: u32| {
                    let sum: f64 =
                        (0..head_dim).map(|at| f64::from(q[at]) * of(&k, token, at)).sum();
                    (sum / (head_dim as f64).sqrt()).exp()
                };
                let tokens: Vec<u32> = step.spans[row].tokens().collect();
                let sum: f64 = tokens.iter().map(|token| weight(*token)).sum();
                for at in 0..head_dim {
                    let wanted: f64 =
                        tokens.iter().map(|token| weight(*token) / sum * of(&v, *token, at)).sum();
                    let found = f64::from(out[(row * heads + head) * head_dim + at]);
                    prop_assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
                }
            }
        }
    }
}

/// The same tokens with the same spans, once on the CPU and once by the kernel on an emulated H200,
/// which keeps queries, keys and values in 16 bits.
#[test]
fn a_kernel_on_an_emulated_gpu_gives_the_logits_of_the_cpu() {
    let config = config_with(json!({ "head_dim": 64, "max_position_embeddings": 256 }));
    let folder = model(&config, FileDtype::F32, 1, 5);
    let llama = Llama::load(folder.path()).unwrap();
    let size = CacheSize { layers: 3, pages: 12, requests: 2, max_pages: 6 };
    let mut host = HostAttention::new(llama.config(), 16, &size).unwrap();
    let device: Arc<dyn Device> = Arc::from(spanforge_device::open("emulated:h200").unwrap());
    let shape = AttentionShape {
        dtype: Dtype::F16,
        query_heads: 6,
        kv_heads: 2,
        head_dim: 64,
        page_size: 16,
        layout: KvLayout::Nhd,
    };
    let compiler = Compiler::new(&Settings::from_environment()).unwrap();
    let kernel = shape.kernel_shape().unwrap();
    let (image, spec) = compile_default(kernel, device.properties(), &compiler).unwrap();
    let limits = SpanAttentionLimits { rows: 41, spans: 128, requests: 2, max_pages: 6 };
    let attention = SpanAttention::from_image(&image, spec, device.clone(), shape, limits).unwrap();
    let mut emulated = DeviceAttention::new(&device, attention, size).unwrap();

    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut largest, mut error, mut squares, mut count) = (0.0_f32, 0.0_f32, 0.0, 0.0);
    for (from, to) in [(0, 20), (20, 21), (21, 22), (22, 40), (40, 41)] {
        // The second request is one token ahead: its first row has the position that follows the
        // last one of the first.
        let range = |request: usize| (from + request).min(20 * from)..to + request;
        let mut step = Step::default();
        for request in 0..2 {
            for position in range(request) {
                step.requests.push(request);
                step.positions.push(position);
                let start = rng.random_range(0..=position as u32);
                let spans =
                    [(0, 1), (start, start + 1), (position as u32 / 2, position as u32 + 1)];
                step.spans.push(SpanSet::from_pairs(spans).unwrap());
            }
        }
        let rows = step.positions.len();
        let tokens: Vec<u32> = (0..rows).map(|_| rng.random_range(0..32)).collect();
        let wanted: Vec<usize> = (0..rows).collect();
        let logits = |attention: &mut dyn Attend| {
            for request in 0..2 {
                attention.pages_mut().extend(request, range(request).len()).unwrap();
            }
            llama.step(&tokens, &step, &wanted, attention).unwrap()
        };
        let (cpu, gpu) = (logits(&mut host), logits(&mut emulated));
        for (cpu, gpu) in cpu.iter().zip(&gpu) {
            largest = largest.max(cpu.abs());
            error = error.max((cpu - gpu).abs());
            squares += (cpu - gpu).powi(2);
            count += 1.0;
        }
    }
    let root: f32 = (squares / count).sqrt();
    // Roundings of 2^-11 each, through three layers of random weights, came to 3e-4 (root of the mean
    // square) and 2e-3 (at most) of the largest logit.
    assert!(largest > 3.0, "logits that say something: {largest}");
    assert!(root < 2e-3 * largest && error < 1e-2 * largest, "{root}, {error} of {largest}");
}
