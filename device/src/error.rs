//! What can go wrong between a kernel's source and its result, each with what to do about it.

use crate::nvrtc::Attempt;
use std::io;
use std::path::PathBuf;

/// An error of finding or fetching NVRTC.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvrtcError {
    /// No place has one, and fetching is not allowed.
    #[error("NVRTC, the CUDA compiler library, was not found{}\n{remedy}", list(attempts))]
    NotFound {
        /// The places that were looked at.
        attempts: Vec<Attempt>,
        /// What to do.
        remedy: String,
    },
    /// The folder of a setting, or one that was just fetched, does not serve.
    #[error("the NVRTC in {} cannot be used: {reason}\n{remedy}", folder.display())]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// Why.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// No place has one, and it could not be fetched.
    #[error(
        "NVRTC, the CUDA compiler library, was not found and could not be fetched: \
         {reason}{}\n{remedy}",
        list(attempts)
    )]
    FetchFailed {
        /// Why.
        reason: String,
        /// The places that were looked at before.
        attempts: Vec<Attempt>,
        /// What to do.
        remedy: String,
    },
    /// There is no folder to fetch into.
    #[error(
        "no cache folder: none of SPANFORGE_CACHE, XDG_CACHE_HOME and HOME is set; set \
         SPANFORGE_CACHE to a folder that can be written"
    )]
    NoCacheFolder,
    /// The cache folder cannot be written.
    #[error(
        "the cache folder {} cannot be written: {source}; free some space there, or set \
         SPANFORGE_CACHE to a folder that can be written",
        folder.display()
    )]
    CacheUnwritable {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn list(attempts: &[Attempt]) -> String {
    if attempts.is_empty() {
        return " (no libnvrtc.so in the system's toolkits, the Python environments or the cache)"
            .into();
    }
    attempts.iter().map(|attempt| format!("\n  {attempt}")).collect()
}

/// An error of compiling a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The compiler refuses the source.
    #[error("{name} does not compile for {architecture}:\n{log}")]
    Source {
        /// The source's name.
        name: String,
        /// The architecture it was compiled for.
        architecture: String,
        /// NVRTC's own log: file, line and message of each error.
        log: String,
    },
    /// The architecture's name cannot be read, or this NVRTC does not know it.
    #[error(
        "unknown architecture {asked:?}; NVRTC {}.{} compiles for {}",
        version.0, version.1, supported.join(", ")
    )]
    UnknownArchitecture {
        /// What was asked for.
        asked: String,
        /// Release of the NVRTC in use.
        version: (u32, u32),
        /// What it compiles for.
        supported: Vec<String>,
    },
    /// NVRTC failed for another reason than the source.
    #[error("NVRTC failed on {name}: {call}: {message}")]
    Compiler {
        /// The source's name.
        name: String,
        /// The call that failed.
        call: String,
        /// NVRTC's own words.
        message: String,
    },
    /// The code that NVRTC made cannot be read.
    #[error("the code that NVRTC made of {name} for {architecture} cannot be read: {reason}")]
    Unreadable {
        /// The source's name.
        name: String,
        /// The architecture it was compiled for.
        architecture: String,
        /// What was wrong.
        reason: String,
    },
    /// The cache of compiled code cannot be written.
    #[error(
        "compiled code cannot be kept in {}: {source}; free some space there, or set \
         SPANFORGE_CACHE to a folder that can be written",
        folder.display()
    )]
    CacheUnwritable {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// NVRTC is not at hand.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
}

/// A cubin that cannot be read, or that lacks what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CubinError {
    /// Not a cubin.
    #[error("not a cubin: {0}")]
    Malformed(String),
    /// The kernel is not in it.
    #[error("no kernel {kernel:?} in the cubin; it has {}", present.join(", "))]
    NoSuchKernel {
        /// The kernel that was asked for.
        kernel: String,
        /// The kernels that are there.
        present: Vec<String>,
    },
}

/// An error of a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Placeholder for the room's first error.
    #[error("{0}")]
    Other(String),
}
