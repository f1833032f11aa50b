//! What was observed, what trees grown on it predict, and which points that makes worth trying.
//!
//! As in SMAC (Hutter, Hoos and Leyton-Brown, LION 5, 2011): trees on the logarithm of the
//! objective, expected improvement over the best, by the chance of not failing and per second.

use super::features::Features;
use super::forest::{Forest, Prediction, Sample};
use super::improvement::{Scale, log_expected_improvement};
use super::moves::hamming;
use super::unseen::Unseen;
use super::{Evaluation, Point, Space};
use rand_chacha::ChaCha8Rng;

/// New trees are grown when this share of all observations is new: their cost stays in proportion.
const NEWS: usize = 16;
/// Points that are predicted: drawn from the whole space, and the neighbours of the best.
const DRAWN: usize = 2000;
const LEADERS: usize = 10;
/// Ranked points kept for each way of ranking.
const RANKED: usize = 100;
/// Power of the predicted cost that gain is divided by: 1 is gain per second, but predictions of
/// few points are rough, and budgets are also counted in evaluations.
const COST: f32 = 0.25;
/// Deviations of the lower confidence bound.
const BOUND: f32 = 2.0;

/// What makes a point worth trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// Expected improvement for its cost.
    Gain,
    /// How good it may be at best: the lower confidence bound.
    Bound,
    /// Being predicted best among the neighbours of the best points.
    Near,
}

const WORTHS: usize = 3;

/// Every observation, trees grown on them, and the points they recommend.
#[derive(Default)]
pub(super) struct Model {
    features: Option<Features>,
    rows: Vec<f32>,
    points: Vec<Point>,
    objectives: Vec<Option<f64>>,
    costs: Vec<f64>,
    /// Positions of the points that did not fail, the best first.
    order: Vec<usize>,
    /// Observations that the trees have seen.
    fitted: usize,
    /// The latest trees.
    forest: Option<Forest>,
    /// Recommended points by [`Worth`], the best last.
    ranked: [Vec<Point>; WORTHS],
}

impl Model {
    /// The best objective so far.
    pub fn best(&self) -> Option<f64> {
        self.order.first().and_then(|first| self.objectives[*first])
    }

    pub fn observe(&mut self, space: &dyn Space, evaluation: &Evaluation<'_>) {
        let features = self.features.get_or_insert_with(|| Features::new(space));
        features.extend(evaluation.point, &mut self.rows);
        let objective = evaluation.objective.filter(|o| o.is_finite());
        if let Some(objective) = objective {
            let worse = |i: &usize| self.objectives[*i].is_some_and(|o| o <= objective);
            self.order.insert(self.order.partition_point(worse), self.points.len());
        }
        self.points.push(evaluation.point.to_vec());
        self.objectives.push(objective);
        self.costs.push(evaluation.cost_seconds);
    }

    /// Takes the unseen point that is most worth trying; `None` where nothing is known yet or no
    /// candidate is left.
    pub fn take(
        &mut self,
        space: &dyn Space,
        worth: Worth,
        unseen: &mut Unseen,
        rng: &mut ChaCha8Rng,
    ) -> Option<Point> {
        if self.order.is_empty() {
            return None;
        }
        if self.fitted == 0 || self.points.len() >= self.fitted + (self.fitted / NEWS).max(1) {
            self.rank(space, unseen, rng);
        }
        loop {
            let point = self.ranked[worth as usize].pop()?;
            if unseen.take(&point) {
                return Some(point);
            }
        }
    }

    /// Grows trees on all observations and ranks candidates by them.
    fn rank(&mut self, space: &dyn Space, unseen: &mut Unseen, rng: &mut ChaCha8Rng) {
        self.fitted = self.points.len();
        let (samples, best) = self.samples();
        let width = self.rows.len() / self.points.len();
        let forest = Forest::grow(&self.rows, width, &samples, rng);
        let mut candidates = unseen.candidates(space, DRAWN, rng);
        let drawn = candidates.len();
        let sizes = space.sizes();
        for leader in self.order.iter().take(LEADERS) {
            let near = hamming(&self.points[*leader], &sizes);
            candidates.extend(near.into_iter().filter(|p| unseen.has(space, p)));
        }
        let Some(features) = &self.features else { return };
        let mut row = Vec::new();
        let mut scores: [Vec<(f32, usize)>; WORTHS] = Default::default();
        for (i, point) in candidates.iter().enumerate() {
            row.clear();
            features.extend(point, &mut row);
            let predicted = forest.predict(&row);
            let gain = gain(&predicted, best) + success(&predicted);
            scores[Worth::Gain as usize].push((gain, i));
            let bound = promise(&predicted) + BOUND * predicted.deviation;
            scores[Worth::Bound as usize].push((bound, i));
            if i >= drawn {
                scores[Worth::Near as usize].push((promise(&predicted), i));
            }
        }
        for (ranked, mut scores) in self.ranked.iter_mut().zip(scores) {
            scores.sort_by(|a, b| b.0.total_cmp(&a.0));
            scores.truncate(RANKED);
            *ranked = scores.iter().rev().map(|(_, i)| candidates[*i].clone()).collect();
        }
        self.forest = Some(forest);
    }

    /// Sorts points by what the latest trees predict, the best last.
    pub fn sort(&self, points: &mut Vec<Point>) {
        let (Some(features), Some(forest)) = (&self.features, &self.forest) else { return };
        let mut row = Vec::new();
        let mut sorted: Vec<(f32, Point)> = std::mem::take(points)
            .into_iter()
            .map(|point| {
                row.clear();
                features.extend(&point, &mut row);
                (promise(&forest.predict(&row)), point)
            })
            .collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.extend(sorted.into_iter().map(|(_, point)| point));
    }

    /// What the trees learn from, objectives scaled to a mean of 0 and a deviation of 1, and the
    /// best of them.
    fn samples(&self) -> (Vec<Sample>, f32) {
        let known: Vec<f64> = self.order.iter().filter_map(|i| self.objectives[*i]).collect();
        let scale = Scale::of(&known);
        let samples = self.objectives.iter().zip(&self.costs).map(|(objective, cost)| Sample {
            value: objective.map(|o| scale.scaled(o) as f32),
            cost: cost.max(1e-6).ln() as f32,
        });
        (samples.collect(), scale.scaled(known[0]) as f32)
    }
}

/// Logarithm of the probability of not failing.
fn success(predicted: &Prediction) -> f32 {
    (1.0 - predicted.failure).max(1e-3).ln()
}

/// How good a point is expected to be.
fn promise(predicted: &Prediction) -> f32 {
    success(predicted) - predicted.mean
}

/// Logarithm of the expected improvement over `best`, for the cost.
fn gain(predicted: &Prediction, best: f32) -> f32 {
    let deviation = f64::from(predicted.deviation.max(1e-3));
    let improvement =
        log_expected_improvement(f64::from(predicted.mean), deviation, f64::from(best));
    improvement as f32 - COST * predicted.cost
}
