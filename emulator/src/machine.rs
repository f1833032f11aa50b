//! The state of a launch, and the loop that runs warps.
//!
//! A warp is a list of groups of lanes, each at one instruction. The group at the lowest
//! instruction runs; groups that meet are merged, which makes lanes reconverge after a branch.
//! A group that keeps running backwards while others wait is set aside after a slice, so that
//! lanes that spin do not starve the lane they wait for.
//!
//! The file is long because the loop is one match over all codes, compiled eight times.

use std::collections::HashMap;

use crate::access::Outcome;
use crate::counters::Counters;
use crate::exchange;
use crate::findings::{Check, Fault};
use crate::hopper::Hopper;
use crate::kernel::Kernel;
use crate::matrix;
use crate::memory::Allocation;
use crate::op::{ASYNC_PROXY, Code, DEVICE_SCOPE, NEGATED, Op, UNGUARDED, WIDE_DATA};
use crate::order::{Epoch, LAST_EPOCH, Order, Publications, Scope, WarpOrder};
use crate::poison::{Poison, Stored};
use crate::races::{Cells, Lists};
use crate::registers::{FULL, Registers, Word};
use crate::shadow::Shadow;
use crate::syntax::Space;
use crate::tensor_cores::MatrixModel;

/// Instructions a group may run while another group of its warp is ready.
const GROUP_SLICE: u64 = 2_000;

/// No instruction: the lane has not stored anything.
const NO_STORE: u32 = u32::MAX;

/// A race that is none if its lanes update the same address atomically next, as the first guess of
/// a compare-and-swap loop.
pub(crate) struct Suspect {
    pub pc: usize,
    pub lanes: u32,
    pub space: Space,
    pub window: u64,
    pub offsets: [u64; 32],
    pub fault: Box<Fault>,
}

/// What a group waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// At a block barrier, with this number.
    Barrier(u8),
    /// At a warp-wide instruction, for these lanes.
    Members(u32),
    /// At an asynchronous instruction of `hopper`, which knows for what.
    Asynchronous,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub pc: u32,
    pub mask: u32,
    pub state: State,
    /// When it last ran, to pick the longest waiting.
    stamp: u64,
}

/// A `cp.async` of one warp that has not landed in all lanes.
#[derive(Clone)]
pub(crate) struct Copy {
    /// Lanes in which it is still under way.
    pub mask: u32,
    pub size: u8,
    /// Group of each lane: the commits it had made before.
    pub group: [u32; 32],
    /// Where each lane reads, when the copy lands, and where in shared memory it writes.
    pub from: [u64; 32],
    pub to: [u32; 32],
    /// Bytes that are read; the rest of `size` is zero.
    pub bytes: [u8; 32],
    /// All lanes take part, and each reads 16 bytes of one memory window.
    pub alike: bool,
    /// The bytes are in place already: a schedule may let a copy land at once.
    pub landed: bool,
}

pub(crate) struct Warp {
    pub index: u32,
    pub registers: Registers,
    pub groups: Vec<Group>,
    /// Lanes that were started, and those that have not exited.
    pub launched: u32,
    pub live: u32,
    pub local: Vec<u8>,
    pub local_shadow: Shadow,
    pub copies: Vec<Copy>,
    pub commits: [u32; 32],
    pub bytes_in_flight: u64,
    /// Whether it has started an asynchronous copy of its own.
    pub copied: bool,
    /// Instructions it has run.
    pub ran: u64,
    /// Instruction of each lane's latest store or atomic in a checked run; `NO_STORE` before it.
    pub stored: [u32; 32],
    /// A weak read that races with atomics, unless its lanes go on with an atomic there.
    pub suspect: Option<Box<Suspect>>,
    /// What is ordered before what its lanes do.
    pub order: WarpOrder,
    /// Undefined values in its registers.
    pub poison: Poison,
    /// Choose the longest waiting group next.
    pub rotate: bool,
    stamp: u64,
}

impl Warp {
    pub(crate) fn new(index: u32, kernel: &Kernel) -> Self {
        let mut registers = Registers::new(kernel.slots, kernel.predicates);
        for &(slot, bits, wide) in &kernel.constants {
            if wide {
                *registers.write::<u64>(slot) = [bits; 32];
            } else {
                *registers.write::<u32>(slot) = [bits as u32; 32];
            }
        }
        let local = 32 * kernel.local_bytes as usize;
        Self {
            index,
            registers,
            groups: Vec::with_capacity(8),
            launched: 0,
            live: 0,
            local: vec![0; local],
            local_shadow: Shadow::new(local),
            copies: Vec::with_capacity(16),
            commits: [0; 32],
            bytes_in_flight: 0,
            copied: false,
            ran: 0,
            stored: [NO_STORE; 32],
            suspect: None,
            order: WarpOrder::new(0, index as u8, 0),
            poison: Poison::default(),
            rotate: false,
            stamp: 0,
        }
    }

    pub(crate) fn start(
        &mut self,
        kernel: &Kernel,
        launched: u32,
        check: bool,
        serial: u32,
        now: Epoch,
    ) {
        self.order = WarpOrder::new(serial, self.index as u8, now);
        self.suspect = None;
        // Nothing else is read before it is written.
        if !kernel.undefined.cells.is_empty() {
            self.registers.clear_from(kernel.first_register);
        }
        self.registers.predicates[crate::allocate::TRUE_PREDICATE as usize] = FULL;
        self.groups.clear();
        self.groups.push(Group { pc: 0, mask: launched, state: State::Ready, stamp: 0 });
        self.launched = launched;
        self.live = launched;
        if check {
            self.local_shadow.clear();
            self.poison.start(kernel);
        }
        self.copies.clear();
        self.commits = [0; 32];
        self.bytes_in_flight = 0;
        self.copied = false;
        self.ran = 0;
        self.stored = [NO_STORE; 32];
        self.rotate = false;
    }

    pub(crate) fn ready(&self) -> bool {
        self.groups.iter().any(|group| group.state == State::Ready)
    }

    /// Takes the group to run next, with every other one that stands at the same instruction,
    /// and says which instruction the nearest ready one ahead stands at.
    fn take(&mut self) -> Option<(usize, u32, usize)> {
        let ready = |group: &&Group| group.state == State::Ready;
        let chosen = if self.rotate {
            self.rotate = false;
            self.groups.iter().filter(ready).min_by_key(|group| group.stamp)?.pc
        } else {
            self.groups.iter().filter(ready).map(|group| group.pc).min()?
        };
        let mut mask = 0;
        let mut ahead = usize::MAX;
        self.groups.retain(|group| {
            if group.state != State::Ready {
                return true;
            }
            if group.pc == chosen {
                mask |= group.mask;
                return false;
            }
            if group.pc > chosen {
                ahead = ahead.min(group.pc as usize);
            }
            true
        });
        Some((chosen as usize, mask, ahead))
    }

    fn push(&mut self, pc: usize, mask: u32, state: State) {
        self.stamp += 1;
        self.groups.push(Group { pc: pc as u32, mask, state, stamp: self.stamp });
    }
}

/// One of the sixteen barriers of a block.
#[derive(Clone, Default)]
pub(crate) struct Barrier {
    /// Threads it waits for, rounded to warps; 0 while nobody has arrived.
    pub expected: u32,
    /// Lanes of each warp that have arrived.
    pub arrived: Vec<u32>,
    /// Threads counted, in whole warps.
    pub counted: u32,
    pub count: u32,
    pub all: bool,
    pub any: bool,
    /// It was named with the threads of the whole block.
    pub whole_block: bool,
    /// What those that have arrived know.
    pub order: Order,
}

/// Executed warp instructions and threads, by operation.
#[derive(Clone, Copy, Default)]
pub(crate) struct Executed {
    pub warps: u64,
    pub threads: u64,
}

impl Executed {
    #[inline(always)]
    fn add(&mut self, mask: u32) {
        self.warps += 1;
        self.threads += u64::from(mask.count_ones());
    }
}

pub(crate) struct Machine<'a> {
    pub kernel: &'a Kernel,
    pub allocations: &'a mut [Option<Allocation>],
    pub module: &'a mut [Allocation],
    pub parameters: Vec<u8>,
    pub shared: Vec<u8>,
    pub shared_shadow: Shadow,
    pub shared_valid: Option<Shadow>,
    pub shared_cells: Cells,
    pub lists: Lists,
    pub publications: Publications,
    /// The present epoch, and that before the launch.
    pub now: Epoch,
    pub launch_epoch: Epoch,
    /// Asynchronous copies put their bytes in place at once.
    pub land_early: bool,
    pub no_shadow: Shadow,
    /// Where undefined values in memory come from.
    pub stored: Stored,
    pub counters: Counters,
    pub executed: Vec<Executed>,
    pub barriers: Vec<Barrier>,
    /// A barrier changed since they were last looked at.
    pub barriers_changed: bool,
    pub threads: u32,
    /// What lies only behind an instruction, by instruction, as far as it was asked for.
    pub behind: HashMap<usize, Vec<bool>>,
    /// Warp instructions run so far, for clocks and the budget.
    pub ticks: u64,
    /// What the kernel printed.
    pub printed: String,
    pub matrix: MatrixModel,
    pub hopper: Hopper,
}

/// Where a fault happened.
pub(crate) struct Stopped {
    pub pc: usize,
    pub fault: Box<Fault>,
}

/// Lanes for which the guard of an operation holds.
#[inline(always)]
fn guard(registers: &Registers, op: &Op) -> u32 {
    if op.guard == UNGUARDED {
        return FULL;
    }
    let predicate = registers.predicates[(op.guard & !NEGATED) as usize];
    if op.guard & NEGATED != 0 { !predicate } else { predicate }
}

/// Runs operations that are all arithmetic or, for a whole warp, shuffles, and says how many. It is a
/// function of its own so that what the loop needs stays in the processor's registers.
#[inline(never)]
fn run_straight<const COUNT: bool>(
    registers: &mut Registers,
    code: &[Op],
    executed: &mut [Executed],
    act: u32,
) -> usize {
    let shuffles = |op: &Op| op.code != Code::Arithmetic;
    let code = match act {
        FULL => code,
        _ => &code[..code.iter().position(shuffles).unwrap_or(code.len())],
    };
    let threads = u64::from(act.count_ones());
    let mut executed = executed.iter_mut();
    let mut left = code;
    while let Some(op) = left.first() {
        let (these, after) = left.split_at(left.len().min(op.alike as usize));
        left = after;
        let m = act & guard(registers, op);
        if COUNT {
            let threads = if m == act { threads } else { u64::from(m.count_ones()) };
            for executed in executed.by_ref().take(these.len()) {
                executed.warps += 1;
                executed.threads += threads;
            }
        }
        if m != 0 {
            // SAFETY: functions for a wide processor were chosen only where the running one is, and
            // the registers are those of the operation's kernel.
            unsafe { (op.exec)(registers, these, m) }
        }
    }
    code.len()
}

fn first_lane(values: &[u32; 32], mask: u32) -> u32 {
    values[mask.trailing_zeros() as usize & 31]
}

impl Machine<'_> {
    /// Runs a warp until no group of it is ready or `slice` instructions have run.
    pub(crate) fn run<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        slice: u64,
        wide: bool,
    ) -> Result<(), Stopped> {
        #[cfg(target_arch = "x86_64")]
        if wide {
            // SAFETY: `wide` is what `wide_is_available` said.
            return unsafe { self.run_wide::<CHECK, COUNT>(warp, slice) };
        }
        let _ = wide;
        self.run_here::<CHECK, COUNT>(warp, slice)
    }

    /// # Safety
    /// The processor must have these features.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
    unsafe fn run_wide<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        slice: u64,
    ) -> Result<(), Stopped> {
        self.run_here::<CHECK, COUNT>(warp, slice)
    }

    #[inline(always)]
    fn run_here<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        slice: u64,
    ) -> Result<(), Stopped> {
        let kernel = self.kernel;
        let code = &kernel.code[..];
        let watched = if CHECK { &kernel.watched[..] } else { &[] };
        let end = self.ticks + slice;
        'groups: while let Some((mut pc, mut act, mut ahead)) = warp.take() {
            // A group alone may use the whole slice.
            let alone = !warp.groups.iter().any(|group| group.state == State::Ready);
            let until = if alone { end } else { end.min(self.ticks + GROUP_SLICE) };
            loop {
                if pc >= ahead || self.ticks >= until {
                    warp.rotate = self.ticks >= until && pc < ahead;
                    warp.push(pc, act, State::Ready);
                    if self.ticks >= end {
                        return Ok(());
                    }
                    continue 'groups;
                }
                let op = &code[pc];
                if op.straight != 0 && (act == FULL || op.code == Code::Arithmetic) {
                    let count = u64::from(op.straight).min(until - self.ticks) as usize;
                    let end = pc + count.min(ahead - pc);
                    let executed = if COUNT { &mut self.executed[pc..end] } else { &mut [] };
                    let registers = &mut warp.registers;
                    let ran = run_straight::<COUNT>(registers, &code[pc..end], executed, act);
                    self.ticks += ran as u64;
                    pc += ran;
                    continue;
                }
                self.ticks += 1;
                macro_rules! run {
                    ($outcome:expr) => {
                        if let Err(fault) = $outcome {
                            return Err(Stopped { pc, fault });
                        }
                    };
                }
                if watched.get(pc) == Some(&true) {
                    run!(self.watch(warp, pc, act));
                }
                let m = act & guard(&warp.registers, op);
                if COUNT {
                    self.executed[pc].add(m);
                }
                if m == 0 {
                    pc += 1;
                    continue;
                }
                match op.code {
                    Code::Arithmetic => {
                        // SAFETY: as in `run_straight`.
                        unsafe { (op.exec)(&mut warp.registers, std::slice::from_ref(op), m) }
                    }
                    Code::Nothing => {}
                    Code::Branch => {
                        let target = op.imm as usize;
                        if m == act {
                            pc = target;
                        } else {
                            if COUNT {
                                self.counters.divergent_branches += 1;
                            }
                            warp.push(target, m, State::Ready);
                            warp.push(pc + 1, act & !m, State::Ready);
                            continue 'groups;
                        }
                        if target > ahead {
                            // It jumped over a waiting group, which goes first.
                            warp.push(pc, act, State::Ready);
                            continue 'groups;
                        }
                        continue;
                    }
                    Code::BranchIndexed => {
                        let table = &kernel.tables[op.imm as usize];
                        let index = *warp.registers.read::<u32>(op.s[0]);
                        if act & !m != 0 {
                            warp.push(pc + 1, act & !m, State::Ready);
                        }
                        let mut left = m;
                        while left != 0 {
                            let which = first_lane(&index, left);
                            let these = same(&index, which, left);
                            let Some(&target) = table.get(which as usize) else {
                                let fault = Fault::new(
                                    Check::InvalidArgument,
                                    these,
                                    format!("branch index {which}, the table has {}", table.len()),
                                );
                                return Err(Stopped { pc, fault });
                            };
                            warp.push(target as usize, these, State::Ready);
                            left &= !these;
                        }
                        if COUNT && first_lane(&index, m) as usize != usize::MAX {
                            let uniform = same(&index, first_lane(&index, m), m) == act;
                            self.counters.divergent_branches += u64::from(!uniform);
                        }
                        continue 'groups;
                    }
                    Code::Call => {
                        warp.registers.put(op.d[0], &[pc as u32 + 1; 32], m);
                        warp.push(op.imm as usize, m, State::Ready);
                        if act & !m != 0 {
                            warp.push(pc + 1, act & !m, State::Ready);
                        }
                        continue 'groups;
                    }
                    Code::Return => {
                        let back = *warp.registers.read::<u32>(op.s[0]);
                        if act & !m != 0 {
                            warp.push(pc + 1, act & !m, State::Ready);
                        }
                        let mut left = m;
                        while left != 0 {
                            let target = first_lane(&back, left);
                            let these = same(&back, target, left);
                            warp.push(target as usize, these, State::Ready);
                            left &= !these;
                        }
                        continue 'groups;
                    }
                    Code::Exit => {
                        if CHECK {
                            proven(warp)?;
                        }
                        warp.live &= !m;
                        act &= !m;
                        // Lanes that wait for those that left may go on.
                        for group in &mut warp.groups {
                            if matches!(group.state, State::Members(_)) {
                                group.state = State::Ready;
                            }
                        }
                        if act == 0 {
                            continue 'groups;
                        }
                        warp.push(pc + 1, act, State::Ready);
                        continue 'groups;
                    }
                    Code::Trap => {
                        let why = if op.flags != 0 {
                            "an assertion of the kernel failed"
                        } else {
                            "the kernel trapped"
                        };
                        let fault = Fault::new(Check::Trap, m, why);
                        return Err(Stopped { pc, fault });
                    }
                    Code::Load => run!(self.load::<CHECK, COUNT>(warp, op, pc, m)),
                    Code::Store => {
                        if CHECK && op.space != Space::Local {
                            note_store(warp, pc, m);
                        }
                        run!(self.store::<CHECK, COUNT>(warp, op, pc, m));
                        if watched.get(pc) == Some(&true) {
                            run!(self.leak(warp, pc, m));
                        }
                    }
                    Code::Atomic => {
                        if CHECK {
                            note_store(warp, pc, m);
                        }
                        run!(self.atomic::<CHECK, COUNT>(warp, op, pc, m));
                    }
                    Code::CopyAsync => run!(self.copy::<CHECK, COUNT>(warp, op, pc, m)),
                    Code::CopyCommit => {
                        for (lane, commits) in warp.commits.iter_mut().enumerate() {
                            *commits += m >> lane & 1;
                        }
                    }
                    Code::CopyWait => {
                        self.wait::<CHECK, COUNT>(warp, m, op.imm as u32, false);
                    }
                    Code::CopyWaitAll => self.wait::<CHECK, COUNT>(warp, m, 0, true),
                    Code::BarrierSync | Code::BarrierArrive | Code::BarrierReduce => {
                        if CHECK {
                            proven(warp)?;
                        }
                        run!(self.arrive::<CHECK>(warp, op, m));
                        if op.code == Code::BarrierArrive {
                            pc += 1;
                            continue;
                        }
                        let id = first_lane(warp.registers.read::<u32>(op.s[0]), m) as u8;
                        warp.push(pc, m, State::Barrier(id));
                        if act & !m != 0 {
                            warp.push(pc + 1, act & !m, State::Ready);
                        }
                        continue 'groups;
                    }
                    Code::WarpSync
                    | Code::Shuffle
                    | Code::Vote
                    | Code::Match
                    | Code::Reduce
                    | Code::Elect
                    | Code::MatrixLoad
                    | Code::MatrixStore
                    | Code::MatrixMultiply
                    | Code::MatrixTranspose
                    | Code::Warpgroup => {
                        let matrix = takes_whole_warps(op.code);
                        let mut left = m;
                        while left != 0 {
                            let (members, these) = if matrix {
                                (FULL, left)
                            } else {
                                let slot = match op.code {
                                    Code::WarpSync => op.s[0],
                                    Code::Shuffle => op.s[3],
                                    _ => op.s[1],
                                };
                                let all = warp.registers.read::<u32>(slot);
                                let members = first_lane(all, left);
                                (members, same(all, members, left))
                            };
                            left &= !these;
                            let together = if these == members {
                                these
                            } else {
                                match join::<CHECK>(warp, code, pc, these, members) {
                                    Ok(Some(together)) => {
                                        if CHECK {
                                            run!(self.all_came(warp, pc, members));
                                        }
                                        act |= together;
                                        together
                                    }
                                    Ok(None) => {
                                        act &= !these;
                                        continue;
                                    }
                                    Err(fault) => return Err(Stopped { pc, fault }),
                                }
                            };
                            if watched.get(pc) == Some(&true) {
                                run!(self.follow(warp, pc, together));
                            }
                            let registers = &mut warp.registers;
                            match op.code {
                                Code::Shuffle => exchange::shuffle(registers, op, together),
                                Code::Vote => exchange::vote(registers, op, together),
                                Code::Match => exchange::matching(registers, op, together),
                                Code::Reduce => exchange::reduce(registers, op, together),
                                Code::Elect => exchange::elect(registers, op, together),
                                Code::MatrixTranspose => {
                                    exchange::transpose(registers, op, together)
                                }
                                Code::MatrixLoad => {
                                    run!(self.matrix_load::<CHECK, COUNT>(warp, op, pc));
                                }
                                Code::MatrixStore => {
                                    run!(self.matrix_store::<CHECK, COUNT>(warp, op, pc));
                                }
                                Code::MatrixMultiply => {
                                    let list = &kernel.lists[op.imm as usize];
                                    matrix::multiply(registers, list, op, self.matrix);
                                }
                                Code::Warpgroup => {
                                    match self.asynchronous::<CHECK, COUNT>(warp, op, pc, together)
                                    {
                                        Ok(0) => {}
                                        Ok(parked) => {
                                            warp.push(pc, parked, State::Asynchronous);
                                            act &= !parked;
                                        }
                                        Err(fault) => return Err(Stopped { pc, fault }),
                                    }
                                }
                                Code::WarpSync if CHECK => {
                                    proven(warp)?;
                                    let all = members & warp.live;
                                    warp.order.warp_sync(all, warp.live, self.now);
                                    self.tick();
                                }
                                _ => {}
                            }
                        }
                        if act == 0 {
                            continue 'groups;
                        }
                        ahead = warp
                            .groups
                            .iter()
                            .filter(|g| g.state == State::Ready && g.pc as usize > pc)
                            .map(|g| g.pc as usize)
                            .min()
                            .unwrap_or(usize::MAX);
                    }
                    Code::ActiveMask => warp.registers.put(op.d[0], &[m; 32], m),
                    Code::Fence => {
                        if CHECK {
                            self.fence(warp, op, m);
                        }
                    }
                    Code::Print => run!(self.print(warp, op, m)),
                    Code::Asynchronous => {
                        match self.asynchronous::<CHECK, COUNT>(warp, op, pc, m) {
                            Ok(0) => {}
                            Ok(parked) => {
                                warp.push(pc, parked, State::Asynchronous);
                                act &= !parked;
                                if act == 0 {
                                    continue 'groups;
                                }
                            }
                            Err(fault) => return Err(Stopped { pc, fault }),
                        }
                    }
                    Code::Clock => {
                        let now = self.ticks >> op.imm;
                        if op.flags & WIDE_DATA != 0 {
                            warp.registers.put(op.d[0], &[now; 32], m);
                        } else {
                            warp.registers.put(op.d[0], &[now as u32; 32], m);
                        }
                    }
                }
                pc += 1;
            }
        }
        Ok(())
    }

    /// The next epoch: what is done from now on is not part of what was just released.
    pub(crate) fn tick(&mut self) {
        self.now = (self.now + 1).min(LAST_EPOCH);
    }

    #[cold]
    #[inline(never)]
    fn fence(&mut self, warp: &mut Warp, op: &Op, mask: u32) {
        if op.order & ASYNC_PROXY != 0 {
            warp.order.fence_proxy(mask, warp.live, self.now);
        } else {
            let scope = if op.order & DEVICE_SCOPE != 0 { Scope::Device } else { Scope::Block };
            warp.order.fence(mask, warp.live, scope, self.now);
        }
        self.tick();
    }

    /// Lanes of a warp that have exited although they stored something that only code behind
    /// instruction `pc` stores: they went around it. A lane that leaves early does not.
    pub(crate) fn went_around(&mut self, warp: &Warp, pc: usize) -> u32 {
        let exited = warp.launched & !warp.live;
        let mut out = 0;
        for lane in (0..32).filter(|lane| exited >> lane & 1 != 0) {
            let stored = warp.stored[lane];
            if stored != NO_STORE {
                let kernel = self.kernel;
                let behind = self.behind.entry(pc).or_insert_with(|| kernel.only_behind(pc));
                out |= u32::from(behind[stored as usize]) << lane;
            }
        }
        out
    }

    /// Lanes that have exited are not waited for, unless they went around the instruction.
    #[cold]
    #[inline(never)]
    fn all_came(&mut self, warp: &Warp, pc: usize, members: u32) -> Outcome {
        let around = self.went_around(warp, pc) & members;
        if around == 0 {
            return Ok(());
        }
        Err(Fault::new(
            Check::ShuffleDivergence,
            around,
            "these lanes are in the member mask of the instruction, but have gone past it and \
             exited without running it",
        ))
    }

    /// Counts lanes at a barrier; the block decides when it opens.
    fn arrive<const CHECK: bool>(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome {
        let ids = warp.registers.read::<u32>(op.s[0]);
        let counts = warp.registers.read::<u32>(op.s[1]);
        let (id, count) = (first_lane(ids, mask), first_lane(counts, mask));
        if same(ids, id, mask) != mask || same(counts, count, mask) != mask {
            return Err(Fault::new(
                Check::InvalidArgument,
                mask,
                "lanes that run one barrier instruction name different barriers or counts",
            ));
        }
        let warps = self.threads.div_ceil(32);
        if id >= 16 || count % 32 != 0 || count > 32 * warps {
            return Err(Fault::new(
                Check::InvalidArgument,
                mask,
                format!(
                    "barrier {id} with {count} threads: barriers are 0 to 15, and the count is a \
                     multiple of 32 of at most {} here",
                    32 * warps
                ),
            ));
        }
        let expected = if count == 0 { 32 * warps } else { count };
        let barrier = &mut self.barriers[id as usize];
        if barrier.expected != 0 && barrier.expected != expected {
            return Err(Fault::new(
                Check::InvalidArgument,
                mask,
                format!(
                    "barrier {id} with {expected} threads, others wait at it for {}",
                    barrier.expected
                ),
            ));
        }
        if barrier.arrived.len() < warps as usize {
            barrier.arrived.resize(warps as usize, 0);
        }
        if barrier.expected == 0 {
            barrier.expected = expected;
            barrier.all = true;
            barrier.whole_block = count == 0;
        }
        if CHECK {
            // What a barrier of the whole block orders is said when it opens.
            let own = if count == 0 {
                warp.order.joined(mask)
            } else {
                warp.order.release(mask, warp.live, self.now)
            };
            barrier.order.join(&own);
            self.now = (self.now + u32::from(count != 0)).min(LAST_EPOCH);
        }
        if op.code == Code::BarrierReduce {
            let predicate = warp.registers.predicates[op.s[2] as usize];
            let yes = if op.size != 0 { !predicate } else { predicate } & mask;
            barrier.count += yes.count_ones();
            barrier.all &= yes == mask;
            barrier.any |= yes != 0;
        }
        let arrived = &mut barrier.arrived[warp.index as usize];
        // In a checked run, threads that exited are missed at first and let go once nothing else
        // can run; in others they are let go here.
        let wanted = if CHECK { warp.launched } else { warp.live };
        let before = *arrived & wanted == wanted;
        *arrived |= mask;
        if !before && *arrived & wanted == wanted {
            barrier.counted += 32;
        }
        self.barriers_changed = true;
        Ok(())
    }
}

/// Whether all 32 lanes have to run an instruction together.
pub(crate) fn takes_whole_warps(code: Code) -> bool {
    matches!(
        code,
        Code::MatrixLoad
            | Code::MatrixStore
            | Code::MatrixMultiply
            | Code::MatrixTranspose
            | Code::Warpgroup
    )
}

/// Lanes of `mask` with this value.
#[inline(always)]
fn same(values: &[u32; 32], value: u32, mask: u32) -> u32 {
    let mut out = 0;
    for lane in 0..32 {
        out |= u32::from(values[lane] == value) << lane;
    }
    out & mask
}

/// Nothing has excused the read that looked like a race: it is one.
fn proven(warp: &mut Warp) -> Result<(), Stopped> {
    match warp.suspect.take() {
        Some(suspect) => Err(Stopped { pc: suspect.pc, fault: suspect.fault }),
        None => Ok(()),
    }
}

/// Remembers where lanes stored last.
#[inline(always)]
fn note_store(warp: &mut Warp, pc: usize, mask: u32) {
    for lane in 0..32 {
        warp.stored[lane] = u32::blend(warp.stored[lane], pc as u32, mask >> lane & 1 != 0);
    }
}

/// Lanes meet at a warp-wide instruction: the lanes to run it for, or `None` when some members
/// are still on their way and these were parked. Lanes at different `bar.warp.sync` of one member
/// mask meet too.
#[cold]
#[inline(never)]
fn join<const CHECK: bool>(
    warp: &mut Warp,
    code: &[Op],
    pc: usize,
    mask: u32,
    members: u32,
) -> Result<Option<u32>, Box<Fault>> {
    let here = code[pc].code;
    let matrix = takes_whole_warps(here);
    if matrix && warp.live != FULL {
        return Err(Fault::new(
            Check::ShuffleDivergence,
            FULL & !warp.live,
            "a matrix instruction needs all 32 lanes of the warp, these have exited or were never \
             started",
        ));
    }
    if CHECK && mask & !members != 0 {
        return Err(Fault::new(
            Check::ShuffleDivergence,
            mask & !members,
            format!("lanes that are not in their own member mask {members:#010x}"),
        ));
    }
    let needed = members & warp.live;
    let waiting = |group: &Group| {
        group.state == State::Members(members)
            && (group.pc as usize == pc
                || here == Code::WarpSync && code[group.pc as usize].code == Code::WarpSync)
    };
    let parked = warp.groups.iter().filter(|g| waiting(g)).fold(0, |mask, g| mask | g.mask);
    if needed & !(mask | parked) != 0 {
        warp.push(pc, mask, State::Members(members));
        return Ok(None);
    }
    let mut together = mask;
    warp.groups.retain_mut(|group| {
        if !waiting(group) {
            return true;
        }
        if group.pc as usize == pc {
            together |= group.mask;
            return false;
        }
        group.state = State::Ready;
        group.pc += 1;
        true
    });
    Ok(Some(together))
}
