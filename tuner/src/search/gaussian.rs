//! Bayesian optimisation with a Gaussian process: after the middle of the space and a random point,
//! the one of the highest expected improvement, by its chance of not failing.

use super::process::Process;
use super::unseen::Unseen;
use super::{Evaluation, Point, Space, Strategy};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Points before there is anything to model: two make a first difference.
const START: usize = 2;

/// Expected improvement by a Gaussian process.
pub struct Gaussian {
    rng: ChaCha8Rng,
    unseen: Unseen,
    process: Process,
    proposed: usize,
}

impl Gaussian {
    /// A repeatable search.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            unseen: Unseen::default(),
            process: Process::default(),
            proposed: 0,
        }
    }
}

impl Strategy for Gaussian {
    fn name(&self) -> &'static str {
        "gaussian"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        self.proposed += 1;
        if self.proposed == 1
            && let Some(point) = self.process.middle(space, &mut self.unseen, &mut self.rng)
        {
            return Some(point);
        }
        if self.proposed > START
            && let Some(point) = self.process.take(space, &mut self.unseen, &mut self.rng)
        {
            return Some(point);
        }
        self.unseen.draw(space, &mut self.rng)
    }

    fn observe(&mut self, space: &dyn Space, evaluation: &Evaluation<'_>) {
        self.unseen.take(evaluation.point);
        self.process.observe(space, evaluation);
    }
}
