//! Random search: what every other strategy is measured against.

use super::{Point, Points, Space, Strategy};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

/// Valid points drawn uniformly without replacement.
pub struct Random {
    rng: ChaCha8Rng,
    seen: HashSet<Point>,
    /// Set when drawing blindly has become hopeless: all valid points not yet proposed.
    rest: Option<Vec<Point>>,
}

/// Blind draws for one proposal before the space is enumerated instead.
const BLIND_DRAWS: usize = 100_000;

impl Random {
    /// A repeatable sequence.
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), seen: HashSet::new(), rest: None }
    }
}

impl Strategy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        let sizes = space.sizes();
        if sizes.contains(&0) {
            return None;
        }
        if self.rest.is_none() {
            for _ in 0..BLIND_DRAWS {
                let point: Point = sizes.iter().map(|n| self.rng.random_range(0..*n)).collect();
                if space.is_valid(&point) && self.seen.insert(point.clone()) {
                    return Some(point);
                }
            }
            let mut rest: Vec<Point> = Points::new(sizes)
                .filter(|p| space.is_valid(p) && !self.seen.contains(p))
                .collect();
            rand::seq::SliceRandom::shuffle(&mut rest[..], &mut self.rng);
            self.rest = Some(rest);
        }
        self.rest.as_mut()?.pop()
    }
}
