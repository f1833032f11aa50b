//! What is right in a summary of a generated article.

use std::collections::HashSet;

use super::facts::{Fact, FactRecall};
use super::generate::Article;
use crate::verdict::{StepVerdict, ends_properly, judge_steps, steps};

/// What is right in a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The facts that it states.
    pub facts: FactRecall,
    /// Whether the response ends with `$` behind a whole line, and has no `$` before.
    pub ended: bool,
    /// Every line of the response. A declaration parses if it begins with a person of its own and
    /// names sentences of the article, at least one, and nothing else.
    pub lines: Vec<StepVerdict>,
    /// Lines of the gold response.
    pub gold_lines: usize,
}

impl Verdict {
    /// Whether the response is the gold one, word by word.
    pub fn is_gold(&self) -> bool {
        self.ended && self.lines.len() == self.gold_lines && self.lines.iter().all(|l| l.right)
    }
}

/// Judges a response to an article; any text is one.
pub fn evaluate(article: &Article, response: &str) -> Verdict {
    let response = response.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut seen = HashSet::new();
    let lines = judge_steps(&response, &article.sample.response, |name, declaration| {
        let is_sentence = |id: &str| article.sample.names.iter().any(|(name, _)| name == id);
        let name = name.trim();
        let named = !name.is_empty() && name.chars().all(char::is_alphabetic);
        let own = seen.insert(name.to_owned());
        let mut ids = declaration.split_whitespace().peekable();
        named && own && ids.peek().is_some() && ids.all(is_sentence)
    });
    Verdict {
        facts: fact_recall(article, &response),
        ended: ends_properly(&response.replace(" $", "$")),
        lines,
        gold_lines: article.people.len(),
    }
}

/// How many of an article's facts a summary states. The summary is lines that end with `;`, up to
/// `$`: a person, perhaps a declaration in `< >`, and statements with `,` between them.
pub fn fact_recall(article: &Article, summary: &str) -> FactRecall {
    let known: HashSet<(&str, Fact)> = article
        .people
        .iter()
        .flat_map(|person| person.facts.iter().map(|(fact, _)| (person.name, *fact)))
        .collect();
    let mut stated = HashSet::new();
    let mut wrong = HashSet::new();
    for line in steps(summary) {
        let line = line.trim_end_matches(';').trim();
        let Some((person, rest)) = line.split_once(char::is_whitespace) else { continue };
        let statements = rest.split_once('>').map_or(rest, |(_, behind)| behind);
        for statement in statements.split(',').map(str::trim).filter(|s| !s.is_empty()) {
            let claim = Fact::read(statement).map(|fact| (person, fact));
            match claim.filter(|claim| known.contains(claim)) {
                Some(claim) => stated.insert(claim),
                None => wrong.insert((person, statement)),
            };
        }
    }
    FactRecall { known: known.len(), stated: stated.len(), wrong: wrong.len() }
}
