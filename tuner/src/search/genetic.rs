//! A genetic algorithm (Holland, 1975) in its steady-state form: one child at a time, which takes
//! the place of the worst.

use super::unseen::Unseen;
use super::{Evaluation, Point, Space, Strategy};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Points kept. Small, because a few hundred evaluations are all there is.
const POPULATION: usize = 20;
/// Points that a parent is the best of.
const TOURNAMENT: usize = 3;
/// Children drawn for one that is valid and new, before a random point takes its place.
const TRIES: usize = 50;
/// Mutated parameters a child, on average.
const MUTATIONS: f64 = 1.2;

/// Uniform crossover of two parents chosen by tournament, then mutation.
pub struct Genetic {
    rng: ChaCha8Rng,
    unseen: Unseen,
    /// Best first.
    population: Vec<(f64, Point)>,
    proposed: usize,
}

impl Genetic {
    /// A repeatable evolution.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            unseen: Unseen::default(),
            population: Vec::new(),
            proposed: 0,
        }
    }

    fn parent(&mut self) -> Point {
        let ranks = (0..TOURNAMENT).map(|_| self.rng.random_range(0..self.population.len()));
        let best = ranks.min().unwrap_or(0);
        self.population[best].1.clone()
    }

    fn child(&mut self, space: &dyn Space) -> Point {
        let sizes = space.sizes();
        let (mut child, other) = (self.parent(), self.parent());
        let varying = sizes.iter().filter(|s| **s > 1).count().max(1) as f64;
        for (parameter, size) in sizes.iter().enumerate() {
            if self.rng.random_bool(0.5) {
                child[parameter] = other[parameter];
            }
            if self.rng.random_bool((MUTATIONS / varying).min(1.0)) {
                child[parameter] = self.rng.random_range(0..*size);
            }
        }
        child
    }
}

impl Strategy for Genetic {
    fn name(&self) -> &'static str {
        "genetic"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        self.proposed += 1;
        if self.proposed > POPULATION && !self.population.is_empty() {
            for _ in 0..TRIES {
                let child = self.child(space);
                if self.unseen.has(space, &child) {
                    self.unseen.take(&child);
                    return Some(child);
                }
            }
        }
        self.unseen.draw(space, &mut self.rng)
    }

    fn observe(&mut self, _space: &dyn Space, evaluation: &Evaluation<'_>) {
        self.unseen.take(evaluation.point);
        let Some(objective) = evaluation.objective else { return };
        let rank = self.population.partition_point(|(o, _)| *o <= objective);
        self.population.insert(rank, (objective, evaluation.point.to_vec()));
        self.population.truncate(POPULATION);
    }
}
