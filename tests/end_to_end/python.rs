//! The Python package's own tests, with this binary and a data set of its own. Those that need torch or a
//! GPU are skipped where there is none.

use crate::{folder, skip, spanforge};
use std::path::Path;
use std::process::Command;

#[test]
fn the_python_package_passes_its_tests() {
    let here = folder();
    let data = here.path().join("data.jsonl");
    let mut lines = String::new();
    for task in ["--task=arithmetic", "--task=summarisation"] {
        lines += &spanforge(here.path(), ["dataset", task, "--count=40", "--seed=7"]).expect(0).out;
    }
    fs_err::write(&data, lines).unwrap();
    let ran = Command::new("python3")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("python"))
        .args(["-m", "unittest", "discover", "-s", "tests"])
        .env("PYTHONPATH", "src")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SPANFORGE", env!("CARGO_BIN_EXE_spanforge"))
        .env("SPANFORGE_DATASET", &data)
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let summary = said.lines().last().unwrap_or_default();
    assert!(summary.starts_with("OK"), "{said}");
    if summary.contains("skipped") {
        skip(&format!("of the Python package's tests, without torch or without a GPU: {summary}"));
    }
}
