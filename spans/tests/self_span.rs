//! Self-selected spans: the worked example, a second definition of the mask, and texts cut anywhere.

use proptest::prelude::*;
use spanforge_spans::protocol::{
    Fallback, Fault, NameError, SelfSpanAttention, SelfSpanPrompt, TagProtocol,
};
use spanforge_spans::{Span, SpanSet};

fn set(pairs: &[(u32, u32)]) -> SpanSet {
    SpanSet::from_pairs(pairs.iter().copied()).expect("literal")
}

fn start(prompt: u32, fallback: Fallback) -> SelfSpanAttention {
    SelfSpanAttention::new(SelfSpanPrompt::new(prompt), fallback)
}

fn faults(text: &str, fallback: Fallback) -> (Vec<(Fault, u64)>, SpanSet) {
    let mut state = start(5, fallback);
    for c in text.chars() {
        state.push_token(&c.to_string());
    }
    (state.faults().iter().collect(), state.spans())
}

/// The spans after every character, one token each, behind a prompt of `prompt` tokens.
fn by_character(prompt: u32, text: &str, fallback: Fallback) -> Vec<SpanSet> {
    let mut state = start(prompt, fallback);
    let pushed = text.chars().map(|c| {
        state.push_token(&c.to_string());
        state.spans()
    });
    pushed.collect()
}

#[test]
fn the_worked_example() {
    let prompt = "^(((8-2)+(1*9))+4);";
    let response = "a<8-2>8-2=6;b<1*9>1*9=9;c<a+b>6+9=15;d<c+4>15+4=19;$";
    assert_eq!((prompt.len(), response.len()), (19, 52));
    let spans = by_character(19, response, Fallback::Dense);
    // Lines: prompt [0, 19), a [19, 31), b [31, 43), c [43, 56), d [56, 70), $ 70.
    let at = |token: usize| (&response[token - 19..token - 18], &spans[token - 19]);
    for (token, text, expected) in [
        (19, "a", set(&[(0, 20)])),
        (23, "2", set(&[(0, 24)])),
        (24, ">", set(&[(0, 1), (19, 25)])),
        (29, "6", set(&[(0, 1), (19, 30)])),
        (30, ";", set(&[(0, 31)])),
        (31, "b", set(&[(0, 19), (31, 32)])),
        (42, ";", set(&[(0, 19), (31, 43)])),
        (47, "b", set(&[(0, 19), (43, 48)])),
        (48, ">", set(&[(0, 1), (19, 49)])),
        (54, "5", set(&[(0, 1), (19, 55)])),
        (61, ">", set(&[(0, 1), (43, 62)])),
        (69, ";", set(&[(0, 19), (56, 70)])),
        (70, "$", set(&[(0, 19), (70, 71)])),
    ] {
        assert_eq!(at(token), (text, &expected), "token {token}");
    }
}

#[test]
fn tokens_of_several_characters_and_named_prompt_spans() {
    // An article of two sentences in a prompt of 30 tokens; one summary line in whole words.
    let names = vec![("s1".to_owned(), Span::from(4..12)), ("s2".to_owned(), Span::from(12..28))];
    let prompt = SelfSpanPrompt::with_names(30, names).expect("valid");
    let mut state = SelfSpanAttention::new(prompt, Fallback::Dense);
    for (text, changed, expected) in [
        (" first", false, set(&[(0, 31)])),
        (" <", false, set(&[(0, 32)])),
        (" s2 >", true, set(&[(0, 1), (12, 28), (30, 33)])),
        (" Rain", false, set(&[(0, 1), (12, 28), (30, 34)])),
        (".;\n", true, set(&[(0, 35)])),
        // The line break behind `;` makes that token part of this line too.
        ("then<first s1>", true, set(&[(0, 1), (4, 12), (30, 36)])),
        // Ends one line and opens the next: part of both.
        ("sun;last<", true, set(&[(0, 30), (34, 37)])),
        ("then", true, set(&[(0, 30), (36, 38)])),
        (">", true, set(&[(0, 1), (34, 39)])),
    ] {
        assert_eq!((state.push_token(text), state.spans()), (changed, expected), "{text}");
    }
    assert_eq!((state.steps(), state.faults().total(), state.kv_len()), (2, 0, 39));
}

#[test]
fn malformed_steps_are_counted_and_resolved() {
    use Fault::*;
    // Prompt of 5 tokens. The spans are those behind the last character of each text.
    for (text, fault, dense, empty) in [
        ("a<b>", UnknownReference, vec![(0, 9)], vec![(0, 1), (5, 9)]),
        ("a<a>", UnknownReference, vec![(0, 9)], vec![(0, 1), (5, 9)]),
        ("a<1>;b<a+c>", UnknownReference, vec![(0, 16)], vec![(0, 1), (5, 16)]),
        ("a<1<2", Nested, vec![(0, 10)], vec![(0, 1), (5, 10)]),
        ("a>1", UnmatchedClose, vec![(0, 8)], vec![(0, 1), (5, 8)]),
        ("<1>", MissingName, vec![(0, 1), (5, 8)], vec![(0, 1), (5, 8)]),
        ("1<1>", MissingName, vec![(0, 1), (5, 9)], vec![(0, 1), (5, 9)]),
        ("a;", MissingDeclaration, vec![(0, 7)], vec![(0, 7)]),
        ("a<1;b", Unfinished, vec![(0, 5), (9, 10)], vec![(0, 5), (9, 10)]),
        ("a<1>;a<1>;b<a>", RedefinedName, vec![(0, 1), (10, 19)], vec![(0, 1), (10, 19)]),
    ] {
        let one = vec![(fault, 1)];
        assert_eq!(faults(text, Fallback::Dense), (one.clone(), set(&dense)), "{text}");
        assert_eq!(faults(text, Fallback::Empty), (one, set(&empty)), "{text}");
    }
    let long = format!("a<{}>", "1".repeat(300));
    assert_eq!(faults(&long, Fallback::Dense), (vec![(TooLong, 1)], set(&[(0, 308)])));
    // The fallback ends with the step.
    assert_eq!(faults("a<x>;b", Fallback::Dense).1, set(&[(0, 5), (10, 11)]));
}

#[test]
fn names_of_the_prompt_are_checked() {
    let refused = |names: &[(&str, std::ops::Range<u32>)]| {
        let named = |(name, span): &(&str, std::ops::Range<u32>)| {
            ((*name).to_owned(), Span::from(span.clone()))
        };
        SelfSpanPrompt::with_names(8, names.iter().map(named).collect()).err()
    };
    assert_eq!(refused(&[("a", 0..8), ("b_2", 3..3)]), None);
    assert_eq!(refused(&[("2b", 0..1)]), Some(NameError::Malformed("2b".to_owned())));
    assert_eq!(refused(&[("", 0..1)]), Some(NameError::Malformed(String::new())));
    assert_eq!(refused(&[("a", 0..1), ("a", 1..2)]), Some(NameError::Duplicate("a".to_owned())));
    assert!(refused(&[("a", 0..9)]).is_some_and(|e| e.to_string().contains("the prompt's 8")));
}

/// Well-formed traces: each step refers to up to two earlier steps or digits.
fn traces() -> impl Strategy<Value = String> {
    prop::collection::vec((any::<(u8, u8)>(), 0..100u32), 0..8).prop_map(|steps| {
        let name = |step: usize| char::from(b'a' + step as u8);
        let mut text = String::new();
        for (step, ((a, b), value)) in steps.into_iter().enumerate() {
            let reference = |pick: u8| match usize::from(pick) % (step + 2) {
                earlier if earlier < step => name(earlier).to_string(),
                _ => (pick % 10).to_string(),
            };
            let (a, b) = (reference(a), reference(b));
            text += &format!("{}<{a}+{b}>1+2={value};", name(step));
        }
        text + "$"
    })
}

/// The mask by its definition, a bit set of lines per character: token j is attended by i if it is
/// the first token, on the same line, or on a line in the scope of i.
fn masks(prompt: usize, text: &str) -> Vec<SpanSet> {
    let mut line_of = vec![0; prompt];
    let mut scope_of = vec![1u32; prompt];
    for (step, line) in text.split_inclusive(';').enumerate() {
        let close = line.find('>').unwrap_or(line.len());
        let declared = line[..close].split_once('<').map_or("", |(_, inside)| inside);
        let letters = declared.bytes().filter(u8::is_ascii_lowercase);
        let lines = letters.fold(0, |lines, id| lines | 1u32 << (id - b'a' + 1));
        for (at, c) in line.char_indices() {
            line_of.push(step + 1);
            scope_of.push(if at < close || c == ';' { 1 } else { lines });
        }
    }
    (prompt..line_of.len())
        .map(|i| {
            let attended = (0..=i).filter(|&j| {
                j == 0 || line_of[j] == line_of[i] || scope_of[i] >> line_of[j] & 1 == 1
            });
            attended.map(|j| Span::from(j as u32..j as u32 + 1)).collect()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_machine_agrees_with_the_definition(text in traces(), prompt in 1..30u32) {
        prop_assert_eq!(by_character(prompt, &text, Fallback::Dense), masks(prompt as usize, &text));
    }

    /// However the text is cut into tokens, the same is declared: expanded to characters, a token
    /// attends to what its last character attends to, and to more only where tokens cross the end
    /// of a line.
    #[test]
    fn cutting_the_text_declares_the_same(
        text in prop_oneof![traces(), "[a-c1<>;$ +]{0,40}"],
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        at_line_ends in any::<bool>(),
        fallback in prop::sample::select(vec![Fallback::Dense, Fallback::Empty]),
    ) {
        let prompt = 5;
        let characters = by_character(prompt, &text, fallback);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        ends.extend([0, text.len()]);
        if at_line_ends {
            ends.extend(text.char_indices().filter(|(_, c)| *c == ';').map(|(at, _)| at + 1));
        }
        ends.sort_unstable();
        ends.dedup();
        let mut state = start(prompt, fallback);
        let mut plain = start(prompt, fallback);
        for piece in ends.windows(2) {
            let before = state.spans();
            let changed = state.push_token(&text[piece[0]..piece[1]]);
            let mut grown = before;
            prop_assert_eq!(grown.append_token(state.kv_len() - 1), Ok(()));
            prop_assert_eq!(changed, state.spans() != grown, "{:?}", state.spans());
            let tokens = state.spans();
            let expanded: SpanSet = tokens.tokens().map(|t| match t.checked_sub(prompt) {
                None => Span::from(t..t + 1),
                Some(t) => {
                    let (from, to) = (ends[t as usize] as u32, ends[t as usize + 1] as u32);
                    Span::from(prompt + from..prompt + to)
                }
            }).collect();
            let exact = &characters[piece[1] - 1];
            prop_assert!(exact.difference(&expanded).is_empty());
            if at_line_ends {
                prop_assert_eq!(&expanded, exact);
            }
        }
        for c in text.chars() {
            plain.push_token(&c.to_string());
        }
        state.finish();
        plain.finish();
        prop_assert_eq!(state.faults(), plain.faults());
        prop_assert_eq!((state.steps(), state.is_finished()), (plain.steps(), plain.is_finished()));
    }
}
