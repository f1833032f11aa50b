//! A launch: arguments and limits checked, blocks and their warps run in turns, barriers opened. It is
//! long because a run of blocks and the opening of their barriers share all of their state.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::counters::{BufferTraffic, Counters};
use crate::error::LaunchError;
use crate::findings::{Check, Fault, Finding, Party, TrailLine, lane_list};
use crate::hopper::wgmma::Form;
use crate::hopper::{Action, Hopper};
use crate::kernel::{Kernel, Module};
use crate::lanes::wide_is_available;
use crate::link::SpecialRegister;
use crate::machine::{Barrier, Executed, Group, Machine, State, Stopped, Warp};
use crate::memory::{Memory, PastLaunch};
use crate::op::{ALIGNED, Class, Code};
use crate::order::Publications;
use crate::races::{Cells, Lists, Other};
use crate::schedule::Schedule;
use crate::shadow::Shadow;
use crate::tensor_cores::MatrixModel;
use crate::trail::{self, Scene, Start};

/// Shared memory of one block, as on sm_90.
const MOST_SHARED: u64 = 227 * 1024;
/// Blocks that may run at the same time, and the bytes they may hold together.
const MOST_RESIDENTS: usize = 1024;
const MOST_RESIDENT_BYTES: usize = 64 << 20;

/// One kernel argument.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Argument {
    U64(u64),
    I64(i64),
    U32(u32),
    I32(i32),
    F32(f32),
    F64(f64),
    /// A structure passed by value, or any other type, as its bytes.
    Bytes(Vec<u8>),
}

impl Argument {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::U64(value) => value.to_le_bytes().to_vec(),
            Self::I64(value) => value.to_le_bytes().to_vec(),
            Self::U32(value) => value.to_le_bytes().to_vec(),
            Self::I32(value) => value.to_le_bytes().to_vec(),
            Self::F32(value) => value.to_le_bytes().to_vec(),
            Self::F64(value) => value.to_le_bytes().to_vec(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// What to launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the kernel.
    pub kernel: &'a str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub dynamic_shared_bytes: u32,
    /// One argument per parameter.
    pub arguments: &'a [Argument],
}

/// Which blocks of the grid to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BlockSelection {
    /// All of them.
    #[default]
    All,
    /// Those with these linear indices (x fastest), in this order.
    Only(Vec<u64>),
}

/// How to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Check alignment, initialisation and barriers. Bounds are always checked.
    pub checks: bool,
    /// Count instructions and memory traffic.
    pub counters: bool,
    /// Count executions of each instruction, in [`Report::executed`]; needs `counters`.
    pub lines: bool,
    /// 0 runs blocks one after another and their warps in turns; any other value picks a
    /// schedule, the same for the same seed.
    pub seed: u64,
    /// How sums of matrix products are added.
    pub matrix: MatrixModel,
    /// Blocks to run.
    pub blocks: BlockSelection,
    /// Warp instructions one block may run before it counts as hanging.
    pub instruction_budget: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            checks: true,
            counters: true,
            lines: false,
            seed: 0,
            matrix: MatrixModel::Fast,
            blocks: BlockSelection::All,
            instruction_budget: 1 << 32,
        }
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What was counted.
    pub counters: Counters,
    /// What the checks found; the first finding stops the launch.
    pub findings: Vec<Finding>,
    /// What the kernel printed with `printf`: the first MiB of it.
    #[serde(default)]
    pub printed: String,
    /// Warps that executed each instruction, with `Options::lines`, for
    /// [`Kernel::line_counts`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub executed: Vec<u64>,
}

/// Runs a kernel to its end or to its first finding.
///
/// # Errors
/// An unknown kernel, arguments that do not fit its parameters, dimensions or shared memory
/// beyond what a GPU has. Errors of the kernel itself are findings of the report.
pub fn launch(
    module: &Module,
    memory: &mut Memory,
    launch: &Launch<'_>,
    options: &Options,
) -> Result<Report, LaunchError> {
    launch_on(module, memory, launch, options, wide_is_available())
}

pub(crate) fn launch_on(
    module: &Module,
    memory: &mut Memory,
    launch: &Launch<'_>,
    options: &Options,
    wide: bool,
) -> Result<Report, LaunchError> {
    let kept = module.kept_kernel(launch.kernel).ok_or_else(|| LaunchError::UnknownKernel {
        name: launch.kernel.to_owned(),
        known: module.kernel_names().into_iter().map(str::to_owned).collect(),
    })?;
    let kernel = kept.as_ref();
    let parameters = parameter_block(kernel, launch.arguments)?;
    let blocks = dimensions(kernel, launch)?;
    if let BlockSelection::Only(list) = &options.blocks
        && let Some(&index) = list.iter().find(|&&index| index >= blocks)
    {
        return Err(LaunchError::BlockSelection { index, blocks });
    }
    memory.prepare(module, kernel, &parameters);
    let (launch_epoch, first_list) = (memory.epoch, memory.first_list);
    let schedule = Schedule::new(options.seed);
    let mut variables = memory.modules.remove(&module.id).unwrap_or_default();
    let mut run = Run {
        machine: Machine {
            kernel,
            allocations: &mut memory.allocations,
            module: &mut variables,
            parameters,
            shared: Vec::new(),
            shared_shadow: Shadow::default(),
            shared_valid: None,
            shared_cells: Cells::default(),
            lists: Lists::new(first_list),
            publications: Publications::default(),
            now: launch_epoch + 1,
            launch_epoch,
            land_early: schedule.land_early,
            no_shadow: Shadow::default(),
            stored: HashMap::new(),
            counters: Counters::default(),
            executed: vec![Executed::default(); kernel.code.len()],
            barriers: vec![Barrier::default(); 16],
            barriers_changed: false,
            threads: launch.block.iter().product(),
            behind: HashMap::new(),
            ticks: 0,
            printed: String::new(),
            matrix: options.matrix,
            hopper: Hopper::new(launch.block.iter().product(), options.seed),
        },
        launch,
        options,
        wide,
        warps: Vec::new(),
        schedule,
        started: Vec::new(),
        past: &memory.past,
    };
    run.prepare();
    let finding = match (options.checks, options.counters) {
        (false, false) => run.all::<false, false>(blocks),
        (false, true) => run.all::<false, true>(blocks),
        (true, false) => run.all::<true, false>(blocks),
        (true, true) => run.all::<true, true>(blocks),
    };
    let mut counters = std::mem::take(&mut run.machine.counters);
    if options.counters {
        tally(&mut counters, kernel, &run.machine.executed);
        let allocations = run.machine.allocations.iter().flatten();
        counters.buffers = allocations
            .chain(run.machine.module.iter())
            .filter(|a| a.traffic.read_bytes + a.traffic.written_bytes > 0)
            .map(|allocation| BufferTraffic {
                name: allocation.name.clone(),
                read_bytes: allocation.traffic.read_bytes,
                read_sectors: allocation.traffic.read_sectors,
                written_bytes: allocation.traffic.written_bytes,
                written_sectors: allocation.traffic.written_sectors,
            })
            .collect();
    } else {
        counters = Counters { blocks: counters.blocks, ..Counters::default() };
    }
    let executed = match options.counters && options.lines {
        true => run.machine.executed.iter().map(|executed| executed.warps).collect(),
        false => Vec::new(),
    };
    let printed = std::mem::take(&mut run.machine.printed);
    let (epoch, first_list) = (run.machine.now, run.machine.lists.end());
    let parameters = std::mem::take(&mut run.machine.parameters);
    memory.modules.insert(module.id, variables);
    (memory.epoch, memory.first_list) = (epoch, first_list);
    memory.after_launch(PastLaunch {
        kernel: std::sync::Arc::clone(kept),
        parameters,
        epochs: (launch_epoch, epoch),
    });
    Ok(Report { counters, findings: finding.into_iter().collect(), printed, executed })
}

fn parameter_block(kernel: &Kernel, arguments: &[Argument]) -> Result<Vec<u8>, LaunchError> {
    if arguments.len() != kernel.parameters.len() {
        return Err(LaunchError::ArgumentCount {
            kernel: kernel.name.clone(),
            expected: kernel.parameters.len(),
            given: arguments.len(),
        });
    }
    let mut block = vec![0; kernel.parameter_bytes as usize];
    for (index, (parameter, argument)) in kernel.parameters.iter().zip(arguments).enumerate() {
        let bytes = argument.bytes();
        if bytes.len() != parameter.bytes as usize {
            return Err(LaunchError::ArgumentSize {
                kernel: kernel.name.clone(),
                index,
                expected: parameter.bytes as usize,
                given: bytes.len(),
            });
        }
        let start = parameter.offset as usize;
        block[start..start + bytes.len()].copy_from_slice(&bytes);
    }
    Ok(block)
}

/// The number of blocks, if the dimensions are what a GPU accepts.
fn dimensions(kernel: &Kernel, launch: &Launch<'_>) -> Result<u64, LaunchError> {
    let [x, y, z] = launch.block.map(u64::from);
    let most = u64::from(kernel.max_threads.unwrap_or(1024).min(1024));
    let fits = x.checked_mul(y).and_then(|xy| xy.checked_mul(z)).is_some_and(|n| n <= most);
    if x == 0 || y == 0 || z == 0 || z > 64 || !fits {
        return Err(LaunchError::Dimensions {
            what: "block",
            given: launch.block,
            limit: format!("each at least 1, z at most 64, {most} threads for this kernel"),
        });
    }
    let [x, y, z] = launch.grid.map(u64::from);
    if x == 0 || y == 0 || z == 0 || x > 0x7fff_ffff || y > 65_535 || z > 65_535 {
        return Err(LaunchError::Dimensions {
            what: "grid",
            given: launch.grid,
            limit: "each at least 1, x at most 2147483647, y and z at most 65535".to_owned(),
        });
    }
    let bytes = u64::from(kernel.static_shared_bytes) + u64::from(launch.dynamic_shared_bytes);
    if bytes > MOST_SHARED {
        return Err(LaunchError::SharedMemory {
            kernel: kernel.name.clone(),
            bytes,
            fixed: kernel.static_shared_bytes,
            limit: MOST_SHARED,
        });
    }
    // At most 2^31 * 2^32, which fits.
    Ok(x * y * z)
}

fn tally(counters: &mut Counters, kernel: &Kernel, executed: &[Executed]) {
    for ((op, note), executed) in kernel.code.iter().zip(&kernel.notes).zip(executed) {
        if op.action == Action::WarpgroupMultiply {
            let form = Form::decode(op);
            let products = &mut counters.warpgroup;
            products.instructions += executed.warps;
            products.flop += executed.warps * form.warp_flop();
            products.shared_bytes += executed.warps * form.warp_operand_bytes();
        }
        counters.warp_instructions += executed.warps;
        counters.thread_instructions += executed.threads;
        let mix = &mut counters.mix;
        *match note.class {
            Class::Float32 => &mut mix.float32,
            Class::Float64 => &mut mix.float64,
            Class::Half => &mut mix.half,
            Class::Integer => &mut mix.integer,
            Class::Convert => &mut mix.convert,
            Class::Special => &mut mix.special,
            Class::Moves => &mut mix.moves,
            Class::Control => &mut mix.control,
            Class::Memory => &mut mix.memory,
            Class::Exchange => &mut mix.exchange,
            Class::Synchronise => &mut mix.synchronise,
            Class::Matrix => &mut mix.matrix,
        } += executed.warps;
    }
}

struct Run<'a, 'l> {
    machine: Machine<'a>,
    launch: &'l Launch<'l>,
    options: &'l Options,
    wide: bool,
    /// Those of the block that is running.
    warps: Vec<Warp>,
    schedule: Schedule,
    /// Linear index of every block, in the order in which they were started.
    started: Vec<u64>,
    /// Earlier launches.
    past: &'l [PastLaunch],
}

/// A block that is under way: what belongs to it while another one runs.
struct Resident {
    id: [u32; 3],
    warps: Vec<Warp>,
    shared: Vec<u8>,
    shadow: Shadow,
    cells: Cells,
    barriers: Vec<Barrier>,
    hopper: Hopper,
    /// Warps in the order of their turns.
    order: Vec<usize>,
    /// Instructions it has run.
    ticks: u64,
}

/// How a block's turn ended.
enum Turn {
    Finished,
    Goes,
    Found(Box<Finding>),
}

impl Run<'_, '_> {
    /// Which bytes of shared memory belong to variables.
    fn prepare(&mut self) {
        let kernel = self.machine.kernel;
        let dynamic = self.launch.dynamic_shared_bytes;
        if self.options.checks && kernel.shared.len() + usize::from(dynamic > 0) > 1 {
            let mut valid = Shadow::new(self.shared_bytes());
            for variable in &kernel.shared {
                valid.set_range(variable.start as usize, variable.bytes as usize);
            }
            valid.set_range(
                kernel.dynamic_base as usize * usize::from(dynamic > 0),
                dynamic as usize,
            );
            self.machine.shared_valid = Some(valid);
        }
    }

    fn shared_bytes(&self) -> usize {
        let kernel = self.machine.kernel;
        let dynamic = self.launch.dynamic_shared_bytes;
        let fixed = kernel.shared.last().map_or(0, |v| v.start + v.bytes);
        (if dynamic > 0 { kernel.dynamic_base + dynamic } else { fixed }) as usize
    }

    /// Memory and warps of one block, used again by later ones.
    fn resident(&self) -> Resident {
        let kernel = self.machine.kernel;
        let bytes = self.shared_bytes();
        let count = self.machine.threads.div_ceil(32);
        let mut warps: Vec<Warp> = (0..count).map(|index| Warp::new(index, kernel)).collect();
        for warp in &mut warps {
            for load in &kernel.parameter_loads {
                let mut bits = [0u8; 8];
                let source = &self.machine.parameters[load.offset..load.offset + load.bytes];
                bits[..load.bytes].copy_from_slice(source);
                let mut value = u64::from_le_bytes(bits);
                if load.signed {
                    let spare = 64 - 8 * load.bytes as u32;
                    value = ((value << spare) as i64 >> spare) as u64;
                }
                if load.wide {
                    *warp.registers.write::<u64>(load.slot) = [value; 32];
                } else {
                    *warp.registers.write::<u32>(load.slot) = [value as u32; 32];
                }
            }
        }
        Resident {
            id: [0; 3],
            order: (0..warps.len()).collect(),
            warps,
            shared: vec![0; bytes],
            shadow: Shadow::new(bytes),
            cells: Cells::new(bytes, false),
            barriers: vec![Barrier::default(); 16],
            hopper: Hopper::new(self.machine.threads, self.options.seed),
            ticks: 0,
        }
    }

    fn all<const CHECK: bool, const COUNT: bool>(&mut self, blocks: u64) -> Option<Finding> {
        let options = self.options;
        let mut queue: Box<dyn Iterator<Item = u64>> = match &options.blocks {
            BlockSelection::All => Box::new(0..blocks),
            BlockSelection::Only(list) => Box::new(list.iter().copied()),
        };
        // Shared memory with its cells, and the registers.
        let warps = self.machine.threads.div_ceil(32) as usize;
        let held = 6 * self.shared_bytes() + 16_384 * warps;
        let most = (MOST_RESIDENT_BYTES / held).clamp(1, MOST_RESIDENTS);
        let mut wanted = self.schedule.residents.min(most);
        let mut running: Vec<Resident> = Vec::new();
        let mut idle: Vec<Resident> = Vec::new();
        let (mut next, mut unfinished) = (0, 0);
        loop {
            while running.len() < wanted {
                let Some(index) = queue.next() else { break };
                let mut block = idle.pop().unwrap_or_else(|| self.resident());
                self.start::<CHECK>(&mut block, index);
                running.push(block);
            }
            if running.is_empty() {
                return None;
            }
            let at = self.schedule.block(running.len(), next);
            let block = &mut running[at];
            self.exchange(block);
            let turn = self.turn::<CHECK, COUNT>(block);
            self.exchange(block);
            match turn {
                Turn::Found(finding) => return Some(*finding),
                Turn::Finished => {
                    let copies = block.warps.iter().any(|warp| !warp.copies.is_empty());
                    if CHECK && (copies || block.hopper.flew) {
                        block.cells.forget_flights();
                    }
                    idle.push(running.swap_remove(at));
                    (next, unfinished) = (at, 0);
                }
                Turn::Goes => {
                    next = at + 1;
                    unfinished += 1;
                    // Those that run may wait for one that has not been started.
                    if unfinished >= running.len() {
                        wanted = wanted.max((2 * running.len()).min(most));
                        unfinished = 0;
                    }
                }
            }
        }
    }

    /// Brings a block in, or takes it out again.
    fn exchange(&mut self, block: &mut Resident) {
        std::mem::swap(&mut self.warps, &mut block.warps);
        std::mem::swap(&mut self.machine.shared, &mut block.shared);
        std::mem::swap(&mut self.machine.shared_shadow, &mut block.shadow);
        std::mem::swap(&mut self.machine.shared_cells, &mut block.cells);
        std::mem::swap(&mut self.machine.barriers, &mut block.barriers);
        std::mem::swap(&mut self.machine.hopper, &mut block.hopper);
    }

    /// A block as it is before its first instruction.
    fn start<const CHECK: bool>(&mut self, block: &mut Resident, index: u64) {
        let [gx, gy, _] = self.launch.grid.map(u64::from);
        block.id = [(index % gx) as u32, (index / gx % gy) as u32, (index / gx / gy) as u32];
        let kernel = self.machine.kernel;
        // What shared memory holds at the start of a block is anything; a pattern shows misuse.
        block.shared.fill(0xa5);
        if CHECK {
            block.shadow.clear();
        }
        block.barriers.iter_mut().for_each(|barrier| *barrier = Barrier::default());
        block.hopper.start();
        block.ticks = 0;
        self.machine.counters.blocks += 1;
        self.machine.counters.warps += block.warps.len() as u64;
        let serial = self.started.len() as u32;
        self.started.push(index);
        let threads = self.machine.threads;
        for warp in &mut block.warps {
            let left = threads - 32 * warp.index;
            let launched = if left >= 32 { u32::MAX } else { (1 << left) - 1 };
            warp.start(kernel, launched, CHECK, serial, self.machine.now);
            specials(warp, kernel, self.launch, block.id, &block.shared);
        }
        self.machine.tick();
    }

    /// Runs the block that was brought in, for a while.
    fn turn<const CHECK: bool, const COUNT: bool>(&mut self, block: &mut Resident) -> Turn {
        let id = block.id;
        let began = self.machine.ticks;
        let until = began.saturating_add(self.schedule.turn());
        let budget = self.options.instruction_budget.saturating_sub(block.ticks);
        let found = |finding: Finding| Turn::Found(Box::new(finding));
        loop {
            let mut progress = false;
            self.schedule.arrange(&mut block.order);
            for at in 0..block.order.len() {
                let at = block.order[at];
                if !self.warps[at].ready() {
                    continue;
                }
                progress = true;
                let slice = self.schedule.slice();
                let warp = &mut self.warps[at];
                warp.rotate |= self.schedule.rotate();
                let before = self.machine.ticks;
                if let Err(Stopped { pc, fault }) =
                    self.machine.run::<CHECK, COUNT>(warp, slice, self.wide)
                {
                    return found(self.finding(id, at, pc, *fault));
                }
                self.warps[at].ran += self.machine.ticks - before;
                if self.machine.barriers_changed {
                    self.machine.barriers_changed = false;
                    if let Some(finding) = self.open::<CHECK>(id) {
                        return found(finding);
                    }
                }
                if self.machine.hopper.changed
                    && let Err((at, Stopped { pc, fault })) =
                        self.machine.advance::<CHECK>(&mut self.warps, self.wide)
                {
                    return found(self.finding(id, at, pc, *fault));
                }
                if self.machine.ticks - began >= budget {
                    let warp = &self.warps[at];
                    let (pc, lanes) = warp.groups.first().map_or((0, 0), |g| (g.pc, g.mask));
                    let fault = Fault::new(
                        Check::Deadlock,
                        lanes,
                        format!(
                            "the block has run {} warp instructions, its budget, without ending{}",
                            self.options.instruction_budget,
                            self.machine.describe_block_barriers(&self.warps)
                        ),
                    );
                    return found(self.finding(id, at, pc as usize, *fault));
                }
                if self.schedule.first_only() {
                    break;
                }
            }
            if self.warps.iter().all(|warp| warp.groups.is_empty()) {
                let longest = self.warps.iter().map(|warp| warp.ran).max();
                let copied = self.warps.iter().filter(|warp| warp.copied).count();
                self.machine.counters.longest_warp_instructions += longest.unwrap_or(0);
                self.machine.counters.copying_warps += copied as u64;
                return match self.machine.land_all::<CHECK>() {
                    Ok(()) => Turn::Finished,
                    Err((at, Stopped { pc, fault })) => found(self.finding(id, at, pc, *fault)),
                };
            }
            if !progress {
                match self.machine.advance::<CHECK>(&mut self.warps, self.wide) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err((at, Stopped { pc, fault })) => {
                        return found(self.finding(id, at, pc, *fault));
                    }
                }
                match self.let_go::<CHECK>(id) {
                    Ok(true) => continue,
                    Ok(false) if self.machine.time_out(&mut self.warps) => continue,
                    Ok(false) => {
                        let (at, pc, fault) = self.machine.why_stuck(&self.warps);
                        return found(self.finding(id, at, pc, *fault));
                    }
                    Err(finding) => return Turn::Found(finding),
                }
            }
            if self.machine.ticks >= until {
                block.ticks += self.machine.ticks - began;
                return Turn::Goes;
            }
        }
    }

    /// Opens the barriers at which everybody has arrived.
    fn open<const CHECK: bool>(&mut self, block: [u32; 3]) -> Option<Finding> {
        for id in 0..16u8 {
            let barrier = &mut self.machine.barriers[id as usize];
            if barrier.expected == 0 || barrier.counted < barrier.expected {
                continue;
            }
            let mut barrier = std::mem::take(barrier);
            let mut arrived = std::mem::take(&mut barrier.arrived);
            arrived.clear();
            self.machine.barriers[id as usize].arrived = arrived;
            let kernel = self.machine.kernel;
            let now = self.machine.now;
            if CHECK && barrier.whole_block {
                let serial = self.warps.first().map_or(0, |warp| warp.order.block);
                barrier.order.learn_block(serial, now);
            }
            for at in 0..self.warps.len() {
                let warp = &mut self.warps[at];
                let mut first = None;
                let mut waited = 0;
                for g in 0..warp.groups.len() {
                    let group = warp.groups[g];
                    if group.state != State::Barrier(id) {
                        continue;
                    }
                    let op = &kernel.code[group.pc as usize];
                    if op.code == Code::BarrierReduce {
                        let all = if barrier.all { u32::MAX } else { 0 };
                        let any = if barrier.any { u32::MAX } else { 0 };
                        match op.count {
                            0 => warp.registers.put(op.d[0], &[barrier.count; 32], group.mask),
                            1 => warp.registers.put_predicate(op.d[0], all, group.mask),
                            _ => warp.registers.put_predicate(op.d[0], any, group.mask),
                        }
                    }
                    waited |= group.mask;
                    let other = *first.get_or_insert(group.pc);
                    if CHECK && op.flags & ALIGNED != 0 && other != group.pc {
                        let line = kernel.notes[other as usize].line;
                        let fault = Fault::new(
                            Check::BarrierDivergence,
                            group.mask,
                            format!(
                                "lanes of one warp are at different instructions of barrier {id} \
                                 (the others on PTX line {line})"
                            ),
                        );
                        return Some(self.finding(block, at, group.pc as usize, *fault));
                    }
                    warp.groups[g].state = State::Ready;
                    warp.groups[g].pc += 1;
                }
                if CHECK && waited != 0 {
                    warp.order.after_barrier(waited, warp.live, &barrier.order, now);
                }
            }
            self.machine.tick();
        }
        None
    }

    /// Opens the barriers of the whole block that only threads that have exited are missing at, as
    /// GPUs do since Volta; those that went around the barrier instead of leaving before it are
    /// reported. Says whether a barrier opened.
    fn let_go<const CHECK: bool>(&mut self, block: [u32; 3]) -> Result<bool, Box<Finding>> {
        let mut opened = false;
        for id in 0..self.machine.barriers.len() {
            let barrier = &self.machine.barriers[id];
            if barrier.expected == 0 {
                continue;
            }
            let arrived = |warp: &&Warp| {
                let lanes = barrier.arrived.get(warp.index as usize).copied().unwrap_or(0);
                warp.launched & !lanes == 0 || warp.live != 0 && warp.live & !lanes == 0
            };
            let counted = 32 * self.warps.iter().filter(arrived).count() as u32;
            let gone = |warp: &&Warp| warp.live == 0 && !arrived(warp);
            let absent = 32 * self.warps.iter().filter(gone).count() as u32;
            let expected = barrier.expected - if barrier.whole_block { absent } else { 0 };
            if counted < expected {
                continue;
            }
            if CHECK {
                self.nobody_went_around(block, id)?;
            }
            let barrier = &mut self.machine.barriers[id];
            barrier.counted = barrier.expected;
            opened = true;
        }
        if opened && let Some(finding) = self.open::<CHECK>(block) {
            return Err(Box::new(finding));
        }
        Ok(opened)
    }

    fn nobody_went_around(&mut self, block: [u32; 3], id: usize) -> Result<(), Box<Finding>> {
        let waiting = self.warps.iter().enumerate().find_map(|(at, warp)| {
            let here = |group: &&Group| group.state == State::Barrier(id as u8);
            warp.groups.iter().find(here).map(|group| (at, *group))
        });
        let Some((at, group)) = waiting else { return Ok(()) };
        let mut threads = 0;
        let mut first = None;
        for other in 0..self.warps.len() {
            let warp = &self.warps[other];
            let arrived = &self.machine.barriers[id].arrived;
            let came = arrived.get(warp.index as usize).copied().unwrap_or(0);
            let around = self.machine.went_around(warp, group.pc as usize) & !came;
            threads += around.count_ones();
            if around != 0 {
                first.get_or_insert(32 * other as u32 + around.trailing_zeros());
            }
        }
        let Some(first) = first else { return Ok(()) };
        let fault = Fault::new(
            Check::BarrierDivergence,
            group.mask,
            format!(
                "{threads} threads of the block (the first is thread {first}) have gone past \
                 barrier {id} and exited without waiting at it"
            ),
        );
        Err(Box::new(self.finding(block, at, group.pc as usize, *fault)))
    }

    fn finding(&self, block: [u32; 3], warp: usize, pc: usize, fault: Fault) -> Finding {
        let kernel = self.machine.kernel;
        let note = &kernel.notes[pc.min(kernel.notes.len() - 1)];
        let mut places = kernel.places(note);
        let trail = self.trail(pc, &fault);
        Finding {
            check: fault.check,
            message: fault.message,
            kernel: kernel.name.clone(),
            instruction: note.text.clone(),
            ptx_line: note.line,
            source: places.next(),
            inlined_at: places.collect(),
            block,
            warp: warp as u32,
            lanes: lane_list(fault.lanes),
            address: fault.address,
            other: fault.other.map(|other| Box::new(self.party(other))),
            trail,
        }
    }

    fn trail(&self, pc: usize, fault: &Fault) -> Vec<TrailLine> {
        let machine = &self.machine;
        let kernel = machine.kernel;
        let serial = self.warps.first().map(|warp| warp.order.block);
        let other = fault.other.and_then(|o| Some((o.place?, Some(o.block) == serial)));
        let sides = std::iter::once(pc).chain(other.map(|(at, _)| at));
        let named: Vec<_> = sides
            .filter_map(|at| kernel.notes.get(at))
            .flat_map(|note| kernel.places(note))
            .collect();
        let scene = Scene {
            kernel,
            parameters: &machine.parameters,
            past: self.past,
            launch_epoch: machine.launch_epoch,
            allocations: machine.allocations,
            module: machine.module,
            executed: &machine.executed,
        };
        trail::trail(&scene, &Start { check: fault.check, pc, other, named: &named })
    }

    fn party(&self, other: Other) -> Party {
        let note = other.place.and_then(|place| self.machine.kernel.notes.get(place));
        let index = self.started.get(other.block as usize).copied().unwrap_or(0);
        let [gx, gy, _] = self.launch.grid.map(u64::from);
        let mut places = note.into_iter().flat_map(|note| self.machine.kernel.places(note));
        Party {
            action: other.action().to_owned(),
            instruction: note.map_or(String::new(), |note| note.text.clone()),
            ptx_line: note.map_or(0, |note| note.line),
            source: places.next(),
            inlined_at: places.collect(),
            block: [(index % gx) as u32, (index / gx % gy) as u32, (index / gx / gy) as u32],
            warp: other.warp,
            lanes: lane_list(other.lanes),
        }
    }
}

fn specials(warp: &mut Warp, kernel: &Kernel, launch: &Launch<'_>, id: [u32; 3], shared: &[u8]) {
    let [bx, by, bz] = launch.block;
    for &(slot, special) in &kernel.specials {
        let index = warp.index;
        let warps = (bx * by * bz).div_ceil(32);
        let values = warp.registers.write::<u32>(slot);
        for (lane, value) in values.iter_mut().enumerate() {
            let lane = lane as u32;
            let thread = 32 * index + lane;
            *value = match special {
                SpecialRegister::Thread(0) => thread % bx,
                SpecialRegister::Thread(1) => thread / bx % by,
                SpecialRegister::Thread(_) => thread / bx / by,
                SpecialRegister::BlockSize(axis) => launch.block[axis],
                SpecialRegister::Block(axis) => id[axis],
                SpecialRegister::GridSize(axis) => launch.grid[axis],
                SpecialRegister::Lane => lane,
                SpecialRegister::Warp => index,
                SpecialRegister::Warps => warps,
                SpecialRegister::Multiprocessor => 0,
                SpecialRegister::Multiprocessors => 1,
                SpecialRegister::Grid => 1,
                SpecialRegister::MaskEqual => 1 << lane,
                SpecialRegister::MaskLess => (1 << lane) - 1,
                SpecialRegister::MaskLessEqual => u32::MAX >> (31 - lane),
                SpecialRegister::MaskGreater => !(u32::MAX >> (31 - lane)),
                SpecialRegister::MaskGreaterEqual => u32::MAX << lane,
                SpecialRegister::DynamicShared => launch.dynamic_shared_bytes,
                SpecialRegister::TotalShared => shared.len() as u32,
                SpecialRegister::Zero => 0,
                SpecialRegister::One => 1,
            };
        }
    }
}
