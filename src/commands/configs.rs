//! `configs`: the search space of a shape, and what its constraints leave of it.

mod t1;

use super::kernel_choice::{LimitsArgument, ShapeArguments, default_spec};
use super::{Outcome, write_json};
use crate::table::{Table, grouped};
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use spanforge_kernels::space::{CONSTRAINTS, Parameter};
use spanforge_kernels::{KernelSpec, SearchSpace};
use std::io::Write;
use std::path::PathBuf;

/// List the configurations of a shape, and what each constraint prunes
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge configs\n  \
    spanforge configs --dtype bf16 --head-dim 256 --query-heads 24 --kv-heads 4 --limit 5\n  \
    spanforge configs --device emulated:l4 --all --json\n  \
    spanforge configs --t1 gemm.json --sample 5")]
pub struct Arguments {
    #[command(flatten)]
    shape: ShapeArguments,
    #[command(flatten)]
    limits: LimitsArgument,
    /// Describe the space of a T1 file of another kernel instead
    #[arg(
        long,
        value_name = "FILE.json",
        conflicts_with_all = [
            "dtype", "head_dim", "group_size", "query_heads", "kv_heads", "queries", "device", "ids", "all",
        ]
    )]
    t1: Option<PathBuf>,
    /// How many ids to list
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// List every id
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// List N ids at even distances over the whole space (of a T1 file: at random)
    #[arg(long, value_name = "N", conflicts_with_all = ["limit", "all"])]
    sample: Option<u32>,
    /// Print the ids alone, one per line
    #[arg(long, conflicts_with = "json")]
    ids: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Space {
    shape: String,
    device: String,
    parameters: Vec<Values>,
    points: u64,
    valid: u64,
    pruned: Vec<Pruned>,
    default_id: String,
    default: KernelSpec,
    ids: Vec<String>,
}

#[derive(Serialize)]
struct Values {
    name: &'static str,
    values: Vec<String>,
}

#[derive(Serialize)]
struct Pruned {
    constraint: &'static str,
    points: u64,
    reason: &'static str,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    if let Some(file) = &arguments.t1 {
        return t1::run(file, arguments.limit, arguments.sample, arguments.json, out);
    }
    let shape = arguments.shape.shape()?;
    let limits = arguments.limits.limits()?;
    let queries = arguments.shape.queries();
    let default = default_spec(shape, queries, limits)?;
    let space = SearchSpace::for_rows(shape, limits, queries);
    let census = space.census();
    let pruned = census.pruned.iter().zip(&CONSTRAINTS);
    let ids = space.valid().zip(0..).filter(|(_, index)| listed(arguments, *index, census.valid));
    let space = Space {
        shape: shape.to_string(),
        device: arguments.limits.name().to_owned(),
        parameters: space.parameters().iter().map(values).collect(),
        points: census.points,
        valid: census.valid,
        pruned: pruned
            .map(|((constraint, points), rule)| Pruned {
                constraint,
                points: *points,
                reason: rule.reason,
            })
            .collect(),
        default_id: default.to_string(),
        default,
        ids: ids
            .map(|(configuration, _)| KernelSpec { shape, configuration }.to_string())
            .collect(),
    };
    if arguments.json {
        write_json(out, &space)?;
    } else if arguments.ids {
        space.ids.iter().try_for_each(|id| writeln!(out, "{id}"))?;
    } else {
        print(&space, out)?;
    }
    Ok(Outcome::Done)
}

/// Whether valid configuration number `index` of `valid` is listed.
fn listed(arguments: &Arguments, index: u64, valid: u64) -> bool {
    match arguments.sample {
        // The middle of each of N equal parts: those that index * N / valid steps into.
        Some(count) => {
            let count = u128::from(count);
            let part = |index: u64| {
                (2 * u128::from(index) * count + u128::from(valid)) / (2 * u128::from(valid).max(1))
            };
            part(index + 1) > part(index)
        }
        None => arguments.all || index < arguments.limit as u64,
    }
}

fn values(parameter: &Parameter) -> Values {
    let values = (0..parameter.values.len()).map(|index| parameter.text(index)).collect();
    Values { name: parameter.name, values }
}

fn print(space: &Space, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "shape {} within the limits of {}\n", space.shape, space.device)?;
    let mut table = Table::new(&["parameter", "values"], &[]);
    for parameter in &space.parameters {
        table.row([parameter.name.to_owned(), parameter.values.join(" ")]);
    }
    table.write(out, "")?;
    writeln!(out)?;
    let mut table = Table::new(&["points", "", ""], &[0]);
    table.row([grouped(space.points), "in the space".into(), String::new()]);
    for pruned in &space.pruned {
        let name = format!("pruned by {}", pruned.constraint);
        table.row([grouped(pruned.points), name, pruned.reason.to_owned()]);
    }
    table.row([grouped(space.valid), "valid".into(), String::new()]);
    table.write(out, "")?;
    writeln!(out, "\ndefault\n  {}", space.default_id)?;
    let left = space.valid - space.ids.len() as u64;
    writeln!(
        out,
        "\n{} of {} valid configurations",
        grouped(space.ids.len() as u64),
        grouped(space.valid)
    )?;
    for id in &space.ids {
        writeln!(out, "  {id}")?;
    }
    if left > 0 {
        writeln!(out, "  and {} more: --all lists them", grouped(left))?;
    }
    Ok(())
}
