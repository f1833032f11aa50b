//! What a model sees of a point. An index alone hides what hardware rewards: that 64 and 128 are
//! powers of two and 96 is not, and that it is products of sizes which make threads and tiles.

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

impl Features {
    pub fn new(space: &dyn Space) -> Self {
        let mut columns = Vec::new();
        let mut logarithms = Vec::new();
        for (parameter, size) in space.sizes().into_iter().enumerate() {
            let ordered = space.is_ordered(parameter);
            let numbers: Option<Vec<f64>> =
                (0..size).map(|v| space.number(parameter, v).filter(|n| *n > 0.0)).collect();
            let whole = numbers.as_ref().filter(|n| n.iter().all(|n| n.fract() == 0.0));
            let column = |value: usize| match (ordered, size, whole) {
                (_, 0 | 1, _) => Vec::new(),
                (false, 3.., _) => (0..size).map(|v| f32::from(u8::from(v == value))).collect(),
                (_, MANY_VALUES.., Some(whole)) => {
                    vec![value as f32, (whole[value] as u64).trailing_zeros() as f32]
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
