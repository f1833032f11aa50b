//! The devices that kernels run on, and the compiler that makes their code: finding, fetching and
//! driving NVRTC, and the [`Device`] trait with its two makers, `emulated:<gpu>` and `cuda:<n>`.

pub mod device;

pub mod error;

pub use device::*;
pub use error::DeviceError;
