//! Where the thing at fault came from: the lines behind a finding's own, nearest first.
//!
//! A finding names the instruction at which something was noticed. The mistake often lies before
//! it: in the computation of the address, in a condition that let the instruction run, in another
//! instruction or an earlier kernel that wrote what was loaded, in a store that was passed over. The
//! trail goes back along these steps by a shortest-path search (`dataflow` knows those inside a
//! kernel, `trail::launched` those through memory) and lists the lines in the order of their
//! distance. A step inside a line costs nothing, one to another line `LINE`; the other weights
//! say what is less telling than that. What ran is used where it was recorded.

mod launched;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::findings::{Check, SourceLine, TrailLine, Why};
use crate::kernel::Kernel;
use crate::link::Value;
use crate::machine::Executed;
use crate::memory::{Allocation, PastLaunch};
use crate::op::Code;
use crate::order::Epoch;

use launched::Launched;

/// Lines of a trail.
const MOST_LINES: usize = 8;
/// Instructions that are looked at.
const MOST_STEPS: usize = 4096;
/// Operations of a kernel beyond which no trail is made: the analysis would take too long.
const MOST_OPERATIONS: usize = 1 << 17;

/// A step to another line.
const LINE: u32 = 4;
/// More than that for the step to a condition: where the question is why something ran or did not,
/// where it is how an address came about, and where it is which of several values was taken.
const CONDITION: u32 = 1;
const CONDITION_OF_ACCESS: u32 = 6;
const CONDITION_OF_VALUE: u32 = 2;
/// The address of an access, so that conditions on the finding's own lines come first.
const ADDRESS: u32 = 1;
/// The address and the conditions of a read of what nobody wrote: the stores are nearer.
const READER: u32 = 12;
/// From a load to the stores that wrote there, and from a store to its address.
const THROUGH_MEMORY: u32 = 2;
const ADDRESS_OF_STORE: u32 = 4;
/// Out of a loop that does not end: what it does not change was computed before it.
const OUT_OF_LOOP: u32 = 16;

/// What is known when a finding is made.
pub(crate) struct Scene<'a> {
    pub kernel: &'a Kernel,
    pub parameters: &'a [u8],
    /// Earlier launches, the last one last.
    pub past: &'a [PastLaunch],
    pub launch_epoch: Epoch,
    pub allocations: &'a [Option<Allocation>],
    pub module: &'a [Allocation],
    pub executed: &'a [Executed],
}

/// What was found, as far as the trail goes by it.
pub(crate) struct Start<'a> {
    pub check: Check,
    pub pc: usize,
    /// The other side's instruction, and whether it is of the same block.
    pub other: Option<(usize, bool)>,
    /// Lines that the finding names itself.
    pub named: &'a [SourceLine],
}

/// An instruction of a launch: 0 is the present one, 1 the one before.
type Node = (usize, usize);

/// What is asked at a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// Where its value comes from.
    Value,
    /// The same, and why it was this one of several definitions or stores.
    Chosen,
    /// Why the store was passed over, or went elsewhere.
    PassedOver,
}

/// A node on the way: cheapest first, then in the order of their discovery.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    cost: u32,
    serial: usize,
    node: Node,
    why: Why,
    asked: Asked,
    from: Node,
}

struct Trail<'a> {
    scene: &'a Scene<'a>,
    launches: Vec<Launched<'a>>,
    queue: BinaryHeap<Reverse<Step>>,
    serial: usize,
    /// The cost of a condition in general.
    condition: u32,
    /// The loop that does not end: its instructions.
    endless: Option<Vec<bool>>,
}

/// The lines behind a finding.
#[cold]
pub(crate) fn trail(scene: &Scene<'_>, start: &Start<'_>) -> Vec<TrailLine> {
    let too_long = |kernel: &Kernel| kernel.code.len() > MOST_OPERATIONS;
    let places = |at: usize| at < scene.kernel.code.len();
    if too_long(scene.kernel) || !places(start.pc) || start.other.is_some_and(|o| !places(o.0)) {
        return Vec::new();
    }
    let present = (scene.kernel, scene.parameters, (scene.launch_epoch, Epoch::MAX));
    let past = scene.past.iter().rev().filter(|launch| !too_long(&launch.kernel));
    let past = past.map(|launch| (&*launch.kernel, &launch.parameters[..], launch.epochs));
    let launches = std::iter::once(present)
        .chain(past)
        .map(|(kernel, parameters, epochs)| Launched::new(kernel, parameters, epochs))
        .collect();
    let condition = match start.check {
        Check::Uninitialised | Check::Deadlock => CONDITION,
        _ => CONDITION_OF_ACCESS,
    };
    let (queue, endless) = (BinaryHeap::new(), None);
    let mut trail = Trail { scene, launches, queue, serial: 0, condition, endless };
    trail.start(start);
    trail.walk(start.named)
}

impl Trail<'_> {
    fn kernel(&self, launch: usize) -> &Kernel {
        self.launches[launch].flow.kernel
    }

    fn code(&self, (launch, at): Node) -> Code {
        self.kernel(launch).code[at].code
    }

    /// Whether an instruction of this launch has run, if that was counted.
    fn ran(&self, (launch, at): Node) -> bool {
        let counts = self.scene.executed;
        launch > 0 || counts.first().is_none_or(|e| e.warps == 0) || counts[at].warps > 0
    }

    fn in_endless(&self, (launch, at): Node) -> bool {
        self.endless.as_ref().is_none_or(|inside| launch == 0 && inside[at])
    }

    fn push(&mut self, mut cost: u32, node: Node, why: Why, asked: Asked, from: Node) {
        if asked != Asked::PassedOver && !self.ran(node) {
            return;
        }
        if self.endless.is_some() && self.in_endless(from) && !self.in_endless(node) {
            cost += OUT_OF_LOOP;
        }
        self.serial += 1;
        self.queue.push(Reverse(Step { cost, serial: self.serial, node, why, asked, from }));
    }

    /// The cost of a node that is reached from another one.
    fn onward(&self, cost: u32, from: Node, to: Node) -> u32 {
        let place = |(launch, at): Node| self.launches[launch].places[at];
        cost + if from.0 == to.0 && place(from) == place(to) { 0 } else { LINE }
    }

    fn start(&mut self, start: &Start<'_>) {
        if start.check == Check::Deadlock {
            self.loops(start.pc);
        }
        let base = if start.check == Check::Uninitialised { READER } else { ADDRESS };
        let sides = std::iter::once(start.pc).chain(start.other.map(|(at, _)| at));
        for at in sides.clone() {
            let node = (0, at);
            let accesses = is_access(self.code(node));
            if start.check != Check::Deadlock || accesses {
                let copied = self.code(node) == Code::CopyAsync;
                let count = match accesses {
                    // What is wrong with a copy under way is where it writes.
                    true if copied && start.check == Check::AsyncHazard => 1,
                    true => self.addresses(node),
                    false => usize::MAX,
                };
                self.values(base, node, Why::Address, 0..count);
            }
            self.conditions(base, self.condition, node, true);
            self.conditions_named(node, start.named);
        }
        match start.check {
            Check::Uninitialised => self.stores(start.pc),
            Check::Race | Check::AsyncHazard if start.other.is_none_or(|(_, near)| near) => {
                sides.for_each(|at| self.barriers(at));
            }
            _ => {}
        }
    }

    /// How many operands, from the first, are addresses.
    fn addresses(&self, node: Node) -> usize {
        match self.code(node) {
            Code::Load | Code::Store | Code::Atomic | Code::MatrixLoad | Code::MatrixStore => 1,
            Code::CopyAsync => 2,
            _ => usize::MAX,
        }
    }

    /// What computed some of an instruction's operands.
    fn values(&mut self, cost: u32, node: Node, why: Why, which: std::ops::Range<usize>) {
        let (launch, at) = node;
        let reads = self.kernel(launch).operands.reads(at);
        let which = which.start.min(reads.len())..which.end.min(reads.len());
        let registers = reads[which].iter().filter_map(|value| match value {
            Value::Register(register) => Some(*register),
            _ => None,
        });
        for register in registers.collect::<Vec<_>>() {
            let flow = &self.launches[launch].flow;
            let all = flow.definitions(register).to_vec();
            let reaching = flow.reaching(at, register, |at| self.ran((launch, at)));
            if all.len() > 1 {
                // What decided against a definition decided for the others.
                for &other in &all {
                    if !self.ran((launch, other)) {
                        self.conditions(cost, CONDITION_OF_VALUE, (launch, other), true);
                    }
                }
            }
            let asked = if all.len() > 1 { Asked::Chosen } else { Asked::Value };
            for to in reaching {
                let to = (launch, to);
                self.push(self.onward(cost, node, to), to, why, asked, node);
            }
        }
    }

    /// The guard of an instruction and the branches that decide whether it runs. Of a loop that does
    /// not end, only what is in it.
    fn conditions(&mut self, cost: u32, more: u32, node: Node, guard: bool) {
        if !self.in_endless(node) {
            return;
        }
        let (launch, at) = node;
        let flow = &self.launches[launch].flow;
        let mut found = Vec::new();
        if let Some(register) = flow.kernel.operands.guard(at).filter(|_| guard) {
            found.extend(flow.reaching(at, register, |at| self.ran((launch, at))));
        }
        found.extend(flow.controllers(at).filter(|&to| to != at && self.in_endless((launch, to))));
        for to in found {
            let to = (launch, to);
            let cost = self.onward(cost, node, to) + more;
            self.push(cost, to, Why::Condition, Asked::Value, node);
        }
    }

    /// Conditions, however far out, on a line that the finding names itself: they are as near as it.
    fn conditions_named(&mut self, node: Node, named: &[SourceLine]) {
        let flow = &self.launches[0].flow;
        let mut seen = BTreeSet::new();
        let mut left = vec![node.1];
        while let Some(at) = left.pop() {
            left.extend(flow.controllers(at).filter(|&branch| seen.insert(branch)));
        }
        let kernel = flow.kernel;
        let is_named = |&at: &usize| {
            kernel.places(&kernel.notes[at]).next().is_some_and(|line| named.contains(&line))
        };
        for at in seen.into_iter().filter(is_named).collect::<Vec<_>>() {
            self.push(CONDITION, (0, at), Why::Condition, Asked::Value, node);
        }
    }

    /// For memory that nothing wrote: every store to it, whether or not it ran, and the loops around
    /// it, which decide how often it runs.
    fn stores(&mut self, pc: usize) {
        let from = (0, pc);
        for (to, ran) in launched::stores_to(&mut self.launches, self.scene, from, true) {
            let why = if ran { Why::WrittenBy } else { Why::StoredBy };
            let cost = self.onward(0, from, to);
            self.push(cost, to, why, Asked::PassedOver, from);
            let launched = &self.launches[to.0];
            let loops = launched.flow.loops(to.1);
            let exits = loops.into_iter().flat_map(|found| found.exits);
            for at in exits.filter(|&at| !launched.guard_is_of_thread(at)).collect::<Vec<_>>() {
                self.push(cost + LINE, (to.0, at), Why::Condition, Asked::Value, to);
            }
        }
    }

    /// The exits of the loop that does not end: of those around the instruction the one with the most
    /// rounds for each time that it was entered, if rounds were counted; the others after it.
    fn loops(&mut self, pc: usize) {
        let times = |list: &[usize]| -> u64 {
            list.iter().map(|&at| self.scene.executed.get(at).map_or(0, |e| e.warps)).sum()
        };
        let mut loops = self.launches[0].flow.loops(pc);
        loops.sort_by_key(|found| Reverse(times(&found.heads) / times(&found.entered_from).max(1)));
        for (order, found) in loops.iter().enumerate() {
            for &at in &found.exits {
                self.push(LINE * order as u32, (0, at), Why::Loop, Asked::Value, (0, pc));
            }
        }
        self.endless = loops.into_iter().next().map(|found| found.inside);
    }

    /// The barriers and waits that a side of a race came by last.
    fn barriers(&mut self, pc: usize) {
        let flow = &self.launches[0].flow;
        let mut found = flow.backwards(pc, |at| {
            let waits = matches!(
                flow.kernel.code[at].code,
                Code::BarrierSync | Code::BarrierReduce | Code::CopyWait | Code::CopyWaitAll
            );
            (waits, waits || !self.ran((0, at)))
        });
        found.sort_unstable();
        for at in found {
            self.push(LINE + CONDITION, (0, at), Why::Barrier, Asked::Chosen, (0, pc));
        }
    }

    fn walk(&mut self, named: &[SourceLine]) -> Vec<TrailLine> {
        let mut seen = BTreeSet::new();
        // By line, its cost, its place in the order of discovery, and why.
        let mut lines: BTreeMap<SourceLine, (u32, usize, Why)> = BTreeMap::new();
        while let Some(Reverse(step)) = self.queue.pop() {
            if seen.len() >= MOST_STEPS {
                break;
            }
            if !seen.insert(step.node) {
                continue;
            }
            let from = (step.from.0 == step.node.0).then_some(step.from.1);
            let launched = &self.launches[step.node.0];
            for (line, more) in launched.lines(step.node.1, from, step.why) {
                if named.contains(&line) {
                    continue;
                }
                let new = (step.cost + more, step.serial, step.why);
                let known = lines.entry(line).or_insert(new);
                *known = new.min(*known);
            }
            self.follow(&step);
        }
        let mut lines: Vec<_> = lines.into_iter().map(|(line, rank)| (rank, line)).collect();
        lines.sort();
        let lines = lines.into_iter().take(MOST_LINES);
        lines.map(|((.., why), line)| TrailLine { line, why }).collect()
    }

    /// Goes on from a step to those behind it.
    fn follow(&mut self, step: &Step) {
        let (node, cost, why) = (step.node, step.cost, step.why);
        let code = self.code(node);
        if step.asked == Asked::PassedOver {
            self.conditions(cost, CONDITION, node, true);
            let addresses = self.addresses(node);
            return self.values(cost + ADDRESS_OF_STORE, node, why, 0..addresses);
        }
        match code {
            Code::Branch | Code::BranchIndexed => {
                let (launch, at) = node;
                let flow = &self.launches[launch].flow;
                let guard = flow.kernel.operands.guard(at);
                let guards = guard.map(|g| flow.reaching(at, g, |at| self.ran((launch, at))));
                for to in guards.unwrap_or_default() {
                    self.push(cost, (launch, to), why, Asked::Value, node);
                }
                self.values(cost, node, why, 0..usize::MAX);
                self.conditions(cost, self.condition, node, false);
            }
            Code::Load | Code::Atomic => {
                let stores = launched::stores_to(&mut self.launches, self.scene, node, false);
                for (to, _) in stores {
                    self.push(cost + THROUGH_MEMORY, to, Why::WrittenBy, Asked::Chosen, node);
                }
                self.values(cost, node, why, 0..usize::MAX);
                if code == Code::Atomic {
                    self.conditions(cost, self.condition, node, true);
                }
            }
            _ => {
                let addresses = if writes_memory(code) { self.addresses(node) } else { 0 };
                self.values(cost, node, why, addresses..usize::MAX);
                self.values(cost + ADDRESS_OF_STORE, node, why, 0..addresses);
                if step.asked == Asked::Chosen || writes_memory(code) {
                    self.conditions(cost, CONDITION_OF_VALUE, node, true);
                }
            }
        }
    }
}

fn is_access(code: Code) -> bool {
    matches!(code, Code::Load | Code::MatrixLoad) || writes_memory(code)
}

fn writes_memory(code: Code) -> bool {
    matches!(
        code,
        Code::Store | Code::Atomic | Code::CopyAsync | Code::MatrixStore | Code::Asynchronous
    )
}
