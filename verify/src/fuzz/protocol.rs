//! What the parent of a run and its workers tell each other.

use crate::case::Trial;
use crate::check::CaseReport;
use serde::{Deserialize, Serialize};
use spanforge_device::{Image, Resources};
use std::collections::BTreeMap;

/// Kernels that a worker holds at a time. The parent says which to forget.
pub const KERNELS_HELD: usize = 64;

/// From the parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The first one.
    Setup {
        /// Device to open.
        device: String,
        /// Seed of the run.
        seed: u64,
    },
    /// A kernel that turns will name.
    Kernel {
        /// Its place among those of the run.
        index: usize,
        /// Its id.
        id: String,
        /// Its code.
        code: Code,
    },
    /// No turn will name this kernel before it is sent again.
    Forget {
        /// Its place.
        index: usize,
    },
    /// Cases to check, all of one turn or what is left of it.
    Turn {
        /// Kernel.
        kernel: usize,
        /// First case.
        first: u64,
        /// One past the last.
        end: u64,
    },
    /// A trial to make as small as possible.
    Shrink {
        /// Kernel.
        kernel: usize,
        /// Kind of fault that has to stay.
        kind: String,
        /// The trial.
        trial: Box<Trial>,
    },
}

/// From a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The device is there.
    Ready {
        /// Whether it is an emulated one.
        emulated: bool,
    },
    /// A case was checked; in order within a turn.
    Case {
        /// Its number.
        case: u64,
        /// Edges it met, a bit each.
        edges: u64,
        /// What was found, where something was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        report: Option<Box<CaseReport>>,
        /// What a panic of the tool itself said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        panic: Option<String>,
    },
    /// A turn has ended.
    Turn {
        /// Source lines that this worker had not told of before.
        lines: Vec<Line>,
    },
    /// A smaller trial that fails the same way.
    Smaller {
        /// The trial.
        trial: Box<Trial>,
        /// What was found.
        report: Box<CaseReport>,
    },
    /// Nothing smaller was found any more.
    Shrunk {
        /// Attempts that were made.
        attempts: u32,
    },
    /// What was asked for cannot be done.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A line of source that has code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// File.
    pub file: String,
    /// Line.
    pub line: u32,
    /// Whether it was executed.
    pub reached: bool,
}

/// An image as a message has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Code {
    ptx: String,
    cubin: Option<Vec<u8>>,
    architecture: String,
    resources: BTreeMap<String, Resources>,
}

impl From<&Image> for Code {
    fn from(image: &Image) -> Self {
        let Image { ptx, cubin, architecture, resources } = image.clone();
        Self { ptx, cubin, architecture, resources }
    }
}

impl From<Code> for Image {
    fn from(code: Code) -> Self {
        let Code { ptx, cubin, architecture, resources } = code;
        Self { ptx, cubin, architecture, resources }
    }
}
