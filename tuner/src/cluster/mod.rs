//! One run on many machines, with NATS JetStream between them: any number of workers, which come and
//! go, and one coordinator, which may be lost and resumed.
//!
//! ```text
//! key-value bucket  spanforge_studies   what a study is and whether it runs, by run
//! work-queue stream spanforge_jobs      configurations, each until it is acknowledged
//! stream            spanforge_results   what became of them: lines of a journal
//! ```
//!
//! The finalists of a run on GPUs are measured once more in turn, by whichever worker takes them: one
//! message has all of them, and one line is their result.
//!
//! A configuration is published if none of its run and number is queued, a result if there is none
//! yet, both checked by the server: what was sent twice, because the answer got lost, is there once.
//! A worker acknowledges a configuration after its result is stored, and says every few seconds that
//! it is at it; what a lost worker had in hand is delivered to another. Subjects name the kind of
//! device, so that times of different kinds never meet.

mod coordinator;
mod worker;

pub(crate) use coordinator::Coordinator;
pub use worker::{Told, WorkerRequest, work};

use crate::evaluate::Job;
use crate::record::{Record, Run, Study};
use crate::workers::CandidateLimits;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{DirectGetError, DirectGetErrorKind, RetentionPolicy};
use async_nats::jetstream::{Context, ErrorCode, kv, stream};
use async_nats::{ConnectOptions, ServerAddr};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use spanforge_kernels::artifact::digest;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const STUDIES: &str = "spanforge_studies";
const JOBS: &str = "spanforge_jobs";
const RESULTS: &str = "spanforge_results";

/// Servers that keep what is stored, where there are as many.
const REPLICAS: usize = 3;

/// How long servers may be away, as while they choose a new leader, where nobody says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long one request may take before it is made again.
const REQUEST: Duration = Duration::from_secs(5);

/// How long a worker may be silent about a configuration before another gets it.
const SILENCE: Duration = Duration::from_secs(15);

/// What goes wrong between machines.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// An address that is none.
    #[error(
        "`{address}` is no address of a study's server: {reason}; write nats://HOST:4222, several with commas between them"
    )]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// They do not answer.
    #[error(
        "the study's servers ({servers}) do not answer: {what}: {reason}; nothing that was recorded is lost"
    )]
    Away {
        /// Where they were looked for.
        servers: String,
        /// What was tried.
        what: String,
        /// What came of the last try.
        reason: String,
    },
    /// They answer, but have no such study.
    #[error("the study's servers ({servers}) know no run `{run}`")]
    Unknown {
        /// Where it was looked for.
        servers: String,
        /// Its name.
        run: String,
    },
    /// There is another run of that name.
    #[error(
        "the study's servers have a run `{0}` already: start it again, it gets a name of its own"
    )]
    Exists(String),
    /// What they store is not what this version does.
    #[error("{what} on the study's servers cannot be read: {reason}")]
    Content {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// This process cannot talk to anybody.
    #[error("no connection to a study's servers can be made: {0}")]
    Io(#[from] std::io::Error),
    /// What is to be sent cannot be written down.
    #[error("a message cannot be written: {0}")]
    Message(#[from] serde_json::Error),
}

/// A study as workers find it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Announced {
    pub state: State,
    pub study: Study,
    pub run: Run,
    pub limits: CandidateLimits,
}

/// Whether there will be more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Running,
    Ended,
}

/// A message of the queue: what a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Task {
    Evaluate(Job),
    /// These finalists, in turn.
    Remeasure(Vec<Job>),
}

impl Task {
    /// The last part of its subject in the queue, and of its result's.
    fn name(&self) -> String {
        match self {
            Self::Evaluate(job) => job.index.to_string(),
            Self::Remeasure(jobs) => {
                let indices: Vec<String> = jobs.iter().map(|job| job.index.to_string()).collect();
                format!("again-{}", &digest(indices.join(" ").as_bytes())[..16])
            }
        }
    }
}

/// A connection to the servers. What is asked of them is asked again while they are away.
pub struct Cluster {
    link: Link,
    context: Context,
    studies: kv::Store,
    jobs: stream::Stream,
    results: stream::Stream,
}

impl Cluster {
    /// Connects to `servers`, such as `nats://a:4222,nats://b:4222,nats://c:4222`, and makes there
    /// what is not there yet. Later the servers may be away for as long as `patience`.
    ///
    /// # Errors
    /// Addresses that are none, and servers that do not answer.
    pub fn connect(servers: &str, patience: Duration) -> Result<Self, ClusterError> {
        let address = |address: &str| {
            address.trim().parse::<ServerAddr>().map_err(|error| ClusterError::Address {
                address: address.to_owned(),
                reason: error.to_string(),
            })
        };
        let addresses: Vec<ServerAddr> =
            servers.split(',').map(address).collect::<Result<_, _>>()?;
        let servers = shown(&addresses);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // The first connection is to succeed at once: a wrong address is found out now.
        let options = ConnectOptions::new()
            .name("spanforge")
            .max_reconnects(None)
            .connection_timeout(REQUEST)
            .reconnect_delay_callback(|tries| Duration::from_millis(100 * tries.min(10) as u64));
        let client = runtime.block_on(options.connect(addresses)).map_err(|error| {
            let (what, reason) = ("to connect".to_owned(), said(&error));
            ClusterError::Away { servers: servers.clone(), what, reason }
        })?;
        // It starts a task of its own.
        let entered = runtime.enter();
        let mut context = async_nats::jetstream::new(client);
        drop(entered);
        context.set_timeout(REQUEST);
        let link = Link { servers, runtime, patience };
        let (jobs, replicas) = link.patiently("to make the queue", || async {
            match stream_of(&context, JOBS, REPLICAS).await {
                Err(error) if needs_one(&error) => Ok((stream_of(&context, JOBS, 1).await?, 1)),
                other => other.map(|stream| (stream, REPLICAS)),
            }
        })?;
        let results =
            link.patiently("to make the results", || stream_of(&context, RESULTS, replicas))?;
        let studies = link.patiently("to make the list of studies", || async {
            if let Ok(found) = context.get_key_value(STUDIES).await {
                return Ok(found);
            }
            let bucket = STUDIES.to_owned();
            let config =
                kv::Config { bucket, history: 1, num_replicas: replicas, ..Default::default() };
            context.create_key_value(config).await
        })?;
        Ok(Self { link, context, studies, jobs, results })
    }

    /// Where the servers are.
    pub fn servers(&self) -> &str {
        &self.link.servers
    }

    /// What is known of a run's study, if anything.
    pub(crate) fn study(&self, run: &str) -> Result<Option<Announced>, ClusterError> {
        let key = token(run);
        let bytes = self.link.patiently("to read a study", || self.studies.get(key.clone()))?;
        bytes.map(|bytes| parsed("a study", &bytes)).transpose()
    }

    /// The studies that are not ended.
    pub(crate) fn running(&self) -> Result<Vec<Announced>, ClusterError> {
        let keys: Vec<String> = self.link.patiently("to list the studies", || async {
            let keys = self.studies.keys().await.map_err(std::io::Error::other)?;
            keys.try_collect().await.map_err(std::io::Error::other)
        })?;
        let mut running = Vec::new();
        for key in keys {
            // Other versions may have written what this one cannot read: that is theirs.
            match self.study(&key) {
                Ok(study) => running.extend(study),
                Err(ClusterError::Content { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        running.retain(|study: &Announced| study.state == State::Running);
        Ok(running)
    }

    /// The queue of a run, as its workers share it; it is made where there is none.
    fn queue(&self, run: &Run) -> Result<PullConsumer, ClusterError> {
        let name = token(&run.run);
        let config = pull::Config {
            durable_name: Some(name.clone()),
            filter_subject: jobs_subject(run, "*"),
            ack_wait: SILENCE,
            ..Default::default()
        };
        self.link.patiently("to join the queue", || {
            self.jobs.get_or_create_consumer(&name, config.clone())
        })
    }

    fn announce(&self, study: &Announced) -> Result<(), ClusterError> {
        let key = token(&study.run.run);
        let bytes = serde_json::to_vec(study)?;
        self.link.patiently("to announce the study", || {
            self.studies.put(key.clone(), bytes.clone().into())
        })?;
        Ok(())
    }

    /// Publishes where the subject has no message; whether it had none.
    fn publish_once(&self, subject: &str, message: &impl Serialize) -> Result<bool, ClusterError> {
        let payload = serde_json::to_vec(message)?;
        self.link.patiently("to publish", || async {
            let message = PublishMessage::build()
                .payload(payload.clone().into())
                .expected_last_subject_sequence(0);
            let sent = self.context.send_publish(subject.to_owned(), message).await?;
            match sent.await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    /// The next result of a run from a place in the stream on, with its own place.
    fn result(&self, run: &str, from: u64) -> Result<Option<(u64, Record)>, ClusterError> {
        let subject = results_subject(run, "*");
        let found = self.link.patiently("to read the results", || async {
            found(self.results.direct_get_next_for_subject(subject.clone(), Some(from)).await)
        })?;
        found.map(|m| Ok((m.sequence, parsed("a result", &m.payload)?))).transpose()
    }

    /// The result of a task of a run, where there is one.
    fn result_of(&self, run: &str, task: &Task) -> Result<Option<Record>, ClusterError> {
        let subject = results_subject(run, &task.name());
        let found = self.link.patiently("to read a result", || async {
            found(self.results.direct_get_last_for_subject(subject.clone()).await)
        })?;
        found.map(|message| parsed("a result", &message.payload)).transpose()
    }
}

/// The way to servers that may be away for a while.
struct Link {
    servers: String,
    runtime: Runtime,
    patience: Duration,
}

impl Link {
    /// Makes a request until it succeeds, or patience is at an end. `what` it is about is said then.
    fn patiently<T, E: std::error::Error, F: Future<Output = Result<T, E>>>(
        &self,
        what: &str,
        attempt: impl Fn() -> F,
    ) -> Result<T, ClusterError> {
        let begun = Instant::now();
        loop {
            let timed = async { tokio::time::timeout(2 * REQUEST, attempt()).await };
            let reason = match self.runtime.block_on(timed) {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => said(&error),
                Err(_) => "no answer in time".to_owned(),
            };
            if begun.elapsed() > self.patience {
                let (servers, what) = (self.servers.clone(), what.to_owned());
                return Err(ClusterError::Away { servers, what, reason });
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// Makes one attempt at something that does no harm when it fails.
    fn briefly(&self, attempt: impl Future) {
        let _ = self.runtime.block_on(async { tokio::time::timeout(REQUEST, attempt).await });
    }
}

async fn stream_of(
    context: &Context,
    name: &str,
    num_replicas: usize,
) -> Result<stream::Stream, CreateStreamError> {
    let (subject, retention) = match name {
        JOBS => ("spanforge.jobs.>", RetentionPolicy::WorkQueue),
        _ => ("spanforge.results.>", RetentionPolicy::Limits),
    };
    let config = stream::Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        retention,
        num_replicas,
        allow_direct: true,
        ..Default::default()
    };
    context.get_or_create_stream(config).await
}

/// A message that may not be there.
fn found<T>(message: Result<T, DirectGetError>) -> Result<Option<T>, DirectGetError> {
    match message {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a server is alone and so keeps one copy only.
fn needs_one(error: &CreateStreamError) -> bool {
    matches!(error.kind(), CreateStreamErrorKind::JetStream(error)
        if error.error_code() == ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED)
}

/// Where the queue has the configurations of a run for a kind of device.
fn jobs_subject(run: &Run, name: &str) -> String {
    let kind = token(&format!("{} {}", run.properties.name, run.properties.architecture));
    format!("spanforge.jobs.{kind}.{}.{name}", token(&run.run))
}

/// Where the results of a run are.
fn results_subject(run: &str, name: &str) -> String {
    format!("spanforge.results.{}.{name}", token(run))
}

/// A name as a part of a subject, or as a key.
fn token(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    name.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

fn parsed<T: for<'a> Deserialize<'a>>(what: &'static str, bytes: &[u8]) -> Result<T, ClusterError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ClusterError::Content { what, reason: error.to_string() })
}

/// An error with what caused it.
fn said(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// Addresses without the passwords in them.
fn shown(addresses: &[ServerAddr]) -> String {
    let each = addresses.iter().map(|a| format!("{}://{}:{}", a.scheme(), a.host(), a.port()));
    each.collect::<Vec<_>>().join(",")
}
