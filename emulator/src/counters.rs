//! What a launch did, counted: instructions by class, memory requests, sectors, wavefronts.
//!
//! The counts are those of the PTX, not of the SASS that `ptxas` makes of it. Mathematics,
//! shuffles, asynchronous copies and the bytes and sectors of loads agree with the hardware's;
//! integer, move and store-request counts do not, and the cost model weights them accordingly.

use serde::{Deserialize, Serialize};

/// Size of the unit in which the memory system moves data, in bytes.
pub const SECTOR_BYTES: u64 = 32;

/// Executed warp instructions by the pipeline that would issue them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstructionMix {
    /// f32 add, multiply, fused multiply-add, min, max, compare.
    pub float32: u64,
    /// f64 arithmetic.
    pub float64: u64,
    /// f16, bf16, f16x2 and bf16x2 arithmetic.
    pub half: u64,
    /// Integer and logic arithmetic, integer compares, selects.
    pub integer: u64,
    /// Conversions between types.
    pub convert: u64,
    /// Special functions: ex2, lg2, rcp, rsqrt, sqrt, sin, cos, tanh, div.
    pub special: u64,
    /// Register moves, address conversions and reads of parameters and special registers.
    pub moves: u64,
    /// Branches, returns, calls.
    pub control: u64,
    /// Loads and stores of every space, and asynchronous copies.
    pub memory: u64,
    /// Shuffles, votes, match and warp-level reductions.
    pub exchange: u64,
    /// Barriers, fences and waits.
    pub synchronise: u64,
    /// `mma` and `wgmma`.
    pub matrix: u64,
}

/// Requests to global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalTraffic {
    /// Warp instructions with at least one active lane.
    pub requests: u64,
    /// 32-byte sectors touched, counted once per request.
    pub sectors: u64,
    /// Bytes that the lanes asked for.
    pub bytes: u64,
}

/// Requests to shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedTraffic {
    /// Warp instructions with at least one active lane.
    pub requests: u64,
    /// Passes through the 32 four-byte banks that the addresses need.
    pub wavefronts: u64,
    /// Passes that the same number of distinct bytes would need without bank conflicts.
    pub ideal_wavefronts: u64,
}

/// Products of warpgroups (`wgmma`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarpgroupProducts {
    /// Warp instructions; a product has four.
    pub instructions: u64,
    /// Floating-point or integer operations; a multiply-add is two.
    pub flop: u64,
    /// Bytes of operands that they read from shared memory.
    pub shared_bytes: u64,
}

/// Traffic of one allocation of global memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BufferTraffic {
    /// The allocation's name, as given when it was made.
    pub name: String,
    /// Bytes that lanes read by plain loads and asynchronous copies.
    pub read_bytes: u64,
    /// Sectors read, counted once per request.
    pub read_sectors: u64,
    /// Bytes that lanes wrote.
    pub written_bytes: u64,
    /// Sectors written, counted once per request.
    pub written_sectors: u64,
}

/// Everything counted in one launch. All zero when counting is off, but for `blocks`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Thread blocks that were executed; fewer than the grid where the launch was sampled.
    pub blocks: u64,
    /// Warps that were executed.
    pub warps: u64,
    /// Warp instructions issued.
    pub warp_instructions: u64,
    /// Sum, over the blocks, of the instructions of the warp that has most.
    #[serde(default)]
    pub longest_warp_instructions: u64,
    /// Warp instructions, weighted by the lanes that were active and not predicated off.
    pub thread_instructions: u64,
    /// Warp instructions by pipeline.
    pub mix: InstructionMix,
    /// Plain loads from global memory.
    pub global_load: GlobalTraffic,
    /// Plain stores to global memory.
    pub global_store: GlobalTraffic,
    /// Asynchronous copies from global to shared memory (zero-filled bytes are not counted).
    pub async_copy: GlobalTraffic,
    /// Atomics and reductions on global memory.
    pub global_atomic: GlobalTraffic,
    /// Loads from shared memory, `ldmatrix` included.
    pub shared_load: SharedTraffic,
    /// Stores to shared memory, `stmatrix` included.
    pub shared_store: SharedTraffic,
    /// Products of warpgroups, which `mix.matrix` counts too.
    #[serde(default)]
    pub warpgroup: WarpgroupProducts,
    /// Branches at which the active lanes of a warp went different ways.
    pub divergent_branches: u64,
    /// Waits for asynchronous copies.
    pub async_waits: u64,
    /// Warps that started asynchronous copies, bulk copies aside.
    #[serde(default)]
    pub copying_warps: u64,
    /// Sum, over those waits, of the bytes the warp had in flight when it began to wait.
    pub async_bytes_in_flight: u64,
    /// Sum, over plain global loads, of bytes loaded times bytes of the batch the load belongs to:
    /// loads that a warp issues before it first uses one of their results. Divided by
    /// `global_load.bytes` it is the mean number of bytes that a warp has in flight.
    pub load_bytes_in_flight: u64,
    /// Traffic by allocation, in the order in which the allocations were made.
    pub buffers: Vec<BufferTraffic>,
}

impl Counters {
    /// Bytes of all sectors that plain loads, asynchronous copies and plain stores move.
    pub fn bytes_moved(&self) -> u64 {
        let sectors = [self.global_load, self.async_copy, self.global_store].map(|t| t.sectors);
        sectors.into_iter().fold(0_u64, u64::saturating_add).saturating_mul(SECTOR_BYTES)
    }

    /// Adds what `other` has, `times` times; sums that do not fit stay at the largest number.
    pub fn add(&mut self, other: &Self, times: u64) {
        let Self {
            blocks,
            warps,
            warp_instructions,
            longest_warp_instructions,
            thread_instructions,
            mix,
            global_load,
            global_store,
            async_copy,
            global_atomic,
            shared_load,
            shared_store,
            warpgroup,
            divergent_branches,
            async_waits,
            copying_warps,
            async_bytes_in_flight,
            load_bytes_in_flight,
            buffers,
        } = self;
        let sum = |to: &mut u64, from: u64| {
            *to = to.saturating_add(from.saturating_mul(times));
        };
        sum(blocks, other.blocks);
        sum(warps, other.warps);
        sum(warp_instructions, other.warp_instructions);
        sum(longest_warp_instructions, other.longest_warp_instructions);
        sum(thread_instructions, other.thread_instructions);
        sum(&mut warpgroup.instructions, other.warpgroup.instructions);
        sum(&mut warpgroup.flop, other.warpgroup.flop);
        sum(&mut warpgroup.shared_bytes, other.warpgroup.shared_bytes);
        sum(divergent_branches, other.divergent_branches);
        sum(async_waits, other.async_waits);
        sum(copying_warps, other.copying_warps);
        sum(async_bytes_in_flight, other.async_bytes_in_flight);
        sum(load_bytes_in_flight, other.load_bytes_in_flight);
        mix.counts()
            .into_iter()
            .zip(other.mix.clone().counts())
            .for_each(|(to, from)| sum(to, *from));
        for (to, from) in [
            (global_load, &other.global_load),
            (global_store, &other.global_store),
            (async_copy, &other.async_copy),
            (global_atomic, &other.global_atomic),
        ] {
            sum(&mut to.requests, from.requests);
            sum(&mut to.sectors, from.sectors);
            sum(&mut to.bytes, from.bytes);
        }
        for (to, from) in [(shared_load, &other.shared_load), (shared_store, &other.shared_store)] {
            sum(&mut to.requests, from.requests);
            sum(&mut to.wavefronts, from.wavefronts);
            sum(&mut to.ideal_wavefronts, from.ideal_wavefronts);
        }
        for from in &other.buffers {
            let at = buffers.iter().position(|to| to.name == from.name).unwrap_or_else(|| {
                buffers.push(BufferTraffic { name: from.name.clone(), ..BufferTraffic::default() });
                buffers.len() - 1
            });
            let to = &mut buffers[at];
            sum(&mut to.read_bytes, from.read_bytes);
            sum(&mut to.read_sectors, from.read_sectors);
            sum(&mut to.written_bytes, from.written_bytes);
            sum(&mut to.written_sectors, from.written_sectors);
        }
    }
}

impl InstructionMix {
    /// All counts, in the order of the fields.
    pub(crate) fn counts(&mut self) -> [&mut u64; 12] {
        let Self {
            float32,
            float64,
            half,
            integer,
            convert,
            special,
            moves,
            control,
            memory,
            exchange,
            synchronise,
            matrix,
        } = self;
        [
            float32,
            float64,
            half,
            integer,
            convert,
            special,
            moves,
            control,
            memory,
            exchange,
            synchronise,
            matrix,
        ]
    }
}
