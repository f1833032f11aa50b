//! A tuning run: what a study leads to, with everything that is known already taken from its
//! journal.
//!
//! The strategy is told of candidates in the order of its proposals, and a candidate is proposed once
//! the strategy knows all but the [window](Study::window) before it. So the list of candidates does not depend on
//! which worker was quicker, on how many there are, or on whether the run was interrupted.

use crate::choice::{choose, finalists, judged};
use crate::cluster::{Announced, Cluster, ClusterError, Coordinator, State};
use crate::environment::{Environment, unix_seconds};
use crate::evaluate::{Job, Open, Setup, floor_us};
use crate::export::{Chosen, ExportError, Facts, compile, export};
use crate::journal::{Journal, JournalError, Kept, MOST_CRASHES, boot};
use crate::proposals::Proposals;
use crate::record::{Candidate, Finalist, Record, Remeasured, Run, Started, Status, Study, Winner};
use crate::search::{STRATEGIES, Space, strategy};
use crate::workers::{CandidateLimits, Evaluators, Pool};
use crate::workload::WorkloadError;
use spanforge_device::{Basis, Compiler, DeviceError};
use spanforge_kernels::artifact::{check_replaceable, digest};
use spanforge_kernels::configuration::ShapeError;
use spanforge_kernels::decoder::DecoderError;
use spanforge_kernels::{KernelSpec, Limits, SearchSpace, render};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Candidates that may be under way at a time, unless a study says otherwise.
pub const WINDOW: usize = 8;

/// The most that K and V of the timed problem take on an emulated device.
const EMULATED_CACHE_BYTES: u64 = 32 << 20;

/// The most that K and V of the timed problem take on a GPU.
const GPU_CACHE_BYTES: u64 = 64 << 30;

/// What to tune, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the run follows from, or the journal that has it and what is known already.
    pub from: From,
    /// Configurations to evaluate at most, the default one included; those of the resumed run where
    /// none is given.
    pub budget: Option<usize>,
    /// Time after which no further configuration is begun.
    pub time_limit: Option<Duration>,
    /// What one candidate may take.
    pub limits: CandidateLimits,
    /// Worker processes: all that work on an emulated device, or those that compile for a GPU.
    pub workers: usize,
    /// Folder that the artifact is put in.
    pub output: PathBuf,
}

/// Where a run begins.
#[derive(Clone, Debug)]
pub enum From {
    /// A new run, with its journal in this folder.
    Study(Box<Study>, PathBuf),
    /// The journal of a run to go on with.
    Journal(PathBuf),
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
        /// Evaluated so far, those that the journal had included.
        done: usize,
        /// To evaluate.
        total: usize,
        /// It was in the journal.
        recorded: bool,
    },
    /// The winner is being exported.
    Exporting(&'a Winner),
}

/// How a run is carried out.
pub struct Means<'a> {
    /// Makes the artifact's files.
    pub compiler: &'a Compiler,
    /// Opens the device, here and in workers alike.
    pub open: Open<'a>,
    /// The servers of a study that workers elsewhere evaluate.
    pub cluster: Option<&'a Cluster>,
    /// Starts a worker of this machine, which calls [`serve`](crate::evaluate::serve).
    pub worker: &'a dyn Fn() -> Command,
    /// Ends the run as soon as it is set.
    pub stop: &'a AtomicBool,
    /// Is told what happens.
    pub progress: &'a dyn Fn(Event<'_>),
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
    /// The journal.
    pub journal: PathBuf,
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
    /// A kernel that cannot be loaded, or a problem that it does not take.
    #[error(transparent)]
    Decoder(#[from] DecoderError),
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
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A journal that leads elsewhere now.
    #[error(
        "{journal} cannot be resumed here: {change}; resume it where it was begun, or start anew"
    )]
    Changed {
        /// The journal.
        journal: PathBuf,
        /// What has changed.
        change: Change,
    },
    /// Servers that a study is shared by, before there is a journal.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The same during a run.
    #[error("{error}; to go on: spanforge tune --resume {journal} --study {servers}")]
    Lost {
        /// The journal.
        journal: PathBuf,
        /// Where the servers are.
        servers: String,
        /// What went wrong.
        error: ClusterError,
    },
    /// Worker processes that do not work, whatever the candidate.
    #[error("the workers that evaluate candidates do not work: {0}")]
    Worker(String),
    /// What workers are told cannot be written down.
    #[error("a worker cannot be told what to do: {0}")]
    Message(#[from] serde_json::Error),
    /// The run was told to stop.
    #[error("interrupted")]
    Interrupted(Box<Interrupted>),
}

/// Something that a run follows from and that is not the same here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is.
    pub what: &'static str,
    /// What it was.
    pub then: String,
    /// What it is here.
    pub now: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was {} and is {}", self.what, self.then, self.now)
    }
}

/// A run that was told to stop.
#[derive(Clone, Debug)]
pub struct Interrupted {
    /// What was asked for.
    pub run: Run,
    /// What was evaluated.
    pub candidates: Vec<Candidate>,
    /// The journal, to go on with.
    pub journal: PathBuf,
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
///
/// # Errors
/// See [`TuneError`]. Whatever ends the run, what was evaluated is in the journal.
pub fn tune(request: &Request, means: &Means<'_>) -> Result<Outcome, TuneError> {
    let kept = match &request.from {
        From::Study(..) => None,
        From::Journal(path) => Some(resume(path, means.cluster)?),
    };
    let study = match (&request.from, &kept) {
        (_, Some((_, kept))) => kept.study.clone(),
        (From::Study(study, _), None) => (**study).clone(),
        (From::Journal(path), None) => return Err(JournalError::NoStudy(path.clone()).into()),
    };
    let last = study.seed.checked_add(study.cases as u64).ok_or(TuneError::Seeds)?;
    let seeds = study.seed..last;
    if seeds.is_empty() {
        return Err(TuneError::NoCases);
    }
    let device = (means.open)(&study.device)?;
    let properties = device.properties().clone();
    let architectures = match study.architectures.as_slice() {
        [] => vec![properties.architecture.clone()],
        named => named.to_vec(),
    };
    let shape = study.workload.attention.kernel_shape()?;
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
    let strategy = strategy(&study.strategy, study.seed)
        .ok_or_else(|| TuneError::Strategy(study.strategy.clone()))?;
    let proposals = Proposals::new(&space, default, strategy);
    // An unknown architecture is found out now, not after the search.
    for architecture in &architectures {
        if architecture.starts_with("compute_") {
            return Err(TuneError::NoMachineCode(architecture.clone()));
        }
        compile(means.compiler, proposals.default(), architecture)?;
    }

    let problem = study.workload.problem(study.seed, cache_bytes(properties.basis))?;
    let floor_bytes = problem.floor_bytes();
    let unix_s = unix_seconds();
    let kept_budget = kept.as_ref().map(|(_, kept)| kept.run.budget);
    let name = file_name(&study.workload.name);
    let run = Run {
        run: format!("{name}-{}-{unix_s}-{}", study.device.replace(':', "-"), study.seed),
        unix_s,
        environment: Environment::current(means.compiler.nvrtc().version()),
        device: study.device.clone(),
        floor_us: floor_us(&problem, &properties),
        properties,
        workload: study.workload.name.clone(),
        problem: study.workload.describe(),
        floor_bytes,
        strategy: study.strategy.clone(),
        seed: study.seed,
        budget: request.budget.or(kept_budget).unwrap_or(1).max(1),
        valid_configurations: census.valid,
        kernel_source: kernel_source(proposals.default())?,
    };
    if let Some((journal, kept)) = &kept
        && let Some(change) = change(&kept.run, &run)
    {
        return Err(TuneError::Changed { journal: journal.path().to_owned(), change });
    }
    // A folder that cannot be written, or one that is in the way, is found out now too.
    let directory = request.output.join(format!("{name}-{shape}"));
    check_replaceable(&directory).map_err(ExportError::from)?;
    let (journal, kept) = match (kept, &request.from) {
        (Some((journal, kept)), _) => (journal, Some(kept)),
        (None, From::Study(_, folder)) => {
            let mut journal = Journal::create(folder, &run.run)?;
            journal.append(&Record::Study(Box::new(study.clone())))?;
            journal.append(&Record::Run(Box::new(run.clone())))?;
            (journal, None)
        }
        (None, From::Journal(path)) => return Err(JournalError::NoStudy(path.clone()).into()),
    };
    fs_err::create_dir_all(&request.output)?;
    tempfile::tempfile_in(&request.output)
        .map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", request.output.display())))?;
    let (budget, window) = (run.budget, study.window.max(1));
    let run = kept.as_ref().map_or(run, |kept| Run { budget, ..kept.run.clone() });
    (means.progress)(Event::Started(&run));

    let limits = request.limits;
    let evaluators: Box<dyn Evaluators + '_> = match means.cluster {
        Some(cluster) => {
            let announced = Announced { state: State::Running, study, run: run.clone(), limits };
            Box::new(Coordinator::new(cluster, announced, kept.is_some())?)
        }
        None => {
            let setup = Setup::new(&run, study, &limits);
            Box::new(Pool::new(means.worker, setup, limits, request.workers.max(1)))
        }
    };
    let mut search = Search {
        request,
        means,
        run: &run,
        journal,
        kept: kept.as_ref(),
        proposals,
        window,
        evaluators,
        finished: BTreeMap::new(),
        done: 0,
    };
    let candidates = search.candidates().map_err(|error| match (error, means.cluster) {
        (TuneError::Cluster(error), Some(cluster)) => TuneError::Lost {
            journal: search.journal.path().to_owned(),
            servers: cluster.servers().to_owned(),
            error,
        },
        (error, _) => error,
    })?;
    let Search { mut journal, mut evaluators, .. } = search;
    let kept_again = kept.as_ref().map(|kept| kept.remeasured.clone()).unwrap_or_default();
    let remeasured = remeasure(&run, &candidates, kept_again, evaluators.as_mut(), &mut journal)?;

    let winner = choose(&run.run, run.floor_us, &candidates, &remeasured).ok_or_else(|| {
        TuneError::AllFailed {
            count: candidates.len(),
            first: candidates
                .first()
                .and_then(|c| c.detail.clone())
                .unwrap_or_else(|| "nothing was evaluated".to_owned()),
        }
    })?;
    let candidates = judged(&candidates, &remeasured);
    (means.progress)(Event::Exporting(&winner));
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
        workload: run.workload.clone(),
        device: run.device.clone(),
        unix_s: run.unix_s,
        evidence,
    };
    export(&directory, &chosen, &architectures, facts, means.compiler, device.as_ref(), seeds)?;
    if kept.as_ref().and_then(|kept| kept.winner.as_ref()) != Some(&winner) {
        journal.append(&Record::Winner(winner.clone()))?;
    }
    evaluators.end()?;
    let journal = journal.path().to_owned();
    Ok(Outcome { run: run.clone(), candidates, winner, artifact: directory, journal })
}

/// On a GPU, the finalists once more: measured in turn, so that what changes with time is the same for
/// all. What the journal has of the same finalists is not measured again. A device that predicts says
/// the same each time.
fn remeasure(
    run: &Run,
    candidates: &[Candidate],
    kept: Remeasured,
    evaluators: &mut dyn Evaluators,
    journal: &mut Journal,
) -> Result<Remeasured, TuneError> {
    let finalists = finalists(candidates);
    if run.properties.basis == Basis::Predicted || finalists.len() < 2 {
        return Ok(Remeasured::default());
    }
    if finalists.iter().all(|c| kept.samples_us(c.index).is_some()) {
        return Ok(kept);
    }
    let job = |c: &&Candidate| Job { index: c.index, spec: c.spec, best_us: None };
    let jobs: Vec<Job> = finalists.iter().map(job).collect();
    let samples = evaluators.remeasure(&jobs)?;
    if samples.len() < jobs.len() {
        return Ok(Remeasured::default());
    }
    let both = jobs.iter().zip(samples);
    let finalist = |(job, samples_us): (&Job, _)| Finalist { index: job.index, samples_us };
    let remeasured = Remeasured { finalists: both.map(finalist).collect() };
    journal.append(&Record::Remeasured(remeasured.clone()))?;
    Ok(remeasured)
}

/// The journal `path`, with what the servers of a shared study know besides; where there is none, it
/// is restored from them, as the run that the file is named after.
fn resume(path: &Path, cluster: Option<&Cluster>) -> Result<(Journal, Kept), TuneError> {
    let Some(cluster) = cluster else { return Ok(Journal::resume(path)?) };
    if !path.exists() {
        let run = path.file_stem().unwrap_or_default().to_string_lossy();
        Journal::restore(path, &cluster.journal(&run)?)?;
    }
    let (mut journal, mut kept) = Journal::resume(path)?;
    if cluster.study(&kept.run.run)?.is_some() {
        for record in cluster.journal(&kept.run.run)? {
            if let Record::Candidate(candidate) = &record
                && !kept.candidates.contains_key(&candidate.index)
            {
                journal.append(&record)?;
                kept.candidates.insert(candidate.index, (**candidate).clone());
            }
        }
    }
    // What was under way was so on other machines.
    kept.crashes.clear();
    Ok((journal, kept))
}

/// K and V bytes of the timed problem; see [`Workload::problem`](crate::Workload::problem).
pub(crate) fn cache_bytes(basis: Basis) -> u64 {
    match basis {
        Basis::Predicted => EMULATED_CACHE_BYTES,
        Basis::Measured => GPU_CACHE_BYTES,
    }
}

/// The candidates of a run, evaluated or taken from the journal.
struct Search<'a> {
    request: &'a Request,
    means: &'a Means<'a>,
    run: &'a Run,
    journal: Journal,
    kept: Option<&'a Kept>,
    proposals: Proposals<'a>,
    evaluators: Box<dyn Evaluators + 'a>,
    /// Candidates that may be under way at a time.
    window: usize,
    /// Evaluated, but not told of: one before them is not.
    finished: BTreeMap<usize, Candidate>,
    done: usize,
}

impl Search<'_> {
    /// All candidates in the order of their proposals.
    fn candidates(&mut self) -> Result<Vec<Candidate>, TuneError> {
        let start = Instant::now();
        let budget = self.run.budget;
        let mut told: Vec<Candidate> = Vec::new();
        let mut waiting = VecDeque::new();
        let (mut proposed, mut begun, mut ended, mut alone) = (0, 0, false, false);
        loop {
            let late =
                proposed > 0 && self.request.time_limit.is_some_and(|t| start.elapsed() >= t);
            let stopped = self.means.stop.load(Ordering::Relaxed);
            ended |= late || stopped;
            while !ended && proposed < budget.min(told.len() + self.window) {
                match self.proposals.next() {
                    Some(spec) => waiting.push_back(spec),
                    None => ended = true,
                }
                proposed = begun + waiting.len();
            }
            if late || stopped {
                waiting.clear();
            }
            while !alone && let Some(spec) = waiting.front() {
                // One that the machine went down with runs alone. It was proposed in its turn, for
                // the strategy is to know no more of the others than it did then.
                let crashes = self.kept.and_then(|kept| kept.crashes.get(&begun)).copied();
                alone = crashes.is_some_and(|crashes| crashes > 0);
                if alone && begun > told.len() {
                    alone = false;
                    break;
                }
                let best = told.iter().filter(|c| c.status == Status::Correct);
                let best_us = best.filter_map(|c| c.time_us).min_by(f64::total_cmp);
                let job = Job { index: begun, spec: *spec, best_us };
                waiting.pop_front();
                self.begin(job, crashes.unwrap_or(0))?;
                begun += 1;
            }
            if let Some(candidate) = self.finished.remove(&told.len()) {
                self.proposals.tell(&candidate);
                told.push(candidate);
                alone = false;
                continue;
            }
            if stopped {
                told.extend(std::mem::take(&mut self.finished).into_values());
                return Err(TuneError::Interrupted(Box::new(Interrupted {
                    run: self.run.clone(),
                    candidates: told,
                    journal: self.journal.path().to_owned(),
                })));
            }
            if told.len() == begun {
                return Ok(told);
            }
            for candidate in self.evaluators.finished()? {
                self.journal.append(&Record::Candidate(Box::new(candidate.clone())))?;
                self.finish(candidate, false);
            }
        }
    }

    /// Takes a candidate from the journal, or has it evaluated.
    fn begin(&mut self, job: Job, crashes: usize) -> Result<(), TuneError> {
        let Job { index, spec, .. } = job;
        if let Some(candidate) = self.kept.and_then(|kept| kept.candidates.get(&index)) {
            if candidate.spec != spec {
                return Err(TuneError::Changed {
                    journal: self.journal.path().to_owned(),
                    change: Change {
                        what: "a proposal of the strategy",
                        then: candidate.id.clone(),
                        now: spec.to_string(),
                    },
                });
            }
            self.finish(candidate.clone(), true);
            return Ok(());
        }
        if crashes >= MOST_CRASHES {
            let Run { run, properties, seed, .. } = self.run;
            let begun = Candidate::begun(run, index, spec, properties.basis, *seed);
            let detail = format!("the machine went down {crashes} times while this was evaluated");
            let candidate = Candidate { detail: Some(detail), ..begun };
            self.journal.append(&Record::Candidate(Box::new(candidate.clone())))?;
            self.finish(candidate, false);
            return Ok(());
        }
        self.journal.append(&Record::Started(Started {
            index,
            id: spec.to_string(),
            boot: boot(),
        }))?;
        self.evaluators.submit(job)?;
        Ok(())
    }

    fn finish(&mut self, candidate: Candidate, recorded: bool) {
        self.done += 1;
        let valid = usize::try_from(self.run.valid_configurations).unwrap_or(usize::MAX);
        let total = self.run.budget.min(valid);
        let (candidate, done) = (&candidate, self.done);
        (self.means.progress)(Event::Evaluated { candidate, done, total, recorded });
        let candidate = candidate.clone();
        self.finished.insert(candidate.index, candidate);
    }
}

/// The first difference between two runs that makes other times of the same configurations.
pub(crate) fn change(then: &Run, now: &Run) -> Option<Change> {
    let parts = |run: &Run| {
        [
            ("the version of this program", run.environment.spanforge.clone()),
            ("the source of the kernels", run.kernel_source.clone()),
            ("the version of NVRTC", run.environment.nvrtc.clone()),
            ("the device", format!("{:?}", run.properties)),
            ("the search space", format!("a space of {} configurations", run.valid_configurations)),
        ]
    };
    let mut pairs = parts(then).into_iter().zip(parts(now));
    let ((what, then), (_, now)) = pairs.find(|((_, then), (_, now))| then != now)?;
    Some(Change { what, then, now })
}

/// SHA-256 of the source of a space's default configuration, which changes as the kernels do.
pub(crate) fn kernel_source(default: &KernelSpec) -> Result<String, ExportError> {
    Ok(digest(render(default)?.text.as_bytes()))
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
