//! Random search: what every other strategy is measured against.

use super::unseen::Unseen;
use super::{Evaluation, Point, Space, Strategy};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Valid points drawn uniformly without replacement.
pub struct Random {
    rng: ChaCha8Rng,
    unseen: Unseen,
}

impl Random {
    /// A repeatable sequence.
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), unseen: Unseen::default() }
    }
}

impl Strategy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        self.unseen.draw(space, &mut self.rng)
    }

    fn observe(&mut self, _space: &dyn Space, evaluation: &Evaluation<'_>) {
        self.unseen.take(evaluation.point);
    }
}
