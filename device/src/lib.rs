//! The devices that kernels run on, and the compiler that makes their code: finding, fetching and
//! driving NVRTC, and the [`Device`] trait with its two makers, `emulated:<gpu>` and `cuda:<n>`.

mod checks;
pub mod compiler;
pub mod conditions;
pub mod cubin;
pub mod cuda;
pub mod device;
pub mod emulated;
pub mod error;
pub mod launch_file;
pub mod nvrtc;
mod open;
mod product;
mod sampling;
pub mod settings;

pub use compiler::{Architecture, Compiler, Source, Target};
pub use conditions::{Conditions, Throttle};
pub use cuda::CudaDevice;
pub use device::*;
pub use emulated::{EmulatedDevice, EmulatedOptions, SharedCode};
pub use error::{CompileError, CubinError, DeviceError, NvrtcError};
pub use nvrtc::Nvrtc;
pub use open::{
    default_device, default_spec, emulated_specs, gpu_specs, open, open_emulated, open_with,
};
pub use product::{Element, Product};
pub use settings::Settings;
pub use spanforge_emulator::cost::KERNEL_LAUNCH;
pub use spanforge_emulator::{
    MatrixModel, OutOfBoundsFill, Swizzle, TensorElement, TensorMap, TensorMapError,
};
