//! Simulated annealing (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983), on the relative change
//! of the objective so that it needs no scale.

use super::moves::hamming;
use super::unseen::Unseen;
use super::{Evaluation, Point, Space, Strategy, neighbours};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Relative worsening that is accepted with probability 1/e at the start.
const HOT: f64 = 0.5;
/// And once cold: about what measuring noise is.
const COLD: f64 = 0.005;
/// Factor a proposal; 200 proposals cool from hot to nearly cold.
const COOLING: f64 = 0.98;
/// Share of moves that change one parameter to any value, not to the next one.
const JUMPS: f64 = 0.3;
/// Neighbours all taken in a row before the walk restarts elsewhere.
const PATIENCE: usize = 30;

/// One walk that accepts worse points ever more rarely, and restarts hot where it is stuck.
pub struct Annealing {
    rng: ChaCha8Rng,
    unseen: Unseen,
    current: Option<(Point, f64)>,
    temperature: f64,
}

impl Annealing {
    /// A repeatable walk.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            unseen: Unseen::default(),
            current: None,
            temperature: HOT,
        }
    }
}

impl Strategy for Annealing {
    fn name(&self) -> &'static str {
        "annealing"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        self.temperature = (self.temperature * COOLING).max(COLD);
        if let Some((point, _)) = &self.current {
            let near = neighbours(space, point);
            let far = hamming(point, &space.sizes());
            for _ in 0..PATIENCE {
                let moves = if self.rng.random_bool(JUMPS) { &far } else { &near };
                let Some(next) = moves.choose(&mut self.rng) else { break };
                if self.unseen.has(space, next) {
                    self.unseen.take(next);
                    return Some(next.clone());
                }
            }
            self.current = None;
            self.temperature = HOT;
        }
        self.unseen.draw(space, &mut self.rng)
    }

    fn observe(&mut self, _space: &dyn Space, evaluation: &Evaluation<'_>) {
        self.unseen.take(evaluation.point);
        let Some(objective) = evaluation.objective else { return };
        let accepted = match &self.current {
            None => true,
            Some((_, current)) => {
                let worse = (objective - current) / current.abs().max(f64::MIN_POSITIVE);
                worse <= 0.0 || self.rng.random_range(0.0..1.0) < (-worse / self.temperature).exp()
            }
        };
        if accepted {
            self.current = Some((evaluation.point.to_vec(), objective));
        }
    }
}
