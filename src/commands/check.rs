//! `check`: a kernel against the oracle on seeded problems.

use super::device_choice::DeviceArgument;
use super::kernel_choice::{KernelArguments, checked};
use super::{Outcome, write_json};
use crate::excerpt::Edited;
use crate::notice;
use crate::table::{Table, grouped};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Serialize;
use spanforge_device::launch_file::{compiler_of_files, read_source};
use spanforge_device::{Basis, Compiler, Device, Image, Source, Target};
use spanforge_kernels::render::spec_of;
use spanforge_kernels::{Decoder, KernelSpec, Limits, render};
use spanforge_verify::{Agreement, Case, CaseReport, agreement, check_with_workers};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Check a configuration or an edited source against the oracle
///
/// Runs the kernel on N generated problems that prefer the edges: empty rows, spans that end at tile
/// and page borders, pages of any size in both layouts, NaN in all unselected tokens. Each answer is compared with attention in f64, each
/// run is repeated and must give the same bits, and on an emulated device every access is checked and
/// no byte of an unselected token may be fetched. Exit code 1 on any finding.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge check --cases 200\n  \
    spanforge render --output mine.cu && spanforge check mine.cu\n  \
    spanforge check mine.cu --seed 17 --cases 1\n  \
    spanforge check case-wrong-answer-1.json\n  \
    spanforge check --device cuda:0 --against emulated:h200")]
pub struct Arguments {
    /// Source with the ABI of the rendered ones; its first lines say what it was rendered for,
    /// --config overrides that [default: the source of --config]. Or a case that fuzz has written, to
    /// be replayed: kernel, problem and schedule are in it
    #[arg(value_name = "SOURCE.cu|CASE.json",
        conflicts_with_all = ["dtype", "head_dim", "group_size", "query_heads", "kv_heads", "queries"])]
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
    /// A second device that must pass the same problems; where both do, their answers are compared
    /// bit by bit
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
    /// Whether an edited source differs from what its configuration renders, and where.
    edited: Option<String>,
    passed: bool,
    devices: Vec<OfDevice>,
    /// How near the two devices are, where there are two and both passed.
    agreement: Option<Agreement>,
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
    /// The source's lines, and which of them somebody has changed.
    lines: Edited,
}

/// What replaying a case came to.
#[derive(Serialize)]
struct Replay {
    case: String,
    configuration: String,
    device: String,
    passed: bool,
    /// Kind of the fault that the case was written for.
    found_before: String,
    report: CaseReport,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    if let Some(path) = arguments.source.as_deref()
        && path.extension().is_some_and(|extension| extension == "json")
    {
        return replay(path, arguments, out);
    }
    if arguments.seed.checked_add(arguments.cases).is_none() {
        bail!("--seed and --cases together are too large; the last seed is at most 2^64 - 1");
    }
    let first = arguments.device.name();
    let mut kernel = None;
    let mut devices = Vec::new();
    for name in std::iter::once(&first).chain(&arguments.against) {
        let device = spanforge_device::open(name)?;
        let limits = Limits::of(device.properties());
        let kernel = match &kernel {
            Some(kernel) => kernel,
            None => kernel.insert(prepare(arguments, limits)?),
        };
        devices.push(check_on(name, device, kernel, arguments)?);
    }
    let kernel = kernel.context("no device was named")?;
    let passed = devices.iter().all(|device| device.fault.is_none());
    let agreement = match &arguments.against {
        Some(against) if passed => Some(agree([&first, against], &kernel, arguments)?),
        _ => None,
    };
    let report = Report {
        configuration: kernel.spec.to_string(),
        source: kernel.source.name.clone(),
        edited: (!kernel.lines.is_as_rendered()).then(|| kernel.lines.changes()),
        passed,
        devices,
        agreement,
    };
    if arguments.json {
        write_json(out, &report)?;
    } else {
        print(&report, &kernel.lines, arguments, out)?;
    }
    Ok(if report.passed { Outcome::Done } else { Outcome::CheckFailed })
}

fn replay(path: &Path, arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    if arguments.kernel.config()?.is_some() || arguments.against.is_some() {
        bail!(
            "{} says which kernel to run and how: leave --config and --against out",
            path.display()
        );
    }
    let text = fs_err::read_to_string(path).context("cannot read the case")?;
    let case = Case::parse(&text).with_context(|| path.display().to_string())?;
    let settings = notice::settings();
    let compiler = match case.source {
        Some(_) => compiler_of_files(&settings)?,
        None => Compiler::new(&settings)?,
    };
    let device = arguments.device.given().unwrap_or(&case.device);
    let report =
        case.replay(&compiler, Some(device)).with_context(|| path.display().to_string())?;
    let passed = report.fault.is_none();
    let lines = match case.kernel.parse::<KernelSpec>() {
        Ok(spec) => {
            let rendered = render(&spec)?;
            let text = case.source.as_deref().unwrap_or(&rendered.text);
            Some(Edited::new("case.cu", text, &rendered.text))
        }
        Err(_) => None,
    };
    let replay = Replay {
        case: path.display().to_string(),
        configuration: case.kernel,
        device: device.to_owned(),
        passed,
        found_before: case.found.kind,
        report,
    };
    if arguments.json {
        write_json(out, &replay)?;
    } else {
        let written =
            if case.source.is_some() { ", edited: its source is in the case" } else { "" };
        writeln!(out, "kernel   {}{written}", replay.configuration)?;
        writeln!(out, "device   {}\nproblem  {}", replay.device, replay.report.problem)?;
        match &replay.report.fault {
            None => writeln!(out, "ok       the case was written for: {}", replay.found_before)?,
            Some(fault) => writeln!(out, "FAULT    {}", fault.to_string().replace('\n', "\n  "))?,
        }
        if let (Some(lines), Some(finding)) = (&lines, replay.report.findings.first()) {
            lines.excerpt(finding, out)?;
        }
    }
    Ok(if passed { Outcome::Done } else { Outcome::CheckFailed })
}

fn prepare(arguments: &Arguments, limits: Limits) -> Result<Kernel> {
    let settings = notice::settings();
    let Some(path) = &arguments.source else {
        let spec = arguments.kernel.spec(limits)?;
        let rendered = render(&spec)?;
        let lines = Edited::new(&rendered.name, &rendered.text, &rendered.text);
        let source = Source::new(rendered.name, rendered.text);
        return Ok(Kernel { spec, source, compiler: Compiler::new(&settings)?, lines });
    };
    let source = read_source(path, &[]).context("cannot read the source")?;
    let spec = match (arguments.kernel.config()?, spec_of(&source.text)) {
        (Some(spec), _) => spec,
        (None, Some(spec)) => spec.with_context(|| path.display().to_string())?,
        (None, None) => {
            return Err(anyhow!(
                "{} does not say what it was rendered for: keep the line `// spanforge-kernel: \
                 ...` of the rendered source, or give --config",
                path.display()
            ));
        }
    };
    let compiler = compiler_of_files(&settings)?;
    let spec = checked(spec, limits)?;
    let lines = Edited::new(&source.name, &source.text, &render(&spec)?.text);
    Ok(Kernel { spec, source, compiler, lines })
}

fn check_on(
    name: &str,
    device: Box<dyn Device>,
    kernel: &Kernel,
    arguments: &Arguments,
) -> Result<OfDevice> {
    let target = Target::Cubin(device.properties().architecture.clone());
    let image = kernel.compiler.compile(&kernel.source, &target)?;
    // Emulated devices cost nothing but memory: one for each core. A GPU is shared by nobody.
    let workers = match device.properties().basis {
        Basis::Measured => 1,
        Basis::Predicted => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let mut devices = vec![device];
    for _ in 1..workers {
        devices.push(spanforge_device::open(name)?);
    }
    let bar = notice::bar(arguments.cases, "checking");
    let seeds = arguments.seed..arguments.seed + arguments.cases;
    let found = check_with_workers(&devices, &image, kernel.spec, seeds, &|| bar.inc(1));
    bar.finish_and_clear();
    let reports = found?;
    Ok(OfDevice {
        device: name.to_owned(),
        cases: reports.len(),
        max_abs_error: reports.iter().map(|r| r.max_abs_error).fold(0.0, f64::max),
        bytes_ratio: reports.iter().filter_map(|r| r.bytes_ratio).reduce(f64::max),
        fault: reports.into_iter().filter(|r| r.fault.is_some()).min_by_key(|r| r.seed),
    })
}

/// Both devices on the same problems, one after the other: a GPU is shared by nobody.
fn agree(names: [&str; 2], kernel: &Kernel, arguments: &Arguments) -> Result<Agreement> {
    let load = |name: &str| -> Result<(Box<dyn Device>, Image)> {
        let device = spanforge_device::open(name)?;
        let target = Target::Cubin(device.properties().architecture.clone());
        let image = kernel.compiler.compile(&kernel.source, &target)?;
        Ok((device, image))
    };
    let (one, one_image) = load(names[0])?;
    let (other, other_image) = load(names[1])?;
    let one = Decoder::load(one.as_ref(), &one_image, kernel.spec)?;
    let other = Decoder::load(other.as_ref(), &other_image, kernel.spec)?;
    Ok(agreement(&one, &other, arguments.seed..arguments.seed + arguments.cases)?)
}

fn print(
    report: &Report,
    lines: &Edited,
    arguments: &Arguments,
    out: &mut dyn Write,
) -> Result<()> {
    writeln!(out, "kernel  {}\nsource  {}", report.configuration, report.source)?;
    if let Some(changes) = &report.edited {
        writeln!(out, "edited  differs from what the configuration renders in {changes}")?;
    }
    writeln!(out)?;
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
    if let Some(a) = &report.agreement {
        writeln!(
            out,
            "\nthe two devices give other bits in {} of {} output elements (by {} units in the last \
             place at most) and in {} of {} LSEs (by {})",
            grouped(a.different as u64),
            grouped(a.elements as u64),
            a.max_ulps,
            grouped(a.different_lse as u64),
            grouped(a.lse as u64),
            a.max_lse_ulps
        )?;
    }
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
        match case.findings.first() {
            Some(finding) => lines.excerpt(finding, out)?,
            None if report.edited.is_some() => {
                writeln!(out, "  no line is named; the source was edited here:")?;
                lines.changes_shown(out)?;
            }
            None => {}
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
