//! `mma.sync`: products of matrices spread over the registers of a warp.
//!
//! Products of 16-bit floats are exact in f32 and added in f32 in the order of k. Hardware aligns
//! and truncates groups of products instead, so low bits of the accumulators differ from a GPU's,
//! unless the launch asks for a model of it (`tensor_cores`). Those of tf32 and 8-bit floats are
//! added likewise; integers and f64 are exact in themselves.

use crate::math::{
    b, brain_to_single, d as double_of, f, from_e4m3, from_e5m2, half_to_single, single_to_half,
};
use crate::op::Op;
use crate::registers::Registers;
use crate::syntax::Type;
use crate::tensor_cores::{MatrixModel, Sum};

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// f16 or bf16 (`brain`), k 16 or 8, accumulated in f16 (`half`) or f32.
    Halves { k16: bool, brain: bool, half: bool },
    /// tf32 with k 8 or 4.
    Tf32 { k8: bool },
    /// 8-bit integers; rows 16 with k 32 or 16, or rows 8 with k 16.
    Bytes { rows8: bool, k32: bool, signed: [bool; 2], saturate: bool },
    /// 8-bit floats, k 32, accumulated in f16 or f32; whether each is E5M2.
    Eighths { e5m2: [bool; 2], half: bool },
    /// m8n8k4 in f64.
    Doubles,
}

impl Form {
    /// The form of a shape and the types of D, A, B and C.
    pub(crate) fn of(shape: &str, [to, a, b, c]: [Type; 4], saturate: bool) -> Option<Self> {
        if to != c {
            return None;
        }
        let half = match to {
            Type::F32 => Some(false),
            Type::F16 => Some(true),
            _ => None,
        };
        Some(match (shape, a, b) {
            _ if saturate && to != Type::S32 => return None,
            ("m16n8k16" | "m16n8k8", Type::F16, Type::F16) => {
                Self::Halves { k16: shape == "m16n8k16", brain: false, half: half? }
            }
            ("m16n8k16" | "m16n8k8", Type::Bf16, Type::Bf16) if to == Type::F32 => {
                Self::Halves { k16: shape == "m16n8k16", brain: true, half: false }
            }
            ("m16n8k8" | "m16n8k4", Type::Tf32, Type::Tf32) if to == Type::F32 => {
                Self::Tf32 { k8: shape == "m16n8k8" }
            }
            ("m16n8k32" | "m16n8k16" | "m8n8k16", Type::S8 | Type::U8, Type::S8 | Type::U8)
                if to == Type::S32 =>
            {
                Self::Bytes {
                    rows8: shape == "m8n8k16",
                    k32: shape == "m16n8k32",
                    signed: [a.is_signed(), b.is_signed()],
                    saturate,
                }
            }
            ("m16n8k32", Type::E4m3 | Type::E5m2, Type::E4m3 | Type::E5m2) => {
                Self::Eighths { e5m2: [a == Type::E5m2, b == Type::E5m2], half: half? }
            }
            ("m8n8k4", Type::F64, Type::F64) if to == Type::F64 => Self::Doubles,
            _ => return None,
        })
    }

    /// Registers of D, A, B and C.
    pub(crate) fn registers(self) -> [u8; 4] {
        let sums = |half: bool| if half { 2 } else { 4 };
        match self {
            Self::Halves { k16, half, .. } => {
                let (a, b) = if k16 { (4, 2) } else { (2, 1) };
                [sums(half), a, b, sums(half)]
            }
            Self::Tf32 { k8: true } => [4, 4, 2, 4],
            Self::Tf32 { k8: false } => [4, 2, 1, 4],
            Self::Bytes { rows8: true, .. } => [2, 1, 1, 2],
            Self::Bytes { k32: true, .. } => [4, 4, 2, 4],
            Self::Bytes { k32: false, .. } => [4, 2, 1, 4],
            Self::Eighths { half, .. } => [sums(half), 4, 2, sums(half)],
            Self::Doubles => [2, 1, 1, 2],
        }
    }

    /// Whether the registers are of 64 bits.
    pub(crate) fn wide(self) -> bool {
        self == Self::Doubles
    }

    /// The form as `count` (which) and `flags` (its parts, in the order they are declared).
    pub(crate) fn encode(self, op: &mut Op) {
        let pack = |parts: &[bool]| {
            parts.iter().enumerate().fold(0u8, |out, (at, &part)| out | u8::from(part) << at)
        };
        (op.count, op.flags) = match self {
            Self::Halves { k16, brain, half } => (0, pack(&[k16, brain, half])),
            Self::Tf32 { k8 } => (1, pack(&[k8])),
            Self::Bytes { rows8, k32, signed: [a, b], saturate } => {
                (2, pack(&[rows8, k32, a, b, saturate]))
            }
            Self::Eighths { e5m2: [a, b], half } => (3, pack(&[a, b, half])),
            Self::Doubles => (4, 0),
        };
    }

    pub(crate) fn decode(op: &Op) -> Self {
        let part = |at: u32| op.flags >> at & 1 != 0;
        match op.count {
            0 => Self::Halves { k16: part(0), brain: part(1), half: part(2) },
            1 => Self::Tf32 { k8: part(0) },
            2 => Self::Bytes {
                rows8: part(0),
                k32: part(1),
                signed: [part(2), part(3)],
                saturate: part(4),
            },
            3 => Self::Eighths { e5m2: [part(0), part(1)], half: part(2) },
            _ => Self::Doubles,
        }
    }
}

/// `list` holds the slots of D, A, B, C in this order.
#[inline(always)]
pub(crate) fn multiply(registers: &mut Registers, list: &[u16], op: &Op, model: MatrixModel) {
    let form = Form::decode(op);
    if model != MatrixModel::Fast {
        return other_product(registers, list, form, model);
    }
    match form {
        Form::Halves { k16: false, brain: false, half } => {
            product::<8, false>(registers, list, half);
        }
        Form::Halves { k16: true, brain: false, half } => {
            product::<16, false>(registers, list, half);
        }
        Form::Halves { k16: false, brain: true, half } => {
            product::<8, true>(registers, list, half);
        }
        Form::Halves { k16: true, brain: true, half } => {
            product::<16, true>(registers, list, half);
        }
        form => other_product(registers, list, form, model),
    }
}

/// The forms other than 16-bit floats, and those in a model of hardware, element by element. Every element of every operand is at a
/// place that its lane, register and position in the register give.
#[inline(never)]
fn other_product(registers: &mut Registers, list: &[u16], form: Form, model: MatrixModel) {
    let [nd, na, nb, _] = form.registers().map(usize::from);
    let (d, rest) = list.split_at(nd);
    let (a, rest) = rest.split_at(na);
    let (right, c) = rest.split_at(nb);
    match form {
        Form::Doubles => {
            let read = |slot: u16, lane: usize| double_of(registers.read::<u64>(slot)[lane]);
            let mut out = [[0u64; 32]; 2];
            for lane in 0..32 {
                for (part, out) in out.iter_mut().enumerate() {
                    let (row, column) = (lane / 4, 2 * (lane % 4) + part);
                    let mut sum = read(c[part], lane);
                    for k in 0..4 {
                        sum = read(a[0], 4 * row + k).mul_add(read(right[0], 4 * column + k), sum);
                    }
                    out[lane] = sum.to_bits();
                }
            }
            for (slot, out) in d.iter().zip(out) {
                *registers.write::<u64>(*slot) = out;
            }
        }
        Form::Tf32 { .. } => {
            let tf32 = |slot: u16, lane: usize| f(registers.read::<u32>(slot)[lane] & !0x1fff);
            let depth = 2 * na;
            let sums = floats(
                registers,
                c,
                false,
                depth,
                model.of_mma([Type::Tf32; 2], false, depth),
                |row, k| tf32(a[row / 8 + 2 * (k / 4)], 4 * (row % 8) + k % 4),
                |k, column| tf32(right[k / 4], 4 * column + k % 4),
            );
            put(registers, d, false, &sums);
        }
        Form::Eighths { e5m2, half } => {
            let number = |bits: u32, e5m2| if e5m2 { from_e5m2(bits) } else { from_e4m3(bits) };
            let byte = |slot: u16, lane: usize, k: usize| {
                registers.read::<u32>(slot)[lane] >> (8 * (k % 4)) & 0xff
            };
            let sums = floats(
                registers,
                c,
                half,
                32,
                model.of_mma(e5m2.map(|is| if is { Type::E5m2 } else { Type::E4m3 }), half, 32),
                |row, k| {
                    let bits = byte(a[row / 8 + 2 * (k / 16)], 4 * (row % 8) + k % 16 / 4, k);
                    number(bits, e5m2[0])
                },
                |k, column| number(byte(right[k / 16], 4 * column + k % 16 / 4, k), e5m2[1]),
            );
            put(registers, d, half, &sums);
        }
        Form::Bytes { rows8, k32, signed, saturate } => {
            let byte = |slot: u16, lane: usize, k: usize, signed: bool| {
                let bits = registers.read::<u32>(slot)[lane] >> (8 * (k % 4));
                if signed { i64::from(bits as u8 as i8) } else { i64::from(bits as u8) }
            };
            let depth = if k32 { 32 } else { 16 };
            let height = if rows8 { 1 } else { 2 };
            let mut out = [[0u32; 32]; 4];
            for (index, out) in out.iter_mut().enumerate().take(nd) {
                for lane in 0..32 {
                    let row = lane / 4 + 8 * (index / 2);
                    let column = 2 * (lane % 4) + index % 2;
                    let mut sum = i64::from(registers.read::<u32>(c[index])[lane] as i32);
                    for k in 0..depth {
                        let from = a[row / 8 + height * (k / 16)];
                        sum += byte(from, 4 * (row % 8) + k % 16 / 4, k, signed[0])
                            * byte(right[k / 16], 4 * column + k % 16 / 4, k, signed[1]);
                    }
                    out[lane] = if saturate {
                        sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32
                    } else {
                        sum as u32
                    };
                }
            }
            for (slot, out) in d.iter().zip(out) {
                *registers.write::<u32>(*slot) = out;
            }
        }
        Form::Halves { k16, brain, half } => {
            let number = |slot: u16, lane: usize, k: usize| {
                let bits = registers.read::<u32>(slot)[lane] >> (16 * (k % 2)) & 0xffff;
                if brain { brain_to_single(bits) } else { half_to_single(bits) }
            };
            let depth = if k16 { 16 } else { 8 };
            let ty = if brain { Type::Bf16 } else { Type::F16 };
            let sums = floats(
                registers,
                c,
                half,
                depth,
                model.of_mma([ty; 2], half, depth),
                |row, k| number(a[row / 8 + 2 * (k / 8)], 4 * (row % 8) + k % 8 / 2, k),
                |k, column| number(right[k / 8], 4 * column + k % 8 / 2, k),
            );
            put(registers, d, half, &sums);
        }
    }
}

/// C + A B for 16 rows and 8 columns, in f32 or as a model of hardware adds.
fn floats(
    registers: &Registers,
    c: &[u16],
    half: bool,
    depth: usize,
    way: Option<Sum>,
    left: impl Fn(usize, usize) -> f32,
    right: impl Fn(usize, usize) -> f32,
) -> [[f32; 8]; 16] {
    let mut sums = [[0f32; 8]; 16];
    for (row, sums) in sums.iter_mut().enumerate() {
        for (column, sum) in sums.iter_mut().enumerate() {
            let lane = 4 * (row % 8) + column / 2;
            *sum = if half {
                let word = registers.read::<u32>(c[row / 8])[lane];
                half_to_single(word >> (16 * (column % 2)) & 0xffff)
            } else {
                f(registers.read::<u32>(c[2 * (row / 8) + column % 2])[lane])
            };
            if let Some(way) = way {
                let mut factors = [(0.0, 0.0); 32];
                for (k, factors) in factors.iter_mut().enumerate().take(depth) {
                    *factors = (left(row, k), right(k, column));
                }
                *sum = way.of(*sum, &factors[..depth]);
                continue;
            }
            for k in 0..depth {
                *sum += left(row, k) * right(k, column);
            }
        }
    }
    sums
}

/// Spreads 16 rows and 8 columns over the registers of D.
fn put(registers: &mut Registers, d: &[u16], half: bool, sums: &[[f32; 8]; 16]) {
    for (index, &slot) in d.iter().enumerate() {
        let words = registers.write::<u32>(slot);
        for lane in 0..32 {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            words[lane] = if half {
                let row = &sums[row + 8 * index];
                single_to_half(row[column]) | single_to_half(row[column + 1]) << 16
            } else {
                b(sums[row + 8 * (index / 2)][column + (index & 1)])
            };
        }
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
    put(registers, d, half, &sums);
}
