//! Which points are left, so that every strategy proposes a valid point at most once and, once its
//! own ideas run out, goes on until no valid point is left.

use super::{Point, Points, Space};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

/// Blind draws for one point before the space is enumerated instead.
pub(super) const BLIND_DRAWS: usize = 100_000;

/// Blind draws for one candidate of a space that is not listed.
const CANDIDATE_DRAWS: usize = 200;
/// Products of sizes up to which the valid points are listed once, rather than drawn blindly.
const LISTED: usize = 200_000;

/// The points not yet proposed nor observed.
#[derive(Default)]
pub(super) struct Unseen {
    seen: HashSet<Point>,
    /// Set when drawing blindly has become hopeless: all valid points that were left then.
    rest: Option<Vec<Point>>,
    /// Valid points of a small space, where candidates of it were asked for.
    listed: Option<Vec<Point>>,
}

impl Unseen {
    /// Whether a point is valid and was not taken.
    pub fn has(&self, space: &dyn Space, point: &[usize]) -> bool {
        !self.seen.contains(point) && space.is_valid(point)
    }

    /// Takes a point out; whether it was still there.
    pub fn take(&mut self, point: &[usize]) -> bool {
        !self.seen.contains(point) && self.seen.insert(point.to_vec())
    }

    /// Draws a valid point uniformly and takes it out.
    pub fn draw(&mut self, space: &dyn Space, rng: &mut ChaCha8Rng) -> Option<Point> {
        let sizes = space.sizes();
        if self.rest.is_none() {
            if let Some(point) = self.peek(space, &sizes, rng, BLIND_DRAWS) {
                self.take(&point);
                return Some(point);
            }
            let mut rest: Vec<Point> = Points::new(sizes).filter(|p| self.has(space, p)).collect();
            rest.shuffle(rng);
            self.rest = Some(rest);
        }
        let rest = self.rest.as_mut()?;
        while let Some(point) = rest.pop() {
            if self.seen.insert(point.clone()) {
                return Some(point);
            }
        }
        None
    }

    /// At most `count` points that are left, of the whole space; they stay. There may be some twice.
    pub fn candidates(
        &mut self,
        space: &dyn Space,
        count: usize,
        rng: &mut ChaCha8Rng,
    ) -> Vec<Point> {
        let sizes = space.sizes();
        if Points::count(&sizes).is_none_or(|n| n > LISTED) {
            let draws = (0..count).filter_map(|_| self.peek(space, &sizes, rng, CANDIDATE_DRAWS));
            return draws.collect();
        }
        let listed = self
            .listed
            .get_or_insert_with(|| Points::new(sizes).filter(|p| space.is_valid(p)).collect());
        listed.retain(|p| !self.seen.contains(p));
        if listed.len() <= count {
            return listed.clone();
        }
        (0..count).map(|_| listed[rng.random_range(0..listed.len())].clone()).collect()
    }

    /// A uniform valid point that is left, where one turns up within `draws` blind draws; it stays.
    pub fn peek(
        &self,
        space: &dyn Space,
        sizes: &[usize],
        rng: &mut ChaCha8Rng,
        draws: usize,
    ) -> Option<Point> {
        if sizes.contains(&0) {
            return None;
        }
        let mut point = vec![0; sizes.len()];
        for _ in 0..draws {
            for (index, size) in point.iter_mut().zip(sizes) {
                *index = rng.random_range(0..*size);
            }
            if self.has(space, &point) {
                return Some(point);
            }
        }
        None
    }
}
