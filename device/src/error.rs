//! What can go wrong between a kernel's source and its result, each with what to do about it.

use crate::nvrtc::Attempt;
use spanforge_emulator::{Finding, TensorMapError};
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
    /// The name of a device cannot be read, or there is no such device.
    #[error("unknown device {spec:?}; there are cuda:<n> and {}", known.join(", "))]
    UnknownDevice {
        /// What was asked for.
        spec: String,
        /// The emulated devices.
        known: Vec<String>,
    },
    /// There is no NVIDIA driver on this machine.
    #[error(
        "no NVIDIA driver was found (tried {}); install one of release {OLDEST_DRIVER} or newer, \
         or use an emulated device such as emulated:h200",
        searched.join(", ")
    )]
    DriverUnavailable {
        /// The library names that were tried.
        searched: Vec<String>,
    },
    /// There is a driver, but it does not serve.
    #[error(
        "the NVIDIA driver cannot be used: {reason}; update it to release {OLDEST_DRIVER} or \
         newer, or use an emulated device such as emulated:h200"
    )]
    DriverUnusable {
        /// Why.
        reason: String,
    },
    /// The driver has fewer devices.
    #[error("there is no cuda:{ordinal}; the driver has {count} device(s), numbered from 0")]
    NoSuchDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A call to the driver failed. An error of a kernel that ran earlier surfaces here too; after
    /// one, the driver refuses everything else until the process ends.
    #[error("{call} failed on {device}: {reason}")]
    Driver {
        /// The device.
        device: String,
        /// What was being done.
        call: String,
        /// The driver's own words.
        reason: String,
    },
    /// Memory cannot be had.
    #[error("no memory for {name:?} ({bytes} bytes) on {device}: {reason}")]
    OutOfMemory {
        /// The device.
        device: String,
        /// Name of the allocation.
        name: String,
        /// Its size.
        bytes: usize,
        /// What the device said.
        reason: String,
    },
    /// The buffer was not allocated on this device, or was freed.
    #[error("no buffer of {bytes} bytes at address {address:#x}: never allocated here, or freed")]
    UnknownBuffer {
        /// Its address.
        address: u64,
        /// Its size.
        bytes: usize,
    },
    /// A copy leaves its buffer.
    #[error("a copy of {bytes} bytes at offset {offset} leaves its buffer of {size} bytes")]
    OutOfBuffer {
        /// Bytes into the buffer.
        offset: usize,
        /// Bytes to copy.
        bytes: usize,
        /// Size of the buffer.
        size: usize,
    },
    /// The module was not loaded on this device, or was unloaded.
    #[error("module {0} is not loaded on this device")]
    UnknownModule(u64),
    /// The work was not recorded on this device, or was forgotten.
    #[error("work {0} is not recorded on this device")]
    UnknownRecording(u64),
    /// The code cannot be loaded.
    #[error("code for {architecture} does not load on {device}: {reason}")]
    BadImage {
        /// The device.
        device: String,
        /// Architecture of the code.
        architecture: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The kernel is not in the module.
    #[error("no kernel {kernel:?} in the module; it has {}", present.join(", "))]
    NoSuchKernel {
        /// The kernel.
        kernel: String,
        /// What is there.
        present: Vec<String>,
    },
    /// The launch asks for what the kernel or the device does not take.
    #[error("kernel {kernel} cannot be launched: {reason}")]
    BadLaunch {
        /// The kernel.
        kernel: String,
        /// What is at fault, and what was expected.
        reason: String,
    },
    /// The product asks for what no device takes.
    #[error("matrices [{rows}, {inner}] and [{columns}, {inner}] cannot be multiplied: {reason}")]
    BadProduct {
        /// Rows of the result.
        rows: usize,
        /// Its columns.
        columns: usize,
        /// Elements of the vectors.
        inner: usize,
        /// What is at fault, and what was expected.
        reason: String,
    },
    /// The library that multiplies matrices cannot be used.
    #[error(
        "cuBLASLt, which multiplies matrices on a GPU, cannot be used: {reason}; install the CUDA \
         toolkit's libcublas, or put the folder of libcublasLt.so on the loader's path"
    )]
    NoCublas {
        /// Why.
        reason: String,
    },
    /// A tensor map among the arguments has a value that no device takes.
    #[error("kernel {kernel} cannot be launched: argument {index}: {source}")]
    BadTensorMap {
        /// The kernel.
        kernel: String,
        /// Which argument, from 0.
        index: usize,
        /// The value at fault, and what was expected.
        source: TensorMapError,
    },
    /// The driver refuses a tensor map whose values are all allowed.
    #[error(
        "kernel {kernel} cannot be launched: argument {index}: {device} refuses the tensor map: \
         {reason}"
    )]
    TensorMapRefused {
        /// The kernel.
        kernel: String,
        /// Which argument, from 0.
        index: usize,
        /// The device.
        device: String,
        /// The driver's own words.
        reason: String,
    },
    /// The GPU has no tensor copies.
    #[error(
        "kernel {kernel} cannot be launched: argument {index} is a tensor map, and {device} has no \
         tensor copies; they came with compute capability 9.0"
    )]
    NoTensorMaps {
        /// The kernel.
        kernel: String,
        /// Which argument, from 0.
        index: usize,
        /// The device.
        device: String,
    },
    /// The checks of an emulated device found faults in a kernel.
    #[error("kernel {kernel}: {}", summary(findings))]
    Findings {
        /// The kernel.
        kernel: String,
        /// What the checks reported, in the order of execution.
        findings: Vec<Finding>,
    },
    /// The file of a GPU profile is not one.
    #[error("the GPU profile {file} cannot be used: {reason}")]
    BadProfile {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// A time is to be predicted for code whose registers are not known.
    #[error(
        "the time of kernel {kernel} cannot be predicted: there is no machine code for the GPU at \
         hand, and the registers that it takes decide how many blocks run at once; compile it to \
         a cubin for {architecture}"
    )]
    ResourcesUnknown {
        /// The kernel.
        kernel: String,
        /// The architecture of the device.
        architecture: String,
    },
}

/// The first findings, one per line.
fn summary(findings: &[Finding]) -> String {
    const SHOWN: usize = 5;
    let mut text = format!("{} finding(s)", findings.len());
    for finding in findings.iter().take(SHOWN) {
        text.push_str(&format!("\n  {finding}"));
    }
    if findings.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", findings.len() - SHOWN));
    }
    text
}

/// First driver release that takes CUDA 13 code (CUDA toolkit release notes, table 3).
const OLDEST_DRIVER: &str = "580";
