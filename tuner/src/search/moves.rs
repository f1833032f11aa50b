//! What lies next to a point: the moves of local search, annealing and refinement.

use super::{Point, Space};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Valid points that differ from `point` in one parameter: by a step where its values are ordered,
/// in any way where they are not.
pub fn neighbours(space: &dyn Space, point: &[usize]) -> Vec<Point> {
    let mut found = Vec::new();
    for (parameter, size) in space.sizes().into_iter().enumerate().take(point.len()) {
        let current = point[parameter];
        let ordered = space.is_ordered(parameter);
        for value in (0..size).filter(|v| *v != current) {
            if ordered && value.abs_diff(current) > 1 {
                continue;
            }
            let mut neighbour = point.to_vec();
            neighbour[parameter] = value;
            if space.is_valid(&neighbour) {
                found.push(neighbour);
            }
        }
    }
    found
}

/// Every point that differs in one parameter.
pub(super) fn hamming(point: &[usize], sizes: &[usize]) -> Vec<Point> {
    let mut neighbours = Vec::new();
    for (parameter, size) in sizes.iter().enumerate() {
        for value in (0..*size).filter(|v| *v != point[parameter]) {
            let mut neighbour = point.to_vec();
            neighbour[parameter] = value;
            neighbours.push(neighbour);
        }
    }
    neighbours
}

/// Every point that differs in one parameter, in random order but for adjacent ones, which are last:
/// the first to be popped.
pub(super) fn by_distance(space: &dyn Space, point: &[usize], rng: &mut ChaCha8Rng) -> Vec<Point> {
    let sizes = space.sizes();
    let near = neighbours(space, point);
    let mut by_distance = hamming(point, &sizes);
    by_distance.retain(|p| !near.contains(p));
    by_distance.shuffle(rng);
    let far = by_distance.len();
    by_distance.extend(near);
    by_distance[far..].shuffle(rng);
    by_distance
}
