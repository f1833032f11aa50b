//! The decode kernels against the oracle: any shape, any valid configuration, any problem that the
//! generator draws, on the emulated device with all checks. Compiling costs more than running, so a
//! few dozen kernels are drawn from a fixed seed and each meets many problems.

use proptest::prelude::*;
use spanforge_device::{Buffer, Compiler, Device, Settings};
use spanforge_kernels::abi::{OverlayBuffers, PlanBuffers};
use spanforge_kernels::configuration::{AttentionShape, Configuration, Core, HEAD_DIMS};
use spanforge_kernels::decoder::UploadOptions;
use spanforge_kernels::launch::Launcher;
use spanforge_kernels::launch::query_tiles;
use spanforge_kernels::{
    DecodeProblem, Decoder, KernelShape, KernelSpec, Limits, QueryHome, SearchSpace,
};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch, SpanSet};
use spanforge_tuner::Workload;
use spanforge_tuner::evaluate::predict;
use spanforge_tuner::export::compile;
use spanforge_tuner::search::strategy;
use spanforge_verify::check_seeds;
use std::collections::BTreeSet;

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

/// The default configuration of every head dimension, of both types and of both kinds of caches, for plain,
/// odd and large groups, one row at a time and several.
#[test]
fn default_configurations_match_the_oracle() {
    let compiler = compiler();
    for (index, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        for (turn, group_size) in [1, 3, 6, 8].into_iter().enumerate() {
            for (kv, kv_dtype) in KvDtype::ALL.into_iter().enumerate() {
                let bf16 = (index + turn + kv) % 2 == 1;
                let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F16 };
                let shape = KernelShape { dtype, kv_dtype, head_dim, group_size };
                for rows in [1, 4, 32] {
                    let configuration = space_for(shape, rows).default_configuration().unwrap();
                    assert_correct(&compiler, KernelSpec { shape, configuration }, 0..12);
                }
            }
        }
    }
}

/// Tensor cores align the terms of a sum and cut them off, on Hopper otherwise than on Ampere.
#[test]
fn tensor_cores_of_either_architecture_add_well_enough() {
    let compiler = compiler();
    for mma in ["hopper", "ampere"] {
        for (dtype, kv_dtype, head_dim, group_size) in [
            (Dtype::F16, KvDtype::Same, 64, 4),
            (Dtype::Bf16, KvDtype::Same, 128, 8),
            (Dtype::F16, KvDtype::Same, 512, 8),
            (Dtype::Bf16, KvDtype::E4m3, 128, 8),
        ] {
            let shape = KernelShape { dtype, kv_dtype, head_dim, group_size };
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
    let mut spilling = Vec::new();
    for (name, architecture) in [("emulated:a100", "sm_80"), (DEVICE, "sm_90a")] {
        let limits = Limits::of(spanforge_device::open(name).unwrap().properties());
        let groups = |kv_dtype: KvDtype| match kv_dtype {
            KvDtype::Same => &[1, 3, 4, 6, 8, 16][..],
            KvDtype::E4m3 => &[1, 6, 16],
        };
        let shapes = HEAD_DIMS.into_iter().flat_map(|head_dim| {
            KvDtype::ALL.into_iter().flat_map(move |kv_dtype| {
                groups(kv_dtype).iter().map(move |group_size| KernelShape {
                    dtype: Dtype::Bf16,
                    kv_dtype,
                    head_dim,
                    group_size: *group_size,
                })
            })
        });
        let specs: BTreeSet<_> = shapes
            .flat_map(|shape| [1, 4, 16, 128].map(|rows| (shape, rows)))
            .map(|(shape, rows)| {
                let space = SearchSpace::for_rows(shape, limits, rows);
                KernelSpec { shape, configuration: space.default_configuration().unwrap() }
            })
            .collect();
        for spec in specs {
            let image = compile(&compiler, &spec, architecture).unwrap();
            spilling.extend(image.resources.iter().filter_map(|(kernel, resources)| {
                let (stores, loads) = (resources.spill_store_bytes, resources.spill_load_bytes);
                (stores + loads > 0).then(|| {
                    format!("{kernel} of {spec} on {architecture}: {stores} + {loads} bytes")
                })
            }));
        }
    }
    assert!(spilling.is_empty(), "{spilling:#?}");
}

/// All 256 elements of e4m3, NaN among them, by either kind of cores and with the conversion of either
/// architecture: as the value of the only token its output has them all, and a key that is one of them
/// in one place and multiplied there alone is the LSE.
#[test]
fn every_element_of_8_bits_is_read_as_what_it_is() {
    let compiler = compiler();
    let group_size = 4;
    let attention = AttentionShape {
        dtype: Dtype::F16,
        kv_dtype: KvDtype::E4m3,
        query_heads: group_size,
        kv_heads: 1,
        head_dim: 256,
        page_size: 256,
        layout: KvLayout::Nhd,
    };
    let codes = || (0..256u16).cycle();
    let tokens = SpanSet::from_pairs([(3, 4)]).unwrap();
    let mut problem = DecodeProblem {
        attention,
        scale: 1.0,
        soft_cap: 0.0,
        pages: 1,
        max_pages: 1,
        kv_len: vec![256],
        page_table: vec![0],
        row_request: vec![0; 256],
        spans: SpanBatch::from_sets(vec![&tokens; 256]).unwrap(),
        sinks: Vec::new(),
        k_scales: vec![1.0],
        v_scales: vec![1.0],
        q: vec![0; 256 * 4 * 256],
        k: codes().take(256 * 256).collect(),
        v: codes().take(256 * 256).collect(),
    };
    let one = Dtype::F16.encode(1.0);
    for (row, query) in problem.q.chunks_exact_mut(4 * 256).enumerate() {
        query.chunks_exact_mut(256).for_each(|head| head[row] = one);
    }
    let value = |code: u16| {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let size = match (code & 0x7f, exponent) {
            (0x7f, _) => f32::NAN,
            (_, 0) => mantissa * 2f32.powi(-9),
            _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
        };
        if code & 0x80 == 0 { size } else { -size }
    };
    // A key that is not NaN anywhere, for the logits: NaN elsewhere would reach every one of them.
    let keys = problem.k.clone();
    for device_name in [DEVICE, "emulated:a100"] {
        let device = spanforge_device::open(device_name).unwrap();
        for core in [Core::Fma, Core::Mma] {
            let shape = attention.kernel_shape().unwrap();
            let space = SearchSpace::new(shape, Limits::of(device.properties()));
            let mut configuration = space.default_configuration().unwrap();
            if core == Core::Fma {
                let groups_of_two = KernelShape { group_size: 2, ..shape };
                let space = SearchSpace::new(groups_of_two, Limits::of(device.properties()));
                configuration = space.default_configuration().unwrap();
            }
            assert_eq!(configuration.core, core);
            let spec = KernelSpec { shape, configuration };
            let architecture = &device.properties().architecture;
            let image = compile(&compiler, &spec, architecture).unwrap();
            let decoder = Decoder::load(device.as_ref(), &image, spec).unwrap();
            let run = |problem: &DecodeProblem| {
                let resident = decoder.upload(problem, UploadOptions::default()).unwrap();
                decoder.run(&resident).unwrap();
                resident.output().unwrap()
            };
            let same = |found: f32, expected: f32| {
                found == expected || (found.is_nan() && expected.is_nan())
            };
            problem.k =
                keys.iter().map(|code| if code & 0x7f == 0x7f { 0 } else { *code }).collect();
            let output = run(&problem);
            for (code, bits) in codes().zip(&output.out) {
                let found = half::f16::from_bits(*bits).to_f32();
                assert!(same(found, value(code)), "{code:#x} is {found} by {spec}");
            }
            for (row, lse) in output.lse.chunks_exact(4).enumerate() {
                let expected = value(problem.k[row]);
                let close = (lse[0] - expected).abs() <= 1e-6 * expected.abs().max(1.0);
                assert!(close, "{row:#x} is {} by {spec}", lse[0]);
            }
            problem.k.clone_from(&keys);
            assert!(run(&problem).lse.iter().all(|lse| lse.is_nan()), "{spec}");
        }
    }
}

/// Groups that no number of warps divides evenly, and one that fills a block.
#[test]
fn unusual_groups_match_the_oracle() {
    let compiler = compiler();
    for (head_dim, group_size) in [(64, 71), (128, 7), (256, 5), (64, 12)] {
        let shape = KernelShape::new(Dtype::F16, head_dim, group_size);
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

/// 2026-11-29: with guard bands, as on a GPU, the number of appended tokens went to an address that was no
/// allocation's.
#[test]
fn tokens_are_appended_between_guard_bands() {
    let compiler = compiler();
    let device = spanforge_device::open(DEVICE).unwrap();
    let problem = Workload::named("ssas-llama2", 2, 1).unwrap().problem(1, 1 << 24).unwrap();
    let shape = problem.kernel_shape().unwrap();
    let spec = KernelSpec { shape, configuration: space(shape).default_configuration().unwrap() };
    let image = compile(&compiler, &spec, "sm_90a").unwrap();
    let decoder = Decoder::load(device.as_ref(), &image, spec).unwrap();
    let [alone, between] = [0, 256].map(|guard_bytes| {
        let options = UploadOptions { guard_bytes, appended: 1, ..UploadOptions::default() };
        let resident = decoder.upload(&problem, options).unwrap();
        decoder.run(&resident).unwrap();
        assert!(resident.broken_guards().unwrap().is_empty());
        resident.output().unwrap()
    });
    assert_eq!(alone, between);
}

/// 2026-11-25: queries in shared memory were read by pairs of floats 16 bytes apart, which takes every
/// bank twice: 1.95 times the wavefronts in the best kernel for groups of one.
#[test]
fn loads_from_shared_memory_have_no_bank_conflicts() {
    let compiler = compiler();
    let device = spanforge_device::open(DEVICE).unwrap();
    for (preset, kv_dtype, queries, count) in [
        ("ssas-llama2", KvDtype::Same, 1, 8),
        ("ssas-llama2", KvDtype::Same, 16, 3),
        ("da-qwen3.6", KvDtype::Same, 1, 6),
        ("da-qwen3.6", KvDtype::Same, 4, 3),
        ("da-gemma4", KvDtype::Same, 1, 4),
        ("ssas-llama2", KvDtype::E4m3, 1, 4),
        ("ssas-llama2", KvDtype::E4m3, 16, 3),
        ("da-qwen3.6", KvDtype::E4m3, 1, 4),
    ] {
        let mut workload = Workload::named(preset, 4, 1).unwrap().with_queries(queries);
        workload.attention.kv_dtype = kv_dtype;
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
            set_tokens: device.allocate("set_tokens", 4 * (batch.rows() + 2)).unwrap(),
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
        let by_set = batch.span_ptr().iter().map(|p| by_span[*p as usize]);
        // Nothing is appended yet.
        let by_set: Vec<i32> = by_set.chain([0]).collect();
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
        query_rows in prop_oneof![Just(2u32), Just(4), Just(16), Just(32), 48..=128u32],
    ) {
        let rows = batch.rows() / heads;
        let kept = batch.sets().take(rows * heads).collect::<Vec<_>>();
        let batch = SpanBatch::from_sets(&kept).unwrap();
        let mut requests = requests[..rows].to_vec();
        requests.sort_unstable();
        let tile_ptr = query_tiles(&requests, query_rows);
        let kind = if query_rows > 32 { "wgmma" } else { "mma" };
        let per_warp = if query_rows > 32 { 16 } else { query_rows.min(8) };
        let id = format!(
            "f16-d64-g1-{kind}-r{query_rows}-staged-t64-s2-w1-h{per_warp}-v16-u1-qr-p0-b1-x1-m128-second"
        );
        let spec: KernelSpec = id.parse().unwrap();
        let words = spec.configuration.row_words() as usize;
        let device = spanforge_device::open(DEVICE).unwrap();
        let image = compile(&compiler(), &spec, "sm_90a").unwrap();
        let module = device.load(&image).unwrap();
        let upload = |name, values| upload(device.as_ref(), name, values);
        let download = |buffer, count| download(device.as_ref(), buffer, count);
        let (tiles, room) = (tile_ptr.len() - 1, 2 * batch.spans().len());
        let overlay = OverlayBuffers {
            tile_ptr: upload("tile_ptr", &tile_ptr),
            tile_span_ptr: device.allocate("tile_span_ptr", (16 * tiles * heads).max(4)).unwrap(),
            tile_spans: device.allocate("tile_spans", (8 * room).max(4)).unwrap(),
            span_rows: device.allocate("span_rows", (4 * words * room).max(4)).unwrap(),
        };
        let plan = PlanBuffers {
            span_ptr: upload("span_ptr", batch.span_ptr()),
            spans: upload("spans", batch.spans().as_flattened()),
            overlay: Some(overlay),
            set_tokens: device.allocate("set_tokens", 4 * (tiles * heads + 2)).unwrap(),
            span_tokens: device.allocate("span_tokens", 4 * (room + 1)).unwrap(),
        };
        // Nothing is launched for no tiles.
        prop_assume!(tiles > 0);
        let launcher = Launcher::new(module, spec, device.properties());
        for launch in launcher.plan(&plan, tiles as i32, heads as i32) {
            device.launch(&launch).unwrap();
        }

        let bounds = download(overlay.tile_span_ptr, 4 * tiles * heads);
        let set_tokens = download(plan.set_tokens, tiles * heads + 1);
        let span_tokens = download(plan.span_tokens, room);
        let spans = download(overlay.tile_spans, 2 * room);
        let span_rows = download(overlay.span_rows, words * room);
        let mut room_begin = 0;
        let mut tokens = 0;
        for (set, bounds) in bounds.chunks(4).enumerate() {
            let (tile, head) = (set / heads, set % heads);
            let (first, end) = (tile_ptr[tile] as usize, tile_ptr[tile + 1] as usize);
            let mut selected = vec![Vec::new(); end - first];
            let mut last = 0;
            let (begin, until) = (bounds[0] as usize, bounds[1] as usize);
            let of_rows = (first..end).map(|row| batch.row(row * heads + head).spans().len());
            prop_assert_eq!(begin, room_begin);
            room_begin += 2 * of_rows.sum::<usize>();
            prop_assert!(until <= room_begin);
            prop_assert_eq!(set_tokens[set], tokens);
            for span in begin..until {
                let (start, stop) = (spans[2 * span], spans[2 * span + 1]);
                let selects =
                    |row: usize| span_rows[words * span + row / 32] as u32 >> (row % 32) & 1 == 1;
                prop_assert!(last <= start && start < stop);
                last = stop;
                prop_assert_eq!(span_tokens[span], tokens - set_tokens[set]);
                tokens += stop - start;
                prop_assert_eq!(span_tokens[span + 1], tokens - set_tokens[set]);
                prop_assert!((end - first..32 * words).all(selects));
                for (row, selected) in selected.iter_mut().enumerate() {
                    if selects(row) {
                        selected.push((start as u32, stop as u32));
                    }
                }
            }
            for (row, selected) in selected.into_iter().enumerate() {
                let expected = batch.row((first + row) * heads + head);
                prop_assert_eq!(SpanSet::from_pairs(selected).unwrap(), expected);
            }
        }
        prop_assert_eq!(set_tokens[tiles * heads], tokens);
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
        of_8_bits: bool,
    ) {
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F16 };
        let kv_dtype = if of_8_bits { KvDtype::E4m3 } else { KvDtype::Same };
        let shape = KernelShape { dtype, kv_dtype, head_dim: HEAD_DIMS[head_dim], group_size };
        // One row at a time, or several.
        let rows = if seed % 3 == 0 { 1 } else { 16 };
        let space = space_for(shape, rows);
        let point = strategy("random", seed).unwrap().propose(&space).unwrap();
        let configuration = space.at(&point).unwrap();
        let first = seed >> 1;
        assert_correct(&compiler(), KernelSpec { shape, configuration }, first..first + 8);
    }

    /// Kernels of warpgroups, of which a draw from all configurations has few.
    #[test]
    fn any_kernel_of_warpgroups_matches_the_oracle(
        seed: u64,
        head_dim in prop::sample::select(vec![64u32, 128, 256]),
        group_size in prop::sample::select(vec![1u32, 3, 4, 6, 8, 16]),
        columns in 48..=128u32,
        tile_tokens in prop::sample::select(vec![64u32, 128]),
        stages in 2..=4u32,
        query in prop::sample::select(vec![QueryHome::Registers, QueryHome::Shared]),
        blocks in 1..=2u32,
        bf16: bool,
    ) {
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F16 };
        let shape = KernelShape::new(dtype, head_dim, group_size);
        let space = space_for(shape, 128);
        let preferred = space.default_configuration().unwrap();
        let configuration = Configuration {
            query_rows: columns / group_size,
            tile_tokens,
            stages,
            query,
            min_blocks: blocks,
            blocks_per_multiprocessor: blocks,
            smallest_share: 64,
            ..preferred
        };
        prop_assert_eq!(configuration.core, Core::Wgmma);
        prop_assume!(space.broken_constraint(&configuration).is_none());
        assert_correct(&compiler(), KernelSpec { shape, configuration }, seed >> 1..(seed >> 1) + 8);
    }
}
