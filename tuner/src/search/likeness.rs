//! How alike points are: the covariance of a Gaussian process, its Cholesky factor, and the lengths
//! that make what was observed most likely (Rasmussen and Williams, 2006, chapters 2, 4 and 5).
//! Written out because it is a page and grows by single rows, which libraries' factors do not.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Step in the logarithm of a length, and how many are taken one way before the next length's turn.
const STEP: f64 = 0.45;
const STEPS: usize = 4;
/// Variance of the noise, in that of the process: at first, and its bounds.
const NOISE: f64 = 1e-3;
const LEAST_NOISE: f64 = 1e-5;
const MOST_NOISE: f64 = 0.5;

/// A Matérn 5/2 covariance with a length for every coordinate.
#[derive(Clone, Debug)]
pub(super) struct Likeness {
    /// Logarithm of the length of each coordinate, whose range is one.
    lengths: Vec<f64>,
    noise: f64,
}

impl Likeness {
    /// Before anything is known.
    pub fn new(coordinates: usize) -> Self {
        Self { lengths: vec![0.0; coordinates], noise: NOISE }
    }

    /// A row of coordinates in lengths, as [`Self::between`] takes it.
    pub fn scaled(&self, row: &[f64]) -> Vec<f64> {
        row.iter().zip(&self.lengths).map(|(x, length)| x * (-length).exp()).collect()
    }

    /// Covariance of two scaled rows, from 0 to 1.
    pub fn between(a: &[f64], b: &[f64]) -> f64 {
        let square: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
        let r = (5.0 * square).sqrt();
        (1.0 + r + r * r / 3.0) * (-r).exp()
    }

    /// Variance of a point that was observed.
    pub fn own(&self) -> f64 {
        1.0 + self.noise
    }

    /// Moves the lengths and the noise uphill on the likelihood of `values`, by coordinates.
    pub fn fit(&mut self, rows: &[Vec<f64>], values: &[f64], rng: &mut ChaCha8Rng) {
        let mut most = self.log_likelihood(rows, values);
        let mut better = |tried: &Self| {
            let likelihood = tried.log_likelihood(rows, values);
            let better = likelihood > most + 1e-6;
            if better {
                most = likelihood;
            }
            better
        };
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        order.shuffle(rng);
        for coordinate in order {
            for step in [-STEP, STEP] {
                for _ in 0..STEPS {
                    let mut tried = self.clone();
                    tried.lengths[coordinate] += step;
                    if !better(&tried) {
                        break;
                    }
                    *self = tried;
                }
            }
        }
        for times in [0.1, 10.0] {
            let noise = self.noise * times;
            let tried = Self { noise, ..self.clone() };
            if (LEAST_NOISE..MOST_NOISE).contains(&noise) && better(&tried) {
                *self = tried;
            }
        }
    }

    /// Logarithm of the likelihood of `values`, its variance being the likeliest, and of the lengths,
    /// whose logarithms are taken as standard normal; without constants.
    fn log_likelihood(&self, rows: &[Vec<f64>], values: &[f64]) -> f64 {
        let rows: Vec<Vec<f64>> = rows.iter().map(|row| self.scaled(row)).collect();
        let mut factor = Factor::default();
        let mut weights = Vec::with_capacity(values.len());
        let mut likelihood = 0.0;
        for (i, value) in values.iter().enumerate() {
            let covariances = rows[..i].iter().map(|row| Self::between(row, &rows[i]));
            factor.push(covariances.collect(), self.own());
            let (row, diagonal) = factor.row(i);
            likelihood -= diagonal.ln();
            weights.push((value - dot(row, &weights)) / diagonal);
        }
        let n = values.len() as f64;
        likelihood -= 0.5 * n * (dot(&weights, &weights) / n + 1e-12).ln();
        likelihood - 0.5 * dot(&self.lengths, &self.lengths)
    }
}

/// A Cholesky factor that grows: the rows of a lower triangle.
#[derive(Debug, Default)]
pub(super) struct Factor(Vec<Vec<f64>>);

impl Factor {
    /// Adds the row of a point of the given covariances with the earlier ones and itself.
    pub fn push(&mut self, covariances: Vec<f64>, own: f64) {
        let mut row = covariances;
        self.solve(&mut row, 0);
        let diagonal = (own - dot(&row, &row)).max(1e-12).sqrt();
        row.push(diagonal);
        self.0.push(row);
    }

    /// Turns covariances into the factor's inverse by them, from element `from` on: those before
    /// are done.
    pub fn solve(&self, column: &mut [f64], from: usize) {
        for i in from..column.len() {
            let (done, rest) = column.split_at_mut(i);
            let (row, diagonal) = self.row(i);
            rest[0] = (rest[0] - dot(row, done)) / diagonal;
        }
    }

    /// A row up to the diagonal, and the element on it.
    pub fn row(&self, i: usize) -> (&[f64], f64) {
        (&self.0[i][..i], self.0[i][i])
    }
}

/// Inner product, in four sums that go on side by side.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let sums = a.zip(b).fold([0.0; 4], |mut sums, (a, b)| {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
        sums
    });
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{Strategy, prop_assert, proptest};
    use rand::SeedableRng;

    /// Points of three coordinates, equal ones among them.
    fn rows() -> impl Strategy<Value = Vec<Vec<f64>>> {
        let step = (0..5).prop_map(|x| f64::from(x) / 4.0);
        proptest::collection::vec(proptest::collection::vec(step, 3), 1..30)
    }

    proptest! {
        #[test]
        fn a_factor_that_grew_is_one_of_the_covariances(rows in rows()) {
            let likeness = Likeness::new(3);
            let mut factor = Factor::default();
            let covariance = |i: usize, j: usize| Likeness::between(&rows[i], &rows[j]);
            for i in 0..rows.len() {
                factor.push((0..i).map(|j| covariance(i, j)).collect(), likeness.own());
            }
            let element = |i: usize, j: usize| {
                let (row, diagonal) = factor.row(i);
                if i == j { diagonal } else { row[j] }
            };
            for i in 0..rows.len() {
                for j in 0..=i {
                    let product: f64 = (0..=j).map(|k| element(i, k) * element(j, k)).sum();
                    let expected = if i == j { likeness.own() } else { covariance(i, j) };
                    prop_assert!((product - expected).abs() < 1e-9, "{product} for {expected}");
                }
            }
        }

        #[test]
        fn a_solution_may_be_had_in_parts(rows in rows(), cut in 0.0..1.0f64) {
            let likeness = Likeness::new(3);
            let mut factor = Factor::default();
            for i in 0..rows.len() {
                let covariances = rows[..i].iter().map(|row| Likeness::between(row, &rows[i]));
                factor.push(covariances.collect(), likeness.own());
            }
            let column: Vec<f64> = rows.iter().map(|row| row.iter().sum()).collect();
            let cut = (cut * rows.len() as f64) as usize;
            let mut whole = column.clone();
            factor.solve(&mut whole, 0);
            let mut parts = column[..cut].to_vec();
            factor.solve(&mut parts, 0);
            parts.extend(&column[cut..]);
            factor.solve(&mut parts, cut);
            for (i, part) in parts.iter().enumerate() {
                prop_assert!((part - whole[i]).abs() < 1e-12);
                let (row, diagonal) = factor.row(i);
                let product = dot(row, &parts[..i]) + diagonal * part;
                prop_assert!((product - column[i]).abs() < 1e-9, "{product} for {}", column[i]);
            }
        }
    }

    #[test]
    fn lengths_tell_which_coordinates_matter() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let grid = |i: usize| vec![(i % 8) as f64 / 7.0, (i / 8) as f64 / 7.0];
        let rows: Vec<Vec<f64>> = (0..64).map(grid).collect();
        let values: Vec<f64> = rows.iter().map(|row| (6.0 * row[0]).sin()).collect();
        let mut likeness = Likeness::new(2);
        for _ in 0..4 {
            likeness.fit(&rows, &values, &mut rng);
        }
        let [matters, idle] = likeness.lengths[..] else { panic!("two coordinates") };
        assert!(idle > matters + 1.0, "lengths e^{matters:.2} and e^{idle:.2}");
        assert!(likeness.noise < NOISE, "noise of {} where there is none", likeness.noise);
    }
}
