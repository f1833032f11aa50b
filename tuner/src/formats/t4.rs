//! T4 results: a list of configurations with `times`, `invalidity` and `measurements`. Files in
//! use differ from the schema in the names of times, so both spellings are read.

use super::document::Document;
use super::{Entry, Failure, Object, Phases, Recording, Runs, duration, value_index};
use crate::search::Value;
use crate::search::parameters::Parameter;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value as Json;
use std::cmp::Ordering;
use std::fmt;

/// A configuration and what became of it, as the file has it.
#[derive(Debug, Deserialize)]
pub struct Recorded {
    configuration: Option<Configuration>,
    times: Option<Json>,
    invalidity: Option<String>,
    measurements: Option<Json>,
}

/// Parameters by name, and the names in the order of the file, which no other part of it gives.
#[derive(Debug)]
struct Configuration {
    names: Vec<String>,
    values: Object,
}

impl<'de> Deserialize<'de> for Configuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Configuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Configuration, A::Error> {
                let mut found = Configuration { names: Vec::new(), values: Object::new() };
                while let Some((name, value)) = map.next_entry::<String, Json>()? {
                    if found.values.insert(name.clone(), value).is_none() {
                        found.names.push(name);
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

pub fn recording(document: &Document, results: &[Recorded]) -> Result<Recording, String> {
    let milliseconds = unit(document)?;
    let mut names: Vec<String> = Vec::new();
    let mut values: Vec<Vec<Value>> = Vec::new();
    let mut entries = Vec::with_capacity(results.len());
    for (index, result) in results.iter().enumerate() {
        let Some(configuration) = &result.configuration else {
            return Err(format!("result {} has no `configuration`", index + 1));
        };
        if index == 0 {
            names.clone_from(&configuration.names);
            values = vec![Vec::new(); names.len()];
        }
        let key = (index + 1).to_string();
        let point = names
            .iter()
            .zip(&mut values)
            .map(|(name, values)| value_index(name, values, &configuration.values, &key))
            .collect::<Result<_, _>>()?;
        entries.push(entry(point, result, milliseconds));
    }
    sort_values(&mut values, &mut entries);
    let parameters = names.into_iter().zip(values).map(|(n, v)| Parameter::new(n, v)).collect();
    // Device, kernel and problem are in a file of metadata, if anywhere.
    Ok(Recording { parameters, entries, is_cut: document.is_cut, ..Recording::default() })
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

fn entry(point: Vec<usize>, result: &Recorded, milliseconds: f64) -> Entry {
    let times = result.times.as_ref();
    let time = |names: &[&str]| {
        names.iter().find_map(|name| duration(times?.get(name))).map(|time| time * milliseconds)
    };
    let runs = super::times(times.and_then(|times| times.get("runtimes")));
    let runs_ms: Vec<f64> = runs.into_iter().map(|run| run * milliseconds).collect();
    let benchmark = time(&["benchmark", "benchmark_time"]);
    let phases = Phases {
        compile_ms: time(&["compilation", "compilation_time"]).unwrap_or(0.0),
        verification_ms: time(&["validation"]).unwrap_or(0.0),
        // Files without it leave the runs themselves, a little less than what they took.
        benchmark_ms: benchmark.unwrap_or_else(|| runs_ms.iter().filter(|t| t.is_finite()).sum()),
        framework_ms: time(&["framework"]).unwrap_or(0.0),
        strategy_ms: time(&["search_algorithm"]).unwrap_or(0.0),
    };
    let measured = result.measurements.as_ref().and_then(Json::as_array);
    let measured =
        measured.into_iter().flatten().find(|m| m.get("name").is_some_and(|name| name == "time"));
    let mean = measured.and_then(|m| m.get("value")).and_then(Json::as_f64);
    let runs = Runs { mean_ms: mean.map(|t| t * milliseconds), runs_ms };
    let result = match result.invalidity.as_deref() {
        Some(invalidity) if invalidity != "correct" => Err(Failure::named(invalidity)),
        _ if runs.objective_ms().is_none() => Err(Failure::Other("no time".into())),
        _ => Ok(runs),
    };
    Entry { point, result, phases, measurements: Vec::new() }
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
