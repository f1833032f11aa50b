//! Every operation on span sets against a bitmap that cannot be wrong, and every malformed batch
//! against the message that a user gets.

use proptest::prelude::*;
use spanforge_spans::{BatchError, Span, SpanBatch, SpanError, SpanSet};

/// Positions of the bitmap model: small, so that spans meet, touch and repeat all the time.
const UNIVERSE: u32 = 24;

fn set(pairs: &[(u32, u32)]) -> SpanSet {
    SpanSet::from_pairs(pairs.iter().copied()).expect("literal spans are well formed")
}

fn pairs(set: &SpanSet) -> Vec<(u32, u32)> {
    set.iter().map(|s| (s.start(), s.end())).collect()
}

/// A raw list of spans, empty and repeated ones included.
fn raw_spans() -> impl Strategy<Value = Vec<Span>> {
    prop::collection::vec((0..=UNIVERSE, 0..=UNIVERSE), 0..8)
        .prop_map(|pairs| pairs.into_iter().map(|(a, b)| Span::from(a.min(b)..a.max(b))).collect())
}

/// The model: bit t is set if some span holds token t.
fn bitmap(spans: &[Span]) -> u32 {
    (0..UNIVERSE).filter(|&t| spans.iter().any(|s| s.contains(t))).fold(0, |map, t| map | 1 << t)
}

/// The canonical spans of a bitmap: its maximal runs of ones.
fn runs(map: u32) -> Vec<(u32, u32)> {
    let bit = |t: u32| t < UNIVERSE && map >> t & 1 == 1;
    let starts = (0..UNIVERSE).filter(|&t| bit(t) && (t == 0 || !bit(t - 1)));
    starts.map(|s| (s, (s..).find(|&t| !bit(t)).unwrap_or(UNIVERSE))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn sets_agree_with_the_bitmap(a in raw_spans(), b in raw_spans(), token in 0..UNIVERSE) {
        let (sa, sb) = (SpanSet::from_raw(a.clone()), SpanSet::from_raw(b.clone()));
        let (ma, mb) = (bitmap(&a), bitmap(&b));
        prop_assert_eq!(pairs(&sa), runs(ma));
        prop_assert_eq!(pairs(&sa.union(&sb)), runs(ma | mb));
        prop_assert_eq!(pairs(&sa.intersection(&sb)), runs(ma & mb));
        prop_assert_eq!(pairs(&sa.difference(&sb)), runs(ma & !mb));
        prop_assert_eq!(sa.contains(token), ma >> token & 1 == 1);
        prop_assert_eq!(sa.len_tokens(), u64::from(ma.count_ones()));
        prop_assert_eq!(sa.tokens().collect::<Vec<_>>().len() as u64, sa.len_tokens());
        prop_assert_eq!(sa.end(), 32 - ma.leading_zeros());
        prop_assert_eq!(sa.is_empty(), ma == 0);
        let mut grown = sa.clone();
        prop_assert_eq!(grown.append_token(token), Ok(()));
        prop_assert_eq!(pairs(&grown), runs(ma | 1 << token));
    }

    #[test]
    fn shift_moves_every_token_and_back(a in raw_spans(), by in -30i64..30) {
        let set = SpanSet::from_raw(a);
        let first = set.spans().first().map_or(i64::MAX, |s| i64::from(s.start()));
        match set.shift(by) {
            Ok(moved) => {
                prop_assert!(set.is_empty() || first + by >= 0);
                let expected: Vec<i64> = set.tokens().map(|t| i64::from(t) + by).collect();
                prop_assert_eq!(moved.tokens().map(i64::from).collect::<Vec<_>>(), expected);
                prop_assert_eq!(moved.shift(-by), Ok(set));
            }
            Err(_) => prop_assert!(first + by < 0),
        }
    }

    #[test]
    fn json_round_trips(a in raw_spans()) {
        let set = SpanSet::from_raw(a);
        let text = serde_json::to_string(&set).unwrap_or_default();
        prop_assert_eq!(serde_json::from_str::<SpanSet>(&text).ok(), Some(set));
    }

    #[test]
    fn a_raw_batch_means_its_sets(rows in prop::collection::vec(raw_spans(), 0..6)) {
        let mut span_ptr = vec![0];
        let mut spans = Vec::new();
        for row in &rows {
            spans.extend(row.iter().map(|s| [s.start() as i32, s.end() as i32]));
            span_ptr.push(spans.len() as i32);
        }
        let sets: Vec<SpanSet> = rows.iter().cloned().map(SpanSet::from_raw).collect();
        let raw = SpanBatch::from_raw(span_ptr, spans).expect("well formed");
        let built = SpanBatch::from_sets(&sets).expect("small");
        prop_assert_eq!(&raw.canonicalise(), &built);
        prop_assert!(built.is_canonical());
        prop_assert_eq!(raw.is_canonical(), raw == built);
        prop_assert_eq!(raw.sets().collect::<Vec<_>>(), sets.clone());
        let counts: Vec<u64> = sets.iter().map(SpanSet::len_tokens).collect();
        prop_assert_eq!(raw.total_selected_tokens(), counts.iter().sum::<u64>());
        prop_assert_eq!(built.max_selected_tokens(), counts.iter().copied().max().unwrap_or(0));
    }

    /// A batch is valid for exactly the KV lengths that reach its furthest span.
    #[test]
    fn kv_length_is_the_limit(a in raw_spans(), kv_len in 0..=UNIVERSE as i32) {
        let reach = a.iter().map(|s| s.end()).max().unwrap_or(0) as i32;
        let spans: Vec<[i32; 2]> = a.iter().map(|s| [s.start() as i32, s.end() as i32]).collect();
        let batch = SpanBatch::from_raw(vec![0, spans.len() as i32], spans).expect("well formed");
        prop_assert_eq!(batch.validate_against(&[0], &[kv_len]).is_ok(), reach <= kv_len);
    }
}

#[test]
fn canonical_form_by_hand() {
    // Unsorted, overlapping, touching, nested, repeated and empty at once.
    let s = set(&[(8, 10), (0, 3), (2, 5), (5, 6), (9, 9), (8, 10), (8, 9), (20, 20)]);
    assert_eq!(pairs(&s), [(0, 6), (8, 10)]);
    assert_eq!(s.len_tokens(), 8);
    assert_eq!(format!("{s:?}"), "{[0, 6), [8, 10)}");
}

#[test]
fn decoding_appends_at_the_end() {
    let mut s = set(&[(0, 2), (6, 7)]);
    s.append_token(7).expect("in range");
    s.append_token(9).expect("in range");
    s.append_token(2).expect("in range");
    assert_eq!(pairs(&s), [(0, 3), (6, 8), (9, 10)]);
    assert_eq!(s.append_token(u32::MAX), Err(SpanError::LastPosition(u32::MAX)));
}

#[test]
fn edges_of_the_positions() {
    let last = set(&[(u32::MAX - 1, u32::MAX)]);
    assert!(last.shift(1).is_err());
    assert!(last.shift(i64::MAX).is_err());
    assert!(last.shift(i64::MIN).is_err());
    assert_eq!(SpanSet::empty().shift(i64::MAX), Ok(SpanSet::empty()));
    assert_eq!(SpanSet::full(u32::MAX).len_tokens(), u64::from(u32::MAX));
}

#[test]
fn a_reversed_span_is_refused_wherever_it_comes_from() {
    let error = SpanError::Reversed { start: 5, end: 3 };
    assert_eq!(SpanSet::from_pairs([(5, 3)]), Err(error));
    let message = serde_json::from_str::<SpanSet>("[[5, 3]]").map_err(|e| e.to_string());
    assert!(message.is_err_and(|m| m.contains("[5, 3) is reversed")));
}

fn refusal(span_ptr: &[i32], spans: &[[i32; 2]]) -> String {
    match SpanBatch::from_raw(span_ptr.to_vec(), spans.to_vec()) {
        Err(error) => error.to_string(),
        Ok(batch) => panic!("accepted {batch:?}"),
    }
}

#[test]
fn malformed_arrays_name_the_row_and_the_span() {
    assert!(refusal(&[], &[]).contains("span_ptr is empty"));
    assert!(refusal(&[1, 1], &[[0, 1]]).contains("span_ptr[0] is 1"));
    assert!(refusal(&[0, 2, 1], &[[0, 1], [0, 1]]).starts_with("row 1: span_ptr goes from 2 to 1"));
    assert!(refusal(&[0, 1], &[]).contains("ends at 1 but there are 0 spans"));
    assert!(refusal(&[0, -1], &[]).starts_with("row 0: span_ptr goes from 0 to -1"));
    assert!(refusal(&[0, 0, 2], &[[0, 1], [-3, 1]]).starts_with("row 1, span 1: [-3, 1) has"));
    assert!(refusal(&[0, 1], &[[7, 4]]).starts_with("row 0, span 0: [7, 4) is reversed"));
}

#[test]
fn requests_and_kv_lengths_are_checked() {
    let batch = SpanBatch::from_raw(vec![0, 1, 3], vec![[0, 4], [2, 3], [5, 9]]).expect("valid");
    assert_eq!(batch.validate_against(&[1, 0], &[9, 4]), Ok(()));
    let message = |rows: &[i32], lens: &[i32]| match batch.validate_against(rows, lens) {
        Err(error) => error.to_string(),
        Ok(()) => "valid".to_owned(),
    };
    assert_eq!(
        message(&[1, 0], &[8, 4]),
        "row 1, span 1: [5, 9) ends past the KV length 8 of request 0"
    );
    assert_eq!(message(&[0], &[9]), "row_request has 1 entries but span_ptr describes 2 rows");
    assert_eq!(message(&[0, 2], &[9, 9]), "row 1 belongs to request 2, but there are 2 requests");
    assert_eq!(message(&[0, -1], &[9]), "row 1 belongs to request -1, but there are 1 requests");
    assert_eq!(message(&[0, 0], &[-1]), "kv_len[0] is -1: a KV length must not be negative");
}

#[test]
fn positions_beyond_the_kernels_integers_are_refused() {
    let far = set(&[(0, 1 << 31)]);
    assert_eq!(
        SpanBatch::from_sets([&far]),
        Err(BatchError::TooLarge { row: 0, what: "the span end", value: 1 << 31 })
    );
}
