//! Read-modify-write operations, one lane after another in lane order.

use crate::arithmetic::double;
use crate::math::{b, brain_to_single, d, f, ftz, half_to_single, single_to_brain, single_to_half};
use crate::syntax::Type;

const OPERATIONS: [(&str, Type); 44] = {
    use Type::*;
    [
        ("add", U32),
        ("add", S32),
        ("add", U64),
        ("add", S64),
        ("add", F32),
        // In global memory, where GPUs flush subnormals.
        ("add.ftz", F32),
        ("add", F64),
        ("add", F16),
        ("add", F16x2),
        ("add", Bf16),
        ("add", Bf16x2),
        ("min", U32),
        ("min", S32),
        ("min", U64),
        ("min", S64),
        ("max", U32),
        ("max", S32),
        ("max", U64),
        ("max", S64),
        ("and", B32),
        ("and", B64),
        ("or", B32),
        ("or", B64),
        ("xor", B32),
        ("xor", B64),
        ("exch", B32),
        ("exch", B64),
        ("exch", U32),
        ("exch", U64),
        ("exch", S32),
        ("exch", S64),
        ("exch", F32),
        ("cas", B32),
        ("cas", B64),
        ("cas", B16),
        ("cas", U32),
        ("cas", U64),
        ("cas", S32),
        ("cas", S64),
        ("inc", U32),
        ("dec", U32),
        ("and", U32),
        ("or", U32),
        ("xor", U32),
    ]
};

/// The number of an operation, or `None` where it does not exist.
pub(crate) fn code(name: &str, ty: Type) -> Option<u8> {
    OPERATIONS.iter().position(|&entry| entry == (name, ty)).map(|at| at as u8)
}

/// The new value of memory.
pub(crate) fn apply(code: u8, old: u64, operand: u64, second: u64) -> u64 {
    let (name, ty) = OPERATIONS[code as usize];
    let (x, y) = (old as u32, operand as u32);
    let halves = |one: fn(u32, u32) -> u32| {
        u64::from(one(x & 0xffff, y & 0xffff) | one(x >> 16, y >> 16) << 16)
    };
    fn half(x: u32, y: u32) -> u32 {
        single_to_half(half_to_single(x) + half_to_single(y))
    }
    fn brain(x: u32, y: u32) -> u32 {
        single_to_brain(brain_to_single(x) + brain_to_single(y))
    }
    match (name, ty) {
        ("add", Type::F32) => u64::from(b(f(x) + f(y))),
        ("add.ftz", Type::F32) => u64::from(ftz(b(f(ftz(x)) + f(ftz(y))))),
        ("add", Type::F64) => double(d(old) + d(operand)),
        ("add", Type::F16) => u64::from(half(x & 0xffff, y & 0xffff)),
        ("add", Type::Bf16) => u64::from(brain(x & 0xffff, y & 0xffff)),
        ("add", Type::F16x2) => halves(half),
        ("add", Type::Bf16x2) => halves(brain),
        ("add", _) => old.wrapping_add(operand),
        ("min", Type::S32) => (x as i32).min(y as i32) as u32 as u64,
        ("max", Type::S32) => (x as i32).max(y as i32) as u32 as u64,
        ("min", Type::S64) => (old as i64).min(operand as i64) as u64,
        ("max", Type::S64) => (old as i64).max(operand as i64) as u64,
        ("min", _) => old.min(operand),
        ("max", _) => old.max(operand),
        ("and", _) => old & operand,
        ("or", _) => old | operand,
        ("xor", _) => old ^ operand,
        ("exch", _) => operand,
        ("cas", _) => {
            if old == operand {
                second
            } else {
                old
            }
        }
        ("inc", _) => {
            if old >= operand {
                0
            } else {
                old + 1
            }
        }
        _ => {
            if old == 0 || old > operand {
                operand
            } else {
                old - 1
            }
        }
    }
}
