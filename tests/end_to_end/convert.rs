//! `convert`: our own runs in the formats of other tools, and theirs in each other's.

use crate::{folder, names, spanforge};
use fs_err as fs;
use serde_json::{Value, json};

#[test]
fn a_run_becomes_a_cache_and_a_t4_file_that_replay_as_the_run_does() {
    let here = folder();
    let tune = ["tune", "--workload=ssas-llama2", "--batch=4", "--budget=12", "--cases=2"];
    let [verb, workload, batch, budget, cases] = tune;
    spanforge(here.path(), [verb, workload, batch, budget, cases, "--device=emulated:h200"])
        .expect(0);
    let journal = format!("results/tune/{}", names(&here.path().join("results/tune"))[0]);
    let t4 = spanforge(here.path(), ["convert", &journal, "--to", "t4"]).expect(0);
    fs::write(here.path().join("t4.json"), &t4.out).unwrap();
    let t4 = t4.json();
    assert_eq!(t4["metadata"]["basis"], "predicted");
    assert_eq!(t4["metadata"]["device"], "emulated NVIDIA H200");
    let results = t4["results"].as_array().unwrap();
    assert_eq!(results.len(), 12);
    for result in results {
        assert_eq!((&result["invalidity"], &result["correctness"]), (&json!("correct"), &json!(1)));
        let named = |name| result["measurements"].as_array()?.iter().find(|m| m["name"] == name);
        let value = |name| named(name).and_then(|m| m["value"].as_f64());
        assert_eq!(value("checked_problems"), Some(2.0));
        assert_eq!(value("kv_bytes_fetched_over_selected"), Some(1.0));
        assert!(value("registers") > Some(16.0) && value("max_abs_error") < Some(0.05));
    }
    let output = ["convert", &journal, "--to", "kernel-tuner", "--output", "cache.json"];
    spanforge(here.path(), output).expect(0);
    // The same times whichever way they are read, and through T4 to a cache again.
    let again = ["convert", "t4.json", "--to", "kernel-tuner", "--output", "again.json"];
    spanforge(here.path(), again).expect(0);
    let [journal, cache, t4, again] =
        [&journal, "cache.json", "t4.json", "again.json"].map(|file| {
            let arguments = [
                "replay",
                file,
                "--strategy=exhaustive",
                "--repeats=1",
                "--evaluations=12",
                "--json",
            ];
            let report = spanforge(here.path(), arguments).expect(0).json();
            let file = &report["files"][0];
            let evaluations = file["strategies"][0]["replays"][0]["evaluations"].as_array();
            let mut times: Vec<f64> = evaluations
                .unwrap()
                .iter()
                .map(|e| e["time_ms"].as_f64().expect("a time"))
                .collect();
            times.sort_by(f64::total_cmp);
            (times, file["parameters"].clone())
        });
    assert_eq!(journal.0.len(), 12);
    assert_eq!(journal, cache);
    assert_eq!(journal, t4);
    assert_eq!(journal, again);
}

#[test]
fn what_cannot_be_converted_is_named_and_nothing_is_written() {
    let here = folder();
    let convert = |file| spanforge(here.path(), ["convert", file, "--to=t4", "--output=out.json"]);
    convert("none.json").expect(2).says("none.json");
    for (text, reason) in [
        ("{}", "neither a Kernel Tuner cache"),
        ("{\"record\":\"span\"}\n", "file:1: not a line of a journal"),
        ("{\"cache\": {}}", "tune_params"),
        ("not JSON", "is not a JSON object"),
    ] {
        fs::write(here.path().join("file"), text).unwrap();
        convert("file").expect(2).says(reason);
    }
    spanforge(here.path(), ["convert", "file", "--to=t5"]).expect(2).says("kernel-tuner");
    assert_eq!(names(here.path()), ["file"]);
    // What a cut leaves is converted, and the cut is said.
    let cut =
        "{\"tune_params_keys\": [\"a\"], \"cache\": {\"1\": {\"a\": 1, \"time\": 2.5}, \"2\": {";
    fs::write(here.path().join("file"), cut).unwrap();
    convert("file").expect(0).says("not complete");
    let text = fs::read_to_string(here.path().join("out.json")).unwrap();
    let out: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(out["results"].as_array().unwrap().len(), 1);
}
