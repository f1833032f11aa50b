//! What goes into a row: corner cases of its operands against each other, then random ones of a
//! fixed seed, half of them with exponents near each other, where sums cancel and results tie.

use super::exact::{E4M3, E5M2, F16, Format};
use super::row::{Kind, Model, Modest, Row};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Random cases after the corner cases.
const RANDOM: usize = 512;
/// Corner cases of a row of three operands and more, drawn from all their combinations.
const DRAWN: usize = 3072;
/// Warps of a row whose lanes work together.
const WARPS: usize = 40;

const F32_CORNERS: [u32; 22] = [
    0,
    1,
    0x0000_2000,
    0x0040_0001,
    0x007f_ffff,
    0x0080_0000,
    0x0080_0001,
    0x3380_0000,
    0x3f00_0000,
    0x3f7f_ffff,
    0x3f80_0000,
    0x3f80_0001,
    0x3fc0_0000,
    0x4020_0000,
    0x4b00_0001,
    0x4f00_0000,
    0x5f80_0000,
    0x7e80_0000,
    0x7f7f_ffff,
    0x7f80_0000,
    0x7fc1_2345,
    0x7f81_2345,
];
/// Borders of the narrower formats and of the integers, for conversions.
const F32_BORDERS: [u32; 22] = [
    0x3300_0000,
    0x3300_0001,
    0x387f_c000,
    0x387f_e000,
    0x3880_0000,
    0x3f80_1000,
    0x3f80_3000,
    0x3f80_8000,
    0x3f81_8000,
    0x42fe_0000,
    0x42ff_0000,
    0x437f_8000,
    0x43e8_0000,
    0x46ff_fe00,
    0x477f_e000,
    0x477f_f000,
    0x477f_ffff,
    0x4eff_ffff,
    0x4f7f_ffff,
    0x4f80_0000,
    0x5eff_ffff,
    0x7f7f_8000,
];
const F64_CORNERS: [u64; 22] = [
    0,
    1,
    0x0008_0000_0000_0001,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x36a0_0000_0000_0000,
    0x380f_ffff_ffff_ffff,
    0x3810_0000_0000_0000,
    0x3ca0_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0x3fef_ffff_ffff_ffff,
    0x3ff0_0000_0000_0000,
    0x3ff0_0000_0000_0001,
    0x3ff0_0000_1000_0000,
    0x3ff8_0000_0000_0000,
    0x41df_ffff_ffe0_0000,
    0x43e0_0000_0000_0000,
    0x47ef_ffff_f000_0000,
    0x7fef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0x7ff8_0000_0000_1234,
    0x7ff0_0000_0000_0001,
];
const F16_CORNERS: [u16; 18] = [
    0, 1, 0x0201, 0x03ff, 0x0400, 0x0401, 0x1400, 0x3800, 0x3bff, 0x3c00, 0x3c01, 0x3e00, 0x4100,
    0x6401, 0x7bff, 0x7c00, 0x7e12, 0x7c01,
];
const BF16_CORNERS: [u16; 18] = [
    0, 1, 0x0041, 0x007f, 0x0080, 0x0081, 0x3b80, 0x3f00, 0x3f7f, 0x3f80, 0x3f81, 0x3fc0, 0x4020,
    0x4301, 0x7f7f, 0x7f80, 0x7fc5, 0x7f81,
];
const AMOUNTS: [u64; 20] = [
    0,
    1,
    7,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    48,
    63,
    64,
    65,
    127,
    255,
    256,
    256 + 5,
    0x8000_0000,
    u32::MAX as u64,
];

fn integers(bits: u32) -> Vec<u64> {
    let all = u64::MAX >> (64 - bits);
    let top = 1u64 << (bits - 1);
    let alternating = 0x5555_5555_5555_5555 & all;
    let mut out =
        vec![0, 1, 2, 3, 7, top - 1, top, top + 1, all - 1, all, alternating, !alternating & all];
    // Borders of the narrower integers, their sign bits, and bytes that all differ.
    let more = [
        0x7f,
        0x80,
        0xff,
        0x100,
        0x7fff,
        0x8000,
        0xffff,
        0x1_0000,
        0x80_0000,
        0xff_ffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        0x8081_7f01_fe02_c3b4,
        0xffff_ffff_ffff_8000,
        0xffff_ffff_8000_0000,
        0xffff_ffff_ffff_ff80,
    ];
    out.extend(more.into_iter().filter(|&value| value <= all));
    out.dedup();
    out
}

fn signed<const N: usize>(magnitudes: [u64; N], sign: u64) -> Vec<u64> {
    magnitudes.iter().flat_map(|&bits| [bits, bits | sign]).collect()
}

/// The corner cases of an operand.
fn corners(kind: Kind, alone: bool) -> Vec<u64> {
    match kind {
        Kind::Predicate => vec![0, 1],
        Kind::Integer(bits) => integers(bits),
        Kind::Amount => AMOUNTS.to_vec(),
        Kind::F32 => {
            let mut out = signed(F32_CORNERS.map(u64::from), 1 << 31);
            if alone {
                out.extend(signed(F32_BORDERS.map(u64::from), 1 << 31));
            }
            out
        }
        Kind::F64 => signed(F64_CORNERS, 1 << 63),
        Kind::F16 => signed(F16_CORNERS.map(u64::from), 1 << 15),
        Kind::Bf16 => signed(BF16_CORNERS.map(u64::from), 1 << 15),
        // Halves that differ: each corner below the one a third further on.
        Kind::F16x2 => halves(&signed(F16_CORNERS.map(u64::from), 1 << 15)),
        Kind::Bf16x2 => halves(&signed(BF16_CORNERS.map(u64::from), 1 << 15)),
        // Every code stands in the low and in the high half.
        Kind::E4m3x2 | Kind::E5m2x2 => (0..256).map(|code| code | (255 - code) << 8).collect(),
        Kind::Modest(_) => Vec::new(),
    }
}

fn halves(values: &[u64]) -> Vec<u64> {
    let count = values.len();
    (0..count).map(|at| values[at] | values[(at + count / 3) % count] << 16).collect()
}

/// A random value of a kind.
fn random(kind: Kind, near: bool, rng: &mut ChaCha8Rng) -> u64 {
    let bits: u64 = rng.next_u64();
    let half = |bits: u64, format: Format| {
        let mask = if format == F16 { 0x83ff } else { 0x807f };
        let exponents = if format == F16 { 0x3800..0x4000 } else { 0x3f00..0x4000u64 };
        let step = if format == F16 { 0x400 } else { 0x80 };
        let exponent = exponents.start + bits % ((exponents.end - exponents.start) / step) * step;
        bits >> 8 & mask | exponent
    };
    match kind {
        Kind::Predicate => bits & 1,
        Kind::Integer(width) => {
            let value = bits & u64::MAX >> (64 - width);
            // Small ones too.
            if near { value >> rng.random_range(0..width) } else { value }
        }
        Kind::Amount => {
            if near {
                bits % 80
            } else {
                bits & 0xffff_ffff
            }
        }
        Kind::F32 if near => bits & 0x807f_ffff | (120 + (bits >> 40 & 15)) << 23,
        Kind::F32 => bits & 0xffff_ffff,
        Kind::F64 if near => bits & 0x800f_ffff_ffff_ffff | (1020 + (bits >> 55 & 7)) << 52,
        Kind::F64 => bits,
        Kind::F16 if near => half(bits, F16),
        Kind::Bf16 if near => half(bits, super::exact::BF16),
        Kind::F16x2 if near => half(bits, F16) | half(bits >> 24, F16) << 16,
        Kind::Bf16x2 if near => {
            half(bits, super::exact::BF16) | half(bits >> 24, super::exact::BF16) << 16
        }
        Kind::F16 | Kind::Bf16 | Kind::E4m3x2 | Kind::E5m2x2 => bits & 0xffff,
        Kind::F16x2 | Kind::Bf16x2 => bits & 0xffff_ffff,
        Kind::Modest(what) => modest(what, rng),
    }
}

/// An element of a matrix: exponents of a few binades around one, now and then a zero.
fn modest(what: Modest, rng: &mut ChaCha8Rng) -> u64 {
    let mut one = |bits: u32, fraction: u32, one: u64, spread: u64| -> u64 {
        if rng.random_range(0..16u32) == 0 {
            return 0;
        }
        let exponent = one - spread / 2 + rng.random_range(0..spread);
        let digits = rng.next_u64() & ((1 << fraction) - 1);
        let sign = u64::from(rng.random::<bool>()) << (bits - 1);
        sign | exponent << fraction | digits
    };
    match what {
        Modest::F64 => one(64, 52, 1023, 16),
        Modest::F32 => one(32, 23, 127, 16),
        Modest::F16x2 => one(16, 10, 15, 10) | one(16, 10, 15, 10) << 16,
        Modest::Bf16x2 => one(16, 7, 127, 16) | one(16, 7, 127, 16) << 16,
        Modest::E4m3x4 => (0..4).map(|at| one(8, E4M3.precision - 1, 7, 8) << (8 * at)).sum(),
        Modest::E5m2x4 => (0..4).map(|at| one(8, E5M2.precision - 1, 15, 12) << (8 * at)).sum(),
    }
}

/// The cases of a row, the same at every call. For lanes that work together: whole warps.
pub fn cases(row: &Row) -> Vec<Vec<u64>> {
    let seed = row.name().bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let kinds = &row.operands;
    let mut out: Vec<Vec<u64>> = Vec::new();
    let lists: Vec<Vec<u64>> = kinds.iter().map(|&kind| corners(kind, kinds.len() == 1)).collect();
    let mut drawn = |out: &mut Vec<Vec<u64>>, count: usize, corner: u32| {
        for at in 0..count {
            let case = kinds.iter().zip(&lists).map(|(&kind, list)| {
                if !list.is_empty() && rng.random_range(0..100) < corner {
                    list[rng.random_range(0..list.len())]
                } else {
                    random(kind, at % 2 == 0, &mut rng)
                }
            });
            out.push(case.collect());
        }
    };
    if let Model::Warp(_) = row.model {
        for warp in 0..WARPS {
            drawn(&mut out, 32, [0, 50, 100][warp % 3]);
        }
        // Some warps agree on everything, some on all but one lane: votes and matches differ there.
        for warp in (0..WARPS).step_by(4) {
            let first = out[32 * warp].clone();
            for lane in 1..32 {
                if warp % 8 == 0 || lane != 17 {
                    out[32 * warp + lane] = first.clone();
                }
            }
        }
        return out;
    }
    match lists.as_slice() {
        [one] => out.extend(one.iter().map(|&value| vec![value])),
        [one, other] => {
            out.extend(one.iter().flat_map(|&a| other.iter().map(move |&b| vec![a, b])));
        }
        _ => drawn(&mut out, DRAWN, 100),
    }
    drawn(&mut out, RANDOM, 0);
    // Half corner, half random: one special operand among ordinary ones.
    drawn(&mut out, RANDOM / 4, 50);
    let whole = out.len().next_multiple_of(32);
    out.resize(whole, out[0].clone());
    out
}

#[cfg(test)]
mod tests {
    use super::super::row::Register;
    use super::*;

    #[test]
    fn cases_are_the_same_every_time_and_hold_the_corners() {
        let row = Row::new("x", &[Register::Bits(32)], &[Kind::F32, Kind::F32], |_| Vec::new());
        let once = cases(&row);
        assert_eq!(once, cases(&row));
        assert_eq!(once.len() % 32, 0);
        assert!(once.contains(&vec![0x7fc1_2345, 0x8000_0000]));
        assert!(once.len() > 44 * 44);
    }
}
