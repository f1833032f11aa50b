//! The worker processes of a run. On an emulated device each takes candidates whole; on GPUs several
//! compile and one of each GPU measures, so that nothing runs beside a measurement on the device.

use crate::evaluate::{Job, Phase, Reply, Request, Setup};
use crate::record::{Candidate, Remeasured, Status};
use crate::tune::TuneError;
use serde::{Deserialize, Serialize};
use spanforge_device::Basis;
use spanforge_verify::process::{Event, Happened, Process};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// What one candidate may take.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CandidateLimits {
    /// Time to compile.
    pub compile: Duration,
    /// Time to check, and again to time.
    pub run: Duration,
    /// Host memory in bytes, on emulated devices.
    pub memory_bytes: u64,
}

impl Default for CandidateLimits {
    fn default() -> Self {
        let (compile, run) = (Duration::from_secs(180), Duration::from_secs(180));
        Self { compile, run, memory_bytes: 16 << 30 }
    }
}

/// How long a worker may take until it is ready: it opens the device and draws the problem.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Workers that may end before they are ready: more, and it is not by chance.
const FALSE_STARTS: u32 = 3;

/// How often to look at the clock.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// What a worker is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Whole,
    Compile,
    Measure,
}

struct Slot {
    role: Role,
    /// On which its worker works.
    device: String,
    worker: Option<Worker>,
}

struct Worker {
    process: Process,
    number: u64,
    ready: bool,
    job: Option<Job>,
    phase: Phase,
    /// When its phase began.
    since: Instant,
}

/// Where candidates are evaluated.
pub(crate) trait Evaluators {
    /// Has a candidate evaluated.
    fn submit(&mut self, job: Job) -> Result<(), TuneError>;

    /// What has been finished after a moment, often nothing.
    fn finished(&mut self) -> Result<Vec<Candidate>, TuneError>;

    /// Times candidates once more, in turn, on one device, while nothing else is under way; none where
    /// there is no such device, where it fails, or where `go_on`, which is asked again and again, says
    /// no.
    fn remeasure(
        &mut self,
        jobs: &[Job],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Remeasured, TuneError>;

    /// There is nothing more to evaluate.
    fn end(&mut self) -> Result<(), TuneError> {
        Ok(())
    }
}

/// Processes on this machine.
pub(crate) struct Pool<'a> {
    command: &'a dyn Fn() -> Command,
    setup: Setup,
    limits: CandidateLimits,
    events: (Sender<Happened<Reply>>, Receiver<Happened<Reply>>),
    slots: Vec<Slot>,
    started: u64,
    false_starts: u32,
    /// What no worker has in hand, by position.
    waiting: BTreeMap<usize, Job>,
    /// What is compiled and waits to be measured, with the seconds that took.
    compiled: BTreeMap<usize, (Job, f64)>,
    /// Seconds that compiling took of what is measured.
    compile_seconds: BTreeMap<usize, f64>,
    done: Vec<Candidate>,
    tick: Instant,
}

impl<'a> Pool<'a> {
    /// `count` workers, which are started as there is work for them by `command`, and on GPUs one more
    /// of each that measures.
    pub fn new(
        command: &'a dyn Fn() -> Command,
        setup: Setup,
        limits: CandidateLimits,
        count: usize,
    ) -> Self {
        let study = &setup.study;
        let slot = |role, device: &String| Slot { role, device: device.clone(), worker: None };
        let on_first = |role| (0..count).map(move |_| slot(role, &study.device));
        let slots = match setup.basis {
            Basis::Predicted => on_first(Role::Whole).collect(),
            Basis::Measured => {
                let measuring = std::iter::once(&study.device).chain(&study.also);
                on_first(Role::Compile).chain(measuring.map(|d| slot(Role::Measure, d))).collect()
            }
        };
        Self {
            command,
            limits,
            events: channel(),
            slots,
            setup,
            started: 0,
            false_starts: 0,
            waiting: BTreeMap::new(),
            compiled: BTreeMap::new(),
            compile_seconds: BTreeMap::new(),
            done: Vec::new(),
            tick: Instant::now(),
        }
    }

    /// Starts the workers that there is work for and gives those that are ready something to do.
    fn employ(&mut self) -> Result<(), TuneError> {
        for at in 0..self.slots.len() {
            let role = self.slots[at].role;
            let has_work = match role {
                Role::Measure => !self.compiled.is_empty(),
                Role::Whole | Role::Compile => !self.waiting.is_empty(),
            };
            if !has_work {
                continue;
            }
            if self.slots[at].worker.is_none() {
                self.start(at)?;
            }
            let free = |worker: &&mut Worker| worker.ready && worker.job.is_none();
            let Some(worker) = self.slots[at].worker.as_mut().filter(free) else { continue };
            let next = match role {
                Role::Measure => self.compiled.pop_first().map(|(index, (job, seconds))| {
                    self.compile_seconds.insert(index, seconds);
                    job
                }),
                Role::Whole | Role::Compile => self.waiting.pop_first().map(|waiting| waiting.1),
            };
            let Some(job) = next else { continue };
            worker.job = Some(job.clone());
            (worker.phase, worker.since) = (Phase::Compiling, Instant::now());
            worker.process.send(&match role {
                Role::Compile => Request::Compile(job),
                Role::Whole | Role::Measure => Request::Evaluate(job),
            })?;
        }
        Ok(())
    }

    fn start(&mut self, at: usize) -> Result<(), TuneError> {
        self.started += 1;
        let process = Process::start((self.command)(), self.started, self.events.0.clone())
            .map_err(|error| TuneError::Worker(format!("cannot be started: {error}")))?;
        let mut setup = self.setup.clone();
        setup.study.device.clone_from(&self.slots[at].device);
        process.send(&Request::Setup(Box::new(setup)))?;
        self.slots[at].worker = Some(Worker {
            process,
            number: self.started,
            ready: false,
            job: None,
            phase: Phase::Compiling,
            since: Instant::now(),
        });
        Ok(())
    }

    fn take(&mut self, number: u64, event: Event<Reply>) -> Result<(), TuneError> {
        let is_it = |slot: &Slot| slot.worker.as_ref().is_some_and(|w| w.number == number);
        // Of a worker that was given up there may still be something to hear.
        let Some(at) = self.slots.iter().position(is_it) else { return Ok(()) };
        let Some(worker) = &mut self.slots[at].worker else { return Ok(()) };
        match event {
            Event::Gone => return self.lose(at, None),
            Event::Said(Reply::Failed(reason)) => return Err(TuneError::Worker(reason)),
            Event::Said(Reply::Ready) => worker.ready = true,
            Event::Said(Reply::Phase(phase)) => {
                (worker.phase, worker.since) = (phase, Instant::now());
            }
            Event::Said(Reply::Compiled(seconds)) => {
                if let Some(job) = worker.job.take() {
                    self.compiled.insert(job.index, (job, seconds));
                }
            }
            // Of what `remeasure` has given up.
            Event::Said(Reply::Remeasured(_)) => {}
            Event::Said(Reply::Done(candidate)) => {
                let spoilt =
                    candidate.basis == Basis::Measured && candidate.status == Status::Runtime;
                if worker.job.take().is_some_and(|job| job.index == candidate.index) {
                    self.finish(*candidate);
                }
                // A context that has seen a fault may fail everything after it.
                if spoilt {
                    self.slots[at].worker = None;
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, mut candidate: Candidate) {
        if let Some(seconds) = self.compile_seconds.remove(&candidate.index) {
            candidate.compile_s = seconds;
        }
        self.done.push(candidate);
    }

    /// Gives up workers that have taken too long.
    fn watch(&mut self) -> Result<(), TuneError> {
        for at in 0..self.slots.len() {
            let Some(worker) = &self.slots[at].worker else { continue };
            let limit = match (worker.ready, &worker.job, worker.phase) {
                (false, ..) => START_LIMIT,
                (true, None, _) => continue,
                (true, Some(_), Phase::Compiling) => self.limits.compile,
                (true, Some(_), Phase::Checking | Phase::Timing) => self.limits.run,
            };
            if worker.since.elapsed() > limit {
                self.lose(at, Some(limit))?;
            }
        }
        Ok(())
    }

    /// A worker is gone, or has been silent for longer than `limit`, and what it had in hand is at
    /// fault.
    fn lose(&mut self, at: usize, limit: Option<Duration>) -> Result<(), TuneError> {
        let Some(mut worker) = self.slots[at].worker.take() else { return Ok(()) };
        let ended = worker.process.end();
        let (mut status, how) = match limit {
            Some(limit) => (Status::Timeout, format!("took longer than {} s", limit.as_secs_f64())),
            None => (Status::Runtime, format!("its process: {ended}")),
        };
        if !worker.ready {
            self.false_starts += 1;
            if self.false_starts > FALSE_STARTS {
                return Err(TuneError::Worker(how));
            }
        }
        let Some(job) = worker.job else { return Ok(()) };
        if worker.phase == Phase::Compiling && limit.is_none() {
            status = Status::Compile;
        }
        let Setup { run, study, basis, .. } = &self.setup;
        let begun = Candidate::begun(run, job.index, job.spec, *basis, study.seed);
        let detail = Some(format!("{}: {how}", worker.phase));
        self.finish(Candidate { status, detail, ..begun });
        Ok(())
    }
}

impl Evaluators for Pool<'_> {
    fn submit(&mut self, job: Job) -> Result<(), TuneError> {
        self.waiting.insert(job.index, job);
        Ok(())
    }

    fn remeasure(
        &mut self,
        jobs: &[Job],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Remeasured, TuneError> {
        let Some(at) = self.slots.iter().position(|slot| slot.role == Role::Measure) else {
            return Ok(Remeasured::default());
        };
        if self.slots[at].worker.is_none() {
            self.start(at)?;
        }
        let Some(worker) = &mut self.slots[at].worker else { return Ok(Remeasured::default()) };
        worker.process.send(&Request::Remeasure(jobs.to_vec()))?;
        (worker.phase, worker.since) = (Phase::Timing, Instant::now());
        let number = worker.number;
        let limit = START_LIMIT + self.limits.run * jobs.len() as u32;
        let begun = Instant::now();
        while begun.elapsed() < limit && go_on() {
            match self.events.1.recv_timeout(TICK) {
                Ok((from, Event::Said(Reply::Remeasured(remeasured)))) if from == number => {
                    return Ok(remeasured);
                }
                Ok((from, Event::Gone)) if from == number => break,
                Ok((_, Event::Said(Reply::Failed(reason)))) => {
                    return Err(TuneError::Worker(reason));
                }
                // Of workers that have nothing more to do.
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this end holds a sender"),
            }
        }
        self.slots[at].worker = None;
        Ok(Remeasured::default())
    }

    fn finished(&mut self) -> Result<Vec<Candidate>, TuneError> {
        self.employ()?;
        match self.events.1.recv_timeout(TICK) {
            Ok((number, event)) => self.take(number, event)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("this end holds a sender"),
        }
        while let Ok((number, event)) = self.events.1.try_recv() {
            self.take(number, event)?;
        }
        // Where the whole program was stopped for a while, so were its workers.
        let pause = self.tick.elapsed().saturating_sub(20 * TICK);
        for worker in self.slots.iter_mut().filter_map(|slot| slot.worker.as_mut()) {
            worker.since += pause;
        }
        self.tick = Instant::now();
        self.watch()?;
        Ok(std::mem::take(&mut self.done))
    }
}
