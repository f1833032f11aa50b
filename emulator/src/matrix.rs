//! `mma.sync`: products of 16-bit matrices spread over the registers of a warp.
//!
//! Products are exact in f32 and added in f32 in the order of k. Hardware aligns and truncates
//! groups of products instead, so low bits of the accumulators differ from a GPU's.

use crate::math::{brain_to_single, f, half_to_single, single_to_half};
use crate::registers::Registers;

/// `list` holds the slots of D, A, B, C in this order; `flags` bit 0: k is 16 (else 8), bit 1:
/// bf16, bit 2: f16 accumulators.
#[inline(always)]
pub(crate) fn multiply(registers: &mut Registers, list: &[u16], flags: u8) {
    let k = if flags & 1 != 0 { 16 } else { 8 };
    let brain = flags & 2 != 0;
    let half = flags & 4 != 0;
    let accumulators = if half { 2 } else { 4 };
    let a_registers = k / 4;
    let (d, rest) = list.split_at(accumulators.min(list.len()));
    let (a_list, rest) = rest.split_at(a_registers.min(rest.len()));
    let (b_list, c_list) = rest.split_at((k / 8).min(rest.len()));
    // A as [k][row], so that each step of k is one row of B times 16 scalars.
    let mut a = [[0f32; 16]; 16];
    let mut b = [[0f32; 8]; 16];
    let mut c = [[0f32; 8]; 16];
    let halves = |word: u32| {
        if brain {
            (brain_to_single(word & 0xffff), brain_to_single(word >> 16))
        } else {
            (half_to_single(word & 0xffff), half_to_single(word >> 16))
        }
    };
    for (index, &slot) in a_list.iter().enumerate() {
        let words = registers.read::<u32>(slot);
        for lane in 0..32 {
            let (row, column) = (lane / 4 + 8 * (index & 1), 2 * (lane % 4) + 8 * (index / 2));
            let (low, high) = halves(words[lane]);
            a[column][row] = low;
            a[column + 1][row] = high;
        }
    }
    for (index, &slot) in b_list.iter().enumerate() {
        let words = registers.read::<u32>(slot);
        for lane in 0..32 {
            let (row, column) = (2 * (lane % 4) + 8 * index, lane / 4);
            let (low, high) = halves(words[lane]);
            b[row][column] = low;
            b[row + 1][column] = high;
        }
    }
    for (index, &slot) in c_list.iter().enumerate() {
        let words = registers.read::<u32>(slot);
        for lane in 0..32 {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            if half {
                c[row + 8 * index][column] = half_to_single(words[lane] & 0xffff);
                c[row + 8 * index][column + 1] = half_to_single(words[lane] >> 16);
            } else {
                c[row + 8 * (index / 2)][column + (index & 1)] = f(words[lane]);
            }
        }
    }
    for step in 0..k {
        let right = b[step];
        for row in 0..16 {
            let left = a[step][row];
            for column in 0..8 {
                c[row][column] += left * right[column];
            }
        }
    }
    for (index, &slot) in d.iter().enumerate() {
        let words = registers.write::<u32>(slot);
        for lane in 0..32 {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            words[lane] = if half {
                let row = row + 8 * index;
                single_to_half(c[row][column]) | single_to_half(c[row][column + 1]) << 16
            } else {
                c[row + 8 * (index / 2)][column + (index & 1)].to_bits()
            };
        }
    }
}
