//! A tuning run: what a study leads to, with everything that is known already taken from its
//! journal.
//!
//! The strategy is told of candidates in the order of its proposals, and a candidate is proposed once
//! the strategy knows all but the [window](Study::window) before it. So the list of candidates does not depend on
//! which worker was quicker, on how many there are, or on whether the run was interrupted.

mod candidates;
mod change;
mod error;

pub use change::Change;
pub(crate) use change::{change, kernel_source};
pub use error::{Interrupted, TuneError};

use crate::buckets::{by_bucket, geometric_mean, in_buckets};
use crate::choice::{choose, judged, ranked};
use crate::cluster::{Announced, Cluster, Coordinator, State};
use crate::environment::{Environment, unix_seconds};
use crate::evaluate::{Open, Setup, floor_us, problems};
use crate::export::{Chosen, ExportError, Facts, compile, export};
use crate::journal::{Journal, JournalError, Kept};
use crate::proposals::{KernelSpace, Proposals};
use crate::record::{Batch, Budget, Candidate, Record, Run, Status, Study, Winner};
use crate::search::strategy;
use crate::workers::{CandidateLimits, Evaluators, Pool};
use crate::workload::Workload;
use candidates::Search;
use spanforge_device::{Basis, Compiler, DeviceProperties};
use spanforge_kernels::artifact::check_replaceable;
use spanforge_kernels::{DecodeProblem, Limits};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

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
    check_further(&study, &properties, means)?;
    let architectures = match study.architectures.as_slice() {
        [] => vec![properties.architecture.clone()],
        named => named.to_vec(),
    };
    let shape = study.workload.attention.kernel_shape()?;
    let space = study.space(shape, Limits::of(&properties));
    let census = space.census();
    let guesses = study.default_configurations(shape, Limits::of(&properties));
    let Some(default) = guesses.first().copied() else {
        let worst = census.pruned.iter().max_by_key(|p| p.1).map_or("", |p| p.0);
        return Err(TuneError::EmptySpace {
            shape: shape.to_string(),
            device: properties.name,
            reason: format!("most points break the constraint `{worst}`"),
        });
    };
    let strategy = strategy(&study.strategy, study.seed)
        .ok_or_else(|| TuneError::Strategy(study.strategy.clone()))?;
    let guided = KernelSpace::new(&space, &study.guide);
    let proposals = Proposals::new(guided, default, &guesses, strategy);
    // An unknown architecture is found out now, not after the search.
    for architecture in &architectures {
        if architecture.starts_with("compute_") {
            return Err(TuneError::NoMachineCode(architecture.clone()));
        }
        compile(means.compiler, proposals.default(), architecture)?;
    }

    if let Some(other) = study.others.iter().find(|b| b.attention != study.workload.attention) {
        return Err(TuneError::OtherAttention(other.name.clone()));
    }
    let problems = problems(&study, properties.basis)?;
    let facts = |(problem, batch): (&DecodeProblem, &Workload)| Batch {
        bucket: problem.bucket(),
        problem: batch.describe(),
        floor_us: floor_us(problem, &properties),
    };
    let mut batches: Vec<Batch> = problems.iter().zip(study.batches()).map(facts).collect();
    let floor_us = geometric_mean(batches.iter().map(|batch| batch.floor_us));
    let floor_bytes = geometric_mean(problems.iter().map(|problem| problem.floor_bytes() as f64));
    // One batch is the run itself.
    batches.retain(|_| problems.len() > 1);
    drop(problems);
    let unix_s = unix_seconds();
    let kept_budget = kept.as_ref().map(|(_, kept)| kept.run.budget);
    let name = file_name(&study.workload.name);
    let run = Run {
        run: format!("{name}-{}-{unix_s}-{}", study.device.replace(':', "-"), study.seed),
        unix_s,
        environment: Environment::current(means.compiler.nvrtc().version()),
        device: study.device.clone(),
        floor_us,
        batches,
        properties,
        workload: study.workload.name.clone(),
        problem: study.workload.describe(),
        floor_bytes: floor_bytes.round() as u64,
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
        (Some((mut journal, kept)), _) => {
            if kept.run.budget != run.budget {
                journal.append(&Record::Budget(Budget { budget: run.budget }))?;
            }
            (journal, Some(kept))
        }
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
    let found = search.candidates().and_then(|all| Ok((search.remeasure(&all)?, all)));
    let (remeasured, candidates) = found.map_err(|error| match (error, means.cluster) {
        (TuneError::Cluster(error), Some(cluster)) => TuneError::Lost {
            journal: search.journal.path().to_owned(),
            servers: cluster.servers().to_owned(),
            error,
        },
        (error, _) => error,
    })?;
    let Search { mut journal, mut evaluators, .. } = search;

    let mut winner = choose(&run.run, run.floor_us, &candidates, &remeasured).ok_or_else(|| {
        TuneError::AllFailed {
            count: candidates.len(),
            first: candidates
                .first()
                .and_then(|c| c.detail.clone())
                .unwrap_or_else(|| "nothing was evaluated".to_owned()),
        }
    })?;
    by_bucket(&mut winner, &run.batches, &candidates, &remeasured);
    let candidates = judged(&candidates, &remeasured);
    (means.progress)(Event::Exporting(&winner));
    // The default stays at hand for devices that cannot hold the others, and the best kernel that is for
    // any architecture where all of these are for one alone.
    let default = candidates.first().filter(|c| c.status == Status::Correct);
    let for_any = |candidate: &Candidate| candidate.spec.own_architecture().is_none();
    let named = |id: &String| candidates.iter().find(|c| c.id == *id);
    let shipped = std::iter::once(&winner.id).chain(&winner.shipped).filter_map(named);
    let portable = match shipped.chain(default).any(for_any) {
        true => None,
        false => {
            ranked(&candidates).into_iter().map(|(candidate, _)| candidate).find(|c| for_any(c))
        }
    };
    let others = winner.shipped.iter().chain(default.into_iter().chain(portable).map(|c| &c.id));
    let mut chosen: Vec<Chosen<'_>> = Vec::new();
    for id in std::iter::once(&winner.id).chain(others) {
        let Some(candidate) = candidates.iter().find(|c| c.id == *id) else { continue };
        if chosen.iter().any(|chosen| chosen.candidate.id == *id) {
            continue;
        }
        let role = match id {
            id if *id == winner.id => "winner",
            id if winner.shipped.contains(id) => "bucket",
            id if default.is_some_and(|default| default.id == *id) => "default",
            _ => "portable",
        };
        let buckets = in_buckets(&run.batches, candidate, &winner.buckets);
        chosen.push(Chosen { candidate, role, buckets });
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

/// The further GPUs of a study have to be of the kind of its first device.
fn check_further(
    study: &Study,
    properties: &DeviceProperties,
    means: &Means<'_>,
) -> Result<(), TuneError> {
    let named: Vec<&String> = std::iter::once(&study.device).chain(&study.also).collect();
    for (at, device) in named.iter().enumerate().skip(1) {
        let wrong = |reason| Err(TuneError::Further { device: (*device).clone(), reason });
        if properties.basis == Basis::Predicted {
            return wrong("times on emulated devices are predicted, and need one device only");
        }
        if means.cluster.is_some() {
            return wrong("workers elsewhere evaluate, each on devices of its own");
        }
        if named[..at].contains(device) {
            return wrong("it is named twice, and would measure two candidates at a time");
        }
        if (means.open)(device)?.properties() != properties {
            return wrong(
                "it is another kind of GPU than the first one: tune for it in a run of its own",
            );
        }
    }
    Ok(())
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

/// A workload's name as part of a folder's name: a trace file loses its folders and ending.
fn file_name(workload: &str) -> String {
    let path = std::path::Path::new(workload);
    let stem = match path.extension() {
        Some(end) if end == "jsonl" => path.file_stem(),
        _ => path.file_name(),
    };
    stem.map_or_else(|| "workload".to_owned(), |s| s.to_string_lossy().into_owned())
}
