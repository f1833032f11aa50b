//! The choice among candidates: the fastest one, unless others may be as fast.
//!
//! A time is known to an interval. Candidates whose interval meets that of the fastest are tied with
//! it, and the winner is one of them, by a rule that another run with other noise will follow too:
//! the default configuration, else the one that spills least, else the fastest, else the smaller
//! identifier.

use crate::measure::{FINALISTS, NEAR};
use crate::record::{Candidate, Remeasured, Status, Winner};
use spanforge_device::{Basis, median};

/// What the cost model cannot tell apart, as a share of a time. Chosen: its terms are known to some
/// per cent, and most of their errors are the same for configurations that are alike.
pub const PREDICTION_RESOLUTION: f64 = 0.01;

/// The candidates with the samples of those that were timed once more in place of their first ones.
pub fn judged(candidates: &[Candidate], remeasured: &Remeasured) -> Vec<Candidate> {
    let mut candidates = candidates.to_vec();
    for candidate in &mut candidates {
        if let Some(finalist) = remeasured.finalist(candidate.index) {
            candidate.samples_us = finalist.samples_us.clone();
            candidate.time_us = median(&finalist.samples_us).or(candidate.time_us);
            candidate.conditions.clone_from(&finalist.conditions);
            candidate.by_batch.clone_from(&finalist.by_batch);
        }
    }
    candidates
}

/// The correct ones with their times in microseconds, the fastest first, equals in the order of their
/// identifiers.
pub fn ranked(candidates: &[Candidate]) -> Vec<(&Candidate, f64)> {
    let correct = candidates.iter().filter(|c| c.status == Status::Correct);
    let mut timed: Vec<_> = correct.filter_map(|c| Some((c, c.time_us?))).collect();
    timed.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.id.cmp(&b.0.id)));
    timed
}

/// Those that may be the winner, or could be taken for it: what is to be timed once more. The default
/// configuration, which the first candidate is, is one of them in any case.
pub fn finalists(candidates: &[Candidate]) -> Vec<&Candidate> {
    let timed = ranked(candidates);
    let near = timed.first().map_or(0.0, |(best, _)| NEAR * best.known_us()[1]);
    let (default, others): (Vec<_>, Vec<_>) =
        timed.into_iter().map(|timed| timed.0).partition(|c| c.index == 0);
    let others = others.into_iter().filter(|c| c.known_us()[0] <= near).take(FINALISTS);
    default.into_iter().chain(others).collect()
}

/// The winner among `candidates`, the first of which is the default configuration; `None` where none
/// is correct. Where some were timed once more, it is one of those. `run` is the run's name, `floor_us`
/// its floor in microseconds.
pub fn choose(
    run: &str,
    floor_us: f64,
    candidates: &[Candidate],
    remeasured: &Remeasured,
) -> Option<Winner> {
    let candidates = judged(candidates, remeasured);
    let mut timed = ranked(&candidates);
    if !remeasured.finalists.is_empty() {
        timed.retain(|(c, _)| remeasured.samples_us(c.index).is_some());
    }
    let fastest_us = timed.first()?.0.known_us()[1];
    let ties = timed.iter().filter(|(c, _)| c.known_us()[0] <= fastest_us);
    // The first of the least, so that equals stay in order of time and identifier.
    let (winner, us) = *ties
        .clone()
        .min_by_key(|(candidate, _)| (candidate.index != 0, candidate.spill_bytes()))?;
    let other = |timed: &&(&Candidate, f64)| timed.0.id != winner.id;
    let ties = ties.filter(other).map(|(candidate, _)| candidate.id.clone()).collect();
    let runner_up = timed.iter().find(other);
    Some(Winner {
        run: run.to_owned(),
        id: winner.id.clone(),
        time_us: us,
        interval_us: winner.interval_us(),
        basis: winner.basis,
        default_us: timed.iter().find(|(c, _)| c.index == 0).map(|timed| timed.1),
        runner_up: runner_up.map(|(candidate, _)| candidate.id.clone()),
        runner_up_us: runner_up.map(|timed| timed.1),
        ties,
        over_floor: us / floor_us,
        buckets: Vec::new(),
        shipped: Vec::new(),
    })
}

impl Candidate {
    /// What its time may be in microseconds: of measured times the 95 % confidence interval of the
    /// median, of a predicted one what the cost model can tell apart. `None` without a time.
    pub fn interval_us(&self) -> Option<[f64; 2]> {
        let us = self.time_us?;
        match self.basis {
            Basis::Predicted => Some([
                us * (1.0 - PREDICTION_RESOLUTION / 2.0),
                us * (1.0 + PREDICTION_RESOLUTION / 2.0),
            ]),
            Basis::Measured => Some(median_interval(&self.samples_us).unwrap_or([us, us])),
        }
    }

    /// The interval of a candidate that has a time.
    fn known_us(&self) -> [f64; 2] {
        self.interval_us().unwrap_or([f64::INFINITY; 2])
    }

    /// Bytes that a thread of its kernels spills, stores and loads together.
    pub fn spill_bytes(&self) -> u32 {
        self.resources.values().map(|r| r.spill_store_bytes + r.spill_load_bytes).sum()
    }
}

/// The 95 % confidence interval of the median of what the samples are drawn from, whatever its
/// distribution: the k-th smallest and the k-th largest sample, k as large as leaves the true median
/// outside with a probability of 5 % (by the binomial distribution with p = 1/2). Of fewer than six
/// samples, which cannot be as sure, all of their range; `None` without samples.
pub fn median_interval(samples: &[f64]) -> Option<[f64; 2]> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    // Probability that fewer than k samples are below the median, term by term, in logarithms since
    // the first of many samples is smaller than any number.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut below = ln_term.exp();
    let mut k = 0;
    while k < n / 2 && below <= 0.025 {
        ln_term += ((n - k) as f64 / (k + 1) as f64).ln();
        below += ln_term.exp();
        k += 1;
    }
    let k = k.max(1);
    Some([*sorted.get(k - 1)?, *sorted.get(n.checked_sub(k)?)?])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use spanforge_device::Resources;
    use spanforge_kernels::{KernelShape, KernelSpec, Limits, SearchSpace};
    use spanforge_spans::Dtype;

    /// A correct candidate of the run with predicted times of `us` and so many bytes of spills.
    pub(crate) fn candidate(index: usize, us: f64, spills: u32) -> Candidate {
        let shape = KernelShape::new(Dtype::F16, 64, 4);
        let limits = Limits {
            shared_bytes_per_block: 227 << 10,
            shared_bytes_per_multiprocessor: 228 << 10,
            threads_per_multiprocessor: 2048,
            warpgroups: true,
        };
        let configuration = SearchSpace::new(shape, limits).default_configuration().expect("one");
        let resources = Resources { spill_store_bytes: spills, ..Resources::default() };
        Candidate {
            id: format!("c{index}"),
            status: Status::Correct,
            time_us: Some(us),
            samples_us: vec![us],
            resources: [("decode".to_owned(), resources)].into(),
            ..Candidate::begun("", index, KernelSpec { shape, configuration }, Basis::Predicted, 0)
        }
    }

    fn winner(candidates: &[Candidate]) -> (String, Vec<String>) {
        let winner = choose("run", 10.0, candidates, &Remeasured::default()).expect("a winner");
        (winner.id, winner.ties)
    }

    #[test]
    fn a_clear_gain_wins_and_a_tie_goes_to_the_default_or_the_one_that_spills_least() {
        let chosen = |times: &[(f64, u32)]| {
            let all: Vec<Candidate> = times
                .iter()
                .enumerate()
                .map(|(i, (us, spills))| candidate(i, *us, *spills))
                .collect();
            let (id, ties) = winner(&all);
            format!("{id} {}", ties.join(" "))
        };
        assert_eq!(chosen(&[(100.0, 0), (90.0, 16), (80.0, 64)]), "c2 ");
        assert_eq!(chosen(&[(100.0, 0), (80.3, 0), (80.0, 64), (80.2, 0)]), "c3 c2 c1");
        assert_eq!(chosen(&[(80.5, 8), (80.3, 0), (80.0, 64), (90.0, 0)]), "c0 c2 c1");
        assert_eq!(chosen(&[(80.0, 0), (80.0, 0)]), "c0 c1");
        let mut wrong = candidate(0, 50.0, 0);
        wrong.status = Status::Correctness;
        assert_eq!(choose("run", 10.0, &[wrong], &Remeasured::default()), None);
        assert_eq!(choose("run", 10.0, &[], &Remeasured::default()), None);
    }

    #[test]
    fn measured_times_are_tied_where_their_intervals_meet() {
        let measured = |index, samples: Vec<f64>| {
            let mut candidate = candidate(index, samples[samples.len() / 2], 0);
            candidate.basis = Basis::Measured;
            candidate.samples_us = samples;
            candidate
        };
        let around = |us: f64, spread: f64| (0..20).map(|i| us + spread * f64::from(i)).collect();
        let default = measured(0, around(100.0, 1.0));
        // The middle half overlaps the default's, or ends before it begins.
        assert_eq!(winner(&[default.clone(), measured(1, around(98.0, 1.0))]).0, "c0");
        assert_eq!(winner(&[default.clone(), measured(1, around(98.0, 0.1))]).0, "c1");
    }

    #[test]
    fn the_interval_of_a_median_is_the_one_of_the_tables() {
        // Ranks of the sign test's 95 % interval, as statistics books list them.
        for (n, k) in [
            (5, 1),
            (6, 1),
            (8, 1),
            (9, 2),
            (12, 3),
            (20, 6),
            (25, 8),
            (50, 18),
            (100, 40),
            (2000, 956),
        ] {
            let samples: Vec<f64> = (1..=n).map(f64::from).collect();
            let expected = [f64::from(k), f64::from(n + 1 - k)];
            assert_eq!(median_interval(&samples), Some(expected), "{n}");
        }
        assert_eq!(median_interval(&[]), None);
        assert_eq!(median_interval(&[3.0]), Some([3.0, 3.0]));
    }

    #[test]
    fn the_interval_misses_the_median_of_a_skewed_distribution_as_seldom_as_it_says() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        // A floor and a tail, as times have them; the median is ln 2.
        let missed = (0..4_000).filter(|_| {
            let samples: Vec<f64> =
                (0..20).map(|_| -(1.0 - rng.random_range(0.0..1.0_f64)).ln()).collect();
            let [low, high] = median_interval(&samples).expect("samples");
            !(low..=high).contains(&std::f64::consts::LN_2)
        });
        // 4.1 % by the binomial distribution.
        let share = missed.count() as f64 / 4_000.0;
        assert!((0.03..0.055).contains(&share), "{share}");
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_median_of_the_samples(
            samples in prop::collection::vec(0.1..10.0_f64, 1..200),
        ) {
            let [low, high] = median_interval(&samples).expect("samples");
            let below = samples.iter().filter(|s| **s <= high).count();
            let above = samples.iter().filter(|s| **s >= low).count();
            prop_assert!(low <= high && 2 * below >= samples.len() && 2 * above >= samples.len());
        }
    }
}
