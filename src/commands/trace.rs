//! `trace`: decode traces, generated and described.

use super::{Outcome, write_json};
use crate::atomic_file;
use crate::notice;
use crate::table::{Table, grouped};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use fs_err::File;
use serde::Serialize;
use spanforge_spans::trace::{Description, Percentiles, Preset, Trace, TraceHeader};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

/// Generate and describe decode traces
///
/// A trace says what each decode step of some responses attends to; `tune` takes one in place of a
/// workload preset. docs/traces.md describes the format.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge trace generate --workload da-qwen3.6 --output trace.jsonl\n  \
    spanforge trace describe trace.jsonl")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Generate(Generate),
    Describe(Describe),
}

/// Generate a trace in the likeness of published ones
#[derive(Args)]
#[command(after_help = "Example:\n  \
    spanforge trace generate --workload ssas-llama2 --responses 60 --seed 7 --output trace.jsonl")]
struct Generate {
    /// da-gemma4, da-qwen3.6 or ssas-llama2
    #[arg(long, value_name = "NAME")]
    workload: Preset,
    /// Responses to generate
    #[arg(long, value_name = "N", default_value_t = 15,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    responses: u32,
    /// The same seed gives the same trace
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE.jsonl")]
    output: Option<PathBuf>,
}

/// Say what a trace is like: steps, attended tokens, spans, modes
#[derive(Args)]
#[command(after_help = "Example:\n  spanforge trace describe trace.jsonl --json")]
struct Describe {
    /// Trace to read
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    match &arguments.verb {
        Verb::Generate(arguments) => generate(arguments, out),
        Verb::Describe(arguments) => describe(arguments, out),
    }
}

fn generate(arguments: &Generate, out: &mut dyn Write) -> Result<Outcome> {
    let trace = arguments.workload.generate(arguments.seed, arguments.responses as usize);
    match &arguments.output {
        None => trace.write(out)?,
        Some(path) => save(&trace, path)?,
    }
    Ok(Outcome::Done)
}

/// Writes a trace to a file, and says so.
pub(super) fn save(trace: &Trace, path: &Path) -> Result<()> {
    let mut text = Vec::new();
    trace.write(&mut text)?;
    atomic_file::write(path, &text)?;
    notice::say(format_args!(
        "wrote {} responses of {} steps to {}",
        trace.responses.len(),
        grouped(trace.total_steps()),
        path.display()
    ));
    Ok(())
}

#[derive(Serialize)]
struct Described<'a> {
    header: &'a TraceHeader,
    #[serde(flatten)]
    description: Description,
}

fn describe(arguments: &Describe, out: &mut dyn Write) -> Result<Outcome> {
    let file = File::open(&arguments.file).context("cannot read the trace")?;
    let trace = Trace::read(BufReader::new(file))
        .with_context(|| format!("{} is not a trace", arguments.file.display()))?;
    let described = Described { header: &trace.header, description: trace.describe() };
    if arguments.json {
        write_json(out, &described)?;
    } else {
        print(&described, out)?;
    }
    Ok(Outcome::Done)
}

fn print(described: &Described<'_>, out: &mut dyn Write) -> Result<()> {
    let (header, d) = (described.header, &described.description);
    let shape = header.shape;
    let mut table = Table::plain();
    let model = format!(
        "{} query heads, {} KV heads, head_dim {}, {}",
        shape.query_heads, shape.kv_heads, shape.head_dim, shape.dtype
    );
    table.row(["model".into(), model]);
    for (name, value) in [("protocol", &header.protocol), ("generator", &header.generator)] {
        if let Some(value) = value {
            table.row([name.into(), value.clone()]);
        }
    }
    if let Some(seed) = header.seed {
        table.row(["seed".into(), seed.to_string()]);
    }
    table.row(["responses".into(), d.responses.to_string()]);
    let steps = format!("{} ({:.1} per response)", grouped(d.steps), d.steps_per_response);
    table.row(["decode steps".into(), steps]);
    let attended = format!(
        "{:.1} tokens per step, {:.1} % of dense attention",
        d.attended_per_step,
        100.0 * d.attended_per_response / d.dense_per_response.max(f64::MIN_POSITIVE)
    );
    table.row(["attended".into(), attended]);
    table.write(out, "")?;
    writeln!(out)?;
    let heading = ["mode", "phases", "% of steps", "% of attended", "attended tokens/step"];
    let mut table = Table::new(&heading, &[1, 2, 3, 4]);
    for mode in &d.modes {
        table.row([
            mode.mode.clone(),
            grouped(mode.phases),
            format!("{:.1}", 100.0 * mode.step_share),
            format!("{:.1}", 100.0 * mode.attended_share),
            format!("{:.1}", mode.attended_per_step),
        ]);
    }
    table.write(out, "")?;
    writeln!(out)?;
    let heading = ["", "min", "10 %", "50 %", "90 %", "99 %", "max"];
    let mut table = Table::new(&heading, &[1, 2, 3, 4, 5, 6]);
    let mut points = |name: &str, p: &Percentiles| {
        let [min, p10, p50, p90, p99, max] =
            [p.min, p.p10, p.p50, p.p90, p.p99, p.max].map(grouped);
        table.row([name.to_owned(), min, p10, p50, p90, p99, max]);
    };
    points("KV length of a step, tokens", &d.kv_len);
    points("attended by a step, tokens", &d.attended);
    points("spans of a step", &d.spans_per_step);
    points("length of a span, tokens", &d.span_tokens);
    table.write(out, "")?;
    Ok(())
}
