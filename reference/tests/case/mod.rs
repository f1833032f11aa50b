//! An owned problem for tests, from a shape and a seed.

use half::{bf16, f16};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_reference::Problem;
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch, SpanSet};

pub const NAN_BITS: u16 = 0x7fff;

/// What a case is made of; everything else follows from the seed.
#[derive(Debug, Clone)]
pub struct Shape {
    pub dtype: Dtype,
    pub layout: KvLayout,
    pub kv_heads: usize,
    pub group: usize,
    pub head_dim: usize,
    pub page_size: usize,
    /// Selected tokens of each row, and the row's request.
    pub rows: Vec<(SpanSet, usize)>,
    /// Values are drawn from -amplitude to amplitude; queries and keys from -2 to 2.
    pub value_amplitude: f32,
    pub soft_cap: f32,
    /// Whether each query head has a sink.
    pub sinks: bool,
    /// Whether KV heads after the first select what the first one does not.
    pub own_spans: bool,
    pub seed: u64,
}

impl Shape {
    /// What a KV head selects of a row.
    pub fn set(&self, row: usize, kv_head: usize) -> SpanSet {
        let set = &self.rows[row].0;
        match self.own_spans && kv_head > 0 {
            true => SpanSet::full(KV_LEN).difference(set),
            false => set.clone(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Case {
    pub shape: Shape,
    pub max_pages: usize,
    pub q: Vec<u16>,
    pub k: Vec<u16>,
    pub v: Vec<u16>,
    pub page_table: Vec<i32>,
    pub row_request: Vec<i32>,
    pub spans: SpanBatch,
    pub soft_cap: f32,
    pub sinks: Vec<f32>,
}

pub const REQUESTS: usize = 3;
pub const KV_LEN: u32 = 40;

pub fn bits(dtype: Dtype, value: f32) -> u16 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_bits(),
        Dtype::Bf16 => bf16::from_f32(value).to_bits(),
    }
}

pub fn value(dtype: Dtype, bits: u16) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_bits(bits).to_f32(),
        Dtype::Bf16 => bf16::from_bits(bits).to_f32(),
    }
}

impl Case {
    /// Random values, every request on its own shuffled pages, NaN wherever no row looks.
    pub fn new(shape: Shape) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(shape.seed);
        let max_pages = (KV_LEN as usize).div_ceil(shape.page_size);
        let pages = REQUESTS * max_pages + 1;
        let mut page_table: Vec<i32> = (0..pages as i32).collect();
        page_table.shuffle(&mut rng);
        page_table.truncate(REQUESTS * max_pages);
        let heads = if shape.own_spans { shape.kv_heads } else { 1 };
        let sets: Vec<SpanSet> = (0..shape.rows.len())
            .flat_map(|row| (0..heads).map(move |head| (row, head)))
            .map(|(row, head)| shape.set(row, head))
            .collect();
        let mut case = Self {
            max_pages,
            q: Vec::new(),
            k: vec![NAN_BITS; pages * shape.page_size * shape.kv_heads * shape.head_dim],
            v: Vec::new(),
            page_table,
            row_request: shape.rows.iter().map(|(_, request)| *request as i32).collect(),
            spans: SpanBatch::from_sets(&sets).expect("small"),
            soft_cap: shape.soft_cap,
            sinks: Vec::new(),
            shape,
        };
        case.v = case.k.clone();
        let dtype = case.shape.dtype;
        let amplitude = case.shape.value_amplitude;
        let draw = |rng: &mut ChaCha8Rng| rng.random_range(-2.0f32..2.0);
        let queries =
            case.shape.rows.len() * case.shape.kv_heads * case.shape.group * case.shape.head_dim;
        case.q = (0..queries).map(|_| bits(dtype, draw(&mut rng))).collect();
        if case.shape.sinks {
            let heads = 0..case.shape.kv_heads * case.shape.group;
            case.sinks = heads.map(|_| draw(&mut rng)).collect();
        }
        for request in 0..REQUESTS {
            for head in 0..case.shape.kv_heads {
                let rows = (0..case.shape.rows.len()).filter(|r| case.shape.rows[*r].1 == request);
                let sets = rows.map(|row| case.shape.set(row, head));
                let used = sets.fold(SpanSet::empty(), |set, other| set.union(&other));
                for token in used.tokens() {
                    for at in case.kv_range(request, token, head) {
                        case.k[at] = bits(dtype, draw(&mut rng));
                        case.v[at] = bits(dtype, draw(&mut rng) / 2.0 * amplitude);
                    }
                }
            }
        }
        case
    }

    /// The elements of one token and KV head in k and v.
    pub fn kv_range(&self, request: usize, token: u32, head: usize) -> std::ops::Range<usize> {
        let s = &self.shape;
        let entry = request * self.max_pages + token as usize / s.page_size;
        let (page, slot) = (self.page_table[entry] as usize, token as usize % s.page_size);
        let row = match s.layout {
            KvLayout::Nhd => (page * s.page_size + slot) * s.kv_heads + head,
            KvLayout::Hnd => (page * s.kv_heads + head) * s.page_size + slot,
        };
        row * s.head_dim..(row + 1) * s.head_dim
    }

    pub fn problem(&self) -> Problem<'_> {
        Problem {
            dtype: self.shape.dtype,
            kv_dtype: KvDtype::Same,
            layout: self.shape.layout,
            query_heads: self.shape.kv_heads * self.shape.group,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            page_size: self.shape.page_size,
            max_pages: self.max_pages,
            scale: 1.0 / (self.shape.head_dim as f32).sqrt(),
            soft_cap: self.soft_cap,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            page_table: &self.page_table,
            row_request: &self.row_request,
            spans: &self.spans,
            sinks: &self.sinks,
            k_scales: &[],
            v_scales: &[],
        }
    }
}

fn row() -> impl Strategy<Value = (SpanSet, usize)> {
    let set = prop::collection::vec((0..=KV_LEN, 0..=KV_LEN), 0..4).prop_map(|pairs| {
        SpanSet::from_pairs(pairs.into_iter().map(|(a, b)| (a.min(b), a.max(b)))).expect("ordered")
    });
    (set, 0..REQUESTS)
}

/// Small shapes with odd groups and page sizes, empty rows, and rows that share a request.
pub fn shapes() -> impl Strategy<Value = Shape> {
    (
        prop::sample::select(&Dtype::ALL[..]),
        prop::sample::select(&KvLayout::ALL[..]),
        1..=2usize,
        prop::sample::select(&[1usize, 3, 6, 8][..]),
        prop::sample::select(&[1usize, 5, 8, 16][..]),
        prop::sample::select(&[1usize, 7, 16, 64][..]),
        prop::collection::vec(row(), 0..4),
        (prop::sample::select(&[0.0f32, 0.0, 0.5, 30.0][..]), any::<bool>(), any::<bool>()),
        any::<u64>(),
    )
        .prop_map(|(dtype, layout, kv_heads, group, head_dim, page_size, rows, more, seed)| {
            Shape {
                dtype,
                layout,
                kv_heads,
                group,
                head_dim,
                page_size,
                rows,
                value_amplitude: 2.0,
                soft_cap: more.0,
                sinks: more.1,
                own_spans: more.2,
                seed,
            }
        })
}
