//! Greedy local search with restarts, as every public tuner has it: from a random point to the
//! first better neighbour, and from a new random point where there is none. Steps to the next value
//! come before jumps to any value of one parameter.

use super::moves::by_distance;
use super::unseen::Unseen;
use super::{Evaluation, Point, Space, Strategy};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// First-improvement local search over all points that differ in one parameter.
pub struct Local {
    rng: ChaCha8Rng,
    unseen: Unseen,
    current: Option<(Point, f64)>,
    /// Neighbours of it that were not tried, the next one last.
    untried: Vec<Point>,
    /// Start that was proposed and whose objective is not known yet.
    start: Option<Point>,
}

impl Local {
    /// A repeatable walk.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            unseen: Unseen::default(),
            current: None,
            untried: Vec::new(),
            start: None,
        }
    }
}

impl Strategy for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        while let Some(point) = self.untried.pop() {
            if self.unseen.has(space, &point) {
                self.unseen.take(&point);
                return Some(point);
            }
        }
        self.current = None;
        self.start = self.unseen.draw(space, &mut self.rng);
        self.start.clone()
    }

    fn observe(&mut self, space: &dyn Space, evaluation: &Evaluation<'_>) {
        self.unseen.take(evaluation.point);
        let Some(objective) = evaluation.objective else { return };
        let better = match &self.current {
            Some((_, current)) => objective < *current,
            // A walk that has ended goes on from its new start, not from a late answer.
            None => self.start.as_deref().is_none_or(|start| start == evaluation.point),
        };
        if !better {
            return;
        }
        self.untried = by_distance(space, evaluation.point, &mut self.rng);
        self.current = Some((evaluation.point.to_vec(), objective));
    }
}
