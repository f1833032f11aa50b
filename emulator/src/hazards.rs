//! Where accesses meet the cells of `races`: lends the cells of the memory that an access goes to,
//! words what they find as a `race` or an `async-hazard`, and lets strong accesses publish and
//! observe what `order` keeps.

use crate::access::{Outcome, lanes, lanes_where};
use crate::findings::{Check, Fault};
use crate::machine::{Machine, Suspect, Warp};
use crate::op::{ACQUIRE, DEVICE_SCOPE, Op, RELEASE, WIDE_DATA};
use crate::order::{LAST_EPOCH, Scope, Strength};
use crate::races::{Access, Cells, Kind, Lists, Other};
use crate::registers::Registers;
use crate::syntax::Space;
use crate::transactions::Pattern;
use std::ops::Range;

impl Machine<'_> {
    /// The cells of a space, lent out; `None` where accesses to it cannot race.
    #[inline(always)]
    fn lend_cells(&mut self, (space, window): (Space, u64), kind: Kind) -> Option<Cells> {
        if self.now == LAST_EPOCH {
            return None;
        }
        match space {
            Space::Shared => Some(std::mem::take(&mut self.shared_cells)),
            Space::Local | Space::Param => None,
            _ => {
                let (launch, now) = (self.launch_epoch, self.now);
                let allocation = self.window(window)?;
                if kind == Kind::ConstantRead && allocation.cells.written <= launch {
                    return None;
                }
                if kind.writes() {
                    allocation.may_write = true;
                    allocation.cells.written = now;
                } else if !allocation.may_write {
                    return None;
                }
                if allocation.cells.is_empty() {
                    allocation.cells = Cells::new(allocation.data.len(), true);
                }
                Some(std::mem::take(&mut allocation.cells))
            }
        }
    }

    #[inline(always)]
    fn return_cells(&mut self, (space, window): (Space, u64), cells: Cells) {
        if space == Space::Shared {
            self.shared_cells = cells;
        } else if let Some(allocation) = self.window(window) {
            allocation.cells = cells;
        }
    }

    /// Lends the cells of a place and the lists of the launch. What runs between this and `settled` is
    /// no closure, so that it is compiled for the same processor as the loop.
    #[inline(always)]
    fn lend(&mut self, place: (Space, u64), kind: Kind) -> Option<(Cells, Lists)> {
        let cells = self.lend_cells(place, kind)?;
        Some((cells, std::mem::take(&mut self.lists)))
    }

    /// Who accesses, and when.
    #[inline(always)]
    fn access_of<'w>(&self, warp: &'w Warp, kind: Kind, pc: usize) -> Access<'w> {
        Access {
            order: &warp.order,
            now: self.now,
            launch: self.launch_epoch,
            pc,
            kind,
            whole_barriers: self.kernel.whole_barriers,
        }
    }

    /// Takes back what was lent, and words what was found.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn settled(
        &mut self,
        warp: &Warp,
        place: (Space, u64),
        width: usize,
        kind: Kind,
        pc: usize,
        (cells, lists): (Cells, Lists),
        found: Result<(), (u32, Other)>,
    ) -> Outcome {
        self.lists = lists;
        self.return_cells(place, cells);
        match found {
            Ok(()) => Ok(()),
            Err((lanes, other)) => Err(self.race(warp, place, lanes, width, kind, pc, other)),
        }
    }

    /// Checks that an access is ordered after what it conflicts with, and remembers it.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn ordered(
        &mut self,
        warp: &Warp,
        place: (Space, u64),
        offsets: &[u64; 32],
        mask: u32,
        width: usize,
        pattern: Pattern,
        kind: Kind,
        pc: usize,
    ) -> Outcome {
        let Some((mut cells, mut lists)) = self.lend(place, kind) else { return Ok(()) };
        let access = self.access_of(warp, kind, pc);
        let contiguous = pattern == Pattern::Contiguous && kind.plain();
        let found =
            if contiguous && cells.contiguous(offsets[0] as usize, width, &access, &mut lists) {
                Ok(())
            } else {
                let uniform = pattern == Pattern::Uniform;
                cells.scattered(offsets, mask, uniform, width, &access, &mut lists, |_, _, _| false)
            };
        self.settled(warp, place, width, kind, pc, (cells, lists), found)
    }

    /// The same for a weak store, which may store what is there already.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn ordered_store(
        &mut self,
        warp: &Warp,
        op: &Op,
        place: (Space, u64),
        offsets: &[u64; 32],
        mask: u32,
        pattern: Pattern,
        pc: usize,
    ) -> Outcome {
        let width = usize::from(op.size) * usize::from(op.count);
        let kind = Kind::Write;
        let Some((mut cells, mut lists)) = self.lend(place, kind) else { return Ok(()) };
        let access = self.access_of(warp, kind, pc);
        let contiguous = pattern == Pattern::Contiguous;
        let found = if contiguous
            && cells.contiguous(offsets[0] as usize, width, &access, &mut lists)
        {
            Ok(())
        } else {
            let memory: &[u8] = match place.0 {
                Space::Shared => &self.shared,
                _ => self.window(place.1).map_or(&[], |allocation| &allocation.data),
            };
            let stored = |lane: usize, byte: usize| stored_byte(&warp.registers, op, lane, byte);
            let harmless = |lane: usize, at: usize, same: Option<u32>| {
                let size = if width < 4 { 1 } else { 4 };
                let end = (at - at % size + size).min(offsets[lane] as usize + width);
                let twin = same.map(|lanes| lanes.trailing_zeros() as usize).filter(|&twin| {
                    let start = offsets[twin & 31] as usize;
                    mask >> twin & 1 != 0 && start <= at && end <= start + width
                });
                (at..end).all(|byte| {
                    let mine = stored(lane, byte - offsets[lane] as usize);
                    match twin {
                        Some(twin) => mine == stored(twin, byte - offsets[twin] as usize),
                        None => memory.get(byte) == Some(&mine),
                    }
                })
            };
            let uniform = pattern == Pattern::Uniform;
            cells.scattered(offsets, mask, uniform, width, &access, &mut lists, harmless)
        };
        self.settled(warp, place, width, kind, pc, (cells, lists), found)
    }

    /// The same for rows of 16 bytes of shared memory that a whole warp reads or writes together.
    pub(crate) fn ordered_rows(
        &mut self,
        warp: &Warp,
        offsets: &[u64; 32],
        rows: u32,
        kind: Kind,
        pc: usize,
    ) -> Outcome {
        let place = (Space::Shared, 0);
        let Some((mut cells, mut lists)) = self.lend(place, kind) else { return Ok(()) };
        let access = self.access_of(warp, kind, pc);
        let found = lanes(rows)
            .try_for_each(|lane| cells.row(offsets[lane] as usize, 16, &access, &mut lists));
        self.settled(warp, place, 16, kind, pc, (cells, lists), found)
    }

    /// The same for ranges of shared or global memory that one lane accesses; those of asynchronous
    /// operations last until `completed`. What is not kept is only compared with writes. `bytes` is
    /// the size of the whole, for the report.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn ordered_ranges(
        &mut self,
        warp: &Warp,
        place: (Space, u64),
        lane: usize,
        bytes: usize,
        mut ranges: impl Iterator<Item = Range<usize>>,
        keep: bool,
        kind: Kind,
        pc: usize,
    ) -> Outcome {
        let Some((mut cells, mut lists)) = self.lend(place, kind) else { return Ok(()) };
        let access = self.access_of(warp, kind, pc);
        let found =
            ranges.try_for_each(|range| cells.range(range, lane, keep, &access, &mut lists));
        self.settled(warp, place, bytes, kind, pc, (cells, lists), found)
    }

    /// The agent of a warp has done an access: threads that learn of this epoch come after it.
    pub(crate) fn completed(
        &mut self,
        place: (Space, u64),
        agent: (u8, u8),
        ranges: impl Iterator<Item = Range<usize>>,
        wrote: bool,
    ) {
        let Some(mut cells) = self.lend_cells(place, Kind::Read) else { return };
        for range in ranges {
            cells.complete(range, agent, wrote, self.now, &mut self.lists);
        }
        self.return_cells(place, cells);
    }

    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn race(
        &mut self,
        warp: &Warp,
        (space, window): (Space, u64),
        lanes: u32,
        width: usize,
        kind: Kind,
        pc: usize,
        other: Other,
    ) -> Box<Fault> {
        let name = self.name_of(space, window, other.offset as u64);
        let verb = kind.verb();
        let theirs = other.action();
        let within = other.block == warp.order.block && other.warp == warp.index;
        let (check, message) = if other.in_flight {
            let verbs = if other.wrote { "writing" } else { "reading" };
            let what = match (other.agent, within && other.lanes & lanes != 0) {
                (true, _) => "asynchronous operation",
                (_, true) => "asynchronous copy of this thread",
                (_, false) => "asynchronous copy of another",
            };
            let message = format!(
                "{verb} of {width} bytes that an {what} is still {verbs}: it has not been waited \
                 for"
            );
            (Check::AsyncHazard, message)
        } else if other.unfenced {
            let message = format!(
                "{verb} of {width} bytes that a thread has written: there is no fence.proxy.async \
                 between them, without which the write may be seen too late"
            );
            (Check::AsyncHazard, message)
        } else if other.agent {
            let message = format!(
                "{verb} of {width} bytes that nothing orders after an {theirs}: this thread has \
                 neither waited for it nor met one that has"
            );
            (Check::AsyncHazard, message)
        } else if kind.asynchronous() {
            let message = format!(
                "{verb} of {width} bytes that nothing orders after the {theirs} of another thread"
            );
            (Check::AsyncHazard, message)
        } else if kind == Kind::ConstantRead {
            let message = format!(
                "{verb} of {width} bytes, which this launch writes, through the path for data that \
                 no thread writes (ld.global.nc)"
            );
            (Check::Race, message)
        } else if within && other.place == Some(pc) && other.wrote && kind == Kind::Write {
            let message = format!("two lanes write different values to the same {width} bytes");
            (Check::Race, message)
        } else {
            let between = if within {
                "no bar.warp.sync or barrier"
            } else if other.block == warp.order.block {
                "no barrier"
            } else {
                "no fence and atomic"
            };
            let message = format!(
                "{verb} of {width} bytes races with the {theirs} of another thread: {between} \
                 orders them"
            );
            (Check::Race, message)
        };
        Fault::new(check, lanes, message).at(name).against(other)
    }

    /// What strong accesses publish and observe.
    #[allow(clippy::too_many_arguments)]
    #[cold]
    #[inline(never)]
    pub(crate) fn synchronise(
        &mut self,
        warp: &mut Warp,
        (space, window): (Space, u64),
        offsets: &[u64; 32],
        mask: u32,
        order: u8,
        reads: bool,
        writes: bool,
    ) {
        let window = match space {
            Space::Shared => u64::MAX - u64::from(warp.order.block),
            Space::Local | Space::Param => return,
            _ => window,
        };
        let acquire = reads && order & ACQUIRE != 0;
        let release = writes && order & RELEASE != 0;
        let how = Strength { scope: scope(order), acquire, release };
        for lane in lanes(mask) {
            let place = (window, offsets[lane]);
            if reads {
                self.publications.observe(place, &mut warp.order, lane, warp.live, how);
            }
            if writes {
                let (live, now) = (warp.live, self.now);
                self.publications.publish(place, &warp.order, lane, live, how, reads, now);
            }
        }
        if release {
            self.tick();
        }
    }
}

/// Sets a race of a read with atomics aside; another one proves the first.
#[cold]
#[inline(never)]
pub(crate) fn suspect(
    warp: &mut Warp,
    (space, window): (Space, u64),
    offsets: &[u64; 32],
    fault: Box<Fault>,
    pc: usize,
) -> Outcome {
    let guess = fault.check == Check::Race
        && fault.other.is_some_and(|other| other.strong && other.wrote)
        && warp.suspect.is_none();
    if !guess {
        return Err(fault);
    }
    let lanes = fault.lanes;
    let offsets = *offsets;
    warp.suspect = Some(Box::new(Suspect { pc, lanes, space, window, offsets, fault }));
    Ok(())
}

/// Lanes that update what they read atomically were guessing.
#[inline(always)]
pub(crate) fn excuse(warp: &mut Warp, place: (Space, u64), offsets: &[u64; 32], mask: u32) {
    let Some(suspect) = &mut warp.suspect else { return };
    if (suspect.space, suspect.window) == place {
        let same = lanes_where(mask, |lane| suspect.offsets[lane] == offsets[lane]);
        suspect.lanes &= !same;
    }
    if suspect.lanes == 0 {
        warp.suspect = None;
    }
}

/// The reach of a strong access.
pub(crate) fn scope(order: u8) -> Scope {
    if order & DEVICE_SCOPE != 0 { Scope::Device } else { Scope::Block }
}

/// One byte of what a lane stores.
fn stored_byte(registers: &Registers, op: &Op, lane: usize, byte: usize) -> u8 {
    let slot = op.s[1 + byte / usize::from(op.size)];
    let within = byte % usize::from(op.size);
    if op.flags & WIDE_DATA != 0 {
        registers.read::<u64>(slot)[lane].to_le_bytes()[within]
    } else {
        registers.read::<u32>(slot)[lane].to_le_bytes()[within & 3]
    }
}
