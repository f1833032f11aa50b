//! The tuner: searches configurations for a workload on a device, checks every candidate before it
//! is timed, keeps everything it found out, and exports the winner with its evidence.
//!
//! [`search`] knows nothing of attention. [`tune()`] is the way of a run: workload -> candidates ->
//! compiled -> checked -> timed -> recorded -> winner -> artifact, verified once more as exported.
//! Candidates run in worker [processes](evaluate), of this machine or of a [`cluster`], and a
//! [`journal`] lets a run go on after whatever ended it.

pub mod bench;
pub mod buckets;
pub mod calibrate;
pub mod choice;
pub mod cluster;
pub mod environment;
pub mod evaluate;
pub mod export;
pub mod formats;
pub mod journal;
pub mod measure;
mod packed;
mod proposals;
pub mod record;
pub mod replay;
pub mod report;
pub mod search;
pub mod tune;
mod workers;
pub mod workload;

pub use tune::{Event, Interrupted, Means, Outcome, Request, TuneError, tune};
pub use workers::CandidateLimits;
pub use workload::{Workload, WorkloadError};
