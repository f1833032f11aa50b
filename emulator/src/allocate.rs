//! Slots for registers: liveness over the control flow, copies that need no slot of their own, then
//! a linear scan.
//!
//! NVRTC's PTX is in static single assignment form, with hundreds of registers of which a few
//! dozen live at once. Sharing slots keeps a warp's registers in the first-level cache: a file of
//! about 8 KB instead of 130 KB for a decode kernel. A sixth of what it executes are copies from one
//! register to another; where both may share a slot, they have nothing to do.

use std::collections::{HashMap, HashSet};

use crate::decode::Pending;
use crate::exchange::BUTTERFLY;
use crate::link::{SpecialRegister, Value};
use crate::op::{Code, NEGATED, Op, WHOLE_WARP, nothing};
use crate::registers::FULL;
use crate::syntax::Type;

pub(crate) struct Assigned {
    pub code: Vec<Op>,
    /// Operands of instructions that have many: destinations, then sources.
    pub lists: Vec<Vec<u16>>,
    /// Targets of `brx.idx`.
    pub tables: Vec<Vec<u32>>,
    pub warpgroup_uses: Vec<Vec<(u16, bool)>>,
    pub slots: usize,
    pub first_register: usize,
    pub predicates: usize,
    /// Slot, bits, and whether it is 64 bits wide.
    pub constants: Vec<(u16, u64, bool)>,
    pub specials: Vec<(u16, SpecialRegister)>,
    pub parameters: Vec<u16>,
}

/// Where registers are alive.
pub(crate) struct Liveness {
    /// By register; `None` for predicates.
    intervals: Vec<Interval>,
    /// Registers and predicates that are alive at the start: some way through the code reads them
    /// first.
    pub at_start: Vec<u32>,
}

/// Predicate written where a result is not wanted, and the constant ones.
const SINK_PREDICATE: u16 = 0;
const FALSE_PREDICATE: u16 = 1;
pub(crate) const TRUE_PREDICATE: u16 = 2;
/// Slots 0 and 1 take unwanted results.
const SINK: u16 = 0;
const MOST_SLOTS: usize = 30_000;
/// Registers times basic blocks: 128 MiB for each of the four sets of the analysis.
const MOST_LIVENESS_BITS: usize = 1 << 30;

/// `undefined`: whether a register may hold a value that nothing has written.
pub(crate) fn assign(
    code: &[Pending],
    targets: &[Vec<usize>],
    registers: &[Type],
    parameters: usize,
    live: &Liveness,
    undefined: impl Fn(u32) -> bool,
) -> Result<Assigned, String> {
    let mut next = 2usize;
    let mut constants = HashMap::new();
    let mut constant_list = Vec::new();
    let mut specials = HashMap::new();
    let mut special_list = Vec::new();
    let mut parameter_slots: Vec<Option<u16>> = vec![None; parameters];
    for value in code.iter().flat_map(|pending| pending.s.iter()) {
        match *value {
            Value::Constant(bits, wide) => {
                constants.entry((bits, wide)).or_insert_with(|| {
                    let slot = next as u16;
                    next += 1 + usize::from(wide);
                    constant_list.push((slot, bits, wide));
                    slot
                });
            }
            Value::Special(special) => {
                specials.entry(special).or_insert_with(|| {
                    let slot = next as u16;
                    next += 1;
                    special_list.push((slot, special));
                    slot
                });
            }
            Value::Parameter(index) => {
                parameter_slots[index as usize].get_or_insert_with(|| {
                    next += 2;
                    (next - 2) as u16
                });
            }
            _ => {}
        }
        if next > MOST_SLOTS {
            return Err("the kernel has too many constants".to_owned());
        }
    }
    let first_register = next;
    let homes = homes(code, registers, undefined);
    let (register_slots, next) = scan(registers, &shared(&live.intervals, &homes), next)?;
    let mut predicate_slots: HashMap<u32, u16> = HashMap::new();
    let mut predicate = |register: u32| -> u16 {
        let fresh = 3 + predicate_slots.len() as u16;
        *predicate_slots.entry(register).or_insert(fresh)
    };
    let mut lists = Vec::new();
    let mut tables = Vec::new();
    let mut out = Vec::with_capacity(code.len());
    for (at, pending) in code.iter().enumerate() {
        let mut op = pending.op;
        let home = |value: &Value| match *value {
            Value::Register(register) => homes[register as usize],
            other => other,
        };
        let mut slot = |value: &Value| -> u16 {
            match home(value) {
                Value::Register(register) if registers[register as usize] == Type::Pred => {
                    predicate(register)
                }
                Value::Register(register) => register_slots[register as usize],
                Value::Constant(bits, wide) => constants[&(bits, wide)],
                Value::Special(special) => specials[&special],
                Value::Parameter(index) => parameter_slots[index as usize].unwrap_or(SINK),
                Value::ConstantPredicate(true) => TRUE_PREDICATE,
                Value::ConstantPredicate(false) => FALSE_PREDICATE,
                Value::Sink => SINK,
                Value::SinkPredicate => SINK_PREDICATE,
            }
        };
        if has_list(op.code) {
            op.imm = lists.len() as i64;
            let list: Vec<u16> = pending.d.iter().chain(&pending.s).map(&mut slot).collect();
            lists.push(list);
        } else {
            for (to, value) in op.d.iter_mut().zip(&pending.d) {
                *to = slot(value);
            }
            for (to, value) in op.s.iter_mut().zip(&pending.s) {
                *to = slot(value);
            }
        }
        if let (Code::Shuffle, BUTTERFLY, [_, by, segment, members]) =
            (op.code, op.imm, &pending.s[..])
            && matches!(home(by), Value::Constant(..))
            && home(segment) == Value::Constant(0x1f, false)
            && home(members) == Value::Constant(u64::from(FULL), false)
        {
            op.flags |= WHOLE_WARP;
        }
        if pending.copies && op.d[0] == op.s[0] {
            op.exec = nothing;
        }
        if let Some((register, negated)) = pending.guard {
            op.guard = predicate(register) | if negated { NEGATED } else { 0 };
        }
        match op.code {
            Code::Branch | Code::Call => {
                op.imm = targets[at].first().copied().unwrap_or(0) as i64;
            }
            Code::BranchIndexed => {
                op.imm = tables.len() as i64;
                tables.push(targets[at].iter().map(|&t| t as u32).collect());
            }
            _ => {}
        }
        out.push(op);
    }
    let predicates = 3 + predicate_slots.len();
    if predicates >= NEGATED as usize {
        return Err("the kernel has too many predicates".to_owned());
    }
    // What `op::Exec` relies on.
    let runs = |op: &&Op| matches!(op.code, Code::Arithmetic | Code::Shuffle);
    let named = out.iter().filter(runs).flat_map(|op| op.d.iter().chain(&op.s));
    let slots = named.map(|&slot| slot as usize + 1).fold(next, usize::max);
    Ok(Assigned {
        code: out,
        lists,
        tables,
        warpgroup_uses: warpgroup_uses(code, registers, &register_slots),
        slots,
        first_register,
        predicates,
        constants: constant_list,
        specials: special_list,
        parameters: parameter_slots.into_iter().map(|slot| slot.unwrap_or(SINK)).collect(),
    })
}

/// Whether the operands stand in a list, and `d` and `s` hold what the instruction is.
fn has_list(code: Code) -> bool {
    matches!(code, Code::MatrixMultiply | Code::Asynchronous | Code::Warpgroup)
}

/// Registers that warpgroup products read or write while other instructions run.
fn of_products<'c>(code: &'c [Pending], registers: &'c [Type]) -> impl Iterator<Item = u32> + 'c {
    let products = code.iter().filter(|pending| pending.op.code == Code::Warpgroup);
    products.flat_map(|pending| pending.d.iter().chain(&pending.s)).filter_map(
        |value| match value {
            Value::Register(register) if registers[*register as usize].bytes() == 4 => {
                Some(*register)
            }
            _ => None,
        },
    )
}

fn warpgroup_uses(code: &[Pending], registers: &[Type], slots: &[u16]) -> Vec<Vec<(u16, bool)>> {
    let watched: HashSet<u32> = of_products(code, registers).collect();
    if watched.is_empty() {
        return Vec::new();
    }
    let uses = |pending: &Pending| {
        let of = |values: &[Value], writes: bool| -> Vec<(u16, bool)> {
            let watched = values.iter().filter_map(|value| match value {
                Value::Register(register) if watched.contains(register) => {
                    Some((slots[*register as usize], writes))
                }
                _ => None,
            });
            watched.collect()
        };
        if pending.op.code == Code::Warpgroup {
            return Vec::new();
        }
        let mut uses = of(&pending.s, false);
        uses.extend(of(&pending.d, true));
        uses
    };
    code.iter().map(uses).collect()
}

/// One bit per register.
#[derive(Clone, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn new(bits: usize) -> Self {
        Self(vec![0; bits.div_ceil(64)])
    }
    fn insert(&mut self, bit: u32) {
        self.0[bit as usize / 64] |= 1 << (bit % 64);
    }
    fn has(&self, bit: u32) -> bool {
        self.0[bit as usize / 64] >> (bit % 64) & 1 != 0
    }
    fn each(&self, mut visit: impl FnMut(u32)) {
        for (word, &bits) in self.0.iter().enumerate() {
            let mut bits = bits;
            while bits != 0 {
                visit(word as u32 * 64 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
    }
}

/// For each register the value whose slot it uses: mostly itself, and for a copy what it copies.
///
/// Take a register with one definition, which copies another one with one definition, and neither
/// alive at the start. Then they are equal wherever the copy is read: a way from the copy to a read
/// of it that came by the other's definition again, but not by the copy, would also lead from the
/// start to that read without the copy, and the register would be alive at the start. The same holds
/// for each lane, as it goes one way through the code. Constants, special registers and parameters
/// do not change at all. Registers that are alive at the start, as those are that only a guarded
/// instruction writes, may hold undefined values, and so may what they are copied to.
fn homes(code: &[Pending], registers: &[Type], undefined: impl Fn(u32) -> bool) -> Vec<Value> {
    let count = registers.len() as u32;
    let mut definitions = vec![0u32; registers.len()];
    let mut copied: Vec<Option<Value>> = vec![None; registers.len()];
    for pending in code {
        for value in &pending.d {
            if let Value::Register(register) = *value {
                definitions[register as usize] += 1;
                copied[register as usize] = pending.s.first().copied().filter(|_| pending.copies);
            }
        }
    }
    // Registers of tensor cores are used at a time that the code does not show.
    for register in of_products(code, registers) {
        definitions[register as usize] = u32::MAX;
    }
    let single = |register: u32| definitions[register as usize] == 1 && !undefined(register);
    let home = |register: u32| {
        let mut home = Value::Register(register);
        // A way through copies that goes round in a circle is in code that is never reached.
        for _ in 0..count {
            let Value::Register(at) = home else { break };
            let Some(source) = copied[at as usize].filter(|_| single(at)) else { break };
            match source {
                Value::Register(other) if !single(other) => break,
                _ => home = source,
            }
        }
        home
    };
    (0..count).map(home).collect()
}

/// Where the slot of each register is in use.
fn shared(intervals: &[Interval], homes: &[Value]) -> Vec<Interval> {
    let mut out = vec![None; intervals.len()];
    for (interval, home) in intervals.iter().zip(homes) {
        if let (Some((from, to)), Value::Register(register)) = (*interval, *home) {
            let (first, last) = out[register as usize].get_or_insert((from, to));
            (*first, *last) = (from.min(*first), to.max(*last));
        }
    }
    out
}

/// Slot of every register, and the first slot that is free after them.
fn scan(
    registers: &[Type],
    intervals: &[Interval],
    first: usize,
) -> Result<(Vec<u16>, usize), String> {
    let mut order: Vec<u32> =
        (0..registers.len() as u32).filter(|&r| intervals[r as usize].is_some()).collect();
    order.sort_by_key(|&r| intervals[r as usize].map(|(start, _)| start));
    let mut slots = vec![SINK; registers.len()];
    let mut next = first;
    let mut free: [Vec<u16>; 2] = [Vec::new(), Vec::new()];
    let mut active: Vec<(usize, u32)> = Vec::new();
    for register in order {
        let Some((start, end)) = intervals[register as usize] else { continue };
        active.retain(|&(until, other)| {
            let live = until >= start;
            if !live {
                free[usize::from(registers[other as usize].bytes() == 8)]
                    .push(slots[other as usize]);
            }
            live
        });
        let wide = usize::from(registers[register as usize].bytes() == 8);
        slots[register as usize] = match free[wide].pop() {
            Some(slot) => slot,
            None => {
                let slot = next;
                next += 1 + wide;
                if next > MOST_SLOTS {
                    return Err("the kernel keeps too many registers alive".to_owned());
                }
                slot as u16
            }
        };
        active.push((end, register));
    }
    Ok((slots, next))
}

/// First and last position at which a register is alive.
type Interval = Option<(usize, usize)>;

/// Where registers are alive, by the flow of control.
pub(crate) fn liveness(
    code: &[Pending],
    targets: &[Vec<usize>],
    registers: &[Type],
) -> Result<Liveness, String> {
    let mut leader = vec![false; code.len() + 1];
    leader[0] = true;
    // Where a return may lead: after any call.
    let mut after_calls = Vec::new();
    for (at, pending) in code.iter().enumerate() {
        for &target in &targets[at] {
            leader[target] = true;
        }
        if ends_block(pending.op.code) {
            leader[at + 1] = true;
        }
        if pending.op.code == Code::Call {
            after_calls.push(at + 1);
        }
    }
    let starts: Vec<usize> = (0..code.len()).filter(|&at| leader[at]).collect();
    let block_of = |at: usize| starts.partition_point(|&start| start <= at) - 1;
    let end_of = |block: usize| starts.get(block + 1).copied().unwrap_or(code.len());
    let count = registers.len();
    if count.saturating_mul(starts.len()) > MOST_LIVENESS_BITS {
        return Err("the kernel has too many registers and branches".to_owned());
    }
    let register = |value: &Value| match *value {
        Value::Register(r) => Some(r),
        _ => None,
    };
    let mut used = vec![Set::new(count); starts.len()];
    let mut defined = vec![Set::new(count); starts.len()];
    let mut successors: Vec<Vec<usize>> = vec![Vec::new(); starts.len()];
    for (block, &start) in starts.iter().enumerate() {
        let end = end_of(block);
        for pending in &code[start..end] {
            let guard = pending.guard.map(|(r, _)| r);
            for r in pending.s.iter().filter_map(register).chain(guard) {
                if !defined[block].has(r) {
                    used[block].insert(r);
                }
            }
            for r in pending.d.iter().filter_map(register) {
                // A guarded write keeps the old value in some lanes.
                if pending.guard.is_some() {
                    if !defined[block].has(r) {
                        used[block].insert(r);
                    }
                } else {
                    defined[block].insert(r);
                }
            }
        }
        let last = &code[end - 1];
        let falls = match last.op.code {
            Code::Exit | Code::Return | Code::BranchIndexed | Code::Branch => last.guard.is_some(),
            Code::Call => last.guard.is_some(),
            _ => true,
        };
        if falls && end < code.len() {
            successors[block].push(block_of(end));
        }
        for &target in &targets[end - 1] {
            successors[block].push(block_of(target));
        }
        if last.op.code == Code::Return {
            for &at in after_calls.iter().filter(|&&at| at < code.len()) {
                successors[block].push(block_of(at));
            }
        }
    }
    let mut live_in = used.clone();
    let mut live_out = vec![Set::new(count); starts.len()];
    let mut changed = true;
    while changed {
        changed = false;
        for block in (0..starts.len()).rev() {
            for &next in &successors[block] {
                for word in 0..live_out[block].0.len() {
                    live_out[block].0[word] |= live_in[next].0[word];
                }
            }
            for word in 0..live_in[block].0.len() {
                let now =
                    live_in[block].0[word] | (live_out[block].0[word] & !defined[block].0[word]);
                changed |= now != live_in[block].0[word];
                live_in[block].0[word] = now;
            }
        }
    }
    let mut out: Vec<Interval> = vec![None; count];
    let mut touch = |r: u32, at: usize| {
        if registers[r as usize] == Type::Pred {
            return;
        }
        let interval = out[r as usize].get_or_insert((at, at));
        interval.0 = interval.0.min(at);
        interval.1 = interval.1.max(at);
    };
    for (block, &start) in starts.iter().enumerate() {
        live_in[block].each(|r| touch(r, start));
        live_out[block].each(|r| touch(r, end_of(block) - 1));
    }
    for (at, pending) in code.iter().enumerate() {
        for r in pending.s.iter().chain(&pending.d).filter_map(register) {
            touch(r, at);
        }
    }
    // The tensor cores use theirs at a time that the code does not show: they share with none.
    for register in of_products(code, registers) {
        out[register as usize] = Some((0, code.len()));
    }
    let mut at_start = Vec::new();
    if let Some(first) = live_in.first() {
        first.each(|r| at_start.push(r));
    }
    Ok(Liveness { intervals: out, at_start })
}

fn ends_block(code: Code) -> bool {
    matches!(code, Code::Branch | Code::BranchIndexed | Code::Call | Code::Return | Code::Exit)
}
