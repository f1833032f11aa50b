//! A start guided by a model: the points that the space predicts to be best, then what the default
//! strategy makes of their results.

use super::portfolio::Portfolio;
use super::unseen::{BLIND_DRAWS, Unseen};
use super::{Evaluation, Point, Points, Space, Strategy};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Predicted points proposed before the portfolio takes over.
const START: usize = 16;
/// Points whose predictions are compared: all where there are no more, else a random sample.
const COMPARED: usize = 20_000;

/// The best predictions first, then the portfolio.
pub struct Guided {
    rng: ChaCha8Rng,
    portfolio: Portfolio,
    /// Predicted best points, the next one last; `None` before the first proposal.
    start: Option<Vec<Point>>,
}

impl Guided {
    /// A repeatable search.
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), portfolio: Portfolio::new(seed), start: None }
    }

    /// What the space predicts to be best, the best last; empty where it predicts nothing.
    fn ranking(&mut self, space: &dyn Space) -> Vec<Point> {
        let sizes = space.sizes();
        let points: Vec<Point> = if Points::count(&sizes).is_some_and(|n| n <= COMPARED) {
            Points::new(sizes).filter(|p| space.is_valid(p)).collect()
        } else {
            let draws = (0..COMPARED)
                .map_while(|_| Unseen::default().peek(space, &sizes, &mut self.rng, BLIND_DRAWS));
            draws.collect()
        };
        let mut predicted: Vec<(f64, Point)> =
            points.into_iter().filter_map(|p| Some((space.predicted(&p)?, p))).collect();
        predicted.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        predicted.dedup();
        predicted.truncate(START);
        predicted.into_iter().rev().map(|(_, point)| point).collect()
    }
}

impl Strategy for Guided {
    fn name(&self) -> &'static str {
        "guided"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        if self.start.is_none() {
            self.start = Some(self.ranking(space));
        }
        while let Some(point) = self.start.as_mut().and_then(Vec::pop) {
            if self.portfolio.take(&point) {
                return Some(point);
            }
        }
        self.portfolio.propose(space)
    }

    fn observe(&mut self, space: &dyn Space, evaluation: &Evaluation<'_>) {
        self.portfolio.observe(space, evaluation);
    }
}
