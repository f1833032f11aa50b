//! The coordinator's end: configurations go out, results come in.

use super::{Announced, Cluster, ClusterError, State, jobs_subject};
use crate::evaluate::Job;
use crate::record::{Candidate, Record};
use crate::tune::TuneError;
use crate::workers::{Evaluators, TICK};
use async_nats::jetstream::consumer::pull::Config;
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
        while let Some((at, candidate)) = self.result(&announced.run.run, from)? {
            records.push(Record::Candidate(Box::new(candidate)));
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
        let consumer = Config {
            durable_name: Some(super::token(&announced.run.run)),
            filter_subject: jobs_subject(&announced.run, "*"),
            ack_wait: super::SILENCE,
            ..Default::default()
        };
        cluster.link.patiently("to make the queue's consumer", || {
            cluster.jobs.create_consumer(consumer.clone())
        })?;
        cluster.announce(&announced)?;
        let (submitted, early) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { cluster, announced, next: 0, submitted, early })
    }
}

impl Evaluators for Coordinator<'_> {
    fn submit(&mut self, job: Job) -> Result<(), TuneError> {
        self.submitted.insert(job.index, job.spec);
        if !self.early.contains_key(&job.index) {
            let subject = jobs_subject(&self.announced.run, &job.index.to_string());
            // One that is queued already was published by an earlier coordinator.
            self.cluster.publish_once(&subject, &job)?;
        }
        Ok(())
    }

    fn finished(&mut self) -> Result<Vec<Candidate>, TuneError> {
        for _ in 0..MOST {
            let run = &self.announced.run.run;
            let Some((at, candidate)) = self.cluster.result(run, self.next)? else { break };
            self.next = at + 1;
            self.early.insert(candidate.index, candidate);
        }
        let mut done = Vec::new();
        self.early.retain(|index, candidate| match self.submitted.get(index) {
            Some(spec) if *spec == candidate.spec => {
                done.push(candidate.clone());
                false
            }
            _ => true,
        });
        for candidate in &done {
            self.submitted.remove(&candidate.index);
        }
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
