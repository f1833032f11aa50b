//! `mma.sync`: products of 16-bit matrices spread over the registers of a warp.
//!
//! Products are exact in f32 and added in f32 in the order of k. Hardware aligns and truncates
//! groups of products instead, so low bits of the accumulators differ from a GPU's.

use crate::math::{b, brain_to_single, f, half_to_single, single_to_half};
use crate::registers::Registers;

/// `list` holds the slots of D, A, B, C in this order; `flags` bit 0: k is 16 (else 8), bit 1:
/// bf16, bit 2: f16 accumulators.
#[inline(always)]
pub(crate) fn multiply(registers: &mut Registers, list: &[u16], flags: u8) {
    match flags & 3 {
        0 => product::<8, false>(registers, list, flags & 4 != 0),
        1 => product::<16, false>(registers, list, flags & 4 != 0),
        2 => product::<8, true>(registers, list, flags & 4 != 0),
        _ => product::<16, true>(registers, list, flags & 4 != 0),
    }
}

/// The lower and the upper halves of 32 registers, as numbers.
#[inline(always)]
fn halves<const BRAIN: bool>(words: &[u32; 32]) -> ([f32; 32], [f32; 32]) {
    let (mut low, mut high) = ([0f32; 32], [0f32; 32]);
    for lane in 0..32 {
        let word = words[lane];
        if BRAIN {
            low[lane] = brain_to_single(word & 0xffff);
            high[lane] = brain_to_single(word >> 16);
        } else {
            low[lane] = half_to_single(word & 0xffff);
            high[lane] = half_to_single(word >> 16);
        }
    }
    (low, high)
}

#[inline(always)]
fn product<const K: usize, const BRAIN: bool>(registers: &mut Registers, list: &[u16], half: bool) {
    let accumulators = if half { 2 } else { 4 };
    let (d, rest) = list.split_at(accumulators);
    let (a_list, rest) = rest.split_at(K / 4);
    let (b_list, c_list) = rest.split_at(K / 8);
    let mut left = [[0f32; K]; 16];
    let mut right = [[0f32; 8]; K];
    let mut sums = [[0f32; 8]; 16];
    for (index, &slot) in a_list.iter().enumerate() {
        let (low, high) = halves::<BRAIN>(registers.read::<u32>(slot));
        for lane in 0..32 {
            let (row, column) = (lane / 4 + 8 * (index & 1), 2 * (lane % 4) + 8 * (index / 2));
            left[row][column] = low[lane];
            left[row][column + 1] = high[lane];
        }
    }
    for (index, &slot) in b_list.iter().enumerate() {
        let (low, high) = halves::<BRAIN>(registers.read::<u32>(slot));
        for lane in 0..32 {
            let (row, column) = (2 * (lane % 4) + 8 * index, lane / 4);
            right[row][column] = low[lane];
            right[row + 1][column] = high[lane];
        }
    }
    for (index, &slot) in c_list.iter().enumerate() {
        let words = registers.read::<u32>(slot);
        for lane in 0..32 {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            if half {
                sums[row + 8 * index][column] = half_to_single(words[lane] & 0xffff);
                sums[row + 8 * index][column + 1] = half_to_single(words[lane] >> 16);
            } else {
                sums[row + 8 * (index / 2)][column + (index & 1)] = f(words[lane]);
            }
        }
    }
    for row in 0..16 {
        let mut sum = sums[row];
        for step in 0..K {
            for column in 0..8 {
                sum[column] += left[row][step] * right[step][column];
            }
        }
        sums[row] = sum;
    }
    for (index, &slot) in d.iter().enumerate() {
        let words = registers.write::<u32>(slot);
        for lane in 0..32 {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            words[lane] = if half {
                let row = row + 8 * index;
                single_to_half(sums[row][column]) | single_to_half(sums[row][column + 1]) << 16
            } else {
                b(sums[row + 8 * (index / 2)][column + (index & 1)])
            };
        }
    }
}
