//! Problems from seeds. Half of what is drawn lies on an edge: rows that are empty or one token long,
//! spans that end where a tile, page or share ends, raw spans that repeat and overlap, one long row
//! among short ones, logits large and tiny, keys that are all the same. Every element of K and V that
//! no row selects is NaN, and page table entries that no row needs are out of range.

use half::{bf16, f16};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::{DecodeProblem, KernelShape, KernelSpec};
use spanforge_spans::{Dtype, KvLayout, SpanBatch};

/// Token counts at which a kernel does something for the first or last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edges(Vec<u32>);

impl Edges {
    /// The edges of a kernel: its softmax steps, address batches, tiles, ring and shares.
    pub fn of(spec: &KernelSpec) -> Self {
        let c = &spec.configuration;
        let step = c.step_tokens(&spec.shape);
        let mut counts = vec![
            step,
            step * c.token_warps,
            c.tile_tokens,
            c.tile_tokens * c.token_warps,
            c.tile_tokens * (c.stages - 1).max(1),
            c.tile_tokens * c.stages,
            c.smallest_share,
            32 * c.token_warps,
        ];
        counts.sort_unstable();
        counts.dedup();
        counts.retain(|n| *n <= 600);
        Self(counts)
    }

    fn draw(&self, rng: &mut impl Rng) -> u32 {
        let edge = self.0.choose(rng).copied().unwrap_or(32);
        edge.saturating_add_signed(rng.random_range(-1..=1)).max(1)
    }
}

/// Problem number `seed` for kernels of `shape`.
pub fn generate(shape: KernelShape, edges: &Edges, seed: u64) -> DecodeProblem {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rng = &mut rng;
    // Wide heads and large groups get smaller problems, so that every case costs about the same.
    let weight = shape.head_dim * shape.group_size.max(4);
    let budget = (256 * 4 * 512 / weight).clamp(96, 1200);
    let kv_heads = *[1, 1, 2, 3].choose(rng).expect("not empty");
    let attention = AttentionShape {
        dtype: shape.dtype,
        query_heads: shape.group_size * kv_heads,
        kv_heads,
        head_dim: shape.head_dim,
        page_size: *[1, 7, 16, 16, 64, 128].choose(rng).expect("not empty"),
        layout: if rng.random() { KvLayout::Nhd } else { KvLayout::Hnd },
    };
    let requests = *[1, 1, 2, 3, 5].choose(rng).expect("not empty");
    let lengths = kv_lengths(rng, requests, budget / kv_heads, edges, attention.page_size);
    let rows = requests + usize::from(rng.random_ratio(1, 4)) * rng.random_range(0..=requests);
    let row_request: Vec<i32> = (0..rows)
        .map(|row| if row < requests { row } else { rng.random_range(0..requests) } as i32)
        .collect();
    let mut span_ptr = vec![0];
    let mut raw = Vec::new();
    for &request in &row_request {
        raw.extend(raw_spans(rng, lengths[request as usize], edges, attention.page_size));
        span_ptr.push(raw.len() as i32);
    }
    let spans = SpanBatch::from_raw(span_ptr, raw).expect("generated spans are well formed");
    place(rng, attention, lengths, row_request, spans)
}

/// KV lengths that add up to about `budget`; sometimes one request has nearly all of it.
fn kv_lengths(
    rng: &mut impl Rng,
    requests: usize,
    budget: u32,
    edges: &Edges,
    page_size: u32,
) -> Vec<u32> {
    let fair = (budget / requests as u32).max(2);
    let mut lengths: Vec<u32> = (0..requests)
        .map(|_| match rng.random_range(0..6) {
            0 => 1,
            1 => page_size,
            2 | 3 => edges.draw(rng),
            _ => rng.random_range(1..=fair),
        })
        .map(|n| n.min(budget))
        .collect();
    if rng.random_ratio(1, 3) {
        let long = rng.random_range(0..requests);
        lengths[long] = rng.random_range(budget / 2..=budget).max(1);
    }
    lengths
}

/// Spans of one row as a careless user would give them: unsorted, overlapping, repeated, empty.
fn raw_spans(rng: &mut impl Rng, length: u32, edges: &Edges, page_size: u32) -> Vec<[i32; 2]> {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    match rng.random_range(0..10) {
        0 => {}
        1 | 2 => spans.push((0, length)),
        3 => {
            let token = rng.random_range(0..length);
            spans.push((token, token + 1));
        }
        4 => {
            // As many tokens as an edge says, cut into pieces with gaps between.
            let wanted = edges.draw(rng).min(length);
            let (mut at, mut left) = (0, wanted);
            while left > 0 && at < length {
                let piece = rng.random_range(1..=left);
                let end = (at + piece).min(length);
                spans.push((at, end));
                left -= end - at;
                at = end + u32::from(length - end > left) * rng.random_range(1..=3);
            }
        }
        5 => {
            // Cut at page borders.
            let page = page_size.max(2);
            let start = rng.random_range(0..=length / page) * page;
            let end = start + rng.random_range(1..=3) * page;
            spans.push((start.min(length), end.min(length)));
            spans.push((0, 1));
        }
        6 => {
            // A sink and a window, as decoding with a summary of the context reads.
            spans.push((0, length.min(16)));
            spans.push((length - length.min(edges.draw(rng)), length));
        }
        _ => {
            for _ in 0..rng.random_range(1..=12) {
                let start = rng.random_range(0..length);
                let end = (start + rng.random_range(1..=40)).min(length);
                spans.push((start, end));
            }
        }
    }
    if rng.random_ratio(1, 2) {
        for _ in 0..rng.random_range(0..4) {
            if let Some(&(start, end)) = spans.choose(rng) {
                let within = rng.random_range(start..=end);
                spans.push(
                    *[(start, end), (within, end), (start, within), (within, within)]
                        .choose(rng)
                        .expect("not empty"),
                );
            }
        }
        let by = rng.random_range(0..=spans.len());
        spans.rotate_left(by);
    }
    spans.into_iter().map(|(start, end)| [start as i32, end as i32]).collect()
}

/// How queries and keys are drawn: what decides the logits.
#[derive(Clone, Copy, PartialEq)]
enum Values {
    /// Standard normal: logits of a few units.
    Ordinary,
    /// Large queries: logits in the hundreds, where one token takes all the weight.
    LargeLogits,
    /// Subnormal keys: logits that vanish.
    Subnormal,
    /// Every key the same: weights exactly equal.
    EqualKeys,
    /// Small positive values of V about 1: sums without cancellation.
    Positive,
}

/// Puts the tokens on pages in random order and draws all tensors.
fn place(
    rng: &mut impl Rng,
    attention: AttentionShape,
    lengths: Vec<u32>,
    row_request: Vec<i32>,
    spans: SpanBatch,
) -> DecodeProblem {
    let page_size = attention.page_size;
    let needed: Vec<usize> = lengths.iter().map(|n| n.div_ceil(page_size) as usize).collect();
    let max_pages = needed.iter().copied().max().unwrap_or(0) + rng.random_range(0..2);
    let pages = needed.iter().sum::<usize>() + rng.random_range(0..3);
    let mut free: Vec<i32> = (0..pages as i32).collect();
    rand::seq::SliceRandom::shuffle(&mut free[..], rng);
    let unneeded = *[-1, i32::MAX, i32::MIN].choose(rng).expect("not empty");
    let mut page_table = vec![unneeded; lengths.len() * max_pages];
    for (request, &count) in needed.iter().enumerate() {
        for entry in 0..count {
            page_table[request * max_pages + entry] = free.pop().expect("as many pages as needed");
        }
    }

    let values = *[
        Values::Ordinary,
        Values::Ordinary,
        Values::Ordinary,
        Values::LargeLogits,
        Values::Subnormal,
        Values::EqualKeys,
        Values::Positive,
    ]
    .choose(rng)
    .expect("not empty");
    let dtype = attention.dtype;
    let head_dim = attention.head_dim as usize;
    let elements = pages * page_size as usize * attention.kv_heads as usize * head_dim;
    let nan = encode(dtype, f32::NAN);
    let mut problem = DecodeProblem {
        scale: if rng.random_ratio(3, 4) { (head_dim as f32).sqrt().recip() } else { 0.05 },
        pages,
        max_pages,
        kv_len: lengths.iter().map(|n| *n as i32).collect(),
        page_table,
        q: Vec::new(),
        k: vec![nan; elements],
        v: vec![nan; elements],
        attention,
        row_request,
        spans,
    };
    let factor = if values == Values::LargeLogits { 16.0 } else { 1.0 };
    let outputs = problem.rows() * attention.query_heads as usize * head_dim;
    problem.q = (0..outputs).map(|_| encode(dtype, factor * normal(rng))).collect();
    let same: Vec<u16> = (0..head_dim).map(|_| encode(dtype, normal(rng))).collect();
    for row in 0..problem.rows() {
        let request = problem.row_request[row] as usize;
        for token in problem.spans.row(row).tokens() {
            let (page, slot) = (token / page_size, (token % page_size) as usize);
            let page = problem.page_table[request * max_pages + page as usize] as usize;
            for head in 0..attention.kv_heads as usize {
                let at = head_dim
                    * attention.layout.row_index(
                        page,
                        slot,
                        head,
                        page_size as usize,
                        attention.kv_heads as usize,
                    );
                for (element, k) in problem.k[at..at + head_dim].iter_mut().enumerate() {
                    *k = match values {
                        Values::EqualKeys => same[element],
                        Values::Subnormal => subnormal(rng),
                        _ => encode(dtype, normal(rng)),
                    };
                }
                for v in &mut problem.v[at..at + head_dim] {
                    *v = match values {
                        Values::Positive => encode(dtype, 1.0 + 0.1 * normal(rng)),
                        Values::Subnormal => subnormal(rng),
                        _ => encode(dtype, normal(rng)),
                    };
                }
            }
        }
    }
    problem
}

/// Bits of `value` rounded to nearest even.
pub fn encode(dtype: Dtype, value: f32) -> u16 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_bits(),
        Dtype::Bf16 => bf16::from_f32(value).to_bits(),
    }
}

/// A subnormal or zero of either sign: in both types the exponent bits are clear below bit 7.
fn subnormal(rng: &mut impl Rng) -> u16 {
    rng.random_range(0..128) | (u16::from(rng.random::<bool>()) << 15)
}

/// A standard normal variate, near enough: the sum of 12 uniform ones less 6 has variance 1.
pub fn normal(rng: &mut impl Rng) -> f32 {
    // Four 16-bit uniforms from each of three words.
    let mut sum = 0.0;
    for _ in 0..3 {
        let word: u64 = rng.random();
        for part in 0..4 {
            sum += ((word >> (16 * part)) & 0xffff) as f32 / 65536.0;
        }
    }
    sum - 6.0
}
