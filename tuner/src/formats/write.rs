//! Recorded spaces written for other tools, exactly as their schemas and their own files have them.

use super::{Entry, Failure, Measurement, Recording};
use crate::search::Value;
use crate::search::parameters::Parameter;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;
use spanforge_device::Basis;
use std::collections::BTreeMap;

impl Recording {
    /// A T4 results file (schema 1.0.0), times in milliseconds. `correctness` is 1 for a
    /// configuration that passed every check against the reference, else 0; what it was checked on is
    /// among the measurements. Compile times are there under both names that are in use.
    ///
    /// # Errors
    /// Names that JSON cannot hold, which there are none of.
    pub fn to_t4(&self) -> serde_json::Result<String> {
        let file = T4 {
            schema_version: "1.0.0",
            metadata: Metadata {
                timeunit: "milliseconds",
                device: &self.device,
                kernel: &self.kernel,
                problem: &self.problem,
                basis: self.basis,
            },
            results: self.entries.iter().map(|entry| T4Result::new(self, entry)).collect(),
        };
        serde_json::to_string_pretty(&file)
    }

    /// A Kernel Tuner cache, as version 1 of it reads and continues it, times in milliseconds.
    ///
    /// # Errors
    /// As [`Recording::to_t4`].
    pub fn to_kernel_tuner(&self) -> serde_json::Result<String> {
        let problem = self.problem.as_deref().unwrap_or("unknown");
        let file = Cache {
            device_name: self.device.as_deref().unwrap_or("unknown"),
            kernel_name: self.kernel.as_deref().unwrap_or("unknown"),
            // Numbers where they were numbers.
            problem_size: serde_json::from_str(problem).unwrap_or_else(|_| problem.into()),
            basis: self.basis,
            tune_params_keys: self.parameters.iter().map(|p| p.name.as_str()).collect(),
            tune_params: InOrder(
                self.parameters.iter().map(|p| (p.name.as_str(), &p.values)).collect(),
            ),
            objective: "time",
            cache: InOrder(self.entries.iter().map(|entry| self.cached(entry)).collect()),
        };
        serde_json::to_string_pretty(&file)
    }

    fn cached<'a>(&'a self, entry: &'a Entry) -> (String, CacheEntry<'a>) {
        let values = values(&self.parameters, entry);
        let key: Vec<String> = values.iter().map(|(_, value)| value.to_string()).collect();
        let error = entry.result.as_ref().err().map(|failure| match failure {
            Failure::Compile => "CompilationFailedConfig",
            Failure::Constraints => "InvalidConfig",
            Failure::Runtime | Failure::Timeout | Failure::Correctness | Failure::Other(_) => {
                "RuntimeFailedConfig"
            }
        });
        let runs = entry.result.as_ref().ok();
        let phases = &entry.phases;
        let cached = CacheEntry {
            configuration: InOrder(values),
            time: match error {
                Some(error) => error.into(),
                None => runs.and_then(|runs| runs.mean_ms.or_else(|| runs.objective_ms())).into(),
            },
            times: runs.map(|runs| runs.runs_ms.as_slice()),
            error,
            compile_time: phases.compile_ms,
            verification_time: phases.verification_ms,
            benchmark_time: phases.benchmark_ms,
            strategy_time: phases.strategy_ms,
            framework_time: phases.framework_ms,
            measurements: entry.measurements.iter().map(|m| (m.name, m.value)).collect(),
        };
        (key.join(","), cached)
    }
}

type Named<'a> = Vec<(&'a str, &'a Value)>;

fn values<'a>(parameters: &'a [Parameter], entry: &Entry) -> Named<'a> {
    let values = parameters.iter().zip(&entry.point);
    values.map(|(p, index)| (p.name.as_str(), &p.values[*index])).collect()
}

/// An object whose members keep their order, which readers take for that of the parameters.
struct InOrder<K, V>(Vec<(K, V)>);

impl<K: Serialize, V: Serialize> Serialize for InOrder<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

#[derive(Serialize)]
struct T4<'a> {
    schema_version: &'static str,
    metadata: Metadata<'a>,
    results: Vec<T4Result<'a>>,
}

/// What T4 leaves to other files, so that this one says what it is of.
#[derive(Serialize)]
struct Metadata<'a> {
    timeunit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    basis: Option<Basis>,
}

#[derive(Serialize)]
struct T4Result<'a> {
    configuration: InOrder<&'a str, &'a Value>,
    times: Times<'a>,
    invalidity: String,
    correctness: u8,
    measurements: Vec<T4Measurement<'a>>,
    objectives: [&'static str; 1],
}

#[derive(Serialize)]
struct Times<'a> {
    compilation_time: f64,
    /// The same as files in use spell it.
    compilation: f64,
    benchmark: f64,
    framework: f64,
    search_algorithm: f64,
    validation: f64,
    runtimes: &'a [f64],
}

#[derive(Serialize)]
struct T4Measurement<'a> {
    name: &'a str,
    value: f64,
    unit: &'a str,
}

impl<'a> T4Result<'a> {
    fn new(recording: &'a Recording, entry: &'a Entry) -> Self {
        let runs = entry.result.as_ref().ok();
        let phases = &entry.phases;
        let mean = runs.and_then(|runs| runs.mean_ms.or_else(|| runs.objective_ms()));
        let time = mean.map(|value| T4Measurement { name: "time", value, unit: "ms" });
        let others = entry.measurements.iter();
        let others = others.map(|Measurement { name, value, unit }| T4Measurement {
            name,
            value: *value,
            unit,
        });
        Self {
            configuration: InOrder(values(&recording.parameters, entry)),
            times: Times {
                compilation_time: phases.compile_ms,
                compilation: phases.compile_ms,
                benchmark: phases.benchmark_ms,
                framework: phases.framework_ms,
                search_algorithm: phases.strategy_ms,
                validation: phases.verification_ms,
                runtimes: runs.map_or(&[], |runs| &runs.runs_ms),
            },
            invalidity: match &entry.result {
                Ok(_) => "correct".to_owned(),
                // The schema has no other word for what went wrong somehow.
                Err(Failure::Other(_)) => Failure::Runtime.to_string(),
                Err(failure) => failure.to_string(),
            },
            correctness: u8::from(entry.result.is_ok()),
            measurements: time.into_iter().chain(others).collect(),
            objectives: ["time"],
        }
    }
}

#[derive(Serialize)]
struct Cache<'a> {
    device_name: &'a str,
    kernel_name: &'a str,
    problem_size: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    basis: Option<Basis>,
    tune_params_keys: Vec<&'a str>,
    tune_params: InOrder<&'a str, &'a Vec<Value>>,
    objective: &'static str,
    cache: InOrder<String, CacheEntry<'a>>,
}

#[derive(Serialize)]
struct CacheEntry<'a> {
    #[serde(flatten)]
    configuration: InOrder<&'a str, &'a Value>,
    time: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    times: Option<&'a [f64]>,
    #[serde(rename = "__error__", skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    compile_time: f64,
    verification_time: f64,
    benchmark_time: f64,
    strategy_time: f64,
    framework_time: f64,
    #[serde(flatten)]
    measurements: BTreeMap<&'static str, f64>,
}
