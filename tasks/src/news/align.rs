//! Which sentences of an article each line of its summary rests on.

use std::collections::HashSet;
use std::ops::Range;

use super::sentences;
use super::stories::Story;
use crate::Sample;

/// The least share of a summary line's content that a source sentence must add. A line of ten
/// content words has 19 n-grams, so one word in common is too little and two in a row are enough.
pub const LEAST_GAIN: f64 = 0.1;

/// Words without content of their own.
const STOP_WORDS: [&str; 66] = [
    "a", "about", "after", "also", "an", "and", "are", "as", "at", "be", "been", "but", "by",
    "can", "could", "did", "do", "for", "from", "had", "has", "have", "he", "her", "him", "his",
    "in", "into", "is", "it", "its", "more", "not", "of", "on", "one", "or", "out", "over", "s",
    "said", "says", "she", "so", "t", "than", "that", "the", "their", "them", "there", "they",
    "this", "to", "up", "was", "we", "were", "when", "which", "who", "will", "with", "would",
    "you", "your",
];

/// A line of a summary with its sources.
#[derive(Debug, Clone, PartialEq)]
pub struct AlignedLine {
    /// The line.
    pub text: String,
    /// The sentences that it rests on, ascending: 3 is the fourth. Each adds at least
    /// [`LEAST_GAIN`] to the recall. Empty where no sentence does.
    pub sources: Vec<usize>,
    /// Share of the line's content that the sources have.
    pub recall: f64,
}

/// A story whose summary lines have sources.
#[derive(Debug, Clone, PartialEq)]
pub struct AlignedStory {
    /// The sentences of the article.
    pub sentences: Vec<String>,
    /// The lines of the highlights.
    pub lines: Vec<AlignedLine>,
}

impl Story {
    /// Finds the sources of each sentence of the highlights: the source sentence that adds most to
    /// the recall is taken as long as it adds [`LEAST_GAIN`]; then those that later ones made
    /// superfluous are dropped, so that each that is left is needed under the same measure.
    pub fn align(&self) -> AlignedStory {
        let cut = |text: &str| -> Vec<String> {
            sentences(text).into_iter().map(|bytes: Range<usize>| text[bytes].to_owned()).collect()
        };
        let sentences = cut(&self.article);
        let contents: Vec<Content> = sentences.iter().map(|s| Content::of(s)).collect();
        let lines = cut(&self.highlights).into_iter().map(|text| {
            let overlap = Overlap::of(&Content::of(&text), &contents);
            let sources = overlap.sources();
            let recall = overlap.recall(&sources);
            AlignedLine { text, sources, recall }
        });
        AlignedStory { lines: lines.collect(), sentences }
    }
}

impl AlignedStory {
    /// The story in the form of the task: sentences with their ids behind them, and lines `p0`, `p1`
    /// and so on that declare their sources. A `;` in a line, which would end it, becomes `,`.
    pub fn sample(&self) -> Sample {
        let (mut prompt, mut names, mut response) = (String::new(), Vec::new(), String::new());
        for (at, sentence) in self.sentences.iter().enumerate() {
            let start = prompt.len();
            prompt.push_str(&format!("{sentence} s{at}\n"));
            names.push((format!("s{at}"), start..prompt.len()));
        }
        for (at, line) in self.lines.iter().enumerate() {
            let ids: String = line.sources.iter().map(|at| format!("s{at} ")).collect();
            response.push_str(&format!("p{at} < {ids}> {} ;\n", line.text.replace(';', ",")));
        }
        response.push('$');
        Sample { prompt, names, response }
    }
}

/// Share of a line's content words, and of its pairs of adjacent content words, that at least one
/// of the sources has. A line without content is covered by anything.
pub fn content_recall(line: &str, sources: &[&str]) -> f64 {
    let contents: Vec<Content> = sources.iter().map(|source| Content::of(source)).collect();
    let all: Vec<usize> = (0..contents.len()).collect();
    Overlap::of(&Content::of(line), &contents).recall(&all)
}

/// The distinct content words of a text, and the pairs of those that are adjacent but for stop
/// words.
struct Content(HashSet<Vec<String>>);

impl Content {
    fn of(text: &str) -> Self {
        let text = text.to_lowercase();
        let words: Vec<String> = text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty() && !STOP_WORDS.contains(word))
            .map(str::to_owned)
            .collect();
        Self(words.windows(1).chain(words.windows(2)).map(<[String]>::to_vec).collect())
    }
}

/// What sentences have of a line's content.
struct Overlap {
    /// For each sentence, which pieces of the content it has.
    has: Vec<Vec<bool>>,
    pieces: usize,
}

impl Overlap {
    fn of(line: &Content, sentences: &[Content]) -> Self {
        let has = |s: &Content| line.0.iter().map(|piece| s.0.contains(piece)).collect();
        Self { has: sentences.iter().map(has).collect(), pieces: line.0.len() }
    }

    /// Share of the content that at least one of the chosen sentences has; 1 where there is none.
    fn recall(&self, chosen: &[usize]) -> f64 {
        let covered = |piece: &usize| chosen.iter().any(|at| self.has[*at][*piece]);
        match self.pieces {
            0 => 1.0,
            pieces => (0..pieces).filter(covered).count() as f64 / pieces as f64,
        }
    }

    /// Greedy choice, then removal of what is superfluous.
    fn sources(&self) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::new();
        loop {
            let with = |at: usize| self.recall(&[chosen.as_slice(), &[at]].concat());
            // The first of equally good ones.
            let best = (0..self.has.len()).rev().max_by(|a, b| with(*a).total_cmp(&with(*b)));
            let gain = |at: usize| with(at) - self.recall(&chosen);
            let Some(best) = best.filter(|at| gain(*at) >= LEAST_GAIN) else { break };
            chosen.push(best);
        }
        loop {
            let without = |at: usize| {
                let others = chosen.iter().copied().filter(|other| *other != at);
                self.recall(&others.collect::<Vec<usize>>())
            };
            let cheapest =
                chosen.iter().copied().max_by(|a, b| without(*a).total_cmp(&without(*b)));
            let loss = |at: usize| self.recall(&chosen) - without(at);
            let Some(superfluous) = cheapest.filter(|at| loss(*at) < LEAST_GAIN) else { break };
            chosen.retain(|at| *at != superfluous);
        }
        chosen.sort_unstable();
        chosen
    }
}
