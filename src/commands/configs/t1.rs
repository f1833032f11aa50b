//! The search space that a T1 file describes.

use crate::commands::{Outcome, write_json};
use crate::table::{Table, grouped};
use anyhow::{Result, bail};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use spanforge_tuner::formats::t1;
use spanforge_tuner::search::parameters::{self, Parameter};
use spanforge_tuner::search::{ParameterSpace, Space as _, Value};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

#[derive(Serialize)]
struct Space {
    parameters: Vec<Values>,
    /// Points of the product, and valid ones, where they can be counted.
    points: Option<u64>,
    valid: Option<u64>,
    constraints: Vec<Constraint>,
    configurations: Vec<BTreeMap<String, Value>>,
}

#[derive(Serialize)]
struct Values {
    name: String,
    values: Vec<Value>,
}

#[derive(Serialize)]
struct Constraint {
    expression: String,
    /// Share of all points that break it and none before it, of points drawn at random.
    pruned_share: f64,
}

/// Points drawn to see what constraints prune.
const DRAWN: usize = 20_000;

/// Describes the space with some of its configurations: the first `limit`, or `sample` at random.
pub fn run(
    file: &Path,
    limit: usize,
    sample: Option<u32>,
    json: bool,
    out: &mut dyn Write,
) -> Result<Outcome> {
    let space = t1::read(file)?;
    if let Some(constraint) = space.contradiction() {
        bail!(
            "{}: no configuration keeps all conditions: with `{}` none is left",
            file.display(),
            constraint.name
        );
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let points: Vec<_> = match sample {
        Some(count) => (0..count).map_while(|_| space.sample(&mut rng)).collect(),
        None => space.points().take(limit).collect(),
    };
    let sizes = space.sizes();
    let shares = space.pruned_shares(DRAWN, &mut rng);
    let constraint = |(constraint, pruned_share): (&parameters::Constraint, f64)| Constraint {
        expression: constraint.name.clone(),
        pruned_share,
    };
    let described = Space {
        parameters: space.parameters().iter().map(values).collect(),
        points: sizes.iter().try_fold(1_u64, |product, size| product.checked_mul(*size as u64)),
        valid: space.count_valid(),
        constraints: space.constraints().iter().zip(shares).map(constraint).collect(),
        configurations: points.iter().map(|point| configuration(&space, point)).collect(),
    };
    if json {
        write_json(out, &described)?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(&["parameter", "values"], &[]);
    for Values { name, values } in &described.parameters {
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        table.row([name.clone(), values.join(" ")]);
    }
    table.write(out, "")?;
    let count = |count: Option<u64>| count.map_or_else(|| "too many to count".into(), grouped);
    writeln!(out, "\n{} points, {} valid\n", count(described.points), count(described.valid))?;
    let mut table = Table::new(&["pruned", "by the condition"], &[0]);
    for Constraint { expression, pruned_share } in &described.constraints {
        table.row([format!("{:.1} %", 100.0 * pruned_share), expression.clone()]);
    }
    table.write(out, "")?;
    writeln!(out)?;
    for configuration in &described.configurations {
        let values: Vec<String> =
            configuration.iter().map(|(name, value)| format!("{name}={value}")).collect();
        writeln!(out, "{}", values.join(" "))?;
    }
    Ok(Outcome::Done)
}

fn values(parameter: &Parameter) -> Values {
    Values { name: parameter.name.clone(), values: parameter.values.clone() }
}

fn configuration(space: &ParameterSpace, point: &[usize]) -> BTreeMap<String, Value> {
    let names = space.parameters().iter().map(|p| p.name.clone());
    names.zip(space.values(point).cloned()).collect()
}
