//! ROUGE (Lin, 2004): the overlap of a summary with a reference, without stemming.
//!
//! Text is lower-cased and cut into runs of `a-z0-9`, as the Python package `rouge-score` does, and
//! the figures are the same as its own with `use_stemmer=False`.

use std::collections::HashMap;

/// F1 of the three usual measures, each within 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rouge {
    /// Of single words.
    pub rouge1: f64,
    /// Of pairs of adjacent words.
    pub rouge2: f64,
    /// Of the longest common subsequence of words, of the whole texts.
    pub rouge_l: f64,
}

impl Rouge {
    /// Scores a summary against a reference. A text without words scores 0.
    pub fn of(reference: &str, summary: &str) -> Self {
        let (reference, summary) = (words(reference), words(summary));
        Self {
            rouge1: ngrams(&reference, &summary, 1),
            rouge2: ngrams(&reference, &summary, 2),
            rouge_l: f1(common_subsequence(&reference, &summary), reference.len(), summary.len()),
        }
    }
}

fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// F1 of the common n-grams, each counted as often as both texts have it.
fn ngrams(reference: &[String], summary: &[String], n: usize) -> f64 {
    let mut left: HashMap<&[String], usize> = HashMap::new();
    for ngram in reference.windows(n) {
        *left.entry(ngram).or_default() += 1;
    }
    let mut common = 0;
    for ngram in summary.windows(n) {
        if let Some(count) = left.get_mut(ngram).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    f1(common, reference.windows(n).len(), summary.windows(n).len())
}

/// Length of the longest common subsequence, row by row of the usual table.
fn common_subsequence(reference: &[String], summary: &[String]) -> usize {
    let mut row = vec![0; summary.len() + 1];
    for word in reference {
        let mut diagonal = 0;
        for (at, other) in summary.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == other { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[summary.len()]
}

/// Harmonic mean of `common / reference` and `common / summary`.
fn f1(common: usize, reference: usize, summary: usize) -> f64 {
    if common == 0 { 0.0 } else { 2.0 * common as f64 / (reference + summary) as f64 }
}
