//! What the checks report: which check, which instruction, which threads, what address.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::races::Other;

/// The checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// An access outside every allocation, or outside a shared variable.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// A read of bytes that nothing has written, or a register that nothing has written decides
    /// what happens or leaves the kernel.
    Uninitialised,
    /// Two accesses to the same bytes, one of them a write, that nothing orders.
    Race,
    /// An asynchronous operation whose memory or registers are used before it was waited for.
    AsyncHazard,
    /// A barrier that some threads can no longer reach.
    BarrierDivergence,
    /// A warp-wide instruction that some of its lanes can no longer reach.
    ShuffleDivergence,
    /// No thread can make progress, or the instruction budget is spent.
    Deadlock,
    /// An operand outside what the instruction allows.
    InvalidArgument,
    /// `trap` or a failed assertion was executed.
    Trap,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfBounds => "out-of-bounds",
            Self::Misaligned => "misaligned",
            Self::Uninitialised => "uninitialised",
            Self::Race => "race",
            Self::AsyncHazard => "async-hazard",
            Self::BarrierDivergence => "barrier-divergence",
            Self::ShuffleDivergence => "shuffle-divergence",
            Self::Deadlock => "deadlock",
            Self::InvalidArgument => "invalid-argument",
            Self::Trap => "trap",
        })
    }
}

/// A line of CUDA source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceLine {
    /// File, as the compiler was given it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// How a line of a trail leads to a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It computes the address of an access, or what the instruction was given.
    Address,
    /// It decides whether the instruction runs.
    Condition,
    /// It wrote what was loaded on the way, or computed what was written.
    WrittenBy,
    /// It would write what was never written, but has not.
    StoredBy,
    /// The last barrier or wait before.
    Barrier,
    /// It decides whether a loop ends.
    Loop,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "address",
            Self::Condition => "condition",
            Self::WrittenBy => "written by",
            Self::StoredBy => "stored by",
            Self::Barrier => "barrier",
            Self::Loop => "loop",
        })
    }
}

/// A line behind a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailLine {
    /// The line.
    #[serde(flatten)]
    pub line: SourceLine,
    /// How it leads to the finding.
    pub why: Why,
}

impl fmt::Display for TrailLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.line, self.why)
    }
}

/// The other side of a race, or what read an unwritten register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// What it did: `read`, `write`, `atomic update`, `asynchronous write`.
    pub action: String,
    /// Its PTX instruction, and the line of that; empty and 0 where they are not known.
    pub instruction: String,
    /// Its line in the PTX text.
    pub ptx_line: u32,
    /// The CUDA line it came from.
    pub source: Option<SourceLine>,
    /// The calls that inlined it, innermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inlined_at: Vec<SourceLine>,
    /// Block index.
    pub block: [u32; 3],
    /// Warp of the block.
    pub warp: u32,
    /// Lanes of the warp.
    pub lanes: Vec<u32>,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {}", self.action)?;
        if !self.instruction.is_empty() {
            write!(f, " `{}`", self.instruction)?;
            write_place(f, self.ptx_line, self.source.as_ref(), &self.inlined_at)?;
        }
        let [x, y, z] = self.block;
        write!(f, " by block ({x}, {y}, {z}), warp {}", self.warp)?;
        write_lanes(f, &self.lanes)
    }
}

fn write_place(
    f: &mut fmt::Formatter<'_>,
    ptx_line: u32,
    source: Option<&SourceLine>,
    inlined_at: &[SourceLine],
) -> fmt::Result {
    write!(f, " (PTX line {ptx_line}")?;
    if let Some(source) = source {
        write!(f, ", {source}")?;
    }
    for call in inlined_at {
        write!(f, ", inlined at {call}")?;
    }
    write!(f, ")")
}

fn write_lanes(f: &mut fmt::Formatter<'_>, lanes: &[u32]) -> fmt::Result {
    match lanes {
        [] => Ok(()),
        [lane] => write!(f, ", lane {lane}"),
        lanes if lanes.len() == 32 => write!(f, ", all lanes"),
        lanes => {
            write!(f, ", lanes ")?;
            for (at, lane) in lanes.iter().enumerate() {
                write!(f, "{}{lane}", if at == 0 { "" } else { ", " })?;
            }
            Ok(())
        }
    }
}

/// One error in a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// What happened.
    pub message: String,
    /// Kernel.
    pub kernel: String,
    /// The PTX instruction.
    pub instruction: String,
    /// Its line in the PTX text.
    pub ptx_line: u32,
    /// The CUDA line it came from, where the PTX has line information.
    pub source: Option<SourceLine>,
    /// Where its function was inlined, the line of the call, then that of the call of that, and so
    /// on out to the kernel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inlined_at: Vec<SourceLine>,
    /// Block index.
    pub block: [u32; 3],
    /// Warp of the block.
    pub warp: u32,
    /// Lanes of the warp that are concerned.
    pub lanes: Vec<u32>,
    /// `buffer + offset` of the first of them, for memory accesses.
    pub address: Option<String>,
    /// The other access of a race; where something depends on a register that nothing has written,
    /// the instruction that read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Box<Party>>,
    /// The lines behind it, nearest first: where the address came from, what decided that the
    /// instruction ran, what wrote what was loaded. Those of the finding itself are not among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trail: Vec<TrailLine>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.message)?;
        if let Some(address) = &self.address {
            write!(f, " at {address}")?;
        }
        write!(f, ", in `{}`", self.instruction)?;
        write_place(f, self.ptx_line, self.source.as_ref(), &self.inlined_at)?;
        let [x, y, z] = self.block;
        write!(f, " of kernel `{}`, block ({x}, {y}, {z}), warp {}", self.kernel, self.warp)?;
        write_lanes(f, &self.lanes)?;
        if let Some(other) = &self.other {
            let what = match self.check {
                Check::Uninitialised => "its value has come by",
                _ => "the other side is",
            };
            write!(f, "; {what} {other}")?;
        }
        for (at, line) in self.trail.iter().enumerate() {
            write!(f, "{}{line}", if at == 0 { "\n  from: " } else { ", " })?;
        }
        Ok(())
    }
}

/// A finding before the warp and instruction are known.
#[derive(Debug)]
pub(crate) struct Fault {
    pub check: Check,
    pub message: String,
    pub lanes: u32,
    pub address: Option<String>,
    pub other: Option<Other>,
}

impl Fault {
    #[cold]
    pub(crate) fn new(check: Check, lanes: u32, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { check, message: message.into(), lanes, address: None, other: None })
    }

    #[cold]
    pub(crate) fn at(mut self: Box<Self>, address: String) -> Box<Self> {
        self.address = Some(address);
        self
    }

    #[cold]
    pub(crate) fn against(mut self: Box<Self>, other: Other) -> Box<Self> {
        self.other = Some(other);
        self
    }
}

pub(crate) fn lane_list(mask: u32) -> Vec<u32> {
    (0..32).filter(|lane| mask >> lane & 1 != 0).collect()
}
