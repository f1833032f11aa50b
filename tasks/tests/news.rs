//! Generated news: articles agree with the protocol, summaries declare what they need and no more,
//! and facts are counted fairly.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use proptest::prelude::*;
use spanforge_spans::protocol::{Fallback, SelfSpanAttention, TagProtocol};
use spanforge_spans::{Span, SpanSet};
use spanforge_tasks::news::{
    Article, Difficulty, DifficultyError, Fact, FactRecall, Generator, MAX_PEOPLE, Person,
    evaluate, fact_recall, vocabulary,
};
use spanforge_tasks::{AttendedPairs, Split, StepVerdict, Vocabulary};

fn articles(difficulty: &Difficulty, split: Split, seed: u64, count: usize) -> Vec<Article> {
    Generator::new(difficulty.clone(), split, seed).expect("valid").take(count).collect()
}

/// For each line of the summary: what it declared, and what the query that predicts the first word
/// behind the declaration attends to.
fn seen(article: &Article, vocabulary: &Vocabulary) -> Vec<(SpanSet, SpanSet)> {
    let prompt = vocabulary.encode(&article.sample.prompt).expect("in the vocabulary");
    let named = article.sample.span_prompt(&prompt.offsets).expect("names of sentences");
    let mut state = SelfSpanAttention::new(named, Fallback::Dense);
    let mut lines = Vec::new();
    for id in vocabulary.encode(&article.sample.response).expect("in the vocabulary").ids {
        let piece = vocabulary.piece(id).expect("in the vocabulary");
        state.push_token(piece);
        if piece == " >" {
            lines.push((state.declared().expect("no fallback").clone(), state.spans()));
        }
    }
    assert!(state.is_finished());
    assert_eq!(state.faults().total(), 0, "{}", article.sample.response);
    assert_eq!(state.steps() as usize, article.people.len());
    lines
}

/// The tokens of each sentence.
fn sentence_tokens(article: &Article, vocabulary: &Vocabulary) -> Vec<Span> {
    let offsets = vocabulary.encode(&article.sample.prompt).expect("known").offsets;
    let token = |bytes: &Range<usize>| {
        let first = offsets.iter().position(|o| o.start == bytes.start).expect("a token");
        let last = offsets.iter().position(|o| o.end == bytes.end).expect("a token");
        Span::from(first as u32..last as u32 + 1)
    };
    article.sample.names.iter().map(|(_, bytes)| token(bytes)).collect()
}

/// The sentences that are attended, as words, read from the tokens alone.
fn visible(article: &Article, vocabulary: &Vocabulary, spans: &SpanSet) -> Vec<Vec<String>> {
    let text = format!("{} {}", article.sample.prompt, article.sample.response);
    let ids = vocabulary.encode(&text).expect("known").ids;
    let prompt = vocabulary.encode(&article.sample.prompt).expect("known").ids.len() as u32;
    let tokens = spans.tokens().filter(|token| *token < prompt).map(|t| ids[t as usize]);
    let words: Vec<String> = tokens
        .filter_map(|id| vocabulary.piece(id))
        .map(|piece| piece.trim_start().to_owned())
        .collect();
    words.split(|word| word == ".").map(<[String]>::to_vec).collect()
}

/// Whether one visible sentence tells a fact of a person: it has the name and every word of it.
fn is_told(visible: &[Vec<String>], name: &str, fact: &Fact) -> bool {
    let has = |sentence: &Vec<String>, word: &str| sentence.iter().any(|w| w == word);
    let tells = |s: &Vec<String>| has(s, name) && fact.words().into_iter().all(|word| has(s, word));
    visible.iter().any(tells)
}

fn difficulties() -> impl Strategy<Value = Difficulty> {
    let range = |least, most| {
        (least..=most, least..=most).prop_map(|(a, b): (u32, u32)| a.min(b)..=a.max(b))
    };
    (range(1, MAX_PEOPLE), range(1, 4), range(0, 8), MAX_PEOPLE..=40).prop_map(
        |(people, facts, distractors, names)| Difficulty { people, facts, distractors, names },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every fact of a line is told by a declared sentence, and no declared sentence is idle.
    #[test]
    fn declared_sentences_are_minimal(difficulty in difficulties(), seed: u64) {
        let vocabulary = vocabulary();
        for article in articles(&difficulty, Split::Train, seed, 3) {
            let sentences = sentence_tokens(&article, &vocabulary);
            for (person, (declared, spans)) in
                article.people.iter().zip(seen(&article, &vocabulary))
            {
                let told = |spans: &SpanSet| {
                    let visible = visible(&article, &vocabulary, spans);
                    let facts = person.facts.iter().map(|(fact, _)| fact);
                    facts.filter(|fact| is_told(&visible, person.name, fact)).count()
                };
                prop_assert_eq!(told(&spans), person.facts.len());
                let used = person.facts.iter().map(|(_, at)| sentences[*at]);
                prop_assert_eq!(&declared, &SpanSet::from_raw(used));
                for sentence in &sentences {
                    let sentence = SpanSet::from_raw([*sentence]);
                    if !declared.intersection(&sentence).is_empty() {
                        let left = told(&spans.difference(&sentence));
                        prop_assert_eq!(left, person.facts.len() - 1);
                    }
                }
            }
        }
    }

    /// The gold summary states every fact and nothing else; a summary without a line lacks the
    /// facts of that person.
    #[test]
    fn gold_summaries_state_every_fact(difficulty in difficulties(), seed: u64) {
        for article in articles(&difficulty, Split::HeldOut, seed, 2) {
            let known = article.people.iter().map(|p| p.facts.len()).sum();
            let all = FactRecall { known, stated: known, wrong: 0 };
            let verdict = evaluate(&article, &article.sample.response);
            prop_assert!(verdict.is_gold() && verdict.facts == all);
            let parse = |line: &StepVerdict| line.declaration_parses && line.declaration_right;
            prop_assert!(verdict.lines.iter().all(parse));
            let (_, rest) = article.sample.response.split_once(';').expect("a line");
            let stated = known - article.people[0].facts.len();
            prop_assert_eq!(fact_recall(&article, rest), FactRecall { stated, ..all });
        }
    }

    /// What was asked for is what is made.
    #[test]
    fn difficulty_is_kept(difficulty in difficulties(), seed: u64) {
        for article in articles(&difficulty, Split::Train, seed, 4) {
            let people = article.people.len() as u32;
            prop_assert!(difficulty.people.contains(&people));
            let facts: Vec<u32> = article.people.iter().map(|p| p.facts.len() as u32).collect();
            prop_assert!(facts.iter().all(|count| difficulty.facts.contains(count)));
            let distractors = article.sample.names.len() as u32 - facts.iter().sum::<u32>();
            prop_assert!(difficulty.distractors.contains(&distractors));
        }
    }

    /// Any text is a summary.
    #[test]
    fn any_summary_is_judged(text in "(anna|paid|40|in|after|[<>,;$ ]){0,20}") {
        let article = &articles(&Difficulty::default(), Split::Train, 1, 1)[0];
        let verdict = evaluate(article, &text);
        prop_assert!(!verdict.is_gold() && verdict.facts.stated <= verdict.facts.known);
    }
}

/// A change here is a change of every figure that was reported for a seed.
#[test]
fn a_seed_means_the_same_on_every_platform() {
    let articles = articles(&Difficulty::easiest(), Split::HeldOut, 7, 2);
    assert_eq!(
        articles[1].sample.prompt,
        "^ the strike was the reason for ben s0 . the oslo baker is called alice s1 . the bill for \
         ben was 50 dollars s2 . ;"
    );
    assert_eq!(
        articles[1].sample.response,
        "ben < s2 s0 > paid 50 , after strike ; alice < s1 > baker in oslo ; $"
    );
}

#[test]
fn splits_are_disjoint_whatever_the_order_and_the_distractors() {
    // So few facts that every split meets most of its own, in either order of the two people.
    let difficulty = Difficulty { people: 2..=2, facts: 1..=1, distractors: 0..=2, names: 2 };
    let of = |split, seed| -> HashSet<BTreeSet<(&str, String)>> {
        let facts = |person: &Person| -> Vec<_> {
            person.facts.iter().map(|(fact, _)| (person.name, fact.statement())).collect()
        };
        let articles = articles(&difficulty, split, seed, 2000);
        articles.iter().map(|article| article.people.iter().flat_map(facts).collect()).collect()
    };
    let (train, validation, held_out) =
        (of(Split::Train, 1), of(Split::Validation, 2), of(Split::HeldOut, 3));
    assert!(train.is_disjoint(&validation) && train.is_disjoint(&held_out));
    assert!(validation.is_disjoint(&held_out));
    for split in Split::ALL {
        assert_eq!(articles(&difficulty, split, 4, 20), articles(&difficulty, split, 4, 20));
    }
}

/// So that no generator draws for ever.
#[test]
fn the_least_difficulty_has_every_split() {
    let difficulty = Difficulty { people: 1..=1, facts: 1..=1, distractors: 0..=0, names: 1 };
    for split in Split::ALL {
        let article = &articles(&difficulty, split, 0, 1)[0];
        assert_eq!(Split::of(&article.content()), split);
    }
}

#[test]
fn a_summary_attends_to_less_than_half() {
    let vocabulary = vocabulary();
    let mut pairs = AttendedPairs::default();
    for article in articles(&Difficulty::default(), Split::HeldOut, 11, 400) {
        pairs += article.sample.attended_pairs(&vocabulary).expect("in the vocabulary");
    }
    // The study measured 0.46 with ids in front and another wording.
    assert!((0.45..0.50).contains(&pairs.share()), "{}", pairs.share());
}

#[test]
fn facts_are_counted_for_the_right_person_and_once() {
    let difficulty = Difficulty { people: 2..=2, facts: 4..=4, ..Difficulty::default() };
    let article = &articles(&difficulty, Split::Train, 3, 1)[0];
    let [first, second] = &article.people[..] else { panic!("two people") };
    let statement = |person: &Person| person.facts[1].0.statement();
    let recall = |text: &str| {
        let FactRecall { known, stated, wrong } = fact_recall(article, text);
        (known, stated, wrong)
    };
    let (a, b) = (first.name, second.name);
    let (deed, other) = (statement(first), statement(second));
    assert_eq!(recall(""), (8, 0, 0));
    assert_eq!(recall(&format!("{a} < s0 > {deed} ; {b} {other} ; $")), (8, 2, 0));
    assert_eq!(recall(&format!("{a} < s0 > {deed} , {deed}")), (8, 1, 0));
    assert_eq!(recall(&format!("{b} < s0 > {deed} ; $")), (8, 0, 1));
    assert_eq!(recall(&format!("{a} < s0 > was here , {deed} ; $ {b} {other} ;")), (8, 1, 1));
    assert_eq!(fact_recall(article, &format!("{a} > {deed}")).share(), 0.125);
}

#[test]
fn summaries_are_judged_line_by_line() {
    let difficulty = Difficulty { people: 2..=2, facts: 2..=2, ..Difficulty::easiest() };
    let article = &articles(&difficulty, Split::Train, 3, 1)[0];
    let gold = &article.sample.response;
    let (first, second) = gold.split_once(';').expect("two lines");
    let judge = |response: &str| {
        let verdict = evaluate(article, response);
        let flag = |on, c| if on { c } else { '-' };
        let flags = |s: &StepVerdict| -> String {
            [(s.declaration_parses, 'p'), (s.declaration_right, 'd'), (s.right, 'r')]
                .map(|(on, c)| flag(on, c))
                .into_iter()
                .collect()
        };
        let lines: Vec<String> = verdict.lines.iter().map(flags).collect();
        (verdict.ended, lines.join(" "))
    };
    let (_, statements) = first.split_once('>').expect("a declaration");
    let name = article.people[0].name;
    for (response, expected) in [
        (gold.clone(), (true, "pdr pdr")),
        (gold.replace(' ', "\n "), (true, "pdr pdr")),
        (gold.trim_end_matches('$').to_owned(), (false, "pdr pdr")),
        (format!("{first}; $"), (true, "pdr")),
        // Other facts, other sentences, a sentence that is not there, none, one person twice.
        (format!("{first}, paid 5 ;{second}"), (true, "pd- pdr")),
        (format!("{name} < s0 s1 s2 s3 >{statements};{second}"), (true, "p-- pdr")),
        (format!("{name} < s9 >{statements};{second}"), (true, "--- pdr")),
        (format!("{name} < >{statements};{second}"), (true, "--- pdr")),
        (format!("{first};{first};$"), (true, "pdr ---")),
    ] {
        let (ended, lines) = expected;
        assert_eq!(judge(&response), (ended, lines.to_owned()), "{response} of {gold}");
    }
}

#[test]
fn faults_of_difficulties_are_named() {
    let refused = |difficulty| {
        let refused = Generator::new(difficulty, Split::Train, 0);
        refused.expect_err("a fault").to_string()
    };
    let usual = Difficulty::default;
    for (difficulty, said) in [
        (
            Difficulty { people: 0..=2, ..usual() },
            "people 0 to 2: give a range within 1 to 6, smaller one first",
        ),
        (
            Difficulty { facts: 1..=5, ..usual() },
            "facts 1 to 5: give a range within 1 to 4, smaller one first",
        ),
        (
            Difficulty { distractors: 0..=9, ..usual() },
            "distractors 0 to 9: give a range within 0 to 8, smaller one first",
        ),
        (Difficulty { names: 3, ..usual() }, "3 different names: give 4 to 40"),
        (Difficulty { names: 41, ..usual() }, "41 different names: give 4 to 40"),
    ] {
        assert_eq!(refused(difficulty), said);
    }
    let error = DifficultyError::Names { names: 3, within: 4..=40 };
    assert_eq!(
        Generator::new(Difficulty { names: 3, ..usual() }, Split::Train, 0).err(),
        Some(error)
    );
}
