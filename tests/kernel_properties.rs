//! The decode kernels against the oracle: any shape, any valid configuration, any problem that the
//! generator draws, on the emulated device with all checks. Compiling costs more than running, so a
//! few dozen kernels are drawn from a fixed seed and each meets many problems.

use proptest::prelude::*;
use spanforge_device::{Buffer, Compiler, Device, Settings};
use spanforge_kernels::abi::{OverlayBuffers, PlanBuffers};
use spanforge_kernels::configuration::{Configuration, HEAD_DIMS};
use spanforge_kernels::decoder::UploadOptions;
use spanforge_kernels::launch::Launcher;
use spanforge_kernels::launch::query_tiles;
use spanforge_kernels::{Decoder, KernelShape, KernelSpec, Limits, SearchSpace};
use spanforge_spans::{Dtype, SpanBatch, SpanSet};
use spanforge_tuner::Workload;
use spanforge_tuner::evaluate::predict;
use spanforge_tuner::export::compile;
use spanforge_tuner::search::strategy;
use spanforge_verify::check_seeds;

const DEVICE: &str = "emulated:h200";

fn compiler() -> Compiler {
    let settings = Settings::from_environment().with_progress(|line| eprintln!("{line}"));
    Compiler::new(&settings).expect("NVRTC is found or fetched")
}

fn assert_correct(compiler: &Compiler, spec: KernelSpec, seeds: std::ops::Range<u64>) {
    assert_correct_on(DEVICE, compiler, spec, seeds);
}

fn assert_correct_on(
    device: &str,
    compiler: &Compiler,
    spec: KernelSpec,
    seeds: std::ops::Range<u64>,
) {
    let device = spanforge_device::open(device).unwrap();
    let image = compile(compiler, &spec, "sm_90a").unwrap_or_else(|e| panic!("{spec}: {e}"));
    let decoder = Decoder::load(device.as_ref(), &image, spec).unwrap();
    for report in check_seeds(&decoder, seeds).unwrap() {
        if let Some(fault) = report.fault {
            panic!("{spec}, seed {}: {}\n{fault}", report.seed.unwrap(), report.problem);
        }
    }
}

fn space(shape: KernelShape) -> SearchSpace {
    space_for(shape, 1)
}

/// The kernels for requests of so many rows.
fn space_for(shape: KernelShape, rows: u32) -> SearchSpace {
    let device = spanforge_device::open(DEVICE).unwrap();
    SearchSpace::for_rows(shape, Limits::of(device.properties()), rows)
}

/// The default configuration of every head dimension, of both types, for plain, odd and large groups, one
/// row at a time and several.
#[test]
fn default_configurations_match_the_oracle() {
    let compiler = compiler();
    for (index, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        for (turn, group_size) in [1, 3, 6, 8].into_iter().enumerate() {
            let dtype = if (index + turn) % 2 == 0 { Dtype::F16 } else { Dtype::Bf16 };
            let shape = KernelShape { dtype, head_dim, group_size };
            for rows in [1, 4, 32] {
                let configuration = space_for(shape, rows).default_configuration().unwrap();
                assert_correct(&compiler, KernelSpec { shape, configuration }, 0..12);
            }
        }
    }
}

/// Tensor cores align the terms of a sum and cut them off, on Hopper otherwise than on Ampere.
#[test]
fn tensor_cores_of_either_architecture_add_well_enough() {
    let compiler = compiler();
    for mma in ["hopper", "ampere"] {
        for (dtype, head_dim, group_size) in
            [(Dtype::F16, 64, 4), (Dtype::Bf16, 128, 8), (Dtype::F16, 512, 8)]
        {
            let shape = KernelShape { dtype, head_dim, group_size };
            let configuration = space(shape).default_configuration().unwrap();
            let device = format!("{DEVICE},mma={mma}");
            assert_correct_on(&device, &compiler, KernelSpec { shape, configuration }, 0..16);
        }
    }
}

/// Neither kind of cores runs out of registers, on either architecture that is supported by name.
#[test]
fn default_configurations_spill_nothing() {
    let compiler = compiler();
    for (name, architecture) in [("emulated:a100", "sm_80"), (DEVICE, "sm_90a")] {
        let limits = Limits::of(spanforge_device::open(name).unwrap().properties());
        for head_dim in HEAD_DIMS {
            for group_size in [1, 3, 4, 6, 8, 16] {
                let shape = KernelShape { dtype: Dtype::Bf16, head_dim, group_size };
                for rows in [1, 4, 16] {
                    let space = SearchSpace::for_rows(shape, limits, rows);
                    let configuration = space.default_configuration().unwrap();
                    let spec = KernelSpec { shape, configuration };
                    let image = compile(&compiler, &spec, architecture).unwrap();
                    for (kernel, resources) in &image.resources {
                        let spilled = (resources.spill_store_bytes, resources.spill_load_bytes);
                        assert_eq!(spilled, (0, 0), "{kernel} of {spec} on {architecture}");
                    }
                }
            }
        }
    }
}

/// Groups that no number of warps divides evenly, and one that fills a block.
#[test]
fn unusual_groups_match_the_oracle() {
    let compiler = compiler();
    for (head_dim, group_size) in [(64, 71), (128, 7), (256, 5), (64, 12)] {
        let shape = KernelShape { dtype: Dtype::F16, head_dim, group_size };
        let configuration = space(shape).default_configuration().unwrap();
        assert_correct(&compiler, KernelSpec { shape, configuration }, 100..110);
    }
}

/// A problem goes from one decoder to another, whose workspace is of another size or whose query tiles
/// have several rows, and back.
#[test]
fn decoders_take_turns_at_a_problem() {
    let compiler = compiler();
    let device = spanforge_device::open(DEVICE).unwrap();
    let workload = Workload::named("ssas-llama2", 3, 1).unwrap().with_queries(5);
    let problem = workload.problem(1, 1 << 24).unwrap();
    let shape = workload.attention.kernel_shape().unwrap();
    let space = space(shape);
    let few = space.default_configuration().unwrap();
    let many = Configuration { blocks_per_multiprocessor: 6, smallest_share: 64, ..few };
    let tiles = space_for(shape, 4).default_configuration().unwrap();
    let specs = [few, many, tiles].map(|configuration| KernelSpec { shape, configuration });
    let decoders = specs.map(|spec| {
        let image = compile(&compiler, &spec, "sm_90a").unwrap();
        Decoder::load(device.as_ref(), &image, spec).unwrap()
    });
    let alone = [0, 1, 2].map(|at| {
        let own = decoders[at].upload(&problem, UploadOptions::default()).unwrap();
        decoders[at].run(&own).unwrap();
        own.output().unwrap()
    });
    let mut shared = decoders[0].upload(&problem, UploadOptions::default()).unwrap();
    for turn in [1, 0, 2, 1, 1, 2, 0] {
        decoders[turn].adopt(&mut shared).unwrap();
        shared.poison_output().unwrap();
        decoders[turn].run(&shared).unwrap();
        assert_eq!(shared.output().unwrap(), alone[turn]);
    }
}

/// 2026-11-25: queries in shared memory were read by pairs of floats 16 bytes apart, which takes every
/// bank twice: 1.95 times the wavefronts in the best kernel for groups of one.
#[test]
fn loads_from_shared_memory_have_no_bank_conflicts() {
    let compiler = compiler();
    let device = spanforge_device::open(DEVICE).unwrap();
    for (preset, queries, count) in [
        ("ssas-llama2", 1, 8),
        ("ssas-llama2", 16, 3),
        ("da-qwen3.6", 1, 6),
        ("da-qwen3.6", 4, 3),
        ("da-gemma4", 1, 4),
    ] {
        let workload = Workload::named(preset, 4, 1).unwrap().with_queries(queries);
        let shape = workload.attention.kernel_shape().unwrap();
        let space = space_for(shape, queries);
        let mut random = strategy("random", 5).unwrap();
        for _ in 0..count {
            let configuration = space.at(&random.propose(&space).unwrap()).unwrap();
            let spec = KernelSpec { shape, configuration };
            let predicted = predict(device.as_ref(), &compiler, &workload, spec, 1).unwrap();
            for launch in &predicted.predictions {
                let loads = launch.counters.shared_load;
                let name = &launch.kernel;
                assert_eq!(loads.wavefronts, loads.ideal_wavefronts, "{name} of {spec}: {loads:?}");
            }
        }
    }
}

/// Integers on a device.
fn upload(device: &dyn Device, name: &str, values: &[i32]) -> Buffer {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let buffer = device.allocate(name, bytes.len().max(4)).unwrap();
    device.upload(buffer, 0, &bytes).unwrap();
    buffer
}

/// The first `count` integers of a buffer.
fn download(device: &dyn Device, buffer: Buffer, count: usize) -> Vec<i32> {
    let mut bytes = vec![0; 4 * count];
    device.download(buffer, 0, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Canonical batches of up to some hundred rows and a thousand spans: more than the plan's one block
/// has threads, so that sums are carried from round to round.
fn any_batch() -> impl Strategy<Value = SpanBatch> {
    let row = proptest::collection::vec((1..40u32, 1..60u32), 0..12);
    proptest::collection::vec(row, 1..120).prop_map(|rows| {
        let sets: Vec<SpanSet> = rows
            .into_iter()
            .map(|row| {
                let mut end = 0;
                SpanSet::from_pairs(row.into_iter().map(|(gap, length)| {
                    let start = end + gap;
                    end = start + length;
                    (start, end)
                }))
                .unwrap()
            })
            .collect();
        SpanBatch::from_sets(&sets).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// The plan that the device makes is the prefix sums of the span lengths, by span and by row.
    #[test]
    fn the_plan_is_the_prefix_sums_of_the_spans(batch in any_batch()) {
        let spec: KernelSpec =
            "f16-d64-g1-staged-t32-s2-w4-h1-v16-u2-qr-p0-b1-x1-m128-second".parse().unwrap();
        let device = spanforge_device::open(DEVICE).unwrap();
        let image = compile(&compiler(), &spec, "sm_90a").unwrap();
        let module = device.load(&image).unwrap();
        let upload = |name, values| upload(device.as_ref(), name, values);
        let download = |buffer: Buffer| download(device.as_ref(), buffer, buffer.bytes / 4);
        let pairs: Vec<i32> = batch.spans().iter().flatten().copied().collect();
        let plan = PlanBuffers {
            span_ptr: upload("span_ptr", batch.span_ptr()),
            spans: upload("spans", &pairs),
            overlay: None,
            set_tokens: device.allocate("set_tokens", 4 * (batch.rows() + 1)).unwrap(),
            span_tokens: device.allocate("span_tokens", 4 * (batch.spans().len() + 1)).unwrap(),
        };
        let launcher = Launcher::new(module, spec, device.properties());
        for launch in launcher.plan(&plan, batch.rows() as i32, 1) {
            device.launch(&launch).unwrap();
        }

        let mut sum = 0;
        let mut by_span = vec![0];
        for [start, end] in batch.spans() {
            sum += end - start;
            by_span.push(sum);
        }
        let by_set: Vec<i32> = batch.span_ptr().iter().map(|p| by_span[*p as usize]).collect();
        prop_assert_eq!(download(plan.span_tokens), by_span);
        prop_assert_eq!(download(plan.set_tokens), by_set);
    }

    /// What the device lays over each other is what each row selects, token by token: no token in two
    /// spans of a tile, each span with exactly the rows that select it, and none beyond the room.
    #[test]
    fn query_tiles_select_what_their_rows_do(
        batch in any_batch(),
        heads in 1..=3usize,
        requests in proptest::collection::vec(0..3i32, 120),
        query_rows in prop_oneof![Just(2u32), Just(4), Just(16), Just(32)],
    ) {
        let rows = batch.rows() / heads;
        let kept = batch.sets().take(rows * heads).collect::<Vec<_>>();
        let batch = SpanBatch::from_sets(&kept).unwrap();
        let mut requests = requests[..rows].to_vec();
        requests.sort_unstable();
        let tile_ptr = query_tiles(&requests, query_rows);
        let id = format!("f16-d64-g1-mma-r{query_rows}-staged-t32-s2-w1-h8-v16-u1-qr-p0-b1-x1-m128-second");
        let mut spec: KernelSpec = id.parse().unwrap();
        spec.configuration.heads_per_warp = query_rows.min(8);
        let device = spanforge_device::open(DEVICE).unwrap();
        let image = compile(&compiler(), &spec, "sm_90a").unwrap();
        let module = device.load(&image).unwrap();
        let upload = |name, values| upload(device.as_ref(), name, values);
        let download = |buffer, count| download(device.as_ref(), buffer, count);
        let (tiles, room) = (tile_ptr.len() - 1, 2 * batch.spans().len());
        let overlay = OverlayBuffers {
            tile_ptr: upload("tile_ptr", &tile_ptr),
            tile_span_ptr: device.allocate("tile_span_ptr", 4 * (tiles * heads + 1)).unwrap(),
            tile_spans: device.allocate("tile_spans", (8 * room).max(4)).unwrap(),
            span_rows: device.allocate("span_rows", (4 * room).max(4)).unwrap(),
        };
        let plan = PlanBuffers {
            span_ptr: upload("span_ptr", batch.span_ptr()),
            spans: upload("spans", batch.spans().as_flattened()),
            overlay: Some(overlay),
            set_tokens: device.allocate("set_tokens", 4 * (tiles * heads + 1)).unwrap(),
            span_tokens: device.allocate("span_tokens", 4 * (room + 1)).unwrap(),
        };
        let launcher = Launcher::new(module, spec, device.properties());
        for launch in launcher.plan(&plan, tiles as i32, heads as i32) {
            device.launch(&launch).unwrap();
        }

        let ptr = download(overlay.tile_span_ptr, tiles * heads + 1);
        let spans = download(overlay.tile_spans, 2 * room);
        let span_rows = download(overlay.span_rows, room);
        prop_assert_eq!(ptr[tiles * heads] as usize, room);
        for (set, bounds) in ptr.windows(2).enumerate() {
            let (tile, head) = (set / heads, set % heads);
            let (first, end) = (tile_ptr[tile] as usize, tile_ptr[tile + 1] as usize);
            let mut selected = vec![Vec::new(); end - first];
            let mut last = 0;
            for span in bounds[0] as usize..bounds[1] as usize {
                let (start, stop) = (spans[2 * span], spans[2 * span + 1]);
                if start == stop {
                    prop_assert_eq!(span_rows[span], 0);
                    continue;
                }
                prop_assert!(last <= start && start < stop);
                last = stop;
                let bits = span_rows[span] as u32;
                prop_assert!(end - first == 32 || bits >> (end - first) == u32::MAX >> (end - first));
                for (row, selected) in selected.iter_mut().enumerate() {
                    if bits >> row & 1 == 1 {
                        selected.push((start as u32, stop as u32));
                    }
                }
            }
            for (row, selected) in selected.into_iter().enumerate() {
                let expected = batch.row((first + row) * heads + head);
                prop_assert_eq!(SpanSet::from_pairs(selected).unwrap(), expected);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    /// Configurations drawn uniformly from all valid ones.
    #[test]
    fn any_valid_configuration_matches_the_oracle(
        seed: u64,
        head_dim in 0..4usize,
        group_size in prop_oneof![Just(1u32), Just(3), Just(4), Just(6), Just(8)],
        bf16: bool,
    ) {
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F16 };
        let shape = KernelShape { dtype, head_dim: HEAD_DIMS[head_dim], group_size };
        // One row at a time, or several.
        let rows = if seed % 3 == 0 { 1 } else { 16 };
        let space = space_for(shape, rows);
        let point = strategy("random", seed).unwrap().propose(&space).unwrap();
        let configuration = space.at(&point).unwrap();
        let first = seed >> 1;
        assert_correct(&compiler(), KernelSpec { shape, configuration }, first..first + 8);
    }
}
