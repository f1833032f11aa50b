//! The cost model: from counters of representative blocks and the launch's occupancy to a
//! predicted time on a named GPU. It ranks configurations; it does not measure.
//!
//! `docs/cost-model.md` has the formulas with their reasons, and what the model does not know.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::counters::{Counters, InstructionMix, SECTOR_BYTES};
use crate::occupancy::{DoesNotFit, WARP_THREADS, occupancy};
use crate::profile::Profile;

mod assumptions;
mod counted;
mod levers;
#[cfg(test)]
mod properties;

pub use counted::counted;
pub use levers::{Lever, levers};

/// How many blocks fit on a multiprocessor, and what stops more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Resident blocks per multiprocessor.
    pub blocks_per_multiprocessor: u32,
    /// Resident warps per multiprocessor.
    pub warps_per_multiprocessor: u32,
    /// Resident warps over the most the multiprocessor can hold.
    pub fraction: f64,
    /// `registers`, `shared memory`, `threads` or `blocks`.
    pub limiter: String,
}

/// One lower bound on the time of a launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// What it is, such as `dram bandwidth`, `instruction issue`, `memory latency`.
    pub name: String,
    /// Microseconds the launch would take were this the only limit.
    pub us: f64,
}

/// Name of the term of what a launch takes that does nothing.
pub const KERNEL_LAUNCH: &str = "kernel launch";

/// A predicted time with its reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Predicted time of the launch in microseconds.
    pub time_us: f64,
    /// Every term, largest first; the first is what limits.
    pub terms: Vec<Term>,
    /// Blocks that are resident at once.
    pub occupancy: Occupancy,
    /// Grid blocks over the blocks resident on the whole GPU.
    pub waves: f64,
    /// Marketing name of the GPU the prediction is for.
    #[serde(default)]
    pub gpu: String,
    /// What the prediction rests on, to be printed with it.
    #[serde(default)]
    pub assumptions: Vec<String>,
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "predicted {:.2} us on {}", self.time_us, self.gpu)?;
        match self.terms.first() {
            Some(term) => write!(f, " (most of it {}: {:.2} us)", term.name, term.us),
            None => Ok(()),
        }
    }
}

/// A launch as the cost model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Blocks of the grid.
    pub blocks: u64,
    /// Those of them that have something to do, from 1 to `blocks`: all the work is theirs, in equal
    /// parts. The others only start.
    pub busy_blocks: u64,
    /// Threads of a block.
    pub threads_per_block: u32,
    /// Registers of a thread, as `ptxas` reports them for the GPU's architecture.
    pub registers: u32,
    /// Static plus dynamic shared memory of a block, without the system's reserve.
    pub shared_bytes_per_block: u32,
}

impl Shape {
    fn busy(&self) -> u64 {
        self.busy_blocks.clamp(self.blocks.min(1), self.blocks)
    }
}

/// Why there is no estimate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CostError {
    /// The launch has no blocks.
    #[error("a launch of no blocks has no time to estimate")]
    EmptyGrid,
    /// The counters are of no block, or of a run that did not count.
    #[error("the counters hold no executed instruction; run at least one block with counting on")]
    NothingCounted,
    /// The counters are of more blocks than the launch has.
    #[error("the counters are of {counted} blocks, but the launch has {blocks}; they differ")]
    OtherLaunch {
        /// Blocks that were executed.
        counted: u64,
        /// Blocks of the launch.
        blocks: u64,
    },
    /// The kernel cannot be launched on this GPU.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
}

// SASS instructions issued per PTX instruction, from static counts of a span-decode and a
// span-prefill kernel, PTX against the SASS of NVRTC 13.0 for sm_80 and sm_90a. Shuffles 26/26 and
// 8/8, special functions 8/8 and 40/36, conversions 45/40 and 32/32, mma 64/64, f32 116/116 and
// 250/234, integer 612/654 and 653/654 in prefill (246/198 in decode, where ptxas unrolled a loop):
// 1. Moves, parameter and special-register reads 30/176, 46/160, 77/176 and 81/160: 0.3.
const ISSUED_PER_MOVE: f64 = 0.3;
/// Share of integer instructions that are an IMAD (151 of 443 and 224 of 653 in those counts), which
/// runs on the float32 pipe.
const INTEGER_ON_FLOAT_PIPE: f64 = 0.34;

// Cycles until a dependent instruction can issue: 4 for arithmetic (CUDA C++ Programming Guide,
// compute capability 7 and later), 29 for a load from shared memory and about as many for an
// `mma.sync` (arXiv 2402.13499). Those of shuffles, special functions and barriers of warps that
// arrive together are chosen.
const ARITHMETIC_CYCLES: f64 = 4.0;
const SPECIAL_CYCLES: f64 = 18.0;
const EXCHANGE_CYCLES: f64 = 24.0;
const SHARED_CYCLES: f64 = 29.0;
const MATRIX_CYCLES: f64 = 32.0;
const BARRIER_CYCLES: f64 = 30.0;

/// Independent instructions that an unrolled kernel keeps under way in one warp. Chosen.
const INDEPENDENT_INSTRUCTIONS: f64 = 4.0;

/// FLOP of one warp's `mma.m16n8k16`.
const MATRIX_FLOP: f64 = 4096.0;

/// The p of the p-norm that overlaps arithmetic with memory: at equal times 19 % on top. Chosen.
const OVERLAP_EXPONENT: f64 = 4.0;

/// Predicts the time of a launch from the counters of some of its blocks, taking every counted
/// sector to come from memory. See [`estimate_with_footprint`] where blocks read the same data.
///
/// # Errors
/// [`CostError`] where the launch is empty, cannot be launched, or does not match the counters.
pub fn estimate(
    profile: &Profile,
    shape: &Shape,
    counters: &Counters,
) -> Result<Estimate, CostError> {
    estimate_launch(profile, shape, counters, None)
}

/// As [`estimate`], for a launch that reads `distinct_bytes` different bytes of global memory, some
/// of them more than once: they come from memory once, and again where they were evicted from the
/// L2 cache before they were read again (taken to be the share that exceeds its size).
///
/// # Errors
/// As [`estimate`].
pub fn estimate_with_footprint(
    profile: &Profile,
    shape: &Shape,
    counters: &Counters,
    distinct_bytes: u64,
) -> Result<Estimate, CostError> {
    estimate_launch(profile, shape, counters, Some(distinct_bytes as f64))
}

fn estimate_launch(
    profile: &Profile,
    shape: &Shape,
    counters: &Counters,
    distinct_bytes: Option<f64>,
) -> Result<Estimate, CostError> {
    if shape.blocks == 0 {
        return Err(CostError::EmptyGrid);
    }
    if counters.blocks == 0 || counters.warp_instructions == 0 {
        return Err(CostError::NothingCounted);
    }
    if counters.blocks > shape.blocks {
        let (counted, blocks) = (counters.blocks, shape.blocks);
        return Err(CostError::OtherLaunch { counted, blocks });
    }
    let occupancy =
        occupancy(profile, shape.threads_per_block, shape.registers, shape.shared_bytes_per_block)?;
    let launch = Launch::new(profile, shape, counters, &occupancy);
    let traffic = launch.traffic(distinct_bytes);

    let bandwidth = [
        ("dram bandwidth", traffic.dram_us),
        ("l2 bandwidth", traffic.l2_us),
        ("l2 to multiprocessor", traffic.multiprocessor_us),
    ];
    let chain = launch.chain(&traffic);
    let compute = launch.compute();
    let overhead = (KERNEL_LAUNCH, profile.kernel_launch.value);

    let memory_us =
        p_norm(profile.saturation_exponent.value, largest(&bandwidth), chain.lifetime_us);
    let time_us = overhead.1 + p_norm(OVERLAP_EXPONENT, memory_us, largest(&compute));

    let mut terms: Vec<Term> = bandwidth
        .into_iter()
        .chain(chain.terms)
        .chain(compute)
        .chain([overhead])
        .map(|(name, us)| Term { name: name.to_owned(), us })
        .collect();
    terms.sort_by(|a, b| b.us.total_cmp(&a.us));

    let assumptions = assumptions::of(profile, shape, counters, distinct_bytes);
    let waves = launch.waves;
    let gpu = profile.marketing_name.clone();
    Ok(Estimate { time_us, terms, occupancy, waves, gpu, assumptions })
}

/// The larger of the terms' times.
fn largest(terms: &[(&'static str, f64)]) -> f64 {
    terms.iter().fold(0.0, |most, (_, us)| f64::max(most, *us))
}

/// (a^p + b^p)^(1/p): the larger of two overlapping times, and more where they are alike.
fn p_norm(p: f64, a: f64, b: f64) -> f64 {
    let most = a.max(b);
    if most == 0.0 {
        return 0.0;
    }
    most * ((a / most).powf(p) + (b / most).powf(p)).powf(1.0 / p)
}

/// `part / whole`, or 0 where there is no whole.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A launch with the quantities that several terms need.
struct Launch<'a> {
    profile: &'a Profile,
    counters: &'a Counters,
    /// Blocks with something to do.
    blocks: f64,
    /// Those of them that one counted block stands for.
    per_counted: f64,
    warps_per_block: f64,
    /// Grid blocks over resident blocks.
    waves: f64,
    /// The same of blocks with something to do.
    busy_waves: f64,
    /// Blocks with something to do that the busiest multiprocessor runs, where blocks are dealt out evenly.
    busiest_blocks: f64,
    /// Partitions of the busiest multiprocessor that have a warp.
    busy_partitions: f64,
    cycles_per_us: f64,
}

/// Times of moving the launch's bytes, in microseconds.
struct Traffic {
    dram_us: f64,
    l2_us: f64,
    multiprocessor_us: f64,
    /// Latency of a global load, between that of the L2 cache and that of memory.
    latency_us: f64,
}

/// Times of a block's critical path, over all waves.
struct Chain {
    lifetime_us: f64,
    terms: [(&'static str, f64); 3],
}

impl<'a> Launch<'a> {
    fn new(
        profile: &'a Profile,
        shape: &Shape,
        counters: &'a Counters,
        occupancy: &Occupancy,
    ) -> Self {
        let blocks = shape.busy() as f64;
        let multiprocessors = profile.multiprocessors.value as f64;
        let warps_per_block = f64::from(shape.threads_per_block.div_ceil(WARP_THREADS));
        let resident = f64::from(occupancy.blocks_per_multiprocessor);
        let busiest_blocks = (blocks / multiprocessors).ceil();
        let partitions = profile.partitions_per_multiprocessor.value as f64;
        let busy_partitions = (busiest_blocks.min(resident) * warps_per_block).min(partitions);
        Self {
            profile,
            counters,
            blocks,
            per_counted: shape.blocks as f64 / blocks / counters.blocks as f64,
            warps_per_block,
            waves: shape.blocks as f64 / (resident * multiprocessors),
            busy_waves: blocks / (resident * multiprocessors),
            busiest_blocks,
            busy_partitions,
            cycles_per_us: profile.boost_clock.value,
        }
    }

    /// Mean of a count per block with something to do.
    fn per_block(&self, count: f64) -> f64 {
        count * self.per_counted
    }

    fn traffic(&self, distinct_bytes: Option<f64>) -> Traffic {
        let (profile, counters) = (self.profile, self.counters);
        let bytes = |sectors: u64| self.per_block(sectors as f64) * SECTOR_BYTES as f64;
        let read = bytes(counters.global_load.sectors) + bytes(counters.async_copy.sectors);
        let written = bytes(counters.global_store.sectors);
        let atomic = bytes(counters.global_atomic.sectors);

        let read_all = read * self.blocks;
        let from_dram = match distinct_bytes {
            Some(distinct) if distinct < read_all => {
                let evicted = (1.0 - profile.l2_bytes.value as f64 / distinct).max(0.0);
                distinct + (read_all - distinct) * evicted
            }
            _ => read_all,
        };
        let missed = if read_all > 0.0 { from_dram / read_all } else { 1.0 };
        let latency_ns =
            missed * profile.dram_latency.value + (1.0 - missed) * profile.l2_latency.value;

        // An atomic is a read and a write inside the L2 cache.
        let through_l2 = read + written + 2.0 * atomic;
        let port = profile.l2_bytes_per_cycle.value * self.cycles_per_us;
        Traffic {
            dram_us: (from_dram + written * self.blocks) / profile.achievable_bandwidth() * 1e6,
            l2_us: through_l2 * self.blocks / profile.l2_bandwidth.value * 1e6,
            multiprocessor_us: through_l2 * self.busiest_blocks / port,
            latency_us: latency_ns * 1e-3,
        }
    }

    /// Little's law, block by block: a warp moves what it has in flight once per latency.
    fn chain(&self, traffic: &Traffic) -> Chain {
        let counters = self.counters;
        let (load, copy) = (&counters.global_load, &counters.async_copy);
        // Without a mean from the counters, one request is in flight.
        let in_flight = |sum: u64, weight: u64, bytes: u64, requests: u64| {
            if sum > 0 && weight > 0 { ratio(sum, weight) } else { ratio(bytes, requests) }
        };
        let latencies = |bytes: u64, warps: f64, in_flight: f64| {
            if bytes == 0 || in_flight <= 0.0 {
                return 0.0;
            }
            (self.per_block(bytes as f64) / warps / in_flight).max(1.0)
        };
        let copying = match counters.copying_warps {
            0 => self.warps_per_block,
            warps => self.per_block(warps as f64).min(self.warps_per_block),
        };
        let loads = latencies(
            load.bytes,
            self.warps_per_block,
            in_flight(counters.load_bytes_in_flight, load.bytes, load.bytes, load.requests),
        );
        let copies = latencies(
            copy.bytes,
            copying,
            in_flight(
                counters.async_bytes_in_flight,
                counters.async_waits,
                copy.bytes,
                copy.requests,
            ),
        );

        let waves = self.busy_waves.ceil();
        let start = self.waves.ceil() * self.profile.block_start.value * 1e-3;
        let load_us = waves * loads * traffic.latency_us;
        let copy_us = waves * copies * traffic.latency_us;
        let instruction_us = waves * self.dependent_cycles() / self.cycles_per_us;
        Chain {
            // Copies run beside the warp's instructions, plain loads are waited for.
            lifetime_us: start + load_us + copy_us.max(instruction_us),
            terms: [
                ("block start", start),
                ("memory latency", load_us + copy_us),
                ("instruction latency", instruction_us),
            ],
        }
    }

    /// Cycles that one warp takes for its instructions with the multiprocessor to itself.
    fn dependent_cycles(&self) -> f64 {
        let mix = &self.counters.mix;
        let shared =
            sum(&[self.counters.shared_load.requests, self.counters.shared_store.requests]);
        let arithmetic =
            [mix.float32, mix.float64, mix.half, mix.integer, mix.convert, mix.control];
        let arithmetic = sum(&arithmetic)
            + mix.moves as f64 * ISSUED_PER_MOVE
            + (mix.memory as f64 - shared).max(0.0);
        let cycles = ARITHMETIC_CYCLES * arithmetic
            + SPECIAL_CYCLES * mix.special as f64
            + EXCHANGE_CYCLES * mix.exchange as f64
            + SHARED_CYCLES * shared
            + MATRIX_CYCLES * self.warp_products();
        let partitions = self.profile.partitions_per_multiprocessor.value as f64;
        let of_block = cycles / INDEPENDENT_INSTRUCTIONS
            + BARRIER_CYCLES * mix.synchronise as f64
            + self.counters.warpgroup.flop as f64 / (self.flop_per_cycle() / partitions);
        self.per_block(of_block) / self.warps_per_block * self.longest_over_mean()
    }

    /// Instructions of a block's longest warp over those of its mean one: producers wait most of the
    /// time, and it is the others that a block takes its time for.
    fn longest_over_mean(&self) -> f64 {
        let Counters { blocks, warps, warp_instructions, longest_warp_instructions, .. } =
            *self.counters;
        let mean = ratio(warp_instructions, warps);
        let longest = ratio(longest_warp_instructions, blocks);
        if mean > 0.0 { (longest / mean).max(1.0) } else { 1.0 }
    }

    /// Matrix instructions that a warp makes alone: `mma.sync`.
    fn warp_products(&self) -> f64 {
        self.counters.mix.matrix.saturating_sub(self.counters.warpgroup.instructions) as f64
    }

    /// FLOP that a multiprocessor's tensor cores make in a cycle at their peak, which `wgmma` reaches.
    fn flop_per_cycle(&self) -> f64 {
        let profile = self.profile;
        let all = profile.multiprocessors.value as f64 * self.cycles_per_us * 1e6;
        profile.tensor_f16_flops.value / all
    }

    /// Times of the busiest multiprocessor's pipelines.
    fn compute(&self) -> Vec<(&'static str, f64)> {
        let (profile, mix) = (self.profile, &self.counters.mix);
        let partitions = profile.partitions_per_multiprocessor.value as f64;
        let us =
            |cycles_per_block: f64| cycles_per_block * self.busiest_blocks / self.cycles_per_us;
        // Pipelines that each partition has a share of: idle partitions do not help.
        let spread = partitions / self.busy_partitions;
        let lanes = |count: f64, lanes: f64| {
            us(self.per_block(count) * f64::from(WARP_THREADS) / lanes) * spread
        };
        let issue = self.per_block(issued(mix));
        let multiply_add = mix.integer as f64 * INTEGER_ON_FLOAT_PIPE;

        let (load, store) = (&self.counters.shared_load, &self.counters.shared_store);
        let copied = self.per_block(self.counters.async_copy.bytes as f64);
        let wavefronts = self.per_block(load.wavefronts as f64)
            + self.per_block(store.wavefronts as f64)
            + (copied + self.per_block(self.counters.warpgroup.shared_bytes as f64))
                / profile.shared_bytes_per_cycle.value
            + self.per_block(mix.exchange as f64) * f64::from(WARP_THREADS)
                / profile.exchange_lanes.value;

        let peak = self.flop_per_cycle();
        let matrix = self.warp_products() * MATRIX_FLOP
            / (peak * profile.warp_matrix_fraction.value)
            + self.counters.warpgroup.flop as f64 / peak;
        vec![
            ("instruction issue", us(issue / partitions) * spread),
            ("float32 pipe", lanes(mix.float32 as f64 + multiply_add, profile.float32_lanes.value)),
            ("float64 pipe", lanes(mix.float64 as f64, profile.float64_lanes.value)),
            ("half pipe", lanes(mix.half as f64, profile.half2_lanes.value)),
            ("integer pipe", lanes(mix.integer as f64 - multiply_add, profile.integer_lanes.value)),
            ("convert pipe", lanes(mix.convert as f64, profile.convert_lanes.value)),
            ("special functions", lanes(mix.special as f64, profile.special_lanes.value)),
            ("shared memory and shuffles", us(wavefronts)),
            ("tensor cores", us(self.per_block(matrix)) * spread),
        ]
    }
}

/// Sum of counts as a real number, which cannot overflow.
fn sum(counts: &[u64]) -> f64 {
    counts.iter().map(|count| *count as f64).sum()
}

/// SASS instructions issued for the PTX instructions.
fn issued(mix: &InstructionMix) -> f64 {
    let arithmetic = [mix.float32, mix.float64, mix.half, mix.integer, mix.convert, mix.special];
    let other = [mix.control, mix.memory, mix.exchange, mix.synchronise, mix.matrix];
    sum(&arithmetic) + sum(&other) + mix.moves as f64 * ISSUED_PER_MOVE
}
