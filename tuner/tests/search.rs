//! What every search strategy keeps to, and that those which learn do better than chance.

use proptest::prelude::{
    Just, ProptestConfig, Strategy as _, any, prop_assert, prop_assert_eq, proptest,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_tuner::search::{
    DEFAULT_STRATEGY, Evaluation, Point, STRATEGIES, Space, Strategy, strategy,
};
use std::collections::HashSet;

/// A made-up landscape: which points are valid, which fail and what they cost follows from a seed.
#[derive(Clone, Debug)]
struct Landscape {
    sizes: Vec<usize>,
    seed: u64,
    /// Percentages of points that are valid, and of those that fail.
    valid: u64,
    failing: u64,
    /// All objectives are the same.
    flat: bool,
    /// Every second parameter has no order.
    names: bool,
    predicts: bool,
}

impl Landscape {
    /// A number below 1000 that is the same for the same point and question.
    fn chance(&self, point: &[usize], question: u64) -> u64 {
        let seed = point.iter().fold(self.seed ^ question, |hash, index| {
            hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(*index as u64 + 1)
        });
        ChaCha8Rng::seed_from_u64(seed).random_range(0..1000)
    }

    fn objective(&self, point: &[usize]) -> Option<f64> {
        if self.chance(point, 2) < self.failing * 10 {
            return None;
        }
        Some(if self.flat { 1.0 } else { self.chance(point, 3) as f64 - 100.0 })
    }

    /// All valid points, by counting up.
    fn points(&self) -> HashSet<Point> {
        let all = (0..self.sizes.iter().product()).map(|mut code: usize| {
            let digit = |size: &usize| {
                let index = code % size;
                code /= size;
                index
            };
            self.sizes.iter().map(digit).collect()
        });
        all.filter(|p: &Point| self.is_valid(p)).collect()
    }
}

impl Space for Landscape {
    fn sizes(&self) -> Vec<usize> {
        self.sizes.clone()
    }

    fn is_valid(&self, point: &[usize]) -> bool {
        self.chance(point, 1) < self.valid * 10
    }

    fn is_ordered(&self, parameter: usize) -> bool {
        !self.names || parameter.is_multiple_of(2)
    }

    fn number(&self, parameter: usize, value: usize) -> Option<f64> {
        parameter.is_multiple_of(3).then_some(16.0 * (value as f64 + 1.0))
    }

    fn predicted_best(&self) -> Vec<Point> {
        if !self.predicts {
            return Vec::new();
        }
        let mut points: Vec<Point> = self.points().into_iter().collect();
        points.sort_by_key(|point| (self.chance(point, 4), point.clone()));
        points.truncate(20);
        points
    }
}

/// Asks for up to `batch` points at a time and tells what became of them, until none is left.
fn exhaust(name: &str, seed: u64, batch: usize, space: &Landscape) -> Vec<Point> {
    let mut strategy = strategy(name, seed).expect("a listed name");
    let mut proposed = Vec::new();
    loop {
        let asked: Vec<Point> =
            std::iter::from_fn(|| strategy.propose(space)).take(batch).collect();
        for point in &asked {
            tell(strategy.as_mut(), space, point);
        }
        let ended = asked.len() < batch;
        proposed.extend(asked);
        if ended {
            assert_eq!(strategy.propose(space), None, "{name} has ended");
            return proposed;
        }
    }
}

fn tell(strategy: &mut dyn Strategy, space: &Landscape, point: &[usize]) {
    let objective = space.objective(point);
    let cost_seconds = space.chance(point, 5) as f64 / 100.0;
    strategy.observe(space, &Evaluation { point, objective, cost_seconds });
}

fn landscapes() -> impl proptest::strategy::Strategy<Value = Landscape> {
    let sizes = proptest::collection::vec(prop_sizes(), 0..5);
    let percent = || proptest::prop_oneof![Just(0u64), Just(30), Just(100)];
    (sizes, any::<u64>(), percent(), percent(), any::<[bool; 3]>()).prop_map(
        |(sizes, seed, valid, failing, [flat, names, predicts])| Landscape {
            sizes,
            seed,
            valid,
            failing,
            flat,
            names,
            predicts,
        },
    )
}

/// Mostly small, at times none or many.
fn prop_sizes() -> impl proptest::strategy::Strategy<Value = usize> {
    proptest::prop_oneof![8 => 1..5usize, 1 => Just(7usize), 1 => Just(0usize)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Each valid point once and nothing else, however many are asked for at a time, with points
    /// that fail, equal objectives, spaces without points and with one.
    #[test]
    fn every_valid_point_is_proposed_once(
        space in landscapes(), seed: u64, batch in 1..20usize,
    ) {
        let expected = space.points();
        for name in STRATEGIES {
            let proposed = exhaust(name, seed, batch, &space);
            prop_assert_eq!(proposed.len(), expected.len(), "{} repeats or misses points", name);
            let distinct: HashSet<Point> = proposed.iter().cloned().collect();
            prop_assert_eq!(&distinct, &expected, "{}", name);
            let in_order = name != "exhaustive" || proposed.is_sorted();
            prop_assert!(in_order, "exhaustive search goes in lexical order");
            let again = exhaust(name, seed, batch, &space);
            prop_assert_eq!(proposed, again, "{} does not repeat itself", name);
        }
    }

    /// Points that others evaluated are learnt from and, except by exhaustive search, not proposed.
    #[test]
    fn points_of_others_are_not_proposed_again(space in landscapes(), seed: u64) {
        let expected = space.points();
        let mut others: Vec<&Point> = expected.iter().collect();
        others.sort();
        others.truncate(expected.len() / 3);
        for name in STRATEGIES.into_iter().filter(|n| *n != "exhaustive") {
            let mut strategy = strategy(name, seed).expect("a listed name");
            for point in &others {
                tell(strategy.as_mut(), &space, point);
            }
            let mut rest = HashSet::new();
            while let Some(point) = strategy.propose(&space) {
                tell(strategy.as_mut(), &space, &point);
                rest.insert(point);
            }
            prop_assert_eq!(rest.len() + others.len(), expected.len(), "{}", name);
            prop_assert_eq!(others.iter().find(|o| rest.contains(**o)), None, "{}", name);
        }
    }
}

/// Something like a kernel: terms of single parameters, pairs that must fit, noise, failures.
struct Kernel {
    seed: u64,
}

const SIZES: [usize; 6] = [8, 8, 6, 4, 4, 2];

impl Kernel {
    fn objective(&self, point: &[usize]) -> Option<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut time = 0.0;
        for (index, size) in point.iter().zip(SIZES) {
            let best = rng.random_range(0..size);
            let steepness = rng.random_range(0.1..0.5);
            time += steepness * index.abs_diff(best) as f64;
        }
        let together = rng.random_range(4..9usize);
        time += 0.4 * (point[0] + point[1]).abs_diff(together) as f64;
        let own = point.iter().fold(self.seed, |hash, i| hash.wrapping_mul(31) + *i as u64);
        let noise = ChaCha8Rng::seed_from_u64(own).random_range(0.0..0.1);
        (point[2] + point[3] < 7).then(|| (time + noise).exp())
    }
}

impl Space for Kernel {
    fn sizes(&self) -> Vec<usize> {
        SIZES.to_vec()
    }

    fn is_valid(&self, point: &[usize]) -> bool {
        point[0] + point[4] < 10
    }

    fn predicted_best(&self) -> Vec<Point> {
        // A model that knows one parameter only.
        let objective = |first| self.objective(&[first, 0, 0, 0, 0, 0]);
        let mut known: Vec<(f64, usize)> =
            (0..SIZES[0]).filter_map(|first| Some((objective(first)?, first))).collect();
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        known.into_iter().map(|(_, first)| vec![first, 0, 0, 0, 0, 0]).collect()
    }
}

/// Mean logarithm of the best objective after `budget` proposals, over 24 landscapes.
fn found(name: &str, budget: usize) -> f64 {
    let seeds = 0..24u64;
    let count = seeds.end as f64;
    let logs = seeds.map(|seed| {
        let space = Kernel { seed };
        let mut strategy = strategy(name, seed).expect("a listed name");
        let mut best = f64::INFINITY;
        for _ in 0..budget {
            let point = strategy.propose(&space).expect("a large space");
            let objective = space.objective(&point);
            best = best.min(objective.unwrap_or(f64::INFINITY));
            strategy.observe(&space, &Evaluation { point: &point, objective, cost_seconds: 1.0 });
        }
        best.ln()
    });
    logs.sum::<f64>() / count
}

#[test]
fn strategies_that_learn_beat_chance() {
    let random = found("random", 120);
    for name in STRATEGIES.into_iter().filter(|n| !["random", "exhaustive"].contains(n)) {
        let best = found(name, 120);
        assert!(best < random - 0.3, "{name} is at {best:.3} where chance is at {random:.3}");
    }
}

#[test]
fn the_default_is_listed_and_unknown_names_are_refused() {
    assert!(STRATEGIES.contains(&DEFAULT_STRATEGY));
    for name in STRATEGIES {
        assert_eq!(strategy(name, 0).map(|s| s.name()), Some(name));
    }
    assert!(strategy("clairvoyant", 0).is_none());
}

/// A space of 10^8 points, of which one in a hundred is valid.
struct Vast;

impl Space for Vast {
    fn sizes(&self) -> Vec<usize> {
        vec![100; 4]
    }

    fn is_valid(&self, point: &[usize]) -> bool {
        point.iter().sum::<usize>().is_multiple_of(100)
    }
}

#[test]
fn vast_spaces_are_not_enumerated() {
    for name in STRATEGIES {
        let mut strategy = strategy(name, 1).expect("a listed name");
        let mut seen = HashSet::new();
        for _ in 0..60 {
            let point = strategy.propose(&Vast).expect("a valid point");
            assert!(Vast.is_valid(&point), "{name} proposes {point:?}");
            let objective = Some(1.0 + point[0] as f64);
            strategy.observe(&Vast, &Evaluation { point: &point, objective, cost_seconds: 1.0 });
            assert!(seen.insert(point), "{name} repeats a point");
        }
    }
}
