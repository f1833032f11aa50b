//! `convert`: recorded spaces and our own runs in the formats of other tools.

use super::Outcome;
use crate::{atomic_file, notice};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use spanforge_tuner::formats::Recording;
use std::io::Write;
use std::path::PathBuf;

/// Write a tuning run, or another tool's record of one, in another tool's format
///
/// Reads journals of `spanforge tune`, caches of Kernel Tuner and T4 results, gzip or plain, also
/// cut-off ones. Times become milliseconds; times that were predicted are marked as such.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge convert results/tune/RUN.jsonl --to t4 --output run.t4.json\n  \
    spanforge convert results/tune/RUN.jsonl --to kernel-tuner > run.cache.json\n  \
    spanforge convert A100.json.gz --to t4 --output A100_T4.json")]
pub struct Arguments {
    /// Journal, Kernel Tuner cache or T4 results
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Format to write
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// File to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// T4 results, schema 1.0.0
    T4,
    /// Cache of Kernel Tuner
    KernelTuner,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let recording = Recording::read(&arguments.file)?;
    if recording.is_cut {
        let file = arguments.file.display();
        notice::say(format_args!("{file} is not complete: what there is of it is converted"));
    }
    let text = match arguments.to {
        Format::T4 => recording.to_t4(),
        Format::KernelTuner => recording.to_kernel_tuner(),
    };
    let text = text.context("the record cannot be written as JSON")? + "\n";
    match &arguments.output {
        Some(output) => atomic_file::write(output, text.as_bytes())?,
        None => out.write_all(text.as_bytes())?,
    }
    Ok(Outcome::Done)
}
