//! Batches. Each follows from the seed and its number alone, so that a run goes on where it was.

use crate::ops::Rows;
use anyhow::{Context, Result};
use clap::ValueEnum;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use spanforge_spans::protocol::{Fallback, SelfSpanAttention, TagProtocol};
use spanforge_tasks::{Sample, Split, Vocabulary, arithmetic, news};
use std::ops::RangeInclusive;

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Nested expressions, step by step.
    Arithmetic,
    /// Synthetic articles and their summaries.
    Summarisation,
}

/// What training sequences attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Masks {
    /// Half of them to what they declare, half to everything: one model for both.
    Mixed,
    /// All to everything.
    Dense,
    /// All to what they declare.
    Span,
}

/// Sequences one behind the other.
#[derive(Debug, Default)]
pub struct Batch {
    pub tokens: Vec<u32>,
    pub rows: Rows,
    /// Rows that predict a token of a response.
    pub wanted: Vec<u32>,
    /// What they are to predict.
    pub targets: Vec<u32>,
}

/// The tokens of a task.
pub fn vocabulary(task: Task) -> Vocabulary {
    match task {
        Task::Arithmetic => arithmetic::vocabulary(),
        Task::Summarisation => news::vocabulary(),
    }
}

/// Where batches come from.
#[derive(Clone)]
pub struct Source {
    pub task: Task,
    /// What expressions are like.
    pub expressions: arithmetic::Difficulty,
    pub vocabulary: Vocabulary,
    pub split: Split,
    pub masks: Masks,
    /// Rows of a batch; the last sequence may go beyond.
    pub rows: usize,
    /// Batches over which articles get as difficult as those that are evaluated; 0 where they are from
    /// the first.
    pub easy: u64,
    pub seed: u64,
}

impl Source {
    /// The batch of a number.
    pub fn batch(&self, number: u64) -> Result<Batch> {
        // Far apart for neighbouring numbers, as the generator's seeds should be.
        let seed = self.seed ^ number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut rng = ChaCha8Rng::seed_from_u64(!seed);
        let mut batch = Batch::default();
        let mut samples = self.samples(number, seed)?;
        while batch.tokens.len() < self.rows {
            let sample = samples.next().context("the generator has ended")?;
            let is_span = match self.masks {
                Masks::Mixed => rng.random_bool(0.5),
                Masks::Dense => false,
                Masks::Span => true,
            };
            self.add(&mut batch, &sample, is_span)?;
        }
        Ok(batch)
    }

    fn samples(&self, number: u64, seed: u64) -> Result<Box<dyn Iterator<Item = Sample>>> {
        Ok(match self.task {
            Task::Arithmetic => {
                let difficulty = self.expressions.clone();
                let problems = arithmetic::Generator::new(difficulty, self.split, seed)?;
                Box::new(problems.map(|problem| problem.sample))
            }
            Task::Summarisation => {
                let difficulty = difficulty(number as f64 / self.easy as f64);
                let articles = news::Generator::new(difficulty, self.split, seed)?;
                Box::new(articles.map(|article| article.sample))
            }
        })
    }

    fn add(&self, batch: &mut Batch, sample: &Sample, is_span: bool) -> Result<()> {
        let prompt = self.vocabulary.encode(&sample.prompt)?;
        let response = self.vocabulary.encode(&sample.response)?.ids;
        let first = batch.tokens.len();
        let prompt_tokens = prompt.ids.len();
        let mut state =
            SelfSpanAttention::new(sample.span_prompt(&prompt.offsets)?, Fallback::Dense);
        let all = |position: usize| vec![[0, position as u32 + 1]];
        batch.rows.spans.extend((0..prompt_tokens).map(all));
        // The last token of a response predicts nothing and is left out.
        let queries = &response[..response.len().saturating_sub(1)];
        for (at, token) in queries.iter().enumerate() {
            state.push_token(self.vocabulary.piece(*token).context("a token without a text")?);
            batch.rows.spans.push(match is_span {
                true => state.spans().iter().map(|span| [span.start(), span.end()]).collect(),
                false => all(prompt_tokens + at),
            });
        }
        batch.tokens.extend(prompt.ids.iter().chain(queries));
        let end = batch.tokens.len();
        batch.rows.sequences.push(first..end);
        batch.wanted.extend((first + prompt_tokens - 1..end).map(|row| row as u32));
        batch.targets.extend(&response);
        Ok(())
    }
}

/// Articles after a share of the curriculum: from the easiest ones, of few names, to those that are
/// evaluated. With 40 names from the first, a model does not find out that a name tells which
/// sentences are meant.
fn difficulty(share: f64) -> news::Difficulty {
    // Without a curriculum the share is infinite or, at the first batch, no number.
    let share = if share < 1.0 { share } else { 1.0 };
    let (easiest, hardest) = (news::Difficulty::easiest(), news::Difficulty::default());
    let between = |from: u32, to: u32| from + (share * f64::from(to - from)).round() as u32;
    let most = |from: &RangeInclusive<u32>, to: &RangeInclusive<u32>| {
        between(*from.start(), *to.start())..=between(*from.end(), *to.end())
    };
    news::Difficulty {
        people: most(&easiest.people, &hardest.people),
        facts: most(&easiest.facts, &hardest.facts),
        distractors: most(&easiest.distractors, &hardest.distractors),
        names: between(easiest.names, hardest.names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(task: Task, masks: Masks) -> Source {
        let vocabulary = vocabulary(task);
        let expressions = arithmetic::Difficulty::default();
        let split = Split::Train;
        Source { task, expressions, vocabulary, split, masks, rows: 600, easy: 20, seed: 3 }
    }

    #[test]
    fn a_batch_follows_from_its_number_and_its_rows_from_its_sequences() {
        for task in [Task::Arithmetic, Task::Summarisation] {
            let (mixed, again) = (source(task, Masks::Mixed), source(task, Masks::Mixed));
            let batch = mixed.batch(7).unwrap();
            assert_eq!(batch.tokens, again.batch(7).unwrap().tokens);
            assert_eq!(batch.rows.spans, again.batch(7).unwrap().rows.spans);
            assert_ne!(batch.tokens, mixed.batch(8).unwrap().tokens);
            assert_eq!(batch.rows.spans.len(), batch.tokens.len());
            assert_eq!(batch.wanted.len(), batch.targets.len());
            let mut end = 0;
            for sequence in &batch.rows.sequences {
                assert_eq!(sequence.start, end);
                end = sequence.end;
                for (position, spans) in batch.rows.spans[sequence.clone()].iter().enumerate() {
                    // Each attends to itself, and to nothing behind it.
                    assert_eq!(spans.last().map(|span| span[1] as usize), Some(position + 1));
                }
            }
            assert_eq!(end, batch.tokens.len());
            // A row predicts the token of the next row, or the end.
            for (row, target) in batch.wanted.iter().zip(&batch.targets) {
                let next = *row as usize + 1;
                let is_last = batch.rows.sequences.iter().any(|sequence| sequence.end == next);
                assert!(is_last || batch.tokens[next] == *target);
            }
        }
    }

    #[test]
    fn articles_get_as_difficult_as_those_that_are_evaluated() {
        assert_eq!(difficulty(0.0), news::Difficulty::easiest());
        assert!(difficulty(0.5).names > 4 && difficulty(0.5).names < 40);
        // The first batch of a run without a curriculum, and all after the curriculum.
        for share in [f64::NAN, 1.0, 1.5, f64::INFINITY] {
            assert_eq!(difficulty(share), news::Difficulty::default());
        }
    }

    #[test]
    fn masks_are_of_the_kind_asked_for() {
        let attended = |masks| -> u64 {
            let spans = source(Task::Arithmetic, masks).batch(1).unwrap().rows.spans;
            spans.iter().flatten().map(|[start, end]| u64::from(end - start)).sum()
        };
        let (dense, mixed, span) =
            (attended(Masks::Dense), attended(Masks::Mixed), attended(Masks::Span));
        assert!(span < mixed && mixed < dense, "{span} {mixed} {dense}");
    }
}
