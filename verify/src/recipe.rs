//! A problem as a few numbers that a person can read and change: lengths, spans, pages, and seeds in
//! place of tensors. It is what a case file holds and what shrinking works on. Every element of K and
//! V that no row selects is NaN, and page table entries that no row needs are out of range.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use spanforge_kernels::DecodeProblem;
use spanforge_kernels::configuration::{AttentionShape, ShapeError};
use spanforge_kernels::problem::ProblemError;
use spanforge_spans::{BatchError, KvDtype, SpanBatch, SpanSet};
use std::sync::LazyLock;

/// How to make a [`DecodeProblem`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Heads, dimensions, page size and layout.
    pub attention: AttentionShape,
    /// Factor of q . k before the softmax.
    pub scale: f32,
    /// What logits are capped at, smoothly; 0 for no cap.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub soft_cap: f32,
    /// Seed of the sinks: a logit for each query head, one in eight of them -inf, one above most logits. 0
    /// for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sinks: u64,
    /// Seed of the factors of K and V of each KV head, between 1/2 and 2, for a cache of 8-bit elements;
    /// now and then K or V has none. 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub kv_scales: u64,
    /// Tokens in the cache of each request.
    pub kv_len: Vec<u32>,
    /// The rows.
    pub rows: Vec<Row>,
    /// Entries of the page table beyond those that the longest request needs.
    pub extra_entries: u32,
    /// Pages of the cache that belong to nobody.
    pub extra_pages: u32,
    /// Number of the first page of the cache, see [`UploadOptions::first_page`]: a high one makes
    /// offsets of tokens need 64 bits.
    ///
    /// [`UploadOptions::first_page`]: spanforge_kernels::decoder::UploadOptions::first_page
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_page: u32,
    /// Tokens that are appended to each set after the plan is made, see [`UploadOptions::appended`].
    ///
    /// [`UploadOptions::appended`]: spanforge_kernels::decoder::UploadOptions::appended
    #[serde(default, skip_serializing_if = "is_zero")]
    pub appended: u32,
    /// Seed of a division of every set into two parts, attention over which is computed apart too and then
    /// merged; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parts: u64,
    /// Pages at the start of the first request that all others begin with too, as far as they are
    /// long enough: a prefix in common.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared_pages: u32,
    /// Seed of the order of the pages; 0 leaves them in order.
    pub page_order: u64,
    /// What page table entries hold that no token needs.
    pub unneeded_entry: i32,
    /// How the tensors are drawn.
    pub values: Values,
    /// Seed of the tensors.
    pub tensors: u64,
}

/// One row of a recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its request.
    pub request: usize,
    /// Its spans `[start, end)` as a careless user would give them: unsorted, overlapping, repeated,
    /// empty.
    pub spans: Vec<[u32; 2]>,
    /// The same for the KV heads after the first, where each has spans of its own: all rows have them,
    /// or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_heads: Vec<Vec<[u32; 2]>>,
}

impl Row {
    /// A row whose KV heads have the same spans.
    pub fn new(request: usize, spans: Vec<[u32; 2]>) -> Self {
        Self { request, spans, other_heads: Vec::new() }
    }

    /// The spans of each KV head that has its own.
    pub fn sets(&self) -> impl Iterator<Item = &Vec<[u32; 2]>> {
        std::iter::once(&self.spans).chain(&self.other_heads)
    }

    /// The same, to change them.
    pub fn sets_mut(&mut self) -> impl Iterator<Item = &mut Vec<[u32; 2]>> {
        std::iter::once(&mut self.spans).chain(&mut self.other_heads)
    }
}

/// How queries, keys and values are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Values {
    /// Standard normal: logits of a few units.
    Ordinary,
    /// Large queries: logits in the hundreds, where one token takes all the weight.
    LargeLogits,
    /// Subnormal keys and values: logits that vanish.
    Subnormal,
    /// Every key the same: weights exactly equal.
    EqualKeys,
    /// Values near one: sums in which an omission cannot hide.
    Positive,
    /// Every logit between -1e5 and -1e4, many of them exactly equal: a finite number that stands for
    /// minus infinity is larger than they are.
    FarBelow,
    /// Every logit between 1e4 and 1e5, many of them exactly equal.
    FarAbove,
    /// Seven of eight logits are minus infinity: tokens without weight, whole steps and rows of them. In
    /// a cache of 8-bit elements, which has no infinity, the smallest number takes its place.
    MinusInfinity,
}

impl Values {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Ordinary,
        Self::LargeLogits,
        Self::Subnormal,
        Self::EqualKeys,
        Self::Positive,
        Self::FarBelow,
        Self::FarAbove,
        Self::MinusInfinity,
    ];

    /// Sign of all logits where they are far from zero.
    fn far(self) -> Option<f32> {
        match self {
            Self::FarBelow => Some(-1.0),
            Self::FarAbove => Some(1.0),
            _ => None,
        }
    }
}

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

/// Most elements of K that a recipe may ask for: half a gibibyte.
const MOST_ELEMENTS: u64 = 1 << 28;

/// A recipe that makes no problem, with the field at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// The kernels do not serve the shape.
    #[error("attention: {0}")]
    Shape(#[from] ShapeError),
    /// A page of no tokens.
    #[error("attention.page_size is 0: a page holds at least one token")]
    PageSize,
    /// A row of a request that is not there.
    #[error("rows[{row}].request is {request}, but kv_len has {requests} requests")]
    Request {
        /// Row.
        row: usize,
        /// Its request.
        request: usize,
        /// Requests there are.
        requests: usize,
    },
    /// A span that is reversed or longer than its request.
    #[error(
        "rows[{row}].spans has [{start}, {end}]; spans are [start, end) with start <= end <= {kv_len}, the KV length of its request"
    )]
    Span {
        /// Row.
        row: usize,
        /// First token.
        start: u32,
        /// One past the last.
        end: u32,
        /// Tokens there are.
        kv_len: u32,
    },
    /// Spans for another number of KV heads than there are.
    #[error(
        "rows[{row}].other_heads has {found} sets of spans; give {expected} in every row (one for each KV head after the first), or none in any"
    )]
    OtherHeads {
        /// Row.
        row: usize,
        /// Sets found.
        found: usize,
        /// KV heads after the first.
        expected: u32,
    },
    /// Spans that do not make a batch.
    #[error("rows: {0}")]
    Batch(#[from] BatchError),
    /// Tensors of more elements than a case is worth.
    #[error(
        "the K tensor would have more than {MOST_ELEMENTS} elements; make kv_len, extra_pages or the page size smaller"
    )]
    TooLarge,
    /// Pages whose numbers do not fit the page table.
    #[error("first_page is {first_page}: with {pages} pages numbers exceed 2147483647")]
    FirstPage {
        /// Number of the first page.
        first_page: u32,
        /// Pages there are.
        pages: usize,
    },
    /// Whatever else makes a problem impossible.
    #[error(transparent)]
    Problem(#[from] ProblemError),
}

/// The usual scale of a head of that many elements.
pub fn default_scale(head_dim: u32) -> f32 {
    (head_dim as f32).sqrt().recip()
}

impl Recipe {
    /// Whether each KV head has spans of its own.
    pub fn has_head_spans(&self) -> bool {
        self.rows.iter().any(|row| !row.other_heads.is_empty())
    }

    /// Per row, or per row and KV head, the spans as given to the kernels, in one batch.
    pub fn spans(&self) -> Result<SpanBatch, RecipeError> {
        let mut span_ptr = vec![0];
        let mut raw = Vec::new();
        let others = if self.has_head_spans() { self.attention.kv_heads.max(1) - 1 } else { 0 };
        for (index, row) in self.rows.iter().enumerate() {
            let found = row.other_heads.len();
            if found != others as usize {
                return Err(RecipeError::OtherHeads { row: index, found, expected: others });
            }
            let (requests, request) = (self.kv_len.len(), row.request);
            let Some(&kv_len) = self.kv_len.get(request) else {
                return Err(RecipeError::Request { row: index, request, requests });
            };
            for set in row.sets() {
                for &[start, end] in set {
                    let signed = (i32::try_from(start), i32::try_from(end));
                    let (true, (Ok(from), Ok(to))) = (start <= end && end <= kv_len, signed) else {
                        return Err(RecipeError::Span { row: index, start, end, kv_len });
                    };
                    raw.push([from, to]);
                }
                span_ptr.push(i32::try_from(raw.len()).map_err(|_| RecipeError::TooLarge)?);
            }
        }
        Ok(SpanBatch::from_raw(span_ptr, raw)?)
    }

    /// Pages that each request needs.
    fn pages_needed(&self) -> Result<Vec<usize>, RecipeError> {
        let a = &self.attention;
        a.kernel_shape()?;
        if a.page_size == 0 {
            return Err(RecipeError::PageSize);
        }
        let pages = |tokens: &u32| u64::from(tokens.div_ceil(a.page_size));
        let total =
            self.kv_len.iter().map(pages).fold(u64::from(self.extra_pages), u64::saturating_add);
        let elements = [a.page_size, a.kv_heads, a.head_dim]
            .into_iter()
            .fold(total, |product, n| product.saturating_mul(u64::from(n)));
        let longest = self.kv_len.iter().map(pages).max().unwrap_or(0);
        let entries = longest
            .saturating_add(u64::from(self.extra_entries))
            .saturating_mul(self.kv_len.len() as u64);
        let queries = (self.rows.len() as u64)
            .saturating_mul(u64::from(a.query_heads) * u64::from(a.head_dim));
        if elements.max(entries).max(queries) > MOST_ELEMENTS
            || self.kv_len.iter().any(|n| i32::try_from(*n).is_err())
        {
            return Err(RecipeError::TooLarge);
        }
        Ok(self.kv_len.iter().map(|n| pages(n) as usize).collect())
    }

    /// The problem over two parts of each set, one of which may be empty, if there are to be any: before and
    /// behind a token, or spans by turns. The first part has the sinks.
    pub fn parts(
        &self,
        problem: &DecodeProblem,
    ) -> Result<Option<[DecodeProblem; 2]>, RecipeError> {
        if self.parts == 0 {
            return Ok(None);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.parts);
        let sets = problem.spans.sets().map(|set| {
            let first = match rng.random_range(0..4) {
                0 => SpanSet::empty(),
                1 => set.clone(),
                2 => {
                    let at = rng.random_range(0..=set.len_tokens());
                    let cut = set.tokens().nth(at as usize).unwrap_or(u32::MAX);
                    set.intersection(&SpanSet::from(0..cut))
                }
                _ => set.iter().step_by(2).collect(),
            };
            (set.difference(&first), first)
        });
        let (others, firsts): (Vec<_>, Vec<_>) = sets.unzip();
        let part = |sets: &[SpanSet], sinks: &[f32]| -> Result<DecodeProblem, RecipeError> {
            let spans = SpanBatch::from_sets(sets)?;
            Ok(DecodeProblem { spans, sinks: sinks.to_vec(), ..problem.clone() })
        };
        Ok(Some([part(&firsts, &problem.sinks)?, part(&others, &[])?]))
    }

    /// The problem: tokens put on pages and all tensors drawn.
    pub fn problem(&self) -> Result<DecodeProblem, RecipeError> {
        let needed = self.pages_needed()?;
        let spans = self.spans()?;
        let a = self.attention;
        let max_pages = needed.iter().copied().max().unwrap_or(0) + self.extra_entries as usize;
        let pages = needed.iter().sum::<usize>() + self.extra_pages as usize;
        if self.first_page as u64 + pages as u64 > 1 << 31 {
            return Err(RecipeError::FirstPage { first_page: self.first_page, pages });
        }
        let mut free: Vec<i32> = (0..pages as i32).collect();
        if self.page_order != 0 {
            let mut rng = ChaCha8Rng::seed_from_u64(self.page_order);
            rand::seq::SliceRandom::shuffle(&mut free[..], &mut rng);
        }
        let mut free = free.into_iter();
        let mut page_table = vec![self.unneeded_entry; self.kv_len.len() * max_pages];
        for (request, &count) in needed.iter().enumerate() {
            let entries = page_table.iter_mut().skip(request * max_pages).take(count);
            for (entry, page) in entries.zip(&mut free) {
                *entry = page;
            }
        }
        // The pages that were theirs are nobody's now, and nothing of them is selected.
        if let Some((first, others)) = page_table.split_at_mut_checked(max_pages) {
            let shared = needed.first().map_or(0, |n| (*n).min(self.shared_pages as usize));
            let theirs = others.chunks_mut(max_pages.max(1)).zip(needed.iter().skip(1));
            for (entries, count) in theirs {
                let count = shared.min(*count);
                entries[..count].copy_from_slice(&first[..count]);
            }
        }
        let head_dim = a.head_dim as usize;
        let elements = pages * a.page_size as usize * a.kv_heads as usize * head_dim;
        let nan = a.encode_kv(f32::NAN);
        let [k_scales, v_scales] = self.draw_kv_scales();
        let mut problem = DecodeProblem {
            attention: a,
            scale: self.scale,
            soft_cap: self.soft_cap,
            pages,
            max_pages,
            kv_len: self.kv_len.iter().map(|n| *n as i32).collect(),
            page_table,
            row_request: self.rows.iter().map(|row| row.request as i32).collect(),
            spans,
            sinks: self.draw_sinks(),
            k_scales,
            v_scales,
            q: Vec::new(),
            k: vec![nan; elements],
            v: vec![nan; elements],
        };
        self.fill(&mut problem);
        problem.check()?;
        Ok(problem)
    }

    fn draw_sinks(&self) -> Vec<f32> {
        if self.sinks == 0 {
            return Vec::new();
        }
        let mut normals = Normals::new(self.sinks);
        let heads = 0..self.attention.query_heads;
        heads
            .map(|_| match normals.bits() % 8 {
                0 => f32::NEG_INFINITY,
                1 => 12.0 + 4.0 * normals.draw(),
                _ => 4.0 * normals.draw(),
            })
            .collect()
    }

    fn draw_kv_scales(&self) -> [Vec<f32>; 2] {
        let mut normals = Normals::new(self.kv_scales);
        let which = normals.bits() % 8;
        [0, 1].map(|tensor| {
            if self.kv_scales == 0 || which == tensor {
                return Vec::new();
            }
            let heads = 0..self.attention.kv_heads;
            heads.map(|_| (f32::from(normals.bits()) / 32768.0 - 1.0).exp2()).collect()
        })
    }

    /// Draws the queries, and the keys and values of selected tokens.
    fn fill(&self, problem: &mut DecodeProblem) {
        let a = &self.attention;
        let (dtype, head_dim, page_size) = (a.dtype, a.head_dim as usize, a.page_size);
        let kv_heads = a.kv_heads as usize;
        let mut normals = Normals::new(self.tensors);
        let factor = if self.values == Values::LargeLogits { 16.0 } else { 1.0 };
        let queries = self.rows.len() * a.query_heads as usize * head_dim;
        problem.q = (0..queries).map(|_| dtype.encode(factor * normals.draw())).collect();
        let direction: Vec<f32> = (0..head_dim).map(|_| normals.draw()).collect();
        let same: Vec<u16> = direction.iter().map(|x| a.encode_kv(*x)).collect();
        // Queries along the direction of all keys, or against it: the smallest logit has a size of
        // 20,000, since a normal variate's has a mean square of 1.
        let far = self.values.far();
        let strength = (2e4 / (head_dim as f32 * self.scale.abs().max(1e-3))).sqrt();
        if let Some(sign) = far {
            for query in problem.q.chunks_exact_mut(head_dim) {
                for (q, along) in query.iter_mut().zip(&direction) {
                    *q = dtype.encode(sign * strength * along);
                }
            }
        }
        if self.values == Values::MinusInfinity {
            // What an infinite element of a key is multiplied by, so that the logit is -inf.
            for query in problem.q.chunks_exact_mut(head_dim) {
                query[0] = dtype.encode(self.scale.signum() * (0.5 + normals.draw().abs()));
            }
        }
        // Where heads have the same spans they are drawn together, token by token.
        let sets = if self.has_head_spans() { kv_heads } else { 1 };
        for set in 0..sets * self.rows.len() {
            let (row, first_head) = (&self.rows[set / sets], set % sets);
            for token in problem.spans.row(set).tokens() {
                let (entry, slot) = ((token / page_size) as usize, (token % page_size) as usize);
                let page = problem.page_table[row.request * problem.max_pages + entry] as usize;
                for head in first_head..if sets == 1 { kv_heads } else { first_head + 1 } {
                    let at = a.layout.row_index(page, slot, head, page_size as usize, kv_heads);
                    let at = head_dim * at;
                    let (k, v) =
                        (&mut problem.k[at..at + head_dim], &mut problem.v[at..at + head_dim]);
                    match self.values {
                        Values::EqualKeys => k.copy_from_slice(&same),
                        Values::Subnormal => k.fill_with(|| normals.subnormal(a.kv_dtype)),
                        // Few lengths and far apart: the largest logits are exactly equal, and the
                        // others have no weight, whatever rounding does to numbers of that size.
                        Values::FarBelow | Values::FarAbove => {
                            let length = [1.0, 1.25, 1.5, 4.0][usize::from(normals.bits() % 4)];
                            for (k, along) in k.iter_mut().zip(&direction) {
                                *k = a.encode_kv(length * strength * along);
                            }
                        }
                        _ => k.fill_with(|| a.encode_kv(normals.draw())),
                    }
                    if self.values == Values::MinusInfinity && !normals.bits().is_multiple_of(8) {
                        k[0] = a.encode_kv(f32::NEG_INFINITY);
                    }
                    match self.values {
                        Values::Positive => {
                            v.fill_with(|| a.encode_kv(1.0 + 0.1 * normals.draw()));
                        }
                        Values::Subnormal => v.fill_with(|| normals.subnormal(a.kv_dtype)),
                        _ => v.fill_with(|| a.encode_kv(normals.draw())),
                    }
                }
            }
        }
    }
}

/// Numbers of tensors, four from each random word: drawing is a good part of what a case costs.
struct Normals {
    rng: ChaCha8Rng,
    word: u64,
    left: u32,
}

/// Standard normal variates to choose from.
static TABLE: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    (0..1 << 16).map(|_| normal(&mut rng)).collect()
});

impl Normals {
    fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), word: 0, left: 0 }
    }

    fn bits(&mut self) -> u16 {
        if self.left == 0 {
            (self.word, self.left) = (self.rng.random(), 4);
        }
        self.left -= 1;
        let bits = self.word as u16;
        self.word >>= 16;
        bits
    }

    fn draw(&mut self) -> f32 {
        TABLE[usize::from(self.bits())]
    }

    /// A subnormal or zero of either sign: in both types of 16 bits the exponent bits are clear below
    /// bit 7.
    fn subnormal(&mut self, dtype: KvDtype) -> u16 {
        match dtype {
            KvDtype::Same => self.bits() & 0x807f,
            KvDtype::E4m3 => self.bits() & 0x87,
        }
    }
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
