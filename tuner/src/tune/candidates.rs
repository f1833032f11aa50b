//! The middle of a run: proposals go out, candidates come back, the strategy learns of them in the
//! order in which it proposed them; then the finalists are measured once more.

use super::{Change, Event, Interrupted, Means, Request, TuneError};
use crate::buckets::contenders;
use crate::choice::finalists;
use crate::evaluate::Job;
use crate::journal::{Journal, Kept, MOST_CRASHES, boot};
use crate::measure::BUCKET_FINALISTS;
use crate::proposals::Proposals;
use crate::record::{Candidate, Record, Remeasured, Run, Started, Status};
use crate::workers::Evaluators;
use spanforge_device::Basis;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The candidates of a run, evaluated or taken from the journal.
pub(super) struct Search<'a> {
    pub request: &'a Request,
    pub means: &'a Means<'a>,
    pub run: &'a Run,
    pub journal: Journal,
    pub kept: Option<&'a Kept>,
    pub proposals: Proposals<'a>,
    pub evaluators: Box<dyn Evaluators + 'a>,
    /// Candidates that may be under way at a time.
    pub window: usize,
    /// Evaluated, but not told of: one before them is not.
    pub finished: BTreeMap<usize, Candidate>,
    pub done: usize,
}

impl Search<'_> {
    /// All candidates in the order of their proposals.
    pub fn candidates(&mut self) -> Result<Vec<Candidate>, TuneError> {
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
                return Err(self.interrupted(told));
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

    fn interrupted(&self, candidates: Vec<Candidate>) -> TuneError {
        let (run, journal) = (self.run.clone(), self.journal.path().to_owned());
        TuneError::Interrupted(Box::new(Interrupted { run, candidates, journal }))
    }

    /// On a GPU, the finalists once more: measured in turn, so that what changes with time is the same
    /// for all. What the journal has of the same finalists is not measured again. A device that
    /// predicts says the same each time.
    pub fn remeasure(&mut self, candidates: &[Candidate]) -> Result<Remeasured, TuneError> {
        let mut finalists = finalists(candidates);
        for contender in contenders(candidates, &self.run.batches, BUCKET_FINALISTS) {
            if finalists.iter().all(|finalist| finalist.index != contender.index) {
                finalists.push(contender);
            }
        }
        if self.run.properties.basis == Basis::Predicted || finalists.len() < 2 {
            return Ok(Remeasured::default());
        }
        if let Some(Kept { remeasured, .. }) = self.kept
            && finalists.iter().all(|c| remeasured.samples_us(c.index).is_some())
        {
            return Ok(remeasured.clone());
        }
        let job = |c: &&Candidate| Job { index: c.index, spec: c.spec, best_us: None };
        let jobs: Vec<Job> = finalists.iter().map(job).collect();
        let stop = self.means.stop;
        let remeasured = self.evaluators.remeasure(&jobs, &mut || !stop.load(Ordering::Relaxed))?;
        if !remeasured.finalists.is_empty() {
            self.journal.append(&Record::Remeasured(remeasured.clone()))?;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(self.interrupted(candidates.to_vec()));
        }
        Ok(remeasured)
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
