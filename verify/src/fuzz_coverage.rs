//! What a run of fuzzing has exercised: named edges of the space of problems, values of the
//! parameters of configurations, and ways of running.

use crate::case::Trial;
use crate::recipe::Values;
use serde::Serialize;
use spanforge_kernels::abi::PLAN_THREADS;
use spanforge_kernels::decoder::appendable;
use spanforge_kernels::launch::{pieces, query_tiles};
use spanforge_kernels::{KernelSpec, LoadPath, Merge, QueryHome, SearchSpace, WARPGROUP_COLUMNS};
use spanforge_spans::{KvDtype, KvLayout, SpanSet};
use std::collections::{BTreeMap, BTreeSet};

/// Cases per named edge. Edges that no case has met are there with 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Edge and cases that met it, in the order of a fixed list.
    pub edges: Vec<(&'static str, u64)>,
}

/// The edges, by what they concern.
const EDGES: [&str; 64] = [
    "row: empty",
    "row: one token",
    "row: whole cache",
    "row: ends with a softmax step",
    "row: ends with a tile",
    "row: one token past a tile",
    "row: one token short of a tile",
    "row: fills the ring",
    "row: goes round the ring",
    "row: as long as the smallest share",
    "row: cut into several shares",
    "row: several of one request",
    "row: longer than all others together",
    "row: more than lanes of a warp",
    "row: more than threads that plan",
    "span: ends with a page",
    "span: crosses pages",
    "span: one token",
    "span: more in a row than lanes of a warp",
    "span: more in all than threads that plan",
    "span: more in a row than threads that plan",
    "raw: repeated or overlapping",
    "raw: adjacent",
    "raw: empty",
    "raw: unsorted",
    "page: one token",
    "page: 2 to 15 tokens",
    "page: 16 tokens",
    "page: more than 16 tokens",
    "page: permuted",
    "page: shared by requests",
    "page: offsets beyond 2^31 elements",
    "spans: of each KV head's own",
    "spans: with tokens appended to the plan",
    "spans: in two parts, merged",
    "query tile: full",
    "query tile: with rows to spare",
    "query tile: rows with other spans",
    "query tile: more rows than a word has bits",
    "query tile: nothing in a tile for a warpgroup with rows",
    "layout: NHD",
    "layout: HND",
    "KV heads: 1",
    "KV heads: several",
    "values: ordinary",
    "values: large logits",
    "values: subnormal",
    "values: equal keys",
    "values: positive",
    "values: logits below -1e4",
    "values: logits above 1e4",
    "values: logits of -inf",
    "values: soft cap",
    "values: sinks",
    "values: of 8 bits",
    "values: of 8 bits, with factors",
    "schedule: in order",
    "schedule: drawn",
    "share: smaller than configured",
    "share: larger than configured",
    "share: larger than all rows",
    "share: of places without a token alone",
    "share: with two sets in part",
    "batch: no selected token",
];

impl Default for Coverage {
    fn default() -> Self {
        Self { edges: EDGES.map(|name| (name, 0)).to_vec() }
    }
}

impl Coverage {
    /// Counts a case by the edges that it met, see [`edges_of`].
    pub fn add(&mut self, edges: u64) {
        for (at, (_, count)) in self.edges.iter_mut().enumerate() {
            *count += edges >> at & 1;
        }
    }

    /// Edges met, and all there are.
    pub fn met(&self) -> (usize, usize) {
        (self.edges.iter().filter(|(_, count)| *count > 0).count(), self.edges.len())
    }
}

const _: () = assert!(EDGES.len() <= 64, "an edge is a bit of a word");

/// The edges that a trial of a kernel meets: a bit for each of [`Coverage::edges`], the first one
/// lowest. The kernel is as the trial launches it, but for its smallest share.
pub fn edges_of(kernel: &KernelSpec, trial: &Trial) -> u64 {
    let mut met = 0;
    let mut meet = |name: &'static str, holds: bool| {
        let at = EDGES.iter().position(|edge| *edge == name);
        debug_assert!(at.is_some(), "{name}");
        met |= at.map_or(0, |at| u64::from(holds) << at);
    };
    let own_share = kernel.configuration.smallest_share;
    let spec = &trial.spec(kernel);
    let (c, p) = (&spec.configuration, &trial.problem);
    let page = p.attention.page_size.max(1);
    let (tile, share) = (u64::from(c.tile_tokens.max(1)), u64::from(c.smallest_share));
    let step = u64::from((c.step_tokens(&spec.shape) * c.token_warps).max(1));
    let ring = tile * u64::from(c.stages);
    let Ok(batch) = p.spans() else { return met };
    let tokens: Vec<u64> = batch.sets().map(|set| set.len_tokens()).collect();
    let total: u64 = tokens.iter().sum();
    meet("batch: no selected token", total == 0);
    meet("spans: of each KV head's own", p.has_head_spans());
    let appends = p.appended > 0 && c.query_rows == 1 && appendable(&batch.canonicalise()) > 0;
    meet("spans: with tokens appended to the plan", appends);
    meet("spans: in two parts, merged", p.parts != 0 && total > 0);
    meet("values: soft cap", p.soft_cap > 0.0 && total > 0);
    meet("values: sinks", p.sinks > 0 && total > 0);
    let of_8_bits = p.attention.kv_dtype == KvDtype::E4m3 && total > 0;
    meet("values: of 8 bits", of_8_bits);
    meet("values: of 8 bits, with factors", of_8_bits && p.kv_scales > 0);
    let sets = batch.rows() / p.rows.len().max(1);
    let requests: Vec<i32> = p.rows.iter().map(|row| row.request as i32).collect();
    for tile in query_tiles(&requests, c.query_rows).windows(2) {
        let rows = (tile[1] - tile[0]) as u32;
        meet("query tile: full", c.query_rows > 1 && rows == c.query_rows);
        meet("query tile: with rows to spare", rows < c.query_rows);
        meet("query tile: more rows than a word has bits", rows > 32);
        let tile = tile[0] as usize..tile[1] as usize;
        meet(
            "query tile: nothing in a tile for a warpgroup with rows",
            (0..sets).any(|set| {
                let of_rows: Vec<SpanSet> =
                    tile.clone().map(|row| batch.row(row * sets + set)).collect();
                passes_over(spec, &of_rows)
            }),
        );
    }
    let rows = p.rows.iter().flat_map(|row| row.sets().map(move |spans| (row, spans)));
    let rows = rows.zip(batch.sets()).zip(&tokens).enumerate();
    for (index, (((row, spans), set), &n)) in rows {
        let other_row = index.checked_sub(sets);
        let differs = |before: usize| batch.row(before) != set;
        let same_request = other_row.is_some_and(|o| p.rows[o / sets].request == row.request);
        meet(
            "query tile: rows with other spans",
            c.query_rows > 1 && same_request && other_row.is_some_and(differs),
        );
        meet("row: empty", n == 0);
        meet("row: one token", n == 1);
        meet(
            "row: whole cache",
            n > 0 && p.kv_len.get(row.request) == u32::try_from(n).ok().as_ref(),
        );
        meet("row: ends with a softmax step", n > 0 && n.is_multiple_of(step));
        meet("row: ends with a tile", n > 0 && n.is_multiple_of(tile));
        meet("row: one token past a tile", n > 1 && n % tile == 1);
        meet("row: one token short of a tile", (n + 1).is_multiple_of(tile));
        let staged = c.load_path == LoadPath::Staged;
        meet("row: fills the ring", staged && n == ring);
        meet("row: goes round the ring", staged && n > ring);
        meet("row: as long as the smallest share", n == share);
        meet("row: cut into several shares", n > share);
        let same = p.rows.iter().filter(|other| other.request == row.request).count();
        meet("row: several of one request", same > 1);
        meet("row: longer than all others together", tokens.len() > 1 && 2 * n > total);
        for span in set.iter() {
            meet("span: ends with a page", span.end().is_multiple_of(page));
            meet("span: crosses pages", span.start() / page < (span.end() - 1) / page);
            meet("span: one token", span.end() - span.start() == 1);
        }
        let raw: u64 = spans.iter().map(|[start, end]| u64::from(end.saturating_sub(*start))).sum();
        meet("raw: repeated or overlapping", raw > n);
        meet("raw: empty", spans.iter().any(|[start, end]| start == end));
        meet("raw: unsorted", !spans.is_sorted());
        let touching = |end: u32| spans.iter().any(|[s, e]| *s == end && e > s);
        meet("raw: adjacent", spans.iter().any(|[s, e]| s < e && touching(*e)));
    }
    let spans: usize = batch.sets().map(|set| set.iter().count()).sum();
    let in_a_row = batch.sets().map(|set| set.iter().count()).max().unwrap_or(0);
    meet("span: more in a row than lanes of a warp", in_a_row > 32);
    meet("span: more in all than threads that plan", spans > PLAN_THREADS as usize);
    meet("span: more in a row than threads that plan", in_a_row > PLAN_THREADS as usize);
    meet("row: more than lanes of a warp", p.rows.len() > 32);
    meet("row: more than threads that plan", p.rows.len() > PLAN_THREADS as usize);
    let page_elements = u64::from(page) * u64::from(p.attention.kv_heads * p.attention.head_dim);
    let reached = u64::from(p.first_page).saturating_mul(page_elements);
    meet("page: offsets beyond 2^31 elements", total > 0 && reached >= 1 << 31);
    meet("page: permuted", p.page_order != 0 && p.kv_len.iter().any(|n| *n > page));
    meet("page: shared by requests", p.shared_pages > 0 && p.kv_len.len() > 1);
    meet("values: logits below -1e4", p.values == Values::FarBelow && total > 0);
    meet("values: logits above 1e4", p.values == Values::FarAbove && total > 0);
    meet("values: logits of -inf", p.values == Values::MinusInfinity && total > 0);
    meet("share: smaller than configured", share < u64::from(own_share));
    meet("share: larger than configured", share > u64::from(own_share));
    meet("share: larger than all rows", total > 0 && share > total);
    let blocks = trial.multiprocessors.map(|n| n.saturating_mul(c.blocks_per_multiprocessor));
    if let Some(blocks) = blocks.filter(|_| c.query_rows == 1) {
        let heads_per_set = p.attention.kv_heads as usize / sets.max(1);
        let pieces = pieces(spec, blocks, &tokens, heads_per_set as u32);
        let mut shares: BTreeMap<u64, usize> = BTreeMap::new();
        for piece in &pieces {
            *shares.entry(piece.block).or_default() += usize::from(!piece.is_whole);
        }
        meet("share: with two sets in part", shares.values().any(|in_part| *in_part > 1));
        let last = shares.last_key_value().map_or(0, |(block, _)| *block);
        meet("share: of places without a token alone", (shares.len() as u64) <= last);
    }
    meet("page: one token", page == 1);
    meet("page: 2 to 15 tokens", (2..16).contains(&page));
    meet("page: 16 tokens", page == 16);
    meet("page: more than 16 tokens", page > 16);
    meet("layout: NHD", p.attention.layout == KvLayout::Nhd);
    meet("layout: HND", p.attention.layout == KvLayout::Hnd);
    meet("KV heads: 1", p.attention.kv_heads == 1);
    meet("KV heads: several", p.attention.kv_heads > 1);
    meet("values: ordinary", p.values == Values::Ordinary);
    meet("values: large logits", p.values == Values::LargeLogits);
    meet("values: subnormal", p.values == Values::Subnormal);
    meet("values: equal keys", p.values == Values::EqualKeys);
    meet("values: positive", p.values == Values::Positive);
    meet("schedule: in order", trial.schedule == 0);
    meet("schedule: drawn", trial.schedule != 0);
    met
}

/// Whether a warpgroup that has some of these rows of a query tile wants nothing of its first tile of
/// tokens: the only one of which it is known where it begins.
fn passes_over(spec: &KernelSpec, rows: &[SpanSet]) -> bool {
    let c = &spec.configuration;
    let all = rows.iter().cloned().reduce(|a, b| a.union(&b)).unwrap_or_default();
    let mut left = c.tile_tokens;
    let mut first = Vec::new();
    for span in all.iter() {
        let end = span.end().min(span.start().saturating_add(left));
        first.push((span.start(), end));
        left -= end - span.start();
    }
    let wanted = |row: &SpanSet| {
        let mut spans = row.iter();
        spans.any(|span| first.iter().any(|(s, e)| span.start() < *e && *s < span.end()))
    };
    let groups = c.warpgroups(&spec.shape) as usize;
    let [columns, group_size] = [WARPGROUP_COLUMNS, spec.shape.group_size].map(|n| n as usize);
    (0..groups).any(|group| {
        let begin = columns * group / group_size;
        let end = (columns * (group + 1)).div_ceil(group_size).min(rows.len());
        let own = rows.get(begin..end).unwrap_or_default();
        !own.is_empty() && !first.is_empty() && !own.iter().any(wanted)
    })
}

/// The values of one parameter that the kernels of a run have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParameterCoverage {
    /// Name.
    pub name: &'static str,
    /// Values that some kernel has.
    pub met: Vec<String>,
    /// Values of the search spaces that none has.
    pub missed: Vec<String>,
}

/// The values that `specs` take of those that the search spaces of their shapes offer.
pub fn parameter_coverage(spaces: &[SearchSpace], specs: &[KernelSpec]) -> Vec<ParameterCoverage> {
    let mut offered: BTreeMap<&'static str, BTreeMap<u32, String>> = BTreeMap::new();
    let mut order = Vec::new();
    for parameter in spaces.iter().flat_map(SearchSpace::parameters) {
        if !order.contains(&parameter.name) {
            order.push(parameter.name);
        }
        let values = offered.entry(parameter.name).or_default();
        values.extend(parameter.values.iter().enumerate().map(|(i, v)| (*v, parameter.text(i))));
    }
    let covered = order.into_iter().map(|name| {
        let taken: BTreeSet<u32> = specs.iter().filter_map(|spec| value(spec, name)).collect();
        let (met, missed): (Vec<_>, Vec<_>) =
            offered[name].iter().partition(|(value, _)| taken.contains(value));
        let texts =
            |values: Vec<(&u32, &String)>| values.into_iter().map(|v| v.1.clone()).collect();
        ParameterCoverage { name, met: texts(met), missed: texts(missed) }
    });
    covered.collect()
}

/// The value of a parameter as [`SearchSpace::parameters`] numbers it.
fn value(spec: &KernelSpec, name: &str) -> Option<u32> {
    let c = &spec.configuration;
    Some(match name {
        "query_rows" => c.query_rows,
        "core" => c.core as u32,
        "load_path" => u32::from(c.load_path == LoadPath::Direct),
        "tile_tokens" => c.tile_tokens,
        "stages" => c.stages,
        "token_warps" => c.token_warps,
        "heads_per_warp" => c.heads_per_warp,
        "vector_bytes" => c.vector_bytes,
        "unroll" => c.unroll,
        "query" => u32::from(c.query == QueryHome::Shared),
        "l2_prefetch" => c.l2_prefetch,
        "min_blocks" => c.min_blocks,
        "blocks_per_multiprocessor" => c.blocks_per_multiprocessor,
        "smallest_share" => c.smallest_share,
        "merge" => u32::from(c.merge == Merge::LastArriver),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Edges, generate_recipe};

    const ID: &str = "f16-d64-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m64-second";

    /// The generator meets every edge, or the edge is not worth naming.
    #[test]
    fn a_thousand_problems_meet_every_edge() {
        let ids = [
            ID,
            "f16-d64-g4-mma-r4-staged-t32-s2-w2-h8-v16-u1-qr-p0-b1-x2-m64-second",
            "f16-e4m3-d64-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m64-second",
            "f16-d64-g2-wgmma-r64-staged-t64-s2-w1-h16-v16-u1-qr-p0-b1-x1-m64-second",
        ];
        let mut coverage = Coverage::default();
        for (seed, id) in (0..1000).zip(ids.iter().cycle()) {
            let spec: KernelSpec = id.parse().unwrap();
            let problem = generate_recipe(spec.shape, &Edges::of(&spec), seed);
            let smallest_share = [None, Some(1), Some(100_000)][seed as usize / ids.len() % 3];
            let trial =
                Trial { schedule: seed % 2, multiprocessors: Some(2), smallest_share, problem };
            coverage.add(edges_of(&spec, &trial));
        }
        let missed: Vec<_> = coverage.edges.iter().filter(|(_, count)| *count == 0).collect();
        assert!(missed.is_empty(), "{missed:?}");
    }

    #[test]
    fn every_parameter_has_its_value() {
        let spec: KernelSpec = ID.parse().unwrap();
        let limits = spanforge_kernels::Limits {
            shared_bytes_per_block: 232_448,
            shared_bytes_per_multiprocessor: 233_472,
            threads_per_multiprocessor: 2048,
            warpgroups: true,
        };
        for parameter in parameter_coverage(&[SearchSpace::new(spec.shape, limits)], &[spec]) {
            assert_eq!(parameter.met.len(), 1, "{parameter:?}");
        }
    }
}
