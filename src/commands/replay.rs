//! `replay`: search strategies over recorded search spaces, without a GPU.

use super::Outcome;
use crate::notice;
use crate::table::{Table, grouped};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::Serialize;
use spanforge_tuner::formats::{Failure, Recording, t1};
use spanforge_tuner::replay::{
    Figures, LEAST_EVALUATIONS, Recorded, Run, Scale, Score, Until, aggregate, repeats,
};
use spanforge_tuner::search::{ParameterSpace, STRATEGIES, strategy};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// Replay search strategies over recorded search spaces
///
/// Reads caches of Kernel Tuner and T4 results, gzip or plain, also cut-off ones. Every evaluation
/// takes the time and the fate that were recorded for it: compiling, measuring and failures are
/// charged. docs/replay.md explains the figures.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge replay A100.json.gz --strategy all\n  \
    spanforge replay *.json.gz --strategy random --repeats 20 --evaluations 500 --json")]
pub struct Arguments {
    /// Recorded search spaces
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// T1 description of the space that the files are to be of: what does not fit it is refused
    #[arg(long, value_name = "FILE.json")]
    t1: Option<PathBuf>,
    /// Strategy to replay, or all; can be given several times
    #[arg(long, value_name = "S", default_value = "random")]
    strategy: Vec<String>,
    /// Evaluations of a replay [default: at least 200, and as many as the budget of the score has
    /// time for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    evaluations: Option<u32>,
    /// Replays of each strategy on each file
    #[arg(long, value_name = "R", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeats: u32,
    /// Seed of the first replay; the others count on from it
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print JSON, with every evaluation of every replay
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    objective: &'static str,
    seed: u64,
    repeats: u32,
    files: Vec<FileReport>,
    mean: Vec<Mean>,
}

#[derive(Serialize)]
struct FileReport {
    file: String,
    device: Option<String>,
    kernel: Option<String>,
    problem: Option<String>,
    is_cut: bool,
    parameters: Vec<String>,
    configurations: usize,
    failed: BTreeMap<String, usize>,
    optimum: String,
    optimum_ms: f64,
    scale: Option<Scale>,
    strategies: Vec<StrategyReport>,
}

#[derive(Serialize)]
struct StrategyReport {
    strategy: String,
    #[serde(flatten)]
    figures: Figures,
    replays: Vec<ReplayReport>,
}

#[derive(Serialize)]
struct ReplayReport {
    seed: u64,
    is_exhausted: bool,
    evaluations: Vec<EvaluationReport>,
}

/// One evaluation; what it was charged is the sum of its seconds.
#[derive(Serialize)]
struct EvaluationReport {
    configuration: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    compile_seconds: f64,
    measure_seconds: f64,
    other_seconds: f64,
}

/// The score of a strategy over all files that have one.
#[derive(Serialize)]
struct Mean {
    strategy: String,
    files: usize,
    score: f64,
    error: f64,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let names = strategies(&arguments.strategy)?;
    let described = arguments.t1.as_deref().map(t1::read).transpose()?;
    let steps = arguments.files.len() * names.len() * arguments.repeats as usize;
    let bar = notice::bar(steps as u64, "replays");
    let mut files = Vec::with_capacity(arguments.files.len());
    for path in &arguments.files {
        files.push(replay_file(arguments, path, described.as_ref(), &names, &|| bar.inc(1))?);
    }
    bar.finish_and_clear();
    let mean = names.iter().filter_map(|name| mean(name, &files)).collect();
    let report = Report {
        objective: "median of the warm runs of a configuration, ms",
        seed: arguments.seed,
        repeats: arguments.repeats,
        files,
        mean,
    };
    if arguments.json {
        // On one line: there may be millions of evaluations.
        let text = serde_json::to_string(&report)?;
        writeln!(out, "{text}")?;
    } else {
        print(&report, out)?;
    }
    Ok(Outcome::Done)
}

/// The strategies asked for, each once.
fn strategies(asked: &[String]) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for name in asked {
        let these = match name.as_str() {
            "all" => STRATEGIES.to_vec(),
            name if STRATEGIES.contains(&name) => vec![name],
            unknown => {
                let known = STRATEGIES.join(", ");
                return Err(anyhow!("unknown strategy {unknown:?}: known are {known}, all"));
            }
        };
        for name in these {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    Ok(names)
}

fn replay_file(
    arguments: &Arguments,
    path: &std::path::Path,
    described: Option<&ParameterSpace>,
    names: &[String],
    finished: &(dyn Fn() + Sync),
) -> Result<FileReport> {
    let file = path.display().to_string();
    let recording = Recording::read(path)?;
    let (device, kernel) = (recording.device.clone(), recording.kernel.clone());
    let (problem, is_cut) = (recording.problem.clone(), recording.is_cut);
    let space = Recorded::new(recording).with_context(|| file.clone())?;
    if let Some(described) = described {
        let outside = |error| format!("{file} is not a record of the described space: {error}");
        space.check_within(described).map_err(|error| anyhow!(outside(error)))?;
    }
    let scale = Scale::new(&space);
    let budget = scale.as_ref().map_or(0.0, |scale| scale.budget_seconds);
    let until = match arguments.evaluations {
        Some(evaluations) => Until::Evaluations(evaluations as usize),
        None => Until::Both(LEAST_EVALUATIONS, budget),
    };
    let mut failed = BTreeMap::new();
    for failure in space.outcomes().iter().filter_map(|o| o.time_ms.as_ref().err()) {
        *failed.entry(failure.to_string()).or_default() += 1;
    }
    let mut strategies = Vec::with_capacity(names.len());
    for name in names {
        let make = |seed| strategy(name, seed).expect("a name that was looked up");
        let count = arguments.repeats as usize;
        let runs = repeats(&space, &make, arguments.seed, count, until, finished);
        let listed: &[Run] = if arguments.json { &runs } else { &[] };
        strategies.push(StrategyReport {
            strategy: name.clone(),
            figures: Figures::new(&space, scale.as_ref(), &runs),
            replays: listed.iter().map(|run| listing(&space, run)).collect(),
        });
    }
    Ok(FileReport {
        file,
        device,
        kernel,
        problem,
        is_cut,
        parameters: space.parameters().iter().map(|p| p.name.clone()).collect(),
        configurations: space.outcomes().len(),
        failed,
        optimum: space.key(space.optimum()),
        optimum_ms: space.optimum_ms(),
        scale,
        strategies,
    })
}

fn listing(space: &Recorded, run: &Run) -> ReplayReport {
    let evaluation = |step: &spanforge_tuner::replay::Step| {
        let outcome = &space.outcomes()[step.outcome];
        EvaluationReport {
            configuration: space.key(step.outcome),
            time_ms: outcome.time_ms.as_ref().ok().copied(),
            failure: outcome.time_ms.as_ref().err().cloned(),
            compile_seconds: outcome.compile_seconds,
            measure_seconds: outcome.measure_seconds,
            other_seconds: outcome.other_seconds,
        }
    };
    ReplayReport {
        seed: run.seed,
        is_exhausted: run.is_exhausted,
        evaluations: run.steps.iter().map(evaluation).collect(),
    }
}

fn mean(name: &str, files: &[FileReport]) -> Option<Mean> {
    let all = files.iter().flat_map(|f| &f.strategies).filter(|s| s.strategy == name);
    let scores: Vec<&Score> = all.filter_map(|s| s.figures.score.as_ref()).collect();
    let (score, error) = aggregate(&scores)?;
    Some(Mean { strategy: name.to_owned(), files: scores.len(), score, error })
}

fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    let heading = [
        "file",
        "kernel",
        "device",
        "configurations",
        "failed",
        "best ms",
        "budget s",
        "evaluations",
    ];
    let mut table = Table::new(&heading, &[3, 4, 5, 6, 7]);
    for file in &report.files {
        let budget = |scale: &Scale| grouped(scale.budget_evaluations as u64);
        let seconds = |scale: &Scale| format!("{:.0}", scale.budget_seconds);
        table.row([
            file.file.clone(),
            file.kernel.clone().unwrap_or_else(|| "-".into()),
            file.device.clone().unwrap_or_else(|| "-".into()),
            grouped(file.configurations as u64),
            grouped(file.failed.values().sum::<usize>() as u64),
            format!("{:.4}", file.optimum_ms),
            file.scale.as_ref().map_or_else(|| "-".into(), seconds),
            file.scale.as_ref().map_or_else(|| "too flat to score".into(), budget),
        ]);
    }
    table.write(out, "")?;
    for file in report.files.iter().filter(|file| file.is_cut) {
        writeln!(out, "{} is cut off: what stands before the cut is used", file.file)?;
    }
    writeln!(out)?;
    let heading =
        ["file", "strategy", "at 50", "at 100", "at 200", "to 95 %", "seconds", "score", "error"];
    let mut table = Table::new(&heading, &[2, 3, 4, 5, 6, 7, 8]);
    for file in &report.files {
        for strategy in &file.strategies {
            let figures = &strategy.figures;
            let share = |index: usize| {
                let share = figures.shares.get(index).and_then(|share| share.share);
                share.map_or_else(|| "-".into(), |share| format!("{:.1} %", 100.0 * share))
            };
            let whole = |value: Option<f64>| {
                value.map_or_else(|| "-".into(), |value| format!("{value:.0}"))
            };
            let [score, error] = match &figures.score {
                Some(score) => [format!("{:.3}", score.score), format!("± {:.3}", score.error)],
                None => ["-".into(), String::new()],
            };
            table.row([
                file.file.clone(),
                strategy.strategy.clone(),
                share(0),
                share(1),
                share(2),
                whole(figures.evaluations_to_95),
                whole(figures.seconds_to_95),
                score,
                error,
            ]);
        }
    }
    let many = |mean: &&Mean| mean.files > 1;
    for mean in report.mean.iter().filter(many) {
        table.row([
            format!("mean of {} files", mean.files),
            mean.strategy.clone(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            format!("{:.3}", mean.score),
            format!("± {:.3}", mean.error),
        ]);
    }
    table.write(out, "")?;
    writeln!(
        out,
        "\nbudget: what random search needs to come near the optimum, the time that the score is \
         taken over\nat N: share of the optimum after N evaluations, mean of {} replays; to 95 %: \
         evaluations and charged\nseconds until 95 % of the optimum, median; score: 0 is random \
         search, 1 the optimum from the start",
        report.repeats
    )?;
    Ok(())
}
