//! What a prediction rests on, in sentences for people.

use super::Shape;
use crate::counters::Counters;
use crate::profile::Profile;

/// The sentences for a launch.
pub(super) fn of(
    profile: &Profile,
    shape: &Shape,
    counters: &Counters,
    distinct_bytes: Option<f64>,
) -> Vec<String> {
    vec![
        format!(
            "predicted for {} at its boost clock of {} MHz; nothing was run on a GPU",
            profile.marketing_name, profile.boost_clock.value
        ),
        format!(
            "the counters of {} of {} blocks stand for all of them",
            counters.blocks, shape.blocks
        ),
        match distinct_bytes {
            None => "every sector read comes from memory once per request: no reuse in the L1 or \
                     L2 cache, and a cold L2"
                .to_owned(),
            Some(bytes) => format!(
                "the launch reads {bytes} different bytes with a cold L2; what is read again hits \
                 it as far as they fit"
            ),
        },
        format!(
            "memory delivers at most {:.0} GB/s, {:.1} % of the data sheet ({})",
            profile.achievable_bandwidth() / 1e9,
            profile.achievable_bandwidth_fraction.value * 100.0,
            profile.achievable_bandwidth_fraction.source
        ),
        "PTX stands for SASS: a move issues as 0.3 instructions, everything else as 1; a third of \
         the integer operations run on the float32 pipe"
            .to_owned(),
        "a warp keeps 4 independent instructions under way and waits for the products of its \
         warpgroup; a matrix instruction of a warp is an m16n8k16"
            .to_owned(),
        format!(
            "{} blocks share all the work evenly; {} only start",
            shape.busy(),
            shape.blocks - shape.busy()
        ),
    ]
}
