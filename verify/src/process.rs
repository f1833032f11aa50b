//! Worker processes as their parent sees them: a JSON object per line, requests on a worker's
//! standard input, replies on its standard output. A worker ends when its standard input does, so
//! none outlives its parent, however that ends.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::{io, thread};

/// The last lines of a worker's standard error that are kept.
const LINES_KEPT: usize = 3;

/// What a worker did.
#[derive(Debug)]
pub enum Event<Reply> {
    /// It replied.
    Said(Reply),
    /// It has ended, or what it says is no reply.
    Gone,
}

/// What happened, after the number of the worker.
pub type Happened<Reply> = (u64, Event<Reply>);

/// A running worker. Killed on drop.
pub struct Process {
    child: Child,
    requests: Sender<Vec<u8>>,
    complaints: Option<JoinHandle<Vec<String>>>,
}

impl Process {
    /// Starts a worker; what it does goes to `events` under `number`.
    ///
    /// # Errors
    /// A program that cannot be started.
    pub fn start<Reply: DeserializeOwned + Send + 'static>(
        mut command: Command,
        number: u64,
        events: Sender<Happened<Reply>>,
    ) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Of what a worker complains of only the end is kept, and a backtrace would be all of it.
        command.env("RUST_BACKTRACE", "0");
        // Ctrl-C at a terminal goes to the whole group; the parent alone answers it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(io::Error::other("the worker has no pipes"));
        };
        // Writing can block while the worker is busy, so it is not for the thread that watches it.
        let (requests, waiting) = channel::<Vec<u8>>();
        thread::spawn(move || {
            for line in waiting {
                if stdin.write_all(&line).is_err() {
                    break;
                }
            }
        });
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let reply = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                let Some(reply) = reply else { break };
                if events.send((number, Event::Said(reply))).is_err() {
                    return;
                }
            }
            // Nobody listens once the run is over.
            let _ = events.send((number, Event::Gone));
        });
        let complaints = Some(thread::spawn(move || last_lines(stderr)));
        Ok(Self { child, requests, complaints })
    }

    /// Hands a request over. A worker that is gone says so by its event.
    ///
    /// # Errors
    /// A request that is no JSON.
    pub fn send(&self, request: &impl Serialize) -> serde_json::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let _ = self.requests.send(line);
        Ok(())
    }

    /// Kills the worker, if it is still there, and says how it ended, with the last that it wrote
    /// to its standard error.
    pub fn end(&mut self) -> String {
        // One that has ended by itself keeps its own status.
        let _ = self.child.kill();
        let mut how = self.child.wait().map_or_else(|error| error.to_string(), said);
        for line in self.complaints.take().and_then(|lines| lines.join().ok()).unwrap_or_default() {
            how.push_str(": ");
            how.push_str(&line);
        }
        how
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// The last lines that say something, but for the advice of a panic.
fn last_lines(stderr: ChildStderr) -> Vec<String> {
    let mut kept = Vec::new();
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        if !line.is_empty() && !line.starts_with("note:") {
            kept.push(line);
            kept.drain(..kept.len().saturating_sub(LINES_KEPT));
        }
    }
    kept
}

fn said(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("killed by signal {signal}");
    }
    match status.code() {
        Some(code) => format!("ended with exit code {code}"),
        None => status.to_string(),
    }
}
