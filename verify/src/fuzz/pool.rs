//! Worker processes as the parent sees them. A worker ends when its standard input does, so none
//! outlives its parent, however that ends.

use super::protocol::{Reply, Request};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::{io, thread};

/// What a worker did.
pub enum Event {
    /// It replied.
    Said(Reply),
    /// It has ended, or what it says is no reply.
    Gone,
}

/// What happened, after the number of the worker.
pub type Happened = (u64, Event);

/// A running worker. Killed on drop.
pub struct Process {
    child: Child,
    requests: Sender<Vec<u8>>,
}

impl Process {
    /// Starts a worker; what it does goes to `events` under `number`.
    pub fn start(mut command: Command, number: u64, events: Sender<Happened>) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Ctrl-C at a terminal goes to the whole group; the parent alone answers it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let Some((mut stdin, stdout)) = pipes else {
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
        Ok(Self { child, requests })
    }

    /// Hands a request over. A worker that is gone says so by its event.
    pub fn send(&self, request: &Request) -> serde_json::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let _ = self.requests.send(line);
        Ok(())
    }

    /// Kills the worker, if it is still there, and says how it ended.
    pub fn end(&mut self) -> String {
        // One that has ended by itself keeps its own status.
        let _ = self.child.kill();
        self.child.wait().map_or_else(|error| error.to_string(), said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
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
