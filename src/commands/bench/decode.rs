//! `bench decode`: a whole model, dense against span.

use crate::commands::model_choice::DeviceArguments;
use crate::commands::{Outcome, write_json};
use crate::notice;
use crate::table::Table;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fs_err as fs;
use serde::Serialize;
use spanforge_device::{Basis, Device, DeviceError, Element, median};
use spanforge_runtime::model::bench::{self, PAGE_SIZE, Reach, StepTime, read_bandwidth};
use spanforge_runtime::model::{Decoder, HostAttention, HostDecoder, Llama, ModelConfig};
use spanforge_runtime::{CacheSize, SpanAttentionLimits};
use spanforge_spans::trace::TraceBatch;
use spanforge_tuner::workload::named_trace;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Tokens/s of a whole model, dense against span, by the steps of a trace
///
/// The model has the shape of a config.json and random weights, the same in all layers, so that large
/// ones fit; a step reads them once per layer. The rows of each step are steps of the trace, every one
/// equally likely, over a cache of random keys and values. Dense, span and a step in which each row
/// attends to itself alone, which is what is left without attention, take turns. Times are measured, on
/// the CPU or on a GPU (--device).
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge bench decode --model models/shapes/llama-2-7b --trace ssas-llama2 --batch 1,4,16\n  \
    spanforge bench decode --model models/shapes/qwen --layers 4 --trace da-qwen3.6 --steps 4\n  \
    spanforge bench decode --model models/arithmetic --trace saved.jsonl --batch 1,8,64 --json")]
pub struct Arguments {
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
    #[command(flatten)]
    on_device: DeviceArguments,
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
    /// Share of the time that attention takes, over all steps: what is more than a step takes whose rows
    /// attend to themselves alone.
    attention_share: f64,
    /// Tokens attended to, of those there were.
    attended_share: f64,
    /// What reading weights and attended keys and values takes at the bandwidth measured.
    floor_ms: f64,
    /// Time of the dense steps over that of these.
    speedup: f64,
    /// The same of steps whose rows attend to themselves alone: what attention leaves to gain.
    speedup_bound: f64,
}

#[derive(Serialize)]
struct Report {
    model: String,
    layers: usize,
    weights: WeightsChoice,
    trace: String,
    seed: u64,
    /// What computes, such as `2 CPU cores`.
    device: String,
    /// Measured of the CPU, the data sheet's of a GPU.
    read_gb_per_second: f64,
    rows: Vec<Row>,
    /// Batches that there is no memory for.
    left_out: Vec<String>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let path = match arguments.model.is_dir() {
        true => arguments.model.join("config.json"),
        false => arguments.model.clone(),
    };
    let mut config = ModelConfig::read(&path)?;
    config.layers = arguments.layers.map_or(config.layers, |layers| layers as usize);
    let trace = named_trace(&arguments.trace, arguments.seed)?;
    let dtype = match arguments.weights {
        WeightsChoice::F32 => Element::F32,
        WeightsChoice::F16 => Element::F16,
        WeightsChoice::Bf16 => Element::Bf16,
    };
    notice::say("making random weights");
    let model = Llama::random(config, dtype, arguments.seed);
    let place = Place::of(arguments)?;
    let mut report = Report {
        model: arguments.model.display().to_string(),
        layers: model.config().layers,
        weights: arguments.weights,
        trace: arguments.trace.clone(),
        seed: arguments.seed,
        device: place.name(),
        read_gb_per_second: place.bandwidth() / 1e9,
        rows: Vec::new(),
        left_out: Vec::new(),
    };
    for batch in &arguments.batch {
        // The first is not counted.
        let seeds = (0..=u64::from(arguments.steps)).map(|step| arguments.seed.wrapping_add(step));
        let batches = seeds
            .map(|seed| trace.batch_at(seed, *batch as usize))
            .collect::<Result<Vec<TraceBatch>, _>>()?;
        let Some(mut decoder) = place.decoder(arguments, &model, &batches, &mut report.left_out)?
        else {
            continue;
        };
        let times = measured(decoder.as_mut(), &batches)?;
        let element = place.cache_element(arguments);
        report.rows.extend(rows(&model, &report, element, *batch, &times));
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

/// Where steps are computed.
enum Place {
    Host { bandwidth: f64 },
    Gpu(Arc<dyn Device>),
}

impl Place {
    fn of(arguments: &Arguments) -> Result<Self> {
        let Some(name) = &arguments.on_device.device else {
            return Ok(Self::Host { bandwidth: read_bandwidth() });
        };
        let device: Arc<dyn Device> = Arc::from(spanforge_device::open(name)?);
        if device.properties().basis == Basis::Predicted {
            bail!(
                "--device {name}: an emulated device has no time of a whole step; give cuda:0, or \
                 leave it out to measure the CPU"
            );
        }
        Ok(Self::Gpu(device))
    }

    fn name(&self) -> String {
        match self {
            Self::Host { .. } => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                format!("{cores} CPU cores")
            }
            Self::Gpu(device) => device.properties().name.clone(),
        }
    }

    /// Bytes a second.
    fn bandwidth(&self) -> f64 {
        match self {
            Self::Host { bandwidth } => *bandwidth,
            Self::Gpu(device) => device.properties().dram_bytes_per_second,
        }
    }

    /// Bytes of an element of the cache.
    fn cache_element(&self, arguments: &Arguments) -> usize {
        match self {
            Self::Host { .. } => size_of::<f32>(),
            Self::Gpu(_) => {
                let on_device = &arguments.on_device;
                on_device.kv_dtype.bytes(on_device.cache_dtype)
            }
        }
    }

    /// The model with a cache of random keys and values for some steps; none where there is no memory
    /// for it, which is noted in `left_out`.
    fn decoder<'m>(
        &self,
        arguments: &Arguments,
        model: &'m Llama,
        batches: &[TraceBatch],
        left_out: &mut Vec<String>,
    ) -> Result<Option<Box<dyn Decoder + 'm>>> {
        let (config, pages) = (model.config(), bench::pages(batches));
        let requests = batches.iter().map(|batch| batch.rows.len()).max().unwrap_or(0);
        let size = CacheSize { layers: config.layers, pages, requests, max_pages: pages };
        let token = 2 * self.cache_element(arguments) * config.kv_size() * config.layers;
        let needed = pages.saturating_mul(PAGE_SIZE as usize).saturating_mul(token);
        let too_large = |why: String| {
            let gib = needed as f64 / (1 << 30) as f64;
            format!("batch {requests}: the cache needs {gib:.1} GiB{why}; give fewer --layers")
        };
        let fault = match self {
            Self::Host { .. } => match free_memory() {
                Some(free) if needed as f64 > 0.9 * free as f64 => {
                    too_large(format!(" and {:.1} are free", free as f64 / (1 << 30) as f64))
                }
                _ => {
                    let mut attention = HostAttention::new(config, PAGE_SIZE, &size)?;
                    attention.fill_random(arguments.seed);
                    return Ok(Some(Box::new(HostDecoder::new(model, Box::new(attention)))));
                }
            },
            Self::Gpu(device) => {
                let of_step = |batch: &TraceBatch| {
                    batch.rows.iter().map(|row| row.spans.spans().len()).sum::<usize>()
                };
                // As many as rows where each attends to everything.
                let spans = batches.iter().map(of_step).max().unwrap_or(0).max(requests);
                let limits =
                    SpanAttentionLimits { rows: requests, spans, requests, max_pages: pages };
                match arguments.on_device.decoder(model, device, limits, size) {
                    Ok(mut decoder) => {
                        decoder.fill_random(arguments.seed)?;
                        return Ok(Some(Box::new(decoder)));
                    }
                    Err(error) if is_out_of_memory(&error) => too_large(format!(": {error}")),
                    Err(error) => return Err(error),
                }
            }
        };
        notice::say(&fault);
        left_out.push(fault);
        Ok(None)
    }
}

fn is_out_of_memory(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref::<DeviceError>(), Some(DeviceError::OutOfMemory { .. }))
    })
}

/// What rows attend to, in the order in which they take turns.
const REACHES: [Reach; 3] = [Reach::Everything, Reach::Spans, Reach::Itself];

/// The times of the steps but the first, by [`REACHES`].
fn measured(decoder: &mut dyn Decoder, batches: &[TraceBatch]) -> Result<[Vec<StepTime>; 3]> {
    let bar = notice::bar(batches.len() as u64, "steps");
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for batch in batches {
        for (reach, times) in REACHES.into_iter().zip(&mut times) {
            times.push(bench::time_step(decoder, batch, reach)?);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for times in &mut times {
        times.remove(0);
    }
    Ok(times)
}

/// The lines of one batch size: dense, then span.
fn rows(
    model: &Llama,
    report: &Report,
    cache_element: usize,
    batch: u32,
    times: &[Vec<StepTime>; 3],
) -> Vec<Row> {
    let total = |steps: &[StepTime]| steps.iter().map(|s| s.time.as_secs_f64()).sum::<f64>();
    let [dense, span, rest] = times;
    let of = |attention: &'static str, steps: &[StepTime]| {
        let step_ms: Vec<f64> = steps.iter().map(|s| 1e3 * s.time.as_secs_f64()).collect();
        let attended: u64 = steps.iter().map(|step| step.attended).sum();
        let available: u64 = steps.iter().map(|step| step.available).sum();
        let config = model.config();
        let token = (2 * cache_element * config.kv_size() * config.layers) as f64;
        let bytes = model.bytes_per_step() as f64 + token * attended as f64 / steps.len() as f64;
        Row {
            case: format!("{}/{batch}", report.trace),
            attention,
            batch,
            basis: "measured",
            tokens_per_second: 1e3 * f64::from(batch) / median(&step_ms).unwrap_or(f64::INFINITY),
            attention_share: (1.0 - total(rest) / total(steps)).max(0.0),
            attended_share: attended as f64 / available as f64,
            floor_ms: bytes / (1e6 * report.read_gb_per_second),
            speedup: total(dense) / total(steps),
            speedup_bound: total(dense) / total(rest),
            step_ms,
        }
    };
    vec![of("dense", dense), of("span", span)]
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
        let ms = |value: f64| format!("{value:.1}");
        let end = |pick: fn(f64, f64) -> f64| row.step_ms.iter().copied().reduce(pick);
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        table.row([
            row.batch.to_string(),
            row.attention.to_owned(),
            ms(median(&row.step_ms).unwrap_or(f64::NAN)),
            ms(end(f64::min).unwrap_or(f64::NAN)),
            ms(end(f64::max).unwrap_or(f64::NAN)),
            ms(row.floor_ms),
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
        "\nmeasured on {}, {} layers, weights in {}; ms/step: the median; floor: weights and attended keys \
         and values\nat {:.1} GB/s; attention: its share of the time; at most: the speed-up if attention \
         took no time",
        report.device,
        report.layers,
        report.weights.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned()),
        report.read_gb_per_second
    )?;
    Ok(())
}
