//! `bench`: measurements with the environment they were made in.

use super::{Outcome, write_json};
use crate::notice;
use crate::table::Table;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use fs_err as fs;
use serde::Serialize;
use spanforge_runtime::model::{
    DecodeBench, Llama, ModelConfig, StepTime, WeightDtype, read_bandwidth,
};
use spanforge_spans::trace::{Preset, Trace, TraceBatch};
use std::io::{BufReader, Write};
use std::path::PathBuf;

/// Measure what a decode step takes
#[derive(Args)]
#[command(after_help = "Example:\n  \
    spanforge bench decode --model models/shapes/llama-2-7b --trace ssas-llama2 --batch 1,4")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Decode(Decode),
}

/// Tokens/s of a whole model, dense against span, by the steps of a trace
///
/// The model has the shape of a config.json and random weights, the same in all layers, so that large
/// ones fit; a step reads them once per layer. The rows of each step are steps of the trace, every one
/// equally likely, over a cache of random keys and values in f32. Dense and span take the same steps in
/// turn. All of it runs on the CPU, and is measured.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge bench decode --model models/shapes/llama-2-7b --trace ssas-llama2 --batch 1,4,16\n  \
    spanforge bench decode --model models/shapes/qwen --layers 4 --trace da-qwen3.6 --steps 4\n  \
    spanforge bench decode --model models/arithmetic --trace saved.jsonl --batch 1,8,64 --json")]
struct Decode {
    /// config.json, or a folder that has one
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// da-gemma4, da-qwen3.6, ssas-llama2, or a trace file
    #[arg(long, value_name = "TRACE")]
    trace: String,
    /// Rows of a step, with commas between several
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 4, 8], value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Vec<u32>,
    /// Steps of each batch size that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// Decoder layers, instead of the model's: a smaller model with the same share of attention
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    layers: Option<u32>,
    /// Element type of the weights
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    weights: WeightsChoice,
    /// Seed of steps and weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum WeightsChoice {
    F32,
    F16,
    Bf16,
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    case: String,
    attention: &'static str,
    batch: u32,
    /// `measured`: nothing here is predicted.
    basis: &'static str,
    /// Of each step, in the order in which they were made.
    step_ms: Vec<f64>,
    /// Of their median.
    tokens_per_second: f64,
    /// Share of the time that attention takes, over all steps.
    attention_share: f64,
    /// Tokens attended to, of those there were.
    attended_share: f64,
    /// What reading weights and attended keys and values takes at the bandwidth measured.
    floor_ms: f64,
    /// Time of the dense steps over that of these.
    speedup: f64,
    /// The same if attention took no time.
    speedup_bound: f64,
}

#[derive(Serialize)]
struct Report {
    model: String,
    layers: usize,
    weights: WeightsChoice,
    trace: String,
    seed: u64,
    cores: usize,
    read_gb_per_second: f64,
    rows: Vec<Row>,
    /// Batches that there is no memory for.
    left_out: Vec<String>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    match &arguments.verb {
        Verb::Decode(arguments) => decode(arguments, out),
    }
}

fn decode(arguments: &Decode, out: &mut dyn Write) -> Result<Outcome> {
    let path = match arguments.model.is_dir() {
        true => arguments.model.join("config.json"),
        false => arguments.model.clone(),
    };
    let mut config = ModelConfig::read(&path)?;
    config.layers = arguments.layers.map_or(config.layers, |layers| layers as usize);
    let trace = trace(arguments)?;
    let dtype = match arguments.weights {
        WeightsChoice::F32 => WeightDtype::F32,
        WeightsChoice::F16 => WeightDtype::F16,
        WeightsChoice::Bf16 => WeightDtype::Bf16,
    };
    notice::say("making random weights");
    let model = Llama::random(config, dtype, arguments.seed);
    let bandwidth = read_bandwidth();
    let mut report = Report {
        model: arguments.model.display().to_string(),
        layers: model.config().layers,
        weights: arguments.weights,
        trace: arguments.trace.clone(),
        seed: arguments.seed,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        read_gb_per_second: bandwidth / 1e9,
        rows: Vec::new(),
        left_out: Vec::new(),
    };
    for batch in &arguments.batch {
        // The first is not counted.
        let seeds = (0..=u64::from(arguments.steps)).map(|step| arguments.seed.wrapping_add(step));
        let batches = seeds
            .map(|seed| trace.batch_at(seed, *batch as usize))
            .collect::<Result<Vec<TraceBatch>, _>>()?;
        let needed = DecodeBench::cache_bytes(&model, &batches);
        if let Some(free) = free_memory().filter(|free| needed as f64 > 0.9 * *free as f64) {
            let gib = |bytes: usize| bytes as f64 / (1 << 30) as f64;
            let text = format!(
                "batch {batch}: the cache needs {:.1} GiB and {:.1} are free; give fewer --layers",
                gib(needed),
                gib(free)
            );
            notice::say(&text);
            report.left_out.push(text);
            continue;
        }
        let [dense, span] = measured(&model, &batches, arguments.seed)?;
        let of_dense: f64 = dense.iter().map(|step| step.total.as_secs_f64()).sum();
        for (attention, steps) in [("dense", &dense), ("span", &span)] {
            report.rows.push(row(
                &model,
                bandwidth,
                &report.trace,
                attention,
                *batch,
                steps,
                of_dense,
            ));
        }
    }
    if report.rows.is_empty() {
        bail!("no batch was measured: {}", report.left_out.join("; "));
    }
    match arguments.json {
        true => write_json(out, &report)?,
        false => print(&report, out)?,
    }
    Ok(Outcome::Done)
}

/// Responses of a generated trace.
const RESPONSES: usize = 64;

fn trace(arguments: &Decode) -> Result<Trace> {
    if let Ok(preset) = arguments.trace.parse::<Preset>() {
        return Ok(preset.generate(arguments.seed, RESPONSES));
    }
    let name = &arguments.trace;
    let file = fs::File::open(name).with_context(|| {
        format!("--trace {name} is none of da-gemma4, da-qwen3.6 and ssas-llama2, and no file")
    })?;
    Trace::read(BufReader::new(file)).with_context(|| format!("{name} is not a trace"))
}

/// The times of the steps but the first, dense and span.
fn measured(model: &Llama, batches: &[TraceBatch], seed: u64) -> Result<[Vec<StepTime>; 2]> {
    let mut bench = DecodeBench::new(model, batches, seed)?;
    let bar = notice::bar(batches.len() as u64, "steps");
    let mut times = [Vec::new(), Vec::new()];
    for batch in batches {
        for (is_dense, times) in [true, false].into_iter().zip(&mut times) {
            times.push(bench.step(batch, is_dense)?);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for times in &mut times {
        times.remove(0);
    }
    Ok(times)
}

fn row(
    model: &Llama,
    bandwidth: f64,
    trace: &str,
    attention: &'static str,
    batch: u32,
    steps: &[StepTime],
    of_dense: f64,
) -> Row {
    let step_ms: Vec<f64> = steps.iter().map(|step| 1e3 * step.total.as_secs_f64()).collect();
    let mut sorted = step_ms.clone();
    sorted.sort_by(f64::total_cmp);
    let total: f64 = steps.iter().map(|step| step.total.as_secs_f64()).sum();
    let of_attention: f64 = steps.iter().map(|step| step.attention.as_secs_f64()).sum();
    let attended: u64 = steps.iter().map(|step| step.attended).sum();
    let available: u64 = steps.iter().map(|step| step.available).sum();
    let config = model.config();
    let token = (2 * size_of::<f32>() * config.kv_size() * config.layers) as f64;
    let bytes = model.bytes_per_step() as f64 + token * attended as f64 / steps.len() as f64;
    Row {
        case: format!("{trace}/{batch}"),
        attention,
        batch,
        basis: "measured",
        tokens_per_second: 1e3 * f64::from(batch) / sorted[sorted.len() / 2],
        attention_share: of_attention / total,
        attended_share: attended as f64 / available as f64,
        floor_ms: 1e3 * bytes / bandwidth,
        speedup: of_dense / total,
        speedup_bound: of_dense / (total - of_attention),
        step_ms,
    }
}

/// Memory that can be taken, where the system says it.
fn free_memory() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: usize = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes << 10)
}

fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    let heading = [
        "batch",
        "attention",
        "ms/step",
        "fastest",
        "slowest",
        "floor",
        "tokens/s",
        "attended",
        "attention",
        "speed-up",
        "at most",
    ];
    let mut table = Table::new(&heading, &[0, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    for row in &report.rows {
        let mut sorted = row.step_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let ms = |at: usize| format!("{:.1}", sorted[at]);
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        table.row([
            row.batch.to_string(),
            row.attention.to_owned(),
            ms(sorted.len() / 2),
            ms(0),
            ms(sorted.len() - 1),
            format!("{:.1}", row.floor_ms),
            format!("{:.1}", row.tokens_per_second),
            percent(row.attended_share),
            percent(row.attention_share),
            format!("{:.2}", row.speedup),
            format!("{:.2}", row.speedup_bound),
        ]);
    }
    table.write(out, "")?;
    writeln!(
        out,
        "\nmeasured on {} cores, {} layers, weights in {}, cache in f32; ms/step: the median; floor: \
         weights and\nattended keys and values at {:.1} GB/s, measured; attention: its share of the \
         time; at most: the speed-up\nif attention took no time",
        report.cores,
        report.layers,
        report.weights.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned()),
        report.read_gb_per_second
    )?;
    Ok(())
}
