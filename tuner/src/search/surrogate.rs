//! Bayesian optimisation with trees: after a random start, the point of the highest expected
//! improvement for its cost (Jones, Schonlau and Welch, 1998).

use super::model::{Model, Worth};
use super::unseen::Unseen;
use super::{Evaluation, Point, Space, Strategy};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Random points before there is anything to model.
const START: usize = 10;

/// Expected improvement per second.
pub struct Surrogate {
    rng: ChaCha8Rng,
    unseen: Unseen,
    model: Model,
    proposed: usize,
}

impl Surrogate {
    /// A repeatable search.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            unseen: Unseen::default(),
            model: Model::default(),
            proposed: 0,
        }
    }
}

impl Strategy for Surrogate {
    fn name(&self) -> &'static str {
        "surrogate"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        self.proposed += 1;
        if self.proposed > START
            && let Some(point) =
                self.model.take(space, Worth::Gain, &mut self.unseen, &mut self.rng)
        {
            return Some(point);
        }
        self.unseen.draw(space, &mut self.rng)
    }

    fn observe(&mut self, space: &dyn Space, evaluation: &Evaluation<'_>) {
        self.unseen.take(evaluation.point);
        self.model.observe(space, evaluation);
    }
}
