//! Decoding of what `hopper` runs: `mbarrier`, bulk copies, `wgmma`, cluster barriers, `setmaxnreg`.

use super::{At, Decoded, Modifiers, bad, blank};
use crate::hopper::wgmma::Form;
use crate::hopper::{
    ARRIVE_DROP, Action, Bulk, BulkKind, EXPECT, NO_COMPLETE, NO_INCREMENT, wide_at,
};
use crate::lanes::lane;
use crate::link::Value;
use crate::op::{Class, Code, Op};
use crate::syntax::{Operand, Type};

const SHARED: [&str; 3] = ["shared", "shared::cta", "shared::cluster"];

impl<'t> At<'_, 't> {
    fn action(
        &mut self,
        action: Action,
        class: Class,
        d: Vec<Value>,
        s: Vec<Value>,
        edit: impl FnOnce(&mut Op),
    ) {
        let warpgroup = matches!(
            action,
            Action::WarpgroupFence
                | Action::WarpgroupCommit
                | Action::WarpgroupWait
                | Action::WarpgroupMultiply
        );
        let mut op = blank(if warpgroup { Code::Warpgroup } else { Code::Asynchronous });
        op.action = action;
        edit(&mut op);
        self.push(op, class, d, s);
    }

    /// An address as one value, and the flag that says whether it is 64 bits wide where it stands
    /// at `place` of the list.
    fn whole_address(&mut self, operand: usize, place: usize) -> Decoded<(Value, u8)> {
        let (base, offset, wide, _) = self.address(operand)?;
        let value = match base {
            _ if offset == 0 => base,
            Value::Constant(value, wide) => {
                Value::Constant(value.wrapping_add(offset as u64), wide)
            }
            _ => {
                let out = self.linker.temporary(if wide { Type::B64 } else { Type::B32 });
                let (w, by) = (self.linker.wide, Value::Constant(offset as u64, wide));
                let exec = if wide {
                    lane!(w, |x: u64, y: u64| -> u64 { x.wrapping_add(y) })
                } else {
                    lane!(w, |x: u32, y: u32| -> u32 { x.wrapping_add(y) })
                };
                let by = if let (Value::Constant(bits, _), false) = (by, wide) {
                    Value::Constant(bits & 0xffff_ffff, false)
                } else {
                    by
                };
                self.arithmetic(exec, Class::Integer, 0, vec![out], vec![base, by]);
                out
            }
        };
        Ok((value, if wide { wide_at(place) } else { 0 }))
    }

    pub(super) fn mbarrier(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        const NAMES: [&str; 8] = [
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "test_wait",
            "try_wait",
            "complete_tx",
            "pending_count",
        ];
        let what = m.any(&NAMES);
        self.hints(m);
        m.any(&SHARED);
        let expects = m.has("expect_tx");
        if what != Some("pending_count") && m.ty() != Some(Type::B64) {
            return bad("an mbarrier is .b64");
        }
        match what {
            Some("init") => {
                self.count(2)?;
                let (address, flags) = self.whole_address(0, 0)?;
                let count = self.read(1, false)?;
                self.action(Action::Init, Class::Synchronise, vec![], vec![address, count], |op| {
                    op.flags = flags;
                });
            }
            Some("inval") => {
                self.count(1)?;
                let (address, flags) = self.whole_address(0, 0)?;
                self.action(Action::Invalidate, Class::Synchronise, vec![], vec![address], |op| {
                    op.flags = flags;
                });
            }
            Some(which @ ("arrive" | "arrive_drop")) => {
                let no_complete = m.has("noComplete");
                let given = self.i.operands.len();
                if !(2..=3).contains(&given) || given == 2 && (expects || no_complete) {
                    return bad(format!("expected a state, an address and a count, found {given}"));
                }
                let state = self.destination(0, true)?;
                let (address, flags) = self.whole_address(1, 1)?;
                let third =
                    if given == 3 { self.read(2, false)? } else { Value::Constant(1, false) };
                let one = Value::Constant(1, false);
                let (count, bytes) = if expects { (one, third) } else { (third, one) };
                let how = if which == "arrive_drop" { ARRIVE_DROP } else { 0 }
                    | if no_complete { NO_COMPLETE } else { 0 }
                    | if expects { EXPECT } else { 0 };
                let s = vec![address, count, bytes];
                self.action(Action::Arrive, Class::Synchronise, vec![state], s, |op| {
                    (op.flags, op.size) = (flags, how);
                });
            }
            Some(which @ ("test_wait" | "try_wait")) => {
                let parity = m.has("parity");
                let given = self.i.operands.len();
                if given != 3 && !(given == 4 && which == "try_wait") {
                    return bad(format!("expected 3 operands, found {given}"));
                }
                let done = self.destination_predicate(0)?;
                let (address, flags) = self.whole_address(1, 1)?;
                let state = self.read(2, !parity)?;
                let action = if parity { Action::WaitParity } else { Action::WaitState };
                let s = vec![address, state];
                self.action(action, Class::Synchronise, vec![done], s, |op| op.flags = flags);
            }
            Some("pending_count") => {
                m.has("b64");
                self.count(2)?;
                let (count, state) = (self.destination(0, false)?, self.read(1, true)?);
                self.action(
                    Action::PendingCount,
                    Class::Synchronise,
                    vec![count],
                    vec![state],
                    |_| {},
                );
            }
            _ if what == Some("complete_tx") || expects => {
                self.count(2)?;
                let (address, flags) = self.whole_address(0, 0)?;
                let bytes = self.read(1, false)?;
                let action = if expects { Action::ExpectBytes } else { Action::CompleteBytes };
                self.action(action, Class::Synchronise, vec![], vec![address, bytes], |op| {
                    op.flags = flags;
                });
            }
            _ => return bad(format!("of mbarrier there are {}, expect_tx", NAMES.join(", "))),
        }
        Ok(())
    }

    /// `cp.async.mbarrier.arrive`.
    pub(super) fn copy_arrive(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        if !m.has("arrive") {
            return bad("of cp.async.mbarrier there is only .arrive");
        }
        let keep = m.has("noinc");
        m.any(&SHARED);
        m.has("b64");
        self.count(1)?;
        let (address, flags) = self.whole_address(0, 0)?;
        self.action(Action::CopyArrive, Class::Synchronise, vec![], vec![address], |op| {
            op.flags = flags | if keep { NO_INCREMENT } else { 0 };
        });
        Ok(())
    }

    /// `cp.async.bulk` and `cp.reduce.async.bulk`, without what they share with `cp.async`.
    pub(super) fn bulk_copy(&mut self, m: &mut Modifiers<'t>, reduces: bool) -> Decoded<()> {
        if m.has("commit_group") {
            self.count(0)?;
            self.action(Action::BulkCommit, Class::Memory, vec![], vec![], |_| {});
            return Ok(());
        }
        if m.has("wait_group") {
            let reads = m.has("read");
            self.count(1)?;
            let Operand::Integer(groups) = self.operand(0)? else {
                return bad("wait_group takes an immediate");
            };
            let groups = (*groups).min(u64::from(u16::MAX)) as u16;
            self.action(Action::BulkWait, Class::Synchronise, vec![], vec![], |op| {
                op.d = [groups, u16::from(reads), 0, 0];
            });
            return Ok(());
        }
        let prefetch = m.has("prefetch");
        let tensor = m.has("tensor");
        let rank = match m.any(&["1d", "2d", "3d", "4d", "5d"]) {
            Some(name) if tensor => u16::from(name.as_bytes()[0] - b'0'),
            None if !tensor => 0,
            _ => return bad("a tensor copy has .1d to .5d, others have none"),
        };
        if let Some(mode) = m.left.iter().find(|mode| mode.starts_with("im2col")) {
            return bad(format!("tensor copies in mode .{mode} are not supported, only .tile"));
        }
        m.has("tile");
        // Destination and source, in the order in which they are written.
        let mut spaces = m.left.clone();
        spaces.retain(|word| SHARED.contains(word) || *word == "global");
        m.left.retain(|word| !SHARED.contains(word) && *word != "global");
        let signals = m.has("mbarrier::complete_tx::bytes");
        let grouped = m.has("bulk_group");
        let policy = usize::from(m.has("L2::cache_hint"));
        let kind = match (&spaces[..], prefetch) {
            ([_], true) if m.has("L2") && spaces[0] == "global" => BulkKind::Prefetch,
            ([], true) if m.has("L2") && tensor => BulkKind::Prefetch,
            ([to, "global"], false) if *to != "global" && signals => BulkKind::Load,
            (["global", from], false) if *from != "global" && grouped => BulkKind::Store,
            ([to, from], false) if *to != "global" && *from != "global" && signals && !tensor => {
                BulkKind::Within
            }
            _ => {
                return bad("this direction of a bulk copy, or how it completes, is not supported");
            }
        };
        let mut reduce = None;
        if reduces {
            if kind == BulkKind::Load || prefetch {
                return bad("a reduction goes from shared memory to global or shared memory");
            }
            let names = ["add", "min", "max", "and", "or", "xor", "inc", "dec"];
            let Some(name) = m.any(&names) else { return bad("this reduction is not supported") };
            m.has("noftz");
            let ty = match m.ty() {
                Some(ty) => ty,
                None if tensor => return bad("reductions of tensors are not supported"),
                None => return bad("the reduction has no type"),
            };
            let plain = match ty {
                Type::S64 if name == "add" => Type::U64,
                other => other,
            };
            let Some(code) = crate::atomic::code(name, plain) else {
                return bad(format!("the reduction `{name}` of this type is not supported"));
            };
            reduce = Some((code, ty.bytes() as u8));
        }
        // Operands: [shared] and [global] or [map, {coordinates}] in the order of the direction,
        // the size, the mbarrier, a cache policy.
        let zero = Value::Constant(0, false);
        let mut flags = 0;
        let (shared_at, other_at) = match kind {
            BulkKind::Load | BulkKind::Within => (Some(0), 1),
            BulkKind::Store => (Some(1), 0),
            BulkKind::Prefetch => (None, 0),
        };
        let mut next = 1 + usize::from(shared_at.is_some());
        let shared = match shared_at {
            Some(at) => {
                let (value, flag) = self.whole_address(at, 0)?;
                flags |= flag;
                value
            }
            None => zero,
        };
        let mut rest = Vec::new();
        let other = if tensor {
            let Operand::Tensor(map, coordinates) = self.operand(other_at)? else {
                return bad("expected [tensor map, {coordinates}]");
            };
            if coordinates.len() != usize::from(rank) {
                let found = coordinates.len();
                return bad(format!("expected {rank} coordinates, found {found}"));
            }
            for coordinate in coordinates {
                rest.push(self.value(coordinate, false)?);
            }
            flags |= wide_at(1);
            match &**map {
                Operand::Name(name) if self.is_wide_register(name) == Some(false) => {
                    return bad(format!("`{name}` is 32 bits wide, a tensor map's address has 64"));
                }
                Operand::Name(name) if self.is_wide_register(name).is_none() => {
                    match self.variable(name) {
                        Some((space, at)) => Value::Constant(super::window(space) + at, true),
                        None => return bad(format!("`{name}` is not declared")),
                    }
                }
                map => self.value(map, true)?,
            }
        } else {
            let (value, flag) = self.whole_address(other_at, 1)?;
            flags |= flag;
            rest.push(self.read(next, false)?);
            next += 1;
            value
        };
        let barrier = if signals {
            let (value, flag) = self.whole_address(next, 2)?;
            flags |= flag;
            next += 1;
            value
        } else {
            zero
        };
        self.count(next + policy)?;
        let mut s = vec![shared, other, barrier];
        s.extend(rest);
        let d = Bulk { kind, rank, reduce }.encode();
        self.action(Action::Bulk, Class::Memory, vec![], s, |op| (op.flags, op.d) = (flags, d));
        Ok(())
    }

    pub(super) fn cluster_barrier(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let action = match m.any(&["arrive", "wait"]) {
            Some("arrive") => Action::ClusterArrive,
            Some(_) => Action::ClusterWait,
            None => return bad("a cluster barrier is .arrive or .wait"),
        };
        for word in ["release", "acquire", "relaxed", "aligned"] {
            m.has(word);
        }
        self.count(0)?;
        self.action(action, Class::Synchronise, vec![], vec![], |_| {});
        Ok(())
    }

    /// `mapa`: the address of the same variable in another block of the cluster.
    pub(super) fn map_shared(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        m.has("shared::cluster");
        let wide = match m.ty() {
            Some(Type::U32) => false,
            Some(Type::U64) => true,
            _ => return bad("mapa is .u32 or .u64"),
        };
        self.count(3)?;
        let d = self.destination(0, wide)?;
        let s = vec![self.read(1, wide)?, self.read(2, false)?];
        self.action(Action::MapShared, Class::Moves, vec![d], s, |op| {
            op.flags = if wide { wide_at(1) } else { 0 };
        });
        Ok(())
    }

    /// `getctarank`: of a cluster of one block, 0.
    pub(super) fn block_rank(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let shared = m.has("shared::cluster");
        let wide = m.ty() == Some(Type::U64);
        self.count(2)?;
        let d = self.destination(0, false)?;
        if !shared || !matches!(self.operand(1)?, Operand::Name(_)) {
            self.read(1, wide)?;
        }
        let exec = lane!(self.linker.wide, |x: u32| -> u32 { x });
        self.arithmetic(exec, Class::Moves, 0, vec![d], vec![Value::Constant(0, false)]);
        Ok(())
    }

    /// `setmaxnreg` (PTX ISA 9.7.19.5): registers are not counted here; the number is checked.
    pub(super) fn set_registers(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        if m.any(&["inc", "dec"]).is_none() || !m.has("sync") || !m.has("aligned") {
            return bad("setmaxnreg is .inc.sync.aligned or .dec.sync.aligned");
        }
        m.has("u32");
        self.count(1)?;
        match self.operand(0)? {
            Operand::Integer(count) if (24..=256).contains(count) && count % 8 == 0 => {}
            _ => return bad("setmaxnreg takes a multiple of 8 from 24 to 256"),
        }
        self.push(blank(Code::Nothing), Class::Control, vec![], vec![]);
        Ok(())
    }

    pub(super) fn warpgroup(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let names = ["fence", "commit_group", "wait_group", "mma_async"];
        let Some(what) = m.any(&names) else {
            return bad(format!("of wgmma there are {}", names.join(", ")));
        };
        if !m.has("sync") || !m.has("aligned") {
            return bad("wgmma is .sync.aligned");
        }
        match what {
            "fence" => {
                self.count(0)?;
                self.action(Action::WarpgroupFence, Class::Synchronise, vec![], vec![], |_| {});
            }
            "commit_group" => {
                self.count(0)?;
                self.action(Action::WarpgroupCommit, Class::Synchronise, vec![], vec![], |_| {});
            }
            "wait_group" => {
                self.count(1)?;
                let Operand::Integer(groups) = self.operand(0)? else {
                    return bad("wait_group takes an immediate");
                };
                let groups = (*groups).min(u64::from(u16::MAX)) as u16;
                self.action(Action::WarpgroupWait, Class::Synchronise, vec![], vec![], |op| {
                    op.d[0] = groups;
                });
            }
            _ => return self.warpgroup_product(m),
        }
        Ok(())
    }

    fn warpgroup_product(&mut self, m: &mut Modifiers<'t>) -> Decoded<()> {
        let Some(at) = m.left.iter().position(|word| word.starts_with("m64n")) else {
            return bad("wgmma.mma_async has a shape m64nNkK");
        };
        let shape = m.left.remove(at);
        let saturate = m.has("satfinite");
        let types = [self.typed(m)?, self.typed(m)?, self.typed(m)?];
        let Some(form) = Form::of(shape, types) else {
            return bad("this combination of shape and types of wgmma.mma_async is not supported");
        };
        let a_in_registers = matches!(self.operand(1)?, Operand::Vector(_));
        // What follows the scale of D: signs of A and B, then majors of the operands in memory.
        let mut rest = 4..self.i.operands.len();
        let mut constant = |at: &Self| -> Decoded<u64> {
            match rest.next().map(|index| at.operand(index)) {
                Some(Ok(Operand::Integer(value))) => Ok(*value),
                _ => bad("expected an immediate"),
            }
        };
        let (mut negate, mut across) = ([false; 2], [false; 2]);
        let mut expected = 4;
        if !form.is_integer() {
            for sign in &mut negate {
                *sign = match constant(self)? as i64 {
                    1 => false,
                    -1 => true,
                    _ => return bad("the scale of A and of B is 1 or -1"),
                };
            }
            expected += 2;
        }
        if form.has_majors() {
            for major in &mut across[usize::from(a_in_registers)..] {
                *major = match constant(self)? {
                    0 => false,
                    1 => true,
                    _ => return bad("the transposition of A and of B is 0 or 1"),
                };
                expected += 1;
            }
        }
        self.count(expected)?;
        let Some(form) = form.with(a_in_registers, negate, across, saturate) else {
            return bad("this form of wgmma.mma_async is not supported");
        };
        let mut d = Vec::new();
        for element in self.elements(0, form.accumulators() as u8)? {
            let Operand::Name(name) = element else { return bad("expected registers") };
            d.push(self.destination_named(name, false)?);
        }
        let mut s = Vec::new();
        if a_in_registers {
            for element in self.elements(1, 4)? {
                s.push(self.value(element, false)?);
            }
        } else {
            s.push(self.read(1, true)?);
        }
        s.push(self.read(2, true)?);
        s.push(self.read_predicate(3)?);
        self.action(Action::WarpgroupMultiply, Class::Matrix, d, s, |op| form.encode(op));
        Ok(())
    }
}
