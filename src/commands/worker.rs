//! `fuzz-worker` and `tune-worker`: processes that `fuzz` and `tune` start for what may crash, hang
//! or eat all memory. Not for users.

use super::Outcome;
use crate::notice;
use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use spanforge_device::Compiler;
use std::io::{BufRead, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

/// The verb of the workers of `fuzz`.
pub const FUZZ: &str = "fuzz-worker";

/// The verb of the workers of `tune`.
pub const TUNE: &str = "tune-worker";

pub fn fuzz(out: &mut dyn Write) -> Result<Outcome> {
    spanforge_verify::fuzz::serve(requests(), out).context("nobody reads the replies")?;
    Ok(Outcome::Done)
}

pub fn tune(out: &mut dyn Write) -> Result<Outcome> {
    let requests = requests();
    let compiler = Compiler::new(&notice::settings())?;
    let open = &spanforge_device::open;
    spanforge_tuner::evaluate::serve(requests, out, &compiler, open, &|_, source| source)
        .context("nobody reads the replies")?;
    Ok(Outcome::Done)
}

/// What starts a worker: this program with the verb of one.
pub fn command(verb: &'static str) -> Result<impl Fn() -> Command> {
    let own = std::env::current_exe().context("cannot find this program to start workers of")?;
    Ok(move || {
        let mut command = Command::new(&own);
        command.arg(verb);
        command
    })
}

/// What starts a process that evaluates candidates.
pub fn evaluator() -> Result<impl Fn() -> Command> {
    let command = command(TUNE)?;
    Ok(move || {
        let mut command = command();
        // Candidates run side by side; one alone need not.
        command.env("RAYON_NUM_THREADS", "1");
        command
    })
}

/// How many work at a time: as given, or one per core.
pub fn count(given: Option<u16>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    given.map_or_else(cores, usize::from)
}

/// Set by Ctrl-C or a request to terminate; the second one ends the program where it stands. `what`
/// it will do is said.
pub fn stop_at_interrupt(what: &'static str) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        notice::say(format_args!("{what}; once more to end at once"));
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(stop)
}

fn requests<Request: DeserializeOwned + Send + 'static>() -> Receiver<Request> {
    let (requests, waiting) = channel::<Request>();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let request = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            let sent = request.is_some_and(|request| requests.send(request).is_ok());
            if !sent {
                break;
            }
        }
        // The parent has gone, or is not one: there is nobody to answer, and no reason to end what
        // is in hand first.
        end();
    });
    waiting
}

/// Ends this process where it stands. Exit handlers do not run: they wait for the dynamic loader,
/// which another thread may be in with NVRTC, which in turn waits for them.
#[cfg(unix)]
fn end() {
    use rustix::process::{Signal, getpid, kill_process};
    // A process may always send itself a signal.
    let _ = kill_process(getpid(), Signal::KILL);
}

#[cfg(not(unix))]
fn end() {
    std::process::exit(0);
}
