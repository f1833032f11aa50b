//! `inspect`: artifacts, whole and changed.

use crate::{folder, spanforge};
use fs_err as fs;
use serde_json::json;
use sha2::{Digest, Sha256};
use spanforge_device::{Basis, Compiler, Settings, Source, Target};
use spanforge_kernels::artifact::{Artifact, Contents, KernelFiles};
use spanforge_kernels::{KernelSpec, render};
use std::path::Path;

/// The kernel of [`write_artifact`].
pub const ID: &str = "f16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second";

/// An artifact with one kernel.
pub fn write_artifact(at: &Path) -> Artifact {
    write_artifact_of(at, ID, "sm_80")
}

/// An artifact with the kernel of that id, and PTX for that architecture.
fn write_artifact_of(at: &Path, id: &str, architecture: &str) -> Artifact {
    let spec: KernelSpec = id.parse().unwrap();
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
            buckets: Vec::new(),
            source: rendered.text,
            portable: compile(Target::Ptx(architecture.into())),
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
fn a_kernel_of_warpgroups_is_for_its_architecture_alone() {
    let here = folder();
    let id = "f16-d128-g4-wgmma-r16-staged-t64-s2-w1-h16-v16-u1-qs-p0-b1-x1-m128-second";
    write_artifact_of(&here.path().join("a"), id, "sm_90a");
    spanforge(here.path(), ["inspect", "a"]).expect(0).prints("sm_90a alone");
    let explain = |device| ["inspect", "a", "--explain", "--device", device];
    let fits = spanforge(here.path(), explain("emulated:h100")).expect(0);
    fits.prints("used: the first that fits");
    let older = spanforge(here.path(), explain("emulated:a100")).expect(0);
    older.prints("there is no cubin for sm_80 and its PTX is for sm_90a alone");
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

/// Changes the manifest and makes its digest agree.
fn edit_manifest(root: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = root.join("manifest.json");
    let old = fs::read(&path).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&old).unwrap();
    edit(&mut manifest);
    let new = serde_json::to_vec(&manifest).unwrap();
    fs::write(&path, &new).unwrap();
    let sums = fs::read_to_string(root.join("SHA256SUMS")).unwrap();
    let digest = |data: &[u8]| {
        Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    fs::write(root.join("SHA256SUMS"), sums.replace(&digest(&old), &digest(&new))).unwrap();
}

#[test]
fn a_manifest_that_contradicts_itself_or_its_files_is_refused() {
    let here = folder();
    let root = here.path().join("a");
    write_artifact(&root);
    let whole =
        [fs::read(root.join("manifest.json")).unwrap(), fs::read(root.join("SHA256SUMS")).unwrap()];
    let configuration = "/kernels/0/spec/configuration";
    for (pointer, value, fault) in [
        ("/schema".to_owned(), json!(2), "schema 2 is not supported"),
        ("/schema".to_owned(), json!(4_294_967_297_u64), "schema 4294967297 is not supported"),
        ("/abi".to_owned(), json!(-1), "abi -1 is not supported"),
        ("/interface".to_owned(), json!([]), "the interface is not that of ABI 3"),
        ("/kernels".to_owned(), json!([]), "it lists no kernel"),
        ("/kernels/0/id".to_owned(), json!("other"), "its spec is that of"),
        ("/kernels/0/threads".to_owned(), json!(7), "threads is 7, and its spec takes 128"),
        (
            "/kernels/0/shared_bytes".to_owned(),
            json!(4_294_967_295_u32),
            "shared_bytes is 4294967295",
        ),
        ("/kernels/0/ptx_architecture".to_owned(), json!("sm_x"), "`sm_x` is not an architecture"),
        (format!("{configuration}/heads_per_warp"), json!(0), "out of bounds"),
        (format!("{configuration}/token_warps"), json!(4_294_967_295_u32), "out of bounds"),
        (format!("{configuration}/vector_bytes"), json!(0), "out of bounds"),
        (format!("{configuration}/token_warps"), json!(2), "its spec is that of"),
        ("/kernels/0/spec/shape/head_dim".to_owned(), json!(0), "head_dim 0 is not served"),
    ] {
        edit_manifest(&root, |manifest| *manifest.pointer_mut(&pointer).unwrap() = value);
        spanforge(here.path(), ["inspect", "a"]).expect(2).says("manifest.json").says(fault);
        fs::write(root.join("manifest.json"), &whole[0]).unwrap();
        fs::write(root.join("SHA256SUMS"), &whole[1]).unwrap();
    }
    // Consistent in itself, but the code is another's.
    edit_manifest(&root, |manifest| {
        manifest["kernels"][0]["spec"]["configuration"]["unroll"] = json!(4);
        manifest["kernels"][0]["id"] = json!(ID.replace("-u2-", "-u4-"));
    });
    spanforge(here.path(), ["inspect", "a"]).expect(2).says("rendered for another configuration");
}
