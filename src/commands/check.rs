//! `check`: a kernel against the oracle on seeded problems.

use super::device_choice::{self, DeviceArgument};
use super::kernel_choice::{KernelArguments, checked, default_spec};
use super::{Outcome, write_json};
use crate::notice;
use crate::table::Table;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use fs_err as fs;
use serde::Serialize;
use spanforge_device::{Compiler, Device, Image, Nvrtc, Source, Target};
use spanforge_kernels::render::spec_of;
use spanforge_kernels::{Decoder, KernelSpec, Limits, render};
use spanforge_verify::{CaseReport, check_seeds};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Check a configuration or an edited source against the oracle
///
/// Runs the kernel on N generated problems that prefer the edges: empty rows, spans that end at tile
/// and page borders, every group and page size. Each answer is compared with attention in f64, each
/// run is repeated and must give the same bits, and on an emulated device every access is checked and
/// no byte of an unselected token may be fetched. Exit code 1 on any finding.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge check --cases 200\n  \
    spanforge render --output mine.cu && spanforge check mine.cu\n  \
    spanforge check mine.cu --seed 17 --cases 1\n  \
    spanforge check --device cuda:0 --against emulated:h200")]
pub struct Arguments {
    /// Source with the ABI of the rendered ones; its first lines say what it was rendered for,
    /// --config overrides that [default: the source of --config]
    #[arg(value_name = "SOURCE.cu")]
    source: Option<PathBuf>,
    #[command(flatten)]
    kernel: KernelArguments,
    /// Problems to check
    #[arg(long, value_name = "N", default_value_t = 50,
        value_parser = clap::value_parser!(u64).range(1..))]
    cases: u64,
    /// Seed of the first problem; the others follow
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgument,
    /// A second device that must pass the same problems
    #[arg(long, value_name = "DEVICE")]
    against: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    configuration: String,
    source: String,
    passed: bool,
    devices: Vec<OfDevice>,
}

#[derive(Serialize)]
struct OfDevice {
    device: String,
    cases: usize,
    max_abs_error: f64,
    /// Largest ratio of K and V bytes fetched to those selected, where the device counts.
    bytes_ratio: Option<f64>,
    /// The case with the lowest seed in which something was found.
    fault: Option<CaseReport>,
}

/// A source and what it was compiled for.
struct Kernel {
    spec: KernelSpec,
    source: Source,
    compiler: Compiler,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    if arguments.seed.checked_add(arguments.cases).is_none() {
        bail!("--seed {} leaves no room for {} cases", arguments.seed, arguments.cases);
    }
    let first = arguments.device.name();
    let mut kernel = None;
    let mut devices = Vec::new();
    for name in std::iter::once(&first).chain(&arguments.against) {
        let device = device_choice::open(name)?;
        let limits = Limits::of(device.properties());
        let kernel = match &kernel {
            Some(kernel) => kernel,
            None => kernel.insert(prepare(arguments, limits)?),
        };
        devices.push(check_on(name, device, kernel, arguments)?);
    }
    let kernel = kernel.context("no device was named")?;
    let report = Report {
        configuration: kernel.spec.to_string(),
        source: kernel.source.name,
        passed: devices.iter().all(|device| device.fault.is_none()),
        devices,
    };
    if arguments.json {
        write_json(out, &report)?;
    } else {
        print(&report, arguments, out)?;
    }
    Ok(if report.passed { Outcome::Done } else { Outcome::CheckFailed })
}

fn prepare(arguments: &Arguments, limits: Limits) -> Result<Kernel> {
    let settings = notice::settings();
    let Some(path) = &arguments.source else {
        let spec = arguments.kernel.spec(limits)?;
        let rendered = render(&spec)?;
        let source = Source::new(rendered.name, rendered.text);
        return Ok(Kernel { spec, source, compiler: Compiler::new(&settings)? });
    };
    let text = fs::read_to_string(path).context("cannot read the source")?;
    let spec = match (arguments.kernel.config()?, spec_of(&text)) {
        (Some(spec), _) => spec,
        (None, Some(spec)) => spec.with_context(|| path.display().to_string())?,
        (None, None) if !arguments.kernel.is_default() => {
            default_spec(arguments.kernel.shape()?, limits)?
        }
        (None, None) => {
            return Err(anyhow!(
                "{} does not say what it was rendered for: keep the line `// spanforge-kernel: \
                 ...` of the rendered source, or give --config",
                path.display()
            ));
        }
    };
    let source = Source::new(path.display().to_string(), text);
    // Code is kept by the text of its source, which says nothing of the files that a user's source
    // includes.
    let compiler = Compiler::without_cache(Nvrtc::find(&settings)?);
    Ok(Kernel { spec: checked(spec, limits)?, source, compiler })
}

fn check_on(
    name: &str,
    device: Box<dyn Device>,
    kernel: &Kernel,
    arguments: &Arguments,
) -> Result<OfDevice> {
    let target = Target::Cubin(device.properties().architecture.clone());
    let image = kernel.compiler.compile(&kernel.source, &target)?;
    let reports = if name.starts_with("emulated:") {
        in_parallel(name, &image, kernel, arguments)?
    } else {
        let bar = notice::bar(arguments.cases, "checking");
        let reports = one_by_one(device.as_ref(), &image, kernel.spec, seeds(arguments), || {
            bar.inc(1);
            true
        });
        bar.finish_and_clear();
        reports?
    };
    let largest = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::max);
    Ok(OfDevice {
        device: name.to_owned(),
        cases: reports.len(),
        max_abs_error: largest(&mut reports.iter().map(|r| r.max_abs_error)).unwrap_or(0.0),
        bytes_ratio: largest(&mut reports.iter().filter_map(|r| r.bytes_ratio)),
        fault: reports.into_iter().filter(|r| r.fault.is_some()).min_by_key(|r| r.seed),
    })
}

fn seeds(arguments: &Arguments) -> std::ops::Range<u64> {
    arguments.seed..arguments.seed + arguments.cases
}

/// Checks seeds in order until one has a fault or `go_on` says no.
fn one_by_one(
    device: &dyn Device,
    image: &Image,
    spec: KernelSpec,
    seeds: impl Iterator<Item = u64>,
    go_on: impl Fn() -> bool,
) -> Result<Vec<CaseReport>> {
    let decoder = Decoder::load(device, image, spec)?;
    let mut reports = Vec::new();
    for seed in seeds {
        let found = check_seeds(&decoder, [seed])?;
        let faulty = found.iter().any(|report| report.fault.is_some());
        reports.extend(found);
        if faulty || !go_on() {
            break;
        }
    }
    Ok(reports)
}

/// Checks on every core, each with an emulated device of its own. Seeds are handed out in order, so
/// that every seed below the lowest faulty one is checked.
fn in_parallel(
    name: &str,
    image: &Image,
    kernel: &Kernel,
    arguments: &Arguments,
) -> Result<Vec<CaseReport>> {
    let range = seeds(arguments);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(range.start);
    let bar = notice::bar(arguments.cases, "checking");
    let reports = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        let device = device_choice::open(name)?;
        let taken = std::iter::from_fn(|| {
            Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < range.end)
        });
        let found = one_by_one(device.as_ref(), image, kernel.spec, taken, || {
            bar.inc(1);
            true
        })?;
        if found.iter().any(|report| report.fault.is_some()) {
            next.store(range.end, Ordering::Relaxed);
        }
        let mut reports = reports.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        reports.extend(found);
        Ok(())
    };
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined.map(|end| end.unwrap_or_else(|_| Err(anyhow!("a check ended abruptly")))).collect()
    });
    bar.finish_and_clear();
    outcomes.into_iter().collect::<Result<()>>()?;
    Ok(reports.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

fn print(report: &Report, arguments: &Arguments, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "kernel  {}\nsource  {}\n", report.configuration, report.source)?;
    let heading = ["device", "cases", "worst error", "K and V bytes fetched/selected", ""];
    let mut table = Table::new(&heading, &[1, 2, 3]);
    for device in &report.devices {
        table.row([
            device.device.clone(),
            device.cases.to_string(),
            format!("{:.2e}", device.max_abs_error),
            device.bytes_ratio.map_or("not counted".into(), |ratio| format!("{ratio:.4}")),
            if device.fault.is_none() { "ok".into() } else { "FAULT".into() },
        ]);
    }
    table.write(out, "")?;
    for device in &report.devices {
        let Some(case) = &device.fault else { continue };
        let seed = case.seed.unwrap_or(arguments.seed);
        writeln!(out, "\nfault on {} in the problem of seed {seed}", device.device)?;
        writeln!(out, "  {}", case.problem)?;
        if let Some(fault) = &case.fault {
            for line in fault.to_string().lines() {
                writeln!(out, "  {line}")?;
            }
        }
        let what = match &arguments.source {
            Some(path) => path.display().to_string(),
            None => format!("--config {}", report.configuration),
        };
        writeln!(
            out,
            "reproduce it with: spanforge check {what} --seed {seed} --cases 1 --device {}",
            device.device
        )?;
    }
    Ok(())
}
