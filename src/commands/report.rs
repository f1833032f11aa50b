//! `report`: a tuning run as one HTML file.

use super::Outcome;
use crate::{atomic_file, notice};
use anyhow::{Context, Result, bail};
use clap::Args;
use fs_err as fs;
use spanforge_tuner::{journal, report};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Write the report of a tuning run: one HTML file with plots, evidence and environment
///
/// It needs no network and no script to be read. A run that has not ended is shown as far as it got.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge report\n  \
    spanforge report results/tune/da-qwen3.6-cuda-0-1790000000-0.jsonl --output report.html\n\n\
    The last line on standard output is the report's path.")]
pub struct Arguments {
    /// Journal of the run, plain or gzip [default: the newest one in the results' folder `tune`]
    #[arg(value_name = "JOURNAL")]
    journal: Option<PathBuf>,
    /// File to write [default: beside the journal, with the ending .html]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Folder of results that the newest journal is looked for in
    #[arg(long, value_name = "DIR", default_value = "results", conflicts_with = "journal")]
    results: PathBuf,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let path = match &arguments.journal {
        Some(journal) => journal.clone(),
        None => newest(&arguments.results.join("tune"))?,
    };
    let kept = journal::Kept::read(&path)?;
    let html = report::html(&kept).context("the report cannot be made")?;
    let beside = || match path.file_name().and_then(|name| name.to_str()) {
        Some(name) => {
            let run = name.trim_end_matches(".gz").trim_end_matches(".jsonl");
            path.with_file_name(format!("{run}.html"))
        }
        None => path.with_extension("html"),
    };
    let output = arguments.output.clone().unwrap_or_else(beside);
    if output == path {
        bail!("{} is the journal itself: choose another --output", output.display());
    }
    atomic_file::write(&output, html.as_bytes())?;
    notice::say(format_args!("{}: {} candidates", path.display(), kept.candidates.len()));
    writeln!(out, "{}", output.display())?;
    Ok(Outcome::Done)
}

/// The journal that was written to last.
fn newest(folder: &Path) -> Result<PathBuf> {
    let mut found: Option<(std::time::SystemTime, PathBuf)> = None;
    let entries = fs::read_dir(folder)
        .context("no journal was named, and there are none: run `spanforge tune` first")?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "jsonl") {
            let newer = (fs::metadata(&path)?.modified()?, path);
            found = found.max(Some(newer));
        }
    }
    let Some((_, path)) = found else {
        bail!("{} holds no journal: run `spanforge tune` first", folder.display());
    };
    Ok(path)
}
