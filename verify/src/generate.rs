//! Problems from seeds. Half of what is drawn lies on an edge: rows that are empty or one token long,
//! spans that end where a tile, page or share ends, raw spans that repeat and overlap, one long row
//! among short ones, logits large and tiny, keys that are all the same. What is drawn is a
//! [`Recipe`]: what makes a problem hard, without its tensors.

use crate::recipe::{Recipe, Row, Values, default_scale};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_kernels::abi::PLAN_THREADS;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::{DecodeProblem, KernelShape, KernelSpec};
use spanforge_spans::{KvDtype, KvLayout};

pub use crate::recipe::normal;

/// Token counts at which a kernel does something for the first or last time, and the rows that it takes
/// together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edges {
    tokens: Vec<u32>,
    query_rows: u32,
}

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
            c.smallest_share.saturating_sub(spec.shape.beginning_tokens()),
            32 * c.token_warps,
        ];
        counts.sort_unstable();
        counts.dedup();
        counts.retain(|n| *n <= 600);
        Self { tokens: counts, query_rows: c.query_rows }
    }

    fn draw(&self, rng: &mut impl Rng) -> u32 {
        let edge = self.tokens.choose(rng).copied().unwrap_or(32);
        edge.saturating_add_signed(rng.random_range(-1..=1)).max(1)
    }
}

/// Problem number `seed` for kernels of `shape`.
pub fn generate(shape: KernelShape, edges: &Edges, seed: u64) -> DecodeProblem {
    generate_recipe(shape, edges, seed).problem().expect("generated recipes are well formed")
}

/// The recipe of problem number `seed` for kernels of `shape`.
pub fn generate_recipe(shape: KernelShape, edges: &Edges, seed: u64) -> Recipe {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rng = &mut rng;
    // Wide heads and large groups get smaller problems, so that every case costs about the same.
    let weight = shape.head_dim * shape.group_size.max(4);
    let budget = (256 * 4 * 512 / weight).clamp(96, 1200);
    let kv_heads = *[1, 1, 2, 3].choose(rng).expect("not empty");
    let attention = AttentionShape {
        dtype: shape.dtype,
        kv_dtype: shape.kv_dtype,
        query_heads: shape.group_size * kv_heads,
        kv_heads,
        head_dim: shape.head_dim,
        page_size: *[1, 7, 16, 16, 64, 128].choose(rng).expect("not empty"),
        layout: if rng.random() { KvLayout::Nhd } else { KvLayout::Hnd },
    };
    let requests = *[1, 1, 2, 3, 5].choose(rng).expect("not empty");
    let kv_len = kv_lengths(rng, requests, budget / kv_heads, edges, attention.page_size);
    let count = requests + usize::from(rng.random_ratio(1, 4)) * rng.random_range(0..=requests);
    let rows = (0..count)
        .map(|row| {
            let request = if row < requests { row } else { rng.random_range(0..requests) };
            let spans = raw_spans(rng, kv_len[request], edges, attention.page_size);
            Row::new(request, spans)
        })
        .collect();
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
    let recipe = Recipe {
        attention,
        scale: if rng.random_ratio(3, 4) { default_scale(attention.head_dim) } else { 0.05 },
        soft_cap: 0.0,
        sinks: 0,
        kv_scales: 0,
        kv_len,
        rows,
        extra_entries: rng.random_range(0..2),
        extra_pages: rng.random_range(0..3),
        first_page: 0,
        appended: 0,
        parts: 0,
        shared_pages: 0,
        page_order: rng.random(),
        unneeded_entry: *[-1, i32::MAX, i32::MIN].choose(rng).expect("not empty"),
        values,
        tensors: rng.random(),
    };
    let mut rare = ChaCha8Rng::seed_from_u64(seed);
    rare.set_stream(1);
    rarely(&mut rare, recipe, edges, weight)
}

/// What problems have now and then, drawn apart from everything else: pages in common, a cache so
/// large that offsets need 64 bits, logits far from zero or capped, sinks, spans of each KV head's own,
/// several rows of a request next to each other, tokens appended to a plan, attention over two parts that
/// are merged, and, one time in a hundred since they cost more than others, hundreds of spans or of rows.
fn rarely(rng: &mut impl Rng, mut recipe: Recipe, edges: &Edges, weight: u32) -> Recipe {
    match rng.random_range(0..100) {
        0 => many_spans(rng, &mut recipe, weight),
        1 => many_rows(rng, &mut recipe),
        _ => {}
    }
    let a = recipe.attention;
    if rng.random_ratio(1, 8) {
        recipe.shared_pages = rng.random_range(1..=4);
    }
    if rng.random_ratio(1, 16) {
        // An offset of 2^31 elements is where 32 bits end, one of 2^31 bytes is on the way there,
        // and 2^32 where the wrapped one is small again.
        let page = u64::from(a.page_size) * u64::from(a.kv_heads) * u64::from(a.head_dim);
        let elements = *[1u64 << 30, 1 << 31, 1 << 32, 3 << 32].choose(rng).expect("not empty");
        let before = rng.random_range(0..4);
        let first = (elements / page).saturating_sub(before).min(1 << 30);
        recipe.first_page = u32::try_from(first).unwrap_or(0);
    }
    if rng.random_ratio(3, 32) {
        let far = [Values::FarBelow, Values::FarAbove, Values::MinusInfinity];
        recipe.values = *far.choose(rng).expect("three");
    }
    if rng.random_ratio(1, 8) {
        recipe.soft_cap = *[1.0, 30.0, 50.0].choose(rng).expect("not empty");
    }
    if rng.random_ratio(1, 8) {
        recipe.sinks = rng.random_range(1..=u64::MAX);
    }
    if recipe.attention.kv_dtype == KvDtype::E4m3 && rng.random_ratio(3, 4) {
        recipe.kv_scales = rng.random_range(1..=u64::MAX);
    }
    if rng.random_ratio(if edges.query_rows > 1 { 3 } else { 1 }, 4) {
        several_rows(rng, &mut recipe, edges);
    }
    if recipe.attention.kv_heads > 1 && rng.random_ratio(1, 4) {
        own_spans(rng, &mut recipe, edges);
    }
    if rng.random_ratio(1, 4) {
        recipe.appended = rng.random_range(1..=3);
    }
    if rng.random_ratio(1, 8) {
        recipe.parts = rng.random_range(1..=u64::MAX);
    }
    recipe
}

/// Several rows for a request next to each other, around as many as a query tile has: each sees what the
/// one before it sees and a token more, or the same, or something else; or half of them see something of one
/// half of the cache and the others of the other half, or one row alone does.
fn several_rows(rng: &mut impl Rng, recipe: &mut Recipe, edges: &Edges) {
    let most = (2 * edges.query_rows + 1).clamp(3, 140);
    let page_size = recipe.attention.page_size;
    let rows = std::mem::take(&mut recipe.rows);
    for row in rows {
        let length = recipe.kv_len[row.request];
        let count = match rng.random_range(0..4) {
            0 => 1,
            1 => edges.query_rows,
            _ => rng.random_range(1..=most),
        };
        let (causal, by_halves) = (rng.random(), rng.random_ratio(1, 4));
        let mut last = row.spans.iter().map(|[_, end]| *end).max().unwrap_or(0);
        let first = recipe.rows.len();
        recipe.rows.push(row.clone());
        if by_halves {
            let middle = length / 2;
            recipe.rows[first].spans = vec![[rng.random_range(0..=middle), middle]];
            let second = Row { spans: vec![[middle, length]], ..row };
            let halves = [recipe.rows[first].clone(), second];
            let alone = rng.random_bool(0.5).then(|| match rng.random_range(0..3) {
                0 => count - 1,
                1 => 31.min(count - 1),
                _ => rng.random_range(0..count),
            });
            let is_second = |at: u32| alone.map_or(2 * at >= count, |alone| at == alone);
            recipe.rows[first] = halves[usize::from(is_second(0))].clone();
            recipe.rows.extend((1..count).map(|at| halves[usize::from(is_second(at))].clone()));
            continue;
        }
        for _ in 1..count {
            let mut next = recipe.rows.last().unwrap_or(&row).clone();
            if causal {
                next.spans.push([last, (last + 1).min(length)]);
                last = (last + 1).min(length);
            } else if rng.random_ratio(1, 3) {
                next.spans = raw_spans(rng, length, edges, page_size);
            }
            recipe.rows.push(next);
        }
    }
}

/// Spans for each KV head: for one head as before, for others the same or others.
fn own_spans(rng: &mut impl Rng, recipe: &mut Recipe, edges: &Edges) {
    let (heads, page_size) = (recipe.attention.kv_heads, recipe.attention.page_size);
    for row in &mut recipe.rows {
        let length = recipe.kv_len[row.request];
        for _ in 1..heads {
            let spans = match rng.random_range(0..3) {
                0 => row.spans.clone(),
                _ => raw_spans(rng, length, edges, page_size),
            };
            row.other_heads.push(spans);
        }
    }
}

/// One KV head, so that what is large in another way costs no more than it must.
fn one_head(recipe: &mut Recipe) {
    recipe.attention.query_heads /= recipe.attention.kv_heads;
    recipe.attention.kv_heads = 1;
}

/// A row of several hundred spans of a token or two with gaps between: more than the threads that
/// plan, so that they go round more than once.
fn many_spans(rng: &mut impl Rng, recipe: &mut Recipe, weight: u32) {
    one_head(recipe);
    let most = if weight <= 1024 && rng.random_ratio(1, 3) { 2400 } else { 640 };
    let count = rng.random_range(PLAN_THREADS + 1..=most);
    let row = rng.random_range(0..recipe.rows.len());
    let mut spans = Vec::new();
    let mut at = rng.random_range(0..3);
    for _ in 0..count {
        let end = at + 1 + u32::from(rng.random_ratio(1, 8));
        spans.push([at, end]);
        at = end + rng.random_range(1..=3);
    }
    let row = &mut recipe.rows[row];
    recipe.kv_len[row.request] = at.max(recipe.kv_len[row.request]);
    row.spans = spans;
}

/// Rows of a few tokens beside what there is, more than a warp has lanes and at times more than the
/// threads that plan.
fn many_rows(rng: &mut impl Rng, recipe: &mut Recipe) {
    one_head(recipe);
    for _ in 0..rng.random_range(32..=PLAN_THREADS + 40) {
        let request = rng.random_range(0..recipe.kv_len.len());
        let start = rng.random_range(0..recipe.kv_len[request]);
        let end = (start + rng.random_range(0..=2)).min(recipe.kv_len[request]);
        recipe.rows.push(Row::new(request, vec![[start, end]]));
    }
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
fn raw_spans(rng: &mut impl Rng, length: u32, edges: &Edges, page_size: u32) -> Vec<[u32; 2]> {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    match rng.random_range(0..11) {
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
        7 => {
            // A comb of a token or two: more of them than a warp keeps, where there is room.
            let mut at = rng.random_range(0..length);
            if rng.random() {
                at = 0;
            }
            for _ in 0..rng.random_range(1..=120) {
                let end = at + rng.random_range(1..=2);
                if end > length {
                    break;
                }
                spans.push((at, end));
                at = end + rng.random_range(1..=2);
            }
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
    spans.into_iter().map(|(start, end)| [start, end]).collect()
}
