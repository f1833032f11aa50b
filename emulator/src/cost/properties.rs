//! What the cost model promises: it orders launches the way hardware does, and it reproduces
//! published measurements of the simplest kernels.

use proptest::prelude::*;

use super::*;
use crate::counters::{GlobalTraffic, SharedTraffic, WarpgroupProducts};
use crate::profile::{find, names};

/// What one block of a made-up kernel does.
#[derive(Clone, Debug)]
struct Block {
    load_bytes: u64,
    load_batch: u64,
    copy_bytes: u64,
    copies_in_flight: u64,
    store_bytes: u64,
    wavefronts: u64,
    conflicts: u64,
    mix: InstructionMix,
}

impl Block {
    fn counters(&self, blocks: u64) -> Counters {
        let traffic = |bytes: u64| GlobalTraffic {
            requests: blocks * bytes.div_ceil(512),
            sectors: blocks * bytes.div_ceil(SECTOR_BYTES),
            bytes: blocks * bytes,
        };
        let waits = self.copy_bytes.div_ceil(self.copies_in_flight);
        Counters {
            blocks,
            warp_instructions: blocks * 1000,
            mix: InstructionMix {
                float32: blocks * self.mix.float32,
                integer: blocks * self.mix.integer,
                special: blocks * self.mix.special,
                matrix: blocks * self.mix.matrix,
                ..InstructionMix::default()
            },
            global_load: traffic(self.load_bytes),
            async_copy: traffic(self.copy_bytes),
            global_store: traffic(self.store_bytes),
            shared_load: SharedTraffic {
                requests: blocks * self.wavefronts,
                wavefronts: blocks * (self.wavefronts + self.conflicts),
                ideal_wavefronts: blocks * self.wavefronts,
            },
            load_bytes_in_flight: blocks * self.load_bytes * self.load_batch,
            async_waits: blocks * waits,
            async_bytes_in_flight: blocks * waits * self.copies_in_flight,
            ..Counters::default()
        }
    }
}

/// Blocks from pure streaming to pure arithmetic, with shallow and deep prefetching.
fn block() -> impl Strategy<Value = Block> {
    let bytes = || prop_oneof![Just(0_u64), 32_u64..4096, 4096_u64..4_000_000];
    let count = || prop_oneof![Just(0_u64), 1_u64..100, 1000_u64..200_000];
    (
        (bytes(), prop::sample::select(vec![4_u64, 128, 512, 4096])),
        (bytes(), prop::sample::select(vec![512_u64, 2048, 16_384])),
        bytes(),
        (count(), 0_u64..5000),
        (count(), count(), count(), count()),
    )
        .prop_map(|(load, copy, store_bytes, shared, mix)| Block {
            load_bytes: load.0,
            load_batch: load.1,
            copy_bytes: copy.0,
            copies_in_flight: copy.1,
            store_bytes,
            wavefronts: shared.0,
            conflicts: shared.1,
            mix: InstructionMix {
                float32: mix.0,
                integer: mix.1,
                special: mix.2,
                matrix: mix.3,
                ..InstructionMix::default()
            },
        })
}

fn shape() -> impl Strategy<Value = Shape> {
    (1_u64..20_000, 1_u32..=8, 16_u32..=128, 0_u32..=40_000).prop_map(
        |(blocks, warps, registers, shared_bytes_per_block)| Shape {
            blocks,
            busy_blocks: blocks,
            threads_per_block: 32 * warps,
            registers,
            shared_bytes_per_block,
        },
    )
}

fn time(profile: &Profile, shape: &Shape, block: &Block) -> f64 {
    let estimate = estimate(profile, shape, &block.counters(1)).expect("fits");
    assert!(estimate.time_us.is_finite());
    estimate.time_us
}

/// `b` is at least `a`, but for rounding.
fn not_less(a: f64, b: f64) -> bool {
    b >= a * (1.0 - 1e-12)
}

proptest! {
    #[test]
    fn all_terms_but_fixed_times_say_what_they_count(
        gpu in prop::sample::select(names()), shape in shape(), block in block(),
    ) {
        let (profile, counters) = (find(gpu).expect(gpu), block.counters(1));
        for term in estimate(&profile, &shape, &counters).expect("fits").terms {
            let fixed = ["block start", KERNEL_LAUNCH].contains(&term.name.as_str());
            prop_assert_eq!(counted(&term.name, &counters).is_empty(), fixed, "{}", term.name);
        }
    }

    /// Every lever gains, in order, and takes a whole launch no lower than its own launching.
    #[test]
    fn levers_are_gains_the_largest_first(
        gpu in prop::sample::select(names()), shape in shape(), block in block(),
    ) {
        let profile = find(gpu).expect(gpu);
        let counters = block.counters(1);
        let now = estimate_with_footprint(&profile, &shape, &counters, u64::MAX).expect("fits");
        let levers = levers(&profile, &shape, &counters, u64::MAX).expect("fits");
        for lever in &levers {
            prop_assert!(lever.time_us < now.time_us, "{:?}", lever);
            prop_assert!(lever.time_us >= profile.kernel_launch.value, "{:?}", lever);
        }
        prop_assert!(levers.is_sorted_by(|a, b| a.time_us <= b.time_us));
        let bank = levers.iter().any(|lever| lever.what == "no bank conflicts");
        prop_assert!(!bank || block.conflicts > 0);
    }

    #[test]
    fn more_work_is_never_faster(
        gpu in prop::sample::select(names()), shape in shape(), base in block(), more in block(),
    ) {
        let profile = find(gpu).expect(gpu);
        let least = time(&profile, &shape, &base);
        type Change = fn(&mut Block, &Block);
        let changes: [(&str, Change); 8] = [
            ("loads", |b, m| b.load_bytes += m.load_bytes),
            ("copies", |b, m| b.copy_bytes += m.copy_bytes),
            ("stores", |b, m| b.store_bytes += m.store_bytes),
            ("bank conflicts", |b, m| b.conflicts += m.conflicts),
            ("float32", |b, m| b.mix.float32 += m.mix.float32),
            ("integer", |b, m| b.mix.integer += m.mix.integer),
            ("special", |b, m| b.mix.special += m.mix.special),
            ("matrix", |b, m| b.mix.matrix += m.mix.matrix),
        ];
        for (name, change) in changes {
            let mut changed = base.clone();
            change(&mut changed, &more);
            prop_assert!(not_less(least, time(&profile, &shape, &changed)), "{name}");
        }
        let blocks = shape.blocks + more.wavefronts;
        let wider = Shape { blocks, busy_blocks: blocks, ..shape };
        prop_assert!(not_less(least, time(&profile, &wider, &base)), "blocks");
    }

    #[test]
    fn less_room_and_less_in_flight_is_never_faster(
        gpu in prop::sample::select(names()), shape in shape(), base in block(),
        registers in 0_u32..100, shared in 0_u32..50_000,
    ) {
        let profile = find(gpu).expect(gpu);
        let least = time(&profile, &shape, &base);
        let crowded = Shape {
            registers: shape.registers + registers,
            shared_bytes_per_block: shape.shared_bytes_per_block + shared,
            ..shape
        };
        prop_assert!(not_less(least, time(&profile, &crowded, &base)));
        let mut shallow = base.clone();
        shallow.load_batch = shallow.load_batch.div_ceil(2);
        shallow.copies_in_flight = shallow.copies_in_flight.div_ceil(2);
        prop_assert!(not_less(least, time(&profile, &shape, &shallow)));
    }

    #[test]
    fn the_time_is_at_least_every_term_and_terms_are_sorted(
        gpu in prop::sample::select(names()), shape in shape(), base in block(),
    ) {
        let profile = find(gpu).expect(gpu);
        let estimate = estimate(&profile, &shape, &base.counters(1)).expect("fits");
        prop_assert!(estimate.terms.windows(2).all(|pair| pair[0].us >= pair[1].us));
        prop_assert!(not_less(estimate.terms[0].us, estimate.time_us));
    }

    #[test]
    fn a_sample_of_equal_blocks_gives_the_estimate_of_one(
        gpu in prop::sample::select(names()), shape in shape(), base in block(),
        sample in 1_u64..64,
    ) {
        let profile = find(gpu).expect(gpu);
        let one = time(&profile, &shape, &base);
        let sample = sample.min(shape.blocks);
        let many = estimate(&profile, &shape, &base.counters(sample)).expect("fits").time_us;
        prop_assert!((many / one - 1.0).abs() < 1e-9);
    }

    #[test]
    fn reuse_is_never_slower_and_never_beats_reading_once(
        gpu in prop::sample::select(names()), shape in shape(), base in block(),
        share in 0.01_f64..1.0,
    ) {
        let profile = find(gpu).expect(gpu);
        let counters = base.counters(1);
        let read = (counters.global_load.sectors + counters.async_copy.sectors) * 32 * shape.blocks;
        let distinct = (read as f64 * share) as u64;
        let reused = estimate_with_footprint(&profile, &shape, &counters, distinct).expect("fits");
        prop_assert!(not_less(reused.time_us, time(&profile, &shape, &base)));
        let floor = distinct as f64 / profile.achievable_bandwidth() * 1e6;
        prop_assert!(not_less(floor, reused.time_us));
    }
}

/// A block that only moves data: `copy_bytes`, of which a warp has `in_flight` under way.
fn streaming(copy_bytes: u64, in_flight: u64) -> Block {
    Block {
        load_bytes: 0,
        load_batch: 1,
        copy_bytes,
        copies_in_flight: in_flight,
        store_bytes: 0,
        wavefronts: 0,
        conflicts: 0,
        mix: InstructionMix::default(),
    }
}

#[test]
fn a_deep_stream_reaches_the_achievable_bandwidth_and_a_shallow_one_does_not() {
    for gpu in names() {
        let profile = find(gpu).expect(gpu);
        let shape = Shape {
            blocks: profile.multiprocessors.value * 4,
            busy_blocks: profile.multiprocessors.value * 4,
            threads_per_block: 256,
            registers: 32,
            shared_bytes_per_block: 20_000,
        };
        let bytes = 4_000_000 * shape.blocks;
        let floor = bytes as f64 / profile.achievable_bandwidth() * 1e6;
        let deep = estimate(&profile, &shape, &streaming(4_000_000, 2048).counters(1));
        let deep = deep.expect("fits");
        assert_eq!(deep.terms[0].name, "dram bandwidth", "{gpu}");
        assert!((1.0..1.03).contains(&(deep.time_us / floor)), "{gpu}: {}", deep.time_us / floor);
        let shallow = estimate(&profile, &shape, &streaming(4_000_000, 16).counters(1));
        let shallow = shallow.expect("fits");
        assert_eq!(shallow.terms[0].name, "memory latency", "{gpu}");
        assert!(shallow.time_us > 2.0 * floor, "{gpu}");
    }
}

#[test]
fn one_block_is_far_from_the_bandwidth() {
    let h200 = find("h200").expect("built in");
    let shape = Shape {
        blocks: 1,
        busy_blocks: 1,
        threads_per_block: 256,
        registers: 64,
        shared_bytes_per_block: 65_536,
    };
    let one = time(&h200, &shape, &streaming(64_000_000, 8192));
    let bandwidth = 64_000_000.0 / one * 1e6;
    assert!(bandwidth < 0.05 * h200.achievable_bandwidth(), "{bandwidth:e}");
}

/// `gpu-stream` of RRZE-HPC/gpu-benches, column "read": every thread loads one double, two blocks
/// are resident per multiprocessor. The GPUs that were measured are siblings of profiles: A100
/// 80GB, GH200 (132 multiprocessors, 3942 GB/s at best), A40 (84, 680) and L40 (142, 846).
#[test]
fn the_published_streaming_curves_are_reproduced() {
    type Curve = [(u32, f64); 5];
    let curves: [(&str, u64, f64, Curve); 4] = [
        (
            "a100",
            108,
            1866.0,
            [(128, 323.0), (256, 615.0), (512, 1119.0), (768, 1491.0), (1024, 1776.0)],
        ),
        (
            "h100",
            132,
            3942.0,
            [(128, 486.0), (256, 935.0), (512, 1715.0), (768, 2314.0), (1024, 2775.0)],
        ),
        (
            "rtx3090",
            84,
            680.0,
            [(96, 233.0), (160, 371.0), (256, 553.0), (320, 639.0), (512, 680.0)],
        ),
        (
            "rtx4090",
            142,
            846.0,
            [(64, 321.0), (96, 470.0), (128, 617.0), (192, 824.0), (320, 845.0)],
        ),
    ];
    for (gpu, multiprocessors, gigabytes, curve) in curves {
        let mut profile = find(gpu).expect(gpu);
        profile.multiprocessors.value = multiprocessors;
        profile.dram_bandwidth.value = gigabytes * 1e9;
        profile.achievable_bandwidth_fraction.value = 1.0;
        let half = profile.shared_bytes_per_multiprocessor.value / 2 - 1024;
        for (threads_per_block, measured) in curve {
            let block = Block {
                load_bytes: u64::from(threads_per_block) * 8,
                load_batch: 256,
                ..streaming(0, 1)
            };
            let shape = Shape {
                blocks: 1_000_000,
                busy_blocks: 1_000_000,
                threads_per_block,
                registers: 32,
                shared_bytes_per_block: u32::try_from(half).expect("small"),
            };
            let bytes = block.load_bytes * shape.blocks;
            let predicted = bytes as f64 / time(&profile, &shape, &block) * 1e-3;
            println!("{gpu} {threads_per_block}: {predicted:.0} of {measured} GB/s");
            let error = predicted / measured - 1.0;
            assert!(error.abs() < 0.10, "{gpu} {threads_per_block}: {predicted} of {measured}");
        }
    }
}

#[test]
fn a_known_launch_by_hand() {
    // H200, 132 blocks of 128 threads, each copying 1 MiB with 4 KiB in flight per warp:
    // 138,412,032 bytes at 4.3008 TB/s = 32.183 us; 64 latencies of 0.34 us + 0.205 us of start
    // = 21.965 us; a p-norm of 2 makes 38.964 us, 4.137 us of writes to shared memory under it make
    // 38.965 us, and 0.85 us of launch 39.815 us.
    let h200 = find("h200").expect("built in");
    let shape = Shape {
        blocks: 132,
        busy_blocks: 132,
        threads_per_block: 128,
        registers: 64,
        shared_bytes_per_block: 32_768,
    };
    let estimate = estimate(&h200, &shape, &streaming(1 << 20, 4096).counters(1)).expect("fits");
    assert!((estimate.time_us - 39.815).abs() < 0.001, "{}", estimate.time_us);
    assert!((estimate.terms[0].us - 32.183).abs() < 0.001);
    assert_eq!(estimate.occupancy.blocks_per_multiprocessor, 6);
    assert_eq!(estimate.occupancy.limiter, "shared memory");
    assert!((estimate.waves - 1.0 / 6.0).abs() < 1e-12);
    assert!(estimate.to_string().starts_with("predicted 39.82 us on NVIDIA H200 (most of it dram"));
    assert!(estimate.assumptions[0].contains("nothing was run on a GPU"));
}

#[test]
fn pipelines_by_hand() {
    // H200 at 1980 cycles per microsecond, one block of four warps on each multiprocessor.
    let h200 = find("h200").expect("built in");
    let shape = Shape {
        blocks: 132,
        busy_blocks: 132,
        threads_per_block: 128,
        registers: 64,
        shared_bytes_per_block: 0,
    };
    let mut counters = streaming(0, 1).counters(1);
    counters.mix = InstructionMix {
        float32: 19_800,
        half: 19_800,
        integer: 19_800,
        special: 19_800,
        exchange: 19_800,
        moves: 66_000,
        matrix: 19_800,
        ..InstructionMix::default()
    };
    counters.shared_load =
        SharedTraffic { requests: 19_800, wavefronts: 79_200, ideal_wavefronts: 19_800 };
    let expected = [
        // 79,200 wavefronts and 19,800 shuffles, one a cycle.
        ("shared memory and shuffles", 50.0),
        // 2 cycles a warp of 16 lanes.
        ("special functions", 20.0),
        // 6 x 19,800 and 0.3 x 66,000, four a cycle.
        ("instruction issue", 17.5),
        // 4096 flop of 0.63 x 989.4 TFLOP/s / 132 / 1.98 GHz = 2384.9 a cycle.
        ("tensor cores", 17.174_6),
        // 19,800 and the 34 % of the integer ones, 4 a cycle; the other 66 %, 2 a cycle.
        ("float32 pipe", 3.35),
        ("integer pipe", 3.3),
        ("half pipe", 2.5),
    ];
    let estimate = estimate(&h200, &shape, &counters).expect("fits");
    for (name, us) in expected {
        let term = estimate.terms.iter().find(|term| term.name == name).expect(name);
        assert!((term.us - us).abs() < 1e-3, "{name}: {}", term.us);
    }
    // One warp of a block uses one partition of four.
    let narrow = Shape { threads_per_block: 32, ..shape };
    let narrow = super::estimate(&h200, &narrow, &counters).expect("fits");
    let issue = narrow.terms.iter().find(|term| term.name == "instruction issue").expect("there");
    assert!((issue.us - 70.0).abs() < 1e-3, "{}", issue.us);
}

/// A warpgroup's products have the peak rate, are waited for, and read shared memory; a block takes the
/// time of its longest warp, and copies what those warps have under way that copy.
#[test]
fn warpgroups_by_hand() {
    let h200 = find("h200").expect("built in");
    let shape = Shape {
        blocks: 132,
        busy_blocks: 132,
        threads_per_block: 256,
        registers: 64,
        shared_bytes_per_block: 0,
    };
    let mut counters = streaming(1 << 20, 4096).counters(1);
    counters.mix = InstructionMix { matrix: 4000, ..InstructionMix::default() };
    counters.warps = 8;
    counters.warp_instructions = 4000;
    counters.longest_warp_instructions = 1000;
    counters.copying_warps = 4;
    // A thousand of m64n64k16, B in shared memory.
    counters.warpgroup = WarpgroupProducts {
        instructions: 4000,
        flop: 1000 * 2 * 64 * 64 * 16,
        shared_bytes: 1000 * 64 * 32,
    };
    let estimate = estimate(&h200, &shape, &counters).expect("fits");
    let expected = [
        // 131,072,000 flop at 989.4 TFLOP/s / 132.
        ("tensor cores", 17.486_8),
        // The same: of eight warps the four that multiply have a quarter of the tensor cores each.
        ("instruction latency", 17.486_8),
        // 2 MB and 1 MiB of copies at 128 bytes a cycle.
        ("shared memory and shuffles", 12.218_0),
        // A quarter of a MiB for each of four warps, 4 KiB at a time: 64 times 0.34 us.
        ("memory latency", 21.76),
    ];
    for (name, us) in expected {
        let term = estimate.terms.iter().find(|term| term.name == name).expect(name);
        assert!((term.us - us).abs() < 1e-3, "{name}: {}", term.us);
    }
}

#[test]
fn a_launch_without_a_time_says_why() {
    let h100 = find("h100").expect("built in");
    let shape = Shape {
        blocks: 2,
        busy_blocks: 2,
        threads_per_block: 128,
        registers: 32,
        shared_bytes_per_block: 0,
    };
    let counters = streaming(4096, 512).counters(1);
    let fails = |shape: Shape, counters: &Counters| estimate(&h100, &shape, counters).unwrap_err();
    assert_eq!(fails(Shape { blocks: 0, ..shape }, &counters), CostError::EmptyGrid);
    assert_eq!(fails(shape, &Counters::default()), CostError::NothingCounted);
    assert_eq!(
        fails(shape, &streaming(4096, 512).counters(3)),
        CostError::OtherLaunch { counted: 3, blocks: 2 }
    );
    assert_eq!(
        fails(Shape { threads_per_block: 2048, ..shape }, &counters),
        CostError::DoesNotFit(DoesNotFit::Threads { threads: 2048, most: 1024 })
    );
}

#[test]
fn counters_at_their_limits_stay_finite() {
    let profile = find("l4").expect("built in");
    let shape = Shape {
        blocks: u64::MAX,
        busy_blocks: u64::MAX,
        threads_per_block: 1024,
        registers: 32,
        shared_bytes_per_block: 0,
    };
    let full = GlobalTraffic { requests: u64::MAX, sectors: u64::MAX, bytes: u64::MAX };
    let counters = Counters {
        blocks: 1,
        warp_instructions: u64::MAX,
        mix: InstructionMix {
            float32: u64::MAX,
            half: u64::MAX,
            integer: u64::MAX,
            memory: u64::MAX,
            ..InstructionMix::default()
        },
        global_load: full,
        async_copy: full,
        async_waits: u64::MAX,
        load_bytes_in_flight: 1,
        ..Counters::default()
    };
    let estimate = estimate(&profile, &shape, &counters).expect("fits");
    assert!(estimate.time_us.is_finite());
}

#[test]
fn blocks_that_have_nothing_to_do_take_no_part_in_the_work() {
    let h200 = find("h200").expect("built in");
    let few = Shape {
        blocks: 17,
        busy_blocks: 17,
        threads_per_block: 128,
        registers: 64,
        shared_bytes_per_block: 0,
    };
    let alone = time(&h200, &few, &streaming(4_000_000, 8192));
    // The same work, counted over all the blocks of a grid of which most only start.
    let many = Shape { blocks: 792, ..few };
    let mut counters = Counters::default();
    counters.add(&streaming(4_000_000, 8192).counters(1), 17);
    counters.blocks = 792;
    let among = estimate(&h200, &many, &counters).expect("fits").time_us;
    assert!((among / alone - 1.0).abs() < 1e-9, "{among} and {alone}");
    // In more waves they cost what it takes to start them.
    let more = estimate(&h200, &Shape { blocks: 79_200, ..many }, &counters).expect("fits");
    assert!(more.time_us > alone, "{} and {alone}", more.time_us);
}
