//! Problems nobody would write by hand: scattered pages, raw spans, empty rows, and NaN in
//! everything that is not selected.

use half::{bf16, f16};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_kernels::DecodeProblem;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_spans::{Dtype, SpanBatch};

pub struct Case {
    pub attention: AttentionShape,
    pub rows: usize,
    /// Tokens of the longest request.
    pub longest: i32,
    pub seed: u64,
}

/// Two requests; row 1, where there is one, is empty; the spans of the others touch, overlap,
/// repeat and are out of order. Entries of the page table that no token needs name no page.
pub fn generate(case: &Case) -> DecodeProblem {
    let Case { attention, rows, longest, seed } = *case;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let page_size = attention.page_size as usize;
    let kv_len = vec![longest, rng.random_range(1..=longest)];
    let max_pages = (longest as usize).div_ceil(page_size) + 1;
    let pages = 2 * max_pages;
    let mut shuffled: Vec<i32> = (0..pages as i32).collect();
    shuffled.shuffle(&mut rng);

    let row_request: Vec<i32> = (0..rows).map(|_| rng.random_range(0..2)).collect();
    let mut span_ptr = vec![0];
    let mut spans: Vec<[i32; 2]> = Vec::new();
    for (row, request) in row_request.iter().enumerate() {
        let len = kv_len[*request as usize];
        for _ in 0..if row == 1 { 0 } else { rng.random_range(1..6) } {
            let start = rng.random_range(0..len);
            let end = rng.random_range(start..=len.min(start + 60));
            spans.push([start, end]);
            // The same again, or what touches it from before.
            if rng.random_bool(0.3) {
                spans.push([start, end]);
                spans.push([rng.random_range(0..=start), start]);
            }
        }
        span_ptr.push(spans.len() as i32);
    }
    let spans = SpanBatch::from_raw(span_ptr, spans).unwrap();

    let bits = |value: f32| match attention.dtype {
        Dtype::F16 => f16::from_f32(value).to_bits(),
        Dtype::Bf16 => bf16::from_f32(value).to_bits(),
    };
    let [query_heads, kv_heads, head_dim] =
        [attention.query_heads, attention.kv_heads, attention.head_dim].map(|n| n as usize);
    let mut random = |count: usize, most: f32| -> Vec<u16> {
        (0..count).map(|_| bits(rng.random_range(-most..most))).collect()
    };
    let q = random(rows * query_heads * head_dim, 2.0);
    let elements = pages * page_size * kv_heads * head_dim;
    let (full_k, full_v) = (random(elements, 1.0), random(elements, 1.0));
    let mut k = vec![bits(f32::NAN); elements];
    let mut v = k.clone();
    let mut page_table = vec![i32::MIN; 2 * max_pages];
    for (row, request) in row_request.iter().enumerate() {
        for token in spans.row(row).tokens() {
            let at = *request as usize * max_pages + token as usize / page_size;
            page_table[at] = shuffled[at];
            for head in 0..kv_heads {
                let (page, slot) = (shuffled[at] as usize, token as usize % page_size);
                let row = attention.layout.row_index(page, slot, head, page_size, kv_heads);
                let range = row * head_dim..(row + 1) * head_dim;
                k[range.clone()].copy_from_slice(&full_k[range.clone()]);
                v[range.clone()].copy_from_slice(&full_v[range]);
            }
        }
    }
    DecodeProblem {
        attention,
        scale: 1.0 / (head_dim as f32).sqrt(),
        soft_cap: 0.0,
        sinks: Vec::new(),
        k_scales: Vec::new(),
        v_scales: Vec::new(),
        pages,
        max_pages,
        kv_len,
        page_table,
        row_request,
        spans,
        q,
        k,
        v,
    }
}
