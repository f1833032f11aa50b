//! Journals of our own runs: what was evaluated, as a recorded space.

use super::{Entry, Failure, FormatError, Measurement, Phases, Recording, Runs};
use crate::journal::{Kept, parse};
use crate::packed::Plain;
use crate::record::{Candidate, Status};
use crate::search::Value;
use crate::search::parameters::Parameter;
use serde_json::Value as Json;
use spanforge_kernels::Limits;
use std::path::Path;

/// Whether the first line is one of a journal.
pub fn is_journal(bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice::<Json>(first).is_ok_and(|line| line.get("record").is_some())
}

/// The evaluated configurations in their order, of all parameters of the run's space.
pub fn recording(file: &str, plain: &Plain<'_>) -> Result<Recording, FormatError> {
    let path = Path::new(file);
    let kept = Kept::from(path, parse(path, &plain.bytes)?)?;
    let content = |message: String| FormatError::Content { file: file.to_owned(), message };
    let shape = kept.study.workload.attention.kernel_shape();
    let space = kept
        .study
        .space(shape.map_err(|e| content(e.to_string()))?, Limits::of(&kept.run.properties));
    let parameters = space.parameters().iter().map(|parameter| {
        let value = |at: usize| match parameter.words {
            [] => Value::Int(i64::from(parameter.values[at])),
            _ => Value::Text(parameter.text(at)),
        };
        Parameter::new(parameter.name, (0..parameter.values.len()).map(value).collect())
    });
    let parameters = parameters.collect();
    let mut entries = Vec::with_capacity(kept.candidates.len());
    for candidate in kept.candidates.values() {
        let point = space.point_of(&candidate.spec.configuration).ok_or_else(|| {
            content(format!("{} is not in the search space of this version", candidate.id))
        })?;
        entries.push(entry(point, candidate));
    }
    if entries.is_empty() {
        return Err(FormatError::NoConfigurations { file: file.to_owned() });
    }
    Ok(Recording {
        device: Some(kept.run.properties.name.clone()),
        kernel: Some(format!("span_decode_{shape}", shape = space.shape())),
        problem: Some(format!("{}: {}", kept.run.workload, kept.run.problem)),
        basis: Some(kept.run.properties.basis),
        parameters,
        entries,
        is_cut: plain.is_cut || kept.winner.is_none(),
    })
}

fn entry(point: Vec<usize>, candidate: &Candidate) -> Entry {
    let runs_ms: Vec<f64> = candidate.samples_us.iter().map(|us| us / 1e3).collect();
    let mean_ms = runs_ms.iter().sum::<f64>() / runs_ms.len() as f64;
    let result = match candidate.status {
        Status::Correct => Ok(Runs { mean_ms: mean_ms.is_finite().then_some(mean_ms), runs_ms }),
        Status::Timeout => Err(Failure::Timeout),
        Status::Compile => Err(Failure::Compile),
        Status::Runtime => Err(Failure::Runtime),
        Status::Correctness => Err(Failure::Correctness),
    };
    let phases = Phases {
        compile_ms: 1e3 * candidate.compile_s,
        verification_ms: 1e3 * candidate.check_s,
        benchmark_ms: 1e3 * candidate.time_s,
        ..Phases::default()
    };
    let registers = candidate.resources.values().map(|r| r.registers).max();
    let spills = registers.map(|_| f64::from(candidate.spill_bytes()));
    let known = [
        ("checked_problems", Some(candidate.cases as f64), ""),
        ("max_abs_error", (candidate.cases > 0).then_some(candidate.max_abs_error), ""),
        ("kv_bytes_fetched_over_selected", candidate.bytes_ratio, ""),
        ("registers", registers.map(f64::from), ""),
        ("spills", spills, "bytes"),
        ("dynamic_shared_memory", Some(candidate.shared_bytes as f64), "bytes"),
    ];
    let measurements = known
        .into_iter()
        .filter_map(|(name, value, unit)| Some(Measurement { name, value: value?, unit }))
        .collect();
    Entry { point, result, phases, measurements }
}
