//! The oracle against examples worked by hand and against dense masked softmax.

mod case;

use case::{Case, KV_LEN, NAN_BITS, REQUESTS, bits, shapes, value};
use proptest::prelude::*;
use spanforge_reference::{
    PartialState, Problem, ProblemError, Tolerance, attention_f64, attention_rounded, compare,
};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch, SpanSet};

/// The textbook: a dense mask over all tokens of the request, exponentials taken directly.
fn naive(case: &Case) -> (Vec<f64>, Vec<f64>) {
    let (p, dtype) = (case.problem(), case.shape.dtype);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (row, (_, request)) in case.shape.rows.iter().enumerate() {
        for head in 0..p.query_heads {
            let set = case.shape.set(row, head / case.shape.group);
            let at = (row * p.query_heads + head) * p.head_dim;
            let q = &case.q[at..at + p.head_dim];
            let mut sum = case.sinks.get(head).map_or(0.0, |sink| f64::from(*sink).exp());
            let mut acc = vec![0.0; p.head_dim];
            for token in (0..KV_LEN).filter(|t| set.contains(*t)) {
                let range = case.kv_range(*request, token, head / case.shape.group);
                let dot: f64 = (q.iter().zip(&case.k[range.clone()]))
                    .map(|(a, b)| f64::from(value(dtype, *a)) * f64::from(value(dtype, *b)))
                    .sum();
                let cap = f64::from(case.shape.soft_cap);
                let logit = dot * f64::from(p.scale);
                let weight = if cap == 0.0 { logit } else { cap * (logit / cap).tanh() }.exp();
                sum += weight;
                for (acc, v) in acc.iter_mut().zip(&case.v[range]) {
                    *acc += weight * f64::from(value(dtype, *v));
                }
            }
            out.extend(acc.iter().map(|a| if sum > 0.0 { a / sum } else { 0.0 }));
            lse.push(sum.ln());
        }
    }
    (out, lse)
}

fn close(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= 1e-12 * (1.0 + b.abs())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Also shows that NaN in unselected tokens never leaks: a case holds NaN wherever no row looks.
    #[test]
    fn agrees_with_dense_masked_softmax(shape in shapes()) {
        let case = Case::new(shape);
        let answer = attention_f64(&case.problem()).expect("valid");
        let (out, lse) = naive(&case);
        prop_assert_eq!(answer.out.len(), out.len());
        for (a, b) in answer.out.iter().zip(&out).chain(answer.lse.iter().zip(&lse)) {
            prop_assert!(close(*a, *b), "{} against {}", a, b);
        }
    }

    /// Over tiny and huge logits, subnormal and huge values: a correct kernel raises no false alarm.
    #[test]
    fn rounded_arithmetic_is_within_the_tolerance(
        shape in shapes(),
        tile in 1..20usize,
        round_weights in any::<bool>(),
        scale in prop::sample::select(&[0.0f32, 1e-30, -0.3, 1.0, 60.0, 3e4][..]),
        value_amplitude in prop::sample::select(&[1e-39f32, 1e-7, 1e-3, 1.0, 6e4][..]),
    ) {
        let case = Case::new(case::Shape { value_amplitude, ..shape });
        let dtype = case.shape.dtype;
        let problem = Problem { scale, ..case.problem() };
        let oracle = attention_f64(&problem).expect("valid");
        let answer = attention_rounded(&problem, tile, round_weights).expect("valid");
        let tolerance = match round_weights {
            true => Tolerance::of_rounded_weights(dtype),
            false => Tolerance::of(dtype),
        };
        let result = compare(&answer.out, &answer.lse, &oracle, dtype, &tolerance).expect("sizes");
        prop_assert!(result.passed, "{}", result);
    }

    /// Where the pages lie, and in which order a page is stored, is no part of the result.
    #[test]
    fn placement_does_not_change_a_bit(shape in shapes(), turn in 1..5usize) {
        let case = Case::new(shape);
        let answer = attention_f64(&case.problem()).expect("valid");

        let page = case.shape.page_size * case.shape.kv_heads * case.shape.head_dim;
        let pages = case.k.len() / page;
        let mut moved = case.clone();
        moved.k.rotate_right(turn % pages * page);
        moved.v.rotate_right(turn % pages * page);
        for entry in &mut moved.page_table {
            *entry = (*entry + (turn % pages) as i32) % pages as i32;
        }
        prop_assert_eq!(attention_f64(&moved.problem()).expect("valid"), answer.clone());

        let mut other = case.clone();
        other.shape.layout = match case.shape.layout {
            KvLayout::Nhd => KvLayout::Hnd,
            KvLayout::Hnd => KvLayout::Nhd,
        };
        for request in 0..REQUESTS {
            for (token, head) in (0..KV_LEN).flat_map(|t| (0..case.shape.kv_heads).map(move |h| (t, h))) {
                let (from, to) = (case.kv_range(request, token, head), other.kv_range(request, token, head));
                other.k[to.clone()].copy_from_slice(&case.k[from.clone()]);
                other.v[to].copy_from_slice(&case.v[from]);
            }
        }
        prop_assert_eq!(attention_f64(&other.problem()).expect("valid"), answer);
    }

    /// Attention over a set is the merge of attention over any parts of it.
    #[test]
    fn merging_shares_gives_the_whole(shape in shapes(), cuts in prop::collection::vec(0..=KV_LEN, 0..4)) {
        let case = Case::new(shape);
        let whole = attention_f64(&case.problem()).expect("valid");
        let mut cuts = cuts;
        cuts.extend([0, KV_LEN]);
        cuts.sort_unstable();
        let parts: Vec<_> = cuts.windows(2).enumerate().map(|(part, w)| {
            // The sinks of one part are those of the whole.
            let sinks = if part == 0 { &case.sinks[..] } else { &[] };
            let window = SpanSet::from(w[0]..w[1]);
            let sets: Vec<SpanSet> = case.spans.sets().map(|s| s.intersection(&window)).collect();
            let spans = SpanBatch::from_sets(&sets).expect("small");
            attention_f64(&Problem { spans: &spans, sinks, ..case.problem() }).expect("valid")
        }).collect();
        let dim = whole.head_dim;
        for at in 0..whole.lse.len() {
            let states: Vec<PartialState> = parts.iter().map(|p| PartialState {
                out: p.out[at * dim..(at + 1) * dim].to_vec(),
                lse: p.lse[at],
            }).collect();
            let merged = PartialState::merge_all(dim, &states);
            prop_assert!(close(merged.lse, whole.lse[at]));
            for (a, b) in merged.out.iter().zip(&whole.out[at * dim..]) {
                prop_assert!(close(*a, *b));
            }
        }
    }

    #[test]
    fn merging_with_empty_changes_no_bit(out in prop::collection::vec(any::<f64>(), 3), lse in -1e300..1e300f64) {
        let state = PartialState { out, lse };
        let empty = PartialState { out: vec![f64::NAN; 3], lse: f64::NEG_INFINITY };
        for merged in [state.merge(&empty), empty.merge(&state)] {
            prop_assert_eq!(merged.lse.to_bits(), state.lse.to_bits());
            let bits = |s: &PartialState| s.out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&merged), bits(&state));
        }
        prop_assert_eq!(empty.merge(&empty), PartialState::empty(3));
    }
}

/// One row, one KV head, head_dim 1, pages of two tokens: q = 1, scale = 1, keys ln 1 .. would not
/// be exact in 16 bits, so the keys are 0 and 1.
struct Tiny {
    q: Vec<u16>,
    k: Vec<u16>,
    v: Vec<u16>,
    spans: SpanBatch,
}

impl Tiny {
    fn new(q: &[f32], k: &[f32], v: &[f32], spans: &[(u32, u32)]) -> Self {
        let bits = |values: &[f32]| values.iter().map(|v| bits(Dtype::F16, *v)).collect();
        let set = SpanSet::from_pairs(spans.iter().copied()).expect("literal");
        let spans = SpanBatch::from_sets([&set]).expect("small");
        Self { q: bits(q), k: bits(k), v: bits(v), spans }
    }

    fn problem(&self) -> Problem<'_> {
        Problem {
            dtype: Dtype::F16,
            kv_dtype: KvDtype::Same,
            layout: KvLayout::Nhd,
            query_heads: self.q.len(),
            kv_heads: 1,
            head_dim: 1,
            page_size: 2,
            max_pages: 2,
            scale: 1.0,
            soft_cap: 0.0,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            page_table: &[1, 0],
            row_request: &[0],
            spans: &self.spans,
            sinks: &[],
            k_scales: &[],
            v_scales: &[],
        }
    }
}

proptest! {
    /// A cache of 8-bit elements is one of f16 with the numbers that they stand for, times their factors:
    /// exactly, where those are powers of two.
    #[test]
    fn elements_of_8_bits_are_numbers_times_a_factor(
        q in proptest::collection::vec(-4.0..4.0f32, 8),
        codes in proptest::collection::vec((0..0x7fu16, any::<bool>()), 32),
        powers in proptest::collection::vec(-2..3i32, 4),
    ) {
        let codes: Vec<u16> = codes.iter().map(|(code, minus)| code | u16::from(*minus) << 7).collect();
        let scales: Vec<f32> = powers.iter().map(|power| 2f32.powi(*power)).collect();
        // [tokens, kv_heads, head_dim] of 4, 2 and 2 in K and in V.
        let numbers: Vec<u16> = codes
            .iter()
            .enumerate()
            .map(|(at, code)| {
                let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
                let size = match exponent {
                    0 => mantissa * 2f32.powi(-9),
                    _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
                };
                let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
                bits(Dtype::F16, sign * size * scales[at / 16 * 2 + at / 2 % 2])
            })
            .collect();
        let q: Vec<u16> = q.iter().map(|x| bits(Dtype::F16, *x)).collect();
        let spans = SpanBatch::from_sets([&SpanSet::full(4)]).expect("small");
        let of_8_bits = Problem {
            dtype: Dtype::F16,
            kv_dtype: KvDtype::E4m3,
            layout: KvLayout::Nhd,
            query_heads: 4,
            kv_heads: 2,
            head_dim: 2,
            page_size: 4,
            max_pages: 1,
            scale: 0.5,
            soft_cap: 0.0,
            q: &q,
            k: &codes[..16],
            v: &codes[16..],
            page_table: &[0],
            row_request: &[0],
            spans: &spans,
            sinks: &[],
            k_scales: &scales[..2],
            v_scales: &scales[2..],
        };
        let of_16_bits = Problem {
            kv_dtype: KvDtype::Same,
            k: &numbers[..16],
            v: &numbers[16..],
            k_scales: &[],
            v_scales: &[],
            ..of_8_bits
        };
        let [one, other] =
            [&of_8_bits, &of_16_bits].map(|problem| attention_f64(problem).expect("valid"));
        prop_assert_eq!(one.lse, other.lse);
        for (one, other) in one.out.iter().zip(&other.out) {
            prop_assert!((one - other).abs() <= 1e-12 * other.abs(), "{one} {other}");
        }
    }
}

#[test]
fn two_tokens_by_hand() {
    // Page table [1, 0]: logical tokens 0, 1, 2, 3 lie at 2, 3, 0, 1. Tokens 1 and 2 have keys
    // 1 and 0 and values 4 and -2; the others would be NaN. Heads: q = 0 weighs both alike,
    // q = 1 weighs them e : 1.
    let nan = f32::NAN;
    let tiny = Tiny::new(&[0.0, 1.0], &[0.0, nan, nan, 1.0], &[-2.0, nan, nan, 4.0], &[(1, 3)]);
    let answer = attention_f64(&tiny.problem()).expect("valid");
    let e = std::f64::consts::E;
    assert_eq!(answer.out[0], 1.0);
    assert!(close(answer.out[1], (4.0 * e - 2.0) / (e + 1.0)));
    assert_eq!(answer.lse[0], 2f64.ln());
    assert!(close(answer.lse[1], (e + 1.0).ln()));
    assert_eq!(answer.magnitude[0], 3.0);
    assert_eq!(answer.tokens, [2]);
}

#[test]
fn empty_rows_and_rows_of_minus_infinity_are_zero_and_minus_infinity() {
    let inf = f32::INFINITY;
    let k = [-inf, -inf, -inf, -inf];
    for (case, spans) in [("empty", &[][..]), ("all logits -inf", &[(0, 4)][..])] {
        let tiny = Tiny::new(&[1.0], &k, &[1.0, inf, f32::NAN, 2.0], spans);
        let answer = attention_f64(&tiny.problem()).expect("valid");
        assert_eq!(answer.out[0].to_bits(), 0, "{case}");
        assert_eq!(answer.lse, [f64::NEG_INFINITY], "{case}");
        let rounded = attention_rounded(&tiny.problem(), 3, true).expect("valid");
        assert_eq!((rounded.out, rounded.lse), (vec![0], vec![f32::NEG_INFINITY]), "{case}");
    }
}

#[test]
fn special_values_of_selected_tokens_propagate() {
    let inf = f32::INFINITY;
    // (key of token 0, value of token 0, output, LSE); token 1 has key 0 and value 1.
    let rows = [
        (f32::NAN, 1.0, f64::NAN, f64::NAN),
        (inf, 1.0, f64::NAN, f64::NAN),
        (-inf, 5.0, 1.0, 0.0),
        (0.0, inf, f64::INFINITY, 2f64.ln()),
        (0.0, -inf, f64::NEG_INFINITY, 2f64.ln()),
        (0.0, f32::NAN, f64::NAN, 2f64.ln()),
    ];
    for (key, val, out, lse) in rows {
        let tiny = Tiny::new(&[1.0], &[0.0, 0.0, key, 0.0], &[0.0, 0.0, val, 1.0], &[(0, 2)]);
        let answer = attention_f64(&tiny.problem()).expect("valid");
        let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan());
        assert!(same(answer.out[0], out) && same(answer.lse[0], lse), "{key} {val}: {answer:?}");
        let rounded = attention_rounded(&tiny.problem(), 1, false).expect("valid");
        let tolerance = Tolerance::of(Dtype::F16);
        let result = compare(&rounded.out, &rounded.lse, &answer, Dtype::F16, &tolerance);
        assert!(result.as_ref().is_ok_and(|r| r.passed), "{key} {val}: {result:?}");
    }
}

/// A NaN is no -inf: a row whose only logit is NaN is not taken for an empty one.
#[test]
fn a_lone_nan_is_not_an_empty_row() {
    let tiny = Tiny::new(&[1.0], &[0.0, 0.0, f32::NAN, 0.0], &[1.0; 4], &[(0, 1)]);
    let answer = attention_f64(&tiny.problem()).expect("valid");
    assert!(answer.out[0].is_nan() && answer.lse[0].is_nan());
    let empty = PartialState::empty(1);
    let nan = PartialState { out: answer.out, lse: answer.lse[0] };
    let one = PartialState { out: vec![1.0], lse: 0.0 };
    for merged in [nan.merge(&one), one.merge(&nan), nan.merge(&empty), empty.merge(&nan)] {
        assert!(merged.out[0].is_nan() && merged.lse.is_nan());
    }
}

#[test]
fn malformed_problems_are_refused_with_the_fault() {
    let tiny = Tiny::new(&[1.0], &[0.0; 4], &[0.0; 4], &[(1, 4)]);
    let good = tiny.problem();
    assert!(attention_f64(&good).is_ok());
    let refusal = |p: Problem| match attention_f64(&p) {
        Err(error) => error.to_string(),
        Ok(_) => "accepted".to_owned(),
    };
    assert_eq!(refusal(Problem { page_size: 0, ..good }), "page_size is 0: it must be at least 1");
    assert_eq!(
        refusal(Problem { kv_heads: 2, ..good }),
        "1 query heads do not divide among 2 KV heads"
    );
    assert_eq!(
        refusal(Problem { q: &[0, 0], ..good }),
        "q has 2 elements: expected 1 for [rows, query_heads, head_dim]"
    );
    assert_eq!(
        refusal(Problem { v: &[0], ..good }),
        "v has 1 elements: expected 4 for the shape of k"
    );
    assert!(refusal(Problem { page_size: 3, ..good }).contains("expected a multiple of 3"));
    assert!(refusal(Problem { page_size: usize::MAX, head_dim: 1, ..good }).contains("a multiple"));
    assert_eq!(
        refusal(Problem { row_request: &[1], ..good }),
        "row 0 belongs to request 1, but the page table has 1 requests"
    );
    assert_eq!(
        refusal(Problem { max_pages: 1, ..good }),
        "row 0 selects token 2, behind the 2 tokens that its request's row of the page table covers"
    );
    let no_page =
        |page| ProblemError::NoSuchPage { row: 0, token: 2, request: 0, entry: 1, page, pages: 2 };
    assert_eq!(attention_f64(&Problem { page_table: &[1, 2], ..good }), Err(no_page(2)));
    assert_eq!(attention_f64(&Problem { page_table: &[1, -1], ..good }), Err(no_page(-1)));
    // A page that no selected token needs may be anything.
    let first = Tiny::new(&[1.0], &[0.0; 4], &[0.0; 4], &[(0, 2)]);
    assert!(attention_f64(&Problem { page_table: &[1, -7], ..first.problem() }).is_ok());
}

#[test]
fn unselected_tokens_are_nan_in_these_cases() {
    // What the properties above rely on.
    let set = SpanSet::from(3..5);
    let shape = case::Shape {
        dtype: Dtype::Bf16,
        layout: KvLayout::Hnd,
        kv_heads: 1,
        group: 1,
        head_dim: 4,
        page_size: 7,
        rows: vec![(set, 1)],
        value_amplitude: 2.0,
        soft_cap: 0.0,
        sinks: false,
        own_spans: false,
        seed: 1,
    };
    let case = Case::new(shape);
    assert_eq!(case.k.iter().filter(|b| **b != NAN_BITS).count(), 2 * 4);
    assert_eq!(case.k.len(), case.v.len());
}
