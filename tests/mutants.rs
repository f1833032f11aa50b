//! The planted bugs: that each still fits the device code, and that a sample of them is caught. All
//! of them are hunted by `spanforge mutate`, on request.

use spanforge_device::{Compiler, Settings};
use spanforge_kernels::{KernelSpec, Limits, SearchSpace};
use spanforge_verify::mutants::{
    self, Hunt, HuntOptions, Kind, Mutant, PlantError, baseline, hunt, plant,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn compiler() -> Compiler {
    let settings = Settings::from_environment().with_progress(|line| eprintln!("{line}"));
    Compiler::new(&settings).expect("NVRTC is found or fetched")
}

fn named(name: &str) -> &'static Mutant {
    mutants::all().find(|mutant| mutant.name == name).expect("the mutant is in the table")
}

/// A change of the device code that a mutant does not follow fails here, with the mutant's name.
#[test]
fn every_mutant_changes_the_lines_it_means_to() {
    for mutant in mutants::all() {
        for id in mutant.kernels {
            let spec: KernelSpec = id.parse().unwrap();
            let planted = plant(mutant, &spec).unwrap_or_else(|e| panic!("{e}"));
            assert!(!planted.lines.is_empty(), "{} changes nothing", mutant.name);
            assert!(planted.file.ends_with(".cuh"), "{} is in the device code", mutant.name);
            for part in mutant.shows_at {
                assert!(
                    planted.has_line_with(part),
                    "{}: no line has the text {part:?} that a diagnosis may name",
                    mutant.name
                );
            }
        }
    }
}

#[test]
fn the_table_is_as_large_and_as_mixed_as_promised() {
    let names: BTreeSet<&str> = mutants::all().map(|mutant| mutant.name).collect();
    assert_eq!(names.len(), mutants::all().count(), "names are unique");
    assert!(names.len() >= 150, "{}", names.len());
    let mut kinds: BTreeMap<Kind, usize> = BTreeMap::new();
    let mut files = BTreeSet::new();
    for mutant in mutants::all() {
        *kinds.entry(mutant.kind).or_default() += 1;
        let spec = mutant.kernels[0].parse().unwrap();
        files.insert(plant(mutant, &spec).unwrap().file);
    }
    assert!(kinds.len() >= 20, "{kinds:?}");
    let expected = [
        "decode",
        "element",
        "fragments",
        "hopper",
        "kernels",
        "lanes",
        "layout",
        "memory",
        "merge",
        "overlay",
        "piece",
        "plan",
        "softmax",
        "tiles",
        "warpgroups",
    ];
    assert_eq!(files, expected.map(|name| format!("{name}.cuh")).into());
}

/// Bugs are planted in kernels that the search space has, but for shares smaller and larger than it
/// tries.
#[test]
fn the_kernels_keep_every_constraint() {
    let device = spanforge_device::open("emulated:h200").unwrap();
    for id in mutants::all().flat_map(|mutant| mutant.kernels) {
        let spec: KernelSpec = id.parse().unwrap();
        let space = SearchSpace::new(spec.shape, Limits::of(device.properties()));
        let broken = space.broken_constraint(&spec.configuration).map(|c| c.name);
        assert_eq!(broken, None, "{id}");
    }
}

#[test]
fn a_text_that_is_gone_is_an_error_that_names_the_mutant() {
    let gone = Mutant { text: "not in the source", ..*named("wait-left-out") };
    let error = plant(&gone, &gone.kernels[0].parse().unwrap()).unwrap_err();
    assert!(matches!(error, PlantError::NotOnce { count: 0, .. }));
    assert!(error.to_string().contains("wait-left-out"), "{error}");
    let ambiguous = Mutant { text: "#pragma unroll", ..gone };
    assert!(plant(&ambiguous, &gone.kernels[0].parse().unwrap()).is_err());
}

#[test]
fn a_sample_is_caught_and_never_by_a_false_alarm() {
    let compiler = compiler();
    let options = HuntOptions { seed: 0, cases: 400, time: Duration::from_secs(60) };
    let sample = mutants::sample(14, 3);
    let expected = sample.iter().filter(|mutant| mutant.needs.is_none());
    let mut caught = 0;
    for mutant in expected {
        let report = hunt(&compiler, mutant, &options).unwrap();
        assert!(!report.failed(), "{}: {:?}", mutant.name, report.outcome);
        caught += 1;
    }
    assert!(caught >= 10, "{caught}");
}

#[test]
fn a_check_names_the_line_that_reads_too_early() {
    let options = HuntOptions { seed: 0, cases: 40, time: Duration::from_secs(60) };
    let report = hunt(&compiler(), named("barrier-before-wait"), &options).unwrap();
    let Hunt::Caught(catch) = report.outcome else { panic!("{:?}", report.outcome) };
    assert_eq!(catch.check, "async-hazard");
    let line = catch.line.expect("the diagnosis has a line");
    assert!(line.right && line.file == "memory.cuh", "{line:?}");
}

/// The hunt itself must not find anything where nothing is planted.
#[test]
fn an_unchanged_kernel_passes_and_a_change_without_effect_is_missed() {
    let compiler = compiler();
    let original = named("wait-left-out");
    assert_eq!(baseline(&compiler, original.kernels[0], 0, 20).unwrap(), None);
    let harmless = Mutant { text: "return low;", replacement: "return low + 0;", ..*original };
    let options = HuntOptions { seed: 0, cases: 30, time: Duration::from_secs(60) };
    let report = hunt(&compiler, &harmless, &options).unwrap();
    assert_eq!((report.outcome, report.cases), (Hunt::Missed, 30));
}
