//! `worker`: evaluates candidates of studies that coordinators elsewhere run.

use super::device_choice::DeviceList;
use super::{Outcome, worker};
use crate::notice;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use spanforge_device::Compiler;
use spanforge_tuner::cluster::{Cluster, PATIENCE, Told, WorkerRequest, work};
use spanforge_tuner::record::Status;
use std::io::Write;
use std::time::Duration;

/// Evaluate candidates for tuning runs on other machines
///
/// A coordinator runs `spanforge tune --study SERVERS`; workers join and leave at any time, and what
/// one has in hand when it is lost goes to another. The servers are NATS with JetStream (`nats-server
/// -js`); three of them in a cluster survive the loss of one.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge worker --study nats://a:4222,nats://b:4222,nats://c:4222\n  \
    spanforge worker --study nats://localhost:4222 --device cuda:1,cuda:3\n  \
    spanforge worker --study nats://localhost:4222 --idle 60")]
pub struct Arguments {
    /// NATS servers with JetStream, with commas between them
    #[arg(long, value_name = "SERVERS")]
    study: String,
    /// Devices to evaluate on [default: every GPU; where there is none, the emulated one of the study]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceList>,
    /// Candidates at a time on each device; for a GPU processes that compile [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Serve this run only
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Seconds that the servers may be away before it is an error
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE.as_secs())]
    patience: u64,
    /// End after so many seconds without anything to do [default: only at Ctrl-C]
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    if arguments.run.as_ref().is_some_and(String::is_empty) {
        bail!("--run is empty: name the run to serve, or leave it out to serve any");
    }
    let compiler = Compiler::new(&notice::settings())?;
    let stop = worker::stop_at_interrupt("leaving; what is in hand goes to other workers")?;
    let process = worker::evaluator()?;
    let progress = |told: Told<'_>| match told {
        Told::Joined(run) => notice::say(format_args!("joined {}", run.run)),
        Told::Refused(run, reason) => notice::say(format_args!("not for {}: {reason}", run.run)),
        Told::Done(candidate) => {
            let became = match (candidate.status, candidate.time_us) {
                (Status::Correct, Some(us)) => format!("{us:.1} us"),
                (status, _) => status.to_string(),
            };
            notice::say(format_args!("{} {}: {became}", candidate.index, candidate.id));
        }
        Told::Again(0) => {
            notice::say(format_args!("the finalists cannot be measured once more here"))
        }
        Told::Again(count) => notice::say(format_args!("{count} finalists measured once more")),
        Told::Ended(run) => notice::say(format_args!("{} has ended", run.run)),
    };
    let mut devices: Vec<Option<String>> = match &arguments.device {
        None => spanforge_device::gpu_specs().map(Some).collect(),
        Some(DeviceList(named)) => named.iter().cloned().map(Some).collect(),
    };
    if devices.is_empty() {
        devices.push(None);
    }
    let serve = |device: Option<String>| {
        let cluster = Cluster::connect(&arguments.study, Duration::from_secs(arguments.patience))?;
        let on = device.as_ref().map_or_else(String::new, |device| format!(" for {device}"));
        notice::say(format_args!("connected to {}{on}", cluster.servers()));
        let request = WorkerRequest {
            device,
            workers: worker::count(arguments.workers),
            run: arguments.run.clone(),
            idle: arguments.idle.map(Duration::from_secs),
            compiler: &compiler,
            open: &spanforge_device::open,
            process: &process,
            stop: &stop,
            progress: &progress,
        };
        work(&cluster, &request)
    };
    let count = std::thread::scope(|scope| -> Result<usize> {
        let started: Vec<_> = devices.into_iter().map(|d| scope.spawn(|| serve(d))).collect();
        let mut sum = 0;
        for worker in started {
            let count = worker.join().map_err(|_| anyhow!("a worker has failed"))?;
            sum += count.context("a worker has left")?;
        }
        Ok(sum)
    })?;
    writeln!(out, "{count} candidates evaluated")?;
    Ok(Outcome::Done)
}
