//! `replay`: from recorded spaces to figures that anybody can recompute from the JSON.

use crate::{folder, spanforge};
use fs_err as fs;
use serde_json::{Value, json};
use std::path::Path;

/// A cache of 8 x 8 configurations, some failed, with the fastest at `a` = 5, `b` = 3.
fn cache() -> Value {
    let mut cache = serde_json::Map::new();
    for a in 0..8i64 {
        for b in 0..8i64 {
            let distance = (a - 5).pow(2) + (b - 3).pow(2);
            let time = 1.0 + distance as f64 / 10.0;
            let mut entry = json!({
                "a": a, "b": b, "compile_time": 1000.0 + 10.0 * a as f64, "verification_time": 5,
                "benchmark_time": 4.0 * time, "strategy_time": 0, "framework_time": 1.0,
            });
            if a * b == 12 {
                entry["time"] = "RuntimeFailedConfig".into();
            } else {
                entry["time"] = time.into();
                // The first run is cold.
                entry["times"] = json!([50.0, time, time, time]);
            }
            cache.insert(format!("{a},{b}"), entry);
        }
    }
    let values: Vec<i64> = (0..8).collect();
    json!({
        "device_name": "a GPU", "kernel_name": "a kernel", "problem_size": 64,
        "tune_params_keys": ["a", "b"], "tune_params": {"a": values, "b": values},
        "objective": "time", "cache": cache,
    })
}

fn written(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}

#[test]
fn figures_can_be_recomputed_from_the_listed_evaluations() {
    let here = folder();
    let cache = cache();
    written(here.path(), "space.json", &cache.to_string());
    let arguments =
        ["replay", "space.json", "--strategy", "all", "--repeats", "5", "--seed", "3", "--json"];
    let ran = spanforge(here.path(), arguments).expect(0);
    assert_eq!(ran.out, spanforge(here.path(), arguments).expect(0).out, "the same again");
    let report = ran.json();
    let file = &report["files"][0];
    assert_eq!(file["configurations"], 64);
    assert_eq!(file["failed"], json!({"runtime": 4}));
    assert_eq!((&file["optimum"], &file["optimum_ms"]), (&json!("5,3"), &json!(1.0)));
    let names: Vec<&str> = file["strategies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["strategy"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"random") && names.contains(&"exhaustive"));

    for strategy in file["strategies"].as_array().unwrap() {
        let replays = strategy["replays"].as_array().unwrap();
        assert_eq!(replays.len(), 5);
        let (mut shares, mut evaluations_to_95) = (0.0, Vec::new());
        for (replay, seed) in replays.iter().zip(3..) {
            assert_eq!(replay["seed"], seed);
            let mut best = f64::INFINITY;
            let mut reached = None;
            for (index, evaluation) in replay["evaluations"].as_array().unwrap().iter().enumerate()
            {
                let recorded = &cache["cache"][evaluation["configuration"].as_str().unwrap()];
                match recorded["time"].as_f64() {
                    Some(time) => {
                        assert_eq!(evaluation["time_ms"], time);
                        best = best.min(time);
                    }
                    None => assert_eq!(evaluation["failure"], "runtime"),
                }
                let near = |key: &str, ms: f64| {
                    let seconds = evaluation[key].as_f64().unwrap();
                    assert!((seconds - ms / 1e3).abs() < 1e-12, "{key}: {evaluation}");
                };
                let ms = |key: &str| recorded[key].as_f64().unwrap();
                near("compile_seconds", ms("compile_time"));
                near("measure_seconds", ms("verification_time") + ms("benchmark_time"));
                near("other_seconds", ms("framework_time"));
                if index < 50 {
                    shares += if index == 49 { 1.0 / best } else { 0.0 };
                }
                if best <= 1.0 / 0.95 {
                    reached = reached.or(Some(index + 1));
                }
            }
            evaluations_to_95.push(reached.unwrap());
        }
        let share = strategy["shares"][0]["share"].as_f64().unwrap();
        assert!((share - shares / 5.0).abs() < 1e-12, "{strategy:.300}");
        evaluations_to_95.sort_unstable();
        assert_eq!(strategy["evaluations_to_95"], evaluations_to_95[2] as f64);
        let score = &strategy["score"];
        let curve = score["curve"].as_array().unwrap();
        let mean: f64 =
            curve.iter().map(|p| p["score"].as_f64().unwrap()).sum::<f64>() / curve.len() as f64;
        assert!((mean - score["score"].as_f64().unwrap()).abs() < 1e-9);
    }
}

#[test]
fn the_table_has_a_line_for_each_file_and_strategy() {
    let here = folder();
    let mut header = cache();
    let configurations = header["cache"].take();
    let header = header.to_string().replacen("\"cache\":null,", "", 1);
    let header = header.strip_suffix('}').unwrap();
    let text = format!("{header},\"cache\":{configurations}}}");
    written(here.path(), "whole.json", &text);
    // Cut off in the middle of a configuration, as after a crash.
    written(here.path(), "cut.json", &text[..text.find("\"6,3\"").unwrap() + 20]);
    let ran = spanforge(
        here.path(),
        ["replay", "whole.json", "cut.json", "--strategy", "random", "--repeats", "10"],
    );
    let ran = ran.expect(0).prints("a kernel").prints("a GPU").prints("cut.json is cut off");
    let lines = |start: &str| ran.out.lines().filter(|l| l.starts_with(start)).count();
    // A line about the file, one about the strategy; the cut one says so too.
    assert_eq!((lines("whole.json"), lines("cut.json")), (2, 3));
    assert_eq!(lines("mean of 2 files"), 1);
    assert_eq!(ran.err, "", "no progress where standard error is not a terminal");
}

#[test]
fn replays_end_after_the_evaluations_asked_for() {
    let here = folder();
    written(here.path(), "space.json", &cache().to_string());
    let ran = spanforge(
        here.path(),
        ["replay", "space.json", "--evaluations", "7", "--repeats", "2", "--json"],
    );
    let report = ran.expect(0).json();
    let strategy = &report["files"][0]["strategies"][0];
    for replay in strategy["replays"].as_array().unwrap() {
        assert_eq!(replay["evaluations"].as_array().unwrap().len(), 7);
    }
    assert_eq!(strategy["shares"][0]["share"], Value::Null);
}

#[test]
fn what_cannot_be_replayed_is_refused_with_the_reason() {
    let here = folder();
    written(here.path(), "space.json", &cache().to_string());
    let ran = spanforge(here.path(), ["replay", "space.json", "--strategy", "luck"]).expect(2);
    ran.says("unknown strategy \"luck\": known are portfolio, guided");
    spanforge(here.path(), ["replay", "none.json"]).expect(2).says("none.json");
    written(here.path(), "text.json", "no JSON");
    spanforge(here.path(), ["replay", "text.json"])
        .expect(2)
        .says("text.json is not a JSON object");
    written(here.path(), "other.json", "{}");
    spanforge(here.path(), ["replay", "other.json"]).expect(2).says("other.json is neither");
    let mut failed = cache();
    for entry in failed["cache"].as_object_mut().unwrap().values_mut() {
        entry["time"] = "CompilationFailedConfig".into();
    }
    written(here.path(), "failed.json", &failed.to_string());
    let ran = spanforge(here.path(), ["replay", "failed.json"]).expect(2);
    ran.says("failed.json").says("every recorded configuration failed");
    spanforge(here.path(), ["replay", "space.json", "--repeats", "0"]).expect(2).says("--repeats");
}
