//! `run`: problems from files, good and bad, with the kernel of an artifact; and `tune` before it.

use crate::artifact::{ID, write_artifact};
use crate::{folder, names, spanforge};
use fs_err as fs;
use safetensors::SafeTensors;
use spanforge_kernels::decoder::DecodeOutput;
use spanforge_kernels::{DecodeProblem, KernelShape, KernelSpec};
use spanforge_runtime::write_problem;
use spanforge_spans::{Dtype, KvDtype};
use spanforge_verify::{Edges, compare_with_oracle, generate};
use std::path::Path;

fn problem(shape: KernelShape, seed: u64) -> DecodeProblem {
    let spec: KernelSpec = ID.parse().unwrap();
    generate(shape, &Edges::of(&spec), seed)
}

fn shape() -> KernelShape {
    ID.parse::<KernelSpec>().unwrap().shape
}

/// Fails the test unless the file holds the oracle's answer.
#[track_caller]
fn assert_answer(file: &Path, problem: &DecodeProblem) {
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let out: Vec<u16> = tensors
        .tensor("out")
        .unwrap()
        .data()
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]))
        .collect();
    let lse: Vec<f32> = tensors
        .tensor("lse")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let comparison = compare_with_oracle(problem, &DecodeOutput { out, lse }).unwrap();
    assert!(comparison.passed, "{comparison}");
}

/// Changes one element of an i32 tensor in a file.
fn set(file: &Path, tensor: &str, element: usize, value: i32) {
    let mut bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(tensor).unwrap().data();
    let at = data.as_ptr() as usize - bytes.as_ptr() as usize + 4 * element;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(file, bytes).unwrap();
}

#[test]
fn the_answer_is_the_oracles_and_the_same_twice() {
    let here = folder();
    write_artifact(&here.path().join("a"));
    for seed in [1, 2] {
        let problem = problem(shape(), seed);
        write_problem(&here.path().join("in"), &problem).unwrap();
        for output in ["first", "second"] {
            let run =
                ["run", "a", "--inputs", "in", "--output", output, "--device", "emulated:h200"];
            spanforge(here.path(), run).expect(0).prints("the artifact's winner");
            assert_answer(&here.path().join(output), &problem);
        }
        let [first, second] =
            ["first", "second"].map(|name| fs::read(here.path().join(name)).unwrap());
        assert!(first == second, "two runs gave different bytes");
    }
}

#[test]
fn what_tune_leaves_is_an_artifact_that_runs() {
    let here = folder();
    for kv_dtype in KvDtype::ALL {
        let (workload, device) = ("--workload=ssas-llama2", "--device=emulated:h200");
        let tune = ["tune", workload, "--budget=2", device, "--kv-dtype", kv_dtype.name()];
        let tuned = spanforge(here.path(), tune).expect(0);
        let artifact = tuned.out.lines().last().unwrap();
        spanforge(here.path(), ["inspect", artifact]).expect(0).prints("us predicted");
        let llama2 = KernelShape { kv_dtype, group_size: 1, ..shape() };
        let problem = problem(llama2, 5);
        write_problem(&here.path().join("in"), &problem).unwrap();
        let run =
            ["run", artifact, "--inputs", "in", "--output", "out", "--device", "emulated:h200"];
        spanforge(here.path(), run).expect(0);
        assert_answer(&here.path().join("out"), &problem);
    }
}

#[test]
fn a_shape_that_the_artifact_lacks_is_compiled_on_demand() {
    let here = folder();
    write_artifact(&here.path().join("a"));
    let of_8_bits = KernelShape { kv_dtype: KvDtype::E4m3, ..shape() };
    for (other, says) in [
        (KernelShape::new(Dtype::Bf16, 256, 6), "bf16-d256-g6"),
        (of_8_bits, "tune --workload W --kv-dtype e4m3`"),
    ] {
        let problem = problem(other, 3);
        write_problem(&here.path().join("in"), &problem).unwrap();
        let (inputs, output, device) = ("--inputs=in", "--output=out", "--device=emulated:a100");
        let run = ["run", "a", inputs, output, device];
        spanforge(here.path(), run).expect(2).says(says).says("spanforge tune").says("--compile");
        assert_eq!(names(here.path()), ["a", "in"]);
        let run = ["run", "a", inputs, output, device, "--compile", "--json"];
        let report = spanforge(here.path(), run).expect(0).json();
        assert_eq!(report["origin"], "compiled now: the default configuration");
        assert_answer(&here.path().join("out"), &problem);
        fs::remove_file(here.path().join("out")).unwrap();
    }
}

#[test]
fn bad_inputs_are_named_and_nothing_is_written() {
    let here = folder();
    write_artifact(&here.path().join("a"));
    let good = problem(shape(), 1);
    let row = (0..good.rows()).find(|&row| good.spans.selected_tokens(row) > 0).unwrap();
    let request = good.row_request[row] as usize;

    let needed = request * good.max_pages;
    for (tensor, element, value, text) in [
        ("kv_len", request, 0, "KV length"),
        ("page_table", needed, 1 << 20, "page_table"),
        ("page_table", needed, -1, "page_table"),
        ("row_request", row, 1000, "belongs to request 1000"),
        ("span_ptr", row + 1, i32::MAX, "in: "),
        ("spans", 0, -7, "-7"),
    ] {
        write_problem(&here.path().join("in"), &good).unwrap();
        set(&here.path().join("in"), tensor, element, value);
        let run = ["run", "a", "--inputs", "in", "--output", "out", "--device", "emulated:h200"];
        spanforge(here.path(), run).expect(2).says(text);
        assert_eq!(names(here.path()), ["a", "in"]);
    }
    fs::write(here.path().join("in"), "no tensors").unwrap();
    let run = ["run", "a", "--inputs", "in", "--output", "out", "--device", "emulated:h200"];
    spanforge(here.path(), run).expect(2).says("in");
    let run = ["run", "a", "--inputs", "gone", "--output", "out", "--device", "emulated:h200"];
    spanforge(here.path(), run).expect(2).says("gone");
    write_problem(&here.path().join("in"), &good).unwrap();
    let run = ["run", "a", "--inputs", "in", "--output", "no/out", "--device", "emulated:h200"];
    spanforge(here.path(), run).expect(2).says("no/out");
    spanforge(here.path(), ["run", "--inputs", "in", "--output", "out"]).expect(2).says("ARTIFACT");
    assert_eq!(names(here.path()), ["a", "in"]);
}
