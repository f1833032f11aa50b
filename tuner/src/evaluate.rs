//! One candidate: compiled, checked, timed. It happens in a worker process, so that a candidate
//! that crashes, hangs or eats all memory costs itself alone.

use crate::buckets::summarised;
use crate::export::{ExportError, compile, compile_source};
use crate::measure::{BATCH, ROUNDS, interleave, measure};
use crate::record::{Candidate, Finalist, Remeasured, Run, Status, Study, Timed};
use crate::tune::TuneError;
use crate::workers::CandidateLimits;
use crate::workload::{Workload, WorkloadError};
use serde::{Deserialize, Serialize};
use spanforge_device::{
    Basis, Compiler, Device, DeviceError, DeviceProperties, Prediction, TimeOptions, Timing, median,
};
use spanforge_emulator::LineCount;
use spanforge_kernels::decoder::{DecoderError, UploadOptions};
use spanforge_kernels::{DecodeProblem, Decoder, KernelSpec, render};
use spanforge_verify::check_seeds;
use std::io::{self, Write};
use std::time::Instant;

/// The most that K and V of the timed problem take on an emulated device.
const EMULATED_CACHE_BYTES: u64 = 32 << 20;

/// The most that K and V of the timed problem take on a GPU.
const GPU_CACHE_BYTES: u64 = 64 << 30;

/// From the parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The first one.
    Setup(Box<Setup>),
    /// Compile a configuration, so that the compiler has it at hand when it is evaluated.
    Compile(Job),
    /// Compile, check and time a configuration.
    Evaluate(Job),
    /// Time configurations that are known to be correct once more, in turn.
    Remeasure(Vec<Job>),
}

/// What all candidates of a run have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Name of the run.
    pub run: String,
    /// What it follows from.
    pub study: Study,
    /// Architecture of the device.
    pub architecture: String,
    /// Whether its times are predicted or measured.
    pub basis: Basis,
    /// The most address space that the worker may have, in bytes; none for a GPU, whose driver
    /// reserves more than there is.
    pub memory_bytes: Option<u64>,
}

impl Setup {
    /// What workers of a run are told, of a study on a device of their own.
    pub(crate) fn new(run: &Run, study: Study, limits: &CandidateLimits) -> Self {
        let memory_bytes = match run.properties.basis {
            Basis::Predicted => Some(limits.memory_bytes),
            Basis::Measured => None,
        };
        Self {
            run: run.run.clone(),
            study,
            architecture: run.properties.architecture.clone(),
            basis: run.properties.basis,
            memory_bytes,
        }
    }
}

/// A configuration to work on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Its position in the order of the run.
    pub index: usize,
    /// It.
    pub spec: KernelSpec,
    /// The best time that is known, in microseconds: what is clearly behind it is not measured on.
    #[serde(default)]
    pub best_us: Option<f64>,
}

/// From a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The device is there.
    Ready,
    /// What it begins now.
    Phase(Phase),
    /// The configuration was compiled, which took these seconds.
    Compiled(f64),
    /// The configuration is done with.
    Done(Box<Candidate>),
    /// The configurations once more; none where that failed.
    Remeasured(Remeasured),
    /// The worker cannot work, whatever the configuration.
    Failed(String),
}

/// What is done with a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Rendering and NVRTC.
    Compiling,
    /// The problems against the oracle.
    Checking,
    /// The workload's problem.
    Timing,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Compiling => "compiling",
            Self::Checking => "checking",
            Self::Timing => "timing",
        })
    }
}

/// Opens the device of a name.
pub type Open<'a> = &'a dyn Fn(&str) -> Result<Box<dyn Device>, DeviceError>;

/// Answers `requests` until there are no more, on what `open` makes of the device's name. `alter` may
/// change the source of a configuration
/// before it is compiled, by position: a test's way to a bad one.
///
/// # Errors
/// Replies that nobody reads.
pub fn serve(
    requests: impl IntoIterator<Item = Request>,
    replies: &mut dyn Write,
    compiler: &Compiler,
    open: Open<'_>,
    alter: &dyn Fn(usize, String) -> String,
) -> io::Result<()> {
    let mut tell = |reply: Reply| {
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        replies.write_all(&line)?;
        replies.flush()
    };
    let mut worker = None;
    for request in requests {
        match (request, &worker) {
            (Request::Setup(setup), _) => match Worker::new(*setup, compiler, open, alter) {
                Ok(ready) => {
                    worker = Some(ready);
                    tell(Reply::Ready)?;
                }
                Err(reason) => tell(Reply::Failed(reason))?,
            },
            (Request::Compile(job), Some(worker)) => {
                let reply = worker.compile(&job, &mut tell)?;
                tell(reply)?;
            }
            (Request::Evaluate(job), Some(worker)) => {
                let candidate = worker.candidate(&job, &mut tell)?;
                tell(Reply::Done(Box::new(candidate)))?;
            }
            (Request::Remeasure(jobs), Some(worker)) => {
                // Nobody is at fault: the samples that there are have to do.
                tell(Reply::Remeasured(worker.remeasure(&jobs).unwrap_or_default()))?;
            }
            (_, None) => tell(Reply::Failed("the setup comes first".to_owned()))?,
        }
    }
    Ok(())
}

type Tell<'a> = dyn FnMut(Reply) -> io::Result<()> + 'a;

struct Worker<'a> {
    setup: Setup,
    compiler: &'a Compiler,
    alter: &'a dyn Fn(usize, String) -> String,
    device: Box<dyn Device>,
    /// One per batch.
    problems: Vec<DecodeProblem>,
}

/// Why a candidate is not timed: it is at fault, or nobody reads what becomes of it.
enum Stop {
    Fault(Status, String),
    Replies(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Replies(error)
    }
}

fn runtime(error: impl std::fmt::Display) -> Stop {
    Stop::Fault(Status::Runtime, error.to_string())
}

impl<'a> Worker<'a> {
    fn new(
        setup: Setup,
        compiler: &'a Compiler,
        open: Open<'_>,
        alter: &'a dyn Fn(usize, String) -> String,
    ) -> Result<Self, String> {
        if let Some(bytes) = setup.memory_bytes {
            limit_memory(bytes)?;
        }
        let device = open(&setup.study.device).map_err(|e| e.to_string())?;
        let problems = problems(&setup.study, setup.basis).map_err(|e| e.to_string())?;
        Ok(Self { setup, compiler, alter, device, problems })
    }

    fn begun(&self, job: &Job) -> Candidate {
        let Setup { run, study, basis, .. } = &self.setup;
        let device = (*basis == Basis::Measured).then(|| study.device.clone());
        Candidate { device, ..Candidate::begun(run, job.index, job.spec, *basis, study.seed) }
    }

    fn image(&self, job: &Job) -> Result<spanforge_device::Image, ExportError> {
        let rendered = render(&job.spec)?;
        let text = (self.alter)(job.index, rendered.text);
        compile_source(self.compiler, rendered.name, text, &self.setup.architecture)
    }

    fn compile(&self, job: &Job, tell: &mut Tell<'_>) -> io::Result<Reply> {
        tell(Reply::Phase(Phase::Compiling))?;
        let begun = Instant::now();
        let image = self.image(job);
        let seconds = begun.elapsed().as_secs_f64();
        Ok(match image {
            Ok(_) => Reply::Compiled(seconds),
            Err(error) => {
                let (status, detail) = (Status::Compile, Some(error.to_string()));
                let candidate = Candidate { status, detail, compile_s: seconds, ..self.begun(job) };
                Reply::Done(Box::new(candidate))
            }
        })
    }

    fn candidate(&self, job: &Job, tell: &mut Tell<'_>) -> io::Result<Candidate> {
        let mut candidate = self.begun(job);
        let ended = self.evaluate(job, &mut candidate, tell);
        (candidate.status, candidate.detail) = match ended {
            Ok(()) => (Status::Correct, None),
            Err(Stop::Fault(status, detail)) => (status, Some(detail)),
            Err(Stop::Replies(error)) => return Err(error),
        };
        Ok(candidate)
    }

    fn evaluate(
        &self,
        job: &Job,
        candidate: &mut Candidate,
        tell: &mut Tell<'_>,
    ) -> Result<(), Stop> {
        tell(Reply::Phase(Phase::Compiling))?;
        let begun = Instant::now();
        let image = self.image(job).map_err(|e| Stop::Fault(Status::Compile, e.to_string()));
        candidate.compile_s = begun.elapsed().as_secs_f64();
        let image = image?;
        candidate.resources = image.resources.clone();

        tell(Reply::Phase(Phase::Checking))?;
        let begun = Instant::now();
        let device = self.device.as_ref();
        let decoder = Decoder::load(device, &image, job.spec).map_err(runtime)?;
        let study = &self.setup.study;
        // The parent has seen to it that the last seed exists.
        let reports = check_seeds(&decoder, study.seed..study.seed + study.cases as u64);
        candidate.check_s = begun.elapsed().as_secs_f64();
        let reports = reports.map_err(runtime)?;
        candidate.cases = reports.len();
        for report in &reports {
            candidate.max_abs_error = candidate.max_abs_error.max(report.max_abs_error);
            candidate.bytes_ratio = report.bytes_ratio.or(candidate.bytes_ratio);
            if let Some(fault) = &report.fault {
                let seed = report.seed.unwrap_or(0);
                let place = format!("seed {seed} ({}): {fault}", report.problem);
                return Err(Stop::Fault(Status::Correctness, place));
            }
        }

        tell(Reply::Phase(Phase::Timing))?;
        let begun = Instant::now();
        // What is clearly behind is told by the time on one batch alone.
        let best_us = job.best_us.filter(|_| self.problems.len() == 1);
        let mut by_batch = Vec::with_capacity(self.problems.len());
        for problem in &self.problems {
            let resident = decoder.upload(problem, UploadOptions::default()).map_err(runtime)?;
            // A GPU runs the whole problem once before it is timed; an emulated device samples it.
            if self.setup.basis == Basis::Measured {
                decoder.run(&resident).map_err(runtime)?;
            }
            let mut time = |samples| decoder.time(&resident, &options(problem, samples));
            let timing = measure(&mut time, best_us).map_err(runtime)?;
            let Timing { samples_us, conditions, predictions, .. } = timing;
            if by_batch.is_empty() {
                candidate.predictions = predictions;
            }
            by_batch.push(Timed { samples_us, conditions });
        }
        candidate.time_s = begun.elapsed().as_secs_f64();
        let (all, by_batch) = summarised(by_batch);
        candidate.time_us = median(&all.samples_us);
        (candidate.samples_us, candidate.conditions) = (all.samples_us, all.conditions);
        candidate.by_batch = by_batch;
        Ok(())
    }

    fn remeasure(&self, jobs: &[Job]) -> Result<Remeasured, DecoderError> {
        let device = self.device.as_ref();
        let mut decoders = Vec::with_capacity(jobs.len());
        for job in jobs {
            // It was compiled before; where it cannot be now, it is left out by all being left out.
            let Ok(image) = self.image(job) else { return Ok(Remeasured::default()) };
            decoders.push(Decoder::load(device, &image, job.spec)?);
        }
        let Some(first) = decoders.first() else { return Ok(Remeasured::default()) };
        let mut by_job: Vec<Vec<Timed>> = vec![Vec::new(); jobs.len()];
        for problem in &self.problems {
            let mut resident = first.upload(problem, UploadOptions::default())?;
            let timings = interleave::<DecoderError>(decoders.len(), ROUNDS, &mut |place| {
                let decoder = &decoders[place];
                decoder.adopt(&mut resident)?;
                decoder.run(&resident)?;
                Ok(decoder.time(&resident, &options(problem, BATCH))?)
            })?;
            for (job, Timing { samples_us, conditions, .. }) in by_job.iter_mut().zip(timings) {
                job.push(Timed { samples_us, conditions });
            }
        }
        let finalist = |(job, timed): (&Job, Vec<Timed>)| {
            let (Timed { samples_us, conditions }, by_batch) = summarised(timed);
            Finalist { index: job.index, samples_us, conditions, by_batch }
        };
        Ok(Remeasured { finalists: jobs.iter().zip(by_job).map(finalist).collect() })
    }
}

/// What the cost model says of one configuration.
#[derive(Clone, Debug)]
pub struct Predicted {
    /// By launch.
    pub predictions: Vec<Prediction>,
    /// Bytes that no kernel can do without.
    pub floor_bytes: u64,
    /// The same as a time in microseconds; see [`floor_us`].
    pub floor_us: f64,
    /// What the executed blocks of all launches did, line by line of the rendered source; empty unless
    /// the device counts lines.
    pub lines: Vec<LineCount>,
}

/// Predicts the time of a configuration for a workload on an emulated device, unchecked.
///
/// # Errors
/// A workload that cannot be timed, a configuration that does not compile or cannot be launched.
pub fn predict(
    device: &dyn Device,
    compiler: &Compiler,
    workload: &Workload,
    spec: KernelSpec,
    seed: u64,
) -> Result<Predicted, TuneError> {
    let properties = device.properties();
    let problem = workload.problem(seed, cache_bytes(properties.basis))?;
    let image = compile(compiler, &spec, &properties.architecture)?;
    let decoder = Decoder::load(device, &image, spec)?;
    let resident = decoder.upload(&problem, UploadOptions::default())?;
    let timing = decoder.time(&resident, &time_options(&problem))?;
    Ok(Predicted {
        predictions: timing.predictions,
        lines: device.line_counts(decoder.module())?,
        floor_bytes: problem.floor_bytes(),
        floor_us: floor_us(&problem, properties),
    })
}

/// The time in microseconds that no kernel can beat: the floor's bytes over the bandwidth of the data
/// sheet, or the operations over its peak, on whichever cores are faster.
pub fn floor_us(problem: &DecodeProblem, properties: &DeviceProperties) -> f64 {
    let bytes = problem.floor_bytes() as f64 / properties.dram_bytes_per_second;
    let peak = properties.float32_per_second.max(properties.tensor_per_second);
    1e6 * bytes.max(problem.flops() / peak)
}

/// K and V bytes of the timed problem; see [`Workload::problem`](crate::Workload::problem).
pub(crate) fn cache_bytes(basis: Basis) -> u64 {
    match basis {
        Basis::Predicted => EMULATED_CACHE_BYTES,
        Basis::Measured => GPU_CACHE_BYTES,
    }
}

/// How a problem is timed where nothing else is said.
pub(crate) fn time_options(problem: &DecodeProblem) -> TimeOptions {
    options(problem, TimeOptions::default().samples)
}

fn options(problem: &DecodeProblem, samples: u32) -> TimeOptions {
    TimeOptions { samples, distinct_bytes: distinct_bytes(problem), ..TimeOptions::default() }
}

/// The timed problems of a study, one per batch. They share the memory that K and V may take.
///
/// # Errors
/// A batch that cannot be timed.
pub(crate) fn problems(study: &Study, basis: Basis) -> Result<Vec<DecodeProblem>, WorkloadError> {
    let bytes = cache_bytes(basis) / study.batches().count() as u64;
    study.batches().map(|batch| batch.problem(study.seed, bytes)).collect()
}

/// What a step reads of K and V at most: what its rows select, once for all rows of a request. Where
/// requests share pages the problem stands for one in which they do not.
fn distinct_bytes(problem: &DecodeProblem) -> Vec<(String, u64)> {
    let each = problem.tile_kv_bytes(u32::MAX) / 2;
    ["k", "v"].map(|name| (name.to_owned(), each)).to_vec()
}

#[cfg(unix)]
fn limit_memory(bytes: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::As).maximum;
    let current = Some(maximum.map_or(bytes, |maximum| maximum.min(bytes)));
    setrlimit(Resource::As, Rlimit { current, maximum })
        .map_err(|e| format!("the memory of a worker cannot be limited: {e}"))
}

#[cfg(not(unix))]
fn limit_memory(_: u64) -> Result<(), String> {
    Ok(())
}
