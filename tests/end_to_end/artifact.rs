//! `inspect`: artifacts, whole and changed.

use crate::{folder, spanforge};
use fs_err as fs;
use spanforge_device::{Basis, Compiler, Settings, Source, Target};
use spanforge_kernels::artifact::{Artifact, Contents, KernelFiles};
use spanforge_kernels::{KernelSpec, render};
use std::path::Path;

/// The kernel of [`write_artifact`].
pub const ID: &str = "f16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second";

/// An artifact with one kernel.
pub fn write_artifact(at: &Path) -> Artifact {
    let spec: KernelSpec = ID.parse().unwrap();
    let rendered = render(&spec).unwrap();
    let source = Source::new(rendered.name, rendered.text.clone());
    let compiler = Compiler::new(&Settings::from_environment()).unwrap();
    let compile = |target| compiler.compile(&source, &target).unwrap();
    let contents = Contents {
        workload: "ssas-llama2".into(),
        device: "emulated:h200".into(),
        created_by: "spanforge test".into(),
        created_unix_s: 1_767_225_599,
        kernels: vec![KernelFiles {
            spec,
            role: "winner".into(),
            time_us: 12.5,
            basis: Basis::Predicted,
            source: rendered.text,
            portable: compile(Target::Ptx("sm_80".into())),
            images: vec![compile(Target::Cubin("sm_90a".into()))],
        }],
        evidence: serde_json::json!({"cases": 50, "checked": {"worst": 0.001}}),
    };
    contents.write(at).unwrap()
}

#[test]
fn an_artifact_is_described_with_its_evidence() {
    let here = folder();
    write_artifact(&here.path().join("a"));
    let ran = spanforge(here.path(), ["inspect", "a"]).expect(0);
    ran.prints(ID)
        .prints("12.50 us predicted")
        .prints("sm_90a")
        .prints("spanforge_decode")
        .prints("2025-12-31 23:59:59 UTC")
        .prints("worst  0.001");
    let json = spanforge(here.path(), ["inspect", "a", "--json"]).expect(0).json();
    assert_eq!(json["manifest"]["kernels"][0]["id"], ID);
    assert_eq!(json["evidence"]["cases"], 50);
}

#[test]
fn the_choice_is_explained() {
    let here = folder();
    write_artifact(&here.path().join("a"));
    let fits = spanforge(here.path(), ["inspect", "a", "--explain"]).expect(0);
    fits.prints("used: the first that fits");
    let other = ["inspect", "a", "--explain", "--head-dim", "256", "--device", "emulated:a100"];
    spanforge(here.path(), other)
        .expect(0)
        .prints("built for f16-d128-g4")
        .prints("spanforge tune");
    spanforge(here.path(), ["inspect", "a", "--head-dim", "256"]).expect(2).says("--explain");
}

#[test]
fn a_changed_byte_in_any_file_is_named() {
    let here = folder();
    let root = here.path().join("a");
    let artifact = write_artifact(&root);
    let files: Vec<String> = artifact.files().map(|(name, _)| name.to_owned()).collect();
    assert!(files.len() >= 5, "{files:?}");
    for name in &files {
        let path = root.join(name);
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        fs::write(&path, changed).unwrap();
        spanforge(here.path(), ["inspect", "a"]).expect(2).says(name).says("changed");
        fs::write(&path, whole).unwrap();
    }
    fs::write(root.join("extra"), "x").unwrap();
    spanforge(here.path(), ["inspect", "a"]).expect(2).says("extra");
    fs::remove_file(root.join("extra")).unwrap();
    spanforge(here.path(), ["inspect", "a"]).expect(0);
    spanforge(here.path(), ["inspect", "nothing"]).expect(2).says("nothing");
}
