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
const ASYNC: u32 = 1 << 13;
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
            Self::Read | Self::ConstantRead | Self::Write => 0,
            Self::StrongRead(scope) | Self::StrongWrite(scope) | Self::Atomic(scope) => {
                scoped(scope)
            }
            Self::CopyWrite => ASYNC,
        }
    }
}

/// The cells of one page.
#[derive(Clone, Debug)]
struct Page {
    /// log2 of the bytes of a cell: 2 or 0.
    shift: u32,
    write: Box<[Epoch]>,
    writer: Box<[u32]>,
    read: Box<[Epoch]>,
    reader: Box<[u32]>,
    /// Lanes of the last read, where there are some.
    lanes: Box<[u32]>,
    /// Blocks of the last write and read; empty for shared memory, which has one.
    write_block: Box<[u32]>,
    read_block: Box<[u32]>,
}

impl Page {
    fn new(shift: u32, blocks: bool) -> Self {
        let cells = || vec![0; PAGE >> shift].into_boxed_slice();
        let of_blocks = || if blocks { cells() } else { Box::default() };
        Self {
            shift,
            write: cells(),
            writer: cells(),
            read: cells(),
            reader: cells(),
            lanes: cells(),
            write_block: of_blocks(),
            read_block: of_blocks(),
        }
    }

    /// Cells of one byte, each with what the cell of four knew.
    fn split(&mut self, lists: &mut Lists) {
        let finer = |coarse: &[u32]| coarse.iter().flat_map(|&value| [value; 4]).collect();
        self.write = finer(&self.write);
        self.writer = finer(&self.writer);
        self.read = finer(&self.read);
        self.reader = finer(&self.reader);
        self.lanes = finer(&self.lanes);
        self.write_block = finer(&self.write_block);
        self.read_block = finer(&self.read_block);
        self.shift = 0;
        // A list belongs to one cell.
        for cell in 0..PAGE {
            if self.read[cell] == LISTED && !lists.has(self.reader[cell]) {
                self.read[cell] = 0;
            } else if cell % 4 != 0 && self.read[cell] == LISTED {
                self.reader[cell] = lists.copy(self.reader[cell]);
            }
        }
    }
}

/// One entry of a list of reads and atomics.
#[derive(Clone, Copy, Debug)]
struct Entry {
    block: u32,
    epoch: Epoch,
    /// Lanes of the warp.
    lanes: u32,
    /// Tag without its lane.
    tag: u32,
    /// It also wrote.
    wrote: bool,
}

/// Lists of reads of one launch, reused. Numbers of earlier launches, which cells still hold, are
/// below the first.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    first: u32,
    lists: Vec<Vec<Entry>>,
    free: Vec<u32>,
}

impl Lists {
    pub(crate) fn new(first: u32) -> Self {
        Self { first, ..Self::default() }
    }

    /// The first number of the next launch.
    pub(crate) fn end(&self) -> u32 {
        self.first + self.lists.len() as u32
    }

    fn has(&self, list: u32) -> bool {
        list >= self.first
    }

    fn at(&mut self, list: u32) -> &mut Vec<Entry> {
        &mut self.lists[(list - self.first) as usize]
    }

    fn make(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.lists.push(Vec::new());
            self.end() - 1
        })
    }

    fn copy(&mut self, from: u32) -> u32 {
        let to = self.make();
        *self.at(to) = self.at(from).clone();
        to
    }

    fn release(&mut self, list: u32) {
        self.at(list).clear();
        self.free.push(list);
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
    pub asynchronous: bool,
    pub strong: bool,
    pub in_flight: bool,
    /// First byte, from the start of the memory.
    pub offset: usize,
}

impl Other {
    /// What it did.
    pub(crate) fn action(&self) -> &'static str {
        match (self.asynchronous, self.strong, self.wrote) {
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

/// Lane of each cell of a warp's contiguous access, for 1, 2 and 4 cells a lane.
static LANE_OF: [[u32; 128]; 3] = {
    let mut out = [[0; 128]; 3];
    let mut shift = 0;
    while shift < 3 {
        let mut cell = 0;
        while cell < 128 {
            out[shift][cell] = (cell as u32 >> shift) & 31;
            cell += 1;
        }
        shift += 1;
    }
    out
};

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
                    let plain = access.kind == Kind::Write && other.wrote && !other.asynchronous;
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

    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// An asynchronous write of one lane lands: from now on it is a write of its thread.
    pub(crate) fn land(&mut self, start: usize, width: usize, lane: usize, access: &Access<'_>) {
        let mut at = start;
        while at < start + width {
            let Some(page) = self.pages[at / PAGE].as_mut() else { return };
            let cell = (at % PAGE) >> page.shift;
            let writer = page.writer[cell];
            let own = u32::from(access.order.warp) << WARP_SHIFT | lane as u32;
            if page.write[cell] == IN_FLIGHT && writer & (WARP | LANE) == own {
                page.write[cell] = access.now;
                page.writer[cell] = writer & !ASYNC;
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

impl Page {
    /// Whether an access to neighbouring cells is ordered after everything that they hold, by the
    /// block's or the warp's order or because the same threads did it.
    #[inline(always)]
    fn agrees(&self, first: usize, lane: &[u32], access: &Access<'_>) -> bool {
        let range = first..first + lane.len();
        let tag = access.tag();
        let writes = access.kind.writes();
        let order = access.order;
        let floors = (access.launch, order.block_floor, order.warp_floor);
        let mut fine = one_side(
            &self.write[range.clone()],
            &self.writer[range.clone()],
            self.write_block.get(range.clone()),
            lane,
            tag,
            order.block,
            floors,
        );
        // A read replaces the last one where that is ordered before it; a write must be ordered
        // after it.
        fine &= one_side(
            &self.read[range.clone()],
            &self.reader[range.clone()],
            self.read_block.get(range),
            lane,
            tag,
            order.block,
            floors,
        );
        let _ = writes;
        fine
    }

    #[inline(always)]
    fn record(&mut self, first: usize, lane: &[u32], access: &Access<'_>) {
        let range = first..first + lane.len();
        let tag = access.tag();
        let (epochs, tags, blocks) = if access.kind.writes() {
            self.read[range.clone()].fill(0);
            (&mut self.write, &mut self.writer, &mut self.write_block)
        } else {
            (&mut self.read, &mut self.reader, &mut self.read_block)
        };
        let epoch = if access.kind == Kind::CopyWrite { IN_FLIGHT } else { access.now };
        epochs[range.clone()].fill(epoch);
        for (cell, lane) in tags[range.clone()].iter_mut().zip(lane) {
            *cell = tag | lane;
        }
        if let Some(blocks) = blocks.get_mut(range) {
            blocks.fill(access.order.block);
        }
    }

    /// Adds a warp to those that have read a cell of shared memory since the last barrier. Says
    /// whether it may.
    fn join_readers(&mut self, cell: usize, access: &Access<'_>) -> bool {
        let (epoch, theirs) = (self.read[cell], self.reader[cell]);
        let alone = self.read_block.is_empty();
        if !access.whole_barriers || !alone || epoch == LISTED || theirs & STRONG != 0 {
            return false;
        }
        let before = match theirs & WARPS {
            0 => 1 << ((theirs & WARP) >> WARP_SHIFT),
            _ => self.lanes[cell],
        };
        self.lanes[cell] = before | 1 << access.order.warp;
        self.reader[cell] = access.tag() | LANES | WARPS;
        true
    }

    /// Lanes of the last read.
    fn readers(&self, cell: usize) -> u32 {
        let tag = self.reader[cell];
        if tag & (LANE | WARPS) == SOME { self.lanes[cell] } else { lanes_of(tag) }
    }

    /// One plain access of one lane, where the order of its block or warp decides. Says whether it
    /// did, and was recorded.
    #[inline(always)]
    fn at_once(&mut self, cell: usize, lane: usize, access: &Access<'_>) -> bool {
        let order = access.order;
        let tag = access.tag() | lane as u32;
        let before = |epoch: Epoch, theirs: u32, blocks: &[u32]| {
            let own = blocks.get(cell).is_none_or(|&block| block == order.block);
            let same = theirs ^ tag;
            epoch <= access.launch
                || own
                    && (epoch <= order.block_floor
                        || same & THREAD == 0 && epoch < LISTED
                        || same & SAME_WARP == 0 && epoch <= order.warp_floor)
        };
        if !access.kind.plain() || !before(self.write[cell], self.writer[cell], &self.write_block) {
            return false;
        }
        let (epoch, theirs) = (self.read[cell], self.reader[cell]);
        let fine = before(epoch, theirs, &self.read_block);
        if access.kind.writes() {
            if fine {
                let epoch = if access.kind == Kind::CopyWrite { IN_FLIGHT } else { access.now };
                self.write[cell] = epoch;
                self.writer[cell] = tag;
                self.read[cell] = 0;
                if let Some(block) = self.write_block.get_mut(cell) {
                    *block = order.block;
                }
            }
            return fine;
        }
        let own = self.read_block.get(cell).is_none_or(|&block| block == order.block);
        if fine {
            self.reader[cell] = tag;
        } else if own && epoch == access.now && (theirs ^ tag) & SAME_WARP == 0 {
            // Several lanes read it between two synchronisations.
            self.lanes[cell] = self.readers(cell) | 1 << lane;
            self.reader[cell] = tag & !LANE | SOME;
        } else if !self.join_readers(cell, access) {
            return false;
        }
        self.read[cell] = access.now;
        if let Some(block) = self.read_block.get_mut(cell) {
            *block = order.block;
        }
        true
    }

    fn block_of(blocks: &[u32], cell: usize, own: u32) -> u32 {
        blocks.get(cell).copied().unwrap_or(own)
    }

    /// One access to one cell, by one lane or a whole warp.
    fn touch(
        &mut self,
        cell: usize,
        lane: usize,
        lanes: u32,
        access: &Access<'_>,
        lists: &mut Lists,
    ) -> Result<(), Other> {
        let own = access.order.block;
        let all = |block: u32, tag: u32, them: u32, epoch: Epoch| {
            if lanes == FULL {
                // All lanes know the same; what one of them did is not ordered for the others.
                let one = them.count_ones() == 1;
                let other = if one { (them.trailing_zeros() as usize + 1) % 32 } else { lane };
                access.ordered(other, block, tag, them, epoch)
            } else {
                access.ordered(lane, block, tag, them, epoch)
            }
        };
        let (epoch, tag) = (self.write[cell], self.writer[cell]);
        // Strong writes are in the list as well.
        if epoch != 0 && (tag & STRONG == 0 || access.kind == Kind::ConstantRead) {
            let block = Self::block_of(&self.write_block, cell, own);
            let them = lanes_of(tag);
            let fine = if access.kind == Kind::ConstantRead {
                epoch <= access.launch
            } else {
                access.both_strong(block, tag) || all(block, tag, them, epoch)
            };
            if !fine {
                return Err(other(block, tag, them, true, epoch));
            }
        }
        let strong = access.kind.bits() & STRONG != 0;
        if self.read[cell] == LISTED && !lists.has(self.reader[cell]) {
            self.read[cell] = 0;
        }
        match self.read[cell] {
            0 => {}
            LISTED => {
                // Shared memory that earlier blocks used holds their accesses too: what they did is
                // older than this block, whose first epoch is behind its floor.
                let shared = self.read_block.is_empty();
                let list = lists.at(self.reader[cell]);
                if access.kind == Kind::Read {
                    // Mostly the warp has read it before in this epoch, and nobody has written it.
                    let mine = |entry: &Entry| {
                        entry.epoch == access.now
                            && entry.lanes & lanes == lanes
                            && entry.block == own
                            && (entry.tag >> WARP_SHIFT) & 0x1f == u32::from(access.order.warp)
                    };
                    if list.iter().all(|entry| !entry.wrote) && list.iter().any(mine) {
                        return Ok(());
                    }
                }
                // A strong access saw the strong writes before it. Whoever is ordered after it
                // comes after these too, at this address.
                let mut seen = false;
                for entry in list.iter().rev() {
                    let entry = Entry { block: if shared { own } else { entry.block }, ..*entry };
                    let theirs = entry.tag & STRONG != 0;
                    let ordered = all(entry.block, entry.tag, entry.lanes, entry.epoch);
                    // Compare-and-swap loops read their first guess without an atomic.
                    let guess = matches!(access.kind, Kind::Atomic(_)) && !entry.wrote;
                    if !access.kind.writes() && !entry.wrote || guess || seen && theirs {
                        seen |= theirs && ordered;
                        continue;
                    }
                    seen |= theirs && ordered;
                    let fine = ordered || strong && access.both_strong(entry.block, entry.tag);
                    if !fine {
                        let Entry { block, tag, lanes, wrote, epoch } = entry;
                        return Err(other(block, tag, lanes, wrote, epoch));
                    }
                }
            }
            epoch if access.kind.writes() && !matches!(access.kind, Kind::Atomic(_)) => {
                let tag = self.reader[cell];
                let block = Self::block_of(&self.read_block, cell, own);
                if tag & WARPS != 0 {
                    let warps = (0..32u32).filter(|warp| self.lanes[cell] >> warp & 1 != 0);
                    let mut tags = warps.map(|warp| tag & !(WARP | WARPS) | warp << WARP_SHIFT);
                    if let Some(tag) = tags.find(|&tag| !all(block, tag, FULL, epoch)) {
                        return Err(other(block, tag, FULL, false, epoch));
                    }
                    self.replace(cell, lanes, access, lists);
                    return Ok(());
                }
                let them = self.readers(cell);
                if !(access.both_strong(block, tag) || all(block, tag, them, epoch)) {
                    return Err(other(block, tag, them, false, epoch));
                }
            }
            _ => {}
        }
        self.replace(cell, lanes, access, lists);
        Ok(())
    }

    /// Puts an access into its cell.
    fn replace(&mut self, cell: usize, lanes: u32, access: &Access<'_>, lists: &mut Lists) {
        let lane_bits = if lanes == FULL { LANES } else { lanes.trailing_zeros() };
        let tag = access.tag() | lane_bits;
        let own = access.order.block;
        let strong = access.kind.bits() & STRONG != 0;
        if access.kind.writes() {
            self.write[cell] = if access.kind == Kind::CopyWrite { IN_FLIGHT } else { access.now };
            self.writer[cell] = tag;
            if let Some(block) = self.write_block.get_mut(cell) {
                *block = own;
            }
            if !strong {
                // All earlier accesses are ordered before this one, which stands for them.
                if self.read[cell] == LISTED {
                    lists.release(self.reader[cell]);
                }
                self.read[cell] = 0;
                return;
            }
        }
        let entry = Entry {
            block: own,
            epoch: access.now,
            lanes,
            tag: access.tag(),
            wrote: access.kind.writes(),
        };
        if self.read[cell] != LISTED {
            let (epoch, before) = (self.read[cell], self.reader[cell]);
            let block = Self::block_of(&self.read_block, cell, own);
            let them = self.readers(cell);
            let mine = lanes.trailing_zeros() as usize;
            let one = before & WARPS == 0;
            let old = epoch == 0
                || one
                    && lanes.count_ones() == 1
                    && access.ordered(mine, block, before, them, epoch)
                || lanes == FULL
                    && (epoch <= access.launch
                        || block == own
                            && (epoch <= access.order.block_floor
                                || one && before & WARP == tag & WARP));
            if old && !strong {
                self.read[cell] = access.now;
                self.reader[cell] = tag;
                if let Some(block) = self.read_block.get_mut(cell) {
                    *block = own;
                }
                return;
            }
            if !old && access.kind == Kind::Read && self.join_readers(cell, access) {
                self.read[cell] = access.now;
                return;
            }
            let list = lists.make();
            if !old {
                let tag = before & !LANE;
                let entry = Entry { block, epoch, lanes: them, tag, wrote: false };
                lists.at(list).push(entry);
            }
            self.read[cell] = LISTED;
            self.reader[cell] = list;
        }
        let list = lists.at(self.reader[cell]);
        let same = |e: &Entry| {
            e.block == own && (e.tag ^ tag) & (WARP | STRONG) == 0 && e.wrote == entry.wrote
        };
        // Of one warp, the latest accesses are kept: of the same lanes, or all of one epoch.
        let mut entry = entry;
        let shared = self.read_block.is_empty();
        let floor = access.order.block_floor;
        list.retain(|e| {
            // This one stands for what is ordered before it.
            if e.epoch <= access.launch || (shared || e.block == own) && e.epoch <= floor {
                return false;
            }
            let merge = same(e) && (e.epoch == entry.epoch || e.lanes & !lanes == 0);
            if merge && e.epoch == entry.epoch {
                entry.lanes |= e.lanes;
            }
            !merge
        });
        if list.len() == MOST_LISTED {
            list.remove(0);
        }
        if list.is_empty() && !strong && lanes.count_ones() == 1 {
            lists.release(self.reader[cell]);
            self.read[cell] = access.now;
            self.reader[cell] = tag;
            if let Some(block) = self.read_block.get_mut(cell) {
                *block = own;
            }
            return;
        }
        list.push(entry);
    }
}

fn other(block: u32, tag: u32, lanes: u32, wrote: bool, epoch: Epoch) -> Other {
    let place = (tag >> PLACE_SHIFT) as usize;
    Other {
        place: (place < MOST_PLACES).then_some(place),
        block,
        warp: (tag & WARP) >> WARP_SHIFT,
        lanes,
        wrote,
        asynchronous: tag & ASYNC != 0,
        strong: tag & STRONG != 0,
        in_flight: epoch == IN_FLIGHT,
        offset: 0,
    }
}

/// Whether each of some cells was last touched early enough, or by the thread that touches it now.
#[inline(always)]
fn one_side(
    epochs: &[Epoch],
    tags: &[u32],
    blocks: Option<&[u32]>,
    lane: &[u32],
    tag: u32,
    block: u32,
    (launch, block_floor, warp_floor): (Epoch, Epoch, Epoch),
) -> bool {
    let count = lane.len();
    let mut bad = 0u32;
    let ordered = |cell: usize| {
        let (epoch, before) = (epochs[cell], tags[cell] ^ tag);
        (epoch <= block_floor)
            | ((before ^ lane[cell]) & THREAD == 0) & (epoch < LISTED)
            | (before & SAME_WARP == 0) & (epoch <= warp_floor)
    };
    match blocks {
        Some(blocks) if !blocks.is_empty() || count == 0 => {
            let blocks = &blocks[..count];
            for cell in 0..count {
                let own = blocks[cell] == block;
                bad |= u32::from(!((epochs[cell] <= launch) | (own & ordered(cell))));
            }
        }
        _ => {
            for cell in 0..count {
                bad |= u32::from(!ordered(cell));
            }
        }
    }
    bad == 0
}
