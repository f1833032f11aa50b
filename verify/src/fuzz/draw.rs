//! The trial of each case: a function of the seed and the case's number alone, so that a run finds
//! the same whoever runs which case.

use crate::case::Trial;
use crate::generate::{Edges, generate_recipe};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_kernels::KernelSpec;
use std::ops::Range;

/// Cases in a row of one kernel under one schedule: loading code costs about as much as running a
/// case.
pub const CASES_PER_TURN: u64 = 8;

/// The cases of a turn.
pub fn cases_of(turn: u64, most: u64) -> Range<u64> {
    let first = turn.saturating_mul(CASES_PER_TURN);
    first..first.saturating_add(CASES_PER_TURN).min(most)
}

/// The kernel of a case, by its place among `kernels` of them.
pub fn kernel_of(case: u64, kernels: usize) -> usize {
    (case / CASES_PER_TURN % kernels as u64) as usize
}

/// The trial of case `number` for a kernel. `emulated` says whether the device has schedules and
/// sizes to draw.
pub fn draw(seed: u64, emulated: bool, spec: &KernelSpec, number: u64) -> Trial {
    // The schedule, the size of the device and the smallest share are those of the turn, the problem
    // is the case's own.
    let mut turn = stream(seed, 2 * (number / CASES_PER_TURN));
    // A few multiprocessors cut short rows into shares as many do long ones; now and then all of
    // them, of which most have nothing to do.
    let count =
        *[Some(1), Some(2), Some(3), Some(5), Some(16), None].choose(&mut turn).expect("six");
    let schedule = if turn.random_ratio(1, 8) { 0 } else { turn.random() };
    let smallest_share = SMALLEST_SHARES.choose(&mut turn).copied().flatten();
    let problem_seed = stream(seed, 2 * number + 1).random();
    let mut trial = Trial {
        schedule: if emulated { schedule } else { 0 },
        multiprocessors: if emulated { count } else { None },
        smallest_share,
        problem: generate_recipe(spec.shape, &Edges::of(spec), problem_seed),
    };
    if smallest_share.is_some() {
        // Again, with the edges of the share that it will be.
        let edges = Edges::of(&trial.spec(spec));
        trial.problem = generate_recipe(spec.shape, &edges, problem_seed);
    }
    trial
}

/// Mostly the configuration's own; else from a block for each token to one block for most rows.
const SMALLEST_SHARES: [Option<u32>; 10] =
    [None, None, None, None, None, Some(1), Some(7), Some(96), Some(512), Some(100_000)];

fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
