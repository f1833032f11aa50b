//! The tuner: searches configurations for a workload on a device, checks every candidate before it
//! is timed, keeps everything it found out, and exports the winner with its evidence.
//!
//! [`search`] knows nothing of attention. [`tune()`] is the way of a run: workload -> candidates ->
//! compiled -> checked -> timed -> recorded -> winner -> artifact, verified once more as exported.

pub mod environment;
pub mod export;
pub mod formats;
mod proposals;
pub mod record;
pub mod replay;
pub mod search;
pub mod tune;
pub mod workload;

pub use tune::{Event, Outcome, Request, TuneError, tune};
pub use workload::{Workload, WorkloadError};
