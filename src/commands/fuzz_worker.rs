//! `fuzz-worker`: a process that checks cases for `fuzz`, which starts it. Not for users.

use super::Outcome;
use anyhow::{Context, Result};
use spanforge_verify::fuzz::{Request, serve};
use std::io::{BufRead, Write};
use std::sync::mpsc::channel;

/// The name of the verb.
pub const NAME: &str = "fuzz-worker";

pub fn run(out: &mut dyn Write) -> Result<Outcome> {
    let (requests, waiting) = channel::<Request>();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let request = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            let sent = request.is_some_and(|request| requests.send(request).is_ok());
            if !sent {
                break;
            }
        }
        // The parent has gone, or is not one: there is nobody to answer, and no reason to end the
        // case in hand first.
        std::process::exit(0);
    });
    serve(waiting, out).context("nobody reads the replies")?;
    Ok(Outcome::Done)
}
