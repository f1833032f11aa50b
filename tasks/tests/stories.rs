//! News from files: loading, sentences, and the sources of summary lines.

use std::io::Write;
use std::ops::Range;

use proptest::prelude::*;
use spanforge_spans::Span;
use spanforge_spans::protocol::{Fallback, SelfSpanAttention, SelfSpanPrompt, TagProtocol};
use spanforge_tasks::Sample;
use spanforge_tasks::news::{LEAST_GAIN, Stories, Story, StoryError, content_recall, sentences};

fn cut(text: &str) -> Vec<&str> {
    sentences(text).into_iter().map(|bytes| &text[bytes]).collect()
}

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(content).expect("written");
    file
}

#[test]
fn stories_are_read_line_by_line_and_faults_named() {
    let file = file(
        b"{\"article\": \"A. B.\", \"highlights\": \"B.\", \"id\": \"f00\"}\n\n{\"article\": 3}\n\
          {\"highlights\": \"C\", \"article\": \"\"}\n{\"article\": \"A\"}\n",
    );
    let path = file.path().display().to_string();
    let read: Vec<Result<Story, String>> = Stories::open(file.path())
        .expect("opens")
        .map(|story| story.map_err(|error| error.to_string()))
        .collect();
    let story = |article: &str, highlights: &str| {
        Ok(Story { article: article.to_owned(), highlights: highlights.to_owned() })
    };
    let fault = |line, column, problem| {
        Err(format!(
            "{path}, line {line}, column {column}: {problem}; each line must be a JSON object \
             with the texts \"article\" and \"highlights\""
        ))
    };
    assert_eq!(
        read,
        [
            story("A. B.", "B."),
            fault(3, 13, "invalid type: integer `3`, expected a string"),
            story("", "C"),
            fault(5, 16, "missing field `highlights`"),
        ]
    );
}

#[test]
fn unreadable_files_are_named() {
    let missing = Stories::open("no/such/stories.jsonl").expect_err("no file");
    assert!(matches!(missing, StoryError::Open(_)));
    assert!(missing.to_string().contains("no/such/stories.jsonl"), "{missing}");
    let file = file(b"{\"article\": \"\", \"highlights\": \"\"}\n\xff\n{}\n");
    let read: Vec<_> = Stories::open(file.path()).expect("opens").collect();
    let [Ok(_), Err(StoryError::Read { line: 2, .. })] = &read[..] else { panic!("{read:?}") };
}

#[test]
fn sentences_end_where_readers_say() {
    for (text, expected) in [
        ("One. Two! Three?", vec!["One.", "Two!", "Three?"]),
        ("No end\n\n  next line ", vec!["No end", "next line"]),
        ("Mr. Smith met Dr. J. Lee.", vec!["Mr. Smith met Dr. J. Lee."]),
        (
            "The U.S. Senate met at 5 p.m. on Sept. 3.",
            vec!["The U.S. Senate met at 5 p.m. on Sept. 3."],
        ),
        ("It cost $3.5 million. He paid.", vec!["It cost $3.5 million.", "He paid."]),
        (
            "\"Stop!\" he said. \"I will.\" She left.",
            vec!["\"Stop!\" he said.", "\"I will.\"", "She left."],
        ),
        ("He left (at last.) Then rain.", vec!["He left (at last.)", "Then rain."]),
        ("Well... Then what?! Nothing.", vec!["Well...", "Then what?!", "Nothing."]),
        ("the end . then more .", vec!["the end .", "then more ."]),
        ("See No. 5. He said no. Then yes.", vec!["See No. 5.", "He said no.", "Then yes."]),
        ("Visit www.site.com now.", vec!["Visit www.site.com now."]),
        (" \n ", vec![]),
    ] {
        assert_eq!(cut(text), expected);
    }
}

fn story(article: &str, highlights: &str) -> Story {
    Story { article: article.to_owned(), highlights: highlights.to_owned() }
}

#[test]
fn lines_rest_on_the_sentences_that_say_so() {
    let story = story(
        "The mayor of Perth opened a new bridge on Monday. Rain fell all week in the north. \
         The bridge cost 40 million dollars, the council said. A flood destroyed the old one.",
        "Perth mayor opened new bridge that cost 40 million dollars.\nOld one destroyed by flood; \
         nobody hurt.\nElephants dance.",
    );
    let aligned = story.align();
    assert_eq!(aligned.sentences.len(), 4);
    let sources: Vec<&[usize]> = aligned.lines.iter().map(|l| l.sources.as_slice()).collect();
    assert_eq!(sources, [&[0, 2][..], &[3], &[]]);
    // Perth, mayor, opened, new, bridge, cost, 40, million, dollars and their 8 pairs, of which
    // "perth mayor" and "mayor opened" are nowhere: the article has "mayor of Perth opened".
    assert_eq!(aligned.lines[0].recall, 15.0 / 17.0);
    assert_eq!(aligned.lines[2].recall, 0.0);

    let sample = aligned.sample();
    assert!(sample.prompt.ends_with("A flood destroyed the old one. s3\n"));
    assert_eq!(
        sample.response,
        "p0 < s0 s2 > Perth mayor opened new bridge that cost 40 million dollars. ;\n\
         p1 < s3 > Old one destroyed by flood, nobody hurt. ;\n\
         p2 < > Elephants dance. ;\n$"
    );
}

/// A first choice that two later ones cover is dropped again.
#[test]
fn superfluous_sources_are_dropped() {
    let story = story(
        "Red green blue grey. Red green black white. Blue grey pink brown. Nothing here.",
        "Black white red green, blue grey pink brown.",
    );
    let aligned = story.align();
    assert_eq!(aligned.lines[0].sources, [1, 2]);
}

/// As tokenizers give them: a first token without text, and words with their space.
#[test]
fn tokens_that_reach_into_a_sentence_belong_to_it() {
    let sample = Sample {
        prompt: "A b. C d.".to_owned(),
        names: vec![("s0".to_owned(), 0..4), ("s1".to_owned(), 5..9)],
        response: String::new(),
    };
    let prompt = |offsets: &[Range<usize>]| sample.span_prompt(offsets).expect("names");
    let expected = |tokens, first: Range<u32>, second: Range<u32>| {
        let names = [("s0", first), ("s1", second)];
        let names = names.map(|(name, tokens)| (name.to_owned(), Span::from(tokens)));
        SelfSpanPrompt::with_names(tokens, names.to_vec()).expect("names")
    };
    assert_eq!(prompt(&[0..0, 0..1, 1..3, 3..4, 4..6, 6..8, 8..9]), expected(7, 1..4, 4..7));
    // One token over the border of both.
    assert_eq!(prompt(&[0..3, 3..6, 6..9]), expected(3, 0..2, 1..3));
}

proptest! {
    /// Sentences are in order, apart, trimmed, and leave out nothing but white space.
    #[test]
    fn sentences_cover_the_text(text in "([A-Za-zé]{1,3}|[.!?\"') \n]|Mr\\.| ){0,40}") {
        let found = sentences(&text);
        let mut at = 0;
        for bytes in &found {
            prop_assert!(text[at..bytes.start].trim().is_empty());
            prop_assert!(!bytes.is_empty() && text[bytes.clone()].trim() == &text[bytes.clone()]);
            at = bytes.end;
        }
        prop_assert!(text[at..].trim().is_empty());
    }

    /// Each source is needed under the measure that chose it, and the protocol reads the sample.
    #[test]
    fn sources_are_minimal(
        article in proptest::collection::vec("[A-H][a-c]( [a-h][a-c]){1,6}\\.", 1..8),
        highlights in proptest::collection::vec("[A-H][a-c]( [a-h][a-c]){1,6}[.;]", 1..4),
    ) {
        let story = story(&article.join(" "), &highlights.join("\n"));
        let aligned = story.align();
        for line in &aligned.lines {
            let recall = |left_out: Option<usize>| {
                let sources = line.sources.iter().filter(|at| Some(**at) != left_out);
                let sources: Vec<&str> =
                    sources.map(|at| aligned.sentences[*at].as_str()).collect();
                content_recall(&line.text, &sources)
            };
            prop_assert_eq!(recall(None), line.recall);
            for source in &line.sources {
                prop_assert!(line.recall - recall(Some(*source)) >= LEAST_GAIN);
            }
        }

        let sample = aligned.sample();
        let tokens = sample.prompt.char_indices().map(|(at, c)| at..at + c.len_utf8());
        let tokens: Vec<_> = tokens.collect();
        let prompt = sample.span_prompt(&tokens).expect("names of sentences");
        let mut state = SelfSpanAttention::new(prompt, Fallback::Dense);
        let mut declared = Vec::new();
        for c in sample.response.chars() {
            state.push_token(&c.to_string());
            if c == '>' {
                declared.push(state.declared().expect("no fallback").len_tokens());
            }
        }
        prop_assert!(state.is_finished() && state.faults().total() == 0);
        let length = |at: &usize| sample.names[*at].1.len() as u64;
        let gold: Vec<u64> =
            aligned.lines.iter().map(|l| l.sources.iter().map(length).sum()).collect();
        prop_assert_eq!(declared, gold);
    }
}
