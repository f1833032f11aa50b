//! Races: for every byte, who wrote it last and who has read it since, and whether that is ordered
//! before the access at hand.
//!
//! A cell holds the last write and the last read of four bytes, or of one in pages that smaller
//! accesses have touched: an epoch and a tag each (`order` explains epochs). Most accesses of a
//! warp are ordered after what they find by a barrier, or repeat what the same thread did; that is
//! seen for all lanes at once by comparing epochs. The rest is looked up in vector clocks.
//!
//! Reads that are not ordered among themselves are all remembered, in lists beside the cells, so
//! that a write must be ordered after each of them. Atomics stand in these lists too, as they do
//! not order each other. An asynchronous access that has not been waited for has the epoch
//! `IN_FLIGHT`, which is never ordered before anything. Those that no thread makes (bulk copies,
//! `wgmma`) belong to an agent, which is ordered before the threads that waited for it only.
//!
//! Two stores of the same value race harmlessly and are not reported.

use crate::order::{ALL, Epoch, Party, Scope, WarpOrder};
use crate::registers::FULL;
use std::collections::BTreeSet;
use std::ops::Range;

mod page;

pub(crate) use page::Lists;
use page::Page;

/// Bytes of memory that one page of cells covers.
const PAGE: usize = 1024;

/// The epoch of an asynchronous write that has not been waited for.
const IN_FLIGHT: Epoch = Epoch::MAX;
/// The epoch of reads that are kept in a list; the tag is its number.
const LISTED: Epoch = Epoch::MAX - 1;

// A tag: lane (all of them: bit 5; some, which the cell lists: and bit 0) or number of an agent,
// warp, kind of access, instruction.
const LANES: u32 = 1 << 5;
const SOME: u32 = LANES | 1;
const WARP_SHIFT: u32 = 6;
const STRONG: u32 = 1 << 11;
const IN_BLOCK: u32 = 1 << 12;
/// It is an agent's.
const AGENT: u32 = 1 << 13;
/// The last read is that of several warps, which the cell lists.
const WARPS: u32 = 1 << 14;
const PLACE_SHIFT: u32 = 15;
const LANE: u32 = 0x3f;
const WARP: u32 = 0x1f << WARP_SHIFT;
/// What must agree for two accesses to be of one thread, in program order.
const THREAD: u32 = LANE | WARP | STRONG | AGENT | WARPS;
/// What must agree for two accesses to be of one warp.
const SAME_WARP: u32 = WARP | STRONG | AGENT | WARPS;
const MOST_PLACES: usize = (1 << (32 - PLACE_SHIFT)) - 1;

/// Unordered reads and atomics that are remembered for one cell; the oldest are forgotten.
const MOST_LISTED: usize = 32;

/// What kind of access it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    /// A read through the path that is not coherent: what it reads may not be written by the
    /// launch at all.
    ConstantRead,
    Write,
    /// A strong read or write, or an atomic, with its scope.
    StrongRead(Scope),
    StrongWrite(Scope),
    Atomic(Scope),
    /// The write of a `cp.async`, when it is issued.
    CopyWrite,
    /// What the agent with this number reads and writes from when a bulk copy or a `wgmma` is issued.
    AgentRead(u8),
    AgentWrite(u8),
}

impl Kind {
    pub(crate) fn writes(self) -> bool {
        match self {
            Self::Write | Self::StrongWrite(_) | Self::Atomic(_) => true,
            Self::CopyWrite | Self::AgentWrite(_) => true,
            Self::Read | Self::ConstantRead | Self::StrongRead(_) | Self::AgentRead(_) => false,
        }
    }

    /// Neither strong, nor through the path that is not coherent, nor an agent's.
    pub(crate) fn plain(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::CopyWrite)
    }

    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Read | Self::ConstantRead => "read",
            Self::Write => "write",
            Self::StrongRead(_) => "volatile or relaxed read",
            Self::StrongWrite(_) => "volatile or relaxed write",
            Self::Atomic(_) => "atomic update",
            Self::CopyWrite | Self::AgentWrite(_) => "asynchronous write",
            Self::AgentRead(_) => "asynchronous read",
        }
    }

    /// It lasts until it is waited for.
    pub(crate) fn asynchronous(self) -> bool {
        matches!(self, Self::CopyWrite | Self::AgentRead(_) | Self::AgentWrite(_))
    }

    fn agent(self) -> Option<u8> {
        match self {
            Self::AgentRead(number) | Self::AgentWrite(number) => Some(number & 31),
            _ => None,
        }
    }

    fn bits(self) -> u32 {
        let scoped = |scope| STRONG | if scope == Scope::Block { IN_BLOCK } else { 0 };
        match self {
            Self::Read | Self::ConstantRead | Self::Write | Self::CopyWrite => 0,
            Self::AgentRead(_) | Self::AgentWrite(_) => AGENT,
            Self::StrongRead(scope) | Self::StrongWrite(scope) | Self::Atomic(scope) => {
                scoped(scope)
            }
        }
    }
}

/// The cells of one piece of memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cells {
    pages: Vec<Option<Box<Page>>>,
    /// Keeps blocks apart.
    blocks: bool,
    /// The launch that wrote it last has reached this epoch; 0 where none has.
    pub written: Epoch,
}

/// The other access of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Other {
    /// Its instruction, or `None` in a kernel of more instructions than tags can name.
    pub place: Option<usize>,
    pub block: u32,
    pub warp: u32,
    /// None where it is not a thread's.
    pub lanes: u32,
    pub wrote: bool,
    pub strong: bool,
    /// It has not been waited for.
    pub in_flight: bool,
    /// It is an agent's.
    pub agent: bool,
    /// It is ordered before, but no fence of the asynchronous proxy lies between.
    pub unfenced: bool,
    /// First byte, from the start of the memory.
    pub offset: usize,
}

impl Other {
    /// What it did.
    pub(crate) fn action(&self) -> &'static str {
        match (self.in_flight || self.agent, self.strong, self.wrote) {
            (true, _, true) => "asynchronous copy",
            (true, _, false) => "asynchronous read",
            (_, true, true) => "atomic or strong write",
            (_, true, false) => "strong read",
            (_, false, true) => "write",
            (_, false, false) => "read",
        }
    }
}

/// Who makes an access, and when.
pub(crate) struct Access<'a> {
    pub order: &'a WarpOrder,
    pub now: Epoch,
    /// Epoch at the start of the launch: older accesses are ordered before everything.
    pub launch: Epoch,
    pub pc: usize,
    pub kind: Kind,
    /// Warps of a block are ordered by barriers of the whole block only, so that reads of several
    /// between two of them need not be told apart.
    pub whole_barriers: bool,
}

impl Access<'_> {
    /// The tag without a lane.
    fn tag(&self) -> u32 {
        let place = self.pc.min(MOST_PLACES) as u32;
        u32::from(self.order.warp) << WARP_SHIFT | self.kind.bits() | place << PLACE_SHIFT
    }

    /// When it is over, as far as is known.
    fn epoch(&self) -> Epoch {
        if self.kind.asynchronous() { IN_FLIGHT } else { self.now }
    }

    /// The lanes, or the number of the agent as one, that its cell gets.
    fn whose(&self, lanes: u32) -> u32 {
        self.kind.agent().map_or(lanes, |number| 1 << number)
    }

    /// Whether what `lanes` of a warp did in an epoch is ordered before what `lane` does now.
    fn ordered(&self, lane: usize, block: u32, tag: u32, lanes: u32, epoch: Epoch) -> bool {
        if epoch <= self.launch {
            return true;
        }
        if epoch == IN_FLIGHT {
            return false;
        }
        let order = self.order;
        let warp = ((tag & WARP) >> WARP_SHIFT) as u8;
        if block == order.block {
            if epoch <= order.block_floor {
                return true;
            }
            let own = warp == order.warp && tag & AGENT == 0;
            if own && (epoch <= order.warp_floor || lanes == 1 << lane) {
                return true;
            }
        }
        let clock = &order.of(lane).clock;
        if tag & AGENT != 0 {
            return clock.covers(agent(block, warp, lanes.trailing_zeros() as u8), epoch);
        }
        if lanes == FULL && clock.covers(Party { block, warp, lane: ALL }, epoch) {
            return true;
        }
        let same = block == order.block && warp == order.warp;
        (0..32u8)
            .filter(|other| lanes >> other & 1 != 0 && !(same && usize::from(*other) == lane))
            .all(|lane| clock.covers(Party { block, warp, lane }, epoch))
    }

    /// Whether a fence of the asynchronous proxy lies between what a thread wrote, which is ordered
    /// before, and what `lane` starts now.
    fn fenced(&self, lane: usize, block: u32, tag: u32, epoch: Epoch) -> bool {
        let old = epoch <= self.launch || epoch <= self.order.started;
        let lane_of = match lanes_of(tag) {
            FULL => ALL,
            one => one.trailing_zeros() as u8,
        };
        let warp = ((tag & WARP) >> WARP_SHIFT) as u8;
        let party = Party { block, warp, lane: lane_of };
        old || tag & AGENT != 0 || self.order.of(lane).fenced.covers(party, epoch)
    }

    /// Strong accesses whose scopes include both threads do not race.
    fn both_strong(&self, block: u32, tag: u32) -> bool {
        let bits = self.kind.bits();
        bits & tag & STRONG != 0 && (block == self.order.block || (bits | tag) & IN_BLOCK == 0)
    }
}

/// The agent of a warp with a number.
pub(crate) fn agent(block: u32, warp: u8, number: u8) -> Party {
    Party { block, warp: 0x80 | warp, lane: number & 31 }
}

fn lanes_of(tag: u32) -> u32 {
    if tag & LANES != 0 { FULL } else { 1 << (tag & 31) }
}

impl Cells {
    pub(crate) fn new(bytes: usize, blocks: bool) -> Self {
        Self { pages: vec![None; bytes.div_ceil(PAGE)], blocks, written: 0 }
    }

    /// The page of an offset, with cells fine enough for `width`.
    #[inline(always)]
    fn page(&mut self, offset: usize, width: usize, lists: &mut Lists) -> &mut Page {
        let blocks = self.blocks;
        let page = self.pages[offset / PAGE]
            .get_or_insert_with(|| Box::new(Page::new(if width < 4 { 0 } else { 2 }, blocks)));
        if width < 4 && page.shift != 0 {
            page.split(lists);
        }
        page
    }

    /// All 32 lanes access `width` bytes each, one after the other. Says whether that was
    /// recorded; if not, nothing was.
    #[inline(always)]
    pub(crate) fn contiguous(
        &mut self,
        start: usize,
        width: usize,
        access: &Access<'_>,
        lists: &mut Lists,
    ) -> bool {
        let end = start + 32 * width;
        let blocks = self.blocks;
        if !access.order.uniform() || !start.is_multiple_of(width.min(4)) {
            return false;
        }
        let mut joins = false;
        // Every page must agree before any is changed.
        for change in [false, true] {
            let mut at = start;
            while at < end {
                let to = end.min((at / PAGE + 1) * PAGE);
                let page = self.page(at, width, lists);
                let Some((first, lane)) = page.cells_of(start, width, at..to) else {
                    return false;
                };
                match (change, joins) {
                    (true, false) => page.record(first, lane, access),
                    (true, true) => page.join(first, lane, access),
                    (false, false) if page.agrees(first, lane, access) => {}
                    _ => {
                        joins = access.kind == Kind::Read && access.whole_barriers && !blocks;
                        if !joins || !page.may_join(first, lane, access) {
                            return false;
                        }
                    }
                }
                at = to;
            }
        }
        true
    }

    /// The lanes of a mask access `width` bytes each, at any offsets.
    ///
    /// `harmless` is asked whether a lane stores what is there, or what another lane stores.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn scattered(
        &mut self,
        offsets: &[u64; 32],
        mask: u32,
        uniform: bool,
        width: usize,
        access: &Access<'_>,
        lists: &mut Lists,
        mut harmless: impl FnMut(usize, usize, Option<u32>) -> bool,
    ) -> Result<(), (u32, Other)> {
        // One address for the whole warp is one access of all its lanes.
        let together = uniform && mask == FULL && !access.kind.writes() && access.order.uniform();
        let mut left = if together { 1 } else { mask };
        let mut first: Option<(u32, Other)> = None;
        'lanes: while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let lanes = if together { FULL } else { 1 << lane };
            let start = offsets[lane] as usize;
            // Neighbours that read one address do so together.
            if !access.kind.writes() {
                let twins = (lane + 1..32)
                    .take_while(|&twin| left >> twin & 1 != 0 && offsets[twin] == offsets[lane])
                    .fold(1 << lane, |lanes, twin| lanes | 1 << twin);
                if twins != 1 << lane && self.all_at_once(start, width, twins, access, lists) {
                    left &= !twins;
                    continue;
                }
            }
            left &= left - 1;
            let mut at = start;
            while at < start + width {
                let page = self.page(at, width, lists);
                let cell = (at % PAGE) >> page.shift;
                let size = 1 << page.shift;
                if !together && page.at_once(cell, lanes, access) {
                    at += size;
                    continue;
                }
                if let Err(other) = page.touch(cell, lane, lanes, access, lists) {
                    let other = Other { offset: at, ..other };
                    let same = (other.place == Some(access.pc)
                        && other.block == access.order.block
                        && other.warp == u32::from(access.order.warp))
                    .then_some(other.lanes);
                    let done = other.wrote && !other.in_flight && !other.agent;
                    let plain = access.kind == Kind::Write && done;
                    if !plain || !harmless(lane, at, same) {
                        // The other lanes that meet the same fault are named with it.
                        match &mut first {
                            Some((all, _)) => *all |= lanes,
                            None => first = Some((lanes, other)),
                        }
                        continue 'lanes;
                    }
                    page.replace(cell, lanes, access, lists);
                }
                at += size;
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Lanes read the same bytes. Says whether all of it was recorded the quick way; if not, it may
    /// be recorded again.
    fn all_at_once(
        &mut self,
        start: usize,
        width: usize,
        lanes: u32,
        access: &Access<'_>,
        lists: &mut Lists,
    ) -> bool {
        let mut at = start;
        while at < start + width {
            let page = self.page(at, width, lists);
            if !page.at_once((at % PAGE) >> page.shift, lanes, access) {
                return false;
            }
            at += 1 << page.shift;
        }
        true
    }

    /// A whole warp together accesses one row of bytes.
    pub(crate) fn row(
        &mut self,
        start: usize,
        width: usize,
        access: &Access<'_>,
        lists: &mut Lists,
    ) -> Result<(), (u32, Other)> {
        let mut at = start;
        while at < start + width {
            let page = self.page(at, width, lists);
            let cell = (at % PAGE) >> page.shift;
            if let Err(other) = page.touch(cell, 0, FULL, access, lists) {
                return Err((FULL, Other { offset: at, ..other }));
            }
            at += 1 << page.shift;
        }
        Ok(())
    }

    /// One lane starts an asynchronous access to a range. If it does not `keep` it, it only makes
    /// sure that the writes before are ordered.
    pub(crate) fn range(
        &mut self,
        range: Range<usize>,
        lane: usize,
        keep: bool,
        access: &Access<'_>,
        lists: &mut Lists,
    ) -> Result<(), (u32, Other)> {
        let mut at = range.start;
        while at < range.end {
            let page = self.page(at, if (range.end - at) < 4 { 1 } else { 4 }, lists);
            let cell = (at % PAGE) >> page.shift;
            let outcome = if keep {
                page.touch(cell, lane, 1 << lane, access, lists)
            } else {
                page.after_write(cell, lane, 1 << lane, access)
            };
            outcome.map_err(|other| (1 << lane, Other { offset: at, ..other }))?;
            at += 1 << page.shift;
        }
        Ok(())
    }

    /// An agent has done one access to a range: whoever learns of this epoch comes after it.
    pub(crate) fn complete(
        &mut self,
        range: Range<usize>,
        (warp, number): (u8, u8),
        wrote: bool,
        now: Epoch,
        lists: &mut Lists,
    ) {
        let own = u32::from(warp) << WARP_SHIFT | AGENT;
        let mut at = range.start;
        while at < range.end {
            let Some(page) = self.pages[at / PAGE].as_mut() else { return };
            page.complete((at % PAGE) >> page.shift, own, number & 31, wrote, now, lists);
            at += 1 << page.shift;
        }
    }

    /// Every instruction that has last written some byte, with the epoch in which it did.
    pub(crate) fn writers(&self) -> BTreeSet<(Epoch, usize)> {
        self.pages.iter().flatten().flat_map(|page| page.writers()).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// An asynchronous write of one lane lands: from now on it is a write of its thread.
    pub(crate) fn land(&mut self, start: usize, width: usize, thread: (u8, usize), now: Epoch) {
        let own = u32::from(thread.0) << WARP_SHIFT | thread.1 as u32;
        let mut at = start;
        while at < start + width {
            let Some(page) = self.pages[at / PAGE].as_mut() else { return };
            let cell = (at % PAGE) >> page.shift;
            if page.write[cell] == IN_FLIGHT && page.writer[cell] & (WARP | LANE | AGENT) == own {
                page.write[cell] = now;
            }
            at += 1 << page.shift;
        }
    }

    /// The same for all lanes of a warp, which wrote `width` bytes each, one after the other.
    #[inline(always)]
    pub(crate) fn land_contiguous(&mut self, start: usize, width: usize, warp: u8, now: Epoch) {
        let end = start + 32 * width;
        let mut at = start;
        while at < end {
            let to = end.min((at / PAGE + 1) * PAGE);
            if let Some(page) = self.pages[at / PAGE].as_mut() {
                if let Some((first, lane)) = page.cells_of(start, width, at..to) {
                    page.land(first, lane, warp, now);
                } else {
                    (at..to).step_by(width).for_each(|at| {
                        self.land(at, width, (warp, (at - start) / width), now);
                    });
                }
            }
            at = to;
        }
    }

    /// What was never waited for ends with its block.
    pub(crate) fn forget_flights(&mut self) {
        for page in self.pages.iter_mut().flatten() {
            for epoch in page.write.iter_mut().chain(&mut page.read) {
                if *epoch == IN_FLIGHT {
                    *epoch = 0;
                }
            }
        }
    }
}
