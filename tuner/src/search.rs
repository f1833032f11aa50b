//! Search over a space of discrete parameters. Nothing here knows what is searched: a point is one
//! value index per parameter, and a space says how many values there are and which points are valid.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

/// One value index per parameter.
pub type Point = Vec<usize>;

/// What a strategy sees of a search space.
pub trait Space {
    /// Number of values of each parameter.
    fn sizes(&self) -> Vec<usize>;

    /// Whether a point keeps all constraints.
    fn is_valid(&self, point: &[usize]) -> bool;
}

/// Proposes points, each at most once.
pub trait Strategy: Send {
    /// Name, as records and the command line spell it.
    fn name(&self) -> &'static str;

    /// The next valid point, or `None` when there are no more.
    fn propose(&mut self, space: &dyn Space) -> Option<Point>;
}

/// The names that [`strategy`] takes.
pub const STRATEGIES: [&str; 2] = ["random", "exhaustive"];

/// The strategy of a name; `None` for an unknown one.
pub fn strategy(name: &str, seed: u64) -> Option<Box<dyn Strategy>> {
    match name {
        "random" => Some(Box::new(Random::new(seed))),
        "exhaustive" => Some(Box::new(Exhaustive::default())),
        _ => None,
    }
}

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

/// All points of a product, the last parameter changing fastest.
struct Points {
    sizes: Vec<usize>,
    next: Option<Point>,
}

impl Points {
    fn new(sizes: Vec<usize>) -> Self {
        let next = (!sizes.contains(&0)).then(|| vec![0; sizes.len()]);
        Self { sizes, next }
    }
}

impl Iterator for Points {
    type Item = Point;

    fn next(&mut self) -> Option<Point> {
        let current = self.next.take()?;
        let mut following = current.clone();
        for (index, size) in following.iter_mut().zip(&self.sizes).rev() {
            *index += 1;
            if *index < *size {
                self.next = Some(following);
                break;
            }
            *index = 0;
        }
        Some(current)
    }
}

#[cfg(test)]
mod tests {
    use super::{Exhaustive, Point, Points, Random, Space, Strategy};
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    /// Points whose indices add up to a multiple of `divisor`.
    struct Sums {
        sizes: Vec<usize>,
        divisor: usize,
    }

    impl Space for Sums {
        fn sizes(&self) -> Vec<usize> {
            self.sizes.clone()
        }

        fn is_valid(&self, point: &[usize]) -> bool {
            point.iter().sum::<usize>().is_multiple_of(self.divisor)
        }
    }

    fn all(strategy: &mut dyn Strategy, space: &Sums) -> Vec<Point> {
        std::iter::from_fn(|| strategy.propose(space)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Both strategies propose each valid point once and nothing else, random ones repeatably.
        #[test]
        fn strategies_cover_the_valid_points(
            sizes in proptest::collection::vec(0..5usize, 1..4), divisor in 1..6usize, seed: u64,
        ) {
            let space = Sums { sizes, divisor };
            let exhaustive = all(&mut Exhaustive::default(), &space);
            let expected = Points::new(space.sizes()).filter(|p| space.is_valid(p)).count();
            prop_assert_eq!(exhaustive.len(), expected);
            prop_assert!(exhaustive.windows(2).all(|w| w[0] < w[1]), "lexical order");
            let random = all(&mut Random::new(seed), &space);
            prop_assert_eq!(&random, &all(&mut Random::new(seed), &space));
            let mut sorted = random;
            sorted.sort();
            prop_assert_eq!(sorted, exhaustive);
        }
    }
}
