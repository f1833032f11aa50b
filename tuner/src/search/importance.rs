//! How much each parameter matters for what was observed: permutation importance (Breiman, Machine
//! Learning 45, 2001) of trees grown on the observations.

use super::features::Features;
use super::forest::{Forest, Sample};
use super::{Point, Space};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Times that the values of a parameter are dealt out anew.
const SHUFFLES: usize = 20;
/// Fewest observations that trees say anything about.
const LEAST: usize = 8;

/// By parameter, how much worse trees predict the logarithms of the objectives once the parameter's
/// values are dealt out anew among the points: the mean square error over the variance, at most 1. It
/// tells of these points, which a search has chosen, not of the whole space; a parameter that takes
/// one value only has 0. `None` for fewer than eight observations, or where all are equal.
pub fn importance(space: &dyn Space, observed: &[(Point, f64)], seed: u64) -> Option<Vec<f64>> {
    if observed.len() < LEAST {
        return None;
    }
    let values: Vec<f32> = observed.iter().map(|(_, objective)| objective.ln() as f32).collect();
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
    if variance <= f32::EPSILON {
        return None;
    }
    let features = Features::new(space);
    let row = |point: &[usize]| {
        let mut row = Vec::new();
        features.extend(point, &mut row);
        row
    };
    let rows: Vec<Vec<f32>> = observed.iter().map(|(point, _)| row(point)).collect();
    let samples: Vec<Sample> =
        values.iter().map(|value| Sample { value: Some(value - mean), cost: 0.0 }).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let forest = Forest::grow(&rows.concat(), rows[0].len(), &samples, &mut rng);
    let error = |row: &[f32], value: f32| (forest.predict(row).mean - (value - mean)).powi(2);
    let known = rows.iter().zip(&values).map(|(row, value)| error(row, *value)).sum::<f32>() / n;

    let importance = (0..space.sizes().len()).map(|parameter| {
        let mut dealt: Vec<usize> = observed.iter().map(|(point, _)| point[parameter]).collect();
        if dealt.iter().all(|value| *value == dealt[0]) {
            return 0.0;
        }
        let mut sum = 0.0;
        for _ in 0..SHUFFLES {
            dealt.shuffle(&mut rng);
            for (((point, _), value), other) in observed.iter().zip(&values).zip(&dealt) {
                let mut point = point.clone();
                point[parameter] = *other;
                sum += error(&row(&point), *value);
            }
        }
        let without = sum / n / SHUFFLES as f32;
        f64::from(((without - known) / variance).clamp(0.0, 1.0))
    });
    Some(importance.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::{Random, Strategy};

    struct Grid;

    impl Space for Grid {
        fn sizes(&self) -> Vec<usize> {
            vec![4, 4, 4, 1]
        }

        fn is_valid(&self, _: &[usize]) -> bool {
            true
        }
    }

    fn observed(objective: impl Fn(&[usize]) -> f64, count: usize) -> Vec<(Point, f64)> {
        let mut random = Random::new(3);
        let points = std::iter::from_fn(|| random.propose(&Grid)).take(count);
        points.map(|point| (point.clone(), objective(&point))).collect()
    }

    #[test]
    fn what_moves_the_objective_most_is_most_important_and_what_does_not_is_not() {
        let times = observed(|p| 10.0 * 2_f64.powi(p[2] as i32) + 4.0 * p[0] as f64, 48);
        let found = importance(&Grid, &times, 0).expect("enough");
        assert!(found[2] > 0.5 && found[2] > 3.0 * found[0], "{found:?}");
        assert!(found[0] > 2.0 * found[1] && found[1] < 0.1, "{found:?}");
        assert_eq!(found[3], 0.0);
        assert_eq!(importance(&Grid, &times, 0), Some(found));
    }

    #[test]
    fn of_few_or_equal_times_nothing_is_said() {
        assert_eq!(importance(&Grid, &observed(|p| 1.0 + p[0] as f64, 7), 0), None);
        assert_eq!(importance(&Grid, &observed(|_| 5.0, 48), 0), None);
    }
}
