//! What the problem generator gives: valid problems, every edge it promises, the same again from the
//! same seed.

use half::f16;
use proptest::prelude::*;
use spanforge_kernels::configuration::HEAD_DIMS;
use spanforge_kernels::{KernelShape, KernelSpec};
use spanforge_spans::{Dtype, KvDtype, KvLayout};
use spanforge_verify::recipe::Values;
use spanforge_verify::{Edges, generate, generate_recipe};
use std::collections::{BTreeMap, BTreeSet};

fn spec() -> KernelSpec {
    "f16-d64-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second".parse().unwrap()
}

#[test]
fn a_few_hundred_seeds_reach_every_edge() {
    let spec = spec();
    let edges = Edges::of(&spec);
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let mut page_sizes = BTreeSet::new();
    for seed in 0..400 {
        let problem = generate(spec.shape, &edges, seed);
        page_sizes.insert(problem.attention.page_size);
        let mut saw =
            |what: &'static str, is: bool| *seen.entry(what).or_default() += u32::from(is);
        let counts: Vec<u64> = problem.spans.sets().map(|s| s.len_tokens()).collect();
        saw("an empty row", counts.contains(&0));
        saw("a row of one token", counts.contains(&1));
        saw("a row of exactly a tile", counts.contains(&32));
        saw("a row of a tile and one", counts.contains(&33));
        saw("a row of exactly a share", counts.contains(&128));
        saw("a long row among short ones", {
            let long = counts.iter().max().unwrap();
            counts.len() > 2 && *long > 100 && counts.iter().filter(|n| *n * 10 < *long).count() > 1
        });
        saw("raw spans that are not canonical", !problem.spans.is_canonical());
        saw("several rows of one request", problem.rows() > problem.requests());
        saw("several KV heads", problem.attention.kv_heads > 1);
        saw("NHD", problem.attention.layout == KvLayout::Nhd);
        saw("HND", problem.attention.layout == KvLayout::Hnd);
        saw("page table entries out of range", problem.page_table.iter().any(|p| *p < 0));
        let keys: BTreeSet<u16> = problem.k.iter().copied().filter(|k| !is_nan(*k)).collect();
        saw("subnormal keys", !keys.is_empty() && keys.iter().all(|k| k & 0x7c00 == 0));
        saw("equal keys", !keys.is_empty() && keys.len() <= 64 && counts.iter().sum::<u64>() > 8);
        let largest =
            problem.q.iter().map(|q| f16::from_bits(*q).to_f32().abs()).fold(0.0, f32::max);
        saw("large logits", largest > 20.0);
    }
    assert!(seen.values().all(|n| *n > 0), "{seen:#?}");
    assert_eq!(page_sizes, BTreeSet::from([1, 7, 16, 64, 128]));
}

/// What is drawn now and then: several hundred spans, rows beyond a warp's lanes, pages in common,
/// and pages whose offsets need 64 bits.
#[test]
fn rare_problems_are_rare_but_there() {
    let spec = spec();
    let edges = Edges::of(&spec);
    let (mut spans, mut rows, mut shared, mut high) = (0, 0, 0, 0);
    let (mut caps, mut sinks, mut own, mut together) = (0, 0, 0, 0);
    for seed in 0..1000 {
        let recipe = generate_recipe(spec.shape, &edges, seed);
        spans += u32::from(recipe.rows.iter().any(|row| row.spans.len() > 256));
        rows += u32::from(recipe.rows.len() > 32);
        let a = recipe.attention;
        let page = u64::from(a.page_size * a.kv_heads * a.head_dim);
        high += u32::from(u64::from(recipe.first_page) * page >= 1 << 31);
        let problem = recipe.problem().unwrap();
        caps += u32::from(problem.soft_cap > 0.0);
        sinks += u32::from(!problem.sinks.is_empty());
        own += u32::from(problem.span_heads() > 1);
        together += u32::from(problem.bucket().rows_per_request > 1);
        let firsts: Vec<i32> =
            problem.page_table.chunks(problem.max_pages.max(1)).map(|table| table[0]).collect();
        shared += u32::from(firsts.len() > 1 && firsts[1..].contains(&firsts[0]));
    }
    for (what, count) in [("spans", spans), ("rows", rows)] {
        assert!((3..=30).contains(&count), "{what}: {count}");
    }
    assert!(shared > 30 && high > 20, "{shared} {high}");
    for (what, count) in [("caps", caps), ("sinks", sinks), ("own", own), ("together", together)] {
        assert!((60..=400).contains(&count), "{what}: {count}");
    }
}

/// No logit that is meant to be far from zero is near it, and none leaves the range of its kind.
#[test]
fn far_logits_are_far() {
    let spec = spec();
    let edges = Edges::of(&spec);
    let mut seen = 0;
    for seed in 0..600 {
        let recipe = generate_recipe(spec.shape, &edges, seed);
        let sign = match recipe.values {
            Values::FarBelow => -1.0,
            Values::FarAbove => 1.0,
            _ => continue,
        };
        let problem = recipe.problem().unwrap();
        let a = problem.attention;
        let number = |bits: &u16| f64::from(f16::from_bits(*bits).to_f32());
        for key in problem.k.chunks(a.head_dim as usize).filter(|key| !is_nan(key[0])) {
            for query in problem.q.chunks(a.head_dim as usize) {
                let dot: f64 = query.iter().zip(key).map(|(q, k)| number(q) * number(k)).sum();
                let size = sign * dot * f64::from(problem.scale);
                assert!((1e4..1.6e5).contains(&size), "seed {seed}: {size}");
                seen += 1;
            }
        }
    }
    assert!(seen > 1000, "{seen}");
}

#[test]
fn page_numbers_that_do_not_fit_are_refused() {
    let spec = spec();
    let mut recipe = generate_recipe(spec.shape, &Edges::of(&spec), 1);
    recipe.first_page = i32::MAX.cast_unsigned();
    recipe.extra_pages = 2;
    let error = recipe.problem().unwrap_err().to_string();
    assert!(error.starts_with("first_page is 2147483647"), "{error}");
}

fn is_nan(bits: u16) -> bool {
    f16::from_bits(bits).is_nan()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every problem is valid, NaN exactly where nothing is selected, and repeatable.
    #[test]
    fn problems_are_valid_and_poisoned(
        seed: u64, head_dim in 0..4usize, group_size in 1..=9u32, bf16: bool, of_8_bits: bool,
    ) {
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F16 };
        let kv_dtype = if of_8_bits { KvDtype::E4m3 } else { KvDtype::Same };
        let shape = KernelShape { dtype, kv_dtype, head_dim: HEAD_DIMS[head_dim], group_size };
        let edges = Edges::of(&spec());
        let problem = generate(shape, &edges, seed);
        prop_assert_eq!(problem.check(), Ok(()));
        prop_assert_eq!(problem.kernel_shape(), Ok(shape));
        // NaN never equals itself, but bits do.
        prop_assert_eq!(&problem, &generate(shape, &edges, seed));

        // A bitmap of the rows that any row selects, built without the generator's own order.
        let a = problem.attention;
        let rows = problem.k.len() / a.head_dim as usize;
        let mut selected = vec![false; rows];
        // Where each KV head has spans of its own, sets are by row and head.
        let sets = problem.span_heads() as usize;
        for set in 0..sets * problem.rows() {
            let request = problem.row_request[set / sets] as usize;
            let heads = if sets == 1 { 0..a.kv_heads as usize } else { set % sets..set % sets + 1 };
            for token in problem.spans.row(set).tokens() {
                let page = problem.page_table[request * problem.max_pages + (token / a.page_size) as usize];
                for head in heads.clone() {
                    let slot = (token % a.page_size) as usize;
                    selected[a.layout.row_index(
                        page as usize, slot, head, a.page_size as usize, a.kv_heads as usize,
                    )] = true;
                }
            }
        }
        let nan = |bits: u16| match (kv_dtype, dtype) {
            (KvDtype::E4m3, _) => bits & 0x7f == 0x7f,
            (KvDtype::Same, Dtype::F16) => f16::from_bits(bits).is_nan(),
            (KvDtype::Same, Dtype::Bf16) => half::bf16::from_bits(bits).is_nan(),
        };
        for tensor in [&problem.k, &problem.v] {
            for (row, wanted) in tensor.chunks(a.head_dim as usize).zip(&selected) {
                prop_assert!(row.iter().all(|x| nan(*x) != *wanted));
            }
        }
    }
}
