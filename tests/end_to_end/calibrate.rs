//! `calibrate`: from a run on a GPU to a profile that predicts it. The GPU is a stand-in, which says so
//! of itself: the cost model of another profile, its times passed off as measured.

use crate::{folder, names, spanforge};
use fs_err as fs;
use serde_json::Value;
use std::path::Path;

/// The H200's profile, with its clock as a factor of it says.
fn slower(here: &Path, factor: f64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("emulator/profiles/h200.json");
    let mut profile: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let clock = profile["boost_clock"]["value"].as_f64().unwrap();
    profile["boost_clock"]["value"] = (factor * clock).into();
    fs::write(here.join("slower.json"), profile.to_string()).unwrap();
}

#[test]
fn a_slower_clock_is_found_and_written_to_a_profile_that_predicts_it() {
    let here = folder();
    slower(here.path(), 0.5);
    let [workload, batch] = ["--workload=ssas-llama2", "--batch=4"];
    let device = "--device=emulated:slower.json";
    let tune = ["tune", workload, "--batch=1,4", device, "--cases=1", "--budget=18"];
    spanforge(here.path(), tune).expect(0);
    let run = here.path().join("results/tune");
    let run = run.join(&names(&run)[0]);
    let journal = fs::read_to_string(&run).unwrap();

    let refused = spanforge(here.path(), ["calibrate", run.to_str().unwrap()]);
    refused.expect(2).says("are predicted, by the very model");

    let measured = journal
        .replace("\"basis\":\"predicted\"", "\"basis\":\"measured\"")
        .replace("emulated NVIDIA H200", "NVIDIA H200");
    fs::write(here.path().join("gpu.jsonl"), &measured).unwrap();
    let calibrate = ["calibrate", "gpu.jsonl", "--output", "mine.json"];
    let said = spanforge(here.path(), calibrate).expect(0);
    for text in ["boost_clock", "rank correlation", "held out", "mine.json"] {
        assert!(said.out.contains(text), "no {text:?} in {}", said.out);
    }
    let fit = spanforge(here.path(), ["calibrate", "gpu.jsonl", "--json"]).expect(0).json();
    let figures = fit["figures"].as_array().unwrap();
    let clock = figures.iter().find(|figure| figure["name"] == "boost_clock").unwrap();
    let ratio = clock["after"].as_f64().unwrap() / clock["before"].as_f64().unwrap();
    assert!((ratio - 0.5).abs() < 0.06, "{fit}");
    assert_eq!(fit["times"], 2 * 18, "each batch counts: {fit}");
    assert!(fit["before"]["median_error"].as_f64().unwrap() > 0.1, "{fit}");
    assert!(fit["held_out"]["median_error"].as_f64().unwrap() < 0.05, "{fit}");

    // The profile is one to predict with, and says where its figures are from.
    let fitted = fs::read_to_string(here.path().join("mine.json")).unwrap();
    assert!(fitted.contains("measured times (ssas-llama2-emulated"), "{fitted}");
    let time = |device: &str| {
        let predict = ["predict", workload, batch, "--json", "--device", device];
        spanforge(here.path(), predict).expect(0).json()["time_us"].as_f64().unwrap()
    };
    let (truth, mine) = (time("emulated:slower.json"), time("emulated:mine.json"));
    assert!((mine / truth - 1.0).abs() < 0.05, "{mine} of {truth}");

    // Too little to fit to.
    let few: Vec<&str> = measured.lines().take(12).collect();
    fs::write(here.path().join("few.jsonl"), few.join("\n")).unwrap();
    spanforge(here.path(), ["calibrate", "few.jsonl"]).expect(2).says("a larger --budget");
}
