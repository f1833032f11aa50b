//! Descents from random points: what finds a narrow valley beside a wide plateau, where a model sees
//! no reason to look. Neighbours are tried in the order of their predictions, which makes a descent
//! shorter than plain local search.

use super::model::Model;
use super::moves::by_distance;
use super::unseen::Unseen;
use super::{Evaluation, Point, Space};
use rand_chacha::ChaCha8Rng;

/// One descent after the other.
pub(super) struct Walk {
    /// Objective of where the descent stands; infinite until its start is known.
    current: f64,
    /// Neighbours of that place that were not tried, the next one last.
    untried: Vec<Point>,
}

impl Walk {
    pub fn new() -> Self {
        Self { current: f64::INFINITY, untried: Vec::new() }
    }

    /// Takes the next neighbour, or the start of the next descent.
    pub fn take(
        &mut self,
        space: &dyn Space,
        unseen: &mut Unseen,
        rng: &mut ChaCha8Rng,
    ) -> Option<Point> {
        while let Some(point) = self.untried.pop() {
            if unseen.take(&point) {
                return Some(point);
            }
        }
        self.current = f64::INFINITY;
        unseen.draw(space, rng)
    }

    /// Steps to a point that is better than where the descent stands.
    pub fn observe(
        &mut self,
        space: &dyn Space,
        evaluation: &Evaluation<'_>,
        model: &Model,
        unseen: &Unseen,
        rng: &mut ChaCha8Rng,
    ) {
        if let Some(objective) = evaluation.objective.filter(|o| *o < self.current) {
            self.current = objective;
            self.untried = by_distance(space, evaluation.point, rng);
            self.untried.retain(|p| unseen.has(space, p));
            model.sort(&mut self.untried);
        }
    }
}
