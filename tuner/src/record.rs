//! What is kept of a run: one JSON object per line, appended, never rewritten. A line is whole or it
//! is not there; readers skip a last line that a crash has cut short.
//!
//! A file holds `run` lines, each followed by the `candidate` lines of that run and a `winner` line.

use crate::environment::Environment;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use spanforge_device::{Basis, DeviceProperties, Prediction, Resources};
use spanforge_kernels::KernelSpec;
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// One line of a results file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// The beginning of a run.
    Run(Box<Run>),
    /// One configuration.
    Candidate(Box<Candidate>),
    /// The end of a run.
    Winner(Winner),
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
    /// The problem that is timed, in words.
    pub problem: String,
    /// Bytes that no kernel can do without (DESIGN, section 4).
    pub floor_bytes: u64,
    /// The floor as a time: bytes over the data sheet's bandwidth, or operations over its peak.
    pub floor_us: f64,
    /// Search strategy.
    pub strategy: String,
    /// Seed of the search and of the problems.
    pub seed: u64,
    /// Configurations to evaluate at most.
    pub budget: usize,
    /// Points of the space that keep all constraints.
    pub valid_configurations: u64,
}

/// How an evaluation ended, in the words of the T4 results format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Compiled, checked and timed.
    Correct,
    /// Does not compile.
    Compile,
    /// Cannot be loaded, launched or timed.
    Runtime,
    /// A check or the oracle found a fault.
    Correctness,
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
    /// Microseconds, one entry per sample.
    pub samples_us: Vec<f64>,
    /// Median of the samples.
    pub time_us: Option<f64>,
    /// Per launch what the cost model saw, for predicted times.
    pub predictions: Vec<Prediction>,
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

/// What a run chose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Winner {
    /// The run.
    pub run: String,
    /// The configuration.
    pub id: String,
    /// Its time in microseconds.
    pub time_us: f64,
    /// Predicted or measured.
    pub basis: Basis,
    /// Time of the default configuration, where it was evaluated successfully.
    pub default_us: Option<f64>,
    /// The next best configuration.
    pub runner_up: Option<String>,
    /// Its time in microseconds.
    pub runner_up_us: Option<f64>,
    /// Time over the floor.
    pub over_floor: f64,
}

/// A results file that is appended to.
pub struct Log {
    file: fs::File,
}

impl Log {
    /// Opens or creates the file and its folder.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::OpenOptions::new().create(true).read(true).append(true).open(path)?;
        // A line that a crash has cut short is ended, so that it spoils no other.
        if file.metadata()?.len() > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self { file })
    }

    /// Appends one line in one write.
    pub fn append(&mut self, record: &Record) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

/// Reads a results file. A line that a crash has cut short is left out; a whole line that is not a
/// record is an error that names it.
pub fn read(path: &Path) -> std::io::Result<Vec<Record>> {
    let text = fs::read_to_string(path)?;
    let mut records = Vec::new();
    for (index, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(record) => records.push(record),
            Err(e) if e.is_eof() => {}
            Err(e) => {
                let place = format!("{}:{}: not a record: {e}", path.display(), index + 1);
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, place));
            }
        }
    }
    Ok(records)
}
