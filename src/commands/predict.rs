//! `predict`: why the cost model gives a configuration the time that it does.

use super::kernel_choice::{checked, default_spec, read_config};
use super::workload_choice::WorkloadArguments;
use super::{Outcome, write_json};
use crate::notice;
use crate::table::{Table, grouped};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use spanforge_device::{Compiler, Device, EmulatedOptions, Prediction};
use spanforge_emulator::LineCount;
use spanforge_emulator::cost::{Lever, counted, levers};
use spanforge_kernels::{KernelSpec, Limits, render};
use spanforge_tuner::bench::case;
use spanforge_tuner::evaluate::predict;
use spanforge_verify::SourceMap;
use std::cmp::Reverse;
use std::io::Write;

/// Explain a configuration's predicted time: term by term, and what would change it
///
/// The emulated device executes some blocks of each launch and counts what they do; the cost model
/// makes a time of it (docs/cost-model.md). Nothing is measured.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge predict\n  \
    spanforge predict --workload ssas-llama2 --device emulated:a100\n  \
    spanforge predict --lines 20\n  \
    spanforge predict --case 1x64K+31x4K\n  \
    spanforge predict --config bf16-d256-g6-staged-t16-s3-w2-h3-v16-u2-qr-p0-b1-x2-m128-second")]
pub struct Arguments {
    /// Configuration: an id, or a JSON file [default: the default one of the workload's shape]
    #[arg(short, long, value_name = "ID|FILE.json")]
    config: Option<String>,
    /// Emulated device to predict for
    #[arg(long, value_name = "DEVICE", default_value = "emulated:h200")]
    device: String,
    /// A batch that `bench` knows, such as 1x64K+31x4K or da-qwen3.6/16@4, instead of a workload's
    #[arg(long, value_name = "CASE", conflicts_with_all = ["workload", "batch", "queries"])]
    case: Option<String>,
    /// Seed of the batch and the tensors
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Show the N lines of device code with most instructions
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    lines: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    workload: WorkloadArguments,
}

/// One launch, explained.
#[derive(Serialize)]
struct Explained {
    #[serde(flatten)]
    prediction: Prediction,
    levers: Vec<Lever>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    if arguments.device.starts_with("cuda:") {
        bail!("{} measures and does not predict: name an emulated device", arguments.device);
    }
    let options = EmulatedOptions { lines: arguments.lines > 0, ..EmulatedOptions::default() };
    let device = spanforge_device::open_emulated(&arguments.device, options)?;
    let workload = match &arguments.case {
        Some(name) => arguments.workload.on_attention(case(name, arguments.seed)?),
        None => arguments.workload.workload(arguments.seed)?,
    };
    let shape = workload.attention.kernel_shape()?;
    let limits = Limits::of(device.properties());
    let spec = match &arguments.config {
        Some(config) => checked(read_config(config)?, limits)?,
        None => default_spec(shape, workload.queries(), limits)?,
    };
    if spec.shape != shape {
        bail!("{spec} is for {}, and the workload is {shape}: name a fitting one", spec.shape);
    }
    let compiler = Compiler::new(&notice::settings())?;
    let mut problem = predict(&device, &compiler, &workload, spec, arguments.seed)?;
    problem.lines.sort_by_key(|count| Reverse(count.instructions));
    let all_lines = problem.lines.iter().map(|count| count.instructions).sum::<u64>();
    problem.lines.truncate(arguments.lines);
    let explained = problem.predictions.into_iter().map(|prediction| {
        let shape = prediction.shape.context("a prediction without its launch")?;
        let bytes = prediction.footprint_bytes;
        let levers = levers(device.profile(), &shape, &prediction.counters, bytes)?;
        Ok(Explained { prediction, levers })
    });
    let explained: Vec<Explained> = explained.collect::<Result<_>>()?;
    let time_us: f64 = explained.iter().map(|e| e.prediction.estimate.time_us).sum();
    if arguments.json {
        let value = serde_json::json!({
            "configuration": spec.to_string(),
            "workload": workload.describe(),
            "device": device.properties().name,
            "basis": "predicted",
            "time_us": time_us,
            "floor_us": problem.floor_us,
            "floor_bytes": problem.floor_bytes,
            "launches": explained,
            "lines": problem.lines,
        });
        write_json(out, &value)?;
        return Ok(Outcome::Done);
    }
    writeln!(out, "{spec}\n{}\n", workload.describe())?;
    writeln!(
        out,
        "predicted {time_us:.1} us on {}, {:.2} x the floor of {:.1} us ({} bytes at {:.2} TB/s)",
        device.profile().marketing_name,
        time_us / problem.floor_us,
        problem.floor_us,
        grouped(problem.floor_bytes),
        device.properties().dram_bytes_per_second / 1e12,
    )?;
    for launch in &explained {
        print(launch, time_us, out)?;
    }
    if arguments.lines > 0 {
        print_lines(&problem.lines, all_lines, spec, out)?;
    }
    writeln!(out, "\nAssumptions of the largest launch:")?;
    let largest = explained
        .iter()
        .max_by(|a, b| a.prediction.estimate.time_us.total_cmp(&b.prediction.estimate.time_us));
    for assumption in largest.iter().flat_map(|e| &e.prediction.estimate.assumptions) {
        writeln!(out, "- {assumption}")?;
    }
    Ok(Outcome::Done)
}

/// Where the instructions are, of `all` that the executed blocks ran.
fn print_lines(lines: &[LineCount], all: u64, spec: KernelSpec, out: &mut dyn Write) -> Result<()> {
    let rendered = render(&spec)?;
    let source = SourceMap::new(&rendered.name, &rendered.text);
    let mut table = Table::new(&["instructions", "share", "line", ""], &[0, 1]);
    for LineCount { line, instructions, .. } in lines {
        let text = source.text(&line.file, line.line).unwrap_or_default().trim();
        let share = 100.0 * *instructions as f64 / all.max(1) as f64;
        let place = line.to_string();
        table.row([grouped(*instructions), format!("{share:.1} %"), place, text.to_owned()]);
    }
    writeln!(out, "\nWarp instructions of the executed blocks, by line:\n")?;
    table.write(out, "  ")?;
    Ok(())
}

/// Launches that take less of the whole are told in a line.
const SMALL: f64 = 0.05;

/// Terms below this many microseconds are left out.
const SHOWN_US: f64 = 0.05;

fn print(explained: &Explained, whole_us: f64, out: &mut dyn Write) -> Result<()> {
    let Explained { prediction, levers } = explained;
    let (estimate, counters) = (&prediction.estimate, &prediction.counters);
    let occupancy = &estimate.occupancy;
    writeln!(out, "\n{}: {:.1} us", prediction.kernel, estimate.time_us)?;
    if let Some(shape) = prediction.shape {
        writeln!(
            out,
            "  {} blocks ({} with work) of {} threads, {} registers, {} bytes of shared memory; {} per \
             multiprocessor at once ({} stop more), {:.0} % occupancy, {:.2} waves",
            grouped(shape.blocks),
            grouped(shape.busy_blocks),
            shape.threads_per_block,
            shape.registers,
            grouped(shape.shared_bytes_per_block.into()),
            occupancy.blocks_per_multiprocessor,
            occupancy.limiter,
            100.0 * occupancy.fraction,
            estimate.waves
        )?;
    }
    if estimate.time_us < SMALL * whole_us {
        return Ok(());
    }
    let mut table = Table::new(&["term", "us alone", "counted, whole grid"], &[1]);
    for term in estimate.terms.iter().filter(|term| term.us >= SHOWN_US) {
        let counts = counted(&term.name, counters).into_iter();
        let counts: Vec<String> =
            counts.map(|(count, what)| format!("{} {what}", grouped(count))).collect();
        table.row([term.name.clone(), format!("{:.1}", term.us), counts.join(", ")]);
    }
    writeln!(out)?;
    table.write(out, "  ")?;
    if levers.is_empty() {
        writeln!(out, "\n  nothing that the model knows of would make it faster alone")?;
        return Ok(());
    }
    let mut table = Table::new(&["what would change it, each alone", "us", "gain"], &[1, 2]);
    for lever in levers {
        let gain = 100.0 * (1.0 - lever.time_us / estimate.time_us);
        table.row([lever.what.clone(), format!("{:.1}", lever.time_us), format!("{gain:.1} %")]);
    }
    writeln!(out)?;
    table.write(out, "  ")?;
    Ok(())
}
