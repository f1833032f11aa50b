//! Exhaustive search: every valid point, for small spaces and for the truth.

use super::{Point, Points, Space, Strategy};

/// Every valid point in lexical order.
#[derive(Default)]
pub struct Exhaustive {
    points: Option<Points>,
}

impl Strategy for Exhaustive {
    fn name(&self) -> &'static str {
        "exhaustive"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        let points = self.points.get_or_insert_with(|| Points::new(space.sizes()));
        points.find(|p| space.is_valid(p))
    }
}
