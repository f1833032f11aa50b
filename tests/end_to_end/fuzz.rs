//! `fuzz`: from a bug to a case file that shows it, and back to a pass once it is mended.

use crate::{Ran, command, finish, folder, names, spanforge};
use fs_err as fs;
use std::path::Path;

/// Renders the default configuration with the ring read one stage behind.
fn broken_ring(folder: &Path) -> &'static str {
    let rendered = spanforge(folder, ["render"]).expect(0).out;
    let read = "const char* k = shared + t % C::STAGES";
    assert_eq!(rendered.matches(read).count(), 1);
    let broken = rendered.replace(read, "const char* k = shared + t % (C::STAGES - 1)");
    fs::write(folder.join("mine.cu"), broken).unwrap();
    "mine.cu"
}

/// Eight cases are one worker's turn: with more, whichever worker is first decides which of the bug's
/// faults is found first.
fn fuzz_broken_ring(folder: &Path) -> Ran {
    let source = broken_ring(folder);
    spanforge(folder, ["fuzz", source, "--cases", "8", "--device", "emulated:h200"])
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
    let ran =
        ran.prints("FAULT uninitialised").prints("1 rows of 1 requests").prints("memory.cuh:");
    let file = case_file(here.path());
    let ran = ran.prints(&format!("replay it with: spanforge check ./{file}"));
    assert!(ran.out.contains("selecting 97 tokens"), "{}", ran.out);
    // The case has all it needs with it.
    let elsewhere = folder();
    fs::rename(here.path().join(&file), elsewhere.path().join("case.json")).unwrap();
    spanforge(elsewhere.path(), ["check", "case.json"]).expect(1).prints("uninitialised");
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
            r#"{{"kernel": "f16-d128-*", "kind": "uninitialised", "reason": "{reason}", "case": "{file}"}}"#
        )
    };
    fs::write(here.path().join("ledger.jsonl"), entry("being mended")).unwrap();
    let fuzz = |cases: &str| {
        let mut run = command(here.path(), ["fuzz", "mine.cu", "--ledger", "ledger.jsonl"]);
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

#[test]
fn an_interrupt_ends_the_run_with_its_summary() {
    let here = folder();
    let mut run = command(here.path(), ["fuzz", "--configs", "1", "--time", "600"]);
    run.args(["--device", "emulated:h200"]);
    run.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = run.spawn().expect("the binary starts");
    // Long enough to be compiling or fuzzing; either is ended.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let id = child.id().to_string();
    let killed = std::process::Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}");
    assert!(out.contains("ended by Ctrl-C"), "{out}");
}
