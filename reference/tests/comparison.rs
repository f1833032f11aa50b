//! The comparison rejects every planted error and says where it is.

mod case;

use case::{Case, Shape, bits, shapes, value};
use proptest::prelude::*;
use spanforge_reference::{
    Comparison, Output, Problem, RoundedOutput, Tolerance, attention_f64, attention_rounded,
    compare,
};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch, SpanSet};

fn check(answer: &RoundedOutput, oracle: &Output, dtype: Dtype) -> Comparison {
    compare(&answer.out, &answer.lse, oracle, dtype, &Tolerance::of(dtype)).expect("sizes")
}

/// Row 0 selects tokens, row 1 none.
fn answered(dtype: Dtype) -> (Output, RoundedOutput) {
    let case = Case::new(Shape {
        dtype,
        layout: KvLayout::Nhd,
        kv_heads: 2,
        group: 3,
        head_dim: 16,
        page_size: 7,
        rows: vec![(SpanSet::from(2..31), 0), (SpanSet::empty(), 1)],
        value_amplitude: 2.0,
        soft_cap: 0.0,
        sinks: false,
        own_spans: false,
        seed: 7,
    });
    let oracle = attention_f64(&case.problem()).expect("valid");
    (oracle, attention_rounded(&case.problem(), 8, false).expect("valid"))
}

/// A single head whose exact output is given.
fn exactly(out: &[f64], lse: f64) -> Output {
    Output {
        rows: 1,
        query_heads: 1,
        head_dim: out.len(),
        out: out.to_vec(),
        lse: vec![lse],
        magnitude: out.iter().map(|x| x.abs()).collect(),
        logit_error: vec![0.0],
        tokens: vec![1],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// One element wrong by twice what is allowed anywhere is found, and it is the one named.
    #[test]
    fn one_wrong_element_is_found(shape in shapes(), pick in any::<prop::sample::Index>(), up in any::<bool>()) {
        let case = Case::new(shape);
        let dtype = case.shape.dtype;
        let oracle = attention_f64(&case.problem()).expect("valid");
        let mut answer = attention_rounded(&case.problem(), 8, false).expect("valid");
        prop_assume!(!answer.out.is_empty());
        let at = pick.index(answer.out.len());
        let tolerance = Tolerance::of(dtype);
        let allowed = tolerance.out_abs.max(tolerance.out_rel * oracle.out[at].abs());
        let wrong = oracle.out[at] + if up { 3.0 * allowed } else { -3.0 * allowed };
        answer.out[at] = bits(dtype, wrong as f32);
        let result = check(&answer, &oracle, dtype);
        prop_assert!(!result.passed);
        let worst = result.worst.expect("compared");
        let dims = oracle.head_dim;
        prop_assert_eq!((worst.row * oracle.query_heads + worst.head) * dims + worst.dim, at);
        prop_assert_eq!(worst.found as f32, value(dtype, answer.out[at]));
    }
}

#[test]
fn planted_errors_are_counted_by_kind() {
    for dtype in Dtype::ALL {
        let (oracle, good) = answered(dtype);
        assert!(check(&good, &oracle, dtype).passed);
        let planted = |plant: &dyn Fn(&mut RoundedOutput)| {
            let mut answer = good.clone();
            plant(&mut answer);
            let result = check(&answer, &oracle, dtype);
            assert!(!result.passed);
            assert!(result.to_string().starts_with("FAILED"), "{result}");
            result
        };
        let nan = planted(&|a| a.out[3] = 0x7fff);
        assert_eq!((nan.mismatched_special_values, nan.failed_elements), (1, 0));
        let infinite = planted(&|a| a.lse[5] = f32::INFINITY);
        assert_eq!((infinite.mismatched_special_values, infinite.failed_lse), (1, 0));
        // Row 1 is empty: a zero with a sign is not +0, and its LSE is -inf, not the least float.
        let negative_zero = planted(&|a| a.out[6 * 16] = 0x8000);
        assert_eq!(negative_zero.nonzero_in_empty_rows, 1);
        assert!(negative_zero.to_string().contains("row 1, head 0, dim 0"), "{negative_zero}");
        assert_eq!(planted(&|a| a.lse[6] = f32::MIN).mismatched_special_values, 1);
        assert_eq!(planted(&|a| a.lse[2] += 1e-3).failed_lse, 1);
        // A base-2 LSE, and a head that took its neighbour's output.
        assert!(planted(&|a| a.lse[0] /= std::f32::consts::LN_2).failed_lse == 1);
        let swapped = planted(&|a| a.out[..6 * 16].rotate_left(16));
        assert_eq!(swapped.failed_cosines, 6);
    }
}

/// Errors below the absolute tolerance in a head of tiny values are seen by the cosine distance.
#[test]
fn small_heads_are_not_hidden_by_the_absolute_tolerance() {
    let oracle = exactly(&[1e-5, -2e-5, 3e-5, 1e-5], 0.0);
    let f16 = |values: [f32; 4]| values.map(|v| bits(Dtype::F16, v)).to_vec();
    let good = RoundedOutput { out: f16([1e-5, -2e-5, 3e-5, 1e-5]), lse: vec![0.0] };
    assert!(check(&good, &oracle, Dtype::F16).passed);
    let bad = RoundedOutput { out: f16([1e-5, -2e-5, 2.9e-5, 1e-5]), lse: vec![0.0] };
    let result = check(&bad, &oracle, Dtype::F16);
    assert_eq!((result.failed_elements, result.failed_cosines), (0, 1));
}

#[test]
fn values_at_the_end_of_the_range_may_round_either_way_and_no_further() {
    let answer = |bits: u16| RoundedOutput { out: vec![bits], lse: vec![1.0] };
    let (max, inf) = (0x7bff, 0x7c00);
    for (exact, max_passes, inf_passes) in [
        (65504.0, true, false),
        (65520.0, true, true),
        (1e6, false, true),
        (-65520.0, false, false),
    ] {
        let oracle = exactly(&[exact], 1.0);
        assert_eq!(check(&answer(max), &oracle, Dtype::F16).passed, max_passes, "{exact}");
        assert_eq!(check(&answer(inf), &oracle, Dtype::F16).passed, inf_passes, "{exact}");
    }
}

#[test]
fn arrays_of_another_size_are_refused() {
    let oracle = exactly(&[1.0], 0.0);
    let tolerance = Tolerance::of(Dtype::F16);
    let error = |out: &[u16], lse: &[f32]| {
        compare(out, lse, &oracle, Dtype::F16, &tolerance).map_err(|e| e.to_string())
    };
    let message = "out has 2 elements: the oracle's answer has 1".to_owned();
    assert_eq!(error(&[0, 0], &[0.0]).err(), Some(message));
    assert!(error(&[0], &[]).is_err());
}

#[test]
fn tolerances_are_no_looser_than_the_field() {
    for dtype in Dtype::ALL {
        let t = Tolerance::of(dtype);
        assert!(t.out_abs <= 1e-3 && t.out_rel <= 2.01 / 128.0 && t.cosine <= 5e-6);
        assert!(t.lse_abs <= 1e-6 && t.lse_rel <= 8.01 / 65536.0);
    }
}

/// Two tokens whose logits are equal in exact arithmetic, but for one of them the sum passes
/// through 30,000.3, which f32 holds to 0.002 only. A correct kernel is then off by ten times the
/// absolute tolerance; it passes, and nothing that is off by more than f32 explains.
#[test]
fn cancelling_dot_products_are_judged_by_what_f32_can_do() {
    let f16 = |values: &[f32]| values.iter().map(|v| bits(Dtype::F16, *v)).collect::<Vec<u16>>();
    let (q, k) = (f16(&[1.0; 3]), f16(&[30_000.0, 0.3, -30_000.0, 0.0, 0.3, 0.0]));
    let v = f16(&[4.0, 4.0, 4.0, -4.0, -4.0, -4.0]);
    let spans = SpanBatch::from_sets([&SpanSet::full(2)]).expect("small");
    let problem = Problem {
        dtype: Dtype::F16,
        kv_dtype: KvDtype::Same,
        layout: KvLayout::Hnd,
        query_heads: 1,
        kv_heads: 1,
        head_dim: 3,
        page_size: 2,
        max_pages: 1,
        scale: 1.0,
        soft_cap: 0.0,
        sinks: &[],
        k_scales: &[],
        v_scales: &[],
        q: &q,
        k: &k,
        v: &v,
        page_table: &[0],
        row_request: &[0],
        spans: &spans,
    };
    let oracle = attention_f64(&problem).expect("valid");
    assert_eq!(oracle.out, [0.0; 3]);
    let mut answer = attention_rounded(&problem, 2, false).expect("valid");
    let off = value(Dtype::F16, answer.out[0]);
    assert!((1e-3..2e-3).contains(&off), "{off}");
    let result = check(&answer, &oracle, Dtype::F16);
    assert!(result.passed, "{result}");
    assert_eq!(result.within_rounding_only, 3);
    answer.out = f16(&[0.5; 3]);
    assert_eq!(check(&answer, &oracle, Dtype::F16).failed_elements, 3);
}
