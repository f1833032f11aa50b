//! Recorded search spaces, of other tools (Kernel Tuner caches and T4 results) and of our own
//! journals, and descriptions of search spaces (T1). Read leniently, since files in use differ from
//! the schemas; written strictly, in [`write`].

mod document;
mod journal;
mod kernel_tuner;
pub mod t1;
mod t4;
pub mod write;

use crate::journal::JournalError;
use crate::packed::Plain;
use crate::search::parameters::{MOST_VALUES, Parameter};
use crate::search::{Point, Value};
use document::Document;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json};
use spanforge_device::{Basis, median};
use std::fmt;
use std::path::Path;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It cannot be read; the error names the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It is damaged gzip data, or implausibly large.
    #[error("{file}: {error}")]
    Packed {
        /// The file.
        file: String,
        /// What is wrong.
        error: std::io::Error,
    },
    /// It is not JSON.
    #[error("{file} is not a JSON object: {error}")]
    Json {
        /// The file.
        file: String,
        /// What the reader says, with line and column.
        error: serde_json::Error,
    },
    /// It is JSON of another kind.
    #[error(
        "{file} is neither a Kernel Tuner cache, which has a `cache`, nor a T4 file, which has \
         `results`, nor a journal of `spanforge tune`"
    )]
    UnknownFormat {
        /// The file.
        file: String,
    },
    /// It records nothing.
    #[error("{file} does not hold a single whole configuration")]
    NoConfigurations {
        /// The file.
        file: String,
    },
    /// A journal of ours that cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Something in it is missing or does not fit.
    #[error("{file}: {message}")]
    Content {
        /// The file.
        file: String,
        /// Where and what.
        message: String,
    },
}

/// Why a configuration has no time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It did not compile.
    Compile,
    /// It could not be launched, or crashed.
    Runtime,
    /// It broke a constraint.
    Constraints,
    /// It took too long.
    Timeout,
    /// It computed something wrong.
    Correctness,
    /// What the file says instead.
    Other(String),
}

impl Failure {
    /// The failure of a name in any spelling in use.
    fn named(name: &str) -> Self {
        let plain = name.to_ascii_lowercase();
        let is = |part: &str| plain.contains(part);
        if is("compil") {
            Self::Compile
        } else if is("runtime") || is("computationfailed") {
            Self::Runtime
        } else if is("timeout") {
            Self::Timeout
        } else if is("correctness") || is("validation") || is("verification") {
            Self::Correctness
        } else if is("invalid") || is("constraint") {
            Self::Constraints
        } else {
            Self::Other(name.to_owned())
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compile => "compile",
            Self::Runtime => "runtime",
            Self::Constraints => "constraints",
            Self::Timeout => "timeout",
            Self::Correctness => "correctness",
            Self::Other(text) => text,
        })
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How long the steps of one configuration took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Phases {
    /// Compiling.
    pub compile_ms: f64,
    /// Checking the output.
    pub verification_ms: f64,
    /// All timed runs, with what goes with them.
    pub benchmark_ms: f64,
    /// The tool's own work.
    pub framework_ms: f64,
    /// Choosing the configuration.
    pub strategy_ms: f64,
}

/// Times of a configuration that ran, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runs {
    /// The mean as the file gives it.
    pub mean_ms: Option<f64>,
    /// Each run in order, the first of which found cold caches and clocks.
    pub runs_ms: Vec<f64>,
}

impl Runs {
    /// The median of all runs but the first, in milliseconds; the mean that the file gives where it
    /// lists fewer than two runs; `None` where there is neither.
    ///
    /// That mean includes the first run, which is up to twice as slow as the others on some GPUs
    /// (16.5 ms instead of 7.6 on a W6600), and moves with clocks that settle during the runs; the
    /// median of warm runs is what a kernel in use takes.
    pub fn objective_ms(&self) -> Option<f64> {
        let plausible = |time: &f64| time.is_finite() && *time > 0.0 && *time < NO_TIME_MS;
        let warm = self.runs_ms.get(1..).unwrap_or_default();
        if !warm.iter().all(plausible) {
            return None;
        }
        let given = || self.mean_ms.or(self.runs_ms.first().copied());
        median(warm).or_else(given).filter(plausible)
    }
}

/// Old caches mark failures with a time of 1e20.
const NO_TIME_MS: f64 = 1e19;

/// A configuration and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Value index of each parameter.
    pub point: Point,
    /// Its times, or why there are none.
    pub result: Result<Runs, Failure>,
    /// What finding that out took.
    pub phases: Phases,
    /// What else is known of it, of our own runs.
    pub measurements: Vec<Measurement>,
}

/// A named number that belongs to a configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// What it is, such as `registers`.
    pub name: &'static str,
    /// The number.
    pub value: f64,
    /// Its unit, such as `bytes`; empty for a count.
    pub unit: &'static str,
}

/// A recorded search space.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Name of the device, where the file gives one.
    pub device: Option<String>,
    /// Name of the kernel, where the file gives one.
    pub kernel: Option<String>,
    /// Problem size, where the file gives one.
    pub problem: Option<String>,
    /// Whether the times were measured or predicted, where the file says.
    pub basis: Option<Basis>,
    /// Parameters and their values.
    pub parameters: Vec<Parameter>,
    /// Configurations in the order of the file.
    pub entries: Vec<Entry>,
    /// Whether the file ends before its text does, as after an interrupted run: only the
    /// configurations that are whole are here.
    pub is_cut: bool,
}

impl Recording {
    /// Reads a Kernel Tuner cache, a T4 file or a journal of ours, gzip or plain, also where it is
    /// cut off.
    ///
    /// # Errors
    /// The file cannot be read, is none of them, holds no whole configuration, or a configuration in it
    /// lacks a parameter.
    pub fn read(path: &Path) -> Result<Self, FormatError> {
        Self::from_bytes(&path.display().to_string(), &fs_err::read(path)?)
    }

    /// Reads the contents of a file, which errors call `file`.
    ///
    /// # Errors
    /// As [`Recording::read`].
    pub fn from_bytes(file: &str, bytes: &[u8]) -> Result<Self, FormatError> {
        let plain = Plain::read(bytes)
            .map_err(|error| FormatError::Packed { file: file.to_owned(), error })?;
        if journal::is_journal(&plain.bytes) {
            return journal::recording(file, &plain);
        }
        let document = Document::read(file, plain)?;
        let recording = match (&document.cache, &document.results) {
            (Some(cache), _) => kernel_tuner::recording(&document, cache),
            (None, Some(results)) => t4::recording(&document, results),
            // The cut may have been before the configurations.
            (None, None) if document.is_cut => {
                return Err(FormatError::NoConfigurations { file: file.to_owned() });
            }
            (None, None) => return Err(FormatError::UnknownFormat { file: file.to_owned() }),
        };
        let recording =
            recording.map_err(|message| FormatError::Content { file: file.to_owned(), message })?;
        if recording.entries.is_empty() {
            return Err(FormatError::NoConfigurations { file: file.to_owned() });
        }
        Ok(recording)
    }
}

type Object = Map<String, Json>;

/// The value of a parameter in the configuration `entry`, as an index; a value that is not listed
/// yet is added.
fn value_index(
    parameter: &str,
    values: &mut Vec<Value>,
    configuration: &Object,
    entry: &str,
) -> Result<usize, String> {
    let json = configuration
        .get(parameter)
        .ok_or_else(|| format!("configuration {entry} has no `{parameter}`"))?;
    place(parameter, values, Value::from_json(json))
}

/// The index of a value among the values of a parameter, to which it is added where it is new.
fn place(parameter: &str, values: &mut Vec<Value>, value: Value) -> Result<usize, String> {
    if let Some(index) = values.iter().position(|known| *known == value) {
        return Ok(index);
    }
    if values.len() >= MOST_VALUES {
        return Err(format!("parameter `{parameter}` has more than {MOST_VALUES} values"));
    }
    values.push(value);
    Ok(values.len() - 1)
}

/// A number that is neither negative nor infinite.
fn duration(json: Option<&Json>) -> Option<f64> {
    json.and_then(Json::as_f64).filter(|ms| ms.is_finite() && *ms >= 0.0)
}

/// Times of runs; what is not a number stays as one that is none, so that it is not overlooked.
fn times(json: Option<&Json>) -> Vec<f64> {
    let times = json.and_then(Json::as_array).into_iter().flatten();
    times.map(|time| time.as_f64().unwrap_or(f64::NAN)).collect()
}

fn text(json: Option<&Json>) -> Option<String> {
    match json? {
        Json::Null => None,
        Json::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
