//! The cells of one page of memory, and the lists of reads beside them: what is recorded of an
//! access, and whether it agrees with what was recorded before. The quick ways, by the order of the
//! block and the warp alone, stand beside the exact one.
//!
//! The file is long because these ways must keep the same record.

use super::{
    AGENT, Access, IN_FLIGHT, Kind, LANE, LANES, LISTED, MOST_LISTED, MOST_PLACES, Other, PAGE,
    PLACE_SHIFT, SAME_WARP, SOME, STRONG, THREAD, WARP, WARP_SHIFT, WARPS, lanes_of,
};
use crate::order::Epoch;
use crate::registers::FULL;
use std::ops::Range;

/// The cells of one page.
#[derive(Clone, Debug)]
pub(super) struct Page {
    /// log2 of the bytes of a cell: 2 or 0.
    pub(super) shift: u32,
    pub(super) write: Box<[Epoch]>,
    pub(super) writer: Box<[u32]>,
    pub(super) read: Box<[Epoch]>,
    pub(super) reader: Box<[u32]>,
    /// Lanes of the last read, where there are some.
    pub(super) lanes: Box<[u32]>,
    /// Blocks of the last write and read; empty for shared memory, which has one.
    pub(super) write_block: Box<[u32]>,
    pub(super) read_block: Box<[u32]>,
}

impl Page {
    pub(super) fn new(shift: u32, blocks: bool) -> Self {
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

    /// Epoch and instruction of the last write of each cell that has one.
    pub(super) fn writers(&self) -> impl Iterator<Item = (Epoch, usize)> + '_ {
        let writes = self.write.iter().zip(&self.writer);
        writes
            .map(|(epoch, tag)| (*epoch, (tag >> PLACE_SHIFT) as usize))
            .filter(|&(epoch, place)| epoch != 0 && epoch != IN_FLIGHT && place != MOST_PLACES)
    }

    /// Cells of one byte, each with what the cell of four knew.
    pub(super) fn split(&mut self, lists: &mut Lists) {
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

impl Page {
    /// Of a warp's contiguous access, `width` bytes a lane from `start` on, the cells of a piece that
    /// lies in this page: the first one, and the lane of each. `None` where lanes do not have 1, 2 or
    /// 4 whole cells.
    #[inline(always)]
    pub(super) fn cells_of(
        &self,
        start: usize,
        width: usize,
        piece: Range<usize>,
    ) -> Option<(usize, &'static [u32])> {
        let per_lane = width >> self.shift;
        if !per_lane.is_power_of_two() || per_lane > 4 {
            return None;
        }
        let (skip, count) = ((piece.start - start) >> self.shift, piece.len() >> self.shift);
        let lane = &LANE_OF[per_lane.trailing_zeros() as usize][skip..skip + count];
        Some(((piece.start % PAGE) >> self.shift, lane))
    }

    /// Whether an access to neighbouring cells is ordered after everything that they hold, by the
    /// block's or the warp's order or because the same threads did it.
    #[inline(always)]
    pub(super) fn agrees(&self, first: usize, lane: &[u32], access: &Access<'_>) -> bool {
        let range = first..first + lane.len();
        let tag = access.tag();
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
        fine
    }

    #[inline(always)]
    pub(super) fn record(&mut self, first: usize, lane: &[u32], access: &Access<'_>) {
        let range = first..first + lane.len();
        let tag = access.tag();
        let (epochs, tags, blocks) = if access.kind.writes() {
            self.read[range.clone()].fill(0);
            (&mut self.write, &mut self.writer, &mut self.write_block)
        } else {
            (&mut self.read, &mut self.reader, &mut self.read_block)
        };
        epochs[range.clone()].fill(access.epoch());
        for (cell, lane) in tags[range.clone()].iter_mut().zip(lane) {
            *cell = tag | lane;
        }
        if let Some(blocks) = blocks.get_mut(range) {
            blocks.fill(access.order.block);
        }
    }

    /// Whether each of some neighbouring cells of shared memory may be read after what was written,
    /// beside what other warps have read since the last barrier.
    #[inline(always)]
    pub(super) fn may_join(&self, first: usize, lane: &[u32], access: &Access<'_>) -> bool {
        let range = first..first + lane.len();
        let (tag, order) = (access.tag(), access.order);
        let floors = (access.launch, order.block_floor, order.warp_floor);
        let (write, writer) = (&self.write[range.clone()], &self.writer[range.clone()]);
        if !one_side(write, writer, None, lane, tag, order.block, floors) {
            return false;
        }
        let (read, reader) = (&self.read[range.clone()], &self.reader[range]);
        let mut bad = 0u32;
        for cell in 0..lane.len() {
            let (epoch, theirs) = (read[cell], reader[cell]);
            let twin = (epoch == access.now) & ((theirs ^ tag) & SAME_WARP == 0);
            let joins = (epoch < LISTED) & (theirs & (STRONG | AGENT) == 0) & !twin;
            let ordered = in_order(epoch, theirs ^ tag, lane[cell], floors);
            bad |= u32::from(!(ordered | joins));
        }
        bad == 0
    }

    /// Adds the reads of a warp to neighbouring cells that it may join.
    #[inline(always)]
    pub(super) fn join(&mut self, first: usize, lane: &[u32], access: &Access<'_>) {
        let range = first..first + lane.len();
        let (tag, order) = (access.tag(), access.order);
        let floors = (access.launch, order.block_floor, order.warp_floor);
        let (read, reader) = (&mut self.read[range.clone()], &mut self.reader[range.clone()]);
        let lanes = &mut self.lanes[range];
        for cell in 0..lane.len() {
            let (epoch, theirs) = (read[cell], reader[cell]);
            let ordered = in_order(epoch, theirs ^ tag, lane[cell], floors);
            let one = 1 << ((theirs & WARP) >> WARP_SHIFT);
            let before = if theirs & WARPS == 0 { one } else { lanes[cell] };
            lanes[cell] = if ordered { lanes[cell] } else { before | 1 << order.warp };
            reader[cell] = if ordered { tag | lane[cell] } else { tag | LANES | WARPS };
            read[cell] = access.now;
        }
    }

    /// Asynchronous writes of the lanes of a warp land in neighbouring cells.
    #[inline(always)]
    pub(super) fn land(&mut self, first: usize, lane: &[u32], warp: u8, now: Epoch) {
        let own = u32::from(warp) << WARP_SHIFT;
        let cells = first..first + lane.len();
        let written = self.write[cells.clone()].iter_mut().zip(&self.writer[cells]);
        for ((epoch, writer), lane) in written.zip(lane) {
            let theirs = *epoch == IN_FLIGHT && writer & (WARP | LANE | AGENT) == own | lane;
            *epoch = if theirs { now } else { *epoch };
        }
    }

    /// Adds a warp to those that have read a cell of shared memory since the last barrier. Says
    /// whether it may.
    fn join_readers(&mut self, cell: usize, access: &Access<'_>) -> bool {
        let (epoch, theirs) = (self.read[cell], self.reader[cell]);
        let alone = self.read_block.is_empty();
        if !access.whole_barriers || !alone || epoch >= LISTED || theirs & (STRONG | AGENT) != 0 {
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

    /// One plain access of one lane, or a read of several, where the order of their block or warp
    /// decides. Says whether it did, and was recorded.
    #[inline(always)]
    pub(super) fn at_once(&mut self, cell: usize, lanes: u32, access: &Access<'_>) -> bool {
        let order = access.order;
        let one = lanes.is_power_of_two();
        let tag = access.tag() | if one { lanes.trailing_zeros() } else { SOME };
        let before = |epoch: Epoch, theirs: u32, blocks: &[u32]| {
            let own = blocks.get(cell).is_none_or(|&block| block == order.block);
            let same = theirs ^ tag;
            epoch <= access.launch
                || own
                    && (epoch <= order.block_floor
                        || one && same & THREAD == 0 && epoch < LISTED
                        || same & SAME_WARP == 0 && epoch <= order.warp_floor)
        };
        if !access.kind.plain() || !before(self.write[cell], self.writer[cell], &self.write_block) {
            return false;
        }
        let (epoch, theirs) = (self.read[cell], self.reader[cell]);
        let fine = before(epoch, theirs, &self.read_block);
        if access.kind.writes() {
            if fine {
                self.write[cell] = access.epoch();
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
            if !one {
                self.lanes[cell] = lanes;
            }
            self.reader[cell] = tag;
        } else if own && epoch == access.now && (theirs ^ tag) & SAME_WARP == 0 {
            // Several lanes read it between two synchronisations.
            self.lanes[cell] = self.readers(cell) | lanes;
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

    /// Whether an access by one lane or a whole warp is ordered after what some lanes did.
    fn after(
        access: &Access<'_>,
        (lane, lanes): (usize, u32),
        block: u32,
        tag: u32,
        them: u32,
        epoch: Epoch,
    ) -> bool {
        // All lanes know the same; what one of them did is not ordered for the others.
        let one = lanes == FULL && them.count_ones() == 1;
        let lane = if one { (them.trailing_zeros() as usize + 1) % 32 } else { lane };
        access.ordered(lane, block, tag, them, epoch)
    }

    /// Whether an access by one lane or a whole warp comes after the last write.
    pub(super) fn after_write(
        &self,
        cell: usize,
        lane: usize,
        lanes: u32,
        access: &Access<'_>,
    ) -> Result<(), Other> {
        let (epoch, tag) = (self.write[cell], self.writer[cell]);
        if epoch == 0 {
            return Ok(());
        }
        let block = Self::block_of(&self.write_block, cell, access.order.block);
        let them = lanes_of(tag);
        let fine = match access.kind {
            Kind::ConstantRead => epoch <= access.launch,
            // Strong writes are in the list as well.
            _ if tag & STRONG != 0 => true,
            _ => {
                access.both_strong(block, tag)
                    || Self::after(access, (lane, lanes), block, tag, them, epoch)
            }
        };
        if !fine {
            return Err(other(block, tag, them, true, epoch));
        }
        let shared = self.write_block.is_empty();
        let reads = matches!(access.kind, Kind::AgentRead(_));
        if shared && reads && !access.fenced(lane, block, tag, epoch) {
            return Err(Other { unfenced: true, ..other(block, tag, them, true, epoch) });
        }
        Ok(())
    }

    /// One access to one cell, by one lane or a whole warp.
    pub(super) fn touch(
        &mut self,
        cell: usize,
        lane: usize,
        lanes: u32,
        access: &Access<'_>,
        lists: &mut Lists,
    ) -> Result<(), Other> {
        let own = access.order.block;
        let all = |block: u32, tag: u32, them: u32, epoch: Epoch| {
            Self::after(access, (lane, lanes), block, tag, them, epoch)
        };
        self.after_write(cell, lane, lanes, access)?;
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
                            && (entry.tag ^ access.tag()) & SAME_WARP == 0
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
    pub(super) fn replace(
        &mut self,
        cell: usize,
        lanes: u32,
        access: &Access<'_>,
        lists: &mut Lists,
    ) {
        let whose = access.whose(lanes);
        let lane_bits = if whose == FULL { LANES } else { whose.trailing_zeros() };
        let tag = access.tag() | lane_bits;
        let own = access.order.block;
        let strong = access.kind.bits() & STRONG != 0;
        // An atomic does not stand for the plain write before it, which others must come after too.
        let (written, writer) = (self.write[cell], self.writer[cell]);
        let keep = access.kind.writes() && strong && writer & STRONG == 0;
        let plain = (keep && written > access.order.block_floor).then(|| Entry {
            block: Self::block_of(&self.write_block, cell, own),
            epoch: written,
            lanes: lanes_of(writer),
            tag: writer & !LANE,
            wrote: true,
        });
        if access.kind.writes() {
            self.write[cell] = access.epoch();
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
            epoch: access.epoch(),
            lanes: whose,
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
                                || one && before & (WARP | AGENT) == tag & WARP));
            if old && !strong {
                self.read[cell] = access.epoch();
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
        list.extend(plain);
        let same = |e: &Entry| {
            // Each access of an agent ends for itself.
            let whose = (e.tag ^ tag) & (WARP | STRONG | AGENT) | tag & AGENT;
            e.block == own && whose == 0 && e.wrote == entry.wrote
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

    /// An access of an agent is over; of several that read, the first.
    pub(super) fn complete(
        &mut self,
        cell: usize,
        warp: u32,
        number: u8,
        wrote: bool,
        now: Epoch,
        lists: &mut Lists,
    ) {
        let own = |tag: u32| tag & SAME_WARP == warp;
        if wrote {
            if self.write[cell] == IN_FLIGHT && own(self.writer[cell]) {
                self.write[cell] = now;
            }
        } else if self.read[cell] == IN_FLIGHT {
            if own(self.reader[cell]) && self.reader[cell] & LANE == u32::from(number) {
                self.read[cell] = now;
            }
        } else if self.read[cell] == LISTED && lists.has(self.reader[cell]) {
            let list = lists.at(self.reader[cell]);
            let reads = |e: &&mut Entry| {
                e.epoch == IN_FLIGHT && own(e.tag) && e.lanes == 1 << number && !e.wrote
            };
            if let Some(entry) = list.iter_mut().find(reads) {
                entry.epoch = now;
            }
        }
    }
}

fn other(block: u32, tag: u32, lanes: u32, wrote: bool, epoch: Epoch) -> Other {
    let place = (tag >> PLACE_SHIFT) as usize;
    Other {
        place: (place < MOST_PLACES).then_some(place),
        block,
        warp: (tag & WARP) >> WARP_SHIFT,
        lanes: if tag & AGENT != 0 { 0 } else { lanes },
        wrote,
        strong: tag & STRONG != 0,
        in_flight: epoch == IN_FLIGHT,
        agent: tag & AGENT != 0,
        unfenced: false,
        offset: 0,
    }
}

/// Whether an access of this block is early enough, by the floors of launch, block and warp, or of the
/// thread that makes one now. `same`: bits in which its tag differs from that of a lane 0.
#[inline(always)]
fn in_order(
    epoch: Epoch,
    same: u32,
    lane: u32,
    (_, block_floor, warp_floor): (Epoch, Epoch, Epoch),
) -> bool {
    (epoch <= block_floor)
        | ((same ^ lane) & THREAD == 0) & (epoch < LISTED)
        | (same & SAME_WARP == 0) & (epoch <= warp_floor)
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
    floors: (Epoch, Epoch, Epoch),
) -> bool {
    let launch = floors.0;
    let count = lane.len();
    let mut bad = 0u32;
    let ordered = |cell: usize| in_order(epochs[cell], tags[cell] ^ tag, lane[cell], floors);
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
