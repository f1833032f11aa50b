//! Speed of the emulated device on the decode kernel, in thread instructions per second on one core,
//! plain and with checks and counters, and the time of one property case from upload to verdict.
//!
//! `cargo bench --bench emulator`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spanforge_device::emulated::{EmulatedDevice, EmulatedOptions};
use spanforge_device::{Compiler, Device, Settings};
use spanforge_emulator::profile;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::decoder::UploadOptions;
use spanforge_kernels::{Decoder, KernelSpec};
use spanforge_spans::{Dtype, KvLayout, SpanSet};
use spanforge_tuner::Workload;
use spanforge_tuner::export::compile;
use spanforge_tuner::workload::WorkloadRow;
use spanforge_verify::check_problem;
use std::hint::black_box;

/// Eight query heads over two KV heads, `tokens` tokens, head dimension 64.
fn workload(tokens: u32) -> Workload {
    Workload {
        name: "bench".into(),
        attention: AttentionShape {
            dtype: Dtype::F16,
            query_heads: 8,
            kv_heads: 2,
            head_dim: 64,
            page_size: 16,
            layout: KvLayout::Nhd,
        },
        rows: vec![WorkloadRow { kv_len: tokens, spans: SpanSet::full(tokens) }],
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

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = throughput, property_case
}
criterion_main!(benches);
