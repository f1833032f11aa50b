//! What can go wrong between a kernel's source and its result, each with what to do about it.
//! Extended by the modules of this room.

/// An error of a device or of the compiler.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Placeholder for the room's first error.
    #[error("{0}")]
    Other(String),
}
