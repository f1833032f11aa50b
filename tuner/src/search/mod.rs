//! Search over a space of discrete parameters. Nothing here knows what is searched: a point is one
//! value index per parameter, and a space says how many values there are and which points are valid.
//!
//! One strategy a file behind one interface: a strategy proposes points and is told what became of
//! them. All are seeded and repeatable: the same answers lead to the same proposals.

mod annealing;
mod exhaustive;
pub mod expression;
mod features;
mod forest;
mod gaussian;
mod genetic;
mod guided;
pub mod importance;
mod improvement;
mod likeness;
mod local;
mod model;
mod moves;
pub mod parameters;
mod portfolio;
mod process;
mod random;
mod surrogate;
mod unseen;
mod walk;

pub use annealing::Annealing;
pub use exhaustive::Exhaustive;
pub use expression::{Expression, ExpressionError, Value};
pub use gaussian::Gaussian;
pub use genetic::Genetic;
pub use guided::Guided;
pub use local::Local;
pub use moves::neighbours;
pub use parameters::ParameterSpace;
pub use portfolio::Portfolio;
pub use random::Random;
pub use surrogate::Surrogate;

/// One value index per parameter.
pub type Point = Vec<usize>;

/// What a strategy sees of a search space.
pub trait Space {
    /// Number of values of each parameter.
    fn sizes(&self) -> Vec<usize>;

    /// Whether a point keeps all constraints.
    fn is_valid(&self, point: &[usize]) -> bool;

    /// Whether the values of a parameter are in an order that means something, as sizes are and
    /// names are not.
    fn is_ordered(&self, _parameter: usize) -> bool {
        true
    }

    /// The number that a value stands for, such as a size, where it stands for one.
    fn number(&self, _parameter: usize, _value: usize) -> Option<f64> {
        None
    }

    /// Valid points that a model takes for the best, the best first, where there is a model.
    fn predicted_best(&self) -> Vec<Point> {
        Vec::new()
    }
}

/// What became of a proposed point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation<'a> {
    /// The point.
    pub point: &'a [usize],
    /// What is minimised, in any unit but always the same; `None` where the point failed: it did
    /// not compile, crashed, hung or computed something wrong.
    pub objective: Option<f64>,
    /// Seconds that finding this out took, compiling included.
    pub cost_seconds: f64,
}

/// Proposes points, each at most once.
pub trait Strategy: Send {
    /// Name, as records and the command line spell it.
    fn name(&self) -> &'static str;

    /// The next valid point, or `None` when there are no more. It may be asked for several points
    /// before it is told of the first, where candidates are compiled side by side.
    fn propose(&mut self, space: &dyn Space) -> Option<Point>;

    /// Learns what became of a point, which need not be one that it proposed.
    fn observe(&mut self, _space: &dyn Space, _evaluation: &Evaluation<'_>) {}
}

/// The names that [`strategy`] takes.
pub const STRATEGIES: [&str; 9] = [
    "portfolio",
    "guided",
    "gaussian",
    "surrogate",
    "genetic",
    "annealing",
    "local",
    "random",
    "exhaustive",
];

/// The strategy for callers that have no reason to choose another.
pub const DEFAULT_STRATEGY: &str = "portfolio";

/// The strategy of a name; `None` for an unknown one.
pub fn strategy(name: &str, seed: u64) -> Option<Box<dyn Strategy>> {
    match name {
        "portfolio" => Some(Box::new(Portfolio::new(seed))),
        "guided" => Some(Box::new(Guided::new(seed))),
        "gaussian" => Some(Box::new(Gaussian::new(seed))),
        "surrogate" => Some(Box::new(Surrogate::new(seed))),
        "genetic" => Some(Box::new(Genetic::new(seed))),
        "annealing" => Some(Box::new(Annealing::new(seed))),
        "local" => Some(Box::new(Local::new(seed))),
        "random" => Some(Box::new(Random::new(seed))),
        "exhaustive" => Some(Box::new(Exhaustive::default())),
        _ => None,
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

    /// How many there are, where that is a number.
    fn count(sizes: &[usize]) -> Option<usize> {
        sizes.iter().try_fold(1, |product: usize, size| product.checked_mul(*size))
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
