//! What users get wrong: each with an error that names the fault and the remedy, exit code 2, and
//! nothing written half.

use crate::{Ran, command, finish, folder, names, skip, spanforge};
use fs_err as fs;
use std::fs::File;
use std::process::Command;

#[test]
fn an_unknown_architecture_is_named_with_the_known_ones() {
    let here = folder();
    for architecture in ["sm_42", "hopper", "sm_90b"] {
        let ran = spanforge(
            here.path(),
            ["compile", "--emit", "ptx", "--arch", architecture, "--output", "out.ptx"],
        );
        ran.expect(2).says(&format!("unknown architecture {architecture:?}")).says("sm_90a");
    }
    assert_eq!(names(here.path()), Vec::<String>::new());
}

#[test]
fn a_template_with_an_undefined_variable_is_refused() {
    let here = folder();
    for (text, place) in [
        ("// a comment\nint a = ${ tile_size }$;\n", "mine.tera:2"),
        ("%{ if tile_size }%int a;%{ endif }%\n", "mine.tera"),
    ] {
        fs::write(here.path().join("mine.tera"), text).unwrap();
        let ran =
            spanforge(here.path(), ["render", "--template", "mine.tera", "--output", "out.cu"]);
        ran.expect(2).says(place).says("tile_size").says("tile_tokens");
    }
    assert_eq!(names(here.path()), ["mine.tera"]);
}

#[test]
fn a_source_that_does_not_compile_is_shown_with_file_and_line() {
    let here = folder();
    let source = "extern \"C\" __global__ void k(int* x) {\n    *x = missing;\n}\n";
    fs::write(here.path().join("k.cu"), source).unwrap();
    let ran = spanforge(here.path(), ["compile", "k.cu", "--emit", "ptx", "--output", "k.ptx"]);
    ran.expect(2).says("k.cu(2): error").says("identifier \"missing\" is undefined");
    assert_eq!(names(here.path()), ["k.cu"]);
}

#[test]
fn configurations_that_make_no_sense_are_refused_with_the_reason() {
    let here = folder();
    let ran = spanforge(here.path(), ["render", "--config", "f16-d128-g4"]).expect(2);
    ran.says("is not a kernel id").says("spanforge configs");
    let one_stage = "f16-d128-g4-staged-t32-s1-w4-h4-v16-u2-qr-p0-b1-x2-m128-second";
    let ran = spanforge(here.path(), ["render", "--config", one_stage]).expect(2);
    ran.says("breaks the constraint `staged-needs-a-ring`").says("two or more stages");
    // 144 KiB of shared memory twice per multiprocessor: fine on an H200? No, and neither on an L4.
    let large = "f16-d128-g4-staged-t128-s2-w4-h4-v16-u2-qr-p0-b1-x1-m128-second";
    spanforge(here.path(), ["render", "--config", large]).expect(0);
    spanforge(here.path(), ["render", "--config", large, "--device", "emulated:l4"])
        .expect(2)
        .says("`shared-memory`");
    fs::write(here.path().join("c.json"), "{\"shape\": {\"dtype\": \"f16\"}}").unwrap();
    spanforge(here.path(), ["render", "--config", "c.json"])
        .expect(2)
        .says("c.json")
        .says("head_dim");
    spanforge(here.path(), ["render", "--config", "gone.json"]).expect(2).says("gone.json");
    spanforge(here.path(), ["render", "--head-dim", "96"]).expect(2).says("64, 128, 256 or 512");
    spanforge(here.path(), ["render", "--group-size", "0"]).expect(2).says("0 query heads");
    spanforge(here.path(), ["configs", "--query-heads", "24", "--kv-heads", "5"])
        .expect(2)
        .says("not a multiple");
}

#[test]
fn unknown_devices_are_named_with_the_known_ones() {
    let here = folder();
    for device in ["h200", "emulated:h300", "cuda:x", ""] {
        let ran = spanforge(here.path(), ["render", "--device", device]).expect(2);
        ran.says("emulated:h200").says("cuda:<n>");
    }
}

/// Several devices share measuring where they are GPUs of one kind, and nothing else.
#[test]
fn devices_that_cannot_measure_together_are_named() {
    let here = folder();
    let several =
        |devices| spanforge(here.path(), ["tune", "--batch=1", "--device", devices]).expect(2);
    several("emulated:h200,emulated:a100")
        .says("emulated:a100 cannot measure as well")
        .says("predicted");
    several("emulated:h200,").says("cannot measure as well");
    several(",").says("cuda:<n>");
    assert!(names(here.path()).is_empty());
}

#[test]
fn a_gpu_without_a_driver_is_an_error_not_a_crash() {
    if spanforge_device::cuda::device_count().is_ok() {
        skip("this machine has an NVIDIA driver");
        return;
    }
    let here = folder();
    for verb in ["render", "configs"] {
        let ran = spanforge(here.path(), [verb, "--device", "cuda:0"]).expect(2);
        ran.says("NVIDIA driver").says("emulated:h200");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let here = folder();
    fs::write(here.path().join("file"), "not a folder").unwrap();
    for output in ["missing/out.cu", "file/out.cu", "."] {
        let ran = spanforge(here.path(), ["render", "--output", output]).expect(2);
        ran.says(&format!("cannot write {output}"));
    }
    assert_eq!(names(here.path()), ["file"]);
}

#[test]
fn a_full_disk_is_an_error() {
    if !std::path::Path::new("/dev/full").exists() {
        skip("there is no /dev/full");
        return;
    }
    let here = folder();
    let full = "No space left";
    spanforge(here.path(), ["render", "--output", "/dev/full"]).expect(2).says(full);
    let mut command = command(here.path(), ["configs"]);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    finish(command).expect(2).says(full);
    // Standard error is for notices and messages: their loss changes nothing else.
    for (arguments, code) in
        [(["render", "--output", "out.cu"], 0), (["render", "--head-dim", "1"], 2)]
    {
        let mut command = crate::command(here.path(), arguments);
        command.stderr(File::options().write(true).open("/dev/full").unwrap());
        finish(command).expect(code);
    }
}

#[test]
fn a_cache_folder_that_cannot_be_written_is_named_with_the_setting() {
    let here = folder();
    fs::write(here.path().join("file"), "not a folder").unwrap();
    let cache = here.path().join("file/cache");
    let mut command = command(here.path(), ["compile", "--emit", "ptx"]);
    command.env("SPANFORGE_CACHE", &cache);
    finish(command).expect(2).says("file/cache").says("SPANFORGE_CACHE");
}

/// The command where no place has an NVRTC, unless a toolkit is installed system-wide.
fn without_nvrtc(command: &mut Command, home: &std::path::Path) {
    for name in [
        "LD_LIBRARY_PATH",
        "CUDA_HOME",
        "CUDA_PATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "XDG_CACHE_HOME",
    ] {
        command.env_remove(name);
    }
    command.env("SPANFORGE_CACHE", home.join("cache")).env("HOME", home);
}

fn needs_nvrtc_of_the_machine(ran: &Ran) -> bool {
    if ran.code == 0 {
        skip("this machine has an NVRTC outside the cache");
    }
    ran.code == 0
}

#[test]
fn no_nvrtc_and_no_network_says_how_to_supply_it() {
    let here = folder();
    let mut offline = command(here.path(), ["compile", "--emit", "ptx"]);
    without_nvrtc(&mut offline, here.path());
    // pip is there, the network is not.
    offline.env("PIP_NO_INDEX", "1").env("PIP_RETRIES", "0");
    let ran = finish(offline);
    if needs_nvrtc_of_the_machine(&ran) {
        return;
    }
    ran.expect(2).says("NVRTC").says("could not be fetched").says("SPANFORGE_NVRTC_DIR");
}

#[test]
fn no_nvrtc_and_no_pip_says_how_to_supply_it() {
    let here = folder();
    let mut bare = command(here.path(), ["compile", "--emit", "ptx"]);
    without_nvrtc(&mut bare, here.path());
    bare.env("PATH", here.path());
    let ran = finish(bare);
    if needs_nvrtc_of_the_machine(&ran) {
        return;
    }
    ran.expect(2).says("NVRTC").says("pip").says("SPANFORGE_NVRTC_DIR");
}

#[test]
fn a_folder_without_nvrtc_is_named() {
    let here = folder();
    let mut wrong = command(here.path(), ["compile", "--emit", "ptx"]);
    wrong.env("SPANFORGE_NVRTC_DIR", here.path().join("nowhere"));
    finish(wrong).expect(2).says("nowhere").says("SPANFORGE_NVRTC_DIR");
}
