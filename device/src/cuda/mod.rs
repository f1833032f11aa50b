//! `cuda:<n>`: a GPU through cudarc. One context, one stream, and cudarc's event tracking off: with
//! it on, every launch would wait for and record an event per buffer.

mod cublas;
mod graph;
mod loader;
mod nvml;
mod raw;
mod tensor_map;
mod timing;

use crate::checks::{check_arguments, check_range, check_shape, unknown};
use crate::compiler::Architecture;
use crate::cubin;
use crate::device::{
    Argument, Basis, Buffer, Device, DeviceProperties, Image, Launch, LaunchReport, ModuleId,
    RecordingId, TimeOptions, Timing, Work,
};
use crate::error::DeviceError;
use crate::product::Product;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use cudarc::driver::{CudaContext, CudaModule, CudaSlice, CudaStream, DevicePtr};
use cudarc::nvrtc::Ptx;
use graph::Graph;
use nvml::Monitor;
use raw::{Kernel, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// Shared memory that a block may use without opting in.
const SHARED_WITHOUT_OPT_IN: u32 = 48 * 1024;
/// The first compute capability with tensor copies (PTX ISA, `cp.async.bulk.tensor`).
const TENSOR_COPIES: (u32, u32) = (9, 0);

/// A GPU.
pub struct CudaDevice {
    properties: DeviceProperties,
    capability: (u32, u32),
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Held while anything is put on the stream: a capture would record it, or be spoilt by it.
    state: Mutex<State>,
    /// Opened by the first timing; `None` where there is nothing to open.
    monitor: OnceLock<Option<Monitor>>,
}

#[derive(Default)]
struct State {
    buffers: BTreeMap<u64, CudaSlice<u8>>,
    modules: BTreeMap<u64, Module>,
    last_module: u64,
    /// Written between samples to push everything else out of the L2.
    flush: Option<CudaSlice<u8>>,
    recordings: BTreeMap<u64, Graph>,
    last_recording: u64,
    /// Opened by the first product of matrices.
    library: Option<cublas::Library>,
}

struct Module {
    code: Arc<CudaModule>,
    kernel_names: Vec<String>,
    kernels: BTreeMap<String, Loaded>,
}

struct Loaded {
    kernel: Kernel,
    static_shared_bytes: u32,
    /// Dynamic shared memory that the kernel has opted in to.
    opted_in: u32,
}

/// How many GPUs the driver has; an error where there is no driver.
pub fn device_count() -> Result<usize, DeviceError> {
    loader::probe()?;
    let count = CudaContext::device_count().map_err(unusable)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn unusable(error: DriverError) -> DeviceError {
    DeviceError::DriverUnusable { reason: words(error) }
}

fn words(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, _>| {
        text.map_or("unknown error".into(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

impl CudaDevice {
    /// Opens the GPU of that number.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(DeviceError::NoSuchDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(unusable)?;
        // SAFETY: all work of this context goes to one stream, so nothing needs to be ordered
        // across streams. Off before the stream is made, which would otherwise start tracking.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(unusable)?;
        let (properties, capability) = describe(&context).map_err(unusable)?;
        let (state, monitor) = (Mutex::default(), OnceLock::new());
        Ok(Self { properties, capability, context, stream, state, monitor })
    }

    /// Compute capability, such as (9, 0).
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held leaves whole values behind.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Who tells of clocks and temperature, where anybody does.
    fn monitor(&self) -> Option<&Monitor> {
        let open = || {
            let get = |attribute| u32::try_from(self.context.attribute(attribute).ok()?).ok();
            Monitor::open(
                get(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
                get(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
                get(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
            )
        };
        self.monitor.get_or_init(open).as_ref()
    }

    fn failed(&self, call: &str) -> impl Fn(DriverError) -> DeviceError {
        let (device, call) = (self.properties.name.clone(), call.to_owned());
        move |error| DeviceError::Driver {
            device: device.clone(),
            call: call.clone(),
            reason: words(error),
        }
    }

    fn no_memory(&self, name: &str, bytes: usize) -> impl Fn(DriverError) -> DeviceError {
        let (device, name) = (self.properties.name.clone(), name.to_owned());
        move |error| DeviceError::OutOfMemory {
            device: device.clone(),
            name: name.clone(),
            bytes,
            reason: words(error),
        }
    }

    fn reserve(&self, name: &str, bytes: usize) -> Result<CudaSlice<u8>, DeviceError> {
        // The driver refuses empty allocations.
        // SAFETY: the bytes are uninitialised; the contract of `allocate` says so, and any value
        // is a valid u8.
        unsafe { self.stream.alloc::<u8>(bytes.max(1)) }.map_err(self.no_memory(name, bytes))
    }

    /// Queues a launch.
    fn queue_launch(&self, state: &mut State, launch: &Launch) -> Result<(), DeviceError> {
        let id = launch.module.0;
        let module = state.modules.get_mut(&id).ok_or(DeviceError::UnknownModule(id))?;
        if !module.kernels.contains_key(&launch.kernel) {
            let loaded = self.load_kernel(module, &launch.kernel)?;
            module.kernels.insert(launch.kernel.clone(), loaded);
        }
        let Some(loaded) = module.kernels.get_mut(&launch.kernel) else {
            return Err(DeviceError::UnknownModule(id));
        };
        check_shape(launch, loaded.static_shared_bytes, &self.properties)?;
        check_arguments(launch, loaded.kernel.parameter_bytes.iter().copied())?;
        let bad = |error| DeviceError::BadLaunch {
            kernel: launch.kernel.clone(),
            reason: format!(
                "grid {:?}, block {:?}, {} bytes of dynamic shared memory: {}",
                launch.grid,
                launch.block,
                launch.shared_bytes,
                words(error)
            ),
        };
        self.context.bind_to_thread().map_err(self.failed("the launch"))?;
        let shared = launch.shared_bytes;
        if shared + loaded.static_shared_bytes > SHARED_WITHOUT_OPT_IN && shared > loaded.opted_in {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
            loaded.kernel.function.set_attribute(attribute, bytes).map_err(bad)?;
            loaded.opted_in = shared;
        }
        let mut values = self.values(launch)?;
        raw::launch(&self.stream, &loaded.kernel, launch.grid, launch.block, shared, &mut values)
            .map_err(bad)
    }

    /// Queues a product of matrices.
    fn queue_product(&self, state: &mut State, product: &Product) -> Result<(), DeviceError> {
        product.check()?;
        for buffer in [product.x, product.w, product.out] {
            state.buffers.get(&buffer.address).ok_or_else(|| unknown(buffer))?;
        }
        self.context.bind_to_thread().map_err(self.failed("the product of matrices"))?;
        if state.library.is_none() {
            let workspace = self.reserve("cuBLASLt's workspace", cublas::WORKSPACE_BYTES)?;
            state.library = Some(cublas::Library::open(workspace)?);
        }
        let Some(library) = &mut state.library else { return Ok(()) };
        library.multiply(&self.stream, product).map_err(|error| DeviceError::Driver {
            device: self.properties.name.clone(),
            call: format!("cuBLASLt's product of {product:?}"),
            reason: error.to_string(),
        })
    }

    /// The arguments as the driver takes them.
    fn values(&self, launch: &Launch) -> Result<Vec<Value>, DeviceError> {
        let value = |(index, argument): (usize, &Argument)| {
            let (kernel, device) = (launch.kernel.clone(), self.properties.name.clone());
            Ok(match argument {
                Argument::TensorMap(_) if self.capability < TENSOR_COPIES => {
                    return Err(DeviceError::NoTensorMaps { kernel, index, device });
                }
                Argument::TensorMap(map) => {
                    let encoded = tensor_map::encode(map).map_err(|error| {
                        let reason = words(error);
                        DeviceError::TensorMapRefused { kernel, index, device, reason }
                    })?;
                    Value::TensorMap(encoded)
                }
                scalar => Value::Scalar(scalar.bits().unwrap_or_default()),
            })
        };
        launch.arguments.iter().enumerate().map(value).collect()
    }

    fn load_kernel(&self, module: &Module, name: &str) -> Result<Loaded, DeviceError> {
        let missing = || DeviceError::NoSuchKernel {
            kernel: name.into(),
            present: module.kernel_names.clone(),
        };
        if name.contains('\0') {
            return Err(missing());
        }
        let failed = self.failed("reading the kernel's attributes");
        self.context.bind_to_thread().map_err(&failed)?;
        let function = module.code.load_function(name).map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_NOT_FOUND => missing(),
            _ => failed(error),
        })?;
        let static_shared = function.shared_size_bytes().map_err(&failed)?;
        let parameter_bytes = raw::parameter_bytes(&function).map_err(&failed)?;
        Ok(Loaded {
            kernel: Kernel { function, parameter_bytes },
            static_shared_bytes: u32::try_from(static_shared).unwrap_or(0),
            opted_in: 0,
        })
    }
}

/// The device's properties and compute capability, from its attributes.
fn describe(context: &CudaContext) -> Result<(DeviceProperties, (u32, u32)), DriverError> {
    let get = |attribute| Ok(u32::try_from(context.attribute(attribute)?).unwrap_or(0));
    let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let hertz = |kilohertz: u32| f64::from(kilohertz) * 1e3;
    let clock = hertz(get(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?);
    let memory_clock = hertz(get(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?);
    let bus_bits = get(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
    // f32 results per clock and multiprocessor: CUDA C++ programming guide, table of throughputs.
    let float32_per_clock = if (major, minor) == (8, 0) || major < 8 { 64.0 } else { 128.0 };
    // Dense f16 with f32 accumulation, operations per clock and multiprocessor: what the data sheets'
    // peaks of A100, A10G, L4 and H200 come to at their clocks.
    let tensor_per_clock = match (major, minor) {
        (..=7, _) => 0.0,
        (8, 0) => 2048.0,
        (8, 9) => 1024.0,
        (8, _) => 512.0,
        _ => 4096.0,
    };
    let architecture = Architecture {
        number: major * 10 + minor,
        suffix: (major >= 9).then_some('a'), // the one with every instruction of that GPU
    };
    let properties = DeviceProperties {
        name: context.name()?,
        basis: Basis::Measured,
        architecture: architecture.to_string(),
        multiprocessors,
        shared_bytes_per_block: get(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        shared_bytes_per_multiprocessor: get(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
        threads_per_multiprocessor: get(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
        )?,
        l2_bytes: get(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        // Double data rate: two transfers per clock.
        dram_bytes_per_second: 2.0 * memory_clock * f64::from(bus_bits) / 8.0,
        float32_per_second: 2.0 * float32_per_clock * f64::from(multiprocessors) * clock,
        tensor_per_second: tensor_per_clock * f64::from(multiprocessors) * clock,
    };
    Ok((properties, (major, minor)))
}

impl Device for CudaDevice {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn allocate(&self, name: &str, bytes: usize) -> Result<Buffer, DeviceError> {
        let mut state = self.state();
        let slice = self.reserve(name, bytes)?;
        let address = slice.device_ptr(&self.stream).0;
        state.buffers.insert(address, slice);
        Ok(Buffer { address, bytes })
    }

    fn free(&self, buffer: Buffer) -> Result<(), DeviceError> {
        let mut state = self.state();
        let slice = state.buffers.remove(&buffer.address);
        slice.map(drop).ok_or_else(|| unknown(buffer))
    }

    fn upload(&self, buffer: Buffer, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        let mut state = self.state();
        let slice = state.buffers.get_mut(&buffer.address).ok_or_else(|| unknown(buffer))?;
        let range = check_range(buffer, offset, data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        let failed = self.failed("the upload");
        let mut view = slice.try_slice_mut(range).ok_or_else(|| unknown(buffer))?;
        self.stream.memcpy_htod(data, &mut view).map_err(&failed)?;
        self.stream.synchronize().map_err(&failed)
    }

    fn download(&self, buffer: Buffer, offset: usize, data: &mut [u8]) -> Result<(), DeviceError> {
        let state = self.state();
        let slice = state.buffers.get(&buffer.address).ok_or_else(|| unknown(buffer))?;
        let range = check_range(buffer, offset, data.len())?;
        let failed = self.failed("the download, or a kernel before it,");
        if !data.is_empty() {
            let view = slice.try_slice(range).ok_or_else(|| unknown(buffer))?;
            self.stream.memcpy_dtoh(&view, data).map_err(&failed)?;
        }
        self.stream.synchronize().map_err(&failed)
    }

    fn load(&self, image: &Image) -> Result<ModuleId, DeviceError> {
        let (major, minor) = self.capability;
        let fits = Architecture::parse(&image.architecture)
            .is_some_and(|architecture| architecture.runs_on(major, minor));
        let bad = |reason| DeviceError::BadImage {
            device: self.properties.name.clone(),
            architecture: image.architecture.clone(),
            reason,
        };
        let code = match &image.cubin {
            Some(cubin) if fits => {
                // The driver trusts its input; what is no cubin at all is caught here.
                cubin::kernels(cubin).map_err(|error| bad(error.to_string()))?;
                Ptx::from_binary(cubin.clone())
            }
            _ if image.ptx.contains('\0') => return Err(bad("the PTX holds a zero byte".into())),
            _ if image.ptx.is_empty() => {
                return Err(bad(format!(
                    "its machine code is for another GPU and there is no PTX; compile it for {}",
                    self.properties.architecture
                )));
            }
            _ => Ptx::from_src(image.ptx.clone()),
        };
        let code = self.context.load_module(code).map_err(|error| {
            let remedy = format!("compile it for {}", self.properties.architecture);
            bad(format!("{}; {remedy}", words(error)))
        })?;
        let kernel_names = entries(&image.ptx);
        let mut state = self.state();
        state.last_module += 1;
        let id = state.last_module;
        state.modules.insert(id, Module { code, kernel_names, kernels: BTreeMap::new() });
        Ok(ModuleId(id))
    }

    fn unload(&self, module: ModuleId) -> Result<(), DeviceError> {
        let mut state = self.state();
        // What is queued may still run this code.
        self.stream.synchronize().map_err(self.failed("a kernel before the unloading"))?;
        let removed = state.modules.remove(&module.0);
        removed.map(drop).ok_or(DeviceError::UnknownModule(module.0))
    }

    fn launch(&self, launch: &Launch) -> Result<LaunchReport, DeviceError> {
        self.queue_launch(&mut self.state(), launch)?;
        Ok(LaunchReport::default())
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        self.queue_product(&mut self.state(), product)
    }

    fn record(&self, work: &[Work]) -> Result<Option<RecordingId>, DeviceError> {
        let state = &mut *self.state();
        let graph = Graph::of(self, || {
            work.iter().try_for_each(|one| match one {
                Work::Launch(launch) => self.queue_launch(state, launch),
                Work::Multiply(product) => self.queue_product(state, product),
            })
        });
        Ok(graph.map(|graph| {
            state.last_recording += 1;
            state.recordings.insert(state.last_recording, graph);
            RecordingId(state.last_recording)
        }))
    }

    fn replay(&self, recording: RecordingId) -> Result<(), DeviceError> {
        let (state, id) = (self.state(), recording.0);
        state.recordings.get(&id).ok_or(DeviceError::UnknownRecording(id))?.replay(self)
    }

    fn forget(&self, recording: RecordingId) -> Result<(), DeviceError> {
        let (mut state, id) = (self.state(), recording.0);
        // It may still run.
        self.stream.synchronize().map_err(self.failed("recorded work that is forgotten"))?;
        state.recordings.remove(&id).map(drop).ok_or(DeviceError::UnknownRecording(id))
    }

    /// One sample is the time between two events around the whole sequence, which is one launch of a
    /// CUDA graph where the driver makes one of it. The L2 is flushed by writing twice its size
    /// before the first event.
    fn time(&self, launches: &[Launch], options: &TimeOptions) -> Result<Timing, DeviceError> {
        timing::time(self, &mut self.state(), launches, options)
    }
}

/// Names of the kernels in PTX, for the message of a launch that names another.
fn entries(ptx: &str) -> Vec<String> {
    let name = |text: &str| {
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "_$%".contains(c)));
        text[..end.unwrap_or(text.len())].to_owned()
    };
    ptx.split(".entry ").skip(1).map(name).collect()
}
