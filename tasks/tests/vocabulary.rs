//! The vocabularies agree with the `tokenizer.json` that they write.

use std::str::FromStr;

use spanforge_tasks::{BOS, EOS, PAD, Split, Vocabulary, VocabularyError, arithmetic, news};
use tokenizers::Tokenizer;

fn tokenizer(vocabulary: &Vocabulary) -> Tokenizer {
    Tokenizer::from_str(&vocabulary.tokenizer_json()).expect("a tokenizer")
}

/// Both cut a text into the same tokens, and both give it back.
fn agree(vocabulary: &Vocabulary, tokenizer: &Tokenizer, text: &str) {
    let ours = vocabulary.encode(text).expect("in the vocabulary");
    let theirs = tokenizer.encode(text, true).expect("in the vocabulary");
    assert_eq!(ours.ids, theirs.get_ids(), "{text}");
    let offsets: Vec<_> = theirs.get_offsets().iter().map(|(start, end)| *start..*end).collect();
    assert_eq!(ours.offsets, offsets, "{text}");
    assert_eq!(vocabulary.decode(&ours.ids).as_deref(), Ok(text));
    assert_eq!(tokenizer.decode(&ours.ids, false).expect("ids"), text);
}

#[test]
fn arithmetic_is_one_token_a_character() {
    let vocabulary = arithmetic::vocabulary();
    let tokenizer = tokenizer(&vocabulary);
    assert_eq!((vocabulary.len(), tokenizer.get_vocab_size(true)), (34, 34));
    let special = ["_", "^", "$"].map(|token| vocabulary.id(token));
    assert_eq!(special, [Some(PAD), Some(BOS), Some(EOS)]);
    let difficulty = arithmetic::Difficulty { operands: 3..=13, ..Default::default() };
    let problems = arithmetic::Generator::new(difficulty, Split::Train, 3).expect("valid");
    for problem in problems.take(50) {
        let text = format!("{}{}", problem.sample.prompt, problem.sample.response);
        agree(&vocabulary, &tokenizer, &text);
        assert_eq!(vocabulary.encode(&text).expect("known").ids.len(), text.len());
    }
}

#[test]
fn news_is_one_token_a_word() {
    let vocabulary = news::vocabulary();
    let tokenizer = tokenizer(&vocabulary);
    assert_eq!(tokenizer.get_vocab_size(true), vocabulary.len());
    let special = ["_", "^", "$"].map(|token| vocabulary.id(token));
    assert_eq!(special, [Some(PAD), Some(BOS), Some(EOS)]);
    let difficulty =
        news::Difficulty { people: 1..=6, facts: 1..=4, distractors: 0..=8, names: 40 };
    let articles = news::Generator::new(difficulty, Split::Train, 3).expect("valid");
    for article in articles.take(50) {
        let text = format!("{} {}", article.sample.prompt, article.sample.response);
        agree(&vocabulary, &tokenizer, &text);
        let words = text.split(' ').count();
        assert_eq!(vocabulary.encode(&text).expect("known").ids.len(), words);
    }
}

#[test]
fn text_outside_the_vocabulary_is_an_error() {
    let vocabulary = arithmetic::vocabulary();
    let unknown = VocabularyError::UnknownText { text: "x".to_owned(), at: 3, tokens: 34 };
    assert_eq!(vocabulary.encode("^(1x"), Err(unknown));
    assert!(tokenizer(&vocabulary).encode("^(1x", false).is_err());
    assert_eq!(vocabulary.decode(&[34]), Err(VocabularyError::UnknownId { id: 34, tokens: 34 }));
}
