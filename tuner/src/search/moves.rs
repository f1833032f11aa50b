//! What lies next to a point: the moves of local search, annealing and refinement.

use super::{Point, Space, neighbours};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

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
