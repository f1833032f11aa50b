//! `bench`: kernels on named batches, on the emulated device.

use crate::{Ran, command, finish, folder};
use serde_json::Value;
use std::path::Path;

fn bench(folder: &Path, arguments: &[&str]) -> Ran {
    let mut run = command(folder, ["bench"]);
    run.args(arguments);
    finish(run)
}

#[test]
fn cases_are_timed_beside_their_floor_and_dense_attention() {
    let here = folder();
    let cases = ["--case=2x512+1x64,4x256/16", "--device=emulated:h200", "--results=kept"];
    let report = bench(here.path(), &[&cases[..], &["--json"]].concat()).expect(0).json();
    assert_eq!(report["basis"], "predicted");
    assert!(report["read_gb_per_second"].as_f64() < report["dram_gb_per_second"].as_f64());
    let rows = report["rows"].as_array().unwrap();
    let of = |row: &Value| (row["case"].clone(), row["attention"].clone());
    let case = |case: &str, attention: &str| (case.into(), attention.into());
    // Rows that attend to everything are dense as they are.
    let expected =
        [case("2x512+1x64", "span"), case("4x256/16", "span"), case("4x256/16", "dense")];
    assert_eq!(rows.iter().map(of).collect::<Vec<_>>(), expected);
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap();
        assert_eq!(row["basis"], "predicted");
        assert_eq!(number("bytes_ratio"), 1.0, "{row:#}");
        assert!(number("time_us") > number("floor_us") && number("floor_us") > 0.0);
        assert!(number("imbalance") >= 1.0);
        assert!(row["kernel"].as_str().unwrap().starts_with("bf16-d128-g4-mma-"), "{row:#}");
    }
    // 1 088 tokens, 8 KV heads, rows of K and V of 256 bytes.
    assert_eq!(rows[0]["selected_kv_bytes"], 1088 * 8 * 2 * 256);
    let number = |row: usize, name: &str| rows[row][name].as_f64().unwrap();
    let [span, dense] = [1, 2].map(|row| number(row, "time_us"));
    assert_eq!([1, 2].map(|row| number(row, "speedup")), [dense / span, 1.0]);
    // Appended once more to what is kept, with the environment.
    let with_page = [&cases[..], &["--report=page.html"]].concat();
    bench(here.path(), &with_page).expect(0).prints("predicted us").says("wrote page.html");
    let page = std::fs::read_to_string(here.path().join("page.html")).unwrap();
    assert!(page.contains("<h1>Benchmark on emulated NVIDIA H200</h1>"), "{page}");
    assert!(page.contains("All times are predicted") && !page.contains("src="));
    // The three lines, in either plot.
    assert_eq!(page.matches("<circle").count(), 2 * 3);
    let kept = std::fs::read_to_string(here.path().join("kept/bench.jsonl")).unwrap();
    let kept: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[0]["rows"], kept[1]["rows"]);
    assert!(kept[0]["environment"]["nvrtc"].is_string());
}

#[test]
fn another_shape_and_another_kernel_can_be_named() {
    let here = folder();
    let id = "f16-d64-g2-staged-t32-s3-w4-h2-v16-u2-qr-p0-b1-x2-m128-second";
    let common = ["--device=emulated:a100", "--case=2x128,ssas-llama2/1"];
    let bench = |more: &[&str]| bench(here.path(), &[&common[..], more].concat());
    let shape = ["--dtype=f16", "--head-dim=64", "--query-heads=4", "--kv-heads=2"];
    bench(&[&shape[..], &["--config", id]].concat()).expect(0).prints(id).prints("predicted us");
    // The trace is of another shape, and the mix too.
    let left = bench(&["--config", id]).expect(2);
    left.says("left out: 2x128").says("left out: ssas-llama2/1").says("no case was timed");
}

/// What other libraries are timed on is what is timed here.
#[test]
fn cases_are_listed_with_their_rows() {
    let here = folder();
    let listed = bench(here.path(), &["--case=2x100/64+1x5", "--list", "--json"]).expect(0).json();
    let [case] = &listed.as_array().unwrap()[..] else { panic!("{listed:#}") };
    assert_eq!(case["attention"]["kv_heads"], 8);
    let row = serde_json::json!({"kv_len": 164, "spans": [[0, 64], [128, 164]]});
    let short = serde_json::json!({"kv_len": 5, "spans": [[0, 5]]});
    assert_eq!(case["rows"], serde_json::json!([row, row, short]));
    let all = bench(here.path(), &["--list"]).expect(0);
    all.prints("1x128K+31x4K").prints("da-gemma4/64").prints("64 rows selecting");
}

#[test]
fn what_is_no_case_is_bad_input() {
    let here = folder();
    for (case, says) in [
        ("1x0", "ROWSxTOKENS"),
        ("da-gemma4/9999", "number of rows"),
        ("nowhere", "da-gemma4"),
        ("", "da-gemma4"),
    ] {
        let case = format!("--case={case}");
        bench(here.path(), &[&case, "--device=emulated:h200"]).expect(2).says(says);
    }
    let artifact = ["--artifact=nowhere", "--device=emulated:h200"];
    bench(here.path(), &artifact).expect(2).says("nowhere");
}
