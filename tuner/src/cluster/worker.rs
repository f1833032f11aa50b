//! The worker's end: takes configurations of whatever study its device can serve, evaluates them in
//! processes of its own, sends what became of them.

use super::{Announced, Cluster, State, Task, results_subject};
use crate::environment::Environment;
use crate::evaluate::{Job, Open, Setup};
use crate::record::{Candidate, Record, Remeasured, Run, Status};
use crate::tune::{TuneError, change, kernel_source};
use crate::workers::{Evaluators, Pool};
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt;
use spanforge_device::{Basis, Compiler};
use spanforge_kernels::{KernelSpec, Limits};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a worker says that it is at a configuration.
const PROGRESS: Duration = Duration::from_secs(5);

/// How often a worker that has nothing to do looks for studies.
const LOOK: Duration = Duration::from_secs(1);

/// Workers that may be lost with a configuration before it is recorded as what they were lost by.
const MOST_LOST: i64 = 3;

/// What a worker is to do.
pub struct WorkerRequest<'a> {
    /// Device of its own to evaluate on; that of the study where none is given, which has to be an
    /// emulated one.
    pub device: Option<String>,
    /// Candidates at a time, or for a GPU processes that compile.
    pub workers: usize,
    /// Serves this run only.
    pub run: Option<String>,
    /// Ends after so long without anything to do.
    pub idle: Option<Duration>,
    /// Makes what the device runs.
    pub compiler: &'a Compiler,
    /// Opens the device, here and in processes alike.
    pub open: Open<'a>,
    /// Starts a process that evaluates.
    pub process: &'a (dyn Fn() -> Command + Sync),
    /// Ends the worker as soon as it is set; what it has in hand goes to others.
    pub stop: &'a AtomicBool,
    /// Is told what happens.
    pub progress: &'a (dyn Fn(Told<'_>) + Sync),
}

/// What happens to a worker.
#[derive(Debug)]
pub enum Told<'a> {
    /// It begins to serve a run.
    Joined(&'a Run),
    /// It cannot serve a run, and why.
    Refused(&'a Run, String),
    /// A configuration is evaluated and its result stored.
    Done(&'a Candidate),
    /// So many finalists were measured once more.
    Again(usize),
    /// The run has ended.
    Ended(&'a Run),
}

/// Serves studies until it is told to stop, or has been idle for long enough; how many configurations
/// it evaluated.
///
/// # Errors
/// Servers that stay away, and processes that cannot evaluate whatever the configuration.
pub fn work(cluster: &Cluster, request: &WorkerRequest<'_>) -> Result<usize, TuneError> {
    let mut refused = BTreeSet::new();
    let mut count = 0;
    let mut busy = Instant::now();
    while !request.stop.load(Ordering::Relaxed) {
        let mut served = 0;
        for announced in cluster.running()? {
            let run = &announced.run;
            if request.run.as_ref().is_some_and(|only| *only != run.run)
                || refused.contains(&run.run)
            {
                continue;
            }
            if let Some(reason) = unfit(&announced, request) {
                (request.progress)(Told::Refused(run, reason));
                refused.insert(run.run.clone());
                continue;
            }
            served += Serving::new(cluster, request, &announced)?.serve()?;
        }
        count += served;
        if served > 0 {
            busy = Instant::now();
        }
        if request.idle.is_some_and(|idle| busy.elapsed() >= idle) {
            break;
        }
        std::thread::sleep(LOOK);
    }
    Ok(count)
}

/// Why this worker's results would not be those of the study's own machine, if they would not.
fn unfit(announced: &Announced, request: &WorkerRequest<'_>) -> Option<String> {
    let Announced { study, run, .. } = announced;
    let name = request.device.as_ref().unwrap_or(&study.device);
    if request.device.is_none() && run.properties.basis == Basis::Measured {
        return Some(format!("it is of {}, and no device was given", run.properties.name));
    }
    let here = || -> Result<Run, String> {
        let device = (request.open)(name).map_err(|e| e.to_string())?;
        let properties = device.properties().clone();
        let shape = study.workload.attention.kernel_shape().map_err(|e| e.to_string())?;
        let space = study.space(shape, Limits::of(&properties));
        let defaults = study.default_configurations(shape, Limits::of(&properties));
        let configuration = *defaults.first().ok_or("nothing fits this device")?;
        let default = KernelSpec { shape, configuration };
        Ok(Run {
            environment: Environment::current(request.compiler.nvrtc().version()),
            valid_configurations: space.census().valid,
            kernel_source: kernel_source(&default).map_err(|e| e.to_string())?,
            properties,
            ..run.clone()
        })
    };
    match here() {
        Ok(here) => change(run, &here).map(|change| change.to_string()),
        Err(reason) => Some(reason),
    }
}

/// A run that is served.
struct Serving<'a> {
    cluster: &'a Cluster,
    request: &'a WorkerRequest<'a>,
    announced: &'a Announced,
    consumer: PullConsumer,
    pool: Pool<'a>,
    /// What is evaluated, with the message that is to be acknowledged.
    in_hand: BTreeMap<usize, Message>,
    done: usize,
}

impl<'a> Serving<'a> {
    fn new(
        cluster: &'a Cluster,
        request: &'a WorkerRequest<'a>,
        announced: &'a Announced,
    ) -> Result<Self, TuneError> {
        let Announced { study, run, limits, .. } = announced;
        let mut study = study.clone();
        if let Some(device) = &request.device {
            study.device.clone_from(device);
        }
        study.also.clear();
        let setup = Setup::new(run, study, limits);
        let consumer = cluster.queue(run)?;
        let pool = Pool::new(request.process, setup, *limits, request.workers);
        let in_hand = BTreeMap::new();
        Ok(Self { cluster, request, announced, consumer, pool, in_hand, done: 0 })
    }

    /// Works until there is nothing to do, or the worker is to stop.
    fn serve(mut self) -> Result<usize, TuneError> {
        let run = &self.announced.run;
        let mut joined = false;
        let mut told = Instant::now();
        loop {
            if self.request.stop.load(Ordering::Relaxed) {
                self.give_back();
                return Ok(self.done);
            }
            // One more than it evaluates is at hand, so that nothing waits for the network.
            let room = (self.request.workers + 1).saturating_sub(self.in_hand.len());
            let messages = if room > 0 { self.fetch(room) } else { Vec::new() };
            if messages.is_empty() && self.in_hand.is_empty() {
                let state = self.cluster.study(&run.run)?.map(|study| study.state);
                if state != Some(State::Running) {
                    if joined {
                        (self.request.progress)(Told::Ended(run));
                    }
                    return Ok(self.done);
                }
                // Other studies may have something to do.
                if told.elapsed() > PROGRESS {
                    return Ok(self.done);
                }
                std::thread::sleep(LOOK / 10);
                continue;
            }
            if !std::mem::replace(&mut joined, true) {
                (self.request.progress)(Told::Joined(run));
            }
            for message in messages {
                self.begin(message)?;
            }
            for candidate in self.pool.finished()? {
                self.finish(&candidate)?;
            }
            if told.elapsed() > PROGRESS || self.in_hand.is_empty() {
                told = Instant::now();
                self.in_hand.values().for_each(|m| still_at(self.cluster, m));
            }
        }
    }

    /// What the queue has for this worker now. Servers that are away have nothing, and neither has a
    /// run that has just ended: which of them it is shows when its state is read.
    fn fetch(&self, most: usize) -> Vec<Message> {
        let expires = Duration::from_millis(if self.in_hand.is_empty() { 1000 } else { 20 });
        let mut messages = Vec::new();
        self.cluster.link.briefly(async {
            let batch = self.consumer.fetch().max_messages(most).expires(expires).messages();
            let Ok(mut batch) = batch.await else { return };
            while let Some(Ok(message)) = batch.next().await {
                messages.push(message);
            }
        });
        messages
    }

    fn begin(&mut self, message: Message) -> Result<(), TuneError> {
        let lost = message.info().map_or(0, |info| info.delivered - 1);
        match super::parsed("a configuration", &message.payload)? {
            Task::Evaluate(job) => self.evaluate(job, message, lost),
            Task::Remeasure(jobs) => self.remeasure(jobs, &message, lost),
        }
    }

    fn evaluate(&mut self, job: Job, message: Message, lost: i64) -> Result<(), TuneError> {
        let run = &self.announced.run;
        if lost >= MOST_LOST {
            let (study, basis) = (&self.announced.study, run.properties.basis);
            let begun = Candidate::begun(&run.run, job.index, job.spec, basis, study.seed);
            let detail = format!("{lost} workers were lost while they evaluated this");
            let candidate = Candidate { status: Status::Runtime, detail: Some(detail), ..begun };
            self.in_hand.insert(job.index, message);
            return self.finish(&candidate);
        }
        // Delivered again while it is here, since nothing was heard of it: it is still here.
        if self.in_hand.insert(job.index, message).is_none() {
            self.pool.submit(job)?;
        }
        Ok(())
    }

    /// Measures finalists once more, while nothing else of this worker goes on. Where that fails, the
    /// samples that there are have to do.
    fn remeasure(&mut self, jobs: Vec<Job>, message: &Message, lost: i64) -> Result<(), TuneError> {
        let mut remeasured = Remeasured::default();
        if lost < MOST_LOST {
            let (stop, mut told) = (self.request.stop, Instant::now());
            let Self { pool, cluster, in_hand, .. } = self;
            remeasured = pool.remeasure(&jobs, &mut || {
                if told.elapsed() > PROGRESS {
                    told = Instant::now();
                    in_hand.values().chain([message]).for_each(|m| still_at(cluster, m));
                }
                !stop.load(Ordering::Relaxed)
            })?;
            if stop.load(Ordering::Relaxed) && remeasured.finalists.is_empty() {
                self.cluster.link.briefly(message.ack_with(AckKind::Nak(None)));
                return Ok(());
            }
        }
        (self.request.progress)(Told::Again(remeasured.finalists.len()));
        let name = Task::Remeasure(jobs).name();
        self.cluster.publish_once(
            &results_subject(&self.announced.run.run, &name),
            &Record::Remeasured(remeasured),
        )?;
        self.cluster.link.briefly(message.double_ack());
        Ok(())
    }

    /// Stores a result, then acknowledges its configuration. Where another was quicker, that stands.
    fn finish(&mut self, candidate: &Candidate) -> Result<(), TuneError> {
        let subject = results_subject(&self.announced.run.run, &candidate.index.to_string());
        self.cluster.publish_once(&subject, &Record::Candidate(Box::new(candidate.clone())))?;
        if let Some(message) = self.in_hand.remove(&candidate.index) {
            // One that does not arrive costs a second evaluation, whose result is not stored.
            self.cluster.link.briefly(message.double_ack());
        }
        self.done += 1;
        (self.request.progress)(Told::Done(candidate));
        Ok(())
    }

    /// Hands what is not finished to other workers.
    fn give_back(&mut self) {
        for (_, message) in std::mem::take(&mut self.in_hand) {
            // Servers that are away find out by themselves.
            self.cluster.link.briefly(message.ack_with(AckKind::Nak(None)));
        }
        // What was sent is on its way.
        self.cluster.link.briefly(self.cluster.context.client().flush());
    }
}

/// Says that a worker is at what a message is about. One that does not arrive costs a second evaluation
/// at most.
fn still_at(cluster: &Cluster, message: &Message) {
    cluster.link.briefly(message.ack_with(AckKind::Progress));
}
