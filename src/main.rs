//! The `spanforge` command: reads arguments, calls the rooms that do the work, prints what they
//! say. Exit codes: 0 done, 1 a check failed, 2 bad input or environment, 130 interrupted and to be
//! resumed.

mod atomic_file;
mod commands;
mod excerpt;
mod notice;
mod table;

use clap::Parser;
use commands::{Outcome, Verb};
use std::io::{self, Write};
use std::process::ExitCode;

/// Generate, prove, tune and ship sparse span-attention kernels, with or without a GPU.
#[derive(Parser)]
#[command(
    name = "spanforge",
    version,
    after_help = "Example:\n  spanforge tune --workload da-qwen3.6\n\n\
                  Exit codes: 0 done, 1 a check failed, 2 bad input or environment, 130 interrupted.\n\
                  `spanforge VERB --help` explains a verb and gives an example."
)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let mut out = io::stdout().lock();
    let result = commands::run(command_line.verb, &mut out)
        .and_then(|outcome| out.flush().map(|()| outcome).map_err(Into::into));
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        // The reader, such as `head`, has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            notice::say(explain(&error).trim_end());
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes, a line each. A cause that the message above it already quotes is left
/// out.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut said = String::new();
    for cause in error.chain() {
        let message = cause.to_string();
        if said.is_empty() {
            text = format!("error: {message}\n");
        } else if !said.contains(&message) {
            text.push_str(&format!("  caused by: {message}\n"));
        }
        said.push_str(&message);
        said.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn causes_follow_their_error_unless_it_quotes_them() {
        let disk = || io::Error::other("the disk is full");
        let plain = Err::<(), _>(disk()).context("cannot write out.cu").unwrap_err();
        assert_eq!(explain(&plain), "error: cannot write out.cu\n  caused by: the disk is full\n");
        let quoting =
            Err::<(), _>(disk()).context("cannot write out.cu: the disk is full").unwrap_err();
        assert_eq!(explain(&quoting), "error: cannot write out.cu: the disk is full\n");
    }
}
