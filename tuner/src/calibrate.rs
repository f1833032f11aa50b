//! Fits the cost model to a GPU that was measured: those figures of its profile that no document
//! states well, so that predictions for it become better and say by how much.
//!
//! The fit is the most probable one (maximum a posteriori): the model is taken to be off by
//! [`MODEL_ERROR`] where all figures are right, outliers weighing less, and a documented figure to be
//! right to a factor of two. So what the times say nothing about stays as documented.

use argmin::core::{CostFunction, Error, Executor, State};
use argmin::solver::neldermead::NelderMead;
use serde::Serialize;
use spanforge_device::Prediction;
use spanforge_emulator::cost::{CostError, estimate_with_footprint};
use spanforge_emulator::profile::{Figure, Profile};
use std::collections::BTreeMap;

/// How far the model is off with the right figures, as a natural logarithm. Chosen.
pub const MODEL_ERROR: f64 = 0.1;

/// Errors beyond so many times [`MODEL_ERROR`] pull the less the larger they are.
const OUTLIER: f64 = 2.0;

/// Doubt in a documented figure, as a natural logarithm: a factor of two.
const DOUBT: f64 = std::f64::consts::LN_2;

/// A figure that the times determine no better than this is left as documented.
const DETERMINED: f64 = DOUBT / 2.0;

/// Parts that the times are cut into, each predicted by a fit to the others.
const FOLDS: usize = 5;

/// Fewer times than this would be fitted by anything.
pub const FEWEST: usize = 15;

/// One configuration that was measured on one batch, and what the model sees of it.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Number of the configuration: what was measured of one is held out together.
    pub configuration: usize,
    /// Number of the batch: configurations are ranked within one.
    pub batch: usize,
    /// Measured microseconds.
    pub time_us: f64,
    /// Its launches, counted on an emulated device.
    pub predictions: Vec<Prediction>,
}

/// Why there is no fit.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// Too few times.
    #[error("{0} measured times are too few for a fit: {FEWEST} at least")]
    TooFew(usize),
    /// A time that is none, or launches that were not counted.
    #[error("a measured time is not positive, or a launch was recorded without its shape")]
    Unusable,
    /// The model has no time for a launch.
    #[error(transparent)]
    Cost(#[from] CostError),
    /// The optimiser gave up.
    #[error("the fit failed: {0}")]
    Optimiser(String),
}

/// A fitted profile, with what it is worth.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// The profile with the fitted figures; their source says so.
    #[serde(skip)]
    pub profile: Profile,
    /// Each figure that could have been fitted.
    pub figures: Vec<Fitted>,
    /// Measured times.
    pub times: usize,
    /// The documented figures against the times.
    pub before: Quality,
    /// The fitted ones against the times that they were fitted to.
    pub after: Quality,
    /// Each fifth of the times against figures that were fitted to the others.
    pub held_out: Quality,
}

/// What became of a figure.
#[derive(Clone, Debug, Serialize)]
pub struct Fitted {
    /// Field of the profile.
    pub name: &'static str,
    /// Its unit.
    pub unit: String,
    /// As documented.
    pub before: f64,
    /// As fitted; the documented one where the times say too little.
    pub after: f64,
    /// The factor within which the times determine it (one standard deviation).
    pub within: f64,
    /// Whether it was fitted.
    pub fitted: bool,
}

/// How well predictions agree with what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// Spearman's rank correlation of the configurations, the mean over the batches; `None` where all
    /// times on one are alike.
    pub rank_correlation: Option<f64>,
    /// Median of how far the larger of predicted and measured is above the smaller: 0.1 is 10 %.
    pub median_error: f64,
}

/// The figures that are fitted.
fn fitted(profile: &mut Profile) -> [(&'static str, &mut Figure<f64>); 6] {
    [
        ("achievable_bandwidth_fraction", &mut profile.achievable_bandwidth_fraction),
        ("boost_clock", &mut profile.boost_clock),
        ("dram_latency", &mut profile.dram_latency),
        ("saturation_exponent", &mut profile.saturation_exponent),
        ("block_start", &mut profile.block_start),
        ("kernel_launch", &mut profile.kernel_launch),
    ]
}

/// The profile with its fitted figures times e to these powers, within what they can be.
fn scaled(base: &Profile, powers: &[f64]) -> Profile {
    let mut profile = base.clone();
    for ((name, figure), power) in fitted(&mut profile).into_iter().zip(powers) {
        let value = figure.value * power.clamp(-4.0 * DOUBT, 4.0 * DOUBT).exp();
        figure.value = match name {
            "achievable_bandwidth_fraction" => value.min(1.0),
            "saturation_exponent" => value.max(1.0),
            _ => value,
        };
    }
    profile
}

/// What the model predicts for an observation on a GPU, in microseconds.
///
/// # Errors
/// [`CalibrateError::Cost`], and [`CalibrateError::Unusable`] for launches without their shape.
pub fn predicted_us(profile: &Profile, observation: &Observation) -> Result<f64, CalibrateError> {
    observation.predictions.iter().try_fold(0.0, |sum, launch| {
        let shape = launch.shape.ok_or(CalibrateError::Unusable)?;
        let bytes = launch.footprint_bytes;
        Ok(sum + estimate_with_footprint(profile, &shape, &launch.counters, bytes)?.time_us)
    })
}

/// Fits a profile to measured times of one GPU. `origin` says where these come from and becomes part
/// of the fitted figures' sources.
///
/// # Errors
/// [`CalibrateError`]: too few times, unusable ones, and a model that has no answer.
pub fn calibrate(
    profile: &Profile,
    observations: &[Observation],
    origin: &str,
) -> Result<Calibration, CalibrateError> {
    if observations.len() < FEWEST {
        return Err(CalibrateError::TooFew(observations.len()));
    }
    for observation in observations {
        let shaped = observation.predictions.iter().all(|launch| launch.shape.is_some());
        let time = observation.time_us;
        if !(time.is_finite() && time > 0.0 && shaped && !observation.predictions.is_empty()) {
            return Err(CalibrateError::Unusable);
        }
    }
    let all: Vec<&Observation> = observations.iter().collect();
    let (fit, figures) = determined(profile, &all)?;

    let mut held_out = Vec::new();
    for fold in 0..FOLDS {
        let of = |inside: bool| {
            let is_in = move |o: &&Observation| (o.configuration % FOLDS == fold) == inside;
            observations.iter().filter(is_in)
        };
        let (fit, _) = determined(profile, &of(false).collect::<Vec<_>>())?;
        for observation in of(true) {
            held_out.push((predicted_us(&fit, observation)?, observation));
        }
    }
    let against = |profile: &Profile| -> Result<Quality, CalibrateError> {
        let pairs = all.iter().map(|o| Ok((predicted_us(profile, o)?, *o)));
        Ok(quality(&pairs.collect::<Result<Vec<_>, CalibrateError>>()?))
    };
    let (before, after) = (against(profile)?, against(&fit)?);
    let mut profile = fit;
    for ((_, figure), fitted) in fitted(&mut profile).into_iter().zip(&figures) {
        if fitted.fitted {
            figure.source = format!(
                "fitted to {} measured times ({origin}), to a factor of {:.2}; {} before ({})",
                observations.len(),
                fitted.within,
                fitted.before,
                figure.source
            );
        }
    }
    let (times, held_out) = (observations.len(), quality(&held_out));
    Ok(Calibration { profile, figures, times, before, after, held_out })
}

/// The most probable profile; figures that the times do not determine are as they were.
fn determined(
    base: &Profile,
    observations: &[&Observation],
) -> Result<(Profile, Vec<Fitted>), CalibrateError> {
    let objective = Objective { base, observations };
    let mut powers = vec![0.0; fitted(&mut base.clone()).len()];
    // Nelder and Mead's simplex may collapse early: it starts anew from where it ended.
    for size in [0.4, 0.1] {
        powers = objective.descend(powers, size)?;
    }
    let widths = objective.widths(&powers)?;
    for (power, width) in powers.iter_mut().zip(&widths) {
        if *width > DETERMINED {
            *power = 0.0;
        }
    }
    let mut profile = scaled(base, &powers);
    let figures = fitted(&mut base.clone())
        .into_iter()
        .zip(fitted(&mut profile))
        .zip(widths)
        .map(|(((name, before), (_, after)), width)| Fitted {
            name,
            unit: before.unit.clone(),
            before: before.value,
            after: after.value,
            within: width.exp(),
            fitted: width <= DETERMINED,
        })
        .collect();
    Ok((profile, figures))
}

/// Twice the negative logarithm of a profile's probability, by the powers of its figures.
struct Objective<'a> {
    base: &'a Profile,
    observations: &'a [&'a Observation],
}

impl Objective<'_> {
    fn at(&self, powers: &[f64]) -> Result<f64, CalibrateError> {
        let profile = scaled(self.base, powers);
        let doubt: f64 = powers.iter().map(|power| (power / DOUBT).powi(2)).sum();
        self.observations.iter().try_fold(doubt, |sum, observation| {
            let error = (predicted_us(&profile, observation)? / observation.time_us).ln();
            // Cauchy's loss: a square near zero, a logarithm far from it.
            let error = error / MODEL_ERROR / OUTLIER;
            Ok(sum + OUTLIER.powi(2) * (error * error).ln_1p())
        })
    }

    fn descend(&self, start: Vec<f64>, size: f64) -> Result<Vec<f64>, CalibrateError> {
        let failed = |error: Error| CalibrateError::Optimiser(error.to_string());
        let mut simplex = vec![start.clone()];
        for index in 0..start.len() {
            let mut corner = start.clone();
            corner[index] += size;
            simplex.push(corner);
        }
        let solver = NelderMead::new(simplex).with_sd_tolerance(1e-4).map_err(failed)?;
        let objective = Objective { base: self.base, observations: self.observations };
        let run = Executor::new(objective, solver)
            .configure(|state| state.max_iters(600))
            .run()
            .map_err(failed)?;
        Ok(run.state().get_best_param().cloned().unwrap_or(start))
    }

    /// Standard deviation of each power, whatever the others are: by the curvature at the optimum
    /// (Laplace's approximation).
    fn widths(&self, powers: &[f64]) -> Result<Vec<f64>, CalibrateError> {
        let count = powers.len();
        let step = 0.05;
        let moved = |by: [(usize, f64); 2]| {
            let mut powers = powers.to_vec();
            by.into_iter().for_each(|(index, by)| powers[index] += by);
            self.at(&powers)
        };
        let second = |i: usize, j: usize| {
            let corner = |x: f64, y: f64| moved([(i, x * step), (j, y * step)]);
            let alike = corner(1.0, 1.0)? + corner(-1.0, -1.0)?;
            let second = alike - corner(1.0, -1.0)? - corner(-1.0, 1.0)?;
            Ok(second / (4.0 * step * step))
        };
        let row = |i: usize| (0..count).map(|j| second(i, j)).collect();
        let curvature: Vec<Vec<f64>> =
            (0..count).map(row).collect::<Result<_, CalibrateError>>()?;
        let variance =
            |index: usize| inverse_diagonal(curvature.clone(), index).map(|column| 2.0 * column);
        let width = |index| variance(index).filter(|v| *v > 0.0).map_or(DOUBT, f64::sqrt);
        Ok((0..count).map(width).collect())
    }
}

/// Entry `index` of the diagonal of a matrix's inverse, by elimination; `None` where there is none.
fn inverse_diagonal(mut matrix: Vec<Vec<f64>>, index: usize) -> Option<f64> {
    let count = matrix.len();
    let mut right: Vec<f64> = (0..count).map(|row| f64::from(u8::from(row == index))).collect();
    for column in 0..count {
        let pivot = (column..count)
            .max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))?;
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        let lead = matrix[column].clone();
        if lead[column].abs() < 1e-12 {
            return None;
        }
        for row in (0..count).filter(|&row| row != column) {
            let factor = matrix[row][column] / lead[column];
            matrix[row].iter_mut().zip(&lead).for_each(|(entry, lead)| *entry -= factor * lead);
            right[row] -= factor * right[column];
        }
    }
    Some(right[index] / matrix[index][index])
}

impl CostFunction for Objective<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, powers: &Vec<f64>) -> Result<f64, Error> {
        Ok(self.at(powers)?)
    }
}

/// Quality of predictions in microseconds of what was measured.
fn quality(predictions: &[(f64, &Observation)]) -> Quality {
    let mut by_batch: BTreeMap<usize, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    let mut errors = Vec::with_capacity(predictions.len());
    for (predicted, Observation { batch, time_us, .. }) in predictions {
        let (predictions, times) = by_batch.entry(*batch).or_default();
        predictions.push(*predicted);
        times.push(*time_us);
        errors.push(f64::max(predicted / time_us, time_us / predicted) - 1.0);
    }
    errors.sort_by(f64::total_cmp);
    // Over all batches at once, that a large one takes longer than a small one would count.
    let correlations: Option<Vec<f64>> = by_batch
        .values()
        .map(|(predicted, measured)| rank_correlation(predicted, measured))
        .collect();
    Quality {
        rank_correlation: correlations
            .filter(|all| !all.is_empty())
            .map(|all| all.iter().sum::<f64>() / all.len() as f64),
        median_error: errors.get(errors.len() / 2).copied().unwrap_or(0.0),
    }
}

/// Spearman's rank correlation; equal values share the mean of their ranks.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let mean = |ranks: &[f64]| ranks.iter().sum::<f64>() / ranks.len() as f64;
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let (mut product, mut square_a, mut square_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(&b) {
        let (a, b) = (a - mean_a, b - mean_b);
        (product, square_a, square_b) = (product + a * b, square_a + a * a, square_b + b * b);
    }
    (square_a > 0.0 && square_b > 0.0).then(|| product / (square_a * square_b).sqrt())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut out = vec![0.0; values.len()];
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let first = order.partition_point(|&index| values[index] < values[tied[0]]);
        let rank = first as f64 + (tied.len() - 1) as f64 / 2.0;
        tied.iter().for_each(|&index| out[index] = rank);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Kept;
    use crate::record::Candidate;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use spanforge_emulator::profile;
    use std::path::Path;

    /// What recorded runs counted, with the times that a GPU of another profile would take, give or
    /// take `noise`.
    fn observations(truth: &Profile, noise: f64) -> Vec<Observation> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/tune");
        let mut paths: Vec<_> = fs_err::read_dir(folder)
            .expect("recorded runs")
            .map(|entry| entry.expect("a file").path())
            .collect();
        paths.sort();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut out = Vec::new();
        for (batch, path) in paths.into_iter().enumerate() {
            let kept = Kept::read(&path).expect("a journal");
            for candidate in kept.candidates.into_values() {
                let shaped = candidate.predictions.iter().all(|launch| launch.shape.is_some());
                if !candidate.predictions.is_empty() && shaped {
                    let Candidate { index: configuration, predictions, .. } = candidate;
                    let mut observation =
                        Observation { configuration, batch, time_us: 0.0, predictions };
                    let exact = predicted_us(truth, &observation).expect("a launch");
                    let off = noise * rng.random_range(-1.0..1.0_f64);
                    observation.time_us = exact * off.exp();
                    out.push(observation);
                }
            }
        }
        let out: Vec<Observation> = out.into_iter().step_by(3).collect();
        assert!(out.len() >= 50, "{} recorded candidates with their launches", out.len());
        out
    }

    /// How far off a fitted figure may be: twice what it says of itself.
    fn tolerance(figure: &Fitted) -> f64 {
        2.0 * figure.within.ln()
    }

    fn other(powers: [f64; 6]) -> Profile {
        scaled(&profile::find("h200").expect("built in"), &powers)
    }

    #[test]
    fn the_figures_that_matter_are_found_and_predictions_become_better() {
        let documented = profile::find("h200").expect("built in");
        let truth = other([-0.3, -0.15, 0.4, 0.0, 0.0, 0.0]);
        let observations = observations(&truth, 0.03);
        let fit = calibrate(&documented, &observations, "a test").expect("a fit");
        for (mut found, mut wanted) in [(fit.profile.clone(), truth)] {
            for ((name, found), (_, wanted)) in
                fitted(&mut found).into_iter().zip(fitted(&mut wanted))
            {
                let figure = fit.figures.iter().find(|figure| figure.name == name).expect("listed");
                let off = (found.value / wanted.value).ln().abs();
                assert!(
                    !figure.fitted || off < tolerance(figure),
                    "{name}: {} of {}, {figure:?}",
                    found.value,
                    wanted.value
                );
                assert_eq!(figure.fitted, found.source.contains("fitted to"), "{name}");
            }
        }
        let determined = |name| fit.figures.iter().any(|f| f.name == name && f.fitted);
        assert!(determined("boost_clock"), "{:?}", fit.figures);
        assert!(fit.before.median_error > 0.1, "{:?}", fit.before);
        assert!(fit.held_out.median_error < 0.03, "{:?}", fit.held_out);
        assert!(fit.held_out.rank_correlation >= fit.before.rank_correlation, "{fit:?}");
        // What was fitted is a profile that can be written and read.
        let text = serde_json::to_string(&fit.profile).expect("JSON");
        assert_eq!(Profile::from_json("fit", &text).expect("valid"), fit.profile);
    }

    #[test]
    fn a_gpu_as_documented_stays_as_documented_and_outliers_move_little() {
        let documented = profile::find("h200").expect("built in");
        let mut observations = observations(&documented, 0.02);
        for observation in observations.iter_mut().step_by(10) {
            observation.time_us *= 4.0;
        }
        let fit = calibrate(&documented, &observations, "a test").expect("a fit");
        for figure in &fit.figures {
            let off = (figure.after / figure.before).ln().abs();
            assert!(off < tolerance(figure), "{figure:?}");
        }
        assert!(fit.after.median_error < 0.03, "{:?}", fit.after);
    }

    #[test]
    fn too_few_and_senseless_times_are_errors() {
        let documented = profile::find("h200").expect("built in");
        let mut observations = observations(&documented, 0.0);
        let few = calibrate(&documented, &observations[..FEWEST - 1], "a test");
        assert!(matches!(few, Err(CalibrateError::TooFew(_))), "{few:?}");
        for senseless in [f64::NAN, f64::INFINITY, 0.0] {
            observations[3].time_us = senseless;
            let none = calibrate(&documented, &observations, "a test");
            assert!(matches!(none, Err(CalibrateError::Unusable)), "{none:?}");
        }
    }

    #[test]
    fn ranks_count_within_a_batch_only() {
        // Two batches, one of which takes a hundred times as long: within each, the order is wrong.
        let observation = |batch, time_us| Observation {
            configuration: 0,
            batch,
            time_us,
            predictions: Vec::new(),
        };
        let measured =
            [(0, 1.0), (0, 2.0), (1, 100.0), (1, 200.0)].map(|(b, us)| observation(b, us));
        let predicted = [2.0, 1.0, 200.0, 100.0].into_iter().zip(&measured);
        let quality = quality(&predicted.collect::<Vec<_>>());
        assert_eq!(quality, Quality { rank_correlation: Some(-1.0), median_error: 1.0 });
    }

    #[test]
    fn diagonals_of_inverses() {
        // The inverse of [[2, 1], [1, 3]] is [[3, -1], [-1, 2]] / 5; rows may have to change places.
        let matrix = vec![vec![2.0, 1.0], vec![1.0, 3.0]];
        let diagonal =
            [0, 1].map(|index| inverse_diagonal(matrix.clone(), index).expect("regular"));
        assert!((diagonal[0] - 0.6).abs() < 1e-12 && (diagonal[1] - 0.4).abs() < 1e-12);
        assert_eq!(inverse_diagonal(vec![vec![0.0, 1.0], vec![1.0, 0.0]], 0), Some(0.0));
        assert_eq!(inverse_diagonal(vec![vec![1.0, 1.0], vec![1.0, 1.0]], 0), None);
    }

    #[test]
    fn ranks_of_equals_are_shared() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[10.0, 40.0, 50.0]), Some(1.0));
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[9.0, 4.0, 1.0]), Some(-1.0));
        assert_eq!(rank_correlation(&[1.0, 1.0], &[9.0, 4.0]), None);
        // By hand: ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3.
        let half = rank_correlation(&[1.0, 2.0, 2.0, 4.0], &[1.0, 2.0, 3.0, 4.0]).expect("some");
        assert!((half - 4.5 / (4.5_f64 * 5.0).sqrt()).abs() < 1e-12, "{half}");
    }
}
