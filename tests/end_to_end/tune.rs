//! `tune`: the main job, from a workload to an artifact that `inspect` and `run` accept.

use crate::{command, finish, folder, names, spanforge};
use fs_err as fs;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::{KernelSpec, Limits, SearchSpace};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanSet};
use spanforge_tuner::Workload;
use spanforge_tuner::journal::{self, Kept};
use spanforge_tuner::record::{Record, Status};
use spanforge_tuner::workload::WorkloadRow;
use std::path::{Path, PathBuf};

/// The journals of runs that were made in a folder.
fn journals(here: &Path) -> Vec<PathBuf> {
    let folder = here.join("results/tune");
    names(&folder).iter().map(|name| folder.join(name)).collect()
}

const QUICK: [&str; 10] = [
    "tune",
    "--workload",
    "ssas-llama2",
    "--device",
    "emulated:h200",
    "--budget",
    "4",
    "--cases",
    "3",
    "--batch=4",
];

#[test]
fn a_run_leaves_an_artifact_that_is_accepted_and_a_record_of_everything() {
    let here = folder();
    let ran = spanforge(here.path(), QUICK).expect(0);
    let artifact = ran.out.lines().last().expect("a last line").to_owned();
    assert!(here.path().join(&artifact).is_dir(), "the last line is the artifact: {artifact}");
    for text in ["predicted us", "x floor", "registers", "occupancy", "default", "not measured"] {
        assert!(ran.out.contains(text), "no {text:?} in:\n{}", ran.out);
    }
    spanforge(here.path(), ["inspect", &artifact]).expect(0).prints("sm_90a").prints("winner");

    let journals = journals(here.path());
    assert_eq!(journals.len(), 1);
    let records = journal::read(&journals[0]).expect("readable");
    let [Record::Study(study), Record::Run(run), ..] = &records[..] else { panic!("{records:?}") };
    assert_eq!((study.workload.rows.len(), study.strategy.as_str()), (4, "portfolio"));
    assert_eq!((run.seed, run.budget, run.device.as_str()), (0, 4, "emulated:h200"));
    assert!(run.floor_bytes > 0 && run.valid_configurations > 1000);
    let mut candidates: Vec<_> = records
        .iter()
        .filter_map(|r| match r {
            Record::Candidate(candidate) => Some(candidate),
            _ => None,
        })
        .collect();
    // They are written as they end, whichever worker is quicker.
    candidates.sort_by_key(|candidate| candidate.index);
    assert_eq!(candidates.len(), 4);
    for (index, candidate) in candidates.iter().enumerate() {
        assert_eq!((candidate.index, candidate.status), (index, Status::Correct));
        assert_eq!((candidate.cases, candidate.bytes_ratio), (3, Some(1.0)));
        assert!(candidate.time_us > Some(run.floor_us), "{} is below the floor", candidate.id);
        let decode = &candidate.predictions[1];
        assert!(decode.counters.thread_instructions > 0 && decode.estimate.time_us > 0.0);
    }
    let Some(Record::Winner(winner)) = records.last() else { panic!("no winner") };
    let fastest = candidates.iter().filter_map(|c| c.time_us).fold(f64::INFINITY, f64::min);
    let tied = winner.ties.len() + 1;
    assert!(winner.time_us <= 1.01 * fastest && tied <= 4, "{winner:?}");

    // The export computes: a problem of its shape through `run`, the same bits twice.
    let problem = Workload {
        name: "e2e".into(),
        attention: AttentionShape {
            dtype: Dtype::F16,
            kv_dtype: KvDtype::Same,
            query_heads: 2,
            kv_heads: 2,
            head_dim: 128,
            page_size: 7,
            layout: KvLayout::Hnd,
        },
        rows: vec![
            WorkloadRow { kv_len: 300, spans: SpanSet::from(3..290), same_request: false },
            WorkloadRow { kv_len: 1, spans: SpanSet::empty(), same_request: false },
        ],
    }
    .problem(1, 1 << 30)
    .expect("a problem");
    spanforge_runtime::write_problem(&here.path().join("in.safetensors"), &problem).unwrap();
    let outputs = ["one.safetensors", "two.safetensors"].map(|name| {
        let ran = spanforge(
            here.path(),
            [
                "run",
                &artifact,
                "--inputs",
                "in.safetensors",
                "--output",
                name,
                "--device",
                "emulated:h200",
            ],
        );
        ran.expect(0);
        fs::read(here.path().join(name)).unwrap()
    });
    assert_eq!(outputs[0], outputs[1]);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let here = folder();
    let outputs: Vec<String> =
        (0..2).map(|_| spanforge(here.path(), QUICK).expect(0).out).collect();
    assert_eq!(outputs[0], outputs[1]);
    // The second run replaced the artifact and has a journal of its own.
    assert_eq!(journals(here.path()).len(), 2);
    assert_eq!(names(&here.path().join("artifacts")), ["ssas-llama2-f16-d128-g1"]);
}

#[test]
fn a_trace_of_ones_own_is_a_workload_and_another_model_a_shape() {
    let here = folder();
    let generate = [
        "trace",
        "generate",
        "--workload",
        "ssas-llama2",
        "--responses",
        "3",
        "--output",
        "mine.jsonl",
    ];
    spanforge(here.path(), generate).expect(0);
    let mut tune = command(here.path(), ["tune", "--workload", "mine.jsonl", "--budget", "1"]);
    tune.args(["--device", "emulated:a100", "--arch", "sm_80,sm_90a", "--cases", "2", "--json"]);
    tune.args(["--query-heads", "6", "--kv-heads", "2", "--head-dim", "64", "--dtype", "bf16"]);
    let ran = finish(tune).expect(0);
    let artifact = ran.out.lines().last().expect("a last line");
    assert!(artifact.ends_with("mine-bf16-d64-g3"), "{artifact}");
    let files = names(&here.path().join(artifact).join("kernels"));
    let cubins = names(&here.path().join(artifact).join("kernels").join(&files[0]));
    assert_eq!(cubins, ["kernel.ptx", "sm_80.cubin", "sm_90a.cubin", "source.cu"]);
}

#[test]
fn what_cannot_be_tuned_is_named_and_leaves_nothing() {
    let here = folder();
    let refused = |arguments: &[&str], says: &str| {
        let mut tune = command(here.path(), ["tune", "--budget", "1", "--cases", "1"]);
        tune.args(arguments).args(["--output", "out"]);
        finish(tune).expect(2).says(says);
        assert!(!here.path().join("out").exists(), "{arguments:?} left something");
    };
    refused(&["--workload", "da-gemma5"], "da-gemma4, da-qwen3.6, ssas-llama2");
    refused(&["--workload", "ssas-llama2", "--device", "emulated:h300"], "emulated:h200");
    refused(
        &["--workload", "ssas-llama2", "--device", "emulated:h200", "--arch", "sm_12"],
        "sm_90a",
    );
    refused(&["--workload", "ssas-llama2", "--strategy", "luck"], "use one of portfolio");
    refused(&["--workload", "ssas-llama2", "--head-dim", "96"], "64, 128, 256 or 512");
    refused(&["--workload", "ssas-llama2", "--kv-heads", "5"], "multiple of the KV heads");
    fs::write(here.path().join("cut.jsonl"), "{\"schema\": 1,").unwrap();
    refused(&["--workload", "cut.jsonl"], "cut.jsonl");
}

#[test]
fn folders_that_cannot_be_written_are_named() {
    let here = folder();
    fs::write(here.path().join("file"), "in the way").unwrap();
    let blocked = |flag: &str| {
        let mut tune = command(here.path(), QUICK);
        tune.args([flag, "file/below"]);
        finish(tune).expect(2).says("file/below");
    };
    blocked("--output");
    blocked("--results");
    assert!(!here.path().join("artifacts").exists());
    assert!(is_untouched(&here.path().join("file")));
}

fn is_untouched(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text == "in the way")
}

#[test]
fn sizes_and_seeds_that_cannot_be_are_refused_before_the_search() {
    let here = folder();
    for (flag, value, fault) in [
        ("--page-size", "1000000000", "a page of K of 1000000000 x 32 x 128 elements"),
        ("--head-dim", "96", "head_dim 96 is not served"),
        ("--query-heads", "33", "33 query heads and 32 KV heads are not served"),
        ("--seed", "18446744073709551615", "the last seed is 2^64 - 1"),
        ("--cases", "0", "0 cases"),
        ("--arch", "compute_90", "no machine code"),
    ] {
        spanforge(here.path(), ["tune", "--workload", "ssas-llama2", flag, value])
            .expect(2)
            .says(fault);
    }
    let heads = ["--query-heads", "4294967295", "--kv-heads", "4294967295"];
    let mut huge = command(here.path(), ["tune", "--workload", "ssas-llama2"]);
    huge.args(heads);
    finish(huge).expect(2).says("4294967295");
    assert_eq!(names(here.path()), Vec::<String>::new(), "nothing was begun");
}

#[test]
fn what_is_no_artifact_is_not_replaced() {
    let here = folder();
    let place = here.path().join("artifacts/ssas-llama2-f16-d128-g1");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("notes.txt"), "mine").unwrap();
    spanforge(here.path(), QUICK).expect(2).says("not an artifact").says("ssas-llama2-f16-d128-g1");
    assert_eq!(fs::read_to_string(place.join("notes.txt")).unwrap(), "mine");
    fs::remove_dir_all(&place).unwrap();
    fs::write(&place, "mine").unwrap();
    spanforge(here.path(), QUICK).expect(2).says("a file is there");
    assert_eq!(fs::read_to_string(&place).unwrap(), "mine");
    fs::remove_file(&place).unwrap();
    // What a link names is replaced, and the link stays.
    let elsewhere = folder();
    std::os::unix::fs::symlink(elsewhere.path(), &place).unwrap();
    spanforge(here.path(), QUICK).expect(0);
    spanforge(here.path(), QUICK).expect(0);
    assert!(elsewhere.path().join("manifest.json").is_file());
    assert!(place.is_symlink());
    assert_eq!(names(&here.path().join("artifacts")), ["ssas-llama2-f16-d128-g1"]);
}

/// A run on one device is where the search on another begins.
#[test]
fn a_guided_run_tries_first_what_another_run_found_fastest() {
    let here = folder();
    let small = |device, last| {
        let [workload, batch, cases] = ["--workload=ssas-llama2", "--batch=4", "--cases=1"];
        ["tune", workload, batch, cases, device, last]
    };
    spanforge(here.path(), small("--device=emulated:h200", "--budget=16")).expect(0);
    let guide = Kept::read(&journals(here.path())[0]).expect("a journal").fastest();
    let journal = journals(here.path())[0].display().to_string();
    let mut run = command(here.path(), small("--device=emulated:l4", "--budget=8"));
    run.args(["--guide", &journal]);
    finish(run).expect(0).says("by guided search");
    let guided = journals(here.path()).into_iter().find(|path| *path != Path::new(&journal));
    let guided = Kept::read(&guided.expect("a second journal")).expect("a journal");
    let default = guided.candidates[&0].spec;
    let tried: Vec<_> = (1..8).map(|index| guided.candidates[&index].spec).collect();
    // But for what does not fit into the other device's shared memory.
    let l4 = spanforge_device::open("emulated:l4").unwrap();
    let space = SearchSpace::new(default.shape, Limits::of(l4.properties()));
    let fits = |spec: &KernelSpec| space.broken_constraint(&spec.configuration).is_none();
    assert!(!guide.iter().all(fits));
    let guide = guide.into_iter().filter(|spec| *spec != default && fits(spec));
    let expected: Vec<_> = guide.take(7).collect();
    assert_eq!(tried, expected);
    // What cannot guide is named before anything is evaluated.
    let refused = |arguments: [&str; 2], reason| {
        let mut run = command(here.path(), ["tune", "--workload=da-qwen3.6"]);
        run.args(arguments);
        finish(run).expect(2).says(reason);
    };
    refused(["--guide", &journal], "no correct configuration for bf16-d256-g6");
    refused(["--strategy", "guided"], "give its journal with --guide");
    refused(["--guide", "none.jsonl"], "none.jsonl");
    assert_eq!(journals(here.path()).len(), 2);
}

/// One row and 32 rows want other kernels: the artifact has both, and says which serves what.
#[test]
fn several_batches_have_winners_of_their_own() {
    let here = folder();
    let tune = [
        "tune",
        "--workload",
        "ssas-llama2",
        "--device",
        "emulated:h200",
        "--budget",
        "12",
        "--cases",
        "2",
        "--batch",
        "1,32",
        "--strategy",
        "random",
    ];
    let ran = spanforge(here.path(), tune)
        .expect(0)
        .prints("by bucket; times above are geometric means over 2 batches")
        .prints("loss as exported");
    let artifact = ran.out.lines().last().expect("a last line").to_owned();

    let kept = Kept::read(&journals(here.path())[0]).expect("readable");
    let winner = kept.winner.expect("a winner");
    assert_eq!((kept.run.batches.len(), winner.buckets.len()), (2, 2));
    let rows: Vec<u32> = winner.buckets.iter().map(|best| best.bucket.rows).collect();
    assert_eq!(rows, [1, 32]);
    for (place, best) in winner.buckets.iter().enumerate() {
        // Nothing that was tried is faster there, to what the model can tell apart.
        for candidate in kept.candidates.values().filter(|c| c.status == Status::Correct) {
            let us = candidate.by_batch[place].samples_us[0];
            assert!(best.winner.time_us <= 1.01 * us, "{} in {}", candidate.id, best.bucket);
        }
    }
    let inspect = |rows: &str| {
        let bucket = format!("{rows},512,64");
        let arguments = ["inspect", &artifact, "--explain", "--bucket", &bucket, "--json"];
        let told = spanforge(here.path(), arguments).expect(0).json();
        let explanation = &told["explanation"];
        assert_eq!(explanation["served_as"]["rows"].to_string(), rows);
        let chosen = explanation["chosen"].as_u64().expect("one serves it") as usize;
        explanation["kernels"][chosen].clone()
    };
    for (rows, best) in ["1", "32"].iter().zip(&winner.buckets) {
        let used = inspect(rows);
        let loss = used["served_as"]["loss"].as_f64().expect("a loss");
        assert!((loss - best.loss).abs() < 1e-12, "{used} {best:?}");
        assert!(loss <= 0.01, "two buckets are served by two kernels at most: {used}");
    }
    spanforge(here.path(), ["inspect", &artifact, "--explain", "--bucket", "1,2"])
        .expect(2)
        .says("three numbers");
    spanforge(here.path(), ["predict", "--batch", "1,2"]).expect(2).says("2 batches");

    // The report has them; a resumed run that is done ends with the same.
    let journal = journals(here.path())[0].display().to_string();
    spanforge(here.path(), ["report", &journal, "--output", "r.html"]).expect(0);
    let page = fs::read_to_string(here.path().join("r.html")).expect("a report");
    assert!(page.contains("By bucket") && page.contains(&winner.buckets[1].bucket.to_string()));
    spanforge(here.path(), ["tune", "--resume", &journal]).expect(0);
    assert_eq!(Kept::read(Path::new(&journal)).expect("readable").winner, Some(winner));
}
