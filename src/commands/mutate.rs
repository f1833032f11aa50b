//! `mutate`: bugs planted in the project's own kernels, and what the checks make of them.

use super::{Outcome, append_json, write_json};
use crate::notice;
use crate::table::Table;
use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde::Serialize;
use spanforge_device::Compiler;
use spanforge_tuner::environment::{Environment, unix_seconds};
use spanforge_verify::mutants::{self, Hunt, HuntError, HuntOptions, Mutant, MutantReport};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Problems on which each unchanged kernel must pass before bugs are planted in it.
const BASELINE_CASES: u64 = 40;

/// Plant bugs in the kernels and report which check catches each
///
/// The measure of the checks themselves: each mutant is one plausible mistake in the device code,
/// and is hunted with the problems of `check` under several schedules of warps on the emulated
/// device. The kernel without the bug must pass where the bug was found. Exit code 1 where a bug
/// that should be caught is missed, or an unchanged kernel fails.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge mutate --sample 10\n  \
    spanforge mutate --only wait-left-out\n  \
    spanforge mutate --results results")]
pub struct Arguments {
    /// Hunt N mutants drawn at random [default: all]
    #[arg(long, value_name = "N", conflicts_with = "only")]
    sample: Option<usize>,
    /// Seed of the sample and of the first problem
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Hunt the mutant of that name only
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Longest time for each, in seconds, compiling included
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    limit: u64,
    /// Most problems for each
    #[arg(long, value_name = "N", default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..))]
    cases: u64,
    /// Append the report to mutants.jsonl in this folder
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One run of the verb, as it is printed and recorded.
#[derive(Serialize)]
struct Report {
    started_unix: u64,
    environment: Environment,
    seed: u64,
    limit_seconds: u64,
    most_cases: u64,
    wall_seconds: f64,
    summary: Summary,
    mutants: Vec<MutantReport>,
}

#[derive(Serialize)]
struct Summary {
    planted: usize,
    caught: usize,
    /// Missed, or caught after the limit, although a check should find them.
    missed: Vec<String>,
    /// Known to be missed.
    missed_as_expected: Vec<String>,
    /// Listed as missed, but caught: the list is out of date.
    caught_unexpectedly: Vec<String>,
    /// Found where the unchanged kernel fails too.
    false_alarms: Vec<String>,
    stillborn: Vec<String>,
    /// Caught and planted, by kind.
    by_kind: BTreeMap<String, [usize; 2]>,
    /// Caught, by the check that did.
    by_check: BTreeMap<String, usize>,
    /// Diagnoses that name a line, and those whose line leads to the bug.
    lines_named: usize,
    lines_right: usize,
    /// Of the others, those whose trail has a changed line: in all, and among its first three.
    in_trail: usize,
    in_trail_at_most_third: usize,
    longest_seconds: f64,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let chosen = choose(arguments)?;
    let compiler = Compiler::new(&notice::settings())?;
    // Before the hunt: the checkout can move on while it lasts.
    let environment = Environment::current(compiler.nvrtc().version());
    let (started_unix, started) = (unix_seconds(), Instant::now());
    let kernels: Vec<&str> = chosen
        .iter()
        .flat_map(|mutant| mutant.kernels)
        .copied()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let bar = notice::bar((kernels.len() + chosen.len()) as u64, "planting");
    let alarms = in_parallel(&kernels, |id| {
        let alarm = mutants::baseline(&compiler, id, arguments.seed, BASELINE_CASES);
        bar.inc(1);
        alarm
    })?;
    for (id, alarm) in kernels.iter().zip(alarms) {
        if let Some((case, fault)) = alarm.as_ref().and_then(|c| Some((c, c.fault.as_ref()?))) {
            bar.finish_and_clear();
            let seed = case.seed.unwrap_or(arguments.seed);
            writeln!(out, "the kernel without any bug fails: {id}, seed {seed}\n{fault}")?;
            return Ok(Outcome::CheckFailed);
        }
    }
    let options = HuntOptions {
        seed: arguments.seed,
        cases: arguments.cases,
        time: Duration::from_secs(arguments.limit),
    };
    let reports = in_parallel(&chosen, |mutant| {
        let report = mutants::hunt(&compiler, mutant, &options);
        bar.inc(1);
        report
    });
    bar.finish_and_clear();
    let mutants = reports?;
    let report = Report {
        started_unix,
        environment,
        seed: arguments.seed,
        limit_seconds: arguments.limit,
        most_cases: arguments.cases,
        wall_seconds: started.elapsed().as_secs_f64(),
        summary: summarise(&mutants),
        mutants,
    };
    if let Some(folder) = &arguments.results {
        append_json(&folder.join("mutants.jsonl"), &report)?;
    }
    if arguments.json {
        write_json(out, &report)?;
    } else {
        print(&report, out)?;
    }
    let failed = report.mutants.iter().any(MutantReport::failed);
    Ok(if failed { Outcome::CheckFailed } else { Outcome::Done })
}

fn choose(arguments: &Arguments) -> Result<Vec<&'static Mutant>> {
    let mut all: Vec<_> = mutants::all().collect();
    if let Some(name) = &arguments.only {
        all.retain(|mutant| mutant.name == name);
        if all.is_empty() {
            let names: Vec<_> = mutants::all().map(|mutant| mutant.name).collect();
            bail!("there is no mutant `{name}`; there are: {}", names.join(", "));
        }
    }
    if let Some(count) = arguments.sample {
        if count == 0 {
            bail!("--sample 0 plants nothing; give a number from 1 to {}", all.len());
        }
        all = mutants::sample(count, arguments.seed);
    }
    Ok(all)
}

/// The results of `work` on all `items`, in their order, with a worker per processor.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, HuntError> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<R, HuntError>)>> = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(item);
                    // Nothing panics while the lock is held.
                    done.lock().unwrap_or_else(|p| p.into_inner()).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|p| p.into_inner());
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result.map_err(|e| anyhow!(e))).collect()
}

fn summarise(reports: &[MutantReport]) -> Summary {
    let names = |keep: &dyn Fn(&MutantReport) -> bool| -> Vec<String> {
        reports.iter().filter(|r| keep(r)).map(|r| r.mutant.clone()).collect()
    };
    let catch = |r: &MutantReport| match &r.outcome {
        Hunt::Caught(catch) if !catch.false_alarm && !catch.late => Some(catch.clone()),
        _ => None,
    };
    let missed = |r: &MutantReport| match &r.outcome {
        Hunt::Caught(catch) => catch.late && !catch.false_alarm,
        outcome => *outcome == Hunt::Missed,
    };
    let mut by_kind: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    let mut by_check: BTreeMap<String, usize> = BTreeMap::new();
    let (mut caught, mut lines_named, mut lines_right) = (0, 0, 0);
    let mut ranks: Vec<usize> = Vec::new();
    for report in reports {
        let of_kind = by_kind.entry(report.kind.to_string()).or_default();
        of_kind[1] += 1;
        let Some(catch) = catch(report) else { continue };
        of_kind[0] += 1;
        caught += 1;
        *by_check.entry(catch.check).or_default() += 1;
        if let Some(line) = catch.line {
            lines_named += 1;
            lines_right += usize::from(line.right);
            if !line.right {
                ranks.extend(line.trail.map(|trail| trail.rank));
            }
        }
    }
    Summary {
        planted: reports.len(),
        caught,
        missed: names(&|r| missed(r) && r.needs.is_none()),
        missed_as_expected: names(&|r| missed(r) && r.needs.is_some()),
        caught_unexpectedly: names(&|r| catch(r).is_some() && r.needs.is_some()),
        false_alarms: names(&|r| matches!(&r.outcome, Hunt::Caught(c) if c.false_alarm)),
        stillborn: names(&|r| matches!(r.outcome, Hunt::Stillborn(_))),
        by_kind,
        by_check,
        lines_named,
        lines_right,
        in_trail: ranks.len(),
        in_trail_at_most_third: ranks.iter().filter(|&&rank| rank <= 3).count(),
        longest_seconds: reports
            .iter()
            .filter(|r| catch(r).is_some())
            .map(|r| r.seconds)
            .fold(0.0, f64::max),
    }
}

/// Appends one line in one write.
fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    let heading = ["mutant", "kind", "planted at", "caught by", "cases", "seconds", "line named"];
    let mut table = Table::new(&heading, &[4, 5]);
    for r in &report.mutants {
        let lines: Vec<String> = r.lines.iter().map(u32::to_string).collect();
        let (by, line) = match &r.outcome {
            Hunt::Caught(catch) if catch.false_alarm => {
                ("FALSE ALARM: the correct kernel fails too".to_owned(), String::new())
            }
            Hunt::Caught(catch) if catch.late => {
                (format!("{}, TOO LATE", catch.check), String::new())
            }
            Hunt::Caught(catch) => {
                let line = catch.line.as_ref().map(|line| match &line.trail {
                    _ if line.right => format!("right, {}:{}", line.file, line.line),
                    Some(at) => format!("trail {}, {}:{}", at.rank, at.file, at.line),
                    None => format!("elsewhere, {}:{}", line.file, line.line),
                });
                (catch.check.clone(), line.unwrap_or_default())
            }
            Hunt::Missed if r.needs.is_some() => ("missed, as known".into(), String::new()),
            Hunt::Missed => ("MISSED".into(), String::new()),
            Hunt::Stillborn(_) => ("STILLBORN".into(), String::new()),
        };
        table.row([
            r.mutant.clone(),
            r.kind.to_string(),
            format!("{}:{}", r.file, lines.join(",")),
            by,
            r.cases.to_string(),
            format!("{:.1}", r.seconds),
            line,
        ]);
    }
    table.write(out, "")?;

    let s = &report.summary;
    writeln!(
        out,
        "\n{} of {} planted bugs caught ({:.1} %), the slowest in {:.1} s; {:.0} s in all\n\
         of {} findings that name a line, {} name one that leads to the bug, {} more have the \
         changed line in their trail ({} among its first three), {} lead elsewhere",
        s.caught,
        s.planted,
        100.0 * s.caught as f64 / s.planted.max(1) as f64,
        s.longest_seconds,
        report.wall_seconds,
        s.lines_named,
        s.lines_right,
        s.in_trail,
        s.in_trail_at_most_third,
        s.lines_named - s.lines_right - s.in_trail
    )?;
    writeln!(out)?;
    let mut checks = Table::new(&["caught by", "bugs"], &[1]);
    for (check, count) in &s.by_check {
        checks.row([check.clone(), count.to_string()]);
    }
    checks.write(out, "")?;
    writeln!(out)?;
    let mut kinds = Table::new(&["kind", "caught", "planted"], &[1, 2]);
    for (kind, [caught, planted]) in &s.by_kind {
        kinds.row([kind.clone(), caught.to_string(), planted.to_string()]);
    }
    kinds.write(out, "")?;
    for r in &report.mutants {
        match (&r.outcome, &r.needs) {
            (Hunt::Missed, Some(needs)) => writeln!(out, "\n{} needs {needs}", r.mutant)?,
            (Hunt::Missed, None) => writeln!(out, "\n{} is MISSED", r.mutant)?,
            (Hunt::Stillborn(reason), _) => {
                writeln!(out, "\n{} cannot be run: {reason}", r.mutant)?;
            }
            (Hunt::Caught(catch), Some(_)) => writeln!(
                out,
                "\n{} is listed as missed but {} catches it: correct the list",
                r.mutant, catch.check
            )?,
            _ => {}
        }
    }
    Ok(())
}
