//! What can go wrong before a kernel runs: malformed PTX, a bad address, a bad launch.

use thiserror::Error;

/// PTX that cannot be loaded: malformed, or using something the emulator does not know.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("PTX line {line}: {reason}{}", quoted(.text))]
pub struct LoadError {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// What is wrong with it, and what was expected.
    pub reason: String,
    /// The text of the statement at fault; empty where there is none.
    pub text: String,
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": `{text}`") }
}

impl LoadError {
    pub(crate) fn new(line: u32, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into(), text: String::new() }
    }

    pub(crate) fn with_text(mut self, text: &str) -> Self {
        if self.text.is_empty() {
            self.text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        self
    }
}

/// A request on emulated memory that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// The allocation does not fit.
    #[error("cannot allocate {bytes} bytes for `{name}`: {reason}")]
    TooLarge {
        /// Name given to the allocation.
        name: String,
        /// Bytes asked for.
        bytes: usize,
        /// Why it was refused.
        reason: &'static str,
    },
    /// The address is not inside a live allocation.
    #[error("address {address:#x} is not inside a live allocation")]
    UnknownAddress {
        /// The address.
        address: u64,
    },
    /// The range leaves its allocation.
    #[error(
        "{bytes} bytes at offset {offset} leave allocation `{name}`, which is {length} bytes long"
    )]
    OutOfRange {
        /// Name of the allocation.
        name: String,
        /// Offset of the first byte.
        offset: u64,
        /// Bytes asked for.
        bytes: usize,
        /// Length of the allocation.
        length: usize,
    },
    /// Only the address that `allocate` returned can be freed.
    #[error("address {address:#x} is not the start of a live allocation, so it cannot be freed")]
    NotAStart {
        /// The address.
        address: u64,
    },
}

/// A launch that cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LaunchError {
    /// No such kernel.
    #[error("no kernel `{name}` in the module; it has: {}", .known.join(", "))]
    UnknownKernel {
        /// Name asked for.
        name: String,
        /// Names the module has.
        known: Vec<String>,
    },
    /// Wrong number of arguments.
    #[error("kernel `{kernel}` takes {expected} arguments, {given} were given")]
    ArgumentCount {
        /// Kernel.
        kernel: String,
        /// Parameters it has.
        expected: usize,
        /// Arguments given.
        given: usize,
    },
    /// An argument of the wrong size.
    #[error(
        "argument {index} of kernel `{kernel}` is {given} bytes, its parameter is {expected} bytes"
    )]
    ArgumentSize {
        /// Kernel.
        kernel: String,
        /// Index of the argument, from 0.
        index: usize,
        /// Size of the parameter in bytes.
        expected: usize,
        /// Size of the argument in bytes.
        given: usize,
    },
    /// Grid or block dimensions that no GPU accepts.
    #[error("{what} {given:?} is outside the limits: {limit}")]
    Dimensions {
        /// `grid` or `block`.
        what: &'static str,
        /// What was given.
        given: [u32; 3],
        /// The limits.
        limit: String,
    },
    /// Too much shared memory.
    #[error(
        "kernel `{kernel}` would use {bytes} bytes of shared memory ({fixed} static), the limit is {limit}"
    )]
    SharedMemory {
        /// Kernel.
        kernel: String,
        /// Total bytes.
        bytes: u64,
        /// Of those, the static ones.
        fixed: u32,
        /// Most that is accepted.
        limit: u64,
    },
    /// A selected block is not in the grid.
    #[error("block {index} was selected, the grid has {blocks} blocks")]
    BlockSelection {
        /// The index asked for.
        index: u64,
        /// Blocks in the grid.
        blocks: u64,
    },
    /// Emulated memory ran out while preparing the launch.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}
