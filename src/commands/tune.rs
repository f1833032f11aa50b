//! `tune`: the main job. Searches configurations for a workload, prints what was found, and leaves
//! an artifact whose path is the last line of standard output.

use super::{Outcome, write_json};
use crate::notice;
use crate::table::{Table, grouped};
use anyhow::{Result, bail};
use clap::Args;
use spanforge_device::{Basis, Compiler};
use spanforge_kernels::abi::Kernel;
use spanforge_spans::{Dtype, KvLayout};
use spanforge_tuner::record::{Candidate, Run, Status};
use spanforge_tuner::{Event, Request, Workload, tune};
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// Find the fastest correct configuration for a workload, and export it
///
/// Every candidate is checked against the oracle before it is timed. On an emulated device times are
/// predicted by the cost model; on a GPU they are measured.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge tune\n  \
    spanforge tune --workload da-gemma4 --arch sm_90a,sm_80 --budget 100\n  \
    spanforge tune --workload my-trace.jsonl --device emulated:a100\n  \
    spanforge tune --workload ssas-llama2 --dtype f16 --query-heads 32 --kv-heads 8 --head-dim 128\n\n\
    The last line on standard output is the artifact's path.")]
pub struct Arguments {
    /// da-gemma4, da-qwen3.6, ssas-llama2, or a trace file
    #[arg(long, value_name = "WORKLOAD", default_value = "da-qwen3.6")]
    workload: String,
    /// Device to tune on [default: cuda:0 where there is one, else emulated:h200]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Architectures to export machine code for [default: the device's]
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    arch: Vec<String>,
    /// Configurations to evaluate, the default one included
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    budget: u32,
    /// Begin no further configuration after this many seconds
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<u64>,
    /// Search strategy: portfolio, guided, surrogate, genetic, annealing, local, random or exhaustive
    #[arg(long, value_name = "STRATEGY", default_value = "random")]
    strategy: String,
    /// Seed of the search, the problems and the tensors
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Generated problems that each candidate is checked on
    #[arg(long, value_name = "N", default_value_t = 6)]
    cases: u32,
    /// Folder that the artifact is put in
    #[arg(long, value_name = "DIR", default_value = "artifacts")]
    output: PathBuf,
    /// Folder that results are appended in
    #[arg(long, value_name = "DIR", default_value = "results")]
    results: PathBuf,
    /// Print the run, every candidate and the winner as JSON before the path
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArguments,
}

/// The workload's spans on another model's attention.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and cache (default: the workload's own)")]
struct ModelArguments {
    /// Rows of the batch
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Element type: f16 or bf16
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Elements per head: 64, 128, 256 or 512
    #[arg(long, value_name = "N")]
    head_dim: Option<u32>,
    /// Query heads
    #[arg(long, value_name = "N")]
    query_heads: Option<u32>,
    /// KV heads
    #[arg(long, value_name = "N")]
    kv_heads: Option<u32>,
    /// Tokens per page of the cache [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    page_size: Option<u32>,
    /// Order of a page: NHD or HND [default: NHD]
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<KvLayout>,
}

impl ModelArguments {
    fn apply(&self, workload: &mut Workload) {
        let a = &mut workload.attention;
        a.dtype = self.dtype.unwrap_or(a.dtype);
        a.head_dim = self.head_dim.unwrap_or(a.head_dim);
        a.query_heads = self.query_heads.unwrap_or(a.query_heads);
        a.kv_heads = self.kv_heads.unwrap_or(a.kv_heads);
        a.page_size = self.page_size.unwrap_or(a.page_size);
        a.layout = self.layout.unwrap_or(a.layout);
    }
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let mut workload =
        Workload::named(&arguments.workload, arguments.model.batch as usize, arguments.seed)?;
    arguments.model.apply(&mut workload);
    if arguments.output.as_os_str().is_empty() {
        bail!("--output is empty: name the folder that the artifact is put in");
    }
    let device = match &arguments.device {
        Some(device) => device.clone(),
        None => {
            let device = spanforge_device::default_spec().to_owned();
            notice::say(format_args!("device: {device} (choose another with --device)"));
            device
        }
    };
    let request = Request {
        workload,
        device,
        architectures: arguments.arch.clone(),
        strategy: arguments.strategy.clone(),
        budget: arguments.budget as usize,
        time_limit: arguments.time_limit.map(Duration::from_secs),
        seed: arguments.seed,
        cases: arguments.cases as usize,
        output: arguments.output.clone(),
        results: arguments.results.clone(),
    };
    let compiler = Compiler::new(&notice::settings())?;
    let bar = OnceLock::new();
    let outcome = tune(&request, &compiler, &|event| match event {
        Event::Started(run) => {
            notice::say(format_args!("workload: {}: {}", run.workload, run.problem));
            notice::say(format_args!(
                "space: {} valid configurations, {} to evaluate by {} search, seed {}",
                grouped(run.valid_configurations),
                run.budget,
                run.strategy,
                run.seed
            ));
        }
        Event::Evaluated { candidate, done, total } => {
            let bar = bar.get_or_init(|| notice::bar(total as u64, "candidates"));
            bar.set_position(done as u64);
            if candidate.status != Status::Correct {
                let why = candidate.detail.as_deref().unwrap_or("failed");
                bar.suspend(|| notice::say(format_args!("{}: {why}", candidate.id)));
            }
        }
        Event::Exporting(_) => {
            if let Some(bar) = bar.get() {
                bar.finish_and_clear();
            }
        }
    })?;
    if arguments.json {
        write_json(
            out,
            &serde_json::json!({
                "run": outcome.run,
                "candidates": outcome.candidates,
                "winner": outcome.winner,
                "artifact": outcome.artifact,
                "results": outcome.results,
            }),
        )?;
    } else {
        report(out, &outcome.run, &outcome.candidates, &outcome.winner.id)?;
        notice::say(format_args!("recorded in {}", outcome.results.display()));
    }
    writeln!(out, "{}", outcome.artifact.display())?;
    Ok(Outcome::Done)
}

/// Candidates that the table shows, besides the default and the failed.
const SHOWN: usize = 8;

fn report(out: &mut dyn Write, run: &Run, candidates: &[Candidate], winner: &str) -> Result<()> {
    let mut correct: Vec<&Candidate> =
        candidates.iter().filter(|c| c.status == Status::Correct).collect();
    let time = |c: &Candidate| c.time_us.unwrap_or(f64::INFINITY);
    correct.sort_by(|a, b| time(a).total_cmp(&time(b)).then(a.id.cmp(&b.id)));
    let basis = match run.properties.basis {
        Basis::Predicted => "predicted us",
        Basis::Measured => "measured us",
    };
    let mut table = Table::new(
        &["", "configuration", basis, "x floor", "registers", "spills", "shared B", "occupancy"],
        &[2, 3, 4, 5, 6, 7],
    );
    for (place, candidate) in correct.iter().enumerate() {
        let is_default = candidate.index == 0;
        if place >= SHOWN && !is_default {
            continue;
        }
        let mark = match (candidate.id == winner, is_default) {
            (true, true) => "best, default",
            (true, false) => "best",
            (false, true) => "default",
            (false, false) => "",
        };
        let resources = candidate.resources.get(Kernel::Decode.symbol());
        let prediction = candidate.predictions.iter().find(|p| p.kernel == Kernel::Decode.symbol());
        let number = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        table.row([
            mark.to_owned(),
            candidate.id.clone(),
            format!("{:.1}", time(candidate)),
            format!("{:.2}", time(candidate) / run.floor_us),
            number(resources.map(|r| r.registers)),
            number(resources.map(|r| r.spill_store_bytes + r.spill_load_bytes)),
            candidate.shared_bytes.to_string(),
            prediction.map_or_else(
                || "-".to_owned(),
                |p| format!("{:.0} %", 100.0 * p.estimate.occupancy.fraction),
            ),
        ]);
    }
    table.write(out, "")?;
    let failed = candidates.len() - correct.len();
    let cases: usize = candidates.iter().map(|c| c.cases).sum();
    writeln!(
        out,
        "\n{} candidates on {}, {} problems checked against the oracle, {failed} candidates failed",
        candidates.len(),
        run.properties.name,
        cases
    )?;
    writeln!(
        out,
        "floor {:.1} us: {} bytes at {:.2} TB/s{}",
        run.floor_us,
        grouped(run.floor_bytes),
        run.properties.dram_bytes_per_second / 1e12,
        match run.properties.basis {
            Basis::Predicted => "; times are predicted by the cost model, not measured",
            Basis::Measured => "",
        }
    )?;
    Ok(())
}
