//! The devices that kernels run on, and the compiler that makes their code: finding, fetching and

mod checks;
pub mod compiler;
pub mod cubin;
pub mod cuda;
pub mod device;
pub mod error;
pub mod nvrtc;
pub mod settings;

pub use compiler::{Architecture, Compiler, Source, Target};
pub use cuda::CudaDevice;
pub use device::*;
pub use error::{CompileError, CubinError, DeviceError, NvrtcError};
pub use nvrtc::Nvrtc;
pub use settings::Settings;
