//! A start guided by a model: the points that the space predicts to be best, then what the default
//! strategy makes of their results.

use super::portfolio::Portfolio;
use super::{Evaluation, Point, Space, Strategy};

/// Predicted points proposed before the portfolio takes over: a model that ranks well has the best
/// among its first few, and one that does not is found out by as many.
const START: usize = 16;

/// The best predictions first, then the portfolio.
pub struct Guided {
    portfolio: Portfolio,
    /// Predicted best points, the next one last; `None` before the first proposal.
    start: Option<Vec<Point>>,
}

impl Guided {
    /// A repeatable search.
    pub fn new(seed: u64) -> Self {
        Self { portfolio: Portfolio::new(seed), start: None }
    }
}

impl Strategy for Guided {
    fn name(&self) -> &'static str {
        "guided"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        let start = self.start.get_or_insert_with(|| {
            let mut best = space.predicted_best();
            best.retain(|point| space.is_valid(point));
            best.truncate(START);
            best.reverse();
            best
        });
        while let Some(point) = start.pop() {
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
