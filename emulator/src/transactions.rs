//! What a warp's access to memory becomes: how the addresses of its lanes lie, the sectors of global
//! memory that they touch, and the passes through the banks of shared memory. Whole warps are looked
//! at at once where that decides; the rest is counted lane by lane.

use crate::access::lanes;
use crate::registers::FULL;

/// How the offsets of the active lanes lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// All 32 lanes, one after the other.
    Contiguous,
    /// One address for all.
    Uniform,
    Scattered,
}

/// How the lanes of a mask, of `width` bytes each, lie; inactive lanes repeat an active one.
#[inline(always)]
pub(crate) fn pattern(offsets: &[u64; 32], mask: u32, width: u64) -> Pattern {
    let base = offsets[0];
    let (mut contiguous, mut uniform) = (0u64, 0u64);
    for lane in 0..32 {
        let delta = offsets[lane].wrapping_sub(base);
        contiguous |= delta ^ (lane as u64 * width);
        uniform |= delta;
    }
    if uniform == 0 {
        Pattern::Uniform
    } else if contiguous == 0 && mask == FULL {
        Pattern::Contiguous
    } else {
        Pattern::Scattered
    }
}

/// Distinct 32-byte sectors of a request.
#[inline(always)]
pub(crate) fn sectors(offsets: &[u64; 32], mask: u32, width: u64, pattern: Pattern) -> u64 {
    match pattern {
        Pattern::Contiguous => ((offsets[31] + width - 1) >> 5) - (offsets[0] >> 5) + 1,
        Pattern::Uniform => ((offsets[0] + width - 1) >> 5) - (offsets[0] >> 5) + 1,
        Pattern::Scattered => scattered_sectors(offsets, mask, width),
    }
}

#[inline(always)]
fn scattered_sectors(offsets: &[u64; 32], mask: u32, width: u64) -> u64 {
    // Mostly no access crosses a sector and their order is that of the lanes.
    if mask == FULL && width.is_power_of_two() && width <= 32 {
        let (mut low, mut back, mut count) = (0u64, false, 1u64);
        for lane in 0..31 {
            let (here, next) = (offsets[lane], offsets[lane + 1]);
            low |= here;
            back |= next >> 5 < here >> 5;
            count += u64::from(next >> 5 != here >> 5);
        }
        if (low | offsets[31]) & (width - 1) == 0 && !back {
            return count;
        }
    }
    sorted_sectors(offsets, mask, width)
}

fn sorted_sectors(offsets: &[u64; 32], mask: u32, width: u64) -> u64 {
    let mut list = [0u64; 64];
    let mut length = 0;
    let mut ordered = true;
    for lane in lanes(mask) {
        let (from, to) = (offsets[lane] >> 5, (offsets[lane] + width - 1) >> 5);
        for sector in from..=to.min(from + 1) {
            let last = if length == 0 { None } else { Some(list[length - 1]) };
            if last == Some(sector) {
                continue;
            }
            ordered &= last.is_none_or(|last| last < sector);
            list[length & 63] = sector;
            length += 1;
        }
    }
    let list = &mut list[..length.min(64)];
    if !ordered {
        list.sort_unstable();
        return 1 + list.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64;
    }
    list.len() as u64
}

/// Passes through the 32 banks, and passes that would do without conflicts. Accesses of 8 bytes
/// go by half-warps, of 16 by quarter-warps.
#[inline(always)]
pub(crate) fn wavefronts(
    offsets: &[u64; 32],
    mask: u32,
    width: u64,
    pattern: Pattern,
) -> (u64, u64) {
    let phases = (width / 4).clamp(1, 4);
    if pattern == Pattern::Contiguous && offsets[0] & (width.max(4) - 1) == 0 {
        return (phases, phases);
    }
    if pattern == Pattern::Uniform && width <= 4 {
        return (1, 1);
    }
    scattered_wavefronts(offsets, mask, width, phases)
}

#[inline(always)]
fn scattered_wavefronts(offsets: &[u64; 32], mask: u32, width: u64, phases: u64) -> (u64, u64) {
    let per_phase = 32 / phases as u32;
    let mut total = (0, 0);
    for phase in 0..phases as u32 {
        let ones = if per_phase == 32 { FULL } else { (1 << per_phase) - 1 };
        let part = mask & ones << (phase * per_phase);
        if part != 0 {
            let (passes, ideal) = bank_passes(offsets, part, width);
            total.0 += passes;
            total.1 += ideal;
        }
    }
    total
}

/// One phase: the most distinct words that one bank holds, and the words over the banks.
#[inline(always)]
pub(crate) fn bank_passes(offsets: &[u64; 32], mask: u32, width: u64) -> (u64, u64) {
    // Most accesses touch every bank at most once, counting neighbours with one address as one;
    // that needs one mask.
    let words = width.div_ceil(4);
    let whole = width.max(4) - 1;
    let ones = (1u32 << words) - 1;
    let (mut seen, mut low, mut distinct) = (0u32, 0u64, 0u64);
    for lane in 0..32 {
        let on = mask >> lane & 1;
        let twin = lane > 0 && mask >> (lane - 1) & 1 != 0 && offsets[lane] == offsets[lane - 1];
        seen |= ones.rotate_left((offsets[lane] >> 2) as u32 & 31) & 0u32.wrapping_sub(on);
        low |= offsets[lane] & 0u64.wrapping_sub(u64::from(on));
        distinct += u64::from(on & u32::from(!twin));
    }
    if low & whole == 0 && u64::from(seen.count_ones()) == words * distinct {
        return (1, 1);
    }
    conflicting_passes(offsets, mask, width)
}

fn conflicting_passes(offsets: &[u64; 32], mask: u32, width: u64) -> (u64, u64) {
    // The first word of each bank stands in an array; further ones, which are conflicts, in a
    // list.
    let mut first = [u64::MAX; 32];
    let mut depth = [0u8; 32];
    let mut more = [(0usize, 0u64); 64];
    let mut extra = 0;
    let mut distinct = 0u64;
    let mut deepest = 0u8;
    for lane in lanes(mask) {
        let (from, to) = (offsets[lane] >> 2, (offsets[lane] + width - 1) >> 2);
        for word in from..=to {
            let bank = word as usize & 31;
            if first[bank] == word || (depth[bank] > 1 && more[..extra].contains(&(bank, word))) {
                continue;
            }
            if depth[bank] == 0 {
                first[bank] = word;
            } else if extra < more.len() {
                more[extra] = (bank, word);
                extra += 1;
            }
            depth[bank] += 1;
            distinct += 1;
            deepest = deepest.max(depth[bank]);
        }
    }
    (u64::from(deepest), distinct.div_ceil(32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Offsets as kernels have them: groups of lanes at one address, rows of neighbours, rows in any
    /// order, columns, and anything; some lanes off.
    fn accesses() -> impl Strategy<Value = ([u64; 32], u32, u64)> {
        let width = prop::sample::select(vec![1u64, 2, 4, 8, 16]);
        let mask = prop_oneof![Just(FULL), Just(0xffff_u32), 1..=FULL];
        let group = prop::sample::select(vec![1usize, 2, 4, 8, 16, 32]);
        let stride = prop::sample::select(vec![0u64, 1, 2, 4, 8, 32, 33, 128, 132, 144, 256]);
        (width, mask, group, stride, any::<bool>(), 0..64u64, any::<u64>(), 0..4u8).prop_map(
            |(width, mask, group, stride, repeat, base, random, kind)| {
                let offset = |lane: usize| {
                    let (row, column) = (lane / group, lane % group);
                    let column = if repeat { 0 } else { column as u64 * width };
                    let scattered = random.rotate_left(7 * lane as u32) % 4096;
                    match kind {
                        0 => scattered,
                        1 => (random.rotate_left(11 * row as u32) % 64) * 128 + column,
                        _ => row as u64 * stride.max(width) + column,
                    }
                };
                let mut offsets: [u64; 32] =
                    std::array::from_fn(|lane| (base + offset(lane)) / width * width);
                // As `settle` leaves them.
                let first = offsets[mask.trailing_zeros() as usize];
                for lane in (0..32).filter(|lane| mask >> lane & 1 == 0) {
                    offsets[lane] = first;
                }
                (offsets, mask, width)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn sectors_are_the_distinct_ones((offsets, mask, width) in accesses()) {
            let touched: BTreeSet<u64> = lanes(mask)
                .flat_map(|lane| offsets[lane] / 32..=(offsets[lane] + width - 1) / 32)
                .collect();
            let pattern = pattern(&offsets, mask, width);
            prop_assert_eq!(sectors(&offsets, mask, width, pattern), touched.len() as u64);
        }

        #[test]
        fn passes_are_the_words_of_the_fullest_bank((offsets, mask, width) in accesses()) {
            let mut expected = (0, 0);
            let phases = (width / 4).clamp(1, 4);
            for phase in 0..phases as usize {
                let lanes_of_phase = 32 / phases as usize;
                let mut banks: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
                for lane in lanes(mask).filter(|lane| lane / lanes_of_phase == phase) {
                    for word in offsets[lane] / 4..=(offsets[lane] + width - 1) / 4 {
                        banks.entry(word % 32).or_default().insert(word);
                    }
                }
                let words: usize = banks.values().map(BTreeSet::len).sum();
                expected.0 += banks.values().map(BTreeSet::len).max().unwrap_or(0) as u64;
                expected.1 += words.div_ceil(32) as u64;
            }
            let pattern = pattern(&offsets, mask, width);
            prop_assert_eq!(wavefronts(&offsets, mask, width, pattern), expected);
        }
    }
}
