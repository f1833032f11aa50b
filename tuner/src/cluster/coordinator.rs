//! The coordinator's end: configurations go out, results come in.

use super::{Announced, Cluster, ClusterError, State, Task, jobs_subject};
use crate::evaluate::Job;
use crate::record::{Candidate, Record, Remeasured};
use crate::tune::TuneError;
use crate::workers::{Evaluators, TICK};
use spanforge_kernels::KernelSpec;
use std::collections::BTreeMap;

/// Results that are taken at a time.
const MOST: usize = 64;

/// Workers of a run on other machines.
pub(crate) struct Coordinator<'a> {
    cluster: &'a Cluster,
    announced: Announced,
    /// Place in the stream of results after those that were read.
    next: u64,
    /// What was published, or was found to be.
    submitted: BTreeMap<usize, KernelSpec>,
    /// Results of configurations that an earlier coordinator published and this one has not come to.
    early: BTreeMap<usize, Candidate>,
}

impl Cluster {
    /// The journal of a run as the servers have it: its study, and all results.
    pub(crate) fn journal(&self, run: &str) -> Result<Vec<Record>, ClusterError> {
        let Some(announced) = self.study(run)? else {
            let (servers, run) = (self.link.servers.clone(), run.to_owned());
            return Err(ClusterError::Unknown { servers, run });
        };
        let mut records = vec![
            Record::Study(Box::new(announced.study)),
            Record::Run(Box::new(announced.run.clone())),
        ];
        let mut from = 0;
        while let Some((at, record)) = self.result(&announced.run.run, from)? {
            records.push(record);
            from = at + 1;
        }
        Ok(records)
    }
}

impl<'a> Coordinator<'a> {
    /// Announces a study, or goes on with it where it is the one of `is_resumed`.
    pub fn new(
        cluster: &'a Cluster,
        announced: Announced,
        is_resumed: bool,
    ) -> Result<Self, ClusterError> {
        if !is_resumed && cluster.study(&announced.run.run)?.is_some() {
            return Err(ClusterError::Exists(announced.run.run));
        }
        cluster.queue(&announced.run)?;
        cluster.announce(&announced)?;
        let (submitted, early) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { cluster, announced, next: 0, submitted, early })
    }

    /// One that is queued already was published by an earlier coordinator.
    fn publish(&self, task: &Task) -> Result<(), ClusterError> {
        let subject = jobs_subject(&self.announced.run, &task.name());
        self.cluster.publish_once(&subject, task).map(|_| ())
    }
}

impl Evaluators for Coordinator<'_> {
    fn submit(&mut self, job: Job) -> Result<(), TuneError> {
        self.submitted.insert(job.index, job.spec);
        if !self.early.contains_key(&job.index) {
            self.publish(&Task::Evaluate(job))?;
        }
        Ok(())
    }

    fn remeasure(
        &mut self,
        jobs: &[Job],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Remeasured, TuneError> {
        let task = Task::Remeasure(jobs.to_vec());
        let mut is_published = false;
        loop {
            // An earlier coordinator may have had it done.
            match self.cluster.result_of(&self.announced.run.run, &task)? {
                Some(Record::Remeasured(remeasured)) => return Ok(remeasured),
                _ if !go_on() => return Ok(Remeasured::default()),
                _ if is_published => std::thread::sleep(TICK),
                _ => {
                    self.publish(&task)?;
                    is_published = true;
                }
            }
        }
    }

    fn finished(&mut self) -> Result<Vec<Candidate>, TuneError> {
        for _ in 0..MOST {
            let run = &self.announced.run.run;
            let Some((at, record)) = self.cluster.result(run, self.next)? else { break };
            self.next = at + 1;
            if let Record::Candidate(candidate) = record {
                self.early.insert(candidate.index, *candidate);
            }
        }
        let done = matched(&mut self.submitted, &mut self.early)?;
        if done.is_empty() {
            std::thread::sleep(TICK);
        }
        Ok(done)
    }

    /// Tells workers that there is nothing more to do, and clears the queue.
    fn end(&mut self) -> Result<(), TuneError> {
        let Self { cluster, announced, .. } = self;
        announced.state = State::Ended;
        cluster.announce(announced)?;
        cluster.link.patiently("to clear the queue", || async {
            cluster.jobs.purge().filter(jobs_subject(&announced.run, "*")).await
        })?;
        // Where it is gone already there is nothing to do.
        let name = super::token(&announced.run.run);
        cluster.link.briefly(cluster.jobs.delete_consumer(&name));
        Ok(())
    }
}

/// Takes out what has been submitted and has a result.
fn matched(
    submitted: &mut BTreeMap<usize, KernelSpec>,
    early: &mut BTreeMap<usize, Candidate>,
) -> Result<Vec<Candidate>, ClusterError> {
    let ready: Vec<usize> = early.keys().copied().filter(|i| submitted.contains_key(i)).collect();
    let mut done = Vec::with_capacity(ready.len());
    for index in ready {
        let both = submitted.remove(&index).zip(early.remove(&index));
        let Some((spec, candidate)) = both else { continue };
        // Another search has published it under the name of this run.
        if spec != candidate.spec {
            let reason = format!("configuration {index} is {}, and was to be {spec}", candidate.id);
            return Err(ClusterError::Content { what: "a result", reason });
        }
        done.push(candidate);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spanforge_device::Basis;

    /// 2026-11-25: the result of another configuration under the number of a submitted one was
    /// neither taken nor refused, and the run waited for ever.
    #[test]
    fn a_result_of_another_configuration_is_an_error() {
        let spec = |share| -> KernelSpec {
            let id = format!("f16-d64-g1-staged-t32-s2-w4-h1-v16-u2-qr-p0-b1-x1-m{share}-second");
            id.parse().expect("an identifier")
        };
        let result =
            |index, share| (index, Candidate::begun("", index, spec(share), Basis::Predicted, 0));
        let mut early: BTreeMap<usize, Candidate> =
            [result(0, 64), result(2, 64), result(5, 128)].into();
        let mut submitted: BTreeMap<usize, KernelSpec> =
            [(0, spec(64)), (1, spec(64)), (2, spec(64))].into();
        let done = matched(&mut submitted, &mut early).expect("they fit");
        assert_eq!(done.iter().map(|c| c.index).collect::<Vec<_>>(), [0, 2]);
        assert!(submitted.keys().eq(&[1]) && early.keys().eq(&[5]));
        submitted.insert(5, spec(64));
        let error = matched(&mut submitted, &mut early).expect_err("it is another one").to_string();
        assert!(error.contains("m128") && error.contains("was to be"), "{error}");
    }
}
