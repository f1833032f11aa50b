//! The devices that kernels run on, and the compiler that makes their code: finding, fetching and
//! driving NVRTC, and the [`Device`] trait with its two makers, `emulated:<gpu>` and `cuda:<n>`.

pub mod compiler;
pub mod cubin;
pub mod cuda;
pub mod device;
pub mod error;
mod launch_check;
pub mod nvrtc;
pub mod settings;

pub use compiler::{Architecture, Compiler, Source, Target};
pub use device::*;
pub use error::{CompileError, CubinError, DeviceError, NvrtcError};
pub use nvrtc::Nvrtc;
pub use settings::Settings;
