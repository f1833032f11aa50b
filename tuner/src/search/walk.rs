//! Descents that find a narrow valley beside a wide plateau, where a model sees no reason to look:
//! in turns from known points that are good but unlike, where neighbours are tried in the order of
//! their predictions, and from anywhere, without asking the model, as plain local search does.

use super::model::Model;
use super::moves::by_distance;
use super::unseen::Unseen;
use super::{Evaluation, Point, Space};
use rand_chacha::ChaCha8Rng;

/// Neighbours tried before a guided descent is given up: predictions put the better ones first.
const PATIENCE: usize = 12;
/// Parameters in which the start of a guided descent differs from every place where one has stood.
const APART: usize = 3;

/// One descent after the other.
#[derive(Default)]
pub(super) struct Walk {
    /// Whether this descent asks the model.
    guided: bool,
    /// Objective of where the descent stands.
    current: f64,
    /// Neighbours of that place that were not tried, the next one last.
    untried: Vec<Point>,
    /// Where descents have stood.
    stood: Vec<Point>,
}

impl Walk {
    /// Takes the next neighbour, or the start of the next descent.
    pub fn take(
        &mut self,
        space: &dyn Space,
        model: &Model,
        unseen: &mut Unseen,
        rng: &mut ChaCha8Rng,
    ) -> Option<Point> {
        loop {
            while let Some(point) = self.untried.pop() {
                if unseen.take(&point) {
                    return Some(point);
                }
            }
            self.guided = !self.guided;
            let start = if self.guided { self.start(model) } else { None };
            let Some((start, objective)) = start else {
                self.guided = false;
                self.current = f64::INFINITY;
                return unseen.draw(space, rng);
            };
            self.stand(space, start, objective, model, unseen, rng);
        }
    }

    /// The best known point that is unlike every place where a descent has stood.
    fn start<'m>(&self, model: &'m Model) -> Option<(&'m Point, f64)> {
        let apart = |a: &Point, b: &Point| a.iter().zip(b).filter(|(a, b)| a != b).count();
        model.ranking().find(|(point, _)| self.stood.iter().all(|s| apart(s, point) >= APART))
    }

    /// Goes on from a point, with its neighbours.
    fn stand(
        &mut self,
        space: &dyn Space,
        point: &[usize],
        objective: f64,
        model: &Model,
        unseen: &Unseen,
        rng: &mut ChaCha8Rng,
    ) {
        self.current = objective;
        self.untried = by_distance(space, point, rng);
        self.untried.retain(|p| unseen.has(space, p));
        if self.guided {
            model.sort(&mut self.untried);
            self.untried.drain(..self.untried.len().saturating_sub(PATIENCE));
        }
        self.stood.push(point.to_vec());
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
            self.stand(space, evaluation.point, objective, model, unseen, rng);
        }
    }
}
