//! How a run ends that leaves no artifact.

use super::Change;
use crate::cluster::ClusterError;
use crate::export::ExportError;
use crate::journal::JournalError;
use crate::record::{Candidate, Run};
use crate::search::STRATEGIES;
use crate::workload::WorkloadError;
use spanforge_device::DeviceError;
use spanforge_kernels::configuration::ShapeError;
use spanforge_kernels::decoder::DecoderError;
use std::path::PathBuf;

/// A run that ends without an artifact.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The kernels do not serve the workload's shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A workload that cannot be timed.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// Batches that no one kernel serves.
    #[error("batch `{0}` has another attention than the first one: tune each in a run of its own")]
    OtherAttention(String),
    /// A further device that cannot measure beside the first one.
    #[error("{device} cannot measure as well: {reason}")]
    Further {
        /// It.
        device: String,
        /// Why not.
        reason: &'static str,
    },
    /// Seeds beyond the last.
    #[error("the seed and the number of cases together are too large; the last seed is 2^64 - 1")]
    Seeds,
    /// Nothing would be checked.
    #[error("0 cases: a candidate is checked on at least one problem before it is timed")]
    NoCases,
    /// An architecture that names PTX, which an artifact has in any case.
    #[error("`{0}` has no machine code to export: name an architecture such as sm_90a")]
    NoMachineCode(String),
    /// No configuration fits.
    #[error("no configuration for {shape} fits {device}: {reason}")]
    EmptySpace {
        /// The shape.
        shape: String,
        /// The device.
        device: String,
        /// What rules most out.
        reason: String,
    },
    /// An unknown strategy.
    #[error("there is no strategy `{0}`: use one of {known}", known = STRATEGIES.join(", "))]
    Strategy(String),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A kernel that cannot be loaded, or a problem that it does not take.
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    /// The results or the artifact cannot be written.
    #[error("results cannot be kept: {0}")]
    Write(#[from] std::io::Error),
    /// Nothing works.
    #[error("none of {count} candidates is correct; the first failed with: {first}")]
    AllFailed {
        /// Candidates.
        count: usize,
        /// Why the first failed.
        first: String,
    },
    /// The export.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A journal that leads elsewhere now.
    #[error(
        "{journal} cannot be resumed here: {change}; resume it where it was begun, or start anew"
    )]
    Changed {
        /// The journal.
        journal: PathBuf,
        /// What has changed.
        change: Change,
    },
    /// Servers that a study is shared by, before there is a journal.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The same during a run.
    #[error("{error}; to go on: spanforge tune --resume {journal} --study {servers}")]
    Lost {
        /// The journal.
        journal: PathBuf,
        /// Where the servers are.
        servers: String,
        /// What went wrong.
        error: ClusterError,
    },
    /// Worker processes that do not work, whatever the candidate.
    #[error("the workers that evaluate candidates do not work: {0}")]
    Worker(String),
    /// What workers are told cannot be written down.
    #[error("a worker cannot be told what to do: {0}")]
    Message(#[from] serde_json::Error),
    /// The run was told to stop.
    #[error("interrupted")]
    Interrupted(Box<Interrupted>),
}

/// A run that was told to stop.
#[derive(Clone, Debug)]
pub struct Interrupted {
    /// What was asked for.
    pub run: Run,
    /// What was evaluated.
    pub candidates: Vec<Candidate>,
    /// The journal, to go on with.
    pub journal: PathBuf,
}
