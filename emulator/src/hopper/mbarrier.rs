//! mbarrier objects (PTX ISA 9.7.13.15): counts of arrivals and of bytes to come, in phases.
//!
//! The state is kept beside the memory; its 8 bytes hold a rendering of it that changes with it, so
//! that a barrier that something overwrites is noticed when it is used next. What the ISA calls
//! undefined is a finding: use before `init` or after `inval`, a second `init`, counts outside
//! 1 to 2^20 - 1, more arrivals than a phase still waits for, a tx-count outside +-(2^20 - 1).

use crate::access::{Outcome, describe_shared, lanes};
use crate::findings::{Check, Fault};
use crate::hopper::{ARRIVE_DROP, Action, EXPECT, NO_COMPLETE, NO_INCREMENT, Parked};
use crate::machine::{Machine, Warp};
use crate::op::Op;
use crate::order::{Order, Scope};
use crate::races::Kind;
use crate::syntax::Space;

/// Bound of every count of an mbarrier.
const MOST: i64 = (1 << 20) - 1;

#[derive(Clone, Debug)]
pub(crate) struct Mbarrier {
    /// Arrivals that a phase waits for, from the next one on.
    expected: u32,
    /// Arrivals that this phase still waits for.
    pub(super) pending: u32,
    /// Bytes announced and not arrived; negative where they arrived first.
    pub(super) bytes: i64,
    pub(super) phase: u64,
    /// Instruction that initialised it, and that last waited at it.
    made: usize,
    waited: Option<usize>,
    /// It changed since parked lanes last looked.
    pub(super) stirred: bool,
    /// What those that arrived in this phase know, and those of all phases that are over.
    arriving: Order,
    pub(super) arrived: Order,
}

/// The arrivals that were pending when an arrival returned this state.
pub(super) fn pending_count(state: u64) -> u32 {
    (state >> 20) as u32 & 0xf_ffff
}

impl Mbarrier {
    fn new(expected: u32, made: usize) -> Self {
        let pending = expected;
        Self {
            expected,
            pending,
            bytes: 0,
            phase: 0,
            made,
            waited: None,
            stirred: true,
            arriving: Order::default(),
            arrived: Order::default(),
        }
    }

    /// The 8 bytes, which are also the state that an arrival returns.
    fn word(&self) -> u64 {
        u64::from(self.expected)
            | u64::from(self.pending) << 20
            | (self.bytes as u64 & 0x1f_ffff) << 40
            | self.phase << 61
    }

    fn settle(&mut self) {
        self.stirred = true;
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.arrived.join(&std::mem::take(&mut self.arriving));
        }
    }

    fn expect(&mut self, bytes: i64) -> Result<(), String> {
        let sum = self.bytes + bytes;
        if sum.abs() > MOST {
            return Err(format!(
                "the tx-count would become {sum}, it is at most {MOST} either way"
            ));
        }
        self.bytes = sum;
        Ok(())
    }

    fn arrive(&mut self, count: u32, how: u8) -> Result<(), String> {
        if count == 0 || i64::from(count) > MOST {
            return Err(format!("an arrival counts 1 to {MOST}, not {count}"));
        }
        if count > self.pending {
            return Err(format!(
                "arrival of {count} at an mbarrier whose phase {} waits for {} of {} more",
                self.phase, self.pending, self.expected
            ));
        }
        if how & NO_COMPLETE != 0 && count == self.pending && self.bytes == 0 {
            return Err("arrival with .noComplete that completes the phase".to_owned());
        }
        if how & ARRIVE_DROP != 0 {
            self.expected = self.expected.saturating_sub(count);
        }
        self.pending -= count;
        self.settle();
        Ok(())
    }
}

impl Machine<'_> {
    /// The barrier at an address, which must be a live one.
    pub(super) fn barrier_at<const CHECK: bool>(
        &self,
        address: u64,
        lane: usize,
    ) -> Result<u32, Box<Fault>> {
        let at = self.shared_range::<CHECK>(address, 8, 8, lane, "an mbarrier")?;
        let fault = |message: &str| {
            Err(Fault::new(Check::InvalidArgument, 1 << lane, message)
                .at(describe_shared(self.kernel, u64::from(at))))
        };
        let Some(barrier) = self.hopper.barriers.get(&at) else {
            return fault("use of an mbarrier that is not initialised");
        };
        if self.shared[at as usize..at as usize + 8] != barrier.word().to_le_bytes() {
            return fault("something has written over the mbarrier since it was last used");
        }
        Ok(at)
    }

    /// Whoever uses a barrier comes after its `init`, and its `init` and `inval` after those who used
    /// its bytes.
    pub(super) fn order_barrier<const CHECK: bool>(
        &mut self,
        warp: &Warp,
        at: u32,
        lane: usize,
        kind: Kind,
        pc: usize,
    ) -> Outcome {
        if !CHECK {
            return Ok(());
        }
        let range = std::iter::once(at as usize..at as usize + 8);
        self.ordered_ranges(warp, (Space::Shared, 0), lane, 8, range, true, kind, pc)
    }

    /// Changes a barrier and its bytes.
    pub(super) fn change_barrier(
        &mut self,
        at: u32,
        lane: usize,
        change: impl FnOnce(&mut Mbarrier) -> Result<(), String>,
    ) -> Outcome {
        let Some(barrier) = self.hopper.barriers.get_mut(&at) else {
            // A copy lands at a barrier that is gone.
            let why = "a copy completes at an mbarrier that has been invalidated";
            return Err(Fault::new(Check::InvalidArgument, 1 << lane, why)
                .at(describe_shared(self.kernel, u64::from(at))));
        };
        change(barrier).map_err(|message| {
            Fault::new(Check::InvalidArgument, 1 << lane, message)
                .at(describe_shared(self.kernel, u64::from(at)))
        })?;
        self.shared[at as usize..at as usize + 8].copy_from_slice(&barrier.word().to_le_bytes());
        self.hopper.changed = true;
        self.hopper.timeouts = 0;
        Ok(())
    }

    pub(super) fn initialise<const CHECK: bool>(
        &mut self,
        warp: &Warp,
        op: &Op,
        list: &[u16],
        pc: usize,
        mask: u32,
    ) -> Outcome {
        for lane in lanes(mask) {
            let address = self.address_at(warp, op, list, 0, lane);
            let count = warp.registers.read::<u32>(list[1])[lane];
            let at = self.shared_range::<CHECK>(address, 8, 8, lane, "an mbarrier")?;
            let fault = |message: String| {
                Err(Fault::new(Check::InvalidArgument, 1 << lane, message)
                    .at(describe_shared(self.kernel, u64::from(at))))
            };
            if count == 0 || i64::from(count) > MOST {
                return fault(format!("an mbarrier counts 1 to {MOST} arrivals, not {count}"));
            }
            if self.hopper.barriers.contains_key(&at) {
                return fault("a second mbarrier.init without mbarrier.inval before it".to_owned());
            }
            self.order_barrier::<CHECK>(warp, at, lane, Kind::Write, pc)?;
            self.hopper.barriers.insert(at, Mbarrier::new(count, pc));
            self.shared_shadow.set(at as usize, 8);
            self.change_barrier(at, lane, |_| Ok(()))?;
        }
        Ok(())
    }

    pub(super) fn invalidate<const CHECK: bool>(
        &mut self,
        warp: &Warp,
        op: &Op,
        list: &[u16],
        pc: usize,
        mask: u32,
    ) -> Outcome {
        for lane in lanes(mask) {
            let address = self.address_at(warp, op, list, 0, lane);
            let at = self.barrier_at::<CHECK>(address, lane)?;
            self.order_barrier::<CHECK>(warp, at, lane, Kind::Write, pc)?;
            self.hopper.barriers.remove(&at);
            self.shared_shadow.unset(at as usize, 8);
        }
        Ok(())
    }

    /// `mbarrier.arrive` and `arrive_drop`, one lane after the other.
    pub(super) fn arrive_at<const CHECK: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        list: &[u16],
        pc: usize,
        mask: u32,
    ) -> Outcome {
        let mut states = [0u64; 32];
        for lane in lanes(mask) {
            let address = self.address_at(warp, op, list, 1, lane);
            let at = self.barrier_at::<CHECK>(address, lane)?;
            self.order_barrier::<CHECK>(warp, at, lane, Kind::Atomic(Scope::Block), pc)?;
            let count = warp.registers.read::<u32>(list[2])[lane];
            let bytes = i64::from(warp.registers.read::<u32>(list[3])[lane]);
            let how = op.size;
            let state = &mut states[lane];
            let order = CHECK.then(|| warp.order.release(mask, warp.live, self.now));
            self.change_barrier(at, lane, |barrier| {
                order.iter().for_each(|order| barrier.arriving.join(order));
                *state = barrier.word();
                if how & EXPECT != 0 {
                    barrier.expect(bytes)?;
                }
                barrier.arrive(count, how)
            })?;
        }
        self.tick();
        warp.registers.put(list[0], &states, mask);
        Ok(())
    }

    /// `mbarrier.expect_tx` and `mbarrier.complete_tx`.
    pub(super) fn expect_bytes<const CHECK: bool>(
        &mut self,
        warp: &Warp,
        op: &Op,
        list: &[u16],
        pc: usize,
        mask: u32,
    ) -> Outcome {
        let sign = if op.action == Action::ExpectBytes { 1 } else { -1 };
        for lane in lanes(mask) {
            let address = self.address_at(warp, op, list, 0, lane);
            let at = self.barrier_at::<CHECK>(address, lane)?;
            self.order_barrier::<CHECK>(warp, at, lane, Kind::Atomic(Scope::Block), pc)?;
            let bytes = i64::from(warp.registers.read::<u32>(list[1])[lane]);
            if sign > 0 {
                self.change_barrier(at, lane, |barrier| barrier.expect(bytes))?;
            } else {
                self.complete_bytes(at, lane, bytes)?;
            }
        }
        Ok(())
    }

    /// Bytes of a copy have arrived.
    pub(super) fn complete_bytes(&mut self, at: u32, lane: usize, bytes: i64) -> Outcome {
        self.change_barrier(at, lane, |barrier| {
            barrier.expect(-bytes)?;
            barrier.settle();
            Ok(())
        })
    }

    /// `cp.async.mbarrier.arrive` (PTX ISA 9.7.13.15.15): the lane's copies so far arrive when they
    /// land. Without `.noinc` the phase waits for one arrival more, which is theirs.
    pub(super) fn copy_arrive<const CHECK: bool>(
        &mut self,
        warp: &Warp,
        op: &Op,
        list: &[u16],
        pc: usize,
        mask: u32,
    ) -> Outcome {
        for lane in lanes(mask) {
            let address = self.address_at(warp, op, list, 0, lane);
            let at = self.barrier_at::<CHECK>(address, lane)?;
            self.order_barrier::<CHECK>(warp, at, lane, Kind::Atomic(Scope::Block), pc)?;
            if op.flags & NO_INCREMENT == 0 {
                self.change_barrier(at, lane, |barrier| {
                    if i64::from(barrier.pending) == MOST {
                        return Err(format!("the pending count of an mbarrier is at most {MOST}"));
                    }
                    barrier.pending += 1;
                    Ok(())
                })?;
            }
            let same = |entry: &&mut (u32, u32, u32)| {
                entry.0 == at && entry.1 == warp.index && entry.2 >> lane & 1 == 0
            };
            match self.hopper.copy_arrivals.iter_mut().find(same) {
                Some(entry) => entry.2 |= 1 << lane,
                None => self.hopper.copy_arrivals.push((at, warp.index, 1 << lane)),
            }
        }
        self.hopper.changed = true;
        Ok(())
    }

    /// Lands the `cp.async` copies that a parked wait needs, and their arrivals. Says whether any did.
    pub(super) fn land_copies<const CHECK: bool>(&mut self, warps: &mut [Warp]) -> bool {
        if self.hopper.copy_arrivals.is_empty() {
            return false;
        }
        let kernel = self.kernel;
        let waited_for = |at: u32| {
            warps.iter().any(|warp| {
                warp.groups.iter().any(|group| {
                    let op = &kernel.code[group.pc as usize];
                    let wait = matches!(op.action, Action::WaitState | Action::WaitParity);
                    let parked = group.state == crate::machine::State::Asynchronous;
                    parked
                        && wait
                        && lanes(group.mask).any(|lane| {
                            let list = &kernel.lists[op.imm as usize];
                            self.address_at(warp, op, list, 1, lane) as u32 == at
                        })
                })
            })
        };
        let (due, later): (Vec<_>, Vec<_>) =
            self.hopper.copy_arrivals.iter().copied().partition(|&(at, ..)| waited_for(at));
        self.hopper.copy_arrivals = later;
        let any = !due.is_empty();
        for (at, index, mask) in due {
            let mut order = None;
            if let Some(warp) = warps.get_mut(index as usize) {
                self.wait::<CHECK, false>(warp, mask, 0, true);
                order = CHECK.then(|| warp.order.release(mask, warp.live, self.now));
                self.tick();
            }
            for lane in lanes(mask) {
                // What is wrong with the count is found where the barrier is used.
                let _ = self.change_barrier(at, lane, |barrier| {
                    order.iter().for_each(|order| barrier.arriving.join(order));
                    barrier.arrive(1, 0)
                });
            }
        }
        any
    }

    /// `mbarrier.test_wait` and `try_wait` (PTX ISA 9.7.13.15.16).
    pub(super) fn wait_at<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        list: &[u16],
        pc: usize,
        mask: u32,
    ) -> Parked {
        let by_parity = op.action == Action::WaitParity;
        let mut done = 0u32;
        let mut places = [u32::MAX; 32];
        for lane in lanes(mask) {
            let address = self.address_at(warp, op, list, 1, lane);
            let at = self.barrier_at::<CHECK>(address, lane)?;
            self.order_barrier::<CHECK>(warp, at, lane, Kind::StrongRead(Scope::Block), pc)?;
            places[lane] = at;
            let fault = |message: String| {
                Err(Fault::new(Check::InvalidArgument, 1 << lane, message)
                    .at(describe_shared(self.kernel, u64::from(at))))
            };
            let mut complete = self.phase_is_over(warp, list, by_parity, at, lane);
            if complete == Some(false) {
                // This thread would have to wait: now, and not before, the copies arrive.
                self.land_at::<CHECK>(at)?;
                complete = self.phase_is_over(warp, list, by_parity, at, lane);
            }
            let Some(complete) = complete else {
                return fault(if by_parity {
                    "a phase parity is 0 or 1".to_owned()
                } else {
                    "this state is of an older phase of the mbarrier, or of none".to_owned()
                });
            };
            if let Some(barrier) = self.hopper.barriers.get_mut(&at) {
                barrier.waited = Some(pc);
            }
            done |= u32::from(complete) << lane;
        }
        warp.registers.put_predicate(list[0], u32::MAX, done);
        let mut left = if CHECK { done } else { 0 };
        while left != 0 {
            let at = places[left.trailing_zeros() as usize];
            let these = lanes(left).filter(|&l| places[l] == at).fold(0, |all, l| all | 1 << l);
            left &= !these;
            self.see_landed(warp.order.block, at);
            if let Some(barrier) = self.hopper.barriers.get(&at) {
                warp.order.meet(these, warp.live, &barrier.arrived);
            }
        }
        if COUNT && done != mask {
            // It is counted when it has its answer.
            let executed = &mut self.executed[pc];
            executed.threads -= u64::from((mask & !done).count_ones());
            executed.warps -= u64::from(done == 0);
        }
        Ok(mask & !done)
    }

    fn phase_is_over(
        &self,
        warp: &Warp,
        list: &[u16],
        by_parity: bool,
        at: u32,
        lane: usize,
    ) -> Option<bool> {
        let phase = self.hopper.barriers.get(&at)?.phase;
        if by_parity {
            let parity = u64::from(warp.registers.read::<u32>(list[2])[lane]);
            (parity < 2).then_some(phase & 1 != parity)
        } else {
            let behind = (phase & 7).wrapping_sub(warp.registers.read::<u64>(list[2])[lane] >> 61);
            (behind & 7 < 2).then_some(behind & 7 == 1)
        }
    }

    /// What the checks say of every barrier when nothing goes on.
    pub(super) fn describe_barriers(&self) -> String {
        let line = |pc: usize| {
            let note = &self.kernel.notes[pc];
            match note.source.as_ref().and_then(|lines| lines.first()) {
                Some((_, line)) => format!("line {line}"),
                None => format!("PTX line {}", note.line),
            }
        };
        let of = |(at, barrier): (&u32, &Mbarrier)| {
            let waited = barrier
                .waited
                .map_or(String::new(), |pc| format!(", last waited at on {}", line(pc)));
            let bytes = match barrier.bytes {
                0 => String::new(),
                more if more > 0 => format!(" and {more} bytes"),
                less => format!(" and has had {} bytes more than were expected", -less),
            };
            format!(
                "mbarrier {}: phase {} waits for {} of {} arrivals{bytes} (initialised on {}{waited})",
                describe_shared(self.kernel, u64::from(*at)),
                barrier.phase,
                barrier.pending,
                barrier.expected,
                line(barrier.made),
            )
        };
        self.hopper.barriers.iter().map(of).collect::<Vec<_>>().join("; ")
    }
}
