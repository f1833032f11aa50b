//! Kernel Tuner caches: `cache` maps `"v1,v2,…"` to a configuration with `time`, `times` and what
//! each step took, all in milliseconds.

use super::document::Document;
use super::{
    Entry, Failure, Object, Phases, Recording, Runs, duration, place, text, times, value_index,
};
use crate::search::Value;
use crate::search::parameters::Parameter;
use serde_json::Value as Json;

pub fn recording(document: &Document, cache: &[(String, Object)]) -> Result<Recording, String> {
    let header = &document.header;
    let names = names(header).map_err(|message| match document.is_cut {
        true => format!("{message}, which may have stood behind the place where it is cut off"),
        false => message,
    })?;
    let mut values: Vec<Vec<Value>> = Vec::with_capacity(names.len());
    for name in &names {
        let listed = header.get("tune_params").and_then(|all| all.get(name));
        let mut distinct = Vec::new();
        for value in listed.and_then(Json::as_array).into_iter().flatten() {
            place(name, &mut distinct, Value::from_json(value))?;
        }
        values.push(distinct);
    }
    let mut entries = Vec::with_capacity(cache.len());
    for (key, configuration) in cache {
        let point = names
            .iter()
            .zip(&mut values)
            .map(|(name, values)| value_index(name, values, configuration, key))
            .collect::<Result<_, _>>()?;
        entries.push(entry(point, configuration));
    }
    let parameters = names.into_iter().zip(values).map(|(n, v)| Parameter::new(n, v)).collect();
    Ok(Recording {
        device: text(header.get("device_name")),
        kernel: text(header.get("kernel_name")),
        problem: text(header.get("problem_size")),
        basis: None,
        parameters,
        entries,
        is_cut: document.is_cut,
    })
}

/// Names of the parameters: `tune_params_keys`, or the members of `tune_params`.
fn names(header: &Object) -> Result<Vec<String>, String> {
    if let Some(keys) = header.get("tune_params_keys").and_then(Json::as_array) {
        let name = |key: &Json| key.as_str().map(str::to_owned);
        return keys
            .iter()
            .map(name)
            .collect::<Option<_>>()
            .ok_or_else(|| "`tune_params_keys` is not a list of names".into());
    }
    let parameters = header.get("tune_params").and_then(Json::as_object);
    let parameters = parameters.ok_or("expected `tune_params_keys` or `tune_params`")?;
    Ok(parameters.keys().cloned().collect())
}

fn entry(point: Vec<usize>, configuration: &Object) -> Entry {
    let ms = |key: &str| duration(configuration.get(key)).unwrap_or(0.0);
    let phases = Phases {
        compile_ms: ms("compile_time"),
        verification_ms: ms("verification_time"),
        benchmark_ms: ms("benchmark_time"),
        framework_ms: ms("framework_time"),
        strategy_ms: ms("strategy_time"),
    };
    let runs = Runs {
        mean_ms: configuration.get("time").and_then(Json::as_f64),
        runs_ms: times(configuration.get("times")),
    };
    // Newer files name the error beside the time, others in its place.
    let error = configuration.get("__error__").filter(|error| !error.is_null());
    let failure =
        text(error).or_else(|| configuration.get("time").and_then(Json::as_str).map(str::to_owned));
    let result = match failure {
        Some(name) => Err(Failure::named(&name)),
        None if runs.objective_ms().is_none() => Err(Failure::Other("no time".into())),
        None => Ok(runs),
    };
    Entry { point, result, phases, measurements: Vec::new() }
}
