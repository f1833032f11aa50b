//! `check`: configurations and edited sources against the oracle.

use crate::{folder, skip, spanforge};
use fs_err as fs;
use std::path::Path;

/// A configuration with CUDA cores, which the edits are of.
const ID: &str = "f16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second";

/// Renders it with one place changed.
fn edited(folder: &Path, from: &str, to: &str) -> &'static str {
    let rendered = spanforge(folder, ["render", "--config", ID]).expect(0).out;
    assert_eq!(rendered.matches(from).count(), 1, "the place to edit occurs once: {from}");
    fs::write(folder.join("mine.cu"), rendered.replace(from, to)).unwrap();
    "mine.cu"
}

#[test]
fn a_configuration_and_a_rendered_source_pass() {
    let here = folder();
    let ran = spanforge(here.path(), ["check", "--cases", "6", "--device", "emulated:h200"]);
    ran.expect(0).prints("ok").prints("1.0000").prints("mma-staged-t64");
    let render = ["render", "--output", "mine.cu", "--device", "emulated:a100"];
    spanforge(here.path(), render).expect(0);
    let check = ["check", "mine.cu", "--cases", "3", "--device", "emulated:a100", "--json"];
    let report = spanforge(here.path(), check).expect(0).json();
    assert_eq!(report["passed"], true);
    assert_eq!(report["devices"][0]["cases"], 3);
    assert_eq!(report["devices"][0]["bytes_ratio"], 1.0);
}

#[test]
fn a_planted_bug_is_found_and_reproduced_by_its_seed() {
    let here = folder();
    // The weights of a merged state are forgotten in its normaliser.
    let source =
        edited(here.path(), "sum.l = sum.l * mine + l * theirs;", "sum.l = sum.l * mine + l;");
    let check = ["check", source, "--device", "emulated:h200"];
    let ran = spanforge(here.path(), check).expect(1);
    let ran = ran.prints("FAULT").prints("wrong answer").prints("reproduce it with");
    let again = ran.out.lines().find_map(|l| l.strip_prefix("reproduce it with: spanforge "));
    let again: Vec<&str> = again.unwrap().split(' ').collect();
    let again: [&str; 8] = again.try_into().unwrap();
    spanforge(here.path(), again).expect(1).prints("wrong answer");
}

#[test]
fn a_missing_wait_is_diagnosed_with_the_line_that_reads_too_early() {
    let here = folder();
    let source =
        edited(here.path(), "wait_copies<C::STAGES - 2>();", "wait_copies<C::STAGES - 1>();");
    let ran = spanforge(here.path(), ["check", source, "--device", "emulated:h200"]).expect(1);
    ran.prints("async-hazard").prints("memory.cuh:").prints("lane");
}

#[test]
fn a_source_must_say_what_it_is_or_be_told() {
    let here = folder();
    let source = edited(here.path(), "// spanforge-kernel: ", "// nothing: ");
    let check = ["check", source, "--device", "emulated:h200", "--cases", "1"];
    spanforge(here.path(), check).expect(2).says("does not say what it was rendered for");
    let check = ["check", source, "--config", ID, "--device", "emulated:h200", "--cases", "1"];
    spanforge(here.path(), check).expect(0);
}

#[test]
fn a_broken_edit_is_shown_where_it_was_made() {
    let here = folder();
    let source =
        edited(here.path(), "__syncthreads();  // the states of all warps", "nothing();  //");
    spanforge(here.path(), ["check", source, "--device", "emulated:h200"])
        .expect(2)
        .says("decode.cuh(")
        .says("identifier \"nothing\" is undefined");
}

#[test]
fn devices_that_are_not_there_are_bad_input() {
    let here = folder();
    spanforge(here.path(), ["check", "--cases", "1", "--device", "h200"])
        .expect(2)
        .says("emulated:h200")
        .says("cuda:<n>");
    if spanforge_device::cuda::device_count().is_ok() {
        skip("this machine has an NVIDIA driver");
        return;
    }
    let ran = spanforge(here.path(), ["check", "--cases", "1", "--device", "cuda:0"]).expect(2);
    ran.says("NVIDIA driver").says("emulated:h200");
}

#[test]
fn a_wrong_access_is_shown_in_the_source_that_was_edited() {
    let here = folder();
    // The address of a token far before the first is looked for.
    let right = "const long long offset = cursor.offset(index);";
    let wrong = "const long long offset = cursor.offset(index - (1 << 30));";
    let source = edited(here.path(), right, wrong);
    let text = fs::read_to_string(here.path().join(source)).unwrap();
    let line = 1 + text.lines().position(|line| line.contains(wrong)).unwrap();
    let ran = spanforge(here.path(), ["check", source, "--device", "emulated:h200"]).expect(1);
    let place = format!("mine.cu:{line} (tiles.cuh:");
    let ran =
        ran.prints(&format!("differs from what the configuration renders in 1 line: {place}"));
    // A page that is not there is read where addresses are made, inlined at the edited line.
    let ran = ran.prints(&format!("inlined at {place}"));
    let ran = ran.prints("out-of-bounds");
    let ran = ran.prints(" |         return C::Kv::BYTES * (pages[page] *");
    let ran = ran.prints(&format!("  >*{line:>5} |         {wrong}"));
    ran.prints("rows of").prints("reproduce it with: spanforge check mine.cu --seed");
    let report = spanforge(here.path(), ["check", source, "--device", "emulated:h200", "--json"]);
    let report = report.expect(1).json();
    assert!(report["edited"].as_str().unwrap().contains("mine.cu"), "{report:#}");
    assert!(report["devices"][0]["fault"]["findings"][0]["inlined_at"][0]["line"].is_u64());
}

#[test]
fn a_wrong_answer_leads_to_the_edited_lines() {
    let here = folder();
    let source =
        edited(here.path(), "largest = fmaxf(largest, logit[u][h]);", "largest = logit[u][h];");
    let ran = spanforge(here.path(), ["check", source, "--device", "emulated:h200"]).expect(1);
    ran.prints("wrong answer")
        .prints("the source was edited here")
        .prints("largest = logit[u][h];");
}
