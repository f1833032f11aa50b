//! How often a candidate is timed: until its time is known well enough to decide, no longer.
//!
//! Samples are taken in batches, each warmed up by the device. Measuring ends when the interval of the
//! median is narrow, when the candidate is clearly behind the best one, or when enough was tried. What
//! a cost model predicts repeats exactly, so it is asked once.

use crate::choice::median_interval;
use spanforge_device::{Basis, Timing};

/// Samples of a batch.
pub const BATCH: u32 = 10;

/// Samples after which measuring ends whatever they say.
pub const MOST: usize = 200;

/// Width of the interval over the median that is narrow enough: what finalists are apart.
pub const NARROW: f64 = 0.01;

/// A candidate whose whole interval is beyond this many times the best time is dropped. Recorded
/// spaces of real GPUs lose nothing by 1.5 after three samples.
pub const BEHIND: f64 = 1.5;

/// Rounds in which finalists take turns, a batch each.
pub const ROUNDS: usize = 10;

/// Candidates that take turns, besides the default configuration.
pub const FINALISTS: usize = 8;

/// Candidates of each bucket that take turns, where there are several.
pub const BUCKET_FINALISTS: usize = 3;

/// A candidate takes part where its interval comes within this many times the best one's.
pub const NEAR: f64 = 1.03;

/// Takes samples by `time`, which is given their number, until they suffice; `best_us` is the best
/// time so far.
///
/// # Errors
/// Those of `time`.
pub fn measure<E>(
    time: &mut dyn FnMut(u32) -> Result<Timing, E>,
    best_us: Option<f64>,
) -> Result<Timing, E> {
    let mut timing = time(BATCH)?;
    while timing.basis == Basis::Measured && !is_enough(&timing, best_us) {
        let more = time(BATCH)?;
        // A device that gives nothing more has nothing more to say.
        if more.samples_us.is_empty() {
            break;
        }
        timing.append(more);
    }
    Ok(timing)
}

fn is_enough(timing: &Timing, best_us: Option<f64>) -> bool {
    let samples = &timing.samples_us;
    let Some([low, high]) = median_interval(samples) else { return true };
    samples.len() >= MOST
        || high - low <= NARROW * timing.median_us()
        || best_us.is_some_and(|best| low > BEHIND * best)
}

/// Times several candidates in turn, so that what changes with time, clocks and temperature, is the
/// same for all: `rounds` rounds, at least one, of one batch each, by candidate. `time` is given a
/// candidate's place.
///
/// # Errors
/// Those of `time`.
pub fn interleave<E>(
    count: usize,
    rounds: usize,
    time: &mut dyn FnMut(usize) -> Result<Timing, E>,
) -> Result<Vec<Timing>, E> {
    let mut timings: Vec<Timing> = (0..count).map(&mut *time).collect::<Result<_, _>>()?;
    for round in 1..rounds {
        for turn in 0..count {
            // Each is first, and after each other one, equally often.
            let place = (turn + round) % count;
            timings[place].append(time(place)?);
        }
    }
    Ok(timings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use spanforge_device::{Conditions, Throttle};
    use std::convert::Infallible;

    /// A device whose samples lie around `us`, up to `spread` above it.
    fn noisy(us: f64, spread: f64, basis: Basis) -> impl FnMut(u32) -> Result<Timing, Infallible> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        move |count| {
            let sample = |_| us * (1.0 + spread * rng.random_range(0.0..1.0_f64));
            let samples_us = (0..count).map(sample).collect();
            Ok(Timing { basis, samples_us, predictions: Vec::new(), conditions: None })
        }
    }

    fn taken(us: f64, spread: f64, best_us: Option<f64>) -> usize {
        let timing = measure(&mut noisy(us, spread, Basis::Measured), best_us);
        timing.expect("no errors").samples_us.len()
    }

    #[test]
    fn steady_times_take_one_batch_noisy_ones_more_and_wild_ones_an_end() {
        assert_eq!(taken(100.0, 0.002, None), 10);
        assert!((20..MOST).contains(&taken(100.0, 0.05, None)));
        assert_eq!(taken(100.0, 2.0, None), MOST);
    }

    #[test]
    fn conditions_are_those_of_all_batches() {
        let mut device = noisy(100.0, 2.0, Basis::Measured);
        let mut sm_mhz = 1980;
        let mut time = |count| {
            sm_mhz -= 10;
            let throttled = (sm_mhz == 1950).then_some(Throttle::PowerCap);
            let conditions = Conditions {
                sm_mhz: Some([sm_mhz; 2]),
                throttled: Some(throttled.into_iter().collect()),
                repeated_samples: 10,
                ..Conditions::default()
            };
            Ok::<_, Infallible>(Timing { conditions: Some(conditions), ..device(count)? })
        };
        let timing = measure(&mut time, None).expect("no errors");
        assert_eq!(timing.samples_us.len(), MOST);
        let expected = Conditions {
            sm_mhz: Some([1780, 1970]),
            throttled: Some([Throttle::PowerCap].into()),
            repeated_samples: 200,
            ..Conditions::default()
        };
        assert_eq!(timing.conditions, Some(expected));
    }

    #[test]
    fn what_is_clearly_behind_is_dropped_and_what_may_not_be_is_not() {
        assert_eq!(taken(100.0, 0.3, Some(50.0)), 10);
        assert_eq!(taken(100.0, 0.3, Some(90.0)), taken(100.0, 0.3, None));
    }

    #[test]
    fn a_prediction_is_asked_for_once() {
        let mut asked = 0;
        let mut device = noisy(100.0, 2.0, Basis::Predicted);
        let timing = measure(
            &mut |count| {
                asked += 1;
                device(count)
            },
            None,
        );
        assert_eq!((timing.expect("no errors").samples_us.len(), asked), (10, 1));
    }

    #[test]
    fn candidates_take_turns_at_every_place() {
        let mut order = Vec::new();
        let samples = interleave(3, 3, &mut |place| {
            order.push(place);
            let samples_us = vec![place as f64];
            Ok::<_, Infallible>(Timing {
                basis: Basis::Measured,
                samples_us,
                predictions: Vec::new(),
                conditions: None,
            })
        });
        assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        let samples: Vec<Vec<f64>> =
            samples.expect("no errors").into_iter().map(|timing| timing.samples_us).collect();
        assert_eq!(samples, [vec![0.0; 3], vec![1.0; 3], vec![2.0; 3]]);
    }
}
