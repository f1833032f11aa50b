//! Values that nothing has written, followed bit by bit through the registers of a warp.
//!
//! Compilers speculate on undefined values, so moving them, computing with them and leaving them
//! unselected is no error. What depends on one is: a guard, an address, what lanes or threads are
//! told, and what is stored to global memory. In shared and local memory such bytes become bytes
//! that were never written.
//!
//! Only instructions that `undefined` lists come here.

use std::collections::HashMap;

use crate::access::{Outcome, addresses, lanes, lanes_where};
use crate::findings::{Check, Fault};
use crate::kernel::Kernel;
use crate::machine::{Machine, Warp, takes_whole_warps};
use crate::memory::{LOCAL_BASE, SHARED_BASE, WINDOW_BITS, WINDOW_MASK};
use crate::op::{Code, NEGATED, Op, SIGNED, UNGUARDED, WIDE_ADDRESS};
use crate::races::Other;
use crate::registers::{FULL, Registers};
use crate::syntax::Space;
use crate::undefined::{Cell, Effect, Watched};

mod effects;

/// Undefined bits, by lane.
type Bits = [u64; 32];

const DEFINED: Bits = [0; 32];

/// Bytes in memory whose origin is remembered. Beyond it they are found all the same.
const MOST_STORED: usize = 1 << 16;

/// Where an undefined value comes from.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    /// The register that nothing has written, as a cell.
    cell: usize,
    /// The instruction that read it, on the way to here.
    read: Option<usize>,
}

/// Origins of bytes in shared or local memory: by block, thread (for local memory) and offset.
pub(crate) type Stored = HashMap<(u32, Option<usize>, usize), Origin>;

/// The undefined bits of the registers of a warp.
#[derive(Default)]
pub(crate) struct Poison {
    bits: Vec<Bits>,
    origins: Vec<Origin>,
    /// Registers that an instruction runs on to see where it moves undefined bits.
    scratch: Registers,
}

impl Poison {
    pub(crate) fn start(&mut self, kernel: &Kernel) {
        let cells = &kernel.undefined.cells;
        if cells.is_empty() {
            return;
        }
        let at_start = |cell: &Cell| match cell.name {
            Some(_) => [cell.bits; 32],
            None => DEFINED,
        };
        self.bits = cells.iter().map(at_start).collect();
        self.origins = (0..cells.len()).map(|cell| Origin { cell, read: None }).collect();
        self.scratch = Registers::new(effects::SCRATCH_SLOTS, 1);
    }

    fn of(&self, cell: Option<usize>) -> Bits {
        cell.map_or(DEFINED, |cell| self.bits[cell])
    }

    /// Lanes of `mask` in which a cell has undefined bits.
    fn lanes_of(&self, cell: usize, mask: u32) -> u32 {
        lanes_where(mask, |lane| self.bits[cell][lane] != 0)
    }

    /// Where the undefined value of a cell comes from, when instruction `pc` reads it.
    fn read(&self, cell: usize, pc: usize) -> Origin {
        let origin = self.origins[cell];
        Origin { read: origin.read.or(Some(pc)), ..origin }
    }
}

impl Machine<'_> {
    /// Looks at what instruction `pc` is about to do with registers of products and with undefined
    /// values, when lanes `active` have come to it.
    #[cold]
    #[inline(never)]
    pub(crate) fn watch(&mut self, warp: &mut Warp, pc: usize, active: u32) -> Outcome {
        let kernel = self.kernel;
        let op = &kernel.code[pc];
        let watched = kernel.undefined.watched.get(pc).and_then(Option::as_ref);
        if let Some(cell) = watched.and_then(|watched| watched.guard) {
            self.used(warp, pc, active, Some(cell), "a guard")?;
        }
        let mut mask = active;
        if op.guard != UNGUARDED {
            let predicate = warp.registers.predicates[(op.guard & !NEGATED) as usize];
            mask &= if op.guard & NEGATED != 0 { !predicate } else { predicate };
        }
        if mask == 0 {
            return Ok(());
        }
        if let Some(uses) = kernel.warpgroup_uses.get(pc)
            && !uses.is_empty()
        {
            self.touch(warp, pc, mask, uses)?;
        }
        if meets(op.code) { Ok(()) } else { self.follow(warp, pc, mask) }
    }

    /// Applies an instruction to the undefined values of the lanes that run it, before it runs.
    #[cold]
    #[inline(never)]
    pub(crate) fn follow(&mut self, warp: &mut Warp, pc: usize, mask: u32) -> Outcome {
        let kernel = self.kernel;
        let op = &kernel.code[pc];
        let Some(watched) = kernel.undefined.watched.get(pc).and_then(Option::as_ref) else {
            return Ok(());
        };
        for (index, what) in uses(watched, op) {
            let these = reading(warp, op, index, mask);
            self.used(warp, pc, these, watched.s[index], what)?;
        }
        let results = effects::results(kernel, warp, watched, op, mask);
        let poison = &mut warp.poison;
        let source = watched.s.iter().flatten().find(|&&cell| poison.lanes_of(cell, FULL) != 0);
        let origin = source.map(|&cell| poison.read(cell, pc));
        for (&cell, results) in watched.d.iter().zip(results) {
            let Some(cell) = cell else { continue };
            for lane in lanes(mask) {
                poison.bits[cell][lane] = results[lane] & kernel.undefined.cells[cell].bits;
            }
            if let Some(origin) = origin
                && poison.lanes_of(cell, mask) != 0
            {
                poison.origins[cell] = origin;
            }
        }
        Ok(())
    }

    /// Reports lanes in which a value that something depends on is undefined.
    fn used(&self, warp: &Warp, pc: usize, mask: u32, cell: Option<usize>, what: &str) -> Outcome {
        let Some(cell) = cell else { return Ok(()) };
        let bad = warp.poison.lanes_of(cell, mask);
        if bad == 0 {
            return Ok(());
        }
        let origin = warp.poison.read(cell, pc);
        Err(self.depends(warp, what, &origin, pc, bad))
    }

    fn depends(
        &self,
        warp: &Warp,
        what: &str,
        origin: &Origin,
        pc: usize,
        lanes: u32,
    ) -> Box<Fault> {
        let name = self.kernel.undefined.cells[origin.cell].name.as_deref().unwrap_or("a register");
        let message = format!("{what} depends on `{name}`, which nothing has written");
        let fault = Fault::new(Check::Uninitialised, lanes, message);
        match origin.read {
            Some(read) if read != pc => fault.against(Other {
                place: Some(read),
                block: warp.order.block,
                warp: warp.index,
                lanes,
                wrote: false,
                strong: false,
                in_flight: false,
                agent: false,
                unfenced: false,
                offset: 0,
            }),
            _ => fault,
        }
    }

    /// What a store has done with undefined values: those that went to global memory are reported,
    /// other bytes count as never written again.
    #[cold]
    #[inline(never)]
    pub(crate) fn leak(&mut self, warp: &mut Warp, pc: usize, mask: u32) -> Outcome {
        let kernel = self.kernel;
        let op = &kernel.code[pc];
        let Some(watched) = kernel.undefined.watched.get(pc).and_then(Option::as_ref) else {
            return Ok(());
        };
        let at = addresses(&warp.registers, op.s[0], op.flags & WIDE_ADDRESS != 0, op.imm);
        let size = op.size as usize;
        let ones = u64::MAX >> (64 - 8 * size as u32);
        for (element, cell) in watched.s.iter().skip(1).enumerate() {
            let &Some(cell) = cell else { continue };
            let origin = warp.poison.read(cell, pc);
            let mut leaked = 0;
            for lane in lanes(warp.poison.lanes_of(cell, mask)) {
                let bits = warp.poison.bits[cell][lane] & ones;
                let space = match (op.space, at[lane] >> WINDOW_BITS << WINDOW_BITS) {
                    (Space::Generic, SHARED_BASE) => Space::Shared,
                    (Space::Generic, LOCAL_BASE) => Space::Local,
                    (space, _) => space,
                };
                let first = (at[lane] & WINDOW_MASK) as usize + element * size;
                for byte in (0..size).filter(|byte| bits >> (8 * byte) & 0xff != 0) {
                    let at = first + byte;
                    let owner = match space {
                        Space::Shared => {
                            self.shared_shadow.unset(at, 1);
                            None
                        }
                        Space::Local => {
                            let own = lane * kernel.local_bytes as usize;
                            warp.local_shadow.unset(own + at, 1);
                            Some(32 * warp.index as usize + lane)
                        }
                        _ => {
                            leaked |= 1 << lane;
                            continue;
                        }
                    };
                    if self.stored.len() < MOST_STORED {
                        self.stored.insert((warp.order.block, owner, at), origin);
                    }
                }
            }
            if leaked != 0 {
                let what = "a value stored to global memory";
                return Err(self.depends(warp, what, &origin, pc, leaked));
            }
        }
        Ok(())
    }

    /// Where the undefined value comes from that was stored to some of these bytes.
    pub(crate) fn stored_undefined(
        &self,
        warp: &Warp,
        space: Space,
        offset: u64,
        width: usize,
        lane: usize,
    ) -> Option<Box<Fault>> {
        let owner = (space == Space::Local).then_some(32 * warp.index as usize + lane);
        let bytes = offset as usize..offset as usize + width;
        let mut origins = bytes.map(|at| self.stored.get(&(warp.order.block, owner, at)));
        let origin = origins.find_map(|origin| origin)?;
        let what = format!("a read of {width} bytes");
        Some(self.depends(warp, &what, origin, usize::MAX, 1 << lane))
    }
}

/// Instructions that lanes come to one by one and run together.
fn meets(code: Code) -> bool {
    let exchanges = matches!(
        code,
        Code::WarpSync | Code::Shuffle | Code::Vote | Code::Match | Code::Reduce | Code::Elect
    );
    exchanges || takes_whole_warps(code)
}

/// Sources that the instruction depends on, and as what.
fn uses(watched: &Watched, op: &Op) -> Vec<(usize, &'static str)> {
    let all = 0..watched.s.len();
    match watched.effect {
        Effect::Uses(what) => all.map(|index| (index, what)).collect(),
        Effect::Store => vec![(0, "the address of a write")],
        Effect::Shuffle => vec![(1, "the lane of a shuffle"), (2, "a shuffle"), (3, "a shuffle")],
        Effect::Vote | Effect::AllLanes if op.code != Code::Arithmetic => {
            vec![(1, "a member mask")]
        }
        _ => Vec::new(),
    }
}

/// Lanes of `mask` that read a source of this number at all.
fn reading(warp: &Warp, op: &Op, index: usize, mask: u32) -> u32 {
    match op.code {
        // Only these lanes hold addresses of rows.
        Code::MatrixLoad | Code::MatrixStore if op.count < 4 => mask & ((1 << (8 * op.count)) - 1),
        // A copy of no bytes reads from nowhere.
        Code::CopyAsync if index == 1 && op.flags & SIGNED != 0 => {
            let bytes = warp.registers.read::<u32>(op.s[2]);
            lanes_where(mask, |lane| bytes[lane] != 0)
        }
        _ => mask,
    }
}
