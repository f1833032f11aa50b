//! What a model sees of a point. An index alone hides what hardware rewards: that 64 and 128 are
//! powers of two and 96 is not, and that it is products of sizes which make threads and tiles.
//!
//! [`Features`] are for trees, which cut; [`Coordinates`] for a distance between points.

use super::Space;

/// Feature values of every parameter value, looked up rather than computed for every candidate.
pub(super) struct Features {
    /// `columns[parameter][value]`: position in its order, powers of two in it, or one-hot.
    columns: Vec<Vec<Vec<f32>>>,
    /// Logarithms of the values of parameters that are positive numbers, whose sums by pairs stand
    /// for products.
    logarithms: Vec<(usize, Vec<f32>)>,
}

/// Values from which on an ordered parameter has its powers of two told apart: below, a tree
/// separates any value with two cuts.
const MANY_VALUES: usize = 5;

/// The numbers that the values of a parameter stand for, where all are positive.
fn positive_numbers(space: &dyn Space, parameter: usize, size: usize) -> Option<Vec<f64>> {
    (0..size).map(|value| space.number(parameter, value).filter(|n| *n > 0.0)).collect()
}

/// How many times a value can be halved.
fn halvings(value: f64) -> u32 {
    (value as u64).trailing_zeros()
}

impl Features {
    pub fn new(space: &dyn Space) -> Self {
        let mut columns = Vec::new();
        let mut logarithms = Vec::new();
        for (parameter, size) in space.sizes().into_iter().enumerate() {
            let ordered = space.is_ordered(parameter);
            let numbers = positive_numbers(space, parameter, size);
            let whole = numbers.as_ref().filter(|n| n.iter().all(|n| n.fract() == 0.0));
            let column = |value: usize| match (ordered, size, whole) {
                (_, 0 | 1, _) => Vec::new(),
                (false, 3.., _) => (0..size).map(|v| f32::from(u8::from(v == value))).collect(),
                (_, MANY_VALUES.., Some(whole)) => {
                    vec![value as f32, halvings(whole[value]) as f32]
                }
                _ => vec![value as f32],
            };
            columns.push((0..size).map(column).collect());
            if let Some(numbers) = numbers.filter(|_| ordered && size > 2) {
                let column = numbers.iter().map(|n| n.ln() as f32).collect();
                logarithms.push((parameter, column));
            }
        }
        Self { columns, logarithms }
    }

    /// Appends the features of a point; how many there are is the same for all points.
    pub fn extend(&self, point: &[usize], row: &mut Vec<f32>) {
        for (column, value) in self.columns.iter().zip(point) {
            row.extend(&column[*value]);
        }
        for (i, (a, first)) in self.logarithms.iter().enumerate() {
            for (b, second) in &self.logarithms[..i] {
                row.push(first[point[*a]] + second[point[*b]]);
            }
        }
    }
}

/// Coordinates of every parameter value, each from 0 to 1.
pub(super) struct Coordinates {
    /// `columns[parameter][value]`.
    columns: Vec<Vec<Vec<f64>>>,
}

impl Coordinates {
    pub fn new(space: &dyn Space) -> Self {
        let column = |(parameter, size)| {
            let indices = (0..size).map(|value| value as f64).collect();
            let numbers = positive_numbers(space, parameter, size);
            if size > 2 && !space.is_ordered(parameter) {
                return (0..size).map(|v| one_hot(v, size)).collect();
            }
            let whole = numbers.as_ref().filter(|n| n.iter().all(|n| n.fract() == 0.0));
            let halvings: Option<Vec<f64>> = whole
                .filter(|_| size >= MANY_VALUES)
                .map(|n| n.iter().map(|n| f64::from(halvings(*n))).collect());
            let logarithms =
                numbers.filter(|_| size > 2).map(|n| n.into_iter().map(f64::ln).collect());
            let mut coordinates = vec![from_0_to_1(logarithms.unwrap_or(indices))];
            coordinates.extend(halvings.map(from_0_to_1));
            // Of powers of two, both say the same.
            coordinates.dedup_by(|a, b| a.iter().zip(&*b).all(|(a, b)| (a - b).abs() < 1e-9));
            (0..size).map(|v| coordinates.iter().map(|c| c[v]).collect()).collect()
        };
        Self { columns: space.sizes().into_iter().enumerate().map(column).collect() }
    }

    /// The coordinates of a point.
    pub fn of(&self, point: &[usize]) -> Vec<f64> {
        let columns = self.columns.iter().zip(point);
        columns.flat_map(|(column, value)| &column[*value]).copied().collect()
    }
}

fn one_hot(value: usize, size: usize) -> Vec<f64> {
    (0..size).map(|v| if v == value { 1.0 } else { 0.0 }).collect()
}

/// Values brought to the range from 0 to 1; all 0 where they are the same.
fn from_0_to_1(values: Vec<f64>) -> Vec<f64> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let range = values.iter().copied().fold(f64::NEG_INFINITY, f64::max) - least;
    values.into_iter().map(|v| if range > 0.0 { (v - least) / range } else { 0.0 }).collect()
}
