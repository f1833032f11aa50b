//! Replaying strategies: what is charged, what the figures are, and that random search scores 0.

use crate::recorded;
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_tuner::formats::{Entry, Failure, Phases, Recording, Runs};
use spanforge_tuner::replay::{Figures, Recorded, Run, Scale, Score, Until, aggregate, repeats};
use spanforge_tuner::search::parameters::Parameter;
use spanforge_tuner::search::{Evaluation, Point, Space, Strategy, Value, strategy};

const FILES: [&str; 6] = [
    "convolution/A100.json.gz",
    "convolution/A4000.json.gz",
    "convolution/W6600.json.gz",
    "dedispersion/A4000.json.gz",
    "gemm/RTX_2080_Ti.json.gz",
    "pnpoly/RTX_3060_laptop.json.gz",
];

/// Three parameters of ten values; a share of the configurations fails, times are skewed as real
/// ones are, and costs differ.
fn generated(seed: u64, failing: f64) -> Recorded {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = || (0..10).map(Value::Int).collect();
    let mut entries = Vec::new();
    for index in 0..1000usize {
        let point = vec![index / 100, index / 10 % 10, index % 10];
        let time = 1.0 + 5.0 * rng.random::<f64>().powi(2) + rng.random::<f64>();
        let failed = rng.random::<f64>() < failing;
        let phases = Phases {
            compile_ms: rng.random_range(500.0..1500.0),
            benchmark_ms: if failed { 0.0 } else { 32.0 * time },
            ..Phases::default()
        };
        let runs = Runs { mean_ms: Some(9.0), runs_ms: vec![40.0, time, time, time] };
        let result = if failed { Err(Failure::Runtime) } else { Ok(runs) };
        entries.push(Entry { point, result, phases, measurements: Vec::new() });
    }
    let parameters = ["a", "b", "c"].map(|name| Parameter::new(name, values())).to_vec();
    let recording = Recording { parameters, entries, ..Recording::default() };
    Recorded::new(recording).expect("some ran")
}

fn runs(space: &Recorded, name: &str, count: usize, until: Until) -> Vec<Run> {
    let make = |seed| strategy(name, seed).expect("a known strategy");
    repeats(space, &make, 17, count, until, &|| {})
}

fn random_score(space: &Recorded) -> Score {
    let scale = Scale::new(space).expect("a space worth searching");
    let until = Until::Both(1, scale.budget_seconds);
    Score::new(&scale, &runs(space, "random", 100, until)).expect("a score")
}

/// Proposes the points of a list.
struct Script(Vec<Point>, Vec<(Option<f64>, f64)>);

impl Strategy for Script {
    fn name(&self) -> &'static str {
        "script"
    }

    fn propose(&mut self, _: &dyn Space) -> Option<Point> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    fn observe(&mut self, _: &dyn Space, evaluation: &Evaluation<'_>) {
        self.1.push((evaluation.objective, evaluation.cost_seconds));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Every evaluation is charged what was recorded, failures too, and nothing is charged twice.
    #[test]
    fn replays_charge_what_was_recorded(seed in 0..1000u64, count in 1..300usize) {
        let space = generated(seed, 0.2);
        let all = runs(&space, "random", 2, Until::Evaluations(count));
        prop_assert!(all[0].seed == 17 && all[1].seed == 18);
        for run in all {
            prop_assert_eq!((run.steps.len(), run.is_exhausted), (count, false));
            let (mut elapsed, mut best) = (0.0, f64::INFINITY);
            let mut seen = std::collections::HashSet::new();
            for step in &run.steps {
                let outcome = &space.outcomes()[step.outcome];
                elapsed += outcome.compile_seconds + outcome.measure_seconds;
                prop_assert!(seen.insert(step.outcome));
                prop_assert!((step.elapsed_seconds - elapsed).abs() < 1e-9);
                if let Ok(time) = outcome.time_ms {
                    best = best.min(time);
                }
                prop_assert_eq!(step.best_ms.unwrap_or(f64::INFINITY), best);
            }
        }
    }

    /// Exhaustive search finds the optimum, and its figures say so.
    #[test]
    fn exhaustive_search_finds_the_optimum(seed in 0..1000u64) {
        let space = generated(seed, 0.3);
        let all = runs(&space, "exhaustive", 1, Until::Evaluations(2000));
        prop_assert!(all[0].is_exhausted && all[0].steps.len() == 1000);
        prop_assert_eq!(all[0].steps[999].best_ms, Some(space.optimum_ms()));
        let figures = Figures::new(&space, None, &all);
        let reached = figures.evaluations_to_95.expect("reached") as usize;
        let near = |index: usize| all[0].steps[index].best_ms.map(|b| space.optimum_ms() / b);
        prop_assert!(near(reached - 1) >= Some(0.95));
        prop_assert!(reached == 1 || near(reached - 2) < Some(0.95));
        prop_assert_eq!(figures.shares[1].share, Some(near(99).unwrap_or(0.0)));
    }
}

#[test]
fn useless_proposals_are_not_charged() {
    let space = generated(1, 0.0);
    let point = space.outcomes()[3].point.clone();
    let invalid = vec![99, 0, 0];
    let mut script = Script(vec![point.clone(), invalid, point.clone(), vec![]], Vec::new());
    let run = spanforge_tuner::replay::replay(&space, &mut script, 5, Until::Evaluations(9));
    assert_eq!((run.steps.len(), run.steps[0].outcome, run.is_exhausted), (1, 3, true));
    let outcome = &space.outcomes()[3];
    assert_eq!(script.1, [(outcome.time_ms.clone().ok(), outcome.cost_seconds())]);
}

#[test]
fn figures_are_missing_where_replays_were_cut_short() {
    let space = generated(2, 0.1);
    let figures = Figures::new(&space, None, &runs(&space, "random", 3, Until::Evaluations(60)));
    assert!(figures.shares[0].share.is_some_and(|share| share > 0.3 && share <= 1.0));
    assert_eq!((figures.shares[1].share, figures.shares[2].share), (None, None));
}

/// The time of a configuration is the median of its warm runs: the cold first one, 40 ms in the
/// generated spaces, and the mean that includes it, 9 ms, do not count.
#[test]
fn the_cold_run_does_not_count() {
    let space = generated(3, 0.0);
    assert!(space.sorted_times().iter().all(|time| *time < 8.0));
    let few = |runs_ms: &[f64], mean_ms| Runs { mean_ms, runs_ms: runs_ms.to_vec() }.objective_ms();
    assert_eq!(few(&[9.0, 2.0, 1.0], Some(4.0)), Some(1.5));
    assert_eq!(few(&[9.0, 3.0, 2.0, 1.0], Some(4.0)), Some(2.0));
    assert_eq!(few(&[9.0], Some(4.0)), Some(4.0));
    assert_eq!(few(&[9.0], None), Some(9.0));
    assert_eq!(few(&[], Some(1e20)), None);
    assert_eq!(few(&[], None), None);
}

/// The budget by hand: 1000 distinct times, of which those within 5 % of the way from the optimum
/// to the median reach the target.
#[test]
fn the_budget_is_that_of_the_formula() {
    let space = generated(4, 0.0);
    let scale = Scale::new(&space).expect("not flat");
    let mut times = space.sorted_times();
    let median = (times[499] + times[500]) / 2.0;
    let target = times[0] + 0.05 * (median - times[0]);
    times.reverse();
    let i = times.iter().filter(|time| **time > target).count();
    assert_eq!(scale.budget_evaluations, (i as f64 / (1001 - i) as f64).ceil() as usize);
    let mut costs: Vec<f64> = space.outcomes().iter().map(|o| o.cost_seconds()).collect();
    costs.sort_by(f64::total_cmp);
    let cost = (costs[499] + costs[500]) / 2.0;
    assert!((scale.budget_seconds - scale.budget_evaluations as f64 * cost).abs() < 1e-9);
}

/// The self-test of the score on generated spaces: random search is 0 within what chance can do,
/// search that knows the optimum is near 1, and one that only finds the worst is far below 0.
#[test]
fn random_search_scores_0_and_a_search_that_knows_scores_1() {
    let spaces: Vec<Recorded> =
        (0..5).map(|seed| generated(100 + seed, 0.05 * seed as f64)).collect();
    let scores: Vec<Score> = spaces.iter().map(random_score).collect();
    for score in &scores {
        let chance = 4.0 * score.repeat_error + 0.05;
        assert!(score.score.abs() < chance, "{} +- {}", score.score, score.repeat_error);
    }
    let (mean, error) = aggregate(&scores.iter().collect::<Vec<_>>()).expect("scores");
    assert!(mean.abs() <= error.max(0.05), "{mean} +- {error}");

    let space = &spaces[0];
    let scale = Scale::new(space).expect("not flat");
    let mut order: Vec<usize> = (0..1000).collect();
    let time = |index: &usize| space.outcomes()[*index].time_ms.clone().unwrap_or(f64::INFINITY);
    order.sort_by(|a, b| time(a).total_cmp(&time(b)));
    let score = |order: &[usize]| {
        let points = order.iter().map(|index| space.outcomes()[*index].point.clone()).collect();
        let until = Until::Both(1, scale.budget_seconds);
        let mut script = Script(points, Vec::new());
        let run = spanforge_tuner::replay::replay(space, &mut script, 0, until);
        Score::new(&scale, &[run]).expect("a score").score
    };
    assert!(score(&order) > 0.9, "{}", score(&order));
    order.reverse();
    assert!(score(&order) < -1.0, "{}", score(&order));
}

/// The same on real spaces.
#[test]
fn random_search_scores_0_on_recorded_spaces() {
    let mut scores = Vec::new();
    for file in FILES {
        let Some(path) = recorded(file) else { return };
        let recording = Recording::read(&path).expect("readable");
        let space = Recorded::new(recording).expect("some ran");
        let score = random_score(&space);
        println!(
            "{file}: {:+.3} +- {:.3} over the budget, +- {:.3} by chance; published {:+.3}",
            score.score, score.error, score.repeat_error, score.score_published
        );
        assert!(score.score.abs() <= score.error.max(3.0 * score.repeat_error), "{file}");
        scores.push(score);
    }
    let (mean, error) = aggregate(&scores.iter().collect::<Vec<_>>()).expect("scores");
    println!("all: {mean:+.3} +- {error:.3}");
    assert!(mean.abs() <= error, "{mean} +- {error}");
}
