//! Attention on the CPU against plain sums, and an artifact's kernel on an emulated GPU against it.

use crate::folder::{config_with, model};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::Dtype as FileDtype;
use serde_json::json;
use spanforge_device::{Compiler, Device, Settings, Source};
use spanforge_kernels::Bucket;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::render_model;
use spanforge_runtime::model::{
    Attend, Decoder, DeviceAttention, DeviceDecoder, HostAttention, HostDecoder, Llama,
    ModelConfig, Step,
};
use spanforge_runtime::run::{compile_default, compile_target};
use spanforge_runtime::{CacheSize, SpanAttention, SpanAttentionLimits};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanSet};
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

/// The same tokens with the same spans: on the CPU, with the attention by the kernel on an emulated
/// H200, which keeps queries, keys and values in 16 bits, and with all of the model there, which keeps
/// all activations in 16 bits but what layers add to.
#[test]
fn an_emulated_gpu_gives_the_logits_of_the_cpu() {
    for (dtype, kv_dtype) in
        [(Dtype::F16, KvDtype::Same), (Dtype::Bf16, KvDtype::Same), (Dtype::F16, KvDtype::E4m3)]
    {
        let file = match dtype {
            Dtype::F16 => FileDtype::F16,
            Dtype::Bf16 => FileDtype::BF16,
        };
        let config = config_with(json!({ "head_dim": 64, "max_position_embeddings": 256 }));
        let folder = model(&config, file, 1, 5);
        let llama = Llama::load(folder.path()).unwrap();
        let size = CacheSize { layers: 3, pages: 12, requests: 2, max_pages: 6 };
        let device: Arc<dyn Device> = Arc::from(spanforge_device::open("emulated:h200").unwrap());
        let compiler = Compiler::new(&Settings::from_environment()).unwrap();
        let attention = || kernel(dtype, kv_dtype, &device, &compiler);
        let rendered = render_model(dtype, kv_dtype).unwrap();
        let target = compile_target(device.properties());
        let image = compiler.compile(&Source::new(rendered.name, rendered.text), &target).unwrap();
        let on_host: Box<dyn Attend> =
            Box::new(HostAttention::new(llama.config(), 16, &size).unwrap());
        let on_device: Box<dyn Attend> =
            Box::new(DeviceAttention::new(&device, attention(), size).unwrap());
        let mut decoders: [Box<dyn Decoder>; 3] = [
            Box::new(HostDecoder::new(&llama, on_host)),
            Box::new(HostDecoder::new(&llama, on_device)),
            Box::new(DeviceDecoder::new(&llama, &device, attention(), &image, size).unwrap()),
        ];
        let logits = decoders.each_mut().map(|decoder| steps(decoder.as_mut()));
        let largest = logits[0].iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
        assert!(largest > 3.0, "logits that say something: {largest}");
        // Of the largest logit, root of the mean square and at most: in f16, with roundings of 2^-11,
        // they came to 3e-4 and 2e-3 with the attention there, to 6e-4 and 3e-3 with all of the model;
        // in bf16, with roundings of 2^-8, to some 8 times that; with keys and values in e4m3, with roundings
        // of 2^-4, to some 80 times.
        let unit = match (kv_dtype, dtype) {
            (KvDtype::E4m3, _) => 80.0,
            (KvDtype::Same, Dtype::F16) => 1.0,
            (KvDtype::Same, Dtype::Bf16) => 8.0,
        };
        for (found, root_most, most) in
            [(&logits[1], 1e-3 * unit, 5e-3 * unit), (&logits[2], 2e-3 * unit, 1e-2 * unit)]
        {
            let errors = || logits[0].iter().zip(found).map(|(a, b)| (a - b).abs() / largest);
            let root = (errors().map(|e| e * e).sum::<f32>() / found.len() as f32).sqrt();
            let worst = errors().fold(0.0, f32::max);
            println!("{dtype} {kv_dtype}: {root} {worst}");
            assert!(root < root_most && worst < most, "{dtype}: {root}, at most {worst}");
        }
    }
}

/// The attention of the test's model by the default kernel.
fn kernel(
    dtype: Dtype,
    kv_dtype: KvDtype,
    device: &Arc<dyn Device>,
    compiler: &Compiler,
) -> SpanAttention {
    let (layout, page_size) = (KvLayout::Nhd, 16);
    let shape = AttentionShape {
        dtype,
        kv_dtype,
        query_heads: 6,
        kv_heads: 2,
        head_dim: 64,
        page_size,
        layout,
    };
    let served = shape.kernel_shape().unwrap();
    // For generated tokens, and for prompts.
    let kernels = [1, 16].map(|rows| {
        let compiled = compile_default(served, rows, device.properties(), compiler);
        let (image, spec) = compiled.unwrap();
        (Bucket::of(rows.into(), 1, 1, 1), image, spec)
    });
    let limits = SpanAttentionLimits { rows: 41, spans: 128, requests: 2, max_pages: 6 };
    SpanAttention::from_images(&kernels, device.clone(), shape, limits).unwrap()
}

/// The logits of all rows of some steps of two requests.
fn steps(decoder: &mut dyn Decoder) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut logits = Vec::new();
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
        // The last first, and not all of them.
        let wanted: Vec<usize> = (0..rows).rev().step_by(2).collect();
        for request in 0..2 {
            decoder.pages_mut().extend(request, range(request).len()).unwrap();
        }
        logits.extend(decoder.step(&tokens, &step, &wanted).unwrap());
    }
    logits
}
