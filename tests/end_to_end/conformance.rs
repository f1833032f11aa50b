//! `conformance`: the table of opcode forms, listed, written out and run.

use crate::{folder, names, spanforge};
use fs_err as fs;

#[test]
fn the_whole_table_holds_on_the_emulated_device() {
    let here = folder();
    let ran =
        spanforge(here.path(), ["conformance", "--device", "emulated:h200", "--json"]).expect(0);
    let report = ran.json();
    assert_eq!(report["passed"], true);
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.len() > 5000, "{}", rows.len());
    assert!(rows.iter().all(|row| row["status"] == "passed"));
    assert!(
        rows.iter()
            .any(|row| row["form"] == "fma.rn.ftz.f32" && row["cases"].as_u64() > Some(3000))
    );
}

#[test]
fn forms_that_an_architecture_lacks_are_skipped() {
    let here = folder();
    let arguments = ["conformance", "--device", "emulated:a100", "--only", "tanh.approx", "--json"];
    let report = spanforge(here.path(), arguments).expect(0).json();
    for row in report["rows"].as_array().unwrap() {
        let brain = row["form"].as_str().unwrap().contains("bf16");
        assert_eq!(row["status"], if brain { "skipped" } else { "passed" }, "{row}");
    }
}

#[test]
fn the_table_is_listed_and_written_as_ptx() {
    let here = folder();
    spanforge(here.path(), ["conformance", "--only", "ex2.approx", "--list"])
        .expect(0)
        .prints("ex2.approx.ftz.f32")
        .prints("9.7.3.21");
    spanforge(here.path(), ["conformance", "--only", "ex2.approx", "--ptx", "forms"]).expect(0);
    let written = names(&here.path().join("forms"));
    assert_eq!(written, ["sm_75-isa-7.8.ptx", "sm_90-isa-8.4.ptx"]);
    let text = fs::read_to_string(here.path().join("forms/sm_75-isa-7.8.ptx")).unwrap();
    assert!(text.contains("ex2.approx.ftz.f32 %d0, %s0;"));
}

#[test]
fn what_is_missing_is_said() {
    let here = folder();
    spanforge(here.path(), ["conformance", "--only", "frobnicate"]).expect(2).says("frobnicate");
    spanforge(here.path(), ["conformance", "--device", "cuda:4000"]).expect(2).says("cuda");
    spanforge(here.path(), ["conformance", "--device", "emulated:none"])
        .expect(2)
        .says("emulated:h200");
}

#[test]
fn tensor_cores_add_as_they_are_told() {
    let here = folder();
    for model in ["ampere", "hopper"] {
        let device = format!("emulated:h200,mma={model}");
        let ran = spanforge(here.path(), ["conformance", "--device", &device, "--only", "mma."]);
        ran.expect(0).prints("as expected");
    }
    spanforge(here.path(), ["conformance", "--device", "emulated:h200,mma=volta"])
        .expect(2)
        .says("mma=volta");
    spanforge(here.path(), ["emulate", "launch.json", "--mma", "volta"]).expect(2).says("hopper");
}
