//! `fuzz`: from a bug to a case file that shows it, and back to a pass once it is mended.

use crate::{Ran, command, finish, folder, names, spanforge};
use fs_err as fs;
use std::path::Path;

/// Renders a configuration with three stages, the ring read one stage behind.
fn broken_ring(folder: &Path) -> &'static str {
    let id = "f16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second";
    let rendered = spanforge(folder, ["render", "--config", id]).expect(0).out;
    let read = "const char* k = shared + t % C::STAGES";
    assert_eq!(rendered.matches(read).count(), 1);
    let broken = rendered.replace(read, "const char* k = shared + t % (C::STAGES - 1)");
    fs::write(folder.join("mine.cu"), broken).unwrap();
    "mine.cu"
}

/// With this seed the first case is one in which the bug reads what nothing has written; others give
/// wrong answers.
const SEED: &str = "6";

fn fuzz_broken_ring(folder: &Path) -> Ran {
    let source = broken_ring(folder);
    let fuzz = ["fuzz", source, "--cases", "8", "--seed", SEED, "--device", "emulated:h200"];
    spanforge(folder, fuzz)
}

fn case_file(folder: &Path) -> String {
    names(folder).into_iter().find(|name| name.starts_with("case-")).expect("a case file")
}

#[test]
fn correct_kernels_pass_with_their_coverage() {
    let here = folder();
    let fuzz = ["fuzz", "--cases", "160", "--configs", "4", "--seed", "5"];
    let mut run = command(here.path(), fuzz);
    run.args(["--device", "emulated:a100", "--json"]);
    let report = finish(run).expect(0).json();
    assert_eq!(report["passed"], true);
    assert_eq!(report["cases"], 160);
    assert_eq!(report["fewest_cases_per_configuration"], 40, "every kernel has its turn");
    assert_eq!(report["configurations"].as_array().unwrap().len(), 4);
    let edges = report["edges"]["edges"].as_array().unwrap();
    let empty = edges.iter().find(|edge| edge[0] == "row: empty").unwrap();
    assert!(empty[1].as_u64().unwrap() > 0, "{empty}");
    assert!(names(here.path()).is_empty(), "nothing is written where nothing is found");
}

#[test]
fn a_fault_is_shrunk_to_a_case_that_check_replays() {
    let here = folder();
    let ran = fuzz_broken_ring(here.path()).expect(1);
    // One token more than the ring's three tiles of 32, or than the two that are read.
    let ran = ran.prints("FAULT async-hazard").prints("1 rows of 1 requests").prints("memory.cuh:");
    let file = case_file(here.path());
    let ran = ran.prints(&format!("replay it with: spanforge check ./{file}"));
    assert!(ran.out.contains("selecting 97 tokens"), "{}", ran.out);
    // The case has all it needs with it.
    let elsewhere = folder();
    fs::rename(here.path().join(&file), elsewhere.path().join("case.json")).unwrap();
    spanforge(elsewhere.path(), ["check", "case.json"]).expect(1).prints("async-hazard");
    // Mended: the same case for the kernel as the tool renders it.
    let path = elsewhere.path().join("case.json");
    let mut case: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    case.as_object_mut().unwrap().remove("source").expect("an edited source");
    fs::write(&path, case.to_string()).unwrap();
    spanforge(elsewhere.path(), ["check", "case.json"]).expect(0).prints("ok");
}

#[test]
fn the_ledger_tolerates_a_known_fault_and_is_loud_about_a_mended_one() {
    let here = folder();
    fuzz_broken_ring(here.path()).expect(1);
    let file = case_file(here.path());
    let entry = |reason: &str| {
        format!(
            r#"{{"kernel": "f16-d128-*", "kind": "async-hazard", "reason": "{reason}", "case": "{file}"}}"#
        )
    };
    fs::write(here.path().join("ledger.jsonl"), entry("being mended")).unwrap();
    let fuzz = |cases: &str| {
        let mut run =
            command(here.path(), ["fuzz", "mine.cu", "--seed", SEED, "--ledger", "ledger.jsonl"]);
        run.args(["--cases", cases, "--device", "emulated:h200"]);
        finish(run)
    };
    // The first case alone: others fail in other ways too.
    fuzz("1").expect(0).prints("tolerated").prints("being mended");
    let path = here.path().join(&file);
    let mut case: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    case.as_object_mut().unwrap().remove("source");
    fs::write(&path, case.to_string()).unwrap();
    fuzz("8").expect(1).prints("FIXED?");
    fs::write(here.path().join("ledger.jsonl"), entry("")).unwrap();
    fuzz("8").expect(2).says("line 1").says("the reason is empty");
}

#[test]
fn cases_that_make_no_sense_are_bad_input() {
    let here = folder();
    let replay = |text: &str| {
        fs::write(here.path().join("case.json"), text).unwrap();
        spanforge(here.path(), ["check", "case.json"]).expect(2)
    };
    replay("{").says("case.json").says("it is not a case");
    replay(r#"{"spanforge_case": 7}"#).says("version 7");
    let kept = include_str!("../regressions/empty-row-left-unwritten.json");
    replay(&kept.replace("\"page_size\": 1,", "\"page_size\": 0,")).says("page_size is 0");
    replay(&kept.replace("\"request\": 0", "\"request\": 3")).says("rows[0].request is 3");
    replay(&kept.replace("\"extra_pages\": 0", "\"extra_pages\": 4294967295")).says("elements");
    replay(&kept.replace("-w4-", "-w0-")).says("constraint");
    spanforge(here.path(), ["fuzz", "--output", "nowhere"]).expect(2).says("no such folder");
}

/// Whatever is found is the same however many processes look for it.
#[test]
fn one_worker_and_two_find_the_same() {
    let here = folder();
    let source = broken_ring(here.path());
    let fuzz = |workers: &str, more: &[&str]| {
        let mut run = command(here.path(), ["fuzz", source, "--cases", "64", "--json"]);
        run.args(["--device", "emulated:h200", "--workers", workers]).args(more);
        finish(run).expect(1).json()
    };
    let (one, two) = (fuzz("1", &["--keep-going"]), fuzz("2", &["--keep-going"]));
    for field in ["cases", "failures", "faulty_cases", "edges", "lines", "lost_count"] {
        assert_eq!(one[field], two[field], "{field}");
    }
    assert!(one["failures"].as_array().unwrap().len() > 1, "kinds of fault");
    assert_eq!((&one["cases"], &one["lost_count"]), (&64.into(), &0.into()));
    // Without going on, too, it is the first case that counts, not the first worker.
    assert_eq!(fuzz("1", &[])["failures"], fuzz("3", &[])["failures"]);
}

/// The run once ended with the last case, before its worker had told which lines the turn had reached.
#[test]
fn lines_of_the_last_turn_count() {
    let here = folder();
    let mut run = command(here.path(), ["fuzz", "--cases", "8", "--json"]);
    run.args(["--device", "emulated:h200", "--configs", "1"]);
    let lines = &finish(run).expect(0).json()["lines"];
    assert!(lines["reached"].as_u64().unwrap() > 100, "{lines:#}");
}

/// Values of kernels that take several rows at a time once were neither met nor missed.
#[test]
fn parameters_are_those_of_query_tiles_too() {
    let here = folder();
    let mut run = command(here.path(), ["fuzz", "--cases", "24", "--configs", "3", "--json"]);
    run.args(["--device", "emulated:h200", "--head-dim", "64", "--group-size", "4"]);
    let report = finish(run).expect(0).json();
    let parameters = report["parameters"].as_array().unwrap();
    let values = |name: &str, of: &str| -> Vec<String> {
        let parameter = parameters.iter().find(|parameter| parameter["name"] == name).unwrap();
        let values = parameter[of].as_array().unwrap().iter();
        values.map(|value| value.as_str().unwrap().to_owned()).collect()
    };
    // The defaults: one row at a time, up to four, up to as many as two warpgroups take.
    assert_eq!(values("core", "met"), ["mma", "wgmma"]);
    assert_eq!(values("core", "missed"), ["fma"]);
    assert_eq!(values("query_rows", "met"), ["1", "4", "32"]);
    assert!(values("query_rows", "missed").contains(&"8".to_owned()));
}

#[test]
fn lines_that_no_case_reaches_are_named() {
    let here = folder();
    let rendered = spanforge(here.path(), ["render"]).expect(0).out;
    // No problem without rows is launched.
    let first = "    const int count = span_ptr[sets];";
    let planted = "    const int count = span_ptr[sets]; if (sets < 1) {\n#line 900 \"plan.cuh\"\n        set_tokens[0] = 7;\n#line 74 \"plan.cuh\"\n    }";
    assert_eq!(rendered.matches(first).count(), 1);
    fs::write(here.path().join("mine.cu"), rendered.replace(first, planted)).unwrap();
    let fuzz = |more: [&str; 1]| {
        let mut run = command(here.path(), ["fuzz", "mine.cu", "--cases", "200"]);
        run.args(["--device", "emulated:h200", "--seed", "1"]).args(more);
        finish(run).expect(0)
    };
    let ran = fuzz(["--keep-going"]);
    let line = ran.out.lines().find(|line| line.starts_with("lines ")).expect("the lines");
    let (counts, missing) = line.split_once(", not reached: ").expect(line);
    assert!(missing.contains("plan.cuh:900"), "{line}");
    let counts: Vec<u64> = counts.split(' ').filter_map(|word| word.parse().ok()).collect();
    let lines = &fuzz(["--json"]).json()["lines"];
    assert_eq!(
        (lines["reached"].as_u64(), lines["with_code"].as_u64()),
        (Some(counts[0]), Some(counts[1]))
    );
    let named = lines["not_reached"].as_array().unwrap();
    assert_eq!(named.len() as u64, counts[1] - counts[0]);
}
