//! T4 results: a list of configurations with `times`, `invalidity` and `measurements`. Files in
//! use differ from the schema in the names of times, so both spellings are read.

use super::document::Document;
use super::{Entry, Failure, Object, Phases, Recording, Runs, duration, value_index};
use crate::search::Value;
use crate::search::parameters::Parameter;
use serde_json::Value as Json;
use std::cmp::Ordering;

pub fn recording(document: &Document, results: &[Object]) -> Result<Recording, String> {
    let milliseconds = unit(document)?;
    let configuration = |index: usize, result: &'_ Object| match result.get("configuration") {
        Some(Json::Object(configuration)) => Ok(configuration.clone()),
        _ => Err(format!("result {} has no `configuration`", index + 1)),
    };
    let mut names: Vec<String> = Vec::new();
    let mut values: Vec<Vec<Value>> = Vec::new();
    let mut entries = Vec::with_capacity(results.len());
    for (index, result) in results.iter().enumerate() {
        let configuration = configuration(index, result)?;
        if index == 0 {
            names = configuration.keys().cloned().collect();
            values = vec![Vec::new(); names.len()];
        }
        let key = (index + 1).to_string();
        let point = names
            .iter()
            .zip(&mut values)
            .map(|(name, values)| value_index(name, values, &configuration, &key))
            .collect::<Result<_, _>>()?;
        entries.push(entry(point, result, milliseconds));
    }
    sort_values(&mut values, &mut entries);
    let parameters = names.into_iter().zip(values).map(|(n, v)| Parameter::new(n, v)).collect();
    // Device, kernel and problem are in a file of metadata, if anywhere.
    Ok(Recording {
        device: None,
        kernel: None,
        problem: None,
        parameters,
        entries,
        is_cut: document.is_cut,
    })
}

/// Milliseconds of the file's unit of time.
fn unit(document: &Document) -> Result<f64, String> {
    let metadata = document.header.get("metadata");
    match metadata.and_then(|m| m.get("timeunit")).and_then(Json::as_str) {
        // "miliseconds" is how the public files spell it.
        None | Some("milliseconds" | "miliseconds" | "ms") => Ok(1.0),
        Some("seconds" | "s") => Ok(1e3),
        Some("microseconds" | "us") => Ok(1e-3),
        Some("nanoseconds" | "ns") => Ok(1e-6),
        Some(other) => Err(format!(
            "the unit of time is {other:?}; expected seconds, milliseconds, microseconds or \
             nanoseconds"
        )),
    }
}

fn entry(point: Vec<usize>, result: &Object, milliseconds: f64) -> Entry {
    let times = result.get("times");
    let time = |names: &[&str]| {
        names.iter().find_map(|name| duration(times?.get(name))).map(|time| time * milliseconds)
    };
    let runs = times.and_then(|t| t.get("runtimes")).and_then(Json::as_array);
    let runs_ms: Vec<f64> =
        runs.into_iter().flatten().filter_map(Json::as_f64).map(|t| t * milliseconds).collect();
    let benchmark = time(&["benchmark", "benchmark_time"]);
    let phases = Phases {
        compile_ms: time(&["compilation", "compilation_time"]).unwrap_or(0.0),
        verification_ms: time(&["validation"]).unwrap_or(0.0),
        // Files without it leave the runs themselves, a little less than what they took.
        benchmark_ms: benchmark.unwrap_or_else(|| runs_ms.iter().sum()),
        framework_ms: time(&["framework"]).unwrap_or(0.0),
        strategy_ms: time(&["search_algorithm"]).unwrap_or(0.0),
    };
    let measured = result.get("measurements").and_then(Json::as_array);
    let measured = measured.into_iter().flatten();
    let measured = measured.clone().find(|m| m.get("name").is_some_and(|name| name == "time"));
    let mean = measured.and_then(|m| m.get("value")).and_then(Json::as_f64);
    let runs = Runs { mean_ms: mean.map(|t| t * milliseconds), runs_ms };
    let result = match result.get("invalidity").and_then(Json::as_str) {
        Some(invalidity) if invalidity != "correct" => Err(Failure::named(invalidity)),
        _ if runs.objective_ms().is_none() => Err(Failure::Other("no time".into())),
        _ => Ok(runs),
    };
    Entry { point, result, phases }
}

/// Puts the values of each parameter in order, since the file only has them in passing.
fn sort_values(values: &mut [Vec<Value>], entries: &mut [Entry]) {
    for (parameter, values) in values.iter_mut().enumerate() {
        let mut order: Vec<usize> = (0..values.len()).collect();
        let comparable = values.windows(2).all(|w| w[0].order(&w[1]).is_some());
        if !comparable {
            continue;
        }
        order.sort_by(|a, b| values[*a].order(&values[*b]).unwrap_or(Ordering::Equal));
        let mut rank = vec![0; order.len()];
        for (new, old) in order.iter().enumerate() {
            rank[*old] = new;
        }
        *values = order.iter().map(|old| values[*old].clone()).collect();
        for entry in entries.iter_mut() {
            entry.point[parameter] = rank[entry.point[parameter]];
        }
    }
}
