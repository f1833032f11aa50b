//! Declarative Attention: the published example, the tags one by one, and texts cut anywhere.

use proptest::prelude::*;
use spanforge_spans::protocol::{
    DeclarativeAttention, Fallback, Fault, LayoutError, Mode, PromptLayout, TagProtocol,
};
use spanforge_spans::{Span, SpanSet};

/// Figure 1 of arXiv 2609.02737: 25,466 prompt tokens, system instruction 178, twelve segments with
/// B1 = 2,311 and B12 = 2,086, question 45, instruction 1,068. The parts that are always attended
/// come to 16 + 45 + 1,068 = 1,129 where the figure counts 1,124; the published totals agree among
/// each other (3,435 = 1,124 + 2,311), so the window from the question to the end is laid out with
/// 1,124 - 16 = 1,108 tokens. The ten segments between and the templates share the rest: nine of
/// 1,948, one of 1,951, and twelve gaps of 25.
fn figure_1() -> PromptLayout {
    let mut lengths = vec![2311];
    lengths.extend([1948; 9]);
    lengths.extend([1951, 2086]);
    let mut at = 178;
    let segments = lengths.into_iter().map(|length| {
        at += 25;
        let segment = Span::from(at..at + length);
        at += length;
        segment
    });
    PromptLayout::new(segments.collect(), 25_466 - 1108, 25_466).expect("the figure's layout")
}

/// Six segments of 10 tokens between 20 and 100, question from 100, prompt of 120.
fn small() -> PromptLayout {
    let segments = (0..6).map(|i| Span::from(20 + 12 * i..30 + 12 * i)).collect();
    PromptLayout::new(segments, 100, 120).expect("literal")
}

fn run(layout: PromptLayout, fallback: Fallback, text: &str) -> DeclarativeAttention {
    let mut state = DeclarativeAttention::new(layout, fallback);
    state.push_token(text);
    state
}

fn faults(state: &DeclarativeAttention) -> Vec<(Fault, u64)> {
    state.faults().iter().collect()
}

#[test]
fn figure_1_of_the_paper() {
    let layout = figure_1();
    assert_eq!(layout.segments()[11].len(), 2086);
    assert_eq!(layout.segments()[11].end(), 25_466 - 1108);
    let attended = |mode| layout.attended(&mode).len_tokens();
    assert_eq!(attended(Mode::Global), 25_466);
    assert_eq!(attended(Mode::Focus(vec![1])), 3435);
    assert_eq!(attended(Mode::Local), 1124);

    // The same through the protocol: each step adds the tokens of the response so far.
    let mut state = DeclarativeAttention::new(layout, Fallback::Dense);
    let steps = [
        ("Let me see. ", false, 25_466),
        ("<focus magic_chunks=\"1\"", false, 25_466),
        (">", true, 3435),
        ("evidence", false, 3435),
        ("</focus>", true, 25_466),
        ("<local>", true, 1124),
        ("so", false, 1124),
        ("</local>", true, 25_466),
    ];
    for (response, (text, changed, prompt)) in (1..).zip(steps) {
        assert_eq!(state.push_token(text), changed, "{text}");
        assert_eq!(state.spans().len_tokens(), prompt + response, "{text}");
        assert_eq!(u64::from(state.kv_len()), 25_466 + response);
    }
    state.finish();
    assert_eq!(state.faults().total(), 0);
}

#[test]
fn spans_by_hand() {
    let spans = |text| run(small(), Fallback::Dense, text).spans();
    let set = |pairs: &[(u32, u32)]| SpanSet::from_pairs(pairs.iter().copied()).expect("literal");
    assert_eq!(spans("no tag"), set(&[(0, 121)]));
    assert_eq!(spans("<local>"), set(&[(0, 16), (100, 121)]));
    assert_eq!(spans("<focus magic_chunks=\"2\">"), set(&[(0, 16), (32, 42), (100, 121)]));
    let three = "<focus magic_chunks = '6, 1,2'>";
    assert_eq!(spans(three), set(&[(0, 16), (20, 30), (32, 42), (80, 90), (100, 121)]));
}

#[test]
fn tags_that_change_nothing() {
    for text in
        ["<global>", "</global>", "<answer>4</answer>", "a < b > c", "<focused>", "<<>>", "<local"]
    {
        let state = run(small(), Fallback::Empty, text);
        assert_eq!((state.mode(), state.faults().total()), (&Mode::Global, 0), "{text}");
    }
    // Neither does the global tag inside another mode.
    assert_eq!(run(small(), Fallback::Dense, "<local><global>").mode(), &Mode::Local);
}

#[test]
fn malformed_tags_are_counted_and_resolved() {
    use Fault::*;
    for (text, fault, dense) in [
        ("<focus>", BadAttribute, Mode::Global),
        ("<focus magic_chunks=1>", BadAttribute, Mode::Global),
        ("<focus magic_chunks=\"\">", BadAttribute, Mode::Global),
        ("<focus magic_chunks=\"1,\">", BadAttribute, Mode::Global),
        ("<focus magic_chunks=\"+1\">", BadAttribute, Mode::Global),
        ("<focus magic_chunks=\">", BadAttribute, Mode::Global),
        ("<focus magic_chunks=\"1,2,3,4\">", BadAttribute, Mode::Global),
        ("<local/>", BadAttribute, Mode::Global),
        ("<focus magic_chunks=\"0\">", UnknownReference, Mode::Global),
        ("<focus magic_chunks=\"1,7\">", UnknownReference, Mode::Global),
        ("<focus magic_chunks=\"99999999999999999999\">", UnknownReference, Mode::Global),
        ("</focus>", UnmatchedClose, Mode::Global),
        ("<local></focus>", UnmatchedClose, Mode::Local),
        ("<focus magic_chunks=\"1\"><local>", Nested, Mode::Local),
        ("<focus magic<local>", Unfinished, Mode::Local),
    ] {
        let state = run(small(), Fallback::Dense, text);
        assert_eq!((faults(&state), state.mode()), (vec![(fault, 1)], &dense), "{text}");
        // Where the fault lies in an opening tag, the other fallback selects no segment.
        if matches!(fault, BadAttribute | UnknownReference) {
            assert_eq!(run(small(), Fallback::Empty, text).mode(), &Mode::Local, "{text}");
        }
    }
    let long = format!("<local>x<focus {}", "a".repeat(200));
    let state = run(small(), Fallback::Dense, &long);
    assert_eq!((faults(&state), state.mode()), (vec![(TooLong, 1)], &Mode::Local));
    // The closing tag of a malformed one is expected, not a second fault.
    let state = run(small(), Fallback::Empty, "<focus magic_chunks=\"9\">x</focus>");
    assert_eq!((faults(&state), state.mode()), (vec![(UnknownReference, 1)], &Mode::Global));
    let mut state = run(small(), Fallback::Dense, "<local><focus ");
    state.finish();
    assert_eq!(faults(&state), [(Unfinished, 2)]);
}

#[test]
fn layouts_are_checked() {
    let refused = |segments: Vec<Span>, question, tokens| {
        PromptLayout::new(segments, question, tokens).map_err(|e| e.to_string())
    };
    assert_eq!(
        PromptLayout::new(vec![], 9, 8),
        Err(LayoutError::Question { question_start: 9, prompt_tokens: 8 })
    );
    for segments in [
        vec![Span::from(2..4), Span::from(3..5)],
        vec![Span::from(0..1), Span::from(4..4)],
        vec![Span::from(0..1), Span::from(7..9)],
    ] {
        let message = refused(segments, 8, 10);
        assert!(message.is_err_and(|m| m.starts_with("segment 2 is [")));
    }
    // A prompt shorter than the sink.
    let tiny = PromptLayout::new(vec![], 3, 5).expect("valid");
    assert_eq!(tiny.attended(&Mode::Local), SpanSet::full(5));
}

/// Texts made of tags, pieces of tags and things that look like them.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "<focus magic_chunks=\"1\">",
        "<focus magic_chunks=\"2,3\">",
        "<focus magic_chunks=\"8\">",
        "<focus magic",
        "</focus>",
        "<local>",
        "</local>",
        "<local >",
        "<global>",
        "</global>",
        "<",
        ">",
        "/",
        "\"",
        "focus",
        "local>",
        " und so weiter ",
        "ö→",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn cutting_the_text_changes_nothing(text in texts(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let whole = run(small(), Fallback::Dense, &text);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        ends.retain(|end| text.is_char_boundary(*end));
        ends.extend([0, text.len()]);
        ends.sort_unstable();
        let mut state = DeclarativeAttention::new(small(), Fallback::Dense);
        for piece in ends.windows(2) {
            let before = state.mode().clone();
            let changed = state.push_token(&text[piece[0]..piece[1]]);
            prop_assert!(changed || *state.mode() == before);
        }
        prop_assert_eq!(state.transitions(), whole.transitions());
        prop_assert_eq!(state.faults(), whole.faults());
        prop_assert_eq!(state.mode(), whole.mode());
        // Every transition lies on a '>'.
        for transition in state.transitions() {
            prop_assert_eq!(text.chars().nth(transition.characters as usize - 1), Some('>'));
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC*", fallback in prop::sample::select(vec![Fallback::Dense, Fallback::Empty])) {
        let mut state = run(small(), fallback, &text);
        state.finish();
        prop_assert!(state.spans().end() == 121);
    }
}
