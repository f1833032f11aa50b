//! Speed of the emulated device on the decode kernel, in thread instructions per second on one core,
//! plain and with checks and counters, the time of one property case from upload to verdict, and what
//! `fuzz` does in a second on one core.
//!
//! `cargo bench --bench emulator`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spanforge_device::emulated::{EmulatedDevice, EmulatedOptions};
use spanforge_device::{Compiler, Device, Settings};
use spanforge_emulator::profile;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::decoder::UploadOptions;
use spanforge_kernels::{Decoder, KernelSpec};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanSet};
use spanforge_tuner::Workload;
use spanforge_tuner::export::compile;
use spanforge_tuner::workload::WorkloadRow;
use spanforge_verify::case::{Trial, open_sharing};
use spanforge_verify::check::check_recipe;
use spanforge_verify::{check_problem, fuzz};
use std::hint::black_box;

/// Eight query heads over two KV heads, `tokens` tokens, head dimension 64.
fn workload(tokens: u32) -> Workload {
    Workload {
        name: "bench".into(),
        attention: AttentionShape {
            dtype: Dtype::F16,
            kv_dtype: KvDtype::Same,
            query_heads: 8,
            kv_heads: 2,
            head_dim: 64,
            page_size: 16,
            layout: KvLayout::Nhd,
        },
        rows: vec![WorkloadRow {
            kv_len: tokens,
            spans: SpanSet::full(tokens),
            same_request: false,
        }],
    }
}

fn specs() -> [(&'static str, KernelSpec); 2] {
    let spec = |id: &str| id.parse().expect("a kernel id");
    [
        ("staged", spec("f16-d64-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x1-m128-second")),
        ("direct", spec("f16-d64-g4-direct-t32-s1-w4-h4-v16-u2-qr-p0-b1-x1-m128-second")),
    ]
}

fn device(checks: bool, counters: bool) -> EmulatedDevice {
    let profile = profile::find("h200").expect("built in");
    EmulatedDevice::new(profile, EmulatedOptions { checks, counters, ..Default::default() })
}

fn throughput(c: &mut Criterion) {
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    let problem = workload(8192).problem(0, 1 << 30).expect("a problem of a served shape");
    let mut group = c.benchmark_group("decode, thread instructions");
    for (name, spec) in specs() {
        let image = compile(&compiler, &spec, "sm_90a").expect("compiles");
        for (mode, checks, counters) in [
            ("plain", false, false),
            ("counters", false, true),
            ("checks", true, false),
            ("checks and counters", true, true),
        ] {
            // The same launch, counted once, tells how many instructions an iteration executes.
            let counting = device(false, true);
            let decoder = Decoder::load(&counting, &image, spec).expect("loads");
            let resident = decoder.upload(&problem, UploadOptions::default()).expect("fits");
            let reports = decoder.run(&resident).expect("runs");
            let counted = reports[1].counters.as_ref().expect("counting is on");

            let device = device(checks, counters);
            let decoder = Decoder::load(&device, &image, spec).expect("loads");
            let resident = decoder.upload(&problem, UploadOptions::default()).expect("fits");
            decoder.run(&resident).expect("runs");
            let launches = decoder.launches(&resident);
            group.throughput(Throughput::Elements(counted.thread_instructions));
            group.bench_function(BenchmarkId::new(name, mode), |b| {
                b.iter(|| black_box(device.launch(&launches[1]).expect("runs")));
            });
        }
    }
    group.finish();
}

fn property_case(c: &mut Criterion) {
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    let problem = workload(512).problem(0, 1 << 30).expect("a problem of a served shape");
    let mut group = c.benchmark_group("property case, 8 heads x 512 tokens x 64");
    for (name, spec) in specs() {
        let image = compile(&compiler, &spec, "sm_90a").expect("compiles");
        let device = device(true, true);
        let decoder = Decoder::load(&device, &image, spec).expect("loads");
        let resident = decoder.upload(&problem, UploadOptions::default()).expect("fits");
        group.bench_function(BenchmarkId::new(name, "run, all checks"), |b| {
            b.iter(|| black_box(decoder.run(&resident).expect("runs")));
        });
        group.bench_function(BenchmarkId::new(name, "upload, run twice, oracle, compare"), |b| {
            b.iter(|| black_box(check_problem(&decoder, &problem).expect("checks")));
        });
    }
    group.finish();
}

/// Most selected tokens of a fuzz case here, over its rows.
const MOST_SELECTED: u64 = 256;

/// As a worker of `fuzz` does: turns of eight cases of one kernel, loaded for each turn.
fn fuzz_cases(c: &mut Criterion) {
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    let name = "emulated:h200";
    let more = [
        "bf16-d128-g8-staged-t64-s2-w4-h4-v16-u2-qr-p0-b1-x1-m128-second",
        "f16-d128-g4-direct-t32-s1-w4-h4-v16-u2-qs-p0-b1-x1-m64-last",
    ];
    let more = more.map(|id| ("", id.parse().expect("a kernel id")));
    let selected =
        |trial: &Trial| trial.problem.spans().expect("well formed").total_selected_tokens();
    let turns: Vec<_> = (specs().into_iter().chain(more))
        .map(|(_, spec)| {
            let drawn = (0..).map(|number| fuzz::draw(7, true, &spec, number));
            let trials: Vec<Trial> =
                drawn.filter(|trial| selected(trial) <= MOST_SELECTED).take(8).collect();
            (spec, compile(&compiler, &spec, "sm_90a").expect("compiles"), trials)
        })
        .collect();
    let code = Default::default();
    let mut group = c.benchmark_group("fuzz, cases of at most 256 selected tokens");
    group.throughput(Throughput::Elements(turns.iter().map(|turn| turn.2.len() as u64).sum()));
    group.bench_function("one core", |b| {
        b.iter(|| {
            for (spec, image, trials) in &turns {
                let device = open_sharing(name, &trials[0], &code).expect("built in");
                let kernel = trials[0].spec(spec);
                let decoder = Decoder::load(device.as_ref(), image, kernel).expect("loads");
                for trial in trials {
                    let report = check_recipe(&decoder, &trial.problem).expect("checks");
                    assert!(report.fault.is_none(), "{report:?}");
                }
            }
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = throughput, property_case, fuzz_cases
}
criterion_main!(benches);
