//! `tune`: the main job. Searches configurations for a workload, prints what was found, and leaves
//! an artifact whose path is the last line of standard output.

use super::device_choice::DeviceList;
use super::workload_choice::WorkloadArguments;
use super::{Outcome, worker, write_json};
use crate::notice;
use crate::table::{Table, grouped};
use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::ProgressBar;
use spanforge_device::{Basis, Compiler};
use spanforge_kernels::KernelSpec;
use spanforge_kernels::abi::Kernel;
use spanforge_tuner::choice::ranked;
use spanforge_tuner::cluster::{Cluster, PATIENCE};
use spanforge_tuner::journal::Kept;
use spanforge_tuner::record::{Candidate, Run, Status, Study, WINDOW, Winner};
use spanforge_tuner::search::DEFAULT_STRATEGY;
use spanforge_tuner::tune::From;
use spanforge_tuner::{CandidateLimits, Event, Means, Request, TuneError, Workload, tune};
use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Find the fastest correct configuration for a workload, and export it
///
/// Every candidate is checked against the oracle before it is timed, in a process of its own. On an
/// emulated device times are predicted by the cost model; on a GPU they are measured. All that is
/// found out is kept in a journal at once, and --resume goes on with it after whatever ended the run.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge tune\n  \
    spanforge tune --workload da-gemma4 --arch sm_90a,sm_80 --budget 100\n  \
    spanforge tune --workload da-gemma4 --batch 1,4,16,64 --draws 2\n  \
    spanforge tune --workload ssas-llama2 --batch 32 --device cuda:0,cuda:1\n  \
    spanforge tune --workload my-trace.jsonl --device emulated:a100\n  \
    spanforge tune --device cuda:0 --guide results/tune/da-qwen3.6-emulated-h200-1790000000-0.jsonl\n  \
    spanforge tune --workload ssas-llama2 --dtype f16 --query-heads 32 --kv-heads 8 --head-dim 128\n  \
    spanforge tune --resume results/tune/da-qwen3.6-cuda-0-1790000000-0.jsonl --budget 200\n\n\
    The last line on standard output is the artifact's path.")]
pub struct Arguments {
    #[command(flatten)]
    workload: WorkloadArguments,
    /// Device to tune on; of several GPUs of one kind, with commas between them, each measures candidates
    /// and the first the finalists [default: every GPU of the kind of cuda:0, else emulated:h200]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceList>,
    /// Architectures to export machine code for [default: the device's]
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    arch: Vec<String>,
    /// Configurations to evaluate, the default one included [default: 32, or the resumed run's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    budget: Option<u32>,
    /// Begin no further configuration after this many seconds
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<u64>,
    /// Search strategy: portfolio, gaussian, surrogate, genetic, annealing, local, random or exhaustive
    #[arg(long, value_name = "STRATEGY", default_value = DEFAULT_STRATEGY)]
    strategy: String,
    /// Journal of another run, such as one on an emulated device, whose fastest configurations are
    /// tried first; the strategy is `guided`
    #[arg(long, value_name = "JOURNAL", conflicts_with = "strategy")]
    guide: Option<PathBuf>,
    /// Batches drawn of each size
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    draws: u32,
    /// Seed of the search, the problems and the tensors
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Generated problems that each candidate is checked on
    #[arg(long, value_name = "N", default_value_t = 6)]
    cases: u32,
    /// Folder that the artifact is put in
    #[arg(long, value_name = "DIR", default_value = "artifacts")]
    output: PathBuf,
    /// Folder of results; the journal is put in its folder `tune`
    #[arg(long, value_name = "DIR", default_value = "results")]
    results: PathBuf,
    /// Go on with the run of this journal; what it follows from is taken from there
    #[arg(
        long,
        value_name = "JOURNAL",
        conflicts_with_all = [
            "workload", "device", "arch", "strategy", "seed", "cases", "results", "window", "guide",
            "batch", "draws", "queries", "dtype", "head_dim", "query_heads", "kv_heads", "page_size", "layout",
        ]
    )]
    resume: Option<PathBuf>,
    /// Have workers elsewhere evaluate: NATS servers with JetStream, with commas between them; see
    /// spanforge worker
    #[arg(long, value_name = "SERVERS")]
    study: Option<String>,
    /// Seconds that the study's servers may be away before it is an error
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE.as_secs(), requires = "study")]
    patience: u64,
    /// Candidates that may be under way at a time: as many as there are workers, or more
    #[arg(long, value_name = "N", default_value_t = WINDOW as u32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    window: u32,
    /// Print the run, every candidate and the winner as JSON before the path
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    limits: LimitArguments,
}

/// What one candidate may take, and how many run at a time.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workers")]
struct LimitArguments {
    /// Seconds that compiling a candidate may take
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..))]
    compile_limit: u64,
    /// Seconds that checking a candidate may take, and timing it
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..))]
    run_limit: u64,
    /// GiB of host memory that a worker may have, on an emulated device
    #[arg(long, value_name = "GIB", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    memory_limit: u64,
    /// Worker processes; for a GPU those that compile [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
}

/// Budget of a new run where none is given.
const DEFAULT_BUDGET: usize = 32;

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    if arguments.output.as_os_str().is_empty() {
        bail!("--output is empty: name the folder that the artifact is put in");
    }
    let (from, budget) = match &arguments.resume {
        Some(journal) => (From::Journal(journal.clone()), None),
        None => {
            let folder = arguments.results.join("tune");
            (From::Study(Box::new(study(arguments)?), folder), Some(DEFAULT_BUDGET))
        }
    };
    let limits = &arguments.limits;
    let request = Request {
        from,
        budget: arguments.budget.map(|budget| budget as usize).or(budget),
        time_limit: arguments.time_limit.map(Duration::from_secs),
        limits: CandidateLimits {
            compile: Duration::from_secs(limits.compile_limit),
            run: Duration::from_secs(limits.run_limit),
            memory_bytes: limits.memory_limit << 30,
        },
        workers: worker::count(limits.workers),
        output: arguments.output.clone(),
    };
    let compiler = Compiler::new(&notice::settings())?;
    let stop = worker::stop_at_interrupt("ending with what is known so far")?;
    let worker = worker::evaluator()?;
    let patience = Duration::from_secs(arguments.patience);
    let cluster = arguments.study.as_deref().map(|servers| Cluster::connect(servers, patience));
    let cluster = cluster.transpose()?;
    let shown = RefCell::new(Shown::default());
    let progress = |event: Event<'_>| shown.borrow_mut().show(event);
    let means = Means {
        compiler: &compiler,
        open: &spanforge_device::open,
        cluster: cluster.as_ref(),
        worker: &worker,
        stop: &stop,
        progress: &progress,
    };
    let outcome = match tune(&request, &means) {
        Ok(outcome) => outcome,
        Err(TuneError::Interrupted(known)) => {
            shown.borrow().clear();
            report(out, &known.run, &known.candidates, None)?;
            let journal = known.journal.display();
            let on = cluster.map_or_else(String::new, |c| format!(" --study {}", c.servers()));
            notice::say(format_args!(
                "interrupted; to go on: spanforge tune --resume {journal}{on}"
            ));
            return Ok(Outcome::Interrupted);
        }
        Err(error) => return Err(error.into()),
    };
    if arguments.json {
        write_json(
            out,
            &serde_json::json!({
                "run": outcome.run,
                "candidates": outcome.candidates,
                "winner": outcome.winner,
                "artifact": outcome.artifact,
                "journal": outcome.journal,
            }),
        )?;
    } else {
        report(out, &outcome.run, &outcome.candidates, Some(&outcome.winner))?;
        let journal = outcome.journal.display();
        notice::say(format_args!("recorded in {journal}; to see it: spanforge report {journal}"));
    }
    writeln!(out, "{}", outcome.artifact.display())?;
    Ok(Outcome::Done)
}

/// What a new run follows from.
fn study(arguments: &Arguments) -> Result<Study> {
    let mut workloads = arguments.workload.workloads(arguments.seed, arguments.draws)?.into_iter();
    let workload = workloads.next().context("--batch names no batch")?;
    let mut devices = match &arguments.device {
        Some(DeviceList(named)) => named.clone(),
        None => {
            let mut found = vec![spanforge_device::default_spec().to_owned()];
            // Workers elsewhere have devices of their own.
            if arguments.study.is_none() {
                found.extend(alike(&found[0]));
            }
            notice::say(format_args!(
                "device: {} (choose another with --device)",
                found.join(", ")
            ));
            found
        }
    }
    .into_iter();
    let device = devices.next().context("--device names no device")?;
    let (strategy, guide) = match &arguments.guide {
        Some(journal) => ("guided".to_owned(), guide(journal, &workload)?),
        None if arguments.strategy == "guided" => {
            bail!(
                "the strategy `guided` needs a run to be guided by: give its journal with --guide"
            )
        }
        None => (arguments.strategy.clone(), Vec::new()),
    };
    Ok(Study {
        workload,
        others: workloads.collect(),
        device,
        also: devices.collect(),
        architectures: arguments.arch.clone(),
        strategy,
        guide,
        seed: arguments.seed,
        cases: arguments.cases as usize,
        window: arguments.window as usize,
    })
}

/// The other GPUs of this machine that are of the kind of `first`. One that cannot be opened is left out.
fn alike(first: &str) -> Vec<String> {
    let others = spanforge_device::gpu_specs().filter(|spec| spec != first);
    let others: Vec<String> = others.collect();
    // A machine with one GPU, or none, has nothing to compare.
    let kind = match others.as_slice() {
        [] => return others,
        _ => spanforge_device::open(first).map(|device| device.properties().clone()),
    };
    let Ok(kind) = kind else { return Vec::new() };
    let is_alike = |spec: &String| {
        spanforge_device::open(spec).is_ok_and(|device| *device.properties() == kind)
    };
    let (alike, left): (Vec<_>, Vec<_>) = others.into_iter().partition(is_alike);
    if !left.is_empty() {
        notice::say(format_args!(
            "not used, being of another kind or not to be opened: {}",
            left.join(", ")
        ));
    }
    alike
}

/// The most that a study keeps of the run that guides it.
const GUIDING: usize = 64;

/// The fastest kernels of another run, which has to be of the workload's shape.
fn guide(journal: &Path, workload: &Workload) -> Result<Vec<KernelSpec>> {
    let kept = Kept::read(journal)?;
    let shape = workload.attention.kernel_shape()?;
    let mut fastest = kept.fastest();
    fastest.retain(|spec| spec.shape == shape);
    fastest.truncate(GUIDING);
    if fastest.is_empty() {
        bail!("{} has no correct configuration for {shape} to be guided by", journal.display());
    }
    Ok(fastest)
}

/// What is seen of a run while it goes on.
#[derive(Default)]
struct Shown {
    bar: Option<ProgressBar>,
    best_us: Option<f64>,
    failed: usize,
    taken: usize,
}

impl Shown {
    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Started(run) => {
                let problem = match run.batches.len() {
                    0 => run.problem.clone(),
                    count => format!("{count} batches"),
                };
                notice::say(format_args!("workload: {}: {problem}", run.workload));
                for batch in &run.batches {
                    notice::say(format_args!("  {}", batch.problem));
                }
                notice::say(format_args!(
                    "space: {} valid configurations, {} to evaluate by {} search, seed {}",
                    grouped(run.valid_configurations),
                    run.budget,
                    run.strategy,
                    run.seed
                ));
            }
            Event::Evaluated { candidate, done, total, recorded } => {
                let bar = self.bar.get_or_insert_with(|| notice::bar(total as u64, "candidates"));
                bar.set_position(done as u64);
                self.taken += usize::from(recorded);
                if candidate.status != Status::Correct {
                    self.failed += 1;
                    let why = candidate.detail.as_deref().unwrap_or("failed");
                    bar.suspend(|| notice::say(format_args!("{}: {why}", candidate.id)));
                }
                let correct = candidate.time_us.filter(|_| candidate.status == Status::Correct);
                self.best_us = match (self.best_us, correct) {
                    (Some(best), Some(time)) => Some(best.min(time)),
                    (best, time) => best.or(time),
                };
                let best = self.best_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1} us"));
                bar.set_message(format!("candidates, best {best}, {} failed", self.failed));
            }
            Event::Exporting(_) => self.clear(),
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            if self.taken > 0 {
                notice::say(format_args!("{} candidates were in the journal", self.taken));
            }
        }
    }
}

/// Candidates that the table shows, besides the default and the failed.
const SHOWN: usize = 8;

fn report(
    out: &mut dyn Write,
    run: &Run,
    candidates: &[Candidate],
    winner: Option<&Winner>,
) -> Result<()> {
    let mut correct = ranked(candidates);
    let wins = |c: &Candidate| winner.is_some_and(|winner| winner.id == c.id);
    let is_tied = |c: &Candidate| winner.is_some_and(|winner| winner.ties.contains(&c.id));
    // The winner first, whatever it is tied with.
    correct.sort_by_key(|(c, _)| !wins(c));
    let basis = format!("{} us", run.properties.basis);
    let mut table = Table::new(
        &["", "configuration", &basis, "x floor", "registers", "spills", "shared B", "occupancy"],
        &[2, 3, 4, 5, 6, 7],
    );
    for (place, &(candidate, us)) in correct.iter().enumerate() {
        let is_default = candidate.index == 0;
        if place >= SHOWN && !is_default {
            continue;
        }
        let mark = match (wins(candidate), is_tied(candidate), is_default) {
            (true, _, true) => "best, default",
            (true, _, false) => "best",
            (_, _, true) => "default",
            (_, true, false) => "tied",
            (_, false, false) => "",
        };
        let resources = candidate.resources.get(Kernel::Decode.symbol());
        let prediction = candidate.predictions.iter().find(|p| p.kernel == Kernel::Decode.symbol());
        let number = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        table.row([
            mark.to_owned(),
            candidate.id.clone(),
            format!("{us:.1}"),
            format!("{:.2}", us / run.floor_us),
            number(resources.map(|r| r.registers)),
            number(resources.map(|_| candidate.spill_bytes())),
            candidate.shared_bytes.to_string(),
            prediction.map_or_else(
                || "-".to_owned(),
                |p| format!("{:.0} %", 100.0 * p.estimate.occupancy.fraction),
            ),
        ]);
    }
    table.write(out, "")?;
    if let Some(Winner { ties, .. }) = winner.filter(|winner| !winner.ties.is_empty()) {
        writeln!(
            out,
            "\n{} tied with the best: their times cannot be told apart; of those the default is \
             chosen, else what spills least",
            ties.len()
        )?;
    }
    buckets(out, winner, run)?;
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

/// The best of each bucket, and which of the exported kernels serves it at what loss.
fn buckets(out: &mut dyn Write, winner: Option<&Winner>, run: &Run) -> Result<()> {
    let Some(winner) = winner.filter(|winner| !winner.buckets.is_empty()) else { return Ok(()) };
    let basis = format!("{} us", run.properties.basis);
    let heading = ["bucket", "best there", &basis, "x floor", "x default", "loss as exported"];
    let mut table = Table::new(&heading, &[2, 3, 4, 5]);
    for best in &winner.buckets {
        let us = best.winner.time_us;
        let gain =
            best.winner.default_us.map_or_else(|| "-".to_owned(), |d| format!("{:.2}", d / us));
        table.row([
            best.bucket.to_string(),
            best.winner.id.clone(),
            format!("{us:.1}"),
            format!("{:.2}", us / best.floor_us),
            gain,
            format!("{:.1} %", 100.0 * best.loss),
        ]);
    }
    writeln!(
        out,
        "\nby bucket; times above are geometric means over {} batches",
        run.batches.len()
    )?;
    table.write(out, "")?;
    let count = winner.shipped.len();
    let noun = if count == 1 { "kernel serves" } else { "kernels serve" };
    writeln!(out, "\n{count} {noun} all buckets: {}", winner.shipped.join(", "))?;
    Ok(())
}
