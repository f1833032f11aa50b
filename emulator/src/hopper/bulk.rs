//! Bulk copies (PTX ISA 9.7.9.25 to 9.7.9.27): `cp.async.bulk`, `cp.reduce.async.bulk`, their tensor
//! forms and prefetches. Each is issued by one thread, checked then, and moved when it lands. One file,
//! though long, so that issue and landing stand side by side.

use crate::access::{Outcome, describe_shared, lanes};
use crate::atomic;
use crate::findings::{Check, Fault};
use crate::hopper::tensor_map::{OutOfBoundsFill, Swizzle, TENSOR_MAP_BYTES, TensorMap};
use crate::machine::{Machine, Stopped, Warp};
use crate::memory::{PARAMETER_BASE, WINDOW_BITS, WINDOW_MASK};
use crate::op::Op;
use crate::order::Scope;
use crate::races::{Kind, agent};
use crate::syntax::Space;
use std::ops::Range;

/// What a bulk copy does, as `Op::d` holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bulk {
    pub kind: BulkKind,
    /// Dimensions of a tensor copy; 0 for a plain one.
    pub rank: u16,
    /// Operation of `atomic` and size of its elements, for a reduction.
    pub reduce: Option<(u8, u8)>,
}

/// Operands of all, in this order: the shared address, the global address or the tensor map (the
/// shared source, within shared memory), the mbarrier, and then the size or the coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum BulkKind {
    /// From global to shared memory, signals an mbarrier.
    Load,
    /// From shared to global memory, belongs to a bulk group.
    Store,
    /// From shared to shared memory, signals an mbarrier.
    Within,
    Prefetch,
}

impl Bulk {
    pub(crate) fn encode(self) -> [u16; 4] {
        let reduce =
            self.reduce.map_or(0, |(code, size)| 0x8000 | u16::from(code) << 8 | u16::from(size));
        [self.kind as u16, self.rank, reduce, 0]
    }

    fn decode([kind, rank, reduce, _]: [u16; 4]) -> Self {
        let kind = match kind {
            0 => BulkKind::Load,
            1 => BulkKind::Store,
            2 => BulkKind::Within,
            _ => BulkKind::Prefetch,
        };
        let parts = ((reduce >> 8 & 0x7f) as u8, reduce as u8);
        Self { kind, rank, reduce: (reduce & 0x8000 != 0).then_some(parts) }
    }
}

/// What a landing is announced to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    /// The tx-count of the mbarrier at this offset.
    Barrier(u32),
    /// The bulk group with this number of this thread.
    Group { thread: usize, number: u32 },
}

/// The other end of bytes in shared memory.
#[derive(Clone, Copy, Debug)]
enum End {
    Global {
        window: u64,
        offset: u64,
    },
    Shared(u32),
    Zero,
    /// NaN of elements of this many bytes.
    Nan(u64),
}

#[derive(Clone, Copy, Debug)]
struct Move {
    shared: u32,
    end: End,
    bytes: u32,
}

/// How far a copy has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    Issued,
    /// The bytes have been read and are yet to be written.
    Read(Vec<u8>),
    /// A schedule may let it land before anybody waits; a checked run keeps it until somebody does.
    Landed,
}

/// A copy between its issue and the first wait that sees it landed.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    warp: u32,
    lane: usize,
    pc: usize,
    /// Range of shared memory that it writes, or that it reads.
    start: u32,
    bytes: u32,
    writes: bool,
    signal: Signal,
    moves: Vec<Move>,
    reduce: Option<(u8, u8)>,
    progress: Progress,
    /// Phase of its mbarrier that it landed in.
    phase: u64,
    /// Its thread has waited until its sources were read.
    reads_waited_for: bool,
}

impl Flight {
    /// Whether it still writes into this range of shared memory.
    pub(crate) fn writes_shared(&self, offset: u64, bytes: u64) -> bool {
        let (start, end) = (u64::from(self.start), u64::from(self.start) + u64::from(self.bytes));
        self.writes && self.progress != Progress::Landed && offset < end && start < offset + bytes
    }

    /// Number of the agent of its warp that reads and writes for it: one for each thing that can be
    /// waited for.
    fn agent(&self) -> u8 {
        match self.signal {
            Signal::Barrier(at) => (at / 8) as u8 & 31,
            Signal::Group { thread, .. } => (thread % 32) as u8,
        }
    }

    /// Ranges of shared memory at this end of its moves.
    fn near(&self) -> impl Iterator<Item = Range<usize>> {
        self.moves.iter().map(|part| part.shared as usize..(part.shared + part.bytes) as usize)
    }

    /// Ranges of shared memory at the other end.
    fn far_shared(&self) -> impl Iterator<Item = Range<usize>> {
        self.moves.iter().filter_map(|part| match part.end {
            End::Shared(from) => Some(from as usize..(from + part.bytes) as usize),
            _ => None,
        })
    }

    /// Windows and ranges of global memory at the other end.
    fn far_global(&self) -> impl Iterator<Item = (u64, Range<usize>)> {
        self.moves.iter().filter_map(|part| match part.end {
            End::Global { window, offset } => {
                Some((window, offset as usize..offset as usize + part.bytes as usize))
            }
            _ => None,
        })
    }
}

impl Machine<'_> {
    /// The first moment of an asynchronous copy: from here on its memory must be left alone.
    fn issue<const CHECK: bool>(&mut self, warp: &Warp, mut flight: Flight) -> Outcome {
        if CHECK {
            self.occupy(warp, &flight)?;
            self.hopper.flew = true;
            if flight.writes {
                self.shared_shadow.unset_range(flight.start as usize, flight.bytes as usize);
            }
        }
        if self.hopper.lands_at_once() {
            self.land::<CHECK>(&mut flight)?;
        }
        if CHECK || flight.progress != Progress::Landed {
            self.hopper.flights.push(flight);
        }
        Ok(())
    }

    /// What a copy reads and writes must be ordered after what others did there.
    fn occupy(&mut self, warp: &Warp, flight: &Flight) -> Outcome {
        let (lane, pc, bytes) = (flight.lane, flight.pc, flight.bytes as usize);
        let (reads, writes) = (Kind::AgentRead(flight.agent()), Kind::AgentWrite(flight.agent()));
        let near = if flight.writes { writes } else { reads };
        let shared = (Space::Shared, 0);
        self.ordered_ranges(warp, shared, lane, bytes, flight.far_shared(), true, reads, pc)?;
        self.ordered_ranges(warp, shared, lane, bytes, flight.near(), true, near, pc)?;
        let far = match (flight.writes, flight.reduce) {
            // Global memory that is read while a copy is under way is taken to be read at once.
            (true, _) => Kind::Read,
            (false, Some(_)) => Kind::Atomic(Scope::Device),
            (false, None) => writes,
        };
        for (window, range) in flight.far_global() {
            let (place, ranges) = ((Space::Global, window), std::iter::once(range));
            self.ordered_ranges(warp, place, lane, bytes, ranges, true, far, pc)?;
        }
        Ok(())
    }

    /// What a copy read is free again; with `writes`, what it wrote is there.
    fn vacate(&mut self, flight: &mut Flight, writes: bool) {
        let agent = (flight.warp as u8, flight.agent());
        let shared = (Space::Shared, 0);
        if !std::mem::replace(&mut flight.reads_waited_for, true) {
            self.completed(shared, agent, flight.far_shared(), false);
            if !flight.writes {
                self.completed(shared, agent, flight.near(), false);
            }
        }
        if writes && flight.writes {
            self.completed(shared, agent, flight.near(), true);
        } else if writes {
            for (window, range) in flight.far_global() {
                self.completed((Space::Global, window), agent, std::iter::once(range), true);
            }
        }
    }

    /// Threads that see a phase of this mbarrier over see its copies landed.
    pub(super) fn see_landed(&mut self, block: u32, at: u32) {
        let Some(phase) = self.hopper.barriers.get(&at).map(|barrier| barrier.phase) else {
            return;
        };
        let over = |flight: &mut Flight| {
            flight.signal == Signal::Barrier(at)
                && flight.progress == Progress::Landed
                && flight.phase < phase
        };
        let landed: Vec<Flight> = self.hopper.flights.extract_if(.., over).collect();
        if landed.is_empty() {
            return;
        }
        self.tick();
        for mut flight in landed {
            self.vacate(&mut flight, true);
            let party = agent(block, flight.warp as u8, flight.agent());
            if let Some(barrier) = self.hopper.barriers.get_mut(&at) {
                barrier.arrived.learn(party, self.now);
            }
        }
    }

    /// The last moment: its bytes are moved and its signal is given.
    fn land<const CHECK: bool>(&mut self, flight: &mut Flight) -> Outcome {
        let data = self.read_sources(flight);
        flight.progress = Progress::Landed;
        let mut from = 0;
        for &Move { shared, end, bytes } in &flight.moves {
            let part = &data[from..from + bytes as usize];
            from += bytes as usize;
            if flight.writes {
                let to = shared as usize;
                put(&mut self.shared[to..to + part.len()], part, flight.reduce);
            } else if let End::Global { window, offset } = end
                && let Some(allocation) = self.window(window)
            {
                let to = offset as usize;
                if let Some(target) = allocation.data.get_mut(to..to + part.len()) {
                    put(target, part, flight.reduce);
                    if CHECK && !allocation.whole {
                        allocation.shadow.set_range(to, part.len());
                    }
                }
            }
        }
        if CHECK && flight.writes {
            self.shared_shadow.set_range(flight.start as usize, flight.bytes as usize);
        }
        match flight.signal {
            Signal::Barrier(at) => {
                flight.phase = self.hopper.barriers.get(&at).map_or(0, |barrier| barrier.phase);
                self.complete_bytes(at, flight.lane, i64::from(flight.bytes)).map_err(
                    |mut fault| {
                        let note = &self.kernel.notes[flight.pc];
                        fault.message += &format!("; it was issued on PTX line {}", note.line);
                        fault
                    },
                )
            }
            Signal::Group { .. } => Ok(()),
        }
    }

    /// The bytes that a copy moves, read now if they have not been.
    fn read_sources(&mut self, flight: &mut Flight) -> Vec<u8> {
        if let Progress::Read(data) = &mut flight.progress {
            return std::mem::take(data);
        }
        let mut data = Vec::with_capacity(flight.bytes as usize);
        for &Move { shared, end, bytes } in &flight.moves {
            let bytes = bytes as usize;
            match end {
                _ if !flight.writes => {
                    data.extend_from_slice(&self.shared[shared as usize..shared as usize + bytes]);
                }
                End::Global { window, offset } => {
                    let from = offset as usize;
                    match self.window(window).and_then(|a| a.data.get(from..from + bytes)) {
                        Some(source) => data.extend_from_slice(source),
                        None => data.resize(data.len() + bytes, 0),
                    }
                }
                End::Shared(from) => {
                    data.extend_from_slice(&self.shared[from as usize..from as usize + bytes]);
                }
                End::Zero => data.resize(data.len() + bytes, 0),
                End::Nan(size) => {
                    let last = |at: usize| ((at + 1) as u64).is_multiple_of(size);
                    data.extend((0..bytes).map(|at| if last(at) { 0x7f } else { 0xff }));
                }
            }
        }
        data
    }

    /// Lands the copies that a phase of this mbarrier waits for, in the order of issue. Where
    /// arrivals are missing too, nothing is gained by that yet.
    pub(super) fn land_at<const CHECK: bool>(&mut self, at: u32) -> Outcome {
        let phase = match self.hopper.barriers.get(&at) {
            Some(barrier) if barrier.pending == 0 => barrier.phase,
            _ => return Ok(()),
        };
        while self.hopper.barriers.get(&at).is_some_and(|barrier| barrier.phase == phase) {
            let due = |flight: &Flight| {
                flight.signal == Signal::Barrier(at) && flight.progress != Progress::Landed
            };
            let Some(first) = self.hopper.flights.iter().position(due) else { break };
            let mut flight = self.hopper.flights.remove(first);
            self.land::<CHECK>(&mut flight)?;
            if CHECK {
                self.hopper.flights.insert(first, flight);
            }
        }
        Ok(())
    }

    /// `cp.async.bulk.wait_group`: all groups but the last `groups` of each lane have landed, or
    /// with `reads` have been read.
    pub(super) fn bulk_wait<const CHECK: bool>(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        groups: u32,
        reads: bool,
    ) -> Outcome {
        if self.hopper.flights.is_empty() {
            return Ok(());
        }
        self.tick();
        let mut flights = std::mem::take(&mut self.hopper.flights);
        let mut left = Vec::with_capacity(flights.len());
        for mut flight in flights.drain(..) {
            let due = match flight.signal {
                Signal::Group { thread, number } => {
                    let mine = thread / 32 == warp.index as usize && mask >> (thread % 32) & 1 != 0;
                    mine && number + groups < self.hopper.bulk_commits[thread]
                }
                Signal::Barrier(_) => false,
            };
            if due {
                if !reads && flight.progress != Progress::Landed {
                    self.land::<CHECK>(&mut flight)?;
                } else if flight.progress == Progress::Issued {
                    flight.progress = Progress::Read(self.read_sources(&mut flight));
                }
                if CHECK {
                    self.vacate(&mut flight, !reads);
                    let party = agent(warp.order.block, warp.order.warp, flight.agent());
                    warp.order.waited_for(1 << flight.lane, warp.live, party, self.now);
                }
            }
            if !due || reads {
                left.push(flight);
            }
        }
        self.hopper.flights = left;
        Ok(())
    }

    /// The block has ended: what is under way lands. Shared memory that a copy still reads is gone
    /// by then on hardware.
    pub(crate) fn land_all<const CHECK: bool>(&mut self) -> Result<(), (usize, Stopped)> {
        for mut flight in std::mem::take(&mut self.hopper.flights) {
            let (warp, pc) = (flight.warp as usize, flight.pc);
            if CHECK && !flight.writes && !flight.reads_waited_for {
                let why = "the block ends while this copy may still read its shared memory: the \
                           thread has not waited for it with cp.async.bulk.wait_group";
                let fault = Fault::new(Check::AsyncHazard, 1 << flight.lane, why)
                    .at(describe_shared(self.kernel, u64::from(flight.start)));
                return Err((warp, Stopped { pc, fault }));
            }
            if flight.progress != Progress::Landed {
                self.land::<CHECK>(&mut flight).map_err(|fault| (warp, Stopped { pc, fault }))?;
            }
            if CHECK {
                // Later launches come after it; nobody in this one does.
                self.vacate(&mut flight, true);
            }
        }
        Ok(())
    }

    pub(super) fn bulk<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        list: &[u16],
        pc: usize,
        mask: u32,
    ) -> Outcome {
        let bulk = Bulk::decode(op.d);
        for lane in lanes(mask) {
            let shared = self.address_at(warp, op, list, 0, lane);
            let other = self.address_at(warp, op, list, 1, lane);
            let barrier = self.address_at(warp, op, list, 2, lane);
            let mut moves = Vec::new();
            let bytes;
            let start;
            if bulk.rank == 0 {
                bytes = u64::from(warp.registers.read::<u32>(list[3])[lane]);
                if bytes % 16 != 0 {
                    let message = format!("a bulk copy of {bytes} bytes, which 16 does not divide");
                    return Err(Fault::new(Check::InvalidArgument, 1 << lane, message));
                }
                start = self.plain_moves::<CHECK>(bulk, shared, other, bytes, lane, &mut moves)?;
            } else {
                let map = self.tensor_map_at(other, lane)?;
                if map.rank != usize::from(bulk.rank) {
                    let message =
                        format!("a copy of {} dimensions with a map of {}", bulk.rank, map.rank);
                    return Err(Fault::new(Check::InvalidArgument, 1 << lane, message));
                }
                bytes = map.box_bytes();
                let mut corner = [0i32; 5];
                for (at, corner) in corner.iter_mut().enumerate().take(map.rank) {
                    *corner = warp.registers.read::<u32>(list[3 + at])[lane] as i32;
                }
                start = self.tensor_moves::<CHECK>(bulk, &map, shared, corner, lane, &mut moves)?;
            }
            if bulk.kind == BulkKind::Prefetch || bytes == 0 {
                continue;
            }
            self.check_moves::<CHECK, COUNT>(bulk.kind, start, bytes, &moves, lane)?;
            let signal = if bulk.kind == BulkKind::Store {
                let thread = 32 * warp.index as usize + lane;
                Signal::Group { thread, number: self.hopper.bulk_commits[thread] }
            } else {
                let at = self.barrier_at::<CHECK>(barrier, lane)?;
                self.order_barrier::<CHECK>(warp, at, lane, Kind::Atomic(Scope::Block), pc)?;
                Signal::Barrier(at)
            };
            let flight = Flight {
                warp: warp.index,
                lane,
                pc,
                start,
                bytes: bytes as u32,
                writes: bulk.kind != BulkKind::Store,
                signal,
                moves,
                reduce: bulk.reduce,
                progress: Progress::Issued,
                phase: 0,
                reads_waited_for: false,
            };
            self.issue::<CHECK>(warp, flight)?;
        }
        Ok(())
    }

    fn plain_moves<const CHECK: bool>(
        &mut self,
        bulk: Bulk,
        shared: u64,
        other: u64,
        bytes: u64,
        lane: usize,
        moves: &mut Vec<Move>,
    ) -> Result<u32, Box<Fault>> {
        let mut start = 0;
        if bulk.kind != BulkKind::Prefetch {
            start = self.shared_range::<CHECK>(shared, bytes, 16, lane, "a bulk copy")?;
        }
        let end = if bulk.kind == BulkKind::Within {
            End::Shared(self.shared_range::<CHECK>(other, bytes, 16, lane, "a bulk copy")?)
        } else {
            if !other.is_multiple_of(16) {
                let (window, offset) = (other >> WINDOW_BITS, other & WINDOW_MASK);
                let why = "a bulk copy at an address that is not a multiple of 16";
                return Err(Fault::new(Check::Misaligned, 1 << lane, why).at(self.name_of(
                    Space::Global,
                    window,
                    offset,
                )));
            }
            let (window, offset) = self.global_range(other, bytes, lane, "a bulk copy")?;
            End::Global { window, offset }
        };
        moves.push(Move { shared: start, end, bytes: bytes as u32 });
        Ok(start)
    }

    fn tensor_moves<const CHECK: bool>(
        &mut self,
        bulk: Bulk,
        map: &TensorMap,
        shared: u64,
        corner: [i32; 5],
        lane: usize,
        moves: &mut Vec<Move>,
    ) -> Result<u32, Box<Fault>> {
        let mut start = 0;
        if bulk.kind != BulkKind::Prefetch {
            let what = "a tensor copy";
            start = self.shared_range::<CHECK>(shared, map.box_bytes(), 128, lane, what)?;
        }
        let mut pieces = Vec::new();
        map.walk(corner, |at, address, bytes| pieces.push((at, address, bytes)));
        let swizzle = if bulk.kind == BulkKind::Prefetch { Swizzle::None } else { map.swizzle };
        for (at, address, bytes) in pieces {
            let end = match address {
                Some(address) => {
                    let (window, offset) =
                        self.global_range(address, bytes, lane, "a tensor copy")?;
                    End::Global { window, offset }
                }
                None if bulk.kind == BulkKind::Store => continue,
                None if map.fill == OutOfBoundsFill::Nan => End::Nan(map.element.bytes()),
                None => End::Zero,
            };
            let shared = swizzle.apply(u64::from(start) + at) as u32;
            moves.push(Move { shared, end, bytes: bytes as u32 });
        }
        // A swizzle moves chunks within its period, which may begin before the box.
        if CHECK {
            for piece in &moves[..] {
                let (at, bytes) = (u64::from(piece.shared), u64::from(piece.bytes));
                self.shared_range::<CHECK>(at, bytes, 1, lane, "a swizzled tensor copy")?;
            }
        }
        Ok(start)
    }

    /// Sources must have been written; what is moved is counted.
    fn check_moves<const CHECK: bool, const COUNT: bool>(
        &mut self,
        kind: BulkKind,
        start: u32,
        bytes: u64,
        moves: &[Move],
        lane: usize,
    ) -> Outcome {
        let unwritten = |machine: &Self, at: u32, bytes: u64| {
            if machine.shared_shadow.has_range(at as usize, bytes as usize) {
                return Ok(());
            }
            let (check, why) = if machine.in_flight(u64::from(at), bytes) {
                (Check::AsyncHazard, "to which another copy is under way")
            } else {
                (Check::Uninitialised, "not all of which was written")
            };
            let message = format!("an asynchronous copy from {bytes} bytes {why}");
            Err(Fault::new(check, 1 << lane, message)
                .at(describe_shared(machine.kernel, u64::from(at))))
        };
        if CHECK && kind == BulkKind::Store {
            unwritten(self, start, bytes)?;
        }
        let (mut sectors, mut asked, mut last) = (0, 0, None);
        for piece in moves {
            match piece.end {
                End::Shared(from) if CHECK => unwritten(self, from, u64::from(piece.bytes))?,
                End::Global { window, offset } => {
                    let count = u64::from(piece.bytes);
                    let Some(allocation) = self.window(window) else { continue };
                    if CHECK
                        && kind == BulkKind::Load
                        && !allocation.whole
                        && !allocation.shadow.has_range(offset as usize, count as usize)
                    {
                        let message = format!(
                            "an asynchronous copy from {count} bytes not all of which was written"
                        );
                        let name = self.name_of(Space::Global, window, offset);
                        return Err(Fault::new(Check::Uninitialised, 1 << lane, message).at(name));
                    }
                    if COUNT {
                        // Pieces that follow each other share the sector in which they meet.
                        let first = (window, offset >> 5);
                        let end = (window, (offset + count - 1) >> 5);
                        let new = end.1 - first.1 + u64::from(last != Some(first));
                        last = Some(end);
                        sectors += new;
                        asked += count;
                        let traffic = &mut allocation.traffic;
                        if kind == BulkKind::Load {
                            traffic.read_bytes += count;
                            traffic.read_sectors += new;
                        } else {
                            traffic.written_bytes += count;
                            traffic.written_sectors += new;
                        }
                    }
                }
                _ => {}
            }
        }
        if COUNT && asked > 0 {
            let count = match kind {
                BulkKind::Store => &mut self.counters.global_store,
                _ => &mut self.counters.async_copy,
            };
            count.requests += 1;
            count.sectors += sectors;
            count.bytes += asked;
        }
        Ok(())
    }

    /// The tensor map at a generic address.
    fn tensor_map_at(&mut self, address: u64, lane: usize) -> Result<TensorMap, Box<Fault>> {
        let (window, offset) = (address >> WINDOW_BITS, (address & WINDOW_MASK) as usize);
        let bytes = if window == PARAMETER_BASE >> WINDOW_BITS {
            self.parameters.get(offset..offset + TENSOR_MAP_BYTES)
        } else {
            self.window(window)
                .and_then(|a| a.data.get(offset..offset.saturating_add(TENSOR_MAP_BYTES)))
        };
        let bytes: Option<[u8; TENSOR_MAP_BYTES]> = bytes.and_then(|bytes| bytes.try_into().ok());
        let fault = |check, message: &str| Err(Fault::new(check, 1 << lane, message));
        let Some(bytes) = bytes else {
            let message =
                format!("a tensor map at {address:#x}, which is in no memory it can be in");
            return fault(Check::InvalidArgument, &message);
        };
        if offset % 64 != 0 {
            return fault(Check::Misaligned, "a tensor map that is not aligned to 64 bytes");
        }
        TensorMap::decode(&bytes).or_else(|error| fault(Check::InvalidArgument, &error.to_string()))
    }
}

/// Writes bytes, or combines them with those that are there.
fn put(target: &mut [u8], part: &[u8], reduce: Option<(u8, u8)>) {
    let Some((code, size)) = reduce else {
        target.copy_from_slice(part);
        return;
    };
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let size = usize::from(size.max(1));
    for (old, new) in target.chunks_exact_mut(size).zip(part.chunks_exact(size)) {
        let sum = atomic::apply(code, word(old), word(new), 0);
        old.copy_from_slice(&sum.to_le_bytes()[..size]);
    }
}
