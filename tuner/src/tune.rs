//! A tuning run.

use crate::environment::{Environment, unix_seconds};
use crate::export::{Chosen, ExportError, Facts, compile, export};
use crate::proposals::Proposals;
use crate::record::{Candidate, Log, Record, Run, Status, Winner};
use crate::search::{STRATEGIES, Space, strategy};
use crate::workload::{Workload, WorkloadError};
use rayon::prelude::*;
use spanforge_device::{Basis, Compiler, Device, DeviceError, TimeOptions};
use spanforge_kernels::artifact::check_replaceable;
use spanforge_kernels::configuration::ShapeError;
use spanforge_kernels::decoder::UploadOptions;
use spanforge_kernels::{DecodeProblem, Decoder, KernelSpec, Limits, SearchSpace};
use spanforge_verify::check_seeds;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// K and V bytes of the timed problem on an emulated device; see [`Workload::problem`].
const EMULATED_CACHE_BYTES: u64 = 32 << 20;

/// The most that K and V of the timed problem take on a GPU.
const GPU_CACHE_BYTES: u64 = 64 << 30;

/// What to tune, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The batch to be fast on.
    pub workload: Workload,
    /// Device, such as `emulated:h200` or `cuda:0`.
    pub device: String,
    /// Architectures to export machine code for; the device's own where empty.
    pub architectures: Vec<String>,
    /// One of [`STRATEGIES`].
    pub strategy: String,
    /// Configurations to evaluate at most, the default one included.
    pub budget: usize,
    /// Time after which no further configuration is begun.
    pub time_limit: Option<Duration>,
    /// Seed of the search, of the problems and of the tensors.
    pub seed: u64,
    /// Generated problems that each candidate is checked on.
    pub cases: usize,
    /// Folder that the artifact is put in.
    pub output: PathBuf,
    /// Folder that results are appended in.
    pub results: PathBuf,
}

/// What happens during a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// The run begins.
    Started(&'a Run),
    /// A candidate has been evaluated; `done` of `total` have.
    Evaluated {
        /// It.
        candidate: &'a Candidate,
        /// Evaluated so far.
        done: usize,
        /// To evaluate.
        total: usize,
    },
    /// The winner is being exported.
    Exporting(&'a Winner),
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was asked for.
    pub run: Run,
    /// Every candidate in the order of evaluation.
    pub candidates: Vec<Candidate>,
    /// The choice.
    pub winner: Winner,
    /// Folder of the artifact.
    pub artifact: PathBuf,
    /// File that the run was appended to.
    pub results: PathBuf,
}

/// A run that ends without an artifact.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The kernels do not serve the workload's shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A workload that cannot be timed.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// Seeds beyond the last.
    #[error("the seed and the number of cases together are too large; the last seed is 2^64 - 1")]
    Seeds,
    /// Nothing would be checked.
    #[error("0 cases: a candidate is checked on at least one problem before it is timed")]
    NoCases,
    /// An architecture that names PTX, which an artifact has in any case.
    #[error("`{0}` has no machine code to export: name an architecture such as sm_90a")]
    NoMachineCode(String),
    /// No configuration fits.
    #[error("no configuration for {shape} fits {device}: {reason}")]
    EmptySpace {
        /// The shape.
        shape: String,
        /// The device.
        device: String,
        /// What rules most out.
        reason: String,
    },
    /// An unknown strategy.
    #[error("there is no strategy `{0}`: use one of {known}", known = STRATEGIES.join(", "))]
    Strategy(String),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The results or the artifact cannot be written.
    #[error("results cannot be kept: {0}")]
    Write(#[from] std::io::Error),
    /// Nothing works.
    #[error("none of {count} candidates is correct; the first failed with: {first}")]
    AllFailed {
        /// Candidates.
        count: usize,
        /// Why the first failed.
        first: String,
    },
    /// The export.
    #[error(transparent)]
    Export(#[from] ExportError),
}

impl Space for SearchSpace {
    fn sizes(&self) -> Vec<usize> {
        self.parameters().iter().map(|p| p.values.len()).collect()
    }

    fn is_valid(&self, point: &[usize]) -> bool {
        self.at(point).is_some_and(|c| self.broken_constraint(&c).is_none())
    }

    fn is_ordered(&self, parameter: usize) -> bool {
        self.parameters()[parameter].words.is_empty()
    }

    fn number(&self, parameter: usize, value: usize) -> Option<f64> {
        let parameter = &self.parameters()[parameter];
        parameter.words.is_empty().then(|| f64::from(parameter.values[value]))
    }
}

/// Tunes, records, exports.
pub fn tune(
    request: &Request,
    compiler: &Compiler,
    progress: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Outcome, TuneError> {
    let started = Instant::now();
    let seeds =
        request.seed..request.seed.checked_add(request.cases as u64).ok_or(TuneError::Seeds)?;
    if seeds.is_empty() {
        return Err(TuneError::NoCases);
    }
    let device = spanforge_device::open(&request.device)?;
    let properties = device.properties().clone();
    let architectures = match request.architectures.as_slice() {
        [] => vec![properties.architecture.clone()],
        named => named.to_vec(),
    };
    let shape = request.workload.attention.kernel_shape()?;
    let space = SearchSpace::new(shape, Limits::of(&properties));
    let census = space.census();
    let Some(default) = space.default_configuration() else {
        let worst = census.pruned.iter().max_by_key(|p| p.1).map_or("", |p| p.0);
        return Err(TuneError::EmptySpace {
            shape: shape.to_string(),
            device: properties.name,
            reason: format!("most points break the constraint `{worst}`"),
        });
    };
    let strategy = strategy(&request.strategy, request.seed)
        .ok_or_else(|| TuneError::Strategy(request.strategy.clone()))?;
    let mut proposals = Proposals::new(&space, default, strategy);
    // An unknown architecture is found out now, not after the search.
    for architecture in &architectures {
        if architecture.starts_with("compute_") {
            return Err(TuneError::NoMachineCode(architecture.clone()));
        }
        compile(compiler, proposals.default(), architecture)?;
    }

    let emulated = properties.basis == Basis::Predicted;
    let cache_bytes = if emulated { EMULATED_CACHE_BYTES } else { GPU_CACHE_BYTES };
    let problem = request.workload.problem(request.seed, cache_bytes)?;
    let floor_bytes = problem.floor_bytes();
    let unix_s = unix_seconds();
    let run = Run {
        run: format!("{}-{}-{unix_s}-{}", request.workload.name, request.device, request.seed),
        unix_s,
        environment: Environment::current(compiler.nvrtc().version()),
        device: request.device.clone(),
        floor_us: 1e6
            * (floor_bytes as f64 / properties.dram_bytes_per_second)
                .max(problem.flops() / properties.float32_per_second),
        properties,
        workload: request.workload.name.clone(),
        problem: request.workload.describe(),
        floor_bytes,
        strategy: request.strategy.clone(),
        seed: request.seed,
        budget: request.budget,
        valid_configurations: census.valid,
    };
    let results = request.results.join("tune.jsonl");
    let mut log = Log::open(&results)?;
    // So is a folder that cannot be written, or one that is in the way.
    let directory = request.output.join(format!("{}-{shape}", file_name(&request.workload.name)));
    check_replaceable(&directory).map_err(ExportError::from)?;
    fs_err::create_dir_all(&request.output)?;
    tempfile::tempfile_in(&request.output)
        .map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", request.output.display())))?;
    log.append(&Record::Run(Box::new(run.clone())))?;
    progress(Event::Started(&run));

    let evaluator = Evaluator { request, compiler, problem: &problem, run: &run };
    let mut candidates: Vec<Candidate> = Vec::new();
    let chunk = if emulated { 2 * rayon::current_num_threads() } else { 8 };
    let budget = request.budget.max(1);
    loop {
        let base = candidates.len();
        if base > 0 && request.time_limit.is_some_and(|limit| started.elapsed() >= limit) {
            break;
        }
        let specs_here = proposals.take(chunk.min(budget - base), &candidates);
        if specs_here.is_empty() {
            break;
        }
        // Compiled side by side; what a GPU does is timed alone.
        let evaluated: Vec<Candidate> = if emulated {
            specs_here
                .par_iter()
                .enumerate()
                .map(|(i, spec)| evaluator.candidate(base + i, *spec, None))
                .collect()
        } else {
            specs_here.par_iter().for_each(|spec| {
                // Whatever is wrong is found again, and recorded, when the candidate is evaluated.
                let _ = compile(compiler, spec, &run.properties.architecture);
            });
            let device = device.as_ref();
            let evaluate = |(i, spec): (usize, &KernelSpec)| {
                evaluator.candidate(base + i, *spec, Some(device))
            };
            specs_here.iter().enumerate().map(evaluate).collect()
        };
        for candidate in evaluated {
            log.append(&Record::Candidate(Box::new(candidate.clone())))?;
            progress(Event::Evaluated {
                candidate: &candidate,
                done: candidate.index + 1,
                total: budget.min(usize::try_from(census.valid).unwrap_or(usize::MAX)),
            });
            candidates.push(candidate);
        }
        proposals.tell(&candidates[base..]);
    }

    let winner = choose(&run, &candidates)?;
    progress(Event::Exporting(&winner));
    let find = |id: &str| candidates.iter().find(|c| c.id == id);
    let mut chosen: Vec<Chosen<'_>> = find(&winner.id)
        .map(|candidate| Chosen { candidate, role: "winner" })
        .into_iter()
        .collect();
    // The default stays at hand for devices that cannot hold the winner.
    if let Some(candidate) =
        candidates.first().filter(|c| c.id != winner.id && c.status == Status::Correct)
    {
        chosen.push(Chosen { candidate, role: "default" });
    }
    let evidence = serde_json::json!({ "run": run, "winner": winner });
    let facts = Facts {
        workload: request.workload.name.clone(),
        device: request.device.clone(),
        unix_s,
        evidence,
    };
    export(&directory, &chosen, &architectures, facts, compiler, device.as_ref(), seeds)?;
    log.append(&Record::Winner(winner.clone()))?;
    Ok(Outcome { run, candidates, winner, artifact: directory, results })
}

struct Evaluator<'a> {
    request: &'a Request,
    compiler: &'a Compiler,
    problem: &'a DecodeProblem,
    run: &'a Run,
}

impl Evaluator<'_> {
    /// Everything about one candidate, on `device` or on an emulated one of its own.
    fn candidate(&self, index: usize, spec: KernelSpec, device: Option<&dyn Device>) -> Candidate {
        let mut candidate = Candidate {
            run: self.run.run.clone(),
            index,
            id: spec.to_string(),
            spec,
            status: Status::Runtime,
            detail: None,
            cases: 0,
            first_case_seed: self.request.seed,
            max_abs_error: 0.0,
            bytes_ratio: None,
            basis: self.run.properties.basis,
            samples_us: Vec::new(),
            time_us: None,
            predictions: Vec::new(),
            resources: BTreeMap::new(),
            shared_bytes: spec.configuration.shared_bytes(&spec.shape),
            compile_s: 0.0,
            check_s: 0.0,
            time_s: 0.0,
        };
        let (status, detail) = match self.evaluate(&mut candidate, device) {
            Ok(()) => (Status::Correct, None),
            Err((status, detail)) => (status, Some(detail)),
        };
        candidate.status = status;
        candidate.detail = detail;
        candidate
    }

    fn time_options(&self) -> TimeOptions {
        TimeOptions { stand_ins: stand_ins(self.problem), ..TimeOptions::default() }
    }

    fn evaluate(
        &self,
        candidate: &mut Candidate,
        device: Option<&dyn Device>,
    ) -> Result<(), (Status, String)> {
        let begun = Instant::now();
        let image = compile(self.compiler, &candidate.spec, &self.run.properties.architecture)
            .map_err(|e| (Status::Compile, e.to_string()))?;
        candidate.compile_s = begun.elapsed().as_secs_f64();
        candidate.resources = image.resources.clone();

        let runtime = |e: &dyn std::fmt::Display| (Status::Runtime, e.to_string());
        let own = match device {
            Some(_) => None,
            None => Some(spanforge_device::open(&self.run.device).map_err(|e| runtime(&e))?),
        };
        let device = device.or(own.as_deref()).expect("one of the two is there");
        let begun = Instant::now();
        let decoder = Decoder::load(device, &image, candidate.spec).map_err(|e| runtime(&e))?;
        let seed = self.request.seed;
        // The last seed was checked to exist.
        let reports = check_seeds(&decoder, seed..seed + self.request.cases as u64)
            .map_err(|e| runtime(&e))?;
        candidate.check_s = begun.elapsed().as_secs_f64();
        candidate.cases = reports.len();
        for report in &reports {
            candidate.max_abs_error = candidate.max_abs_error.max(report.max_abs_error);
            candidate.bytes_ratio = report.bytes_ratio.or(candidate.bytes_ratio);
            if let Some(fault) = &report.fault {
                let seed = report.seed.unwrap_or(0);
                let place = format!("seed {seed} ({}): {fault}", report.problem);
                return Err((Status::Correctness, place));
            }
        }

        let begun = Instant::now();
        let resident =
            decoder.upload(self.problem, UploadOptions::default()).map_err(|e| runtime(&e))?;
        // A GPU runs the whole problem once before it is timed; an emulated device samples it.
        if device.properties().basis == Basis::Measured {
            decoder.run(&resident).map_err(|e| runtime(&e))?;
        }
        let timing = device
            .time(&decoder.launches(&resident), &self.time_options())
            .map_err(|e| runtime(&e))?;
        candidate.time_s = begun.elapsed().as_secs_f64();
        candidate.time_us = Some(timing.median_us());
        candidate.samples_us = timing.samples_us;
        candidate.predictions = timing.predictions;
        Ok(())
    }
}

/// A problem whose requests share pages stands for one in which they do not.
fn stand_ins(problem: &DecodeProblem) -> Vec<String> {
    let mut pages: Vec<i32> = problem.page_table.iter().copied().filter(|p| *p >= 0).collect();
    let entries = pages.len();
    pages.sort_unstable();
    pages.dedup();
    if pages.len() < entries { ["k", "v"].map(str::to_owned).to_vec() } else { Vec::new() }
}

/// The fastest correct candidate, or the default configuration where the gain over it is within what
/// its own samples vary by. Equal times are decided by the smaller identifier, so that the same
/// numbers always give the same winner.
fn choose(run: &Run, candidates: &[Candidate]) -> Result<Winner, TuneError> {
    let mut correct: Vec<(f64, &str)> = candidates
        .iter()
        .filter(|c| c.status == Status::Correct)
        .filter_map(|c| Some((c.time_us?, c.id.as_str())))
        .collect();
    correct.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
    let default = candidates.first().filter(|c| c.status == Status::Correct);
    if let Some((default, default_us)) = default.and_then(|c| Some((c, c.time_us?)))
        && let Some(best) = correct.first()
        && default_us - best.0 <= spread(&default.samples_us)
    {
        correct.retain(|c| c.1 != default.id);
        correct.insert(0, (default_us, &default.id));
    }
    let Some(&(time_us, id)) = correct.first() else {
        let first = candidates.first().and_then(|c| c.detail.clone());
        return Err(TuneError::AllFailed {
            count: candidates.len(),
            first: first.unwrap_or_else(|| "nothing was evaluated".to_owned()),
        });
    };
    Ok(Winner {
        run: run.run.clone(),
        id: id.to_owned(),
        time_us,
        basis: run.properties.basis,
        default_us: default.and_then(|c| c.time_us),
        runner_up: correct.get(1).map(|c| c.1.to_owned()),
        runner_up_us: correct.get(1).map(|c| c.0),
        over_floor: time_us / run.floor_us,
    })
}

/// The range of the middle half of the samples; 0 for a single one.
fn spread(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 | 1 => 0.0,
        n => sorted[3 * (n - 1) / 4] - sorted[(n - 1) / 4],
    }
}

/// A workload's name as part of a folder's name: a trace file loses its folders and ending.
fn file_name(workload: &str) -> String {
    let path = std::path::Path::new(workload);
    let stem = match path.extension() {
        Some(end) if end == "jsonl" => path.file_stem(),
        _ => path.file_name(),
    };
    stem.map_or_else(|| "workload".to_owned(), |s| s.to_string_lossy().into_owned())
}
