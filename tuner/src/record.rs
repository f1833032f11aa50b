//! What is kept of a run: the lines of its [`journal`](crate::journal).

use crate::environment::Environment;
use crate::workload::Workload;
use serde::{Deserialize, Serialize};
use spanforge_device::{Basis, Conditions, DeviceProperties, Prediction, Resources};
use spanforge_kernels::{Bucket, Configuration, KernelShape, KernelSpec, Limits, SearchSpace};
use std::collections::BTreeMap;

/// Candidates that may be under way at a time, unless a study says otherwise.
pub const WINDOW: usize = 8;

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// Everything that a run follows from; the first line.
    Study(Box<Study>),
    /// The beginning of a run.
    Run(Box<Run>),
    /// A resumed run goes on to another number of configurations.
    Budget(Budget),
    /// A configuration is about to be evaluated.
    Started(Started),
    /// One configuration.
    Candidate(Box<Candidate>),
    /// Finalists, timed once more.
    Remeasured(Remeasured),
    /// The end of a run.
    Winner(Winner),
}

/// The budget of a run from here on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// See [`Run::budget`].
    pub budget: usize,
}

/// What the finalists of a run took when they were timed once more, in turn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Remeasured {
    /// Each of them; none where nothing was timed once more.
    pub finalists: Vec<Finalist>,
}

/// One that was timed once more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finalist {
    /// Position in the order of the run.
    pub index: usize,
    /// Microseconds, one entry per sample; of several batches the geometric means.
    pub samples_us: Vec<f64>,
    /// See [`Candidate::conditions`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
    /// The samples by batch, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_batch: Vec<Timed>,
}

impl Remeasured {
    /// What a candidate took then, by its position.
    pub fn finalist(&self, index: usize) -> Option<&Finalist> {
        self.finalists.iter().find(|finalist| finalist.index == index)
    }

    /// The new samples of a candidate, by its position.
    pub fn samples_us(&self, index: usize) -> Option<&[f64]> {
        self.finalist(index).map(|finalist| finalist.samples_us.as_slice())
    }
}

/// Everything that a run follows from: one study gives one list of candidates, as far as the device
/// repeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// The batch to be fast on.
    pub workload: Workload,
    /// Further batches to be fast on, of the same attention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Workload>,
    /// Device, such as `emulated:h200` or `cuda:0`.
    pub device: String,
    /// Further GPUs of the same kind, on which candidates are measured as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// Architectures to export machine code for; the device's own where empty.
    pub architectures: Vec<String>,
    /// One of [`STRATEGIES`](crate::search::STRATEGIES).
    pub strategy: String,
    /// Seed of the search, of the problems and of the tensors.
    pub seed: u64,
    /// Generated problems that each candidate is checked on.
    pub cases: usize,
    /// Kernels that another run found fastest, the fastest first, for the strategy `guided`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guide: Vec<KernelSpec>,
    /// Candidates that may be under way at a time: the strategy proposes one when it knows all but so
    /// many before it.
    #[serde(default = "default_window")]
    pub window: usize,
}

impl Study {
    /// All batches to be fast on.
    pub fn batches(&self) -> impl Iterator<Item = &Workload> {
        std::iter::once(&self.workload).chain(&self.others)
    }

    /// The kernels to choose from: with query tiles of as many rows as a request has in some batch.
    pub fn space(&self, shape: KernelShape, limits: Limits) -> SearchSpace {
        let queries = self.batches().map(Workload::queries).max().unwrap_or(1);
        SearchSpace::for_rows(shape, limits, queries)
    }

    /// The configurations to use where nothing has been tuned, one for each number of rows that requests
    /// of a batch have; that of the first batch first. None where none fits.
    pub fn default_configurations(&self, shape: KernelShape, limits: Limits) -> Vec<Configuration> {
        let mut found: Vec<Configuration> = Vec::new();
        for queries in self.batches().map(Workload::queries) {
            let default = SearchSpace::for_rows(shape, limits, queries).default_configuration();
            found.extend(default.filter(|configuration| !found.contains(configuration)));
        }
        found
    }
}

fn default_window() -> usize {
    WINDOW
}

/// A configuration that is about to be evaluated. Written before anything is done with it, so that
/// what it does to the machine can be told from the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Position in the order of the run.
    pub index: usize,
    /// The configuration as an identifier.
    pub id: String,
    /// What the operating system calls its own present start, where it says.
    pub boot: Option<String>,
}

/// What was asked for, of what, where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Identifies the run in its file.
    pub run: String,
    /// Seconds since 1970, UTC.
    pub unix_s: u64,
    /// Machine and tools.
    pub environment: Environment,
    /// Device, as given on the command line.
    pub device: String,
    /// What the device is.
    pub properties: DeviceProperties,
    /// Name of the workload.
    pub workload: String,
    /// The problem that is timed, in words; of several batches the first one's.
    pub problem: String,
    /// Bytes that no kernel can do without (DESIGN, section 4); of several batches the geometric mean.
    pub floor_bytes: u64,
    /// The floor as a time: bytes over the data sheet's bandwidth, or operations over its peak. Of
    /// several batches the geometric mean.
    pub floor_us: f64,
    /// The batches that are timed, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<Batch>,
    /// Search strategy.
    pub strategy: String,
    /// Seed of the search and of the problems.
    pub seed: u64,
    /// Configurations to evaluate at most.
    pub budget: usize,
    /// Points of the space that keep all constraints.
    pub valid_configurations: u64,
    /// SHA-256 of the default configuration's source, which changes as the kernels do.
    #[serde(default)]
    pub kernel_source: String,
}

/// One of the batches of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Its kind.
    pub bucket: Bucket,
    /// In words.
    pub problem: String,
    /// See [`Run::floor_us`].
    pub floor_us: f64,
}

/// How an evaluation ended, in the words of the T4 results format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Compiled, checked and timed.
    Correct,
    /// Took longer than it may.
    Timeout,
    /// Does not compile.
    Compile,
    /// Cannot be loaded, launched or timed, or took its process with it.
    Runtime,
    /// A check or the oracle found a fault.
    Correctness,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Correct => "correct",
            Self::Timeout => "timeout",
            Self::Compile => "compile",
            Self::Runtime => "runtime",
            Self::Correctness => "correctness",
        })
    }
}

/// One configuration and everything found out about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The run.
    pub run: String,
    /// Position in the order of evaluation; 0 is the default configuration.
    pub index: usize,
    /// The configuration as an identifier.
    pub id: String,
    /// The configuration.
    pub spec: KernelSpec,
    /// How it ended.
    pub status: Status,
    /// Why, where it is not `correct`.
    pub detail: Option<String>,
    /// Problems it was checked on.
    pub cases: usize,
    /// Seed of the first of them; they are numbered upwards.
    pub first_case_seed: u64,
    /// Largest absolute error against the oracle.
    pub max_abs_error: f64,
    /// K and V bytes fetched over bytes selected, where the device counts.
    pub bytes_ratio: Option<f64>,
    /// Predicted or measured.
    pub basis: Basis,
    /// The GPU that measured it, as its machine calls it; `None` of predicted times, and where this was
    /// recorded before it was written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Microseconds, one entry per sample; of several batches the geometric means.
    pub samples_us: Vec<f64>,
    /// Median of the samples.
    pub time_us: Option<f64>,
    /// The samples by batch, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_batch: Vec<Timed>,
    /// Per launch what the cost model saw, for predicted times; of several batches on the first.
    pub predictions: Vec<Prediction>,
    /// What the GPU was like while these samples were taken, for measured times of one batch; `None` where nobody
    /// could tell, or where this was recorded before it was written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
    /// What each kernel takes on the device's architecture.
    pub resources: BTreeMap<String, Resources>,
    /// Dynamic shared memory of the decode kernel in bytes.
    pub shared_bytes: u64,
    /// Seconds of host time for rendering and compiling.
    pub compile_s: f64,
    /// Seconds of host time for checking.
    pub check_s: f64,
    /// Seconds of host time for timing.
    pub time_s: f64,
}

/// What a candidate took on one batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Microseconds, one entry per sample.
    pub samples_us: Vec<f64>,
    /// See [`Candidate::conditions`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
}

impl Candidate {
    /// One of which nothing is known yet but that it was begun.
    pub(crate) fn begun(
        run: &str,
        index: usize,
        spec: KernelSpec,
        basis: Basis,
        seed: u64,
    ) -> Self {
        Self {
            run: run.to_owned(),
            index,
            id: spec.to_string(),
            spec,
            status: Status::Runtime,
            detail: None,
            cases: 0,
            first_case_seed: seed,
            max_abs_error: 0.0,
            bytes_ratio: None,
            basis,
            device: None,
            samples_us: Vec::new(),
            time_us: None,
            by_batch: Vec::new(),
            predictions: Vec::new(),
            conditions: None,
            resources: BTreeMap::new(),
            shared_bytes: spec.configuration.shared_bytes(&spec.shape),
            compile_s: 0.0,
            check_s: 0.0,
            time_s: 0.0,
        }
    }
}

/// What a run chose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Winner {
    /// The run.
    pub run: String,
    /// The configuration.
    pub id: String,
    /// Its time in microseconds.
    pub time_us: f64,
    /// What that time may be; see [`Candidate::interval_us`].
    #[serde(default)]
    pub interval_us: Option<[f64; 2]>,
    /// Predicted or measured.
    pub basis: Basis,
    /// Time of the default configuration, where it was evaluated successfully.
    pub default_us: Option<f64>,
    /// The fastest other configuration.
    pub runner_up: Option<String>,
    /// Its time in microseconds; below the winner's where the two are tied.
    pub runner_up_us: Option<f64>,
    /// All others that may be as fast, in order of time.
    #[serde(default)]
    pub ties: Vec<String>,
    /// Time over the floor.
    pub over_floor: f64,
    /// By bucket, where several batches were timed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<BucketWinner>,
    /// Identifiers of the kernels that serve the buckets, the winner first; none for one batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shipped: Vec<String>,
}

/// What is best in one bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BucketWinner {
    /// The bucket.
    pub bucket: Bucket,
    /// The floor there in microseconds.
    pub floor_us: f64,
    /// The choice among candidates by their times there.
    pub winner: Box<Winner>,
    /// What the best of the shipped kernels takes there over the winner, less one.
    pub loss: f64,
}
