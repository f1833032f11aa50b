//! `emulated:<gpu>`: the emulator as a device, with the memory, limits and timing of a named GPU.

use crate::checks::{bad_map, check_arguments, check_range, check_shape, unknown};
use crate::compiler::Architecture;
use crate::device::{
    Argument, Basis, Buffer, Device, DeviceProperties, Image, Launch, LaunchReport, ModuleId,
    Prediction, RecordingId, Resources, TimeOptions, Timing, Work,
};
use crate::error::DeviceError;
use crate::product::{Element, Product};
use crate::sampling::Sampling;
use spanforge_emulator as emulator;
use spanforge_emulator::counters::{Counters, SECTOR_BYTES};
use spanforge_emulator::profile::Profile;
use spanforge_emulator::{BlockSelection, LineCount, MatrixModel, cost};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

/// What an emulated device does besides executing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatedOptions {
    /// Whether accesses, races and barriers are checked; findings fail the launch.
    pub checks: bool,
    /// Whether launches are counted.
    pub counters: bool,
    /// Whether executions of source lines are counted, for [`Device::line_counts`]; needs
    /// `counters`.
    pub lines: bool,
    /// How tensor cores add: the quick way, or as those of an architecture do.
    pub matrix: MatrixModel,
    /// Seed of the schedule of warps.
    pub seed: u64,
    /// Warp instructions that one block may run before it counts as hanging.
    pub instruction_budget: u64,
}

impl Default for EmulatedOptions {
    /// The budget of 2^28 is a hundred times what a block of the largest decode launches runs, and is
    /// used up within seconds: an endless loop is found while somebody waits for it.
    fn default() -> Self {
        Self {
            checks: true,
            counters: true,
            lines: false,
            matrix: MatrixModel::Fast,
            seed: 0,
            instruction_budget: 1 << 28,
        }
    }
}

/// A named GPU, emulated.
pub struct EmulatedDevice {
    profile: Profile,
    properties: DeviceProperties,
    options: EmulatedOptions,
    shared: Option<Arc<SharedCode>>,
    state: Mutex<State>,
}

/// Parsed code that devices made one after another have in common: parsing costs as much as running
/// a small problem. It keeps the code that was loaded last.
#[derive(Default)]
pub struct SharedCode(Mutex<VecDeque<(String, Arc<emulator::Module>)>>);

/// Modules that [`SharedCode`] keeps: some 100 MB of decode kernels.
const MODULES_KEPT: usize = 64;

impl SharedCode {
    fn parse(&self, ptx: &str) -> Result<Arc<emulator::Module>, emulator::LoadError> {
        let lock = || self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut kept = lock();
        if let Some(at) = kept.iter().position(|(text, _)| text == ptx)
            && let Some(found) = kept.remove(at)
        {
            let code = found.1.clone();
            kept.push_back(found);
            return Ok(code);
        }
        drop(kept);
        let code = Arc::new(emulator::Module::parse(ptx)?);
        let mut kept = lock();
        if kept.len() >= MODULES_KEPT {
            kept.pop_front();
        }
        kept.push_back((ptx.to_owned(), code.clone()));
        Ok(code)
    }
}

struct State {
    memory: emulator::Memory,
    /// Name and size of each live allocation by its address.
    buffers: BTreeMap<u64, (String, usize)>,
    modules: BTreeMap<u64, Arc<Loaded>>,
    last_module: u64,
    /// Kept work, queued one by one when it is replayed.
    recordings: BTreeMap<u64, Arc<[Work]>>,
    last_recording: u64,
    /// Executions of each instruction by module and kernel, where lines are counted.
    executed: BTreeMap<(u64, String), Vec<u64>>,
}

struct Loaded {
    code: Arc<emulator::Module>,
    resources: BTreeMap<String, Resources>,
}

impl EmulatedDevice {
    /// A device of that profile with empty memory.
    pub fn new(profile: Profile, options: EmulatedOptions) -> Self {
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let lanes = profile.float32_lanes.value * profile.multiprocessors.value as f64;
        let properties = DeviceProperties {
            name: format!("emulated {}", profile.marketing_name),
            basis: Basis::Predicted,
            architecture: profile.architecture.clone(),
            multiprocessors: narrow(profile.multiprocessors.value),
            shared_bytes_per_block: narrow(profile.shared_bytes_per_block.value),
            threads_per_multiprocessor: narrow(profile.max_threads_per_multiprocessor.value),
            shared_bytes_per_multiprocessor: narrow(profile.shared_bytes_per_multiprocessor.value),
            l2_bytes: profile.l2_bytes.value,
            dram_bytes_per_second: profile.dram_bandwidth.value,
            // A fused multiply-add per lane and cycle; the clock is in MHz.
            float32_per_second: 2.0 * lanes * profile.boost_clock.value * 1e6,
            tensor_per_second: profile.tensor_f16_flops.value,
        };
        let state = State {
            memory: emulator::Memory::new(),
            buffers: BTreeMap::new(),
            modules: BTreeMap::new(),
            last_module: 0,
            recordings: BTreeMap::new(),
            last_recording: 0,
            executed: BTreeMap::new(),
        };
        Self { profile, properties, options, shared: None, state: Mutex::new(state) }
    }

    /// The same device taking code that another has parsed before from `shared`.
    pub fn sharing(self, shared: Arc<SharedCode>) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// The profile that times are predicted with.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held leaves whole values behind.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn failed(&self, call: &str, reason: impl ToString) -> DeviceError {
        DeviceError::Driver {
            device: self.properties.name.clone(),
            call: call.into(),
            reason: reason.to_string(),
        }
    }

    /// Executes the chosen blocks of a launch.
    fn execute(
        &self,
        state: &mut State,
        launch: &Launch,
        options: &emulator::Options,
    ) -> Result<emulator::Report, DeviceError> {
        let id = launch.module.0;
        let module = state.modules.get(&id).ok_or(DeviceError::UnknownModule(id))?.clone();
        let Some(kernel) = module.code.kernel(&launch.kernel) else {
            let present = module.code.kernel_names().into_iter().map(str::to_owned).collect();
            return Err(DeviceError::NoSuchKernel { kernel: launch.kernel.clone(), present });
        };
        check_shape(launch, kernel.static_shared_bytes(), &self.properties)?;
        check_arguments(launch, kernel.parameters().iter().map(|p| p.bytes as usize))?;
        let arguments = arguments(launch)?;
        let launch = emulator::Launch {
            kernel: &launch.kernel,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared_bytes: launch.shared_bytes,
            arguments: &arguments,
        };
        let mut report = emulator::launch(&module.code, &mut state.memory, &launch, options)
            .map_err(|error| DeviceError::BadLaunch {
                kernel: launch.kernel.into(),
                reason: error.to_string(),
            })?;
        if options.lines {
            let now = std::mem::take(&mut report.executed);
            let sum = state.executed.entry((id, launch.kernel.to_owned())).or_default();
            sum.resize(now.len().max(sum.len()), 0);
            sum.iter_mut().zip(now).for_each(|(sum, now)| *sum += now);
        }
        Ok(report)
    }

    /// What the kernel takes on this GPU.
    fn resources(&self, state: &State, launch: &Launch) -> Result<Resources, DeviceError> {
        let id = launch.module.0;
        let module = state.modules.get(&id).ok_or(DeviceError::UnknownModule(id))?;
        let found = module.resources.get(&launch.kernel).copied();
        found.ok_or_else(|| DeviceError::ResourcesUnknown {
            kernel: launch.kernel.clone(),
            architecture: self.properties.architecture.clone(),
        })
    }
}

impl State {
    fn check(&self, buffer: Buffer) -> Result<(), DeviceError> {
        match self.buffers.get(&buffer.address) {
            Some((_, bytes)) if *bytes == buffer.bytes => Ok(()),
            _ => Err(unknown(buffer)),
        }
    }

    /// Most different bytes that a whole grid with these counters can have read: of each buffer what
    /// was counted, but no more than is known or than the buffer has.
    fn footprint(&self, counters: &Counters, distinct: &[(String, u64)]) -> u64 {
        let read = counters.buffers.iter().map(|traffic| {
            let named = self.buffers.values().filter(|(name, _)| *name == traffic.name);
            let counted = traffic.read_sectors.saturating_mul(SECTOR_BYTES);
            let size = named.map(|(_, bytes)| *bytes as u64).reduce(u64::saturating_add);
            let known = distinct.iter().find(|(name, _)| *name == traffic.name);
            match known.map(|(_, bytes)| *bytes).or(size) {
                // Sectors at the ends can be partly outside.
                Some(size) => counted.min(size.saturating_add(2 * SECTOR_BYTES)),
                None => counted, // of a variable of the module
            }
        });
        read.fold(0, u64::saturating_add)
    }
}

/// The counters of a run without findings. Some checks, such as bounds, are always on.
fn faultless(launch: &Launch, report: emulator::Report) -> Result<Counters, DeviceError> {
    if report.findings.is_empty() {
        return Ok(report.counters);
    }
    Err(DeviceError::Findings { kernel: launch.kernel.clone(), findings: report.findings })
}

/// The arguments as the emulator takes them.
fn arguments(launch: &Launch) -> Result<Vec<emulator::Argument>, DeviceError> {
    let emulated = |(index, argument): (usize, &Argument)| {
        Ok(match argument {
            Argument::Pointer(value) | Argument::U64(value) => emulator::Argument::U64(*value),
            Argument::I64(value) => emulator::Argument::I64(*value),
            Argument::U32(value) => emulator::Argument::U32(*value),
            Argument::I32(value) => emulator::Argument::I32(*value),
            Argument::F32(value) => emulator::Argument::F32(*value),
            Argument::F64(value) => emulator::Argument::F64(*value),
            Argument::TensorMap(map) => {
                let bytes = map.encode().map_err(bad_map(launch, index))?;
                emulator::Argument::Bytes(bytes.to_vec())
            }
        })
    };
    launch.arguments.iter().enumerate().map(emulated).collect()
}

impl Device for EmulatedDevice {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn allocate(&self, name: &str, bytes: usize) -> Result<Buffer, DeviceError> {
        let mut state = self.state();
        let address =
            state.memory.allocate(name, bytes).map_err(|error| DeviceError::OutOfMemory {
                device: self.properties.name.clone(),
                name: name.into(),
                bytes,
                reason: error.to_string(),
            })?;
        state.buffers.insert(address, (name.into(), bytes));
        Ok(Buffer { address, bytes })
    }

    fn free(&self, buffer: Buffer) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.buffers.remove(&buffer.address).ok_or_else(|| unknown(buffer))?;
        state.memory.free(buffer.address).map_err(|error| self.failed("freeing", error))
    }

    fn upload(&self, buffer: Buffer, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.check(buffer)?;
        let range = check_range(buffer, offset, data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        let address = buffer.address + range.start as u64;
        state.memory.write(address, data).map_err(|error| self.failed("the upload", error))
    }

    fn download(&self, buffer: Buffer, offset: usize, data: &mut [u8]) -> Result<(), DeviceError> {
        let state = self.state();
        state.check(buffer)?;
        let range = check_range(buffer, offset, data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        let address = buffer.address + range.start as u64;
        state.memory.read(address, data).map_err(|error| self.failed("the download", error))
    }

    /// Executes the PTX, whatever the image's architecture. Its resources are used for times where
    /// its machine code would run on the GPU.
    fn load(&self, image: &Image) -> Result<ModuleId, DeviceError> {
        let bad = |reason| DeviceError::BadImage {
            device: self.properties.name.clone(),
            architecture: image.architecture.clone(),
            reason,
        };
        let code = match &self.shared {
            Some(shared) => shared.parse(&image.ptx),
            None => emulator::Module::parse(&image.ptx).map(Arc::new),
        };
        let code = code.map_err(|error| bad(error.to_string()))?;
        if code.kernel_names().is_empty() {
            return Err(bad("there is no kernel in its PTX".into()));
        }
        let own = Architecture::parse(&self.properties.architecture);
        let fits = Architecture::parse(&image.architecture)
            .zip(own)
            .is_some_and(|(code, own)| code.runs_on(own.number / 10, own.number % 10));
        let resources = if fits { image.resources.clone() } else { BTreeMap::new() };
        let mut state = self.state();
        state.last_module += 1;
        let id = state.last_module;
        state.modules.insert(id, Arc::new(Loaded { code, resources }));
        Ok(ModuleId(id))
    }

    fn unload(&self, module: ModuleId) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.executed.retain(|(id, _), _| *id != module.0);
        let removed = state.modules.remove(&module.0);
        removed.map(drop).ok_or(DeviceError::UnknownModule(module.0))
    }

    fn record(&self, work: &[Work]) -> Result<Option<RecordingId>, DeviceError> {
        let mut state = self.state();
        state.last_recording += 1;
        let id = state.last_recording;
        state.recordings.insert(id, work.into());
        Ok(Some(RecordingId(id)))
    }

    fn replay(&self, recording: RecordingId) -> Result<(), DeviceError> {
        let id = recording.0;
        let work = self.state().recordings.get(&id).cloned();
        self.queue(&work.ok_or(DeviceError::UnknownRecording(id))?)
    }

    fn forget(&self, recording: RecordingId) -> Result<(), DeviceError> {
        let removed = self.state().recordings.remove(&recording.0);
        removed.map(drop).ok_or(DeviceError::UnknownRecording(recording.0))
    }

    fn launch(&self, launch: &Launch) -> Result<LaunchReport, DeviceError> {
        let EmulatedOptions { checks, counters, lines, matrix, seed, instruction_budget } =
            self.options;
        let options = emulator::Options {
            checks,
            counters,
            lines,
            matrix,
            seed,
            instruction_budget,
            ..Default::default()
        };
        let mut state = self.state();
        let counted = faultless(launch, self.execute(&mut state, launch, &options)?)?;
        Ok(LaunchReport { counters: counters.then_some(counted) })
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        product.check()?;
        let read = |buffer: Buffer, count: usize, element: Element| {
            let mut bytes = vec![0; count * element.bytes()];
            self.download(buffer, 0, &mut bytes).map(|()| bytes)
        };
        let Product { rows, columns, inner, element, out_element, .. } = *product;
        let (x, w) =
            (read(product.x, rows * inner, element)?, read(product.w, columns * inner, element)?);
        let before = read(product.out, rows * columns, out_element)?;
        self.upload(product.out, 0, &product.compute(&x, &w, &before))
    }

    fn line_counts(&self, module: ModuleId) -> Result<Vec<LineCount>, DeviceError> {
        let state = self.state();
        let id = module.0;
        let code = &state.modules.get(&id).ok_or(DeviceError::UnknownModule(id))?.code;
        let none = Vec::new();
        let counts = code.kernel_names().into_iter().flat_map(|name| {
            let executed = state.executed.get(&(id, name.to_owned())).unwrap_or(&none);
            code.kernel(name).map(|kernel| kernel.line_counts(executed)).unwrap_or_default()
        });
        Ok(LineCount::merged(if self.options.lines { counts.collect() } else { Vec::new() }))
    }

    /// Predicts once. Launches of at most 8 blocks are executed in full; of larger ones some blocks
    /// stand for all, `options.sampled_blocks` at even distances and more where those differ. So a
    /// small kernel's output is there for the launches after it, a large one's in part only.
    fn time(&self, launches: &[Launch], options: &TimeOptions) -> Result<Timing, DeviceError> {
        let state = &mut *self.state();
        let mut predictions = Vec::new();
        for launch in launches {
            let resources = self.resources(state, launch)?;
            let blocks = launch.grid.into_iter().map(u64::from).product();
            let mut sampling = Sampling::new(blocks, options.sampled_blocks);
            while let Some(block) = sampling.next() {
                let one = emulator::Options {
                    checks: false,
                    counters: true,
                    lines: self.options.lines,
                    seed: self.options.seed,
                    blocks: BlockSelection::Only(vec![block]),
                    ..Default::default()
                };
                sampling.add(block, faultless(launch, self.execute(state, launch, &one)?)?);
            }
            let (counters, executed_blocks) = (sampling.total(), sampling.executed());
            let shape = cost::Shape {
                blocks,
                busy_blocks: sampling.busy(),
                threads_per_block: launch.block.into_iter().product(),
                registers: resources.registers,
                shared_bytes_per_block: resources.static_shared_bytes + launch.shared_bytes,
            };
            let footprint = state.footprint(&counters, &options.distinct_bytes);
            let mut estimate =
                cost::estimate_with_footprint(&self.profile, &shape, &counters, footprint)
                    .map_err(|error| DeviceError::BadLaunch {
                        kernel: launch.kernel.clone(),
                        reason: error.to_string(),
                    })?;
            estimate.assumptions.push(format!(
                "{executed_blocks} of {blocks} blocks were executed, and each stands for those \
                 nearest to it"
            ));
            predictions.push(Prediction {
                kernel: launch.kernel.clone(),
                executed_blocks,
                counters,
                shape: Some(shape),
                footprint_bytes: footprint,
                estimate,
            });
        }
        let total_us = predictions.iter().map(|prediction| prediction.estimate.time_us).sum();
        Ok(Timing {
            basis: Basis::Predicted,
            samples_us: vec![total_us],
            predictions,
            conditions: None,
        })
    }
}
