//! The asynchronous instructions of Hopper: mbarriers, bulk and tensor copies, warpgroup matrix
//! products, and what belongs to them. The PTX ISA's sections are named in the files.
//!
//! | file | what |
//! |---|---|
//! | `mbarrier` | the barrier in shared memory: arrivals, bytes to come, phases |
//! | `bulk` | copies that a thread starts and that land later |
//! | `tensor_map` | the 128 bytes that describe a tensor, and the way through a box of it |
//! | `wgmma` | products by the four warps of a warpgroup |
//! | `operands` | where a matrix descriptor's elements lie in shared memory |
//!
//! Time. An asynchronous operation has two moments: it is *issued*, and it *lands*. Between the two
//! it may touch memory whenever it likes, so a program must not. Here everything happens at the
//! landing, and the landing as late as the program allows: a copy that signals an mbarrier lands
//! when a thread would otherwise have to wait at it, a copy of a bulk group when the group is waited
//! for, a warpgroup's product at its `wait_group`. With a seed, some copies land at once instead.
//! [`Machine::issue`] and [`Machine::land`] are the only doors to memory.
//!
//! Waiting. A wait that has to wait parks its lanes ([`State::Asynchronous`]); [`Machine::advance`]
//! looks at those that are parked whenever something has changed. When nothing else can run, waits
//! at mbarriers time out and answer false, as hardware's do; when nothing changes for
//! [`MOST_TIMEOUTS`] such rounds, nobody will ever arrive and the block is stuck.

use std::collections::BTreeMap;

use crate::access::{Outcome, describe_shared, lanes};
use crate::findings::{Check, Fault};
use crate::machine::{Machine, State, Stopped, Warp};
use crate::memory::{SHARED_BASE, WINDOW_BITS, WINDOW_MASK};
use crate::op::Op;
use crate::order::Order;
use crate::syntax::Space;

mod bulk;
mod mbarrier;
mod operands;
pub(crate) mod tensor_map;
pub(crate) mod wgmma;

pub(crate) use bulk::{Bulk, BulkKind, Flight};
use mbarrier::Mbarrier;
use wgmma::Queue;

/// Rounds in which every wait times out before the block counts as stuck. Programs count their
/// failed waits, if at all, to far more than this before they give up.
const MOST_TIMEOUTS: u32 = 256;

/// What an operation of this room does. `Op::action` holds it, `Op::imm` the list of its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is not of this room.
    Nothing,
    /// List: address, count.
    Init,
    /// List: address.
    Invalidate,
    /// List: destination, address, count, bytes to expect. `size` is [`ARRIVE_DROP`] and others.
    Arrive,
    /// List: address, bytes.
    ExpectBytes,
    CompleteBytes,
    /// List: predicate, address, state.
    WaitState,
    /// List: predicate, address, parity.
    WaitParity,
    /// List: destination, state.
    PendingCount,
    /// `cp.async.mbarrier.arrive`; list: address.
    CopyArrive,
    /// Bulk copies; what, is in [`Bulk`].
    Bulk,
    BulkCommit,
    /// `cp.async.bulk.wait_group`; d: groups, and whether only reads are waited for.
    BulkWait,
    ClusterArrive,
    ClusterWait,
    /// List: destination, address, rank.
    MapShared,
    WarpgroupFence,
    WarpgroupCommit,
    /// d: groups.
    WarpgroupWait,
    /// List: accumulators, A registers or descriptor, B descriptor, scale of D.
    WarpgroupMultiply,
}

/// In `Op::size` of an arrival: it also leaves the barrier for good.
pub(crate) const ARRIVE_DROP: u8 = 1;
/// It must not complete the phase.
pub(crate) const NO_COMPLETE: u8 = 2;
/// It expects bytes first.
pub(crate) const EXPECT: u8 = 4;

/// In `Op::flags`: the address at this place of the list is 64 bits wide.
pub(crate) const fn wide_at(place: usize) -> u8 {
    1 << place
}
/// In `Op::flags` of bulk copies, whose three addresses come first: other operands that are wide.
pub(crate) const NO_INCREMENT: u8 = 1 << 7;

/// The asynchronous state of the block that runs.
#[derive(Default)]
pub(crate) struct Hopper {
    pub(super) barriers: BTreeMap<u32, Mbarrier>,
    /// Copies that have not landed, in the order of issue; in a checked run, also those that nobody
    /// has seen landed.
    pub(super) flights: Vec<Flight>,
    /// Arrivals that wait for `cp.async` copies of a warp: barrier, warp, lanes.
    pub(super) copy_arrivals: Vec<(u32, u32, u32)>,
    /// Bulk groups that each thread has committed.
    pub(super) bulk_commits: Vec<u32>,
    /// What each warp has given the tensor cores.
    pub(super) queues: Vec<Queue>,
    /// Threads of each warp that have arrived at the cluster barrier and not waited yet, and those
    /// of the phase before that may go on.
    cluster: Vec<[u32; 2]>,
    /// What those that have arrived at it know, and those of the phases before.
    cluster_order: [Order; 2],
    /// A checked run has seen a bulk copy or a product.
    pub flew: bool,
    /// Something happened that a parked lane may wait for.
    pub changed: bool,
    timeouts: u32,
    /// State of the generator that picks landing times; 0 lands everything as late as possible.
    random: u64,
    threads: u32,
}

impl Hopper {
    pub(crate) fn new(threads: u32, seed: u64) -> Self {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { threads, random, ..Self::default() }
    }

    /// Forgets the block before.
    pub(crate) fn start(&mut self) {
        let warps = self.threads.div_ceil(32) as usize;
        self.barriers.clear();
        self.flights.clear();
        self.copy_arrivals.clear();
        self.bulk_commits.clear();
        self.bulk_commits.resize(32 * warps, 0);
        self.queues.iter_mut().for_each(Queue::clear);
        self.queues.resize_with(warps, Queue::default);
        self.cluster.clear();
        self.cluster.resize(warps, [0; 2]);
        self.cluster_order = Default::default();
        self.flew = false;
        self.changed = false;
        self.timeouts = 0;
    }

    /// One in four, with a seed; never without.
    fn lands_at_once(&mut self) -> bool {
        if self.random == 0 {
            return false;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 32 & 3 == 0
    }
}

/// The lanes that have to wait where they are.
pub(crate) type Parked = Result<u32, Box<Fault>>;

impl Machine<'_> {
    /// Runs one operation of this room for the lanes of `mask`.
    #[cold]
    #[inline(never)]
    pub(crate) fn asynchronous<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        pc: usize,
        mask: u32,
    ) -> Parked {
        let list = &self.kernel.lists[op.imm as usize];
        match op.action {
            Action::Nothing => {}
            Action::Init => self.initialise::<CHECK>(warp, op, list, pc, mask)?,
            Action::Invalidate => self.invalidate::<CHECK>(warp, op, list, pc, mask)?,
            Action::Arrive => self.arrive_at::<CHECK>(warp, op, list, pc, mask)?,
            Action::ExpectBytes | Action::CompleteBytes => {
                self.expect_bytes::<CHECK>(warp, op, list, pc, mask)?;
            }
            Action::WaitState | Action::WaitParity => {
                return self.wait_at::<CHECK, COUNT>(warp, op, list, pc, mask);
            }
            Action::PendingCount => {
                let state = *warp.registers.read::<u64>(list[1]);
                warp.registers.put(list[0], &state.map(mbarrier::pending_count), mask);
            }
            Action::CopyArrive => self.copy_arrive::<CHECK>(warp, op, list, pc, mask)?,
            Action::Bulk => self.bulk::<CHECK, COUNT>(warp, op, list, pc, mask)?,
            Action::BulkCommit => {
                for lane in lanes(mask) {
                    self.hopper.bulk_commits[32 * warp.index as usize + lane] += 1;
                }
            }
            Action::BulkWait => {
                self.bulk_wait::<CHECK>(warp, mask, u32::from(op.d[0]), op.d[1] != 0)?;
            }
            Action::ClusterArrive => self.cluster_arrive::<CHECK>(warp, mask)?,
            Action::ClusterWait => return self.cluster_wait::<CHECK>(warp, mask),
            Action::MapShared => {
                let rank = warp.registers.read::<u32>(list[2]);
                let bad = lanes(mask).fold(0, |bad, lane| bad | u32::from(rank[lane] != 0) << lane);
                if bad != 0 {
                    let why = "the cluster has one block, so the only rank is 0";
                    return Err(Fault::new(Check::InvalidArgument, bad, why));
                }
                if op.flags & wide_at(1) != 0 {
                    let address = *warp.registers.read::<u64>(list[1]);
                    warp.registers.put(list[0], &address, mask);
                } else {
                    let address = *warp.registers.read::<u32>(list[1]);
                    warp.registers.put(list[0], &address, mask);
                }
            }
            Action::WarpgroupFence
            | Action::WarpgroupCommit
            | Action::WarpgroupWait
            | Action::WarpgroupMultiply => {
                return self.warpgroup::<CHECK>(warp, op, list, pc, mask);
            }
        }
        Ok(0)
    }

    /// The address that a lane holds at a place of the list.
    fn address_at(&self, warp: &Warp, op: &Op, list: &[u16], place: usize, lane: usize) -> u64 {
        if op.flags & wide_at(place) != 0 {
            warp.registers.read::<u64>(list[place])[lane]
        } else {
            u64::from(warp.registers.read::<u32>(list[place])[lane])
        }
    }

    /// Checks a range of shared memory, given by an offset or a generic address: inside one variable
    /// and aligned. Returns its offset.
    fn shared_range<const CHECK: bool>(
        &self,
        address: u64,
        bytes: u64,
        align: u64,
        lane: usize,
        what: &str,
    ) -> Result<u32, Box<Fault>> {
        let generic = address >> WINDOW_BITS;
        let offset = address & WINDOW_MASK;
        let fault = |check, message: String| {
            Err(Fault::new(check, 1 << lane, message).at(describe_shared(self.kernel, offset)))
        };
        if generic != 0 && generic != SHARED_BASE >> WINDOW_BITS {
            let message = format!("{what} at {address:#x}, which is not in shared memory");
            return Err(Fault::new(Check::InvalidArgument, 1 << lane, message));
        }
        let length = self.shared.len() as u64;
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            let message = format!("{what} of {bytes} bytes outside its {length} bytes");
            return fault(Check::OutOfBounds, message);
        }
        if !offset.is_multiple_of(align) {
            let message = format!("{what} at an address that is not a multiple of {align}");
            return fault(Check::Misaligned, message);
        }
        if CHECK
            && let Some(valid) = &self.shared_valid
            && !valid.has_range(offset as usize, bytes as usize)
        {
            let message = format!("{what} of {bytes} bytes past the end of a shared variable");
            return fault(Check::OutOfBounds, message);
        }
        Ok(offset as u32)
    }

    /// Checks that a range of global memory lies in one allocation. Returns window and offset.
    fn global_range(
        &mut self,
        address: u64,
        bytes: u64,
        lane: usize,
        what: &str,
    ) -> Result<(u64, u64), Box<Fault>> {
        let (window, offset) = (address >> WINDOW_BITS, address & WINDOW_MASK);
        let length = self.window(window).map_or(0, |allocation| allocation.data.len() as u64);
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            let message = format!("{what} of {bytes} bytes outside its {length} bytes");
            let name = self.name_of(Space::Global, window, offset);
            return Err(Fault::new(Check::OutOfBounds, 1 << lane, message).at(name));
        }
        Ok((window, offset))
    }

    /// `barrier.cluster.arrive` (PTX ISA 9.7.13.4) in a cluster of one block.
    fn cluster_arrive<const CHECK: bool>(&mut self, warp: &Warp, mask: u32) -> Outcome {
        let [arrived, open] = &mut self.hopper.cluster[warp.index as usize];
        let twice = *arrived & mask | *open & mask;
        if twice != 0 {
            let why = "arrives at the cluster barrier again without having waited at it";
            return Err(Fault::new(Check::InvalidArgument, twice, why));
        }
        *arrived |= mask;
        if CHECK {
            self.hopper.cluster_order[0].join(&warp.order.release(mask, warp.live, self.now));
            self.tick();
        }
        self.hopper.changed = true;
        Ok(())
    }

    fn cluster_wait<const CHECK: bool>(&mut self, warp: &mut Warp, mask: u32) -> Parked {
        let [arrived, open] = &mut self.hopper.cluster[warp.index as usize];
        let never = mask & !*arrived & !*open;
        if never != 0 {
            let why = "waits at the cluster barrier without having arrived at it";
            return Err(Fault::new(Check::InvalidArgument, never, why));
        }
        let through = mask & *open;
        *open &= !through;
        if CHECK && through != 0 {
            warp.order.meet(through, warp.live, &self.hopper.cluster_order[1]);
        }
        self.hopper.changed |= through != mask;
        Ok(mask & !through)
    }

    /// Opens the cluster barrier when every thread that has not exited has arrived. Says whether it
    /// opened.
    fn open_cluster(&mut self, warps: &[Warp]) -> bool {
        let cluster = &mut self.hopper.cluster;
        let any = cluster.iter().any(|[arrived, _]| *arrived != 0);
        let all = warps
            .iter()
            .all(|w| cluster.get(w.index as usize).is_some_and(|c| w.live & !c[0] == 0));
        if any && all {
            for [arrived, open] in cluster {
                *open |= std::mem::take(arrived);
            }
            let [arrived, open] = &mut self.hopper.cluster_order;
            open.join(&std::mem::take(arrived));
        }
        any && all
    }

    /// Lets go on what no longer has to wait. Says whether anything did.
    pub(crate) fn advance<const CHECK: bool>(
        &mut self,
        warps: &mut [Warp],
        wide: bool,
    ) -> Result<bool, (usize, Stopped)> {
        self.hopper.changed = false;
        let mut moved = self.land_copies::<CHECK>(warps);
        if self.open_cluster(warps) {
            // Lanes that have arrived already may be parked, or come to their wait later.
            self.hopper.timeouts = 0;
        }
        moved |= self.multiply_waiting::<CHECK>(warps, wide)?;
        let kernel = self.kernel;
        for warp in warps.iter_mut() {
            for group in &mut warp.groups {
                if group.state != State::Asynchronous {
                    continue;
                }
                let op = &kernel.code[group.pc as usize];
                let ready = match op.action {
                    Action::WaitState | Action::WaitParity => {
                        // It looks again where something happened at its barrier.
                        let list = &kernel.lists[op.imm as usize];
                        lanes(group.mask).any(|lane| {
                            let address = if op.flags & wide_at(1) != 0 {
                                warp.registers.read::<u64>(list[1])[lane] & WINDOW_MASK
                            } else {
                                u64::from(warp.registers.read::<u32>(list[1])[lane])
                            };
                            let barrier = self.hopper.barriers.get(&(address as u32));
                            barrier.is_none_or(|barrier| barrier.stirred)
                        })
                    }
                    Action::ClusterWait => {
                        group.mask & self.hopper.cluster[warp.index as usize][1] != 0
                    }
                    _ => false,
                };
                if ready {
                    group.state = State::Ready;
                    moved = true;
                }
            }
        }
        for barrier in self.hopper.barriers.values_mut() {
            barrier.stirred = false;
        }
        Ok(moved)
    }

    /// Nothing else can run: waits at mbarriers answer false. Says whether there were any, and that
    /// it is not yet hopeless.
    pub(crate) fn time_out(&mut self, warps: &mut [Warp]) -> bool {
        self.hopper.timeouts += 1;
        if self.hopper.timeouts > MOST_TIMEOUTS {
            return false;
        }
        let kernel = self.kernel;
        let mut any = false;
        for warp in warps {
            for at in 0..warp.groups.len() {
                let group = warp.groups[at];
                let op = &kernel.code[group.pc as usize];
                if group.state != State::Asynchronous
                    || !matches!(op.action, Action::WaitState | Action::WaitParity)
                {
                    continue;
                }
                let predicate = kernel.lists[op.imm as usize][0];
                warp.registers.put_predicate(predicate, 0, group.mask);
                warp.groups[at].pc += 1;
                warp.groups[at].state = State::Ready;
                any = true;
            }
        }
        any
    }

    /// Why lanes that are parked here will never go on: warp, instruction, and what to say.
    pub(crate) fn why_parked(&self, warps: &[Warp]) -> Option<(usize, usize, Box<Fault>)> {
        let kernel = self.kernel;
        let parked = warps.iter().enumerate().flat_map(|(at, warp)| {
            let here = warp.groups.iter().filter(|group| group.state == State::Asynchronous);
            here.map(move |group| (at, *group))
        });
        let rank = |action| match action {
            Action::WaitState | Action::WaitParity => 0,
            Action::WarpgroupWait => 1,
            _ => 2,
        };
        let action = |group: &crate::machine::Group| kernel.code[group.pc as usize].action;
        let (at, group) = parked.min_by_key(|(_, group)| rank(action(group)))?;
        let fault = match action(&group) {
            Action::WaitState | Action::WaitParity => {
                let message = format!(
                    "waits at an mbarrier whose phase nobody will complete; {}",
                    self.describe_barriers()
                );
                Fault::new(Check::Deadlock, group.mask, message)
            }
            Action::WarpgroupWait => {
                let first = at / 4 * 4;
                let away: Vec<String> = (first..first + 4)
                    .filter(|&other| {
                        !warps.get(other).is_some_and(|warp| {
                            warp.groups.iter().any(|other| {
                                other.state == State::Asynchronous
                                    && action(other) == Action::WarpgroupWait
                            })
                        })
                    })
                    .map(|other| match warps.get(other).and_then(|warp| warp.groups.first()) {
                        Some(other_group) => {
                            let note = &kernel.notes[other_group.pc as usize];
                            format!("warp {other} is at `{}`, PTX line {}", note.text, note.line)
                        }
                        None => format!("warp {other} has exited"),
                    })
                    .collect();
                let message = format!(
                    "all four warps of a warpgroup have to come to this instruction; {}",
                    away.join("; ")
                );
                Fault::new(Check::BarrierDivergence, group.mask, message)
            }
            _ => {
                let why = "waits at the cluster barrier, at which other threads will not arrive";
                Fault::new(Check::BarrierDivergence, group.mask, why)
            }
        };
        Some((at, group.pc as usize, fault))
    }

    /// Whether an operation that has not landed writes into this range of shared memory.
    pub(crate) fn in_flight(&self, offset: u64, bytes: u64) -> bool {
        self.hopper.flights.iter().any(|flight| flight.writes_shared(offset, bytes))
    }
}
