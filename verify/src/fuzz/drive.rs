//! The parent of a run: hands out turns, counts what comes back, replaces workers that are lost, and
//! has what failed made smaller.

use super::draw::{cases_of, draw, kernel_of};
use super::protocol::{KERNELS_HELD, Line, Reply, Request};
use super::worker::SHRINK_TIME;
use super::{Failure, FuzzError, LineCoverage, Lost, Options, Panicked, Subject, Summary};
use crate::case::{Trial, kind};
use crate::check::CaseReport;
use crate::process::{Event, Happened, Process};
use spanforge_emulator::SourceLine;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Turns that a worker has at a time, so that it need not wait for the next one.
const TURNS_IN_HAND: usize = 2;

/// Panics of the tool itself, and lost workers, of which more than a count is kept.
const KEPT: usize = 20;

/// Workers that may end before they are ready: more, and it is not by chance.
const FALSE_STARTS: u32 = 3;

/// How often to look at the clock.
const TICK: Duration = Duration::from_millis(50);

/// The kernel and the kind of a fault.
type Key = (usize, String);

/// A case in which something was found.
struct Failing {
    case: u64,
    trial: Trial,
    report: CaseReport,
    attempts: u32,
}

/// What a worker is to do.
enum Job {
    /// The cases of a turn that are still to be checked.
    Turn(Range<u64>),
    /// Make the trial of a fault smaller.
    Shrink(Key),
}

/// A place for a worker.
struct Slot {
    process: Process,
    number: u64,
    ready: bool,
    /// Kernels it holds, the one that was sent first in front.
    holds: VecDeque<usize>,
    jobs: VecDeque<Job>,
    /// When it last said something, or got something to do.
    since: Instant,
}

pub struct Run<'a> {
    subjects: &'a [Subject],
    options: &'a Options,
    stop: &'a AtomicBool,
    worker: &'a dyn Fn() -> Command,
    begun: &'a dyn Fn(),
    events: (Sender<Happened<Reply>>, Receiver<Happened<Reply>>),
    slots: Vec<Option<Slot>>,
    started: u64,
    false_starts: u32,
    emulated: bool,
    /// Cases from this number on need not be checked.
    end: u64,
    next_turn: u64,
    /// What lost workers have left of their turns.
    left: Vec<Range<u64>>,
    shrinking: bool,
    to_shrink: VecDeque<Key>,
    failing: BTreeMap<Key, Failing>,
    per_kernel: Vec<u64>,
    lines: BTreeMap<SourceLine, bool>,
    sum: Summary,
}

impl<'a> Run<'a> {
    pub fn new(
        subjects: &'a [Subject],
        options: &'a Options,
        stop: &'a AtomicBool,
        worker: &'a dyn Fn() -> Command,
        begun: &'a dyn Fn(),
    ) -> Self {
        Self {
            subjects,
            options,
            stop,
            worker,
            begun,
            events: channel(),
            slots: Vec::new(),
            started: 0,
            false_starts: 0,
            emulated: true,
            end: options.cases,
            next_turn: 0,
            left: Vec::new(),
            shrinking: false,
            to_shrink: VecDeque::new(),
            failing: BTreeMap::new(),
            per_kernel: vec![0; subjects.len()],
            lines: BTreeMap::new(),
            sum: Summary { tolerated: vec![0; options.ledger.0.len()], ..Summary::default() },
        }
    }

    pub fn finish(mut self) -> Result<Summary, FuzzError> {
        let start = Instant::now();
        let deadline = self.options.time.and_then(|time| start.checked_add(time));
        self.slots = (0..self.options.workers.max(1)).map(|_| None).collect();
        let mut tick = Instant::now();
        loop {
            let stopped = self.stop.load(Ordering::Relaxed);
            if !self.shrinking {
                let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if stopped || late || self.all_checked() {
                    self.sum.seconds = start.elapsed().as_secs_f64();
                    self.begin_shrinking();
                }
            }
            if self.shrinking && (stopped || self.all_shrunk()) {
                break;
            }
            self.employ()?;
            match self.events.1.recv_timeout(TICK) {
                Ok((number, event)) => self.take(number, event)?,
                Err(RecvTimeoutError::Timeout) => {}
                // This end holds a sender.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while let Ok((number, event)) = self.events.1.try_recv() {
                self.take(number, event)?;
            }
            // Where the whole program was stopped for a while, so were its workers.
            let pause = tick.elapsed().saturating_sub(20 * TICK);
            for slot in self.slots.iter_mut().flatten() {
                slot.since += pause;
            }
            tick = Instant::now();
            self.watch()?;
        }
        self.slots.clear();
        Ok(self.summary())
    }

    /// Whether every case that is to be checked is done or given up, and the lines of its turn are told.
    fn all_checked(&self) -> bool {
        let mut jobs = self.slots.iter().flatten().flat_map(|slot| &slot.jobs);
        // Of a turn whose cases are done there are the lines to hear.
        let in_hand = jobs.any(|job| match job {
            Job::Turn(cases) if cases.is_empty() => cases.end <= self.end,
            Job::Turn(cases) => cases.start < self.end,
            Job::Shrink(_) => false,
        });
        let is_left = |cases: &Range<u64>| !cases.is_empty() && cases.start < self.end;
        !in_hand && !self.left.iter().any(is_left) && cases_of(self.next_turn, self.end).is_empty()
    }

    fn all_shrunk(&self) -> bool {
        self.to_shrink.is_empty() && self.slots.iter().flatten().all(|slot| slot.jobs.is_empty())
    }

    /// Takes what workers still have in hand away from them: they are replaced where needed.
    fn begin_shrinking(&mut self) {
        self.shrinking = true;
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|slot| !slot.jobs.is_empty()) {
                *slot = None;
            }
        }
        if !self.options.keep_going
            && let Some(first) = self.failing.values().map(|failing| failing.case).min()
        {
            self.failing.retain(|_, failing| failing.case == first);
        }
        self.to_shrink = self.failing.keys().cloned().collect();
    }

    fn next_job(&mut self) -> Option<Job> {
        if self.shrinking {
            return self.to_shrink.pop_front().map(Job::Shrink);
        }
        let end = self.end;
        self.left.retain(|cases| !cases.is_empty() && cases.start < end);
        let cases = self.left.pop().or_else(|| {
            let cases = cases_of(self.next_turn, end);
            self.next_turn += u64::from(!cases.is_empty());
            (!cases.is_empty()).then_some(cases)
        });
        cases.map(Job::Turn)
    }

    /// Starts the workers that there is work for and gives those that are ready something to do.
    fn employ(&mut self) -> Result<(), FuzzError> {
        let in_hand = if self.shrinking { 1 } else { TURNS_IN_HAND };
        // One for each at a time, so that the first does not take what the last could do.
        for round in 0..in_hand {
            for at in 0..self.slots.len() {
                match &self.slots[at] {
                    None if round == 0 && self.has_work() => {
                        self.slots[at] = Some(self.start()?);
                    }
                    Some(slot) if slot.ready && slot.jobs.len() <= round => {
                        if let Some(job) = self.next_job() {
                            self.give(at, job)?;
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn has_work(&self) -> bool {
        match self.shrinking {
            true => !self.to_shrink.is_empty(),
            false => !self.left.is_empty() || !cases_of(self.next_turn, self.end).is_empty(),
        }
    }

    fn start(&mut self) -> Result<Slot, FuzzError> {
        self.started += 1;
        let process = Process::start((self.worker)(), self.started, self.events.0.clone())
            .map_err(FuzzError::Start)?;
        process.send(&Request::Setup {
            device: self.options.device.clone(),
            seed: self.options.seed,
        })?;
        Ok(Slot {
            process,
            number: self.started,
            ready: false,
            holds: VecDeque::new(),
            jobs: VecDeque::new(),
            since: Instant::now(),
        })
    }

    fn give(&mut self, at: usize, job: Job) -> Result<(), FuzzError> {
        let Some(slot) = &mut self.slots[at] else { return Ok(()) };
        let kernel = match &job {
            Job::Turn(cases) => kernel_of(cases.start, self.subjects.len()),
            Job::Shrink((kernel, _)) => *kernel,
        };
        if !slot.holds.contains(&kernel) {
            if slot.holds.len() >= KERNELS_HELD
                && let Some(index) = slot.holds.pop_front()
            {
                slot.process.send(&Request::Forget { index })?;
            }
            slot.holds.push_back(kernel);
            let subject = &self.subjects[kernel];
            let (id, code) = (subject.spec.to_string(), (&subject.image).into());
            slot.process.send(&Request::Kernel { index: kernel, id, code })?;
        }
        slot.process.send(&match &job {
            Job::Turn(cases) => Request::Turn { kernel, first: cases.start, end: cases.end },
            Job::Shrink(key) => {
                let Some(failing) = self.failing.get(key) else { return Ok(()) };
                let (kind, trial) = (key.1.clone(), Box::new(failing.trial.clone()));
                Request::Shrink { kernel, kind, trial }
            }
        })?;
        if slot.jobs.is_empty() {
            slot.since = Instant::now();
        }
        slot.jobs.push_back(job);
        Ok(())
    }

    fn take(&mut self, number: u64, event: Event<Reply>) -> Result<(), FuzzError> {
        let is_it = |slot: &Option<Slot>| slot.as_ref().is_some_and(|s| s.number == number);
        // Of a worker that was given up there may still be something to hear.
        let Some(at) = self.slots.iter().position(is_it) else { return Ok(()) };
        let Some(slot) = &mut self.slots[at] else { return Ok(()) };
        let reply = match event {
            Event::Said(reply) => reply,
            Event::Gone => return self.lose(at, None),
        };
        // A shrinking worker has its time for the whole.
        if !self.shrinking {
            slot.since = Instant::now();
        }
        match (reply, slot.jobs.front_mut()) {
            (Reply::Failed { reason }, _) => return Err(FuzzError::Failed(reason)),
            (Reply::Ready { emulated }, _) => {
                slot.ready = true;
                self.emulated = emulated;
            }
            (Reply::Case { case, edges, report, panic }, Some(Job::Turn(cases)))
                if case == cases.start && !cases.is_empty() =>
            {
                cases.start += 1;
                self.count(case, edges, report, panic);
            }
            (Reply::Turn { lines }, Some(Job::Turn(_))) => {
                slot.jobs.pop_front();
                self.add_lines(lines);
            }
            (Reply::Smaller { trial, report }, Some(Job::Shrink(key))) => {
                if let Some(failing) = self.failing.get_mut(key) {
                    (failing.trial, failing.report) = (*trial, *report);
                }
            }
            (Reply::Shrunk { attempts }, Some(Job::Shrink(key))) => {
                if let Some(failing) = self.failing.get_mut(key) {
                    failing.attempts = attempts;
                }
                slot.jobs.pop_front();
            }
            (reply, _) => {
                return Err(FuzzError::Failed(format!("nobody asked the worker for {reply:?}")));
            }
        }
        Ok(())
    }

    fn count(
        &mut self,
        case: u64,
        edges: u64,
        report: Option<Box<CaseReport>>,
        panic: Option<String>,
    ) {
        (self.begun)();
        let kernel = kernel_of(case, self.subjects.len());
        let spec = &self.subjects[kernel].spec;
        self.sum.cases += 1;
        self.per_kernel[kernel] += 1;
        self.sum.coverage.add(edges);
        if let Some(message) = panic {
            self.sum.panic_count += 1;
            if self.sum.panics.len() < KEPT {
                self.sum.panics.push(Panicked { case, kernel: spec.to_string(), message });
            }
        }
        let Some((report, kind)) = report.and_then(|r| kind(&r).map(|kind| (r, kind))) else {
            return;
        };
        if let Some(entry) = self.options.ledger.tolerates(&spec.to_string(), &kind) {
            self.sum.tolerated[entry] += 1;
            return;
        }
        self.sum.faulty_cases += 1;
        let key = (kernel, kind);
        if self.failing.get(&key).is_none_or(|earlier| case < earlier.case) {
            let trial = draw(self.options.seed, self.emulated, spec, case);
            self.failing.insert(key, Failing { case, trial, report: *report, attempts: 0 });
        }
        if !self.options.keep_going {
            // Those before it are still to be checked: the first fault is the same however many
            // workers there are.
            self.end = self.end.min(case);
        }
    }

    fn add_lines(&mut self, lines: Vec<Line>) {
        for Line { file, line, reached } in lines {
            *self.lines.entry(SourceLine { file, line }).or_default() |= reached;
        }
    }

    /// Gives up workers that have been silent for too long.
    fn watch(&mut self) -> Result<(), FuzzError> {
        for at in 0..self.slots.len() {
            let Some(slot) = &self.slots[at] else { continue };
            let limit = match slot.jobs.front() {
                _ if !slot.ready => self.options.case_limit.max(Duration::from_secs(60)),
                Some(Job::Turn(_)) => self.options.case_limit,
                Some(Job::Shrink(_)) => SHRINK_TIME + self.options.case_limit,
                None => continue,
            };
            if slot.since.elapsed() > limit {
                self.lose(at, Some(format!("no answer within {:.0} s", limit.as_secs_f64())))?;
            }
        }
        Ok(())
    }

    /// Counts a worker as lost in the case it had in hand; the rest of its work goes to others.
    fn lose(&mut self, at: usize, how: Option<String>) -> Result<(), FuzzError> {
        let Some(mut slot) = self.slots[at].take() else { return Ok(()) };
        let ended = slot.process.end();
        let how = how.unwrap_or(ended);
        if !slot.ready {
            self.false_starts += 1;
            if self.false_starts > FALSE_STARTS {
                return Err(FuzzError::Worker(how));
            }
        }
        let mut jobs = std::mem::take(&mut slot.jobs);
        if let Some(Job::Turn(cases)) = jobs.front_mut()
            && !cases.is_empty()
        {
            let case = cases.start;
            cases.start += 1;
            self.sum.lost_count += 1;
            if self.sum.lost.len() < KEPT {
                let spec = self.subjects[kernel_of(case, self.subjects.len())].spec;
                let trial = draw(self.options.seed, self.emulated, &spec, case);
                self.sum.lost.push(Lost { case, spec, trial, how });
            }
        }
        // A trial that loses its worker while it is made smaller stays as small as it was.
        self.left.extend(jobs.into_iter().filter_map(|job| match job {
            Job::Turn(cases) => Some(cases),
            Job::Shrink(_) => None,
        }));
        Ok(())
    }

    fn summary(self) -> Summary {
        let mut sum = self.sum;
        let fewest = self.per_kernel.iter().min().copied().unwrap_or(0);
        sum.cases_per_kernel = (fewest, self.per_kernel.iter().max().copied().unwrap_or(0));
        sum.lines = LineCoverage {
            with_code: self.lines.len(),
            reached: self.lines.values().filter(|reached| **reached).count(),
            not_reached: self
                .lines
                .into_iter()
                .filter_map(|(line, reached)| (!reached).then_some(line))
                .collect(),
        };
        let found = self.failing.into_iter().map(|((kernel, kind), failing)| Failure {
            case: failing.case,
            spec: self.subjects[kernel].spec,
            kind,
            trial: failing.trial,
            report: failing.report,
            attempts: failing.attempts,
        });
        sum.failures = found.collect();
        sum.failures.sort_by_key(|failure| failure.case);
        sum.lost.sort_by_key(|lost| lost.case);
        sum.panics.sort_by_key(|panicked| panicked.case);
        sum
    }
}
