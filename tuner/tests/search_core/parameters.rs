//! Parameter spaces: enumeration, sampling, neighbours and what prunes a point.

use crate::recorded;
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use spanforge_tuner::formats::{Recording, t1};
use spanforge_tuner::replay::Recorded;
use spanforge_tuner::search::parameters::{Kind, Parameter, SpaceError};
use spanforge_tuner::search::{ParameterSpace, Point, Space, Value, neighbours};
use std::collections::{HashMap, HashSet};

/// Constraints over `a`, `b`, `c`, `d`, each with the same in Rust.
type Rule = (&'static str, fn(&[i64]) -> bool);
const RULES: [Rule; 7] = [
    ("a * b <= 12", |v| v[0] * v[1] <= 12),
    ("a % 2 == 0 or c != 1", |v| v[0] % 2 == 0 || v[2] != 1),
    ("b < d", |v| v[1] < v[3]),
    ("12 % a == 0", |v| v[0] != 0 && 12 % v[0] == 0),
    ("1 <= a + b + c + d <= 9", |v| (1..=9).contains(&v.iter().sum::<i64>())),
    ("d in [1, 2, 4]", |v| [1, 2, 4].contains(&v[3])),
    ("True", |_| true),
];

fn space(sizes: &[usize], rules: &[usize]) -> ParameterSpace {
    let parameter = |(name, size): (&str, &usize)| {
        Parameter::new(name, (0..*size as i64).map(Value::Int).collect())
    };
    let parameters = ["a", "b", "c", "d"].into_iter().zip(sizes).map(parameter).collect();
    let constraints: Vec<(&str, &str)> = rules.iter().map(|r| (RULES[*r].0, RULES[*r].0)).collect();
    ParameterSpace::new(parameters, &constraints).expect("well-formed")
}

fn product(sizes: &[usize]) -> Vec<Point> {
    sizes.iter().fold(vec![Vec::new()], |points, size| {
        let extend = |p: Point| (0..*size).map(move |v| [p.clone(), vec![v]].concat());
        points.into_iter().flat_map(extend).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn enumeration_is_the_product_filtered(
        sizes in proptest::collection::vec(1..7usize, 4),
        rules in proptest::sample::subsequence((0..RULES.len()).collect::<Vec<_>>(), 0..5),
        seed: u64,
    ) {
        let space = space(&sizes, &rules);
        let values = |p: &Point| p.iter().map(|v| *v as i64).collect::<Vec<_>>();
        let keeps = |p: &Point| rules.iter().all(|r| RULES[*r].1(&values(p)));
        let expected: Vec<Point> = product(&sizes).into_iter().filter(keeps).collect();
        let found: Vec<Point> = space.points().collect();
        prop_assert_eq!(&found, &expected);

        for point in product(&sizes) {
            prop_assert_eq!(space.is_valid(&point), keeps(&point));
            let broken = rules.iter().find(|r| !RULES[**r].1(&values(&point)));
            let pruned = space.pruned_by(&point).map(|c| c.name.as_str());
            prop_assert_eq!(pruned, broken.map(|r| RULES[*r].0));
        }

        let valid: HashSet<Point> = expected.into_iter().collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..20 {
            let drawn = space.sample(&mut rng);
            prop_assert_eq!(drawn.is_some(), !valid.is_empty());
            prop_assert!(drawn.is_none_or(|point| valid.contains(&point)));
        }

        for point in &valid {
            let near = neighbours(&space, point);
            for other in &near {
                prop_assert!(valid.contains(other));
                let apart: Vec<usize> = point.iter().zip(other).map(|(a, b)| a.abs_diff(*b)).collect();
                prop_assert_eq!(apart.iter().sum::<usize>(), 1);
                prop_assert!(neighbours(&space, other).contains(point));
            }
            let all = valid.iter().filter(|other| {
                point.iter().zip(*other).map(|(a, b)| a.abs_diff(*b)).sum::<usize>() == 1
            });
            prop_assert_eq!(near.len(), all.count());
        }
    }
}

#[test]
fn drawing_is_uniform_over_groups_of_parameters() {
    let space = space(&[4, 3, 2, 3], &[0, 2]);
    let valid: Vec<Point> = space.points().collect();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut counts: HashMap<Point, usize> = HashMap::new();
    let draws = 400 * valid.len();
    for _ in 0..draws {
        *counts.entry(space.sample(&mut rng).expect("there are some")).or_default() += 1;
    }
    // 400 of each expected, standard deviation 20.
    for point in &valid {
        let count = counts.get(point).copied().unwrap_or(0);
        assert!((300..=500).contains(&count), "{point:?}: {count}");
    }
}

/// 2^200 points: nothing may list them.
#[test]
fn large_spaces_are_sampled_without_listing_them() {
    let names: Vec<String> = (0..40).map(|i| format!("p{i}")).collect();
    let parameter = |name: &String| Parameter::new(name, (0..32).map(Value::Int).collect());
    let texts: Vec<String> =
        (0..39).map(|i| format!("p{i} + p{} <= 60 or p{i} == 5", i + 1)).collect();
    let constraints: Vec<(&str, &str)> = texts.iter().map(|t| (t.as_str(), t.as_str())).collect();
    let space =
        ParameterSpace::new(names.iter().map(parameter).collect(), &constraints).expect("valid");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..100 {
        let point = space.sample(&mut rng).expect("most are valid");
        assert!(space.is_valid(&point));
    }
}

#[test]
fn values_have_kinds_and_only_sorted_numbers_an_order() {
    let of = |values: Vec<Value>| {
        let parameter = Parameter::new("p", values);
        (parameter.kind, parameter.is_ordered())
    };
    let (int, float, text) = (Value::Int, Value::Float, |t: &str| Value::Text(t.into()));
    assert_eq!(of(vec![int(1), int(2), int(8)]), (Kind::Int, true));
    assert_eq!(of(vec![int(3), int(2), int(1)]), (Kind::Int, true));
    assert_eq!(of(vec![int(3), int(1), int(2)]), (Kind::Int, false));
    assert_eq!(of(vec![float(0.5), int(1)]), (Kind::Float, true));
    assert_eq!(of(vec![Value::Bool(false), Value::Bool(true)]), (Kind::Bool, false));
    assert_eq!(of(vec![text("a"), text("b"), text("c")]), (Kind::Text, false));

    let names = Parameter::new("name", vec![text("a"), text("b"), text("c")]);
    let sizes = Parameter::new("size", vec![int(1), int(2), int(4)]);
    let space = ParameterSpace::new(vec![names, sizes], &[("no", "name != 'b' or size < 4")]);
    let space = space.expect("well-formed");
    assert_eq!(neighbours(&space, &[0, 2]), [vec![2, 2], vec![0, 1]]);
    assert_eq!(space.pruned_by(&[1, 2]).map(|c| c.name.as_str()), Some("no"));
    assert!(!space.is_valid(&[0]) && !space.is_valid(&[0, 3]) && !space.is_valid(&[0, 0, 0]));
}

#[test]
fn descriptions_that_make_no_space_are_refused() {
    let p = |name: &str, values: &[i64]| {
        Parameter::new(name, values.iter().map(|v| Value::Int(*v)).collect())
    };
    let refused = |parameters: Vec<Parameter>, constraint: &str| {
        let error = ParameterSpace::new(parameters, &[("rule", constraint)]);
        error.expect_err("refused").to_string()
    };
    assert_eq!(
        refused(vec![p("a", &[1])], "b > 1"),
        "constraint `rule` reads `b`, which is not a parameter"
    );
    assert_eq!(
        refused(vec![p("a", &[1])], "a >"),
        "constraint `rule`: character 4: expected a value, found the end"
    );
    assert_eq!(refused(vec![p("a", &[])], "1"), "parameter `a` has no values");
    assert_eq!(refused(vec![p("a", &[2, 2])], "1"), "parameter `a` has the value 2 twice");
    assert_eq!(refused(vec![p("a", &[1]), p("a", &[1])], "1"), "there are two parameters `a`");
    let many = Parameter::new("a", (0..10_001).map(Value::Int).collect());
    assert_eq!(refused(vec![many], "1"), "parameter `a` has more than 10000 values");
    assert_eq!(ParameterSpace::new(vec![], &[]).err(), Some(SpaceError::NoParameters));
}

/// The constraints of a real T1 file leave exactly what was recorded of it.
#[test]
fn t1_constraints_leave_the_recorded_configurations() {
    for (input, cache) in [
        ("t1/convolution_milo.json", "convolution/A100.json.gz"),
        ("t1/dedispersion_milo.json", "dedispersion/A4000.json.gz"),
        ("t1/pnpoly.json", "pnpoly/RTX_3060_laptop.json.gz"),
    ] {
        let (Some(input), Some(cache)) = (recorded(input), recorded(cache)) else { return };
        let described = t1::read(&input).expect("readable");
        let recording = Recorded::new(Recording::read(&cache).expect("readable")).expect("ran");
        let names: Vec<&str> = recording.parameters().iter().map(|p| p.name.as_str()).collect();
        let text = |space: &ParameterSpace, point: &Point| {
            let values: HashMap<&str, String> = space
                .parameters()
                .iter()
                .zip(space.values(point))
                .map(|(p, value)| (p.name.as_str(), value.to_string()))
                .collect();
            names.iter().map(|name| values[name].clone()).collect::<Vec<_>>().join(",")
        };
        let expected: HashSet<String> =
            (0..recording.outcomes().len()).map(|outcome| recording.key(outcome)).collect();
        let found: HashSet<String> =
            described.points().map(|point| text(&described, &point)).collect();
        assert_eq!(found.len(), expected.len(), "{}", input.display());
        assert_eq!(found, expected, "{}", input.display());
    }
}
