//! The door through which every room reaches a GPU, real or emulated.

use crate::conditions::{Conditions, either};
use crate::error::DeviceError;
use crate::product::Product;
use serde::{Deserialize, Serialize};
use spanforge_emulator::counters::Counters;
use spanforge_emulator::{LineCount, TENSOR_MAP_BYTES, TensorMap};
use std::collections::BTreeMap;

/// Where a time comes from. A predicted time is never reported as a measured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Computed by the emulator's cost model.
    Predicted,
    /// Taken with events on a GPU.
    Measured,
}

impl std::fmt::Display for Basis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Predicted => "predicted",
            Self::Measured => "measured",
        })
    }
}

/// What a device is and what it can hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceProperties {
    /// Marketing name, such as `NVIDIA H200`.
    pub name: String,
    /// Whether times from this device are predicted or measured.
    pub basis: Basis,
    /// Architecture that cubins are made for, such as `sm_90a`.
    pub architecture: String,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one block can use after opting in, in bytes.
    pub shared_bytes_per_block: u32,
    /// Threads that one multiprocessor holds.
    pub threads_per_multiprocessor: u32,
    /// Shared memory of one multiprocessor, in bytes.
    pub shared_bytes_per_multiprocessor: u32,
    /// L2 cache, in bytes.
    pub l2_bytes: u64,
    /// Peak DRAM bandwidth of the data sheet, in bytes per second.
    pub dram_bytes_per_second: f64,
    /// Peak f32 rate of the CUDA cores, in operations per second (a fused multiply-add is two).
    pub float32_per_second: f64,
    /// Peak rate of the tensor cores for 16-bit elements, in operations per second; 0 where it is not
    /// known.
    #[serde(default)]
    pub tensor_per_second: f64,
}

/// An allocation of device memory; freed by [`Device::free`] or with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Device address of the first byte.
    pub address: u64,
    /// Size in bytes.
    pub bytes: usize,
}

impl Buffer {
    /// The address `bytes` into the buffer, as a kernel argument.
    pub fn at(&self, bytes: usize) -> Argument {
        Argument::Pointer(self.address + bytes as u64)
    }
}

/// One kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A device address.
    Pointer(u64),
    /// A signed 32-bit integer.
    I32(i32),
    /// An unsigned 32-bit integer.
    U32(u32),
    /// A signed 64-bit integer.
    I64(i64),
    /// An unsigned 64-bit integer.
    U64(u64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A tensor map, for a parameter `const __grid_constant__ CUtensorMap`. Its address is one of
    /// this device, as of [`Buffer::at`]; each device makes its own 128 bytes of it.
    TensorMap(TensorMap),
}

impl Argument {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::I32(_) | Self::U32(_) | Self::F32(_) => 4,
            Self::Pointer(_) | Self::I64(_) | Self::U64(_) | Self::F64(_) => 8,
            Self::TensorMap(_) => TENSOR_MAP_BYTES,
        }
    }

    /// The bits of a scalar, in the low bytes; `None` for a tensor map, whose bytes are a device's.
    pub fn bits(&self) -> Option<u64> {
        Some(match *self {
            Self::Pointer(value) | Self::U64(value) => value,
            Self::I64(value) => value as u64,
            Self::F64(value) => value.to_bits(),
            Self::I32(value) => u64::from(value as u32),
            Self::U32(value) => u64::from(value),
            Self::F32(value) => u64::from(value.to_bits()),
            Self::TensorMap(_) => return None,
        })
    }
}

/// Compiled code of one translation unit, in the forms that the devices need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// PTX text: what the emulated device executes, and what a newer GPU can still translate.
    pub ptx: String,
    /// Machine code for the architecture of `resources`; `None` where only PTX was made.
    pub cubin: Option<Vec<u8>>,
    /// Architecture of the cubin, such as `sm_90a`; of the PTX where there is no cubin.
    pub architecture: String,
    /// What each kernel takes on that architecture; empty where there is no cubin.
    pub resources: BTreeMap<String, Resources>,
}

/// What `ptxas` gave a kernel on a named architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Registers per thread.
    pub registers: u32,
    /// Static shared memory per block, in bytes, without the part that the system reserves.
    pub static_shared_bytes: u32,
    /// Stack frame per thread, in bytes.
    pub stack_bytes: u32,
    /// Bytes stored to local memory because registers ran out (0 means no spills).
    pub spill_store_bytes: u32,
    /// Bytes loaded back.
    pub spill_load_bytes: u32,
}

/// Code that a device has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleId(pub u64);

/// One launch of one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The loaded code.
    pub module: ModuleId,
    /// The kernel's name in it.
    pub kernel: String,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory per block, in bytes. Opting in to more than 48 KiB is the device's
    /// business.
    pub shared_bytes: u32,
    /// The arguments in order.
    pub arguments: Vec<Argument>,
}

/// What [`Device::time`] is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimeOptions {
    /// Samples to keep on a GPU after warming up; an emulated device predicts once.
    pub samples: u32,
    /// Whether the L2 cache is flushed before each sample; else the sequence runs before it.
    pub cold_l2: bool,
    /// How many blocks of a launch an emulated device executes at least, to stand for the others;
    /// two or more.
    pub sampled_blocks: u32,
    /// Names of buffers with the most different bytes that a launch reads of them, where that is not
    /// their size: it reads a part of them only, or they stand for larger ones, because several
    /// addresses of the real problem share one place in them.
    pub distinct_bytes: Vec<(String, u64)>,
}

impl Default for TimeOptions {
    fn default() -> Self {
        Self { samples: 20, cold_l2: true, sampled_blocks: 3, distinct_bytes: Vec::new() }
    }
}

/// The time of a sequence of launches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Predicted or measured.
    pub basis: Basis,
    /// Microseconds of the whole sequence, one entry per sample.
    pub samples_us: Vec<f64>,
    /// Per launch what the cost model saw; empty for measured times.
    pub predictions: Vec<Prediction>,
    /// What the GPU was like meanwhile; `None` where nobody can tell, and of predicted times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
}

impl Timing {
    /// Adds the samples of `more`, which were measured of the same sequence on the same GPU, and
    /// what the GPU was like meanwhile.
    pub fn append(&mut self, more: Self) {
        self.samples_us.extend_from_slice(&more.samples_us);
        let share = more.samples_us.len() as f64 / self.samples_us.len().max(1) as f64;
        let merge = |conditions: Conditions, others| conditions.merge(others, share);
        self.conditions = either(self.conditions.take(), more.conditions, merge);
    }

    /// The median sample in microseconds; infinite where there is none.
    pub fn median_us(&self) -> f64 {
        median(&self.samples_us).unwrap_or(f64::INFINITY)
    }
}

/// The median, the mean of the two middle ones of an even number; `None` of nothing.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + upper) / 2.0 } else { upper })
}

/// One launch as the cost model sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Kernel name.
    pub kernel: String,
    /// Blocks that were executed; 0 where this was recorded before it was written down.
    #[serde(default)]
    pub executed_blocks: u64,
    /// Counters of the whole grid, in which each executed block stands for those nearest to it.
    pub counters: Counters,
    /// The launch as the model takes it; `None` where this was recorded before it was written down.
    #[serde(default)]
    pub shape: Option<spanforge_emulator::cost::Shape>,
    /// Different bytes that the launch reads at most.
    #[serde(default)]
    pub footprint_bytes: u64,
    /// The estimate for the whole grid, term by term.
    pub estimate: spanforge_emulator::cost::Estimate,
}

/// What one launch did, where the device can tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaunchReport {
    /// Counters of the launch; `None` on a GPU or with counting off.
    pub counters: Option<Counters>,
}

/// One thing that a device can be asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Run a kernel.
    Launch(Launch),
    /// Multiply matrices.
    Multiply(Product),
}

/// A sequence of work that a device keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordingId(pub u64);

/// A GPU, real or emulated. All methods are synchronous unless they say otherwise.
pub trait Device: Send + Sync {
    /// What the device is and what it can hold.
    fn properties(&self) -> &DeviceProperties;

    /// Allocates `bytes` of uninitialised memory (at least 256-byte aligned). `name` is used in
    /// diagnoses and counters.
    fn allocate(&self, name: &str, bytes: usize) -> Result<Buffer, DeviceError>;

    /// Gives an allocation back.
    fn free(&self, buffer: Buffer) -> Result<(), DeviceError>;

    /// Copies `data` to `offset` bytes into the buffer.
    fn upload(&self, buffer: Buffer, offset: usize, data: &[u8]) -> Result<(), DeviceError>;

    /// Copies from `offset` bytes into the buffer, after all earlier launches have finished. Reads
    /// of bytes that nothing has written are not an error here (they are in a kernel).
    fn download(&self, buffer: Buffer, offset: usize, data: &mut [u8]) -> Result<(), DeviceError>;

    /// Loads compiled code: the cubin on a GPU whose architecture it fits, else the PTX.
    fn load(&self, image: &Image) -> Result<ModuleId, DeviceError>;

    /// Forgets loaded code.
    fn unload(&self, module: ModuleId) -> Result<(), DeviceError>;

    /// Runs one kernel over its whole grid. On a GPU it is queued; what goes wrong may surface at
    /// the next download. On an emulated device every finding of the checks is an error here.
    fn launch(&self, launch: &Launch) -> Result<LaunchReport, DeviceError>;

    /// Multiplies matrices. On a GPU cuBLASLt does, queued as a kernel is; an emulated device, which has
    /// no library, computes on the host, counts nothing and predicts no time.
    fn multiply(&self, product: &Product) -> Result<(), DeviceError>;

    /// Queues the work in order.
    fn queue(&self, work: &[Work]) -> Result<(), DeviceError> {
        work.iter().try_for_each(|one| match one {
            Work::Launch(launch) => self.launch(launch).map(drop),
            Work::Multiply(product) => self.multiply(product),
        })
    }

    /// Keeps work that has been queued before, to be queued again by one call: a GPU makes a CUDA
    /// graph of it. `None` where the device makes none of this work.
    fn record(&self, work: &[Work]) -> Result<Option<RecordingId>, DeviceError> {
        let _ = work;
        Ok(None)
    }

    /// Queues work that was kept. Its buffers and code are those of then, and have to be there still.
    fn replay(&self, recording: RecordingId) -> Result<(), DeviceError> {
        Err(DeviceError::UnknownRecording(recording.0))
    }

    /// Forgets work that was kept.
    fn forget(&self, recording: RecordingId) -> Result<(), DeviceError> {
        Err(DeviceError::UnknownRecording(recording.0))
    }

    /// How often the source lines of loaded code were executed in all launches so far, where the
    /// device counts lines: those of all its kernels, executed or not, in order. Else empty.
    fn line_counts(&self, module: ModuleId) -> Result<Vec<LineCount>, DeviceError> {
        let _ = module;
        Ok(Vec::new())
    }

    /// Times the launches, run in order, as one sequence, and leaves unspecified what is in their
    /// output buffers. On a GPU every launch must have run correctly before. An emulated device
    /// executes launches of few blocks in full and a sample of the blocks of others, so what a
    /// small kernel writes is there for the large ones after it.
    fn time(&self, launches: &[Launch], options: &TimeOptions) -> Result<Timing, DeviceError>;
}
