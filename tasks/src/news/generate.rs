//! Articles with known facts, of a chosen difficulty.

use std::ops::RangeInclusive;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::facts::Fact;
use super::words::{
    AMOUNTS, CITIES, DAYS, DISTRACTING, EVENTS, MAX_SENTENCES, NAMES, OBJECTS, ROLES, TELLING,
    VERBS,
};
use crate::{Sample, Split};

/// Most people of an article.
pub const MAX_PEOPLE: u32 = 6;

/// Most facts of a person: one of each kind.
const KINDS: u32 = TELLING.len() as u32;

/// Most sentences about nobody.
const MAX_DISTRACTORS: u32 = MAX_SENTENCES - MAX_PEOPLE * KINDS;

/// What the articles are like. A curriculum goes from [`easiest`](Self::easiest) to the default,
/// which is that of the study the recipe comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Difficulty {
    /// Numbers of people, each equally likely; within 1 to [`MAX_PEOPLE`].
    pub people: RangeInclusive<u32>,
    /// Numbers of facts of each person, of different kinds; within 1 to 4.
    pub facts: RangeInclusive<u32>,
    /// Numbers of sentences about nobody; within 0 to 8.
    pub distractors: RangeInclusive<u32>,
    /// How many different names occur in all articles, at least as many as people; up to 40.
    pub names: u32,
}

impl Difficulty {
    /// One or two people out of four, with one or two facts and nothing else.
    pub fn easiest() -> Self {
        Self { people: 1..=2, facts: 1..=2, distractors: 0..=0, names: 4 }
    }

    fn check(&self) -> Result<(), DifficultyError> {
        for (what, range, within) in [
            ("people", &self.people, 1..=MAX_PEOPLE),
            ("facts", &self.facts, 1..=KINDS),
            ("distractors", &self.distractors, 0..=MAX_DISTRACTORS),
        ] {
            let inside = within.contains(range.start()) && within.contains(range.end());
            if range.is_empty() || !inside {
                return Err(DifficultyError::Range { what, range: range.clone(), within });
            }
        }
        let within = *self.people.end()..=NAMES.len() as u32;
        if !within.contains(&self.names) {
            return Err(DifficultyError::Names { names: self.names, within });
        }
        Ok(())
    }
}

impl Default for Difficulty {
    fn default() -> Self {
        Self { people: 2..=4, facts: 2..=4, distractors: 1..=3, names: NAMES.len() as u32 }
    }
}

/// What is wrong with a difficulty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DifficultyError {
    /// A number that no article has.
    #[error(
        "{what} {} to {}: give a range within {} to {}, smaller one first",
        range.start(), range.end(), within.start(), within.end()
    )]
    Range {
        /// Of what.
        what: &'static str,
        /// As given.
        range: RangeInclusive<u32>,
        /// What is possible.
        within: RangeInclusive<u32>,
    },
    /// Too few names for the people, or more than there are.
    #[error("{names} different names: give {} to {}", within.start(), within.end())]
    Names {
        /// As given.
        names: u32,
        /// What is possible.
        within: RangeInclusive<u32>,
    },
}

/// Someone an article is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// First name.
    pub name: &'static str,
    /// Facts in the order of the summary, each with the sentence that tells it: 3 is `s3`.
    pub facts: Vec<(Fact, usize)>,
}

/// An article whose facts are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Article {
    /// Prompt and response; the sentences are named parts of the prompt.
    pub sample: Sample,
    /// The people in the order of their first mention, which is that of the summary.
    pub people: Vec<Person>,
}

impl Article {
    /// Lays out sentences in the given order, and the summary of them.
    fn new(sentences: &[Sentence]) -> Self {
        let mut sample =
            Sample { prompt: "^".to_owned(), names: Vec::new(), response: String::new() };
        let mut people: Vec<Person> = Vec::new();
        for (at, sentence) in sentences.iter().enumerate() {
            let start = sample.prompt.len() + 1;
            sample.prompt.push_str(&format!(" {} s{at} .", sentence.text));
            sample.names.push((format!("s{at}"), start..sample.prompt.len()));
            let Some((name, fact)) = sentence.tells else { continue };
            match people.iter_mut().find(|person| person.name == name) {
                Some(person) => person.facts.push((fact, at)),
                None => people.push(Person { name, facts: vec![(fact, at)] }),
            }
        }
        sample.prompt.push_str(" ;");
        for person in &mut people {
            person.facts.sort_by_key(|(fact, _)| fact.kind());
            let ids: Vec<String> = person.facts.iter().map(|(_, at)| format!("s{at}")).collect();
            let stated: Vec<String> = person.facts.iter().map(|(f, _)| f.statement()).collect();
            let (ids, stated) = (ids.join(" "), stated.join(" , "));
            sample.response.push_str(&format!("{} < {ids} > {stated} ; ", person.name));
        }
        sample.response.push('$');
        Self { sample, people }
    }

    /// What decides on the split: the facts whatever their order, so that the same facts among other
    /// sentences are in the same split.
    pub fn content(&self) -> String {
        let told = |person: &Person| -> Vec<String> {
            let facts = person.facts.iter();
            facts.map(|(fact, _)| format!("{} {}\n", person.name, fact.statement())).collect()
        };
        let mut lines: Vec<String> = self.people.iter().flat_map(told).collect();
        lines.sort_unstable();
        lines.concat()
    }
}

/// A sentence, and what it tells of whom.
struct Sentence {
    text: String,
    tells: Option<(&'static str, Fact)>,
}

/// An endless stream of articles of one split. It is the same for the same seed on every platform.
#[derive(Debug, Clone)]
pub struct Generator {
    difficulty: Difficulty,
    split: Split,
    rng: ChaCha8Rng,
}

impl Generator {
    /// A stream of articles.
    pub fn new(difficulty: Difficulty, split: Split, seed: u64) -> Result<Self, DifficultyError> {
        difficulty.check()?;
        Ok(Self { difficulty, split, rng: ChaCha8Rng::seed_from_u64(seed) })
    }

    fn article(&mut self) -> Article {
        let mut names = NAMES[..self.difficulty.names as usize].to_vec();
        names.shuffle(&mut self.rng);
        let people = self.rng.random_range(self.difficulty.people.clone());
        let mut sentences = Vec::new();
        for name in &names[..people as usize] {
            let mut kinds: Vec<u32> = (0..KINDS).collect();
            kinds.shuffle(&mut self.rng);
            let facts = self.rng.random_range(self.difficulty.facts.clone());
            for kind in &kinds[..facts as usize] {
                let fact = self.fact(*kind);
                let telling = self.pick(&TELLING[fact.kind()]);
                let text = fact.fill(telling).replace("{name}", name);
                sentences.push(Sentence { text, tells: Some((*name, fact)) });
            }
        }
        for _ in 0..self.rng.random_range(self.difficulty.distractors.clone()) {
            // The words of one fact of each kind fill any of these sentences.
            let template = self.pick(&DISTRACTING).to_owned();
            let fill = |text: String, kind| self.fact(kind).fill(&text);
            sentences.push(Sentence { text: (0..KINDS).fold(template, fill), tells: None });
        }
        sentences.shuffle(&mut self.rng);
        Article::new(&sentences)
    }

    fn fact(&mut self, kind: u32) -> Fact {
        match kind {
            0 => Fact::Role { role: self.pick(&ROLES), city: self.pick(&CITIES) },
            1 => Fact::Deed {
                verb: self.pick(&VERBS),
                object: self.pick(&OBJECTS),
                day: self.pick(&DAYS),
            },
            2 => Fact::Cost { amount: self.pick(&AMOUNTS) },
            _ => Fact::Cause { event: self.pick(&EVENTS) },
        }
    }

    fn pick(&mut self, list: &[&'static str]) -> &'static str {
        list.choose(&mut self.rng).expect("no list of words is empty")
    }
}

impl Iterator for Generator {
    type Item = Article;

    /// Draws until an article belongs to the split, which one in fifty does at the least; even the
    /// least difficulty has articles of every split.
    fn next(&mut self) -> Option<Article> {
        loop {
            let article = self.article();
            if Split::of(&article.content()) == self.split {
                return Some(article);
            }
        }
    }
}
