//! Which pointers given to a kernel it may store through.
//!
//! Memory that a launch only reads cannot race, so its reads need not be remembered. What a
//! store's address may be computed from is followed through registers, without regard to control
//! flow; an address that was itself loaded from memory may be any.

use crate::decode::Pending;
use crate::link::Value;
use crate::op::{Code, Op};
use crate::syntax::{Space, Type};

/// Parameter loads whose value may be the base of a store's address; `None`: any memory may be
/// stored to.
pub(crate) type StoresThrough = Option<Vec<usize>>;

const UNKNOWN: u64 = 1 << 63;

/// Operands that are addresses of global memory that the operation writes.
fn stores(op: &Op) -> bool {
    matches!(op.code, Code::Store | Code::Atomic)
        && matches!(op.space, Space::Global | Space::Generic)
}

pub(crate) fn stores_through(
    code: &[Pending],
    registers: &[Type],
    parameters: usize,
) -> StoresThrough {
    if parameters > 63 {
        return None;
    }
    let mut sources = vec![0u64; registers.len()];
    let of = |value: &Value, sources: &[u64]| match *value {
        Value::Register(r) if registers[r as usize] != Type::Pred => sources[r as usize],
        Value::Parameter(index) => 1 << index,
        _ => 0,
    };
    let mut changed = true;
    while changed {
        changed = false;
        for pending in code {
            let loaded = matches!(pending.op.code, Code::Load | Code::Atomic);
            let from = if !loaded {
                pending.s.iter().fold(0, |all, value| all | of(value, &sources))
            } else if pending.op.size == 8 {
                UNKNOWN
            } else {
                0
            };
            for value in &pending.d {
                if let Value::Register(r) = *value {
                    let now = sources[r as usize] | from;
                    changed |= now != sources[r as usize];
                    sources[r as usize] = now;
                }
            }
        }
    }
    let mut through = 0;
    for pending in code.iter().filter(|pending| stores(&pending.op)) {
        through |= pending.s.first().map_or(0, |base| of(base, &sources));
    }
    if through & UNKNOWN != 0 {
        return None;
    }
    Some((0..parameters).filter(|index| through >> index & 1 != 0).collect())
}
