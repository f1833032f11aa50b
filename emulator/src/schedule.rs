//! Schedules: which block, warp and group of lanes runs next, for how long, and when asynchronous
//! copies land. Seed 0 is the plain one: blocks one after another, warps in turns, each until it
//! waits. Every other seed draws one of several policies and plays it out, the same each time:
//!
//! - *slices*: warps in random order, each for a random number of instructions;
//! - *steps*: the same with very few instructions, so that a switch falls between almost any two
//!   memory or synchronisation operations;
//! - *priorities*: the first ready warp of a random order runs until it waits, and the order
//!   changes now and then (after Burckhardt et al., "A randomized scheduler with probabilistic
//!   guarantees of finding bugs", 2010);
//! - *straggler*: one warp runs only when no other can.
//!
//! Up to eight blocks run at the same time, in turns. Races are found by what orders accesses and
//! not by luck; schedules matter for what a race detector cannot see: atomics that are not
//! associative, last arrivers, deadlocks.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Instructions a warp may run before the next one has a turn, in the plain schedule.
const PLAIN_SLICE: u64 = 50_000;
/// Instructions a block may run before another one is started beside it: it may wait for that.
const PLAIN_TURN: u64 = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Plain,
    Slices,
    Steps,
    Priorities,
    Straggler(u32),
}

pub(crate) struct Schedule {
    policy: Policy,
    rng: ChaCha8Rng,
    /// Blocks that run at the same time from the start.
    pub residents: usize,
    /// Asynchronous copies land when they are issued, not when they are waited for.
    pub land_early: bool,
}

impl Schedule {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        if seed == 0 {
            return Self { policy: Policy::Plain, rng, residents: 1, land_early: false };
        }
        let policy = match rng.random_range(0..4) {
            0 => Policy::Slices,
            1 => Policy::Steps,
            2 => Policy::Priorities,
            _ => Policy::Straggler(rng.random()),
        };
        let residents = [1, 2, 3, 8][rng.random_range(0..4)];
        let land_early = rng.random();
        Self { policy, rng, residents, land_early }
    }

    /// Puts warps in the order of the next round.
    pub(crate) fn arrange(&mut self, warps: &mut [usize]) {
        match self.policy {
            Policy::Plain => {}
            Policy::Slices | Policy::Steps => warps.shuffle(&mut self.rng),
            Policy::Priorities => {
                if self.rng.random_range(0..8) == 0 {
                    warps.shuffle(&mut self.rng);
                }
            }
            Policy::Straggler(which) => {
                warps.shuffle(&mut self.rng);
                let last = which as usize % warps.len().max(1);
                warps.sort_by_key(|&warp| warp == last);
            }
        }
    }

    /// Whether a round ends with the first warp that could run.
    pub(crate) fn first_only(&self) -> bool {
        matches!(self.policy, Policy::Priorities | Policy::Straggler(_))
    }

    /// Instructions the next warp may run.
    pub(crate) fn slice(&mut self) -> u64 {
        match self.policy {
            Policy::Plain => PLAIN_SLICE,
            Policy::Slices | Policy::Priorities => self.rng.random_range(1..=1024),
            Policy::Steps => self.rng.random_range(1..=8),
            Policy::Straggler(_) => self.rng.random_range(1..=256),
        }
    }

    /// Whether a warp whose lanes are apart goes on with those that have waited longest.
    pub(crate) fn rotate(&mut self) -> bool {
        self.policy != Policy::Plain && self.rng.random_range(0..4) == 0
    }

    /// Which of some blocks runs next, where it is the turn of `next`.
    pub(crate) fn block(&mut self, count: usize, next: usize) -> usize {
        match self.policy {
            Policy::Plain => next % count.max(1),
            _ => self.rng.random_range(0..count.max(1)),
        }
    }

    /// Instructions it may run.
    pub(crate) fn turn(&mut self) -> u64 {
        match self.policy {
            Policy::Plain => PLAIN_TURN,
            Policy::Steps => self.rng.random_range(1..=256),
            _ => self.rng.random_range(1..=8192),
        }
    }
}
