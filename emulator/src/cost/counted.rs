//! The counts that each term of an estimate is made of, to be shown beside it.

use crate::counters::Counters;

/// What was counted for the term of that name, with what it is; nothing for terms that rest on no
/// count, and for names that are none.
pub fn counted(term: &str, counters: &Counters) -> Vec<(u64, &'static str)> {
    let mix = &counters.mix;
    let instructions = |count| vec![(count, "warp instructions")];
    match term {
        "dram bandwidth" | "l2 bandwidth" | "l2 to multiprocessor" => {
            vec![(counters.bytes_moved(), "bytes in sectors")]
        }
        "memory latency" => {
            let bytes = counters.global_load.bytes + counters.async_copy.bytes;
            let in_flight = counters.async_bytes_in_flight / counters.async_waits.max(1);
            vec![(bytes, "bytes asked for"), (in_flight, "bytes in flight at a wait")]
        }
        "instruction issue" | "instruction latency" => instructions(counters.warp_instructions),
        "float32 pipe" => instructions(mix.float32),
        "float64 pipe" => instructions(mix.float64),
        "half pipe" => instructions(mix.half),
        "integer pipe" => instructions(mix.integer),
        "convert pipe" => instructions(mix.convert),
        "special functions" => instructions(mix.special),
        "tensor cores" if counters.warpgroup.flop > 0 => vec![
            (mix.matrix.saturating_sub(counters.warpgroup.instructions), "warp instructions"),
            (counters.warpgroup.flop, "operations of warpgroups"),
        ],
        "tensor cores" => instructions(mix.matrix),
        "shared memory and shuffles" => {
            let (load, store) = (&counters.shared_load, &counters.shared_store);
            vec![
                (load.wavefronts + store.wavefronts, "wavefronts"),
                (load.ideal_wavefronts + store.ideal_wavefronts, "without bank conflicts"),
                (mix.exchange, "shuffles"),
            ]
        }
        _ => Vec::new(),
    }
}
