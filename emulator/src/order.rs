//! What happens before what: vector clocks over the threads of a launch.
//!
//! Time is counted in epochs. One counter serves the whole launch and moves on whenever somebody
//! releases: arrives at a barrier, fences, or publishes by an atomic. An access is stamped with
//! the epoch it is made in, so "everything thread t did up to epoch e" is one number, and a clock
//! is a list of such numbers: for a block, a warp or a single thread, whichever is coarsest.
//!
//! The rules are those of the PTX memory consistency model (PTX ISA, "Memory Consistency Model"):
//! block barriers and `bar.warp.sync` order what their participants did; a release (or a fence
//! followed by a strong write) that is observed by an acquire (or a strong read followed by a
//! fence) orders what came before one before what comes after the other, if their scopes include
//! both threads; shuffles and votes order nothing. In two places the rules here are laxer than its
//! letter, as GPUs and most code are: a fence counts for what threads that meet its thread at a
//! barrier publish afterwards, and a thread that has exited counts as having met all others.

use std::collections::HashMap;
use std::rc::Rc;

/// A moment of a launch.
pub(crate) type Epoch = u32;

/// Epochs end here: a launch that gets there is no longer checked for races.
pub(crate) const LAST_EPOCH: Epoch = Epoch::MAX - 2;

/// Warp or lane number that stands for all of them.
pub(crate) const ALL: u8 = 0xff;

/// Whose accesses a number of a clock is about. Agents are what completes asynchronous operations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Party {
    /// Number of the block, in the order in which blocks were started.
    pub block: u32,
    pub warp: u8,
    pub lane: u8,
}

/// For each party, the epoch up to which what it did is ordered before now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    /// Sorted by party.
    known: Vec<(Party, Epoch)>,
}

impl Clock {
    fn up_to(&self, party: Party) -> Epoch {
        match self.known.binary_search_by_key(&party, |entry| entry.0) {
            Ok(at) => self.known[at].1,
            Err(_) => 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether what a thread, or a whole warp, did in an epoch is ordered before.
    pub(crate) fn covers(&self, party: Party, epoch: Epoch) -> bool {
        let Party { block, warp, .. } = party;
        if self.known.is_empty() {
            return false;
        }
        if self.up_to(Party { block, warp: ALL, lane: ALL }) >= epoch
            || self.up_to(Party { block, warp, lane: ALL }) >= epoch
        {
            return true;
        }
        if party.lane != ALL {
            return self.up_to(party) >= epoch;
        }
        (0..32).all(|lane| self.up_to(Party { block, warp, lane }) >= epoch)
    }

    /// Learns of one party.
    pub(crate) fn learn(&mut self, party: Party, epoch: Epoch) {
        match self.known.binary_search_by_key(&party, |entry| entry.0) {
            Ok(at) => self.known[at].1 = self.known[at].1.max(epoch),
            Err(at) => self.known.insert(at, (party, epoch)),
        }
    }

    /// Learns that everything a block did is ordered; what was known of its parts is implied.
    pub(crate) fn learn_block(&mut self, block: u32, epoch: Epoch) {
        self.known.retain(|(party, _)| party.block != block);
        self.learn(Party { block, warp: ALL, lane: ALL }, epoch);
    }

    /// Learns all that another clock knows.
    pub(crate) fn join(&mut self, other: &Self) {
        if other.known.is_empty() || self.known == other.known {
            return;
        }
        if self.known.is_empty() {
            self.known.clone_from(&other.known);
            return;
        }
        let mut out = Vec::with_capacity(self.known.len() + other.known.len());
        let (mut a, mut b) = (self.known.iter().peekable(), other.known.iter().peekable());
        loop {
            match (a.peek(), b.peek()) {
                (Some(&&x), Some(&&y)) if x.0 == y.0 => {
                    out.push((x.0, x.1.max(y.1)));
                    a.next();
                    b.next();
                }
                (Some(&&x), Some(&&y)) => {
                    if x.0 < y.0 {
                        out.push(x);
                        a.next();
                    } else {
                        out.push(y);
                        b.next();
                    }
                }
                (Some(&&x), None) => {
                    out.push(x);
                    a.next();
                }
                (None, Some(&&y)) => {
                    out.push(y);
                    b.next();
                }
                (None, None) => break,
            }
        }
        self.known = out;
    }
}

/// Joins a shared clock into another, without a copy where one of them says it all.
fn join_shared(into: &mut Rc<Clock>, from: &Rc<Clock>) {
    if Rc::ptr_eq(into, from) || from.is_empty() {
        return;
    }
    if into.is_empty() {
        *into = Rc::clone(from);
        return;
    }
    Rc::make_mut(into).join(from);
}

/// How far an ordering operation reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Block,
    Device,
}

/// What a thread knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    /// What happened before its next access, but for what its own warp did.
    pub clock: Rc<Clock>,
    /// What its next strong write publishes, to its block and to the device: set by fences.
    released: [Rc<Clock>; 2],
    /// What its next fence acquires, by the reach that fence needs: set by strong reads.
    pending: [Rc<Clock>; 2],
    /// What an asynchronous operation that it starts comes after: set by `fence.proxy.async`.
    pub fenced: Rc<Clock>,
}

impl Order {
    /// Learns all that another thread knows.
    pub(crate) fn join(&mut self, other: &Self) {
        join_shared(&mut self.clock, &other.clock);
        join_shared(&mut self.fenced, &other.fenced);
        for at in 0..2 {
            join_shared(&mut self.released[at], &other.released[at]);
            join_shared(&mut self.pending[at], &other.pending[at]);
        }
    }

    pub(crate) fn learn(&mut self, party: Party, epoch: Epoch) {
        Rc::make_mut(&mut self.clock).learn(party, epoch);
    }

    pub(crate) fn learn_block(&mut self, block: u32, epoch: Epoch) {
        Rc::make_mut(&mut self.clock).learn_block(block, epoch);
    }

    /// Forgets what is known of a warp alone; its own order is kept with it.
    fn forget_warp(&mut self, block: u32, warp: u8) {
        let own = |party: &Party| (party.block, party.warp) == (block, warp);
        if self.clock.known.iter().any(|(party, _)| own(party)) {
            Rc::make_mut(&mut self.clock).known.retain(|(party, _)| !own(party));
        }
    }

    /// Learns what an acquire found.
    pub(crate) fn acquire(&mut self, clock: &Rc<Clock>) {
        join_shared(&mut self.clock, clock);
    }

    fn published(&self, scope: Scope) -> &Rc<Clock> {
        &self.released[scope as usize]
    }
}

/// What the threads of a warp know: mostly all the same.
#[derive(Clone, Debug)]
enum Lanes {
    Same(Order),
    Each(Box<[Order; 32]>),
}

/// The order of one warp's lanes among themselves and towards others.
#[derive(Clone, Debug)]
pub(crate) struct WarpOrder {
    lanes: Lanes,
    pub block: u32,
    pub warp: u8,
    /// When its block began.
    pub started: Epoch,
    /// Up to here, everything the block did is ordered before what any lane does next.
    pub block_floor: Epoch,
    /// Up to here, everything the warp did is.
    pub warp_floor: Epoch,
}

impl WarpOrder {
    /// A warp of a block that starts: everything its block did before (nothing) is ordered.
    pub(crate) fn new(block: u32, warp: u8, now: Epoch) -> Self {
        let lanes = Lanes::Same(Order::default());
        Self { lanes, block, warp, started: now, block_floor: now, warp_floor: now }
    }

    pub(crate) fn of(&self, lane: usize) -> &Order {
        match &self.lanes {
            Lanes::Same(order) => order,
            Lanes::Each(orders) => &orders[lane & 31],
        }
    }

    /// Whether all lanes know the same.
    pub(crate) fn uniform(&self) -> bool {
        matches!(self.lanes, Lanes::Same(_))
    }

    /// What the lanes of a mask know together.
    pub(crate) fn joined(&self, mask: u32) -> Order {
        match &self.lanes {
            Lanes::Same(order) => order.clone(),
            Lanes::Each(orders) => {
                let mut out = Order::default();
                for lane in (0..32).filter(|lane| mask >> lane & 1 != 0) {
                    out.join(&orders[lane]);
                }
                out
            }
        }
    }

    /// Changes what the lanes of a mask know. `live` are the lanes that have not exited.
    fn change(&mut self, mask: u32, live: u32, change: impl Fn(&mut Order)) {
        match &mut self.lanes {
            Lanes::Same(order) if mask & live == live => change(order),
            Lanes::Same(order) => {
                let mut orders = Box::new(std::array::from_fn(|_| order.clone()));
                orders.iter_mut().enumerate().for_each(|(lane, order): (usize, &mut Order)| {
                    if mask >> lane & 1 != 0 {
                        change(order);
                    }
                });
                self.lanes = Lanes::Each(orders);
            }
            Lanes::Each(orders) => {
                for lane in (0..32).filter(|lane| mask >> lane & 1 != 0) {
                    change(&mut orders[lane]);
                }
            }
        }
    }

    fn party(&self, lane: u8) -> Party {
        Party { block: self.block, warp: self.warp, lane }
    }

    /// What the lanes of a mask tell others of themselves and of all they know.
    pub(crate) fn release(&self, mask: u32, live: u32, now: Epoch) -> Order {
        let mut out = self.joined(mask);
        let all = mask & live == live;
        out.learn(self.party(ALL), if all { now } else { self.warp_floor });
        if !all {
            for lane in (0..32u8).filter(|lane| mask >> lane & 1 != 0) {
                out.learn(self.party(lane), now);
            }
        }
        out
    }

    /// The lanes of a mask learn what a barrier of the block collected.
    pub(crate) fn after_barrier(&mut self, mask: u32, live: u32, order: &Order, now: Epoch) {
        if mask & live != live {
            self.change(mask, live, |own| own.join(order));
            return;
        }
        // All lanes were at it: they are ordered among themselves, and know the same. What they knew
        // went into the barrier, so that its clock is theirs, and all warps share one.
        let mut same = order.clone();
        same.forget_warp(self.block, self.warp);
        self.lanes = Lanes::Same(same);
        self.warp_floor = now;
        self.block_floor = self.block_floor.max(self.floor_in_clock());
    }

    /// Everything the block did up to `now` is ordered before what this warp does next.
    fn floor_in_clock(&self) -> Epoch {
        let block = Party { block: self.block, warp: ALL, lane: ALL };
        match &self.lanes {
            Lanes::Same(order) => order.clock.up_to(block),
            Lanes::Each(_) => 0,
        }
    }

    /// `bar.warp.sync` among the lanes of a mask.
    pub(crate) fn warp_sync(&mut self, mask: u32, live: u32, now: Epoch) {
        if mask & live == live {
            if !self.uniform() {
                let mut same = self.joined(live);
                same.forget_warp(self.block, self.warp);
                self.lanes = Lanes::Same(same);
            }
            self.warp_floor = now;
            return;
        }
        let order = self.release(mask, live, now);
        self.change(mask, live, |own| own.join(&order));
    }

    /// A fence of the lanes of a mask.
    pub(crate) fn fence(&mut self, mask: u32, live: u32, scope: Scope, now: Epoch) {
        self.change(mask, live, |own| {
            for reach in 0..=scope as usize {
                let pending = std::mem::take(&mut own.pending[reach]);
                join_shared(&mut own.clock, &pending);
            }
        });
        let order = self.release(mask, live, now);
        self.change(mask, live, |own| {
            for reach in 0..=scope as usize {
                own.released[reach] = Rc::clone(&order.clock);
            }
        });
    }

    /// `fence.proxy.async` of the lanes of a mask: asynchronous operations come after all they know.
    pub(crate) fn fence_proxy(&mut self, mask: u32, live: u32, now: Epoch) {
        let order = self.release(mask, live, now);
        self.change(mask, live, |own| join_shared(&mut own.fenced, &order.clock));
    }

    /// The lanes of a mask have waited for an agent.
    pub(crate) fn waited_for(&mut self, mask: u32, live: u32, agent: Party, now: Epoch) {
        self.change(mask, live, |own| own.learn(agent, now));
    }

    /// The lanes of a mask learn what others said at an mbarrier.
    pub(crate) fn meet(&mut self, mask: u32, live: u32, order: &Order) {
        self.change(mask, live, |own| own.join(order));
    }

    /// The lanes of a mask acquire a clock.
    pub(crate) fn acquire(&mut self, mask: u32, live: u32, clock: &Rc<Clock>) {
        self.change(mask, live, |own| own.acquire(clock));
    }

    fn wait_for_fence(&mut self, lane: usize, live: u32, reach: Scope, clock: &Rc<Clock>) {
        self.change(1 << lane, live, |own| {
            join_shared(&mut own.pending[reach as usize], clock);
        });
    }
}

/// What was published at one place in memory.
#[derive(Clone, Debug, Default)]
struct Published {
    /// To threads of the block that published it.
    block: Vec<(u32, Rc<Clock>)>,
    /// To everybody.
    device: Rc<Clock>,
}

/// How a strong operation orders.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strength {
    pub scope: Scope,
    pub acquire: bool,
    pub release: bool,
}

/// What was published by strong writes, by window and offset.
#[derive(Debug, Default)]
pub(crate) struct Publications {
    places: HashMap<(u64, u64), Published>,
}

impl Publications {
    /// A strong read by one lane.
    pub(crate) fn observe(
        &self,
        place: (u64, u64),
        order: &mut WarpOrder,
        lane: usize,
        live: u32,
        how: Strength,
    ) {
        let Some(published) = self.places.get(&place) else { return };
        let own = order.block;
        for (block, clock) in &published.block {
            if *block == own {
                if how.acquire {
                    order.acquire(1 << lane, live, clock);
                } else {
                    order.wait_for_fence(lane, live, Scope::Block, clock);
                }
            }
        }
        if how.scope == Scope::Device && !published.device.is_empty() {
            if how.acquire {
                order.acquire(1 << lane, live, &published.device);
            } else {
                order.wait_for_fence(lane, live, Scope::Device, &published.device);
            }
        }
    }

    /// A strong write by one lane. One that also reads continues what others published.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn publish(
        &mut self,
        place: (u64, u64),
        order: &WarpOrder,
        lane: usize,
        live: u32,
        how: Strength,
        continues: bool,
        now: Epoch,
    ) {
        let (near, far) = if how.release {
            let clock = order.release(1 << lane, live, now).clock;
            (Rc::clone(&clock), if how.scope == Scope::Device { clock } else { Rc::default() })
        } else {
            let own = order.of(lane);
            let mut near = Rc::clone(own.published(Scope::Block));
            join_shared(&mut near, own.published(Scope::Device));
            let far = own.published(Scope::Device);
            (near, if how.scope == Scope::Device { Rc::clone(far) } else { Rc::default() })
        };
        if near.is_empty() && far.is_empty() {
            // Nothing to say; a plain strong write ends what others had said here.
            if !continues {
                self.places.remove(&place);
            }
            return;
        }
        let published = self.places.entry(place).or_default();
        if !continues {
            *published = Published::default();
        }
        match published.block.iter_mut().find(|(block, _)| *block == order.block) {
            Some((_, clock)) => join_shared(clock, &near),
            None => published.block.push((order.block, near)),
        }
        join_shared(&mut published.device, &far);
    }
}
