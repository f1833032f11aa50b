//! `wgmma` (PTX ISA 9.7.15): products of matrices by the four warps of a warpgroup.
//!
//! A warp that issues a product only notes it down. At `wait_group` the four warps meet; what they
//! have noted must be the same; then operands are read, products computed and accumulators written,
//! for all four at once. Until then the accumulators, and the registers of A, belong to the tensor
//! cores: an instruction that touches them is an `async-hazard`, as is a product over registers that
//! were touched since the last `wgmma.fence`.
//!
//! Sums are as in `matrix`: products are exact in f32 and added in f32 in the order of k, or as a model
//! of hardware adds (`tensor_cores`). Integers are exact.
//!
//! The file is long because the queue, the checks of it and the product belong to one moment.

use crate::access::describe_shared;
use crate::findings::{Check, Fault};
use crate::hopper::operands::{Descriptor, in_registers};
use crate::hopper::{Action, Parked};
use crate::machine::{Machine, State, Stopped, Warp};
use crate::math::{b, brain_to_single, f, from_e4m3, from_e5m2, half_to_single, single_to_half};
use crate::op::Op;
use crate::races::{Kind, agent};
use crate::registers::{FULL, Registers};
use crate::syntax::{Space, Type};
use crate::tensor_cores::Sum;
use std::ops::Range;

/// Number of the agent that reads for the products of a warpgroup, in the name of its first warp.
const AGENT: u8 = 31;

/// Rows of a product; each warp of the warpgroup has 16.
const ROWS: usize = 64;

/// A kind of product, as `Op::d` and `Op::s` hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub columns: usize,
    a: Type,
    b: Type,
    /// f32, f16 or s32.
    to: Type,
    pub a_in_registers: bool,
    negate: [bool; 2],
    /// Whether A and B are M-major and N-major.
    across: [bool; 2],
    saturate: bool,
}

const TYPES: [Type; 9] = [
    Type::F16,
    Type::Bf16,
    Type::Tf32,
    Type::E4m3,
    Type::E5m2,
    Type::S8,
    Type::U8,
    Type::F32,
    Type::S32,
];

/// Columns that products of integers have.
const INTEGER_COLUMNS: [usize; 5] = [8, 16, 24, 32, 48];

impl Form {
    /// The form of a shape such as `m64n128k16` and the types of D, A and B.
    pub(crate) fn of(shape: &str, [to, a, b]: [Type; 3]) -> Option<Self> {
        let (columns, depth) = shape.strip_prefix("m64n")?.split_once('k')?;
        let columns: usize = columns.parse().ok()?;
        let form = Self {
            columns,
            a,
            b,
            to,
            a_in_registers: false,
            negate: [false; 2],
            across: [false; 2],
            saturate: false,
        };
        let types = matches!(
            (a, b, to),
            (Type::F16, Type::F16, Type::F32 | Type::F16)
                | (Type::Bf16, Type::Bf16, Type::F32)
                | (Type::Tf32, Type::Tf32, Type::F32)
                | (Type::E4m3 | Type::E5m2, Type::E4m3 | Type::E5m2, Type::F32 | Type::F16)
                | (Type::S8 | Type::U8, Type::S8 | Type::U8, Type::S32)
        );
        let fits = if to == Type::S32 {
            INTEGER_COLUMNS.contains(&columns) || columns.is_multiple_of(16)
        } else {
            columns.is_multiple_of(8)
        };
        let deep = types && depth.parse() == Ok(form.depth());
        (deep && fits && (8..=256).contains(&columns)).then_some(form)
    }

    /// The operands that follow the descriptors: signs, and majors where the type has them.
    pub(crate) fn with(
        mut self,
        a_in_registers: bool,
        negate: [bool; 2],
        across: [bool; 2],
        saturate: bool,
    ) -> Option<Self> {
        self.a_in_registers = a_in_registers;
        (self.negate, self.across, self.saturate) = (negate, across, saturate);
        let turned = across != [false; 2] && self.a.bytes() != 2;
        let signs = negate != [false; 2] && self.is_integer();
        (!turned && !signs && (!saturate || self.is_integer())).then_some(self)
    }

    pub(crate) fn is_integer(&self) -> bool {
        self.to == Type::S32
    }

    /// Whether A and B may be M- and N-major, which is written.
    pub(crate) fn has_majors(&self) -> bool {
        matches!(self.a, Type::F16 | Type::Bf16)
    }

    fn depth(&self) -> usize {
        32 / self.size()
    }

    /// Bytes of an element of A and B.
    fn size(&self) -> usize {
        match self.a {
            Type::Tf32 => 4,
            Type::F16 | Type::Bf16 => 2,
            _ => 1,
        }
    }

    /// Registers that a thread has of D.
    pub(crate) fn accumulators(&self) -> usize {
        if self.to == Type::F16 { self.columns / 4 } else { self.columns / 2 }
    }

    pub(crate) fn encode(&self, op: &mut Op) {
        let number = |ty| TYPES.iter().position(|&other| other == ty).unwrap_or(0) as u16;
        op.d = [self.columns as u16, number(self.a), number(self.b), number(self.to)];
        let bits = [
            self.a_in_registers,
            self.negate[0],
            self.negate[1],
            self.across[0],
            self.across[1],
            self.saturate,
        ];
        op.s[0] = bits.iter().enumerate().fold(0, |out, (at, &bit)| out | u16::from(bit) << at);
    }

    pub(crate) fn decode(op: &Op) -> Self {
        let ty = |number: u16| TYPES[usize::from(number) % TYPES.len()];
        let bit = |at: u32| op.s[0] >> at & 1 != 0;
        Self {
            columns: usize::from(op.d[0]),
            a: ty(op.d[1]),
            b: ty(op.d[2]),
            to: ty(op.d[3]),
            a_in_registers: bit(0),
            negate: [bit(1), bit(2)],
            across: [bit(3), bit(4)],
            saturate: bit(5),
        }
    }

    /// Floating-point operations of one warp's quarter of a product (a multiply-add is two).
    pub(crate) fn warp_flop(&self) -> u64 {
        (2 * ROWS / 4 * self.columns * self.depth()) as u64
    }

    /// Bytes of shared memory that a product reads for each of its warps.
    pub(crate) fn warp_operand_bytes(&self) -> u64 {
        self.operand_bytes() as u64 / 4
    }

    /// Bytes of shared memory that a product reads.
    fn operand_bytes(&self) -> usize {
        let rows = if self.a_in_registers { self.columns } else { ROWS + self.columns };
        32 * rows
    }

    /// The runs of 16 bytes of shared memory that a product reads.
    fn ranges(&self, words: [u64; 2]) -> impl Iterator<Item = Range<usize>> {
        let form = *self;
        let in_shared = if form.a_in_registers { 1..2 } else { 0..2 };
        in_shared
            .filter_map(move |at| Some((Descriptor::decode(words[at])?, at == 1)))
            .flat_map(move |(descriptor, is_b)| form.chunks(descriptor, is_b))
            .map(|(address, ..)| address as usize..address as usize + 16)
    }

    /// Every run of 16 bytes of an operand: its address, and the outer and first major element.
    fn chunks(
        self,
        descriptor: Descriptor,
        is_b: bool,
    ) -> impl Iterator<Item = (u64, usize, usize)> {
        let across = self.across[usize::from(is_b)];
        let width = if is_b { self.columns } else { ROWS };
        let (outer, major) = if across { (self.depth(), width) } else { (width, self.depth()) };
        let each = 16 / self.size();
        (0..outer).flat_map(move |o| {
            (0..major / each)
                .map(move |run| (descriptor.chunk(across, o as u64, run as u64), o, run * each))
        })
    }
}

/// A product that was issued.
#[derive(Clone, Debug)]
struct Product {
    pc: usize,
    a: u64,
    b: u64,
    /// Whether D is added to; its old value does not count otherwise.
    add: bool,
    /// Group that the warp was filling.
    group: u32,
}

/// What one warp has given the tensor cores.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    products: Vec<Product>,
    commits: u32,
    /// By slot: instruction after which the register was last read (low) and written (high), plus
    /// one, since the last fence; all of them before the first.
    touched: Vec<[u32; 2]>,
    fenced: bool,
}

impl Queue {
    pub(super) fn clear(&mut self) {
        self.products.clear();
        self.commits = 0;
        self.touched.clear();
        self.fenced = false;
    }
}

/// Registers of D and of A in the list of a product.
fn parts<'l>(form: &Form, list: &'l [u16]) -> (&'l [u16], &'l [u16], &'l [u16]) {
    let (d, rest) = list.split_at(form.accumulators());
    let (a, rest) = rest.split_at(if form.a_in_registers { 4 } else { 0 });
    (d, a, rest)
}

impl Machine<'_> {
    pub(super) fn warpgroup<const CHECK: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        list: &[u16],
        pc: usize,
        mask: u32,
    ) -> Parked {
        let fault = |check, message: String| Err(Fault::new(check, mask, message));
        if !self.threads.is_multiple_of(128) && warp.index / 4 == self.threads / 128 {
            let warps = self.threads.div_ceil(32) % 4;
            let message = format!("a warpgroup is four whole warps, the last one here has {warps}");
            return fault(Check::InvalidArgument, message);
        }
        let index = warp.index as usize;
        match op.action {
            Action::WarpgroupFence => {
                let queue = &mut self.hopper.queues[index];
                queue.touched.clear();
                queue.fenced = true;
            }
            Action::WarpgroupCommit => self.hopper.queues[index].commits += 1,
            Action::WarpgroupWait => {
                self.hopper.changed = true;
                return Ok(mask);
            }
            _ => {
                let form = Form::decode(op);
                let (d, a, rest) = parts(&form, list);
                if CHECK {
                    self.check_fence(index, d, a, pc, mask)?;
                }
                let mut words = [0u64; 2];
                let descriptors = if form.a_in_registers { &rest[..1] } else { &rest[..2] };
                for (at, &slot) in descriptors.iter().enumerate() {
                    let values = warp.registers.read::<u64>(slot);
                    if values.iter().any(|value| *value != values[0]) {
                        let message = "lanes give different matrix descriptors".to_owned();
                        return fault(Check::InvalidArgument, message);
                    }
                    words[at + usize::from(form.a_in_registers)] = values[0];
                    if Descriptor::decode(values[0]).is_none() {
                        let message = format!(
                            "{:#018x} is no matrix descriptor: reserved bits are set",
                            values[0]
                        );
                        return fault(Check::InvalidArgument, message);
                    }
                }
                let add = warp.registers.predicates[usize::from(list[list.len() - 1])];
                if add != 0 && add != FULL {
                    let message = "lanes differ in whether D is added to".to_owned();
                    return fault(Check::InvalidArgument, message);
                }
                if CHECK {
                    self.check_operands(&form, words, pc, mask, false)?;
                    // Its reads are the warpgroup's, kept once; each warp must come after the writes.
                    let first = index.is_multiple_of(4);
                    let (kind, place) = (Kind::AgentRead(AGENT), (Space::Shared, 0));
                    let (ranges, bytes) = (form.ranges(words), form.operand_bytes());
                    self.ordered_ranges(warp, place, 0, bytes, ranges, first, kind, pc)?;
                    self.hopper.flew = true;
                }
                let queue = &mut self.hopper.queues[index];
                let [a, b] = words;
                let group = queue.commits;
                queue.products.push(Product { pc, a, b, add: add != 0, group });
            }
        }
        Ok(0)
    }

    /// Registers of a product must not have been touched since the last `wgmma.fence`, and must not
    /// be under way in another way than as the accumulators of a product of the same registers.
    fn check_fence(
        &self,
        index: usize,
        d: &[u16],
        a: &[u16],
        pc: usize,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        let queue = &self.hopper.queues[index];
        let hazard = |message: String| Err(Fault::new(Check::AsyncHazard, mask, message));
        if !queue.fenced {
            return hazard("no wgmma.fence before the first product of the warp".to_owned());
        }
        let line = |at: u32| {
            let note = &self.kernel.notes[at as usize - 1];
            format!("`{}`, PTX line {},", note.text, note.line)
        };
        let touched = |slot: u16| queue.touched.get(usize::from(slot)).copied().unwrap_or_default();
        for &slot in d {
            let last = touched(slot);
            let last = last[0].max(last[1]);
            if last != 0 {
                return hazard(format!(
                    "no wgmma.fence between this product and {} which touches its accumulators",
                    line(last)
                ));
            }
        }
        for &slot in a {
            if touched(slot)[1] != 0 {
                return hazard(format!(
                    "no wgmma.fence between this product and {} which writes its A",
                    line(touched(slot)[1])
                ));
            }
        }
        for product in &queue.products {
            let op = &self.kernel.code[product.pc];
            let (other_d, other_a, _) =
                parts(&Form::decode(op), &self.kernel.lists[op.imm as usize]);
            let shared = a.iter().any(|slot| other_d.contains(slot))
                || d.iter().any(|slot| other_a.contains(slot))
                || other_d != d && d.iter().any(|slot| other_d.contains(slot));
            if shared && product.pc != pc {
                return hazard(format!(
                    "this product uses registers of {} which has not been waited for",
                    line(product.pc as u32 + 1)
                ));
            }
        }
        Ok(())
    }

    /// Operands must lie in shared memory, have been written, and at the landing still be whole.
    fn check_operands(
        &self,
        form: &Form,
        words: [u64; 2],
        pc: usize,
        mask: u32,
        landing: bool,
    ) -> Result<(), Box<Fault>> {
        for (at, word) in words.into_iter().enumerate() {
            let Some(descriptor) = Descriptor::decode(word) else { continue };
            if at == 0 && form.a_in_registers {
                continue;
            }
            let name = ["A", "B"][at];
            for (address, ..) in form.chunks(descriptor, at == 1) {
                let place = || describe_shared(self.kernel, address);
                let fault = |check, message| Err(Fault::new(check, mask, message).at(place()));
                if address + 16 > self.shared.len() as u64 {
                    let message = format!("{name} of the product leaves shared memory");
                    return fault(Check::OutOfBounds, message);
                }
                let start = address as usize;
                if self.shared_valid.as_ref().is_some_and(|valid| !valid.has_range(start, 16)) {
                    let message = format!("{name} of the product leaves its shared variable");
                    return fault(Check::OutOfBounds, message);
                }
                if self.shared_shadow.has(start, 16) {
                    continue;
                }
                let line = self.kernel.notes[pc].line;
                let (check, message) = if landing {
                    let what = "is overwritten by an asynchronous copy before the product that \
                                reads it has been waited for";
                    (Check::AsyncHazard, format!("{name} of the product of PTX line {line} {what}"))
                } else if self.in_flight(address, 16) {
                    let what = "by an asynchronous copy that has not been waited for";
                    (Check::AsyncHazard, format!("{name} of the product is being written {what}"))
                } else {
                    (Check::Uninitialised, format!("{name} of the product was never written"))
                };
                return fault(check, message);
            }
        }
        Ok(())
    }

    /// An ordinary instruction uses registers that products use too.
    #[cold]
    #[inline(never)]
    pub(crate) fn touch(
        &mut self,
        warp: &Warp,
        pc: usize,
        mask: u32,
        uses: &[(u16, bool)],
    ) -> Result<(), Box<Fault>> {
        let kernel = self.kernel;
        let queue = &mut self.hopper.queues[warp.index as usize];
        for &(slot, writes) in uses {
            for product in &queue.products {
                let op = &kernel.code[product.pc];
                let (d, a, _) = parts(&Form::decode(op), &kernel.lists[op.imm as usize]);
                let (what, verb) = if d.contains(&slot) {
                    ("accumulator", if writes { "writes" } else { "reads" })
                } else if writes && a.contains(&slot) {
                    ("register of A", "writes")
                } else {
                    continue;
                };
                let committed = if product.group < queue.commits {
                    "has not been waited for with wgmma.wait_group"
                } else {
                    "has not even been committed with wgmma.commit_group"
                };
                let message = format!(
                    "{verb} an {what} of the product on PTX line {}, which {committed}",
                    kernel.notes[product.pc].line
                );
                return Err(Fault::new(Check::AsyncHazard, mask, message));
            }
            let at = usize::from(slot);
            if queue.touched.len() <= at {
                queue.touched.resize(at + 1, [0; 2]);
            }
            queue.touched[at][usize::from(writes)] = pc as u32 + 1;
        }
        Ok(())
    }

    /// Lets the warpgroups go on whose four warps have come to `wait_group`, after landing what they
    /// wait for. Says whether there were any.
    pub(super) fn multiply_waiting<const CHECK: bool>(
        &mut self,
        warps: &mut [Warp],
        wide: bool,
    ) -> Result<bool, (usize, Stopped)> {
        let kernel = self.kernel;
        let mut any = false;
        for (group, four) in warps.chunks_mut(4).enumerate() {
            let waits = |warp: &Warp| {
                let at = warp.groups.iter().position(|group| {
                    let op = &kernel.code[group.pc as usize];
                    group.state == State::Asynchronous && op.action == Action::WarpgroupWait
                })?;
                Some((at, warp.groups[at].pc as usize))
            };
            let places: Vec<_> = four.iter().map_while(waits).collect();
            let [first, ..] = places[..] else { continue };
            if places.len() < 4 {
                continue;
            }
            let index = 4 * group;
            let pc = first.1;
            let fault = |at: usize, pc: usize, check, message: String| {
                Err((index + at, Stopped { pc, fault: Fault::new(check, FULL, message) }))
            };
            if let Some(at) = places.iter().position(|place| place.1 != pc) {
                let other = kernel.notes[pc].line;
                let message = format!(
                    "warps of one warpgroup are at different instructions (the others on PTX line {other})"
                );
                return fault(at, places[at].1, Check::BarrierDivergence, message);
            }
            if let Err((at, pc, message)) = self.same_work(index) {
                return fault(at, pc, Check::BarrierDivergence, message);
            }
            let last = u32::from(kernel.code[pc].d[0]);
            let due = {
                let queue = &self.hopper.queues[index];
                queue.products.iter().take_while(|p| p.group + last < queue.commits).count()
            };
            for _ in 0..due {
                let product = self.hopper.queues[index].products[0].clone();
                let op = &kernel.code[product.pc];
                let form = Form::decode(op);
                if CHECK {
                    self.check_operands(&form, [product.a, product.b], product.pc, FULL, true)
                        .map_err(|fault| (index, Stopped { pc, fault }))?;
                }
                self.multiply(four, &form, &kernel.lists[op.imm as usize], &product, wide);
                if CHECK {
                    let ranges = form.ranges([product.a, product.b]);
                    self.tick();
                    self.completed((Space::Shared, 0), (index as u8, AGENT), ranges, false);
                }
                for queue in &mut self.hopper.queues[index..index + 4] {
                    queue.products.remove(0);
                }
            }
            for (warp, (at, _)) in four.iter_mut().zip(places) {
                warp.groups[at].state = State::Ready;
                warp.groups[at].pc += 1;
                if CHECK && due > 0 {
                    let party = agent(warp.order.block, index as u8, AGENT);
                    warp.order.waited_for(FULL, warp.live, party, self.now);
                }
            }
            self.hopper.timeouts = 0;
            any = true;
        }
        Ok(any)
    }

    /// The four warps from `index` on must have given the tensor cores the same.
    fn same_work(&self, index: usize) -> Result<(), (usize, usize, String)> {
        let queues = &self.hopper.queues[index..index + 4];
        let first = &queues[0];
        for (at, queue) in queues.iter().enumerate() {
            for (mine, others) in queue.products.iter().zip(&first.products) {
                let same = (mine.pc, mine.a, mine.b, mine.add, mine.group)
                    == (others.pc, others.a, others.b, others.add, others.group);
                if !same {
                    let line = self.kernel.notes[others.pc].line;
                    let message = format!(
                        "the warps of a warpgroup issue different products (warp {index} that of \
                         PTX line {line}, or with other descriptors or in another group)"
                    );
                    return Err((at, mine.pc, message));
                }
            }
            if queue.products.len() != first.products.len() || queue.commits != first.commits {
                let more = queue.products.last().or(first.products.last());
                let message = format!(
                    "warp {} of the warpgroup has {} products in {} groups under way, warp {index} \
                     has {} in {}",
                    index + at,
                    queue.products.len(),
                    queue.commits,
                    first.products.len(),
                    first.commits
                );
                return Err((at, more.map_or(0, |product| product.pc), message));
            }
        }
        Ok(())
    }

    /// One product, for four warps.
    fn multiply(
        &self,
        four: &mut [Warp],
        form: &Form,
        list: &[u16],
        product: &Product,
        wide: bool,
    ) {
        let (d, a, _) = parts(form, list);
        if form.is_integer() {
            let left = self.left(four, form, a, product.a, integer(form.a));
            let right = self.right(form, product.b, integer(form.b));
            integers(four, form, d, &left, &right, product.add);
        } else {
            let left = self.left(four, form, a, product.a, number(form.a, form.negate[0]));
            let right = self.right(form, product.b, number(form.b, form.negate[1]));
            let way = self.matrix.of_wgmma([form.a, form.b], form.to == Type::F16);
            floats(four, form, d, [&left, &right], product.add, way, wide);
        }
    }

    /// A, row after row.
    fn left<T: Copy + Default>(
        &self,
        four: &[Warp],
        form: &Form,
        registers: &[u16],
        descriptor: u64,
        of: impl Fn(u32) -> T,
    ) -> Vec<T> {
        let (depth, size) = (form.depth(), form.size());
        let mut out = vec![T::default(); ROWS * depth];
        if form.a_in_registers {
            let each = 4 / size;
            for (w, warp) in four.iter().enumerate() {
                for (index, &slot) in registers.iter().enumerate() {
                    let words = warp.registers.read::<u32>(slot);
                    for (lane, &word) in words.iter().enumerate() {
                        let (row, k) = in_registers(index, lane, each);
                        for part in 0..each {
                            let bits = word >> (8 * size * part) & mask_of(size);
                            out[(16 * w + row) * depth + k + part] = of(bits);
                        }
                    }
                }
            }
            return out;
        }
        let across = form.across[0];
        self.each_element(form, descriptor, false, |outer, major, bits| {
            let (row, k) = if across { (major, outer) } else { (outer, major) };
            out[row * depth + k] = of(bits);
        });
        out
    }

    /// B, one k after the other.
    fn right<T: Copy + Default>(
        &self,
        form: &Form,
        descriptor: u64,
        of: impl Fn(u32) -> T,
    ) -> Vec<T> {
        let columns = form.columns;
        let mut out = vec![T::default(); columns * form.depth()];
        let across = form.across[1];
        self.each_element(form, descriptor, true, |outer, major, bits| {
            let (column, k) = if across { (major, outer) } else { (outer, major) };
            out[k * columns + column] = of(bits);
        });
        out
    }

    #[inline(always)]
    fn each_element(
        &self,
        form: &Form,
        descriptor: u64,
        is_b: bool,
        mut visit: impl FnMut(usize, usize, u32),
    ) {
        let Some(descriptor) = Descriptor::decode(descriptor) else { return };
        let size = form.size();
        for (address, outer, major) in form.chunks(descriptor, is_b) {
            // Without checks, what lies outside shared memory reads as zero.
            let chunk =
                self.shared.get(address as usize..address as usize + 16).unwrap_or(&[0; 16]);
            for (at, bytes) in chunk.chunks_exact(size).enumerate() {
                let mut word = [0; 4];
                word[..size].copy_from_slice(bytes);
                visit(outer, major + at, u32::from_le_bytes(word));
            }
        }
    }
}

fn mask_of(size: usize) -> u32 {
    if size == 4 { u32::MAX } else { (1 << (8 * size)) - 1 }
}

/// Bits of an element of A or B as a number.
fn number(ty: Type, negate: bool) -> impl Fn(u32) -> f32 {
    move |bits| {
        let value = match ty {
            Type::F16 => half_to_single(bits),
            Type::Bf16 => brain_to_single(bits),
            Type::Tf32 => f(bits & !0x1fff),
            Type::E4m3 => from_e4m3(bits),
            _ => from_e5m2(bits),
        };
        if negate { -value } else { value }
    }
}

fn integer(ty: Type) -> impl Fn(u32) -> i32 {
    move |bits| if ty == Type::S8 { i32::from(bits as u8 as i8) } else { (bits & 0xff) as i32 }
}

/// Row (of a warp's 16) and first column of what register `index` of D holds in a lane; f16 holds
/// two columns.
fn in_accumulator(index: usize, lane: usize, half: bool) -> (usize, usize) {
    if half {
        (lane / 4 + 8 * (index % 2), 8 * (index / 2) + 2 * (lane % 4))
    } else {
        (lane / 4 + 8 * (index / 2 % 2), 8 * (index / 4) + 2 * (lane % 4) + index % 2)
    }
}

fn floats(
    four: &mut [Warp],
    form: &Form,
    d: &[u16],
    [left, right]: [&[f32]; 2],
    add: bool,
    way: Option<Sum>,
    wide: bool,
) {
    let (columns, depth) = (form.columns, form.depth());
    let half = form.to == Type::F16;
    let mut sums = vec![0f32; 16 * columns];
    for (w, warp) in four.iter_mut().enumerate() {
        let registers = &mut warp.registers;
        sums.fill(0.0);
        if add {
            for (index, &slot) in d.iter().enumerate() {
                let words = registers.read::<u32>(slot);
                for lane in 0..32 {
                    let (row, column) = in_accumulator(index, lane, half);
                    let at = row * columns + column;
                    if half {
                        sums[at] = half_to_single(words[lane] & 0xffff);
                        sums[at + 1] = half_to_single(words[lane] >> 16);
                    } else {
                        sums[at] = f(words[lane]);
                    }
                }
            }
        }
        let left = &left[16 * w * depth..16 * (w + 1) * depth];
        match way {
            Some(way) => accumulate_as(way, &mut sums, left, right, columns),
            None => accumulate(&mut sums, left, right, columns, wide),
        }
        for (index, &slot) in d.iter().enumerate() {
            let words = registers.write::<u32>(slot);
            for lane in 0..32 {
                let (row, column) = in_accumulator(index, lane, half);
                let at = row * columns + column;
                words[lane] = if half {
                    single_to_half(sums[at]) | single_to_half(sums[at + 1]) << 16
                } else {
                    b(sums[at])
                };
            }
        }
    }
}

/// `sums` += `left` `right`, with 16 rows, as a model of hardware adds.
fn accumulate_as(way: Sum, sums: &mut [f32], left: &[f32], right: &[f32], columns: usize) {
    let depth = right.len() / columns;
    let mut factors = vec![(0.0, 0.0); depth];
    for (sums, left) in sums.chunks_exact_mut(columns).zip(left.chunks_exact(depth)) {
        for (column, sum) in sums.iter_mut().enumerate() {
            for (k, factors) in factors.iter_mut().enumerate() {
                *factors = (left[k], right[k * columns + column]);
            }
            *sum = way.of(*sum, &factors);
        }
    }
}

/// `sums` += `left` `right`, with 16 rows.
fn accumulate(sums: &mut [f32], left: &[f32], right: &[f32], columns: usize, wide: bool) {
    #[cfg(target_arch = "x86_64")]
    if wide {
        // SAFETY: `wide` is what `wide_is_available` said.
        unsafe { accumulate_wide(sums, left, right, columns) };
        return;
    }
    let _ = wide;
    accumulate_here(sums, left, right, columns);
}

/// # Safety
/// The processor must have these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn accumulate_wide(sums: &mut [f32], left: &[f32], right: &[f32], columns: usize) {
    accumulate_here(sums, left, right, columns);
}

#[inline(always)]
fn accumulate_here(sums: &mut [f32], left: &[f32], right: &[f32], columns: usize) {
    let depth = right.len() / columns;
    // Eight columns at a time stay in registers over the whole depth.
    for (sums, left) in sums.chunks_exact_mut(columns).zip(left.chunks_exact(depth)) {
        for (at, part) in sums.chunks_exact_mut(8).enumerate() {
            let mut sum = [0f32; 8];
            sum.copy_from_slice(part);
            for (factor, row) in left.iter().zip(right.chunks_exact(columns)) {
                for (sum, value) in sum.iter_mut().zip(&row[8 * at..8 * at + 8]) {
                    *sum += factor * value;
                }
            }
            part.copy_from_slice(&sum);
        }
    }
}

fn integers(four: &mut [Warp], form: &Form, d: &[u16], left: &[i32], right: &[i32], add: bool) {
    let (columns, depth) = (form.columns, form.depth());
    let element = |registers: &Registers, slot: u16, lane: usize| {
        if add { i64::from(registers.read::<u32>(slot)[lane] as i32) } else { 0 }
    };
    for (w, warp) in four.iter_mut().enumerate() {
        for (index, &slot) in d.iter().enumerate() {
            let mut words = [0u32; 32];
            for lane in 0..32 {
                let (row, column) = in_accumulator(index, lane, false);
                let row = &left[(16 * w + row) * depth..][..depth];
                let sum: i64 = row
                    .iter()
                    .enumerate()
                    .map(|(k, value)| i64::from(value * right[k * columns + column]))
                    .sum();
                let sum = sum + element(&warp.registers, slot, lane);
                words[lane] = if form.saturate {
                    sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32
                } else {
                    sum as u32
                };
            }
            *warp.registers.write::<u32>(slot) = words;
        }
    }
}
