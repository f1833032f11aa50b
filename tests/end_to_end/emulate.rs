//! `emulate`: kernels that are not ours, from CUDA source and from PTX.

use crate::{folder, names, spanforge};
use fs_err as fs;
use serde_json::{Value, json};
use std::path::Path;

const SAXPY: &str = "\
extern \"C\" __global__ void saxpy(int n, float a, const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
";

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// 100 elements of y = 1.5 x + y in 2 blocks of 64 threads.
fn saxpy(folder: &Path) -> Value {
    fs::write(folder.join("saxpy.cu"), SAXPY).unwrap();
    fs::write(folder.join("x.bin"), floats((0..100).map(|i| i as f32))).unwrap();
    json!({
        "source": "saxpy.cu", "arch": "sm_80", "options": ["-DN=4"],
        "entry": "saxpy", "grid": [2, 1, 1], "block": [64, 1, 1], "shared_bytes": 0,
        "args": [
            {"i32": 100}, {"f32": 1.5},
            {"buffer": {"bytes": 400, "file": "x.bin"}},
            {"buffer": {"bytes": 400, "fill": 0}}
        ],
        "outputs": [{"arg": 3, "file": "y.bin"}]
    })
}

fn write(folder: &Path, launch: &Value) {
    fs::write(folder.join("launch.json"), launch.to_string()).unwrap();
}

#[test]
fn a_good_kernel_passes_and_its_outputs_are_written() {
    let here = folder();
    let mut launch = saxpy(here.path());
    write(here.path(), &launch);
    let ran = spanforge(here.path(), ["emulate", "launch.json"]).expect(0);
    ran.prints("nothing found").prints("sectors").prints("args[2]").prints("wrote");
    let expected = floats((0..100).map(|i| 1.5 * i as f32));
    assert_eq!(fs::read(here.path().join("y.bin")).unwrap(), expected);

    // From another folder: paths are relative to the launch file.
    fs::remove_file(here.path().join("y.bin")).unwrap();
    let elsewhere = folder();
    let path = here.path().join("launch.json");
    let ran = spanforge(elsewhere.path(), ["emulate", path.to_str().unwrap(), "--json"]);
    let report = ran.expect(0).json();
    assert_eq!(fs::read(here.path().join("y.bin")).unwrap(), expected);
    assert_eq!(report["passed"], true);
    let counters = &report["counters"];
    assert_eq!(counters["blocks"], 2);
    assert_eq!(counters["warps"], 4);
    // 100 elements of x and of y, and y again; 400 bytes are 13 sectors, the last one in part.
    assert_eq!(counters["global_load"]["bytes"], 800);
    assert_eq!(counters["global_load"]["sectors"], 26);
    assert_eq!(counters["global_store"]["bytes"], 400);

    // The same from PTX.
    let ptx = ["compile", "saxpy.cu", "--emit", "ptx", "--arch", "sm_80", "--output", "saxpy.ptx"];
    spanforge(here.path(), ptx).expect(0);
    fs::remove_file(here.path().join("y.bin")).unwrap();
    let fields = launch.as_object_mut().unwrap();
    for name in ["source", "arch", "options"] {
        fields.remove(name);
    }
    fields.insert("ptx".into(), "saxpy.ptx".into());
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"]).expect(0);
    assert_eq!(fs::read(here.path().join("y.bin")).unwrap(), expected);
}

#[test]
fn an_access_out_of_bounds_is_diagnosed_with_its_line() {
    let here = folder();
    let mut launch = saxpy(here.path());
    // All 128 threads now believe that they have an element.
    launch["args"][0] = json!({"i32": 128});
    write(here.path(), &launch);
    let ran = spanforge(here.path(), ["emulate", "launch.json"]).expect(1);
    ran.prints("out-of-bounds").prints("saxpy.cu:3").prints("args[2]").prints("no outputs");
    assert_eq!(names(here.path()), ["launch.json", "saxpy.cu", "x.bin"]);
    let report = spanforge(here.path(), ["emulate", "launch.json", "--json"]).expect(1).json();
    assert_eq!(report["passed"], false);
    let finding = &report["findings"][0];
    assert_eq!(finding["check"], "out-of-bounds");
    assert_eq!(finding["source"]["line"], 3);
    assert_eq!(finding["block"], json!([1, 0, 0]));
}

#[test]
fn reading_a_buffer_that_nothing_wrote_is_reported() {
    let here = folder();
    let mut launch = saxpy(here.path());
    launch["args"][3] = json!({"buffer": {"bytes": 400}});
    write(here.path(), &launch);
    let ran = spanforge(here.path(), ["emulate", "launch.json"]).expect(1);
    ran.prints("uninitialised").prints("saxpy.cu:3").prints("args[3]");
    // The bytes that a short file does not cover are uninitialised too, unless there is a fill.
    launch["args"][3] = json!({"buffer": {"bytes": 400, "file": "half.bin"}});
    fs::write(here.path().join("half.bin"), floats([0.0; 50])).unwrap();
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"]).expect(1).prints("args[3]");
    launch["args"][3]["buffer"]["fill"] = json!(0);
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"]).expect(0);
}

#[test]
fn headers_beside_the_source_are_found() {
    let here = folder();
    let mut launch = saxpy(here.path());
    fs::write(here.path().join("op.cuh"), SAXPY).unwrap();
    fs::write(here.path().join("saxpy.cu"), "#include \"op.cuh\"\n").unwrap();
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"]).expect(0);
    // A changed header counts, though the source is the same.
    fs::write(here.path().join("op.cuh"), SAXPY.replace("y[i] =", "y[i + n] =")).unwrap();
    spanforge(here.path(), ["emulate", "launch.json"]).expect(1).prints("op.cuh:3");
    launch["source"] = json!("gone.cu");
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"]).expect(2).says("gone.cu");
}

const CARRY: &str = include_str!("../../device/tests/suite/carry.cu");

#[test]
fn tensor_maps_are_made_of_buffers_and_outputs_come_from_them() {
    let here = folder();
    fs::write(here.path().join("carry.cu"), CARRY).unwrap();
    let x: Vec<u8> = (0..48 * 6).flat_map(i32::to_le_bytes).collect();
    fs::write(here.path().join("x.bin"), x).unwrap();
    let map = |buffer: Value, shape: [u64; 2]| {
        json!({"tensor_map": {
            "buffer": buffer, "element": "i32", "shape": shape, "tile": [32, 4], "swizzle": "128B"
        }})
    };
    let mut launch = json!({
        "source": "carry.cu", "arch": "sm_90", "entry": "carry",
        "grid": [1, 1, 1], "block": [1, 1, 1],
        "args": [map(json!({"file": "x.bin"}), [48, 6]), map(json!({"bytes": 512}), [32, 4])],
        "outputs": [{"arg": 1, "file": "y.bin"}]
    });
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"]).expect(0).prints("nothing found");
    let words = (0..128).map(|i| 48 * (1 + i / 32) + 8 + i % 32);
    let expected: Vec<u8> = words.flat_map(i32::to_le_bytes).collect();
    assert_eq!(fs::read(here.path().join("y.bin")).unwrap(), expected);

    // Both in one buffer, the second 16 bytes into it, where the tensor is too long for it.
    launch["args"][1] = json!({"tensor_map": {"arg": 0, "offset": 16, "element": "i32", "shape": [32, 48], "tile": [32, 4]}});
    launch["outputs"] = json!([]);
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"]).expect(0);
    launch["args"][1]["tensor_map"]["offset"] = json!(1152 - 64);
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"]).expect(1).prints("out-of-bounds");
    launch["args"][1]["tensor_map"]["tile"] = json!([64, 300]);
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"])
        .expect(2)
        .says("`args[1].tensor_map`: tile[1]");
}

#[test]
fn launch_files_with_faults_are_refused() {
    let here = folder();
    let good = saxpy(here.path());
    let cases = [
        ("/args/0", json!({"i32": 3_000_000_000u32}), vec!["`args[0].i32`"]),
        ("/args/0", json!({"i64": 100}), vec!["argument 0", "8 bytes", "4 bytes"]),
        (
            "/args/2/buffer",
            json!({"bytes": 40, "file": "x.bin"}),
            vec!["`args[2].buffer.file`", "400 bytes"],
        ),
        ("/args/2/buffer", json!({"file": "gone.bin"}), vec!["gone.bin"]),
        ("/args", json!([{"i32": 100}]), vec!["takes 4 arguments"]),
        ("/entry", json!("daxpy"), vec!["daxpy", "saxpy"]),
        ("/grid", json!([0, 1, 1]), vec!["grid"]),
        ("/block", json!([2048, 1, 1]), vec!["block"]),
        ("/shared_bytes", json!(200_000), vec!["`shared_bytes`", "sm_80"]),
        ("/arch", json!("sm_1"), vec!["unknown architecture"]),
        ("/options", json!(["--no-such-option"]), vec!["no-such-option"]),
    ];
    for (pointer, value, texts) in cases {
        let mut launch = good.clone();
        launch["outputs"] = json!([]);
        *launch.pointer_mut(pointer).unwrap() = value;
        write(here.path(), &launch);
        let mut ran = spanforge(here.path(), ["emulate", "launch.json"]).expect(2);
        for text in texts {
            ran = ran.says(text);
        }
    }
    let mut launch = good.clone();
    launch["outputs"][0]["file"] = json!("missing/y.bin");
    write(here.path(), &launch);
    spanforge(here.path(), ["emulate", "launch.json"]).expect(2).says("missing/y.bin");
    write(here.path(), &good);
    fs::write(here.path().join("saxpy.cu"), "extern \"C\" __global__ void saxpy() { oops; }\n")
        .unwrap();
    spanforge(here.path(), ["emulate", "launch.json"]).expect(2).says("saxpy.cu(1): error");
    assert_eq!(names(here.path()), ["launch.json", "saxpy.cu", "x.bin"]);
}

#[test]
fn ptx_that_the_emulator_does_not_know_is_refused_with_its_line() {
    let here = folder();
    let ptx = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n    frobnicate.b32;\n    ret;\n}\n";
    fs::write(here.path().join("k.ptx"), ptx).unwrap();
    let launch = json!({"ptx": "k.ptx", "entry": "k", "grid": [1, 1, 1], "block": [1, 1, 1]});
    write(here.path(), &launch);
    let ran = spanforge(here.path(), ["emulate", "launch.json"]).expect(2);
    ran.says("k.ptx").says("line 6").says("frobnicate");
}

#[test]
fn the_listing_shows_what_was_executed() {
    let here = folder();
    let launch = saxpy(here.path());
    let guarded = SAXPY
        .replace("    if (i < n)", "    if (i > 1000)\n        y[0] = x[0] / a;\n    if (i < n)");
    fs::write(here.path().join("saxpy.cu"), guarded).unwrap();
    write(here.path(), &launch);
    let ran = spanforge(here.path(), ["emulate", "launch.json", "--coverage"]).expect(0);
    // The four warps of 100 threads; nobody comes by line 4.
    let line = |number: &str, text: &str| {
        let found = ran.out.lines().find(|line| line.ends_with(text)).expect(text);
        assert!(found.contains(number), "{found}");
        found.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(line(" 3  ", "if (i > 1000)"), "4");
    assert_eq!(line(" 4  ", "y[0] = x[0] / a;"), "#####");
    assert_eq!(line(" 5  ", "y[i] = a * x[i] + y[i];"), "4");
    assert_eq!(line(" 6  ", "}"), "4");
    let report = spanforge(here.path(), ["emulate", "launch.json", "--json"]).expect(0).json();
    let lines = report["lines"].as_array().unwrap();
    assert!(lines.iter().any(|line| line["line"]["line"] == 4 && line["warps"] == 0), "{lines:?}");
}
