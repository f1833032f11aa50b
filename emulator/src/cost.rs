//! The cost model: from counters of representative blocks and the launch's occupancy to a
//! predicted time on a named GPU. It ranks configurations; it does not measure.

use serde::{Deserialize, Serialize};

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
}
