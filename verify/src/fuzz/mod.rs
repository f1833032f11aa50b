//! Fuzzing: problems x configurations x schedules over all cores, until a time, a count, a fault or
//! the user says stop. Workers are processes, so that one that is killed, crashes or hangs costs one
//! case. Nothing is kept of a case but counts, so a run of any length needs the same memory.

mod draw;
mod drive;
mod protocol;
mod worker;

pub use draw::draw;
pub use protocol::{Reply, Request};
pub use worker::serve;

use crate::case::{CASE_VERSION, Case, Found, Trial, summary};
use crate::check::CaseReport;
use crate::fuzz_coverage::Coverage;
use crate::ledger::Ledger;
use serde::Serialize;
use spanforge_device::Image;
use spanforge_emulator::SourceLine;
use spanforge_kernels::KernelSpec;
use std::io;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// The kind of a case whose worker was lost.
pub const WORKER_LOST: &str = "worker-lost";

/// A kernel to fuzz.
pub struct Subject {
    /// What it was built for.
    pub spec: KernelSpec,
    /// Its code.
    pub image: Image,
    /// Its source where it is an edited one.
    pub source: Option<String>,
}

/// What to do, and when to stop.
#[derive(Clone, Debug)]
pub struct Options {
    /// Device: `emulated:<gpu>`, or `cuda:<n>`, which has its own schedule and is for one worker.
    pub device: String,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Most cases.
    pub cases: u64,
    /// Longest time for the cases; shrinking comes on top.
    pub time: Option<Duration>,
    /// Longest time for one case; a worker that takes longer is lost.
    pub case_limit: Duration,
    /// Whether to go on after a fault; a later fault of the same kind in the same kernel is counted
    /// only.
    pub keep_going: bool,
    /// Worker processes; each holds one device.
    pub workers: usize,
    /// Faults to tolerate.
    pub ledger: Ledger,
}

/// A fault, shrunk, with the way to it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Number of the case.
    pub case: u64,
    /// Kernel.
    pub spec: KernelSpec,
    /// Kind of fault.
    pub kind: String,
    /// The smallest trial that fails the same way.
    pub trial: Trial,
    /// Its diagnosis.
    pub report: CaseReport,
    /// Attempts at making it smaller.
    pub attempts: u32,
}

/// A case whose worker was killed, crashed, or did not answer in time.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Number of the case.
    pub case: u64,
    /// Kernel.
    pub spec: KernelSpec,
    /// The trial, as it was drawn.
    pub trial: Trial,
    /// How the worker ended.
    pub how: String,
}

/// A panic of the tool itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Panicked {
    /// Number of the case.
    pub case: u64,
    /// Kernel.
    pub kernel: String,
    /// What it said.
    pub message: String,
}

/// Lines of device code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LineCoverage {
    /// Lines that have code in some kernel of the run.
    pub with_code: usize,
    /// Those of them that were executed.
    pub reached: usize,
    /// Those that were not.
    pub not_reached: Vec<SourceLine>,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Cases checked, without those whose worker was lost.
    pub cases: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Cases of the kernel with fewest, and of that with most.
    pub cases_per_kernel: (u64, u64),
    /// Edges met.
    pub coverage: Coverage,
    /// Lines of device code executed; none where the device does not count.
    pub lines: LineCoverage,
    /// Faults that are not in the ledger, one for each kernel and kind.
    pub failures: Vec<Failure>,
    /// Cases with those faults.
    pub faulty_cases: u64,
    /// Per entry of the ledger the cases it let pass.
    pub tolerated: Vec<u64>,
    /// Cases whose worker was lost, the first few.
    pub lost: Vec<Lost>,
    /// How many there were.
    pub lost_count: u64,
    /// Panics of the tool itself, the first few.
    pub panics: Vec<Panicked>,
    /// How many there were.
    pub panic_count: u64,
}

impl Failure {
    /// The case file.
    pub fn case_file(&self, subject: &Subject, device: &str, created_by: String) -> Case {
        let said = self.report.fault.as_ref().map(summary).unwrap_or_default();
        let found = Found { kind: self.kind.clone(), summary: said };
        case_file(found, &self.trial, subject, device, created_by)
    }
}

impl Lost {
    /// The case file.
    pub fn case_file(&self, subject: &Subject, device: &str, created_by: String) -> Case {
        let found = Found { kind: WORKER_LOST.to_owned(), summary: self.how.clone() };
        case_file(found, &self.trial, subject, device, created_by)
    }
}

fn case_file(
    found: Found,
    trial: &Trial,
    subject: &Subject,
    device: &str,
    created_by: String,
) -> Case {
    Case {
        spanforge_case: CASE_VERSION,
        kernel: subject.spec.to_string(),
        device: device.to_owned(),
        found,
        created_by,
        trial: trial.clone(),
        source: subject.source.clone(),
    }
}

/// A run that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FuzzError {
    /// No worker can be started.
    #[error("a worker process cannot be started: {0}")]
    Start(#[source] io::Error),
    /// Workers end before they have begun.
    #[error("workers end before they have begun, the last one {0}")]
    Worker(String),
    /// A case could not be carried out, such as on a device that is lost.
    #[error("{0}")]
    Failed(String),
    /// A request cannot be written.
    #[error("a worker cannot be told what to do: {0}")]
    Request(#[from] serde_json::Error),
}

/// Fuzzes `subjects` (at least one) and shrinks what fails. `worker` makes the command of a process
/// that answers requests on its standard input with [`serve`]. `stop` ends the run early with the
/// summary of what was done; `begun` is called for each case that is done.
///
/// # Errors
/// A case that could not be carried out, and workers that cannot be started.
pub fn fuzz(
    subjects: &[Subject],
    options: &Options,
    stop: &AtomicBool,
    worker: &dyn Fn() -> Command,
    begun: &dyn Fn(),
) -> Result<Summary, FuzzError> {
    if subjects.is_empty() {
        return Ok(Summary::default());
    }
    drive::Run::new(subjects, options, stop, worker, begun).finish()
}
