//! What the operations of a kernel read and write before registers share slots, and what follows
//! from it: which definitions reach a use, which branches decide whether an instruction runs, which
//! loops it stands in. It is asked only once something was found, so nothing here has to be quick;
//! what a launch pays for it is the list of operands.

use std::collections::{BTreeMap, BTreeSet};

use crate::decode::Pending;
use crate::kernel::Kernel;
use crate::link::Value;
use crate::op::{Code, UNGUARDED};

/// Operands of every instruction, with registers as the PTX has them.
pub(crate) struct Operands {
    values: Vec<Value>,
    /// Where what each instruction writes ends in `values`, and where what it reads does.
    ends: Vec<(u32, u32)>,
    guards: Vec<Option<u32>>,
}

impl Operands {
    pub(crate) fn new(code: &[Pending]) -> Self {
        let mut values = Vec::with_capacity(4 * code.len());
        let mut ends = Vec::with_capacity(code.len());
        for pending in code {
            values.extend_from_slice(&pending.d);
            let written = values.len() as u32;
            values.extend_from_slice(&pending.s);
            ends.push((written, values.len() as u32));
        }
        let guards = code.iter().map(|pending| pending.guard.map(|(register, _)| register));
        Self { values, ends, guards: guards.collect() }
    }

    pub(crate) fn writes(&self, at: usize) -> &[Value] {
        let from = if at == 0 { 0 } else { self.ends[at - 1].1 };
        &self.values[from as usize..self.ends[at].0 as usize]
    }

    pub(crate) fn reads(&self, at: usize) -> &[Value] {
        let (from, to) = self.ends[at];
        &self.values[from as usize..to as usize]
    }

    pub(crate) fn guard(&self, at: usize) -> Option<u32> {
        self.guards[at]
    }
}

/// A loop that an instruction stands in.
pub(crate) struct Loop {
    /// Its instructions.
    pub inside: Vec<bool>,
    /// Branches that may leave it.
    pub exits: Vec<usize>,
    /// Where it is entered, and the instructions outside from which.
    pub heads: Vec<usize>,
    pub entered_from: Vec<usize>,
}

/// The flow of data and control of one kernel.
pub(crate) struct Dataflow<'k> {
    pub kernel: &'k Kernel,
    definitions: BTreeMap<u32, Vec<usize>>,
    next: Vec<Vec<usize>>,
    before: Vec<Vec<usize>>,
    /// Block of each instruction; first and last instruction of each block.
    block_of: Vec<usize>,
    blocks: Vec<(usize, usize)>,
    /// By block, the branches that decide whether it runs.
    controllers: Vec<BTreeSet<usize>>,
}

impl<'k> Dataflow<'k> {
    pub(crate) fn new(kernel: &'k Kernel) -> Self {
        let count = kernel.code.len();
        let mut definitions: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for at in 0..count {
            for value in kernel.operands.writes(at) {
                if let Value::Register(register) = value {
                    definitions.entry(*register).or_default().push(at);
                }
            }
        }
        let next = kernel.successors();
        let mut before = vec![Vec::new(); count];
        for (at, targets) in next.iter().enumerate() {
            targets.iter().for_each(|&to| before[to].push(at));
        }
        let mut blocks: Vec<(usize, usize)> = Vec::new();
        let mut block_of = vec![0; count];
        for at in 0..count {
            let follows = at > 0 && next[at - 1] == [at] && before[at] == [at - 1];
            match blocks.last_mut() {
                Some(block) if follows => block.1 = at,
                _ => blocks.push((at, at)),
            }
            block_of[at] = blocks.len() - 1;
        }
        let mut flow =
            Self { kernel, definitions, next, before, block_of, blocks, controllers: Vec::new() };
        flow.controllers = flow.control_dependence();
        flow
    }

    /// The definitions of a register, wherever they stand.
    pub(crate) fn definitions(&self, register: u32) -> &[usize] {
        self.definitions.get(&register).map_or(&[], Vec::as_slice)
    }

    /// Those that reach an instruction by others that ran.
    pub(crate) fn reaching(
        &self,
        at: usize,
        register: u32,
        ran: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let all = self.definitions(register);
        if all.len() < 2 {
            return all.to_vec();
        }
        let mut out = self.backwards(at, |before| {
            let here = all.binary_search(&before).is_ok();
            let ran = ran(before);
            // A guarded definition leaves the value in some lanes.
            (here && ran, !ran || here && self.kernel.operands.guard(before).is_none())
        });
        out.sort_unstable();
        out
    }

    /// What is found on the ways that lead to an instruction. `look` says of one whether it is among
    /// that, and whether the way ends there.
    pub(crate) fn backwards(&self, at: usize, look: impl Fn(usize) -> (bool, bool)) -> Vec<usize> {
        let mut seen = vec![false; self.before.len()];
        let mut left = self.before[at].clone();
        let mut out = Vec::new();
        while let Some(before) = left.pop() {
            if std::mem::replace(&mut seen[before], true) {
                continue;
            }
            let (found, ends) = look(before);
            if found {
                out.push(before);
            }
            if !ends {
                left.extend_from_slice(&self.before[before]);
            }
        }
        out
    }

    /// The branches that decide whether an instruction runs: those nearest to it.
    pub(crate) fn controllers(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        self.controllers[self.block_of[at]].iter().rev().copied()
    }

    /// The loops around an instruction, from the outermost in.
    pub(crate) fn loops(&self, at: usize) -> Vec<Loop> {
        let block = self.block_of[at];
        let next: Vec<Vec<usize>> = (0..self.blocks.len()).map(|b| self.after(b)).collect();
        let back = reversed(&next);
        let mut within = vec![true; self.blocks.len()];
        let mut out = Vec::new();
        loop {
            let (ahead, behind) = (reach(&next, block, &within), reach(&back, block, &within));
            let inside: Vec<bool> = ahead.iter().zip(&behind).map(|(a, b)| *a && *b).collect();
            if !inside[block] {
                return out;
            }
            let members = self.block_of.iter().map(|&block| inside[block]).collect();
            let (exits, heads, entered_from) = (Vec::new(), Vec::new(), Vec::new());
            let mut found = Loop { inside: members, exits, heads, entered_from };
            for member in (0..inside.len()).filter(|&member| inside[member]) {
                let (first, last) = self.blocks[member];
                if next[member].iter().any(|&to| !inside[to]) {
                    found.exits.push(last);
                }
                let outside = back[member].iter().filter(|&&from| !inside[from]);
                found.entered_from.extend(outside.clone().map(|&from| self.blocks[from].1));
                if member == 0 || outside.count() > 0 {
                    found.heads.push(first);
                }
            }
            for &head in &found.heads {
                inside_out(&mut within, &inside, self.block_of[head]);
            }
            let done = found.heads.is_empty() || !within[block];
            out.push(found);
            if done {
                return out;
            }
        }
    }

    fn after(&self, block: usize) -> Vec<usize> {
        self.next[self.blocks[block].1].iter().map(|&at| self.block_of[at]).collect()
    }

    /// A branch decides whether a block runs where one of its ways must come by the block and
    /// another need not (Ferrante, Ottenstein and Warren 1987).
    fn control_dependence(&self) -> Vec<BTreeSet<usize>> {
        let next: Vec<Vec<usize>> = (0..self.blocks.len()).map(|b| self.after(b)).collect();
        let until = post_dominators(&next);
        let mut out = vec![BTreeSet::new(); next.len()];
        for (block, targets) in next.iter().enumerate().filter(|(_, targets)| targets.len() > 1) {
            for &target in targets {
                let mut at = target;
                while at != until[block] && at < next.len() {
                    out[at].insert(self.blocks[block].1);
                    at = until[at];
                }
            }
        }
        out
    }
}

/// Leaves only the members of a loop, without the block where it is entered.
fn inside_out(within: &mut [bool], inside: &[bool], head: usize) {
    for (kept, member) in within.iter_mut().zip(inside) {
        *kept &= *member;
    }
    within[head] = false;
}

fn reversed(next: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut back = vec![Vec::new(); next.len()];
    for (at, targets) in next.iter().enumerate() {
        targets.iter().for_each(|&to| back[to].push(at));
    }
    back
}

/// What can be reached from a block in one step or more, inside `within`.
fn reach(next: &[Vec<usize>], from: usize, within: &[bool]) -> Vec<bool> {
    let mut seen = vec![false; next.len()];
    let mut left = next[from].clone();
    while let Some(at) = left.pop() {
        if within[at] && !std::mem::replace(&mut seen[at], true) {
            left.extend_from_slice(&next[at]);
        }
    }
    seen
}

/// For each block the next one that every way to the end comes by; the end is number `next.len()`
/// (Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm"). A loop without an end counts
/// as ending at its first block.
fn post_dominators(next: &[Vec<usize>]) -> Vec<usize> {
    let end = next.len();
    let back = reversed(next);
    let mut order = Vec::with_capacity(end);
    let mut seen = vec![false; end];
    let mut is_last = vec![false; end];
    let enders = (0..end).filter(|&block| next[block].is_empty());
    for root in enders.chain(0..end) {
        if seen[root] {
            continue;
        }
        is_last[root] = true;
        seen[root] = true;
        let mut stack = vec![(root, 0)];
        while let Some((block, child)) = stack.last_mut() {
            let Some(&to) = back[*block].get(*child) else {
                order.push(*block);
                stack.pop();
                continue;
            };
            *child += 1;
            if !std::mem::replace(&mut seen[to], true) {
                stack.push((to, 0));
            }
        }
    }
    let mut number = vec![0; end + 1];
    order.iter().enumerate().for_each(|(at, &block)| number[block] = at);
    number[end] = end;
    let mut until = vec![usize::MAX; end + 1];
    until[end] = end;
    let mut changed = true;
    while changed {
        changed = false;
        for &block in order.iter().rev() {
            let ways = next[block].iter().copied().chain(is_last[block].then_some(end));
            let mut meet = usize::MAX;
            for way in ways.filter(|&way| until[way] != usize::MAX) {
                let (mut one, mut other) = (way, if meet == usize::MAX { way } else { meet });
                while one != other {
                    while number[one] < number[other] {
                        one = until[one];
                    }
                    while number[other] < number[one] {
                        other = until[other];
                    }
                }
                meet = one;
            }
            changed |= std::mem::replace(&mut until[block], meet) != meet;
        }
    }
    until
}

impl Kernel {
    /// Where control may go from each instruction.
    pub(crate) fn successors(&self) -> Vec<Vec<usize>> {
        let count = self.code.len();
        let after_calls: Vec<usize> =
            (1..count).filter(|&at| self.code[at - 1].code == Code::Call).collect();
        let of = |at: usize| -> Vec<usize> {
            let op = &self.code[at];
            let mut out = match op.code {
                Code::Branch => vec![op.imm as usize],
                Code::BranchIndexed => {
                    self.tables[op.imm as usize].iter().map(|&target| target as usize).collect()
                }
                Code::Call => vec![op.imm as usize],
                // Who called is not known here: any call may go on.
                Code::Return => after_calls.clone(),
                Code::Exit | Code::Trap => vec![],
                _ => vec![at + 1],
            };
            if op.guard != UNGUARDED {
                out.push(at + 1);
            }
            out.retain(|&to| to < count);
            out.sort_unstable();
            out.dedup();
            out
        };
        (0..count).map(of).collect()
    }

    /// For every instruction, whether control can come to it from `pc` but not to `pc` from it.
    pub(crate) fn only_behind(&self, pc: usize) -> Vec<bool> {
        let next = self.successors();
        let all = vec![true; next.len()];
        let (forward, backward) = (reach(&next, pc, &all), reach(&reversed(&next), pc, &all));
        forward.iter().zip(&backward).map(|(after, before)| *after && !before).collect()
    }
}
