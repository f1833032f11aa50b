//! `fuzz`: problems x configurations x schedules until something is found.

use super::device_choice::DeviceArgument;
use super::kernel_choice::{KernelArguments, checked};
use super::{Outcome, write_json};
use crate::{atomic_file, notice};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use fs_err as fs;
use indicatif::{ProgressBar, ProgressStyle};
use report::{Found, Known, LostCase, Report, print};
use spanforge_device::launch_file::{compiler_of_files, read_source};
use spanforge_device::{Basis, CompileError, Compiler, Image, Source};
use spanforge_kernels::render::spec_of;
use spanforge_kernels::{KernelShape, KernelSpec, Limits, SearchSpace, render};
use spanforge_spans::trace::Preset;
use spanforge_spans::{Dtype, KvDtype};
use spanforge_tuner::search::{Point, Space, strategy};
use spanforge_verify::Case;
use spanforge_verify::case::{CaseError, kind, target_of};
use spanforge_verify::fuzz::{Failure, Lost, Options, Subject, Summary, WORKER_LOST, fuzz};
use spanforge_verify::fuzz_coverage::parameter_coverage;
use spanforge_verify::ledger::Ledger;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

mod report;

/// Cases where neither a count nor a time is given.
const DEFAULT_CASES: u64 = 10_000;

/// Fuzz configurations or an edited source, and shrink what fails
///
/// Draws problems that prefer the edges, configurations from the search spaces, schedules of warps
/// and sizes of the device, and checks each case as `check` does, in a process for each core. The
/// first fault is made as small as possible and written to a case file that `spanforge check` replays;
/// so is a case in which a process was killed, crashed or did not answer. What is found does not depend
/// on the number of processes. Ends after --cases or --time, or at Ctrl-C with the summary of what was
/// done. Exit code 1 on any finding.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge fuzz --time 60\n  \
    spanforge render --output mine.cu && spanforge fuzz mine.cu\n  \
    spanforge fuzz --head-dim 256 --group-size 6 --configs 100 --cases 100000\n  \
    spanforge check case-wrong-answer-17.json")]
pub struct Arguments {
    /// Source with the ABI of the rendered ones; its first lines say what it was rendered for,
    /// --config overrides that [default: configurations drawn from the search spaces]
    #[arg(value_name = "SOURCE.cu",
        conflicts_with_all = ["dtype", "head_dim", "group_size", "query_heads", "kv_heads", "queries"])]
    source: Option<PathBuf>,
    #[command(flatten)]
    kernel: KernelArguments,
    /// Configurations to draw: of the shape that is given, else of the presets' shapes and a few odd
    /// ones; of each shape the default configuration first
    #[arg(long, value_name = "N", default_value_t = 24, conflicts_with_all = ["source", "config"],
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    configs: u32,
    /// End after that many seconds of checking
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    time: Option<u64>,
    /// End after that many cases [default: 10000 without --time]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    cases: Option<u64>,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgument,
    /// Worker processes [default: one for each core; one for a GPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    workers: Option<u32>,
    /// Longest time for one case: a worker that takes longer is given up, and the case named
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    case_limit: u64,
    /// Go on after a fault; one case file for each kernel and kind of fault
    #[arg(long)]
    keep_going: bool,
    /// Folder for case files
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Known faults to tolerate: JSON lines with kernel (an id, * for anything), kind, reason and
    /// case (a case file, from the ledger's folder); an entry whose case passes is a failure
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let device = arguments.device.name();
    let opened = spanforge_device::open(&device)?;
    let limits = Limits::of(opened.properties());
    let target = target_of(opened.as_ref());
    let basis = opened.properties().basis;
    drop(opened);
    if !arguments.output.is_dir() {
        bail!("--output {}: there is no such folder; make it first", arguments.output.display());
    }
    let stop = super::worker::stop_at_interrupt("ending with the summary")?;
    let settings = notice::settings();
    let ledger = match &arguments.ledger {
        Some(path) => read_ledger(path)?,
        None => Ledger::default(),
    };

    let (sources, specs, compiler) = match &arguments.source {
        Some(path) => {
            let source = read_source(path, &[]).context("cannot read the source")?;
            let spec = checked(spec_of_source(path, &source, &arguments.kernel)?, limits)?;
            (vec![source], vec![spec], compiler_of_files(&settings)?)
        }
        None => {
            let specs = specs(arguments, limits)?;
            let rendered = specs.iter().map(|spec| {
                let rendered = render(spec)?;
                Ok(Source::new(rendered.name, rendered.text))
            });
            (rendered.collect::<Result<Vec<_>>>()?, specs, Compiler::new(&settings)?)
        }
    };
    let bar = notice::bar(sources.len() as u64, "compiling");
    let images = compile(&sources, &stop, |source| {
        bar.inc(1);
        compiler.compile(source, &target)
    });
    bar.finish_and_clear();
    // Interrupted before all were compiled: what there is gets its summary.
    let edited = arguments.source.is_some();
    let subjects: Vec<Subject> = images?
        .into_iter()
        .zip(specs.iter().zip(&sources))
        .map(|(image, (spec, source))| Subject {
            spec: *spec,
            image,
            source: edited.then(|| source.text.clone()),
        })
        .collect();

    let standing = still_failing(&ledger, arguments.ledger.as_deref(), &settings)?;
    let options = Options {
        device: device.clone(),
        seed: arguments.seed,
        cases: arguments.cases.unwrap_or(match arguments.time {
            Some(_) => u64::MAX,
            None => DEFAULT_CASES,
        }),
        time: arguments.time.map(Duration::from_secs),
        keep_going: arguments.keep_going,
        case_limit: Duration::from_secs(arguments.case_limit),
        workers: match (arguments.workers, basis) {
            // A GPU is shared by nobody unless somebody says so.
            (None, Basis::Measured) => 1,
            (None, Basis::Predicted) => std::thread::available_parallelism().map_or(1, usize::from),
            (Some(workers), _) => workers as usize,
        },
        ledger,
    };
    let worker = super::worker::command(super::worker::FUZZ)?;
    let progress = progress();
    let summary = fuzz(&subjects, &options, &stop, &worker, &|| progress.inc(1));
    progress.finish_and_clear();
    let summary = summary?;
    let report = report(arguments, &options, &subjects, limits, summary, standing, &stop)?;
    if arguments.json {
        write_json(out, &report)?;
    } else {
        print(&report, out)?;
    }
    Ok(if report.passed { Outcome::Done } else { Outcome::CheckFailed })
}

/// A counter with a rate; it draws itself only where standard error is a terminal.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("fuzzing {spinner} {pos} cases, {per_sec}, {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

fn spec_of_source(path: &Path, source: &Source, kernel: &KernelArguments) -> Result<KernelSpec> {
    match (kernel.config()?, spec_of(&source.text)) {
        (Some(spec), _) => Ok(spec),
        (None, Some(spec)) => spec.with_context(|| path.display().to_string()),
        (None, None) => Err(anyhow!(
            "{} does not say what it was rendered for: keep the line `// spanforge-kernel: ...` of \
             the rendered source, or give --config",
            path.display()
        )),
    }
}

/// The spaces of kernels for one row at a time, for several and for many.
fn spaces(shape: KernelShape, limits: Limits) -> [SearchSpace; 3] {
    [1, 4, 128].map(|rows| SearchSpace::for_rows(shape, limits, rows))
}

/// The kernels to fuzz.
fn specs(arguments: &Arguments, limits: Limits) -> Result<Vec<KernelSpec>> {
    if arguments.kernel.config()?.is_some() {
        return Ok(vec![arguments.kernel.spec(limits)?]);
    }
    let shapes = match arguments.kernel.given_shape()? {
        Some(shape) => vec![shape],
        None => usual_shapes(),
    };
    let spaces: Vec<Sampled> =
        shapes.into_iter().flat_map(|shape| spaces(shape, limits)).map(Sampled).collect();
    let mut draws: Vec<_> = (0u64..)
        .zip(&spaces)
        .map(|(index, _)| strategy("random", arguments.seed.wrapping_add(index)))
        .collect();
    let mut specs = Vec::new();
    let wanted = arguments.configs as usize;
    // Round by round, so that every shape has its share; the first round are the defaults.
    for round in 0.. {
        let before = specs.len();
        for (space, draw) in spaces.iter().zip(&mut draws) {
            let configuration = if round == 0 {
                space.0.default_configuration()
            } else {
                let point = draw.as_mut().and_then(|draw| draw.propose(space));
                point.and_then(|point| space.0.at(&point))
            };
            if let Some(configuration) = configuration
                && specs.len() < wanted
            {
                specs.push(KernelSpec { shape: space.0.shape(), configuration });
            }
        }
        if specs.len() == before || specs.len() >= wanted {
            break;
        }
    }
    if specs.is_empty() {
        bail!("no configuration serves the shape on this device; `spanforge configs` counts why");
    }
    Ok(specs)
}

/// The shapes of the presets and of Llama-3-8B, a group that no number of warps divides, a group of
/// three, and caches of 8-bit elements.
fn usual_shapes() -> Vec<KernelShape> {
    let mut shapes: Vec<KernelShape> = Preset::ALL
        .iter()
        .map(|preset| {
            let model = preset.shape();
            let group_size = model.query_heads / model.kv_heads;
            KernelShape::new(model.dtype, model.head_dim, group_size)
        })
        .collect();
    for (dtype, kv_dtype, head_dim, group_size) in [
        (Dtype::F16, KvDtype::Same, 128, 4),
        (Dtype::Bf16, KvDtype::Same, 64, 7),
        (Dtype::F16, KvDtype::Same, 64, 3),
        (Dtype::Bf16, KvDtype::E4m3, 128, 4),
        (Dtype::F16, KvDtype::E4m3, 64, 2),
    ] {
        shapes.push(KernelShape { dtype, kv_dtype, head_dim, group_size });
    }
    shapes
}

/// A search space as the strategies see it.
struct Sampled(SearchSpace);

impl Space for Sampled {
    fn sizes(&self) -> Vec<usize> {
        self.0.parameters().iter().map(|parameter| parameter.values.len()).collect()
    }

    fn is_valid(&self, point: &[usize]) -> bool {
        let point: Point = point.to_vec();
        self.0.at(&point).is_some_and(|c| self.0.broken_constraint(&c).is_none())
    }
}

/// Compiles the sources on all cores; after an interrupt those that were begun, in order.
fn compile(
    sources: &[Source],
    stop: &AtomicBool,
    one: impl Fn(&Source) -> Result<Image, CompileError> + Sync,
) -> Result<Vec<Image>> {
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut made = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(source) = sources.get(index) else { break };
            made.push((index, one(source)));
        }
        made
    };
    let mut made: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let joined = handles.into_iter().map(|handle| handle.join());
        joined
            .flat_map(|made| made.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    made.sort_by_key(|(index, _)| *index);
    Ok(made.into_iter().map(|(_, image)| image).collect::<Result<_, _>>()?)
}

fn read_ledger(path: &Path) -> Result<Ledger> {
    let text = fs::read_to_string(path).context("cannot read the ledger")?;
    Ledger::parse(&text).with_context(|| format!("{} is not a ledger", path.display()))
}

/// Per entry of the ledger whether its case still fails as it says.
fn still_failing(
    ledger: &Ledger,
    path: Option<&Path>,
    settings: &spanforge_device::Settings,
) -> Result<Vec<bool>> {
    if ledger.0.is_empty() {
        return Ok(Vec::new());
    }
    let folder = path.and_then(Path::parent).unwrap_or(Path::new(""));
    let compiler = compiler_of_files(settings)?;
    let stands = ledger.0.iter().map(|entry| {
        let path = folder.join(&entry.case);
        let text = fs::read_to_string(&path).context("cannot read a case of the ledger")?;
        let replayed = Case::parse(&text).and_then(|case| case.replay(&compiler, None));
        let report = replayed.map_err(|error: CaseError| {
            anyhow!(error).context(format!("{} cannot be replayed", path.display()))
        })?;
        Ok(kind(&report).as_ref() == Some(&entry.kind))
    });
    stands.collect()
}

fn report(
    arguments: &Arguments,
    options: &Options,
    subjects: &[Subject],
    limits: Limits,
    summary: Summary,
    standing: Vec<bool>,
    stop: &AtomicBool,
) -> Result<Report> {
    let failures = summary
        .failures
        .iter()
        .map(|failure| write_failure(arguments, options, subjects, failure))
        .collect::<Result<Vec<_>>>()?;
    let lost = summary
        .lost
        .iter()
        .map(|lost| write_lost(arguments, options, subjects, lost))
        .collect::<Result<Vec<_>>>()?;
    let tolerated = summary.tolerated.iter().copied().chain(std::iter::repeat(0));
    let ledger: Vec<Known> = options
        .ledger
        .0
        .iter()
        .zip(tolerated)
        .zip(standing)
        .map(|((entry, tolerated), stands)| Known {
            kernel: entry.kernel.clone(),
            kind: entry.kind.clone(),
            reason: entry.reason.clone(),
            case: entry.case.clone(),
            tolerated,
            stands,
        })
        .collect();
    let specs: Vec<KernelSpec> = subjects.iter().map(|subject| subject.spec).collect();
    let mut offered: Vec<SearchSpace> = Vec::new();
    for spec in &specs {
        if offered.iter().all(|space| space.shape() != spec.shape) {
            offered.extend(spaces(spec.shape, limits));
        }
    }
    let passed = failures.is_empty()
        && summary.panic_count == 0
        && summary.lost_count == 0
        && ledger.iter().all(|known| known.stands);
    Ok(Report {
        passed,
        device: options.device.clone(),
        seed: options.seed,
        configurations: specs.iter().map(ToString::to_string).collect(),
        cases: summary.cases,
        seconds: summary.seconds,
        cases_per_second: summary.cases as f64 / summary.seconds.max(1e-9),
        interrupted: stop.load(Ordering::Relaxed),
        fewest_cases_per_configuration: summary.cases_per_kernel.0,
        failures,
        faulty_cases: summary.faulty_cases,
        lost,
        lost_count: summary.lost_count,
        ledger,
        panics: summary.panics,
        panic_count: summary.panic_count,
        edges: summary.coverage,
        lines: summary.lines,
        parameters: parameter_coverage(&offered, &specs),
    })
}

fn subject_of<'a>(subjects: &'a [Subject], spec: &KernelSpec) -> Result<&'a Subject> {
    let found = subjects.iter().find(|subject| subject.spec == *spec);
    found.context("the failing kernel is not among those fuzzed")
}

fn created_by(options: &Options, case: u64) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("spanforge {version} fuzz --seed {}, case {case}", options.seed)
}

/// Writes a case file; gives its path and the command that replays it.
fn write_case(
    arguments: &Arguments,
    kind: &str,
    number: u64,
    case: &Case,
) -> Result<(String, String)> {
    let file = arguments.output.join(format!("case-{kind}-{number}.json"));
    atomic_file::write(&file, case.to_json().as_bytes())?;
    let file = file.display().to_string();
    let replay = format!("spanforge check {file}");
    Ok((file, replay))
}

fn write_failure(
    arguments: &Arguments,
    options: &Options,
    subjects: &[Subject],
    failure: &Failure,
) -> Result<Found> {
    let subject = subject_of(subjects, &failure.spec)?;
    let written = failure.case_file(subject, &options.device, created_by(options, failure.case));
    let (file, replay) = write_case(arguments, &failure.kind, failure.case, &written)?;
    Ok(Found {
        case: failure.case,
        configuration: failure.spec.to_string(),
        kind: failure.kind.clone(),
        file,
        replay,
        attempts: failure.attempts,
        report: failure.report.clone(),
    })
}

fn write_lost(
    arguments: &Arguments,
    options: &Options,
    subjects: &[Subject],
    lost: &Lost,
) -> Result<LostCase> {
    let subject = subject_of(subjects, &lost.spec)?;
    let written = lost.case_file(subject, &options.device, created_by(options, lost.case));
    let (file, replay) = write_case(arguments, WORKER_LOST, lost.case, &written)?;
    Ok(LostCase {
        case: lost.case,
        configuration: lost.spec.to_string(),
        kind: WORKER_LOST,
        how: lost.how.clone(),
        schedule: lost.trial.schedule,
        tensors: lost.trial.problem.tensors,
        file,
        replay,
    })
}
