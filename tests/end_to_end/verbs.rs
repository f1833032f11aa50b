//! Verbs that describe and make text: help, configs, render, compile, trace, doctor.

use crate::{command, finish, folder, names, spanforge};
use fs_err as fs;
use spanforge_kernels::KernelSpec;

/// The verbs that a help text lists.
fn verbs(help: &str) -> Vec<String> {
    let list = help.split_once("Commands:\n").expect("a list of commands").1;
    list.lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|verb| verb != "help")
        .collect()
}

#[test]
fn every_verb_has_help_with_an_example() {
    let here = folder();
    let all = verbs(&spanforge(here.path(), ["--help"]).expect(0).out);
    for verb in
        ["render", "compile", "configs", "check", "emulate", "trace", "doctor", "inspect", "run"]
    {
        assert!(all.iter().any(|v| v == verb), "{verb} is not among {all:?}");
    }
    for verb in &all {
        let help = spanforge(here.path(), [verb, "--help"]).expect(0).out;
        let example = format!("spanforge {verb}");
        let shown = help.split_once("Example").is_some_and(|(_, rest)| rest.contains(&example));
        assert!(shown, "no example in the help of {verb}:\n{help}");
    }
    for verb in ["generate", "describe"] {
        let help = spanforge(here.path(), ["trace", verb, "--help"]).expect(0);
        help.prints(&format!("Example:\n  spanforge trace {verb}"));
    }
}

#[test]
fn a_verb_that_is_not_there_is_bad_input() {
    let here = folder();
    spanforge(here.path(), ["rendr"]).expect(2).says("rendr").says("render");
    spanforge(here.path(), []).expect(2).says("Usage");
    spanforge(here.path(), ["configs", "--limit", "x"]).expect(2).says("--limit");
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    let here = folder();
    let mut listing = command(here.path(), ["configs", "--all"]);
    let mut child =
        listing.stdout(std::process::Stdio::piped()).spawn().expect("the binary starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn configs_count_the_space_and_list_ids_that_render() {
    let here = folder();
    let space = spanforge(here.path(), ["configs", "--json", "--limit", "3"]).expect(0).json();
    assert_eq!(space["shape"], "f16-d128-g4");
    assert!(space["parameters"].as_array().unwrap().len() >= 10);
    assert!(space["valid"].as_u64().unwrap() > 1000);
    let pruned: u64 =
        space["pruned"].as_array().unwrap().iter().map(|p| p["points"].as_u64().unwrap()).sum();
    assert_eq!(space["points"].as_u64(), Some(pruned + space["valid"].as_u64().unwrap()));
    let ids = space["ids"].as_array().unwrap();
    assert_eq!(ids.len(), 3);
    for id in ids {
        let id = id.as_str().unwrap();
        let spec: KernelSpec = id.parse().unwrap();
        let marker = format!("// spanforge-kernel: {}", spec.compiled());
        spanforge(here.path(), ["render", "--config", id]).expect(0).prints(&marker);
    }
    let shape = spanforge(
        here.path(),
        [
            "configs",
            "--dtype",
            "bf16",
            "--head-dim",
            "256",
            "--query-heads",
            "24",
            "--kv-heads",
            "4",
        ],
    );
    shape.expect(0).prints("shape bf16-d256-g6").prints("pruned by shared-memory");
}

#[test]
fn samples_of_ids_can_be_looped_over() {
    let here = folder();
    let listed = spanforge(here.path(), ["configs", "--sample", "4", "--ids"]).expect(0).out;
    let specs: Vec<KernelSpec> = listed.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(specs.len(), 4);
    // Spread over the space, not its first corner.
    assert_ne!(specs[0].configuration.tile_tokens, specs[3].configuration.tile_tokens);
}

#[test]
fn a_json_configuration_renders_the_same_as_its_id() {
    let here = folder();
    let space = spanforge(here.path(), ["configs", "--json"]).expect(0).json();
    fs::write(here.path().join("mine.json"), space["default"].to_string()).unwrap();
    let by_file = spanforge(here.path(), ["render", "--config", "mine.json"]).expect(0).out;
    let by_id =
        spanforge(here.path(), ["render", "--config", space["default_id"].as_str().unwrap()]);
    assert_eq!(by_file, by_id.expect(0).out);
    assert_eq!(by_file, spanforge(here.path(), ["render"]).expect(0).out);
    spanforge(here.path(), ["render", "--output", "out.cu"]).expect(0);
    assert_eq!(by_file, fs::read_to_string(here.path().join("out.cu")).unwrap());
    assert!(!by_file.contains("#include"), "self-contained");
}

#[test]
fn a_template_of_the_users_is_rendered() {
    let here = folder();
    let template = "// ${ head_dim }$\n#include \"kernels.cuh\"\n";
    fs::write(here.path().join("mine.tera"), template).unwrap();
    let rendered = spanforge(here.path(), ["render", "--template", "mine.tera"]).expect(0);
    rendered.prints("#line 1 \"mine.tera\"\n// 128\n").prints("#line 1 \"kernels.cuh\"");
}

#[test]
fn code_and_resources_are_made_for_each_architecture() {
    let here = folder();
    let resources = ["compile", "--emit", "resources", "--arch", "sm_80,sm_90a", "--json"];
    let resources = spanforge(here.path(), resources).expect(0).json();
    for (index, architecture) in ["sm_80", "sm_90a"].into_iter().enumerate() {
        assert_eq!(resources[index]["architecture"], architecture);
        let decode = &resources[index]["kernels"]["spanforge_decode"];
        assert!((32..=255).contains(&decode["registers"].as_u64().unwrap()), "{decode}");
        assert_eq!(decode["spill_store_bytes"], 0);
    }
    let cubins =
        ["compile", "--emit", "cubin", "--arch", "sm_80,sm_90a", "--output", "kernel.cubin"];
    spanforge(here.path(), cubins).expect(0).says("kernel.sm_80.cubin");
    assert_eq!(names(here.path()), ["kernel.sm_80.cubin", "kernel.sm_90a.cubin"]);
    let cubin = fs::read(here.path().join("kernel.sm_80.cubin")).unwrap();
    assert_eq!(&cubin[..4], b"\x7fELF");
    fs::write(here.path().join("k.cu"), "extern \"C\" __global__ void k(int* x) { *x = N; }\n")
        .unwrap();
    let ptx = ["compile", "k.cu", "--emit", "ptx", "--arch", "sm_89", "--option=-DN=7"];
    spanforge(here.path(), ptx).expect(0).prints(".target sm_89").prints(".entry k(");
    // Headers beside the source are found, and read again when they change.
    fs::write(here.path().join("k.cu"), "#include \"n.h\"\nint __device__ n = N;\n").unwrap();
    for value in ["11", "13"] {
        fs::write(here.path().join("n.h"), format!("#define N {value}\n")).unwrap();
        let ptx = spanforge(here.path(), ["compile", "k.cu", "--emit", "ptx"]).expect(0);
        ptx.prints(&format!("n = {value};"));
    }
    spanforge(here.path(), ["compile", "--emit", "ptx", "--arch", "sm_80,sm_89"])
        .expect(2)
        .says("--output");
}

#[test]
fn traces_are_the_same_for_the_same_seed_and_can_be_described() {
    let here = folder();
    let generate = |seed: &str, file: &str| {
        let arguments =
            ["trace", "generate", "--workload", "ssas-llama2", "--seed", seed, "--output", file];
        spanforge(here.path(), arguments).expect(0);
        fs::read_to_string(here.path().join(file)).unwrap()
    };
    let trace = generate("7", "a.jsonl");
    assert_eq!(trace, generate("7", "b.jsonl"));
    assert_ne!(trace, generate("8", "c.jsonl"));
    let described = spanforge(here.path(), ["trace", "describe", "a.jsonl", "--json"]).expect(0);
    let described = described.json();
    assert_eq!(described["header"]["shape"]["query_heads"], 32);
    assert_eq!(described["responses"], 15);
    assert!(described["kv_len"]["max"].as_u64().unwrap() <= 2048 + 1);
    spanforge(here.path(), ["trace", "describe", "a.jsonl"]).expect(0).prints("attended by a step");
    let cut = trace.lines().next().unwrap().to_owned() + "\n{\"prompt_tokens\": 5}\n";
    fs::write(here.path().join("cut.jsonl"), cut).unwrap();
    let bad = spanforge(here.path(), ["trace", "describe", "cut.jsonl"]).expect(2);
    bad.says("cut.jsonl").says("line 2").says("phases");
}

#[test]
fn doctor_tries_what_it_finds() {
    let here = folder();
    let diagnosis = spanforge(here.path(), ["doctor", "--json", "--fetch"]).expect(0).json();
    assert_eq!(diagnosis["emulated_works"], true);
    let findings = diagnosis["findings"].as_array().unwrap();
    for what in ["cache folder", "NVRTC", "CUDA headers", "pip", "emulated GPUs", "GPU"] {
        assert!(findings.iter().any(|f| f["what"] == what), "{what} is missing: {findings:?}");
    }
    spanforge(here.path(), ["doctor"]).expect(0).prints("emulated:h200").prints("NVRTC 1");
}

#[test]
fn doctor_says_what_to_do_where_nothing_is_there() {
    let here = folder();
    let mut bare = command(here.path(), ["doctor"]);
    bare.env("SPANFORGE_NVRTC_DIR", here.path()).env("PATH", here.path());
    let ran = finish(bare).expect(2);
    ran.prints("MISSING NVRTC").prints("no libnvrtc.so in it").prints("SPANFORGE_NVRTC_DIR");
}
