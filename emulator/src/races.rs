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
//! not order each other. A write of an asynchronous copy that has not been waited for has the
//! epoch `IN_FLIGHT`, which is never ordered before anything.
//!
//! Two stores of the same value race harmlessly and are not reported.

use crate::order::{ALL, Epoch, Party, Scope, WarpOrder};
use crate::registers::FULL;
use std::collections::BTreeSet;

mod page;

pub(crate) use page::Lists;
use page::{LANE_OF, Page};

/// Bytes of memory that one page of cells covers.
const PAGE: usize = 1024;

/// The epoch of an asynchronous write that has not been waited for.
const IN_FLIGHT: Epoch = Epoch::MAX;
/// The epoch of reads that are kept in a list; the tag is its number.
const LISTED: Epoch = Epoch::MAX - 1;

// A tag: lane (all of them: bit 5; some, which the cell lists: and bit 0), warp, kind of access,
// instruction.
const LANES: u32 = 1 << 5;
const SOME: u32 = LANES | 1;
const WARP_SHIFT: u32 = 6;
const STRONG: u32 = 1 << 11;
const IN_BLOCK: u32 = 1 << 12;
/// The last read is that of several warps, which the cell lists.
const WARPS: u32 = 1 << 14;
const PLACE_SHIFT: u32 = 15;
const LANE: u32 = 0x3f;
const WARP: u32 = 0x1f << WARP_SHIFT;
/// What must agree for two accesses to be of one thread, in program order.
const THREAD: u32 = LANE | WARP | STRONG | WARPS;
/// What must agree for two accesses to be of one warp.
const SAME_WARP: u32 = WARP | STRONG | WARPS;
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
    /// An asynchronous copy's write, when it is issued.
    CopyWrite,
}

impl Kind {
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::StrongWrite(_) | Self::Atomic(_) | Self::CopyWrite)
    }

    /// Neither strong nor through the path that is not coherent.
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
            Self::CopyWrite => "asynchronous write",
        }
    }

    fn bits(self) -> u32 {
        let scoped = |scope| STRONG | if scope == Scope::Block { IN_BLOCK } else { 0 };
        match self {
            Self::Read | Self::ConstantRead | Self::Write | Self::CopyWrite => 0,
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
    pub lanes: u32,
    pub wrote: bool,
    pub strong: bool,
    pub in_flight: bool,
    /// First byte, from the start of the memory.
    pub offset: usize,
}

impl Other {
    /// What it did.
    pub(crate) fn action(&self) -> &'static str {
        match (self.in_flight, self.strong, self.wrote) {
            (true, ..) => "asynchronous copy",
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
            if warp == order.warp && (epoch <= order.warp_floor || lanes == 1 << lane) {
                return true;
            }
        }
        let clock = &order.of(lane).clock;
        if lanes == FULL && clock.covers(Party { block, warp, lane: ALL }, epoch) {
            return true;
        }
        let same = block == order.block && warp == order.warp;
        (0..32u8)
            .filter(|other| lanes >> other & 1 != 0 && !(same && usize::from(*other) == lane))
            .all(|lane| clock.covers(Party { block, warp, lane }, epoch))
    }

    /// Strong accesses whose scopes include both threads do not race.
    fn both_strong(&self, block: u32, tag: u32) -> bool {
        let bits = self.kind.bits();
        bits & tag & STRONG != 0 && (block == self.order.block || (bits | tag) & IN_BLOCK == 0)
    }
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
        if !access.order.uniform() || !start.is_multiple_of(width.min(4)) {
            return false;
        }
        // Every page must agree before any is changed.
        for change in [false, true] {
            let mut at = start;
            while at < end {
                let to = end.min((at / PAGE + 1) * PAGE);
                let page = self.page(at, width, lists);
                let per_lane = width >> page.shift;
                if !per_lane.is_power_of_two() || per_lane > 4 {
                    return false;
                }
                let first = (at % PAGE) >> page.shift;
                let count = (to - at) >> page.shift;
                let skip = (at - start) >> page.shift;
                let lane = &LANE_OF[per_lane.trailing_zeros() as usize][skip..skip + count];
                if change {
                    page.record(first, lane, access);
                } else if !page.agrees(first, lane, access) {
                    return false;
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
            left &= left - 1;
            let lanes = if together { FULL } else { 1 << lane };
            let start = offsets[lane] as usize;
            let mut at = start;
            while at < start + width {
                let page = self.page(at, width, lists);
                let cell = (at % PAGE) >> page.shift;
                let size = 1 << page.shift;
                if !together && page.at_once(cell, lane, access) {
                    at += size;
                    continue;
                }
                if let Err(other) = page.touch(cell, lane, lanes, access, lists) {
                    let other = Other { offset: at, ..other };
                    let same = (other.place == Some(access.pc)
                        && other.block == access.order.block
                        && other.warp == u32::from(access.order.warp))
                    .then_some(other.lanes);
                    let plain = access.kind == Kind::Write && other.wrote && !other.in_flight;
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
            if page.write[cell] == IN_FLIGHT && page.writer[cell] & (WARP | LANE) == own {
                page.write[cell] = now;
            }
            at += 1 << page.shift;
        }
    }

    /// Copies that were never waited for end with their block.
    pub(crate) fn forget_flights(&mut self) {
        for page in self.pages.iter_mut().flatten() {
            for epoch in &mut page.write {
                if *epoch == IN_FLIGHT {
                    *epoch = 0;
                }
            }
        }
    }
}
