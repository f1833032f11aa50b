//! What the replays of one strategy come to: shares of the optimum, evaluations to get near it, and
//! the score.

use super::{Recorded, Run, Scale, Score};
use serde::Serialize;

/// Evaluations at which the share of the optimum is given.
const SHARES_AT: [usize; 3] = [50, 100, 200];
/// Evaluations that every replay makes at least, unless told otherwise.
pub const LEAST_EVALUATIONS: usize = SHARES_AT[2];
/// Share of the optimum that counts as near.
const NEAR: f64 = 0.95;

/// Figures of a strategy on one recorded space.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Shares of the optimum, mean over the repeats.
    pub shares: Vec<Share>,
    /// Evaluations until 95 % of the optimum is reached, median over the repeats; `None` where
    /// fewer than half of them reached it.
    pub evaluations_to_95: Option<f64>,
    /// Charged seconds until then, median over the repeats.
    pub seconds_to_95: Option<f64>,
    /// The score; `None` for a space that is too flat, or free of cost.
    pub score: Option<Score>,
}

/// How near a strategy is to the optimum after some evaluations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The evaluations, failed ones included.
    pub evaluations: usize,
    /// Time of the optimum over the best time found, 0 where nothing ran yet; `None` where the
    /// replays were cut short before.
    pub share: Option<f64>,
}

impl Figures {
    /// The figures of the replays of one strategy.
    pub fn new(space: &Recorded, scale: Option<&Scale>, runs: &[Run]) -> Self {
        let optimum = space.optimum_ms();
        let reached = |run: &Run| {
            run.steps.iter().position(|s| s.best_ms.is_some_and(|best| optimum / best >= NEAR))
        };
        let evaluations = |run: &Run| reached(run).map(|index| (index + 1) as f64);
        let seconds = |run: &Run| reached(run).map(|index| run.steps[index].elapsed_seconds);
        Self {
            shares: SHARES_AT
                .map(|evaluations| Share {
                    evaluations,
                    share: mean_share(optimum, runs, evaluations),
                })
                .to_vec(),
            evaluations_to_95: median(runs.iter().map(evaluations).collect()),
            seconds_to_95: median(runs.iter().map(seconds).collect()),
            score: scale.and_then(|scale| Score::new(scale, runs)),
        }
    }
}

fn mean_share(optimum: f64, runs: &[Run], evaluations: usize) -> Option<f64> {
    let share = |run: &Run| {
        let is_complete = run.steps.len() >= evaluations || run.is_exhausted;
        let last = run.steps.len().min(evaluations).checked_sub(1);
        let best = last.and_then(|last| run.steps[last].best_ms);
        is_complete.then(|| best.map_or(0.0, |best| optimum / best))
    };
    let shares = runs.iter().map(share).collect::<Option<Vec<f64>>>()?;
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

/// The median, where what never happened is larger than everything; `None` where that is it.
fn median(values: Vec<Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().map(|v| v.unwrap_or(f64::INFINITY)).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let lower = if values.len().is_multiple_of(2) { values[middle - 1] } else { upper };
    Some((lower + upper) / 2.0).filter(|median| median.is_finite())
}
