//! What would move a predicted time: the model asked again with one thing about the launch changed.

use super::{CostError, Estimate, Shape, estimate_launch};
use crate::counters::{Counters, GlobalTraffic, SharedTraffic};
use crate::occupancy::occupancy;
use crate::profile::Profile;
use serde::{Deserialize, Serialize};

/// One change, and the time with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lever {
    /// The change, in words.
    pub what: String,
    /// Predicted time of the launch with it, in microseconds.
    pub time_us: f64,
}

/// How much of something the levers take away.
const LESS: f64 = 0.9;

/// The changes that would make a launch faster, the most effective first. Each is made alone and says
/// nothing of what it would cost elsewhere: fewer registers, say, may mean more instructions.
///
/// # Errors
/// As [`estimate`](super::estimate).
pub fn levers(
    profile: &Profile,
    shape: &Shape,
    counters: &Counters,
    distinct_bytes: u64,
) -> Result<Vec<Lever>, CostError> {
    let predicted = |shape: &Shape, counters: &Counters, distinct: f64| {
        estimate_launch(profile, shape, counters, Some(distinct))
    };
    let distinct = distinct_bytes as f64;
    let now = predicted(shape, counters, distinct)?;
    let mut levers = Vec::new();
    let mut add = |what: String, changed: Result<Estimate, CostError>| {
        // A change that no GPU allows is none.
        let time_us = changed.map_or(f64::INFINITY, |estimate| estimate.time_us);
        if time_us < now.time_us * (1.0 - 1e-4) {
            levers.push(Lever { what, time_us });
        }
    };

    let with = |change: fn(&mut Counters)| {
        let mut counters = counters.clone();
        change(&mut counters);
        counters
    };
    let fewer_bytes = with(|c| {
        for traffic in [&mut c.global_load, &mut c.async_copy, &mut c.global_store] {
            let GlobalTraffic { requests, sectors, bytes } = traffic;
            [requests, sectors, bytes].into_iter().for_each(scale);
        }
        [&mut c.load_bytes_in_flight, &mut c.async_bytes_in_flight, &mut c.async_waits]
            .into_iter()
            .for_each(scale);
    });
    add(
        "10 % fewer bytes of global memory".into(),
        predicted(shape, &fewer_bytes, LESS * distinct),
    );
    let fewer_instructions = with(|c| {
        let products = &mut c.warpgroup;
        let of_warpgroups =
            [&mut products.instructions, &mut products.flop, &mut products.shared_bytes];
        c.mix.counts().into_iter().chain(of_warpgroups).for_each(scale);
    });
    add(
        "10 % fewer instructions of every kind".into(),
        predicted(shape, &fewer_instructions, distinct),
    );
    let fewer_wavefronts = with(|c| {
        for SharedTraffic { wavefronts, .. } in [&mut c.shared_load, &mut c.shared_store] {
            scale(wavefronts);
        }
    });
    add(
        "10 % fewer passes through shared memory".into(),
        predicted(shape, &fewer_wavefronts, distinct),
    );
    let no_conflicts = with(|c| {
        for traffic in [&mut c.shared_load, &mut c.shared_store] {
            traffic.wavefronts = traffic.wavefronts.min(traffic.ideal_wavefronts);
        }
    });
    add("no bank conflicts".into(), predicted(shape, &no_conflicts, distinct));
    let deeper = with(|c| {
        c.load_bytes_in_flight = c.load_bytes_in_flight.saturating_mul(2);
        c.async_bytes_in_flight = c.async_bytes_in_flight.saturating_mul(2);
    });
    add("twice the bytes in flight per warp".into(), predicted(shape, &deeper, distinct));

    let resident = |shape: &Shape| {
        let Shape { threads_per_block, registers, shared_bytes_per_block, .. } = *shape;
        let occupancy = occupancy(profile, threads_per_block, registers, shared_bytes_per_block);
        occupancy.map_or(0, |occupancy| occupancy.blocks_per_multiprocessor)
    };
    let blocks = resident(shape);
    let one_more = |change: &dyn Fn(u32) -> Shape, most: u32| {
        let changed = (1..most).rev().map(change).find(|shape| resident(shape) > blocks)?;
        // Never more blocks than there are.
        (u64::from(blocks) * profile.multiprocessors.value < shape.blocks).then_some(changed)
    };
    if let Some(changed) = one_more(&|registers| Shape { registers, ..*shape }, shape.registers) {
        let Shape { registers, .. } = changed;
        let what = format!(
            "{} blocks per multiprocessor, by {registers} registers instead of {}",
            resident(&changed),
            shape.registers
        );
        add(what, predicted(&changed, counters, distinct));
    }
    let shared = |shared_bytes_per_block| Shape { shared_bytes_per_block, ..*shape };
    if let Some(changed) = one_more(&shared, shape.shared_bytes_per_block) {
        let what = format!(
            "{} blocks per multiprocessor, by {} bytes of shared memory instead of {}",
            resident(&changed),
            changed.shared_bytes_per_block,
            shape.shared_bytes_per_block
        );
        add(what, predicted(&changed, counters, distinct));
    }
    levers.sort_by(|a, b| a.time_us.total_cmp(&b.time_us));
    Ok(levers)
}

fn scale(count: &mut u64) {
    *count = (*count as f64 * LESS).round() as u64;
}
