//! `dataset`: samples of a task for trainers of any kind.

use super::Outcome;
use super::task_choice::{SplitChoice, TaskArguments};
use crate::atomic_file;
use crate::notice;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use spanforge_spans::trace::Response;
use spanforge_tasks::Sample;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// Write samples of a task, with what each character of a response attends to
///
/// JSON Lines of `prompt`, `response`, `names` (the parts of the prompt that can be declared) and the
/// fields of a response of a decode trace, `prompt_tokens` and `phases` (docs/traces.md), whose tokens
/// are characters. With these a trainer makes masks whatever its tokenizer.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge dataset --task arithmetic --count 100000 -o train.jsonl\n  \
    spanforge dataset --task summarisation --split held-out --count 3")]
pub struct Arguments {
    #[command(flatten)]
    task: TaskArguments,
    /// Which samples: train, validation or held-out
    #[arg(long, value_name = "SPLIT", default_value = "train")]
    split: SplitChoice,
    /// Samples
    #[arg(long, value_name = "N", default_value_t = 1000)]
    count: u32,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE.jsonl")]
    output: Option<PathBuf>,
}

#[derive(Serialize)]
struct Line<'a> {
    prompt: &'a str,
    response: &'a str,
    /// In characters of the prompt, as `[start, end)`.
    names: BTreeMap<&'a str, [usize; 2]>,
    #[serde(flatten)]
    attends: Response,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let samples = arguments.task.problems(arguments.split)?.take(arguments.count as usize);
    match &arguments.output {
        None => write(samples, out)?,
        Some(path) => {
            let mut text = Vec::new();
            write(samples, &mut text)?;
            atomic_file::write(path, &text)?;
            let count = arguments.count;
            notice::say(format_args!("wrote {count} samples to {}", path.display()));
        }
    }
    Ok(Outcome::Done)
}

fn write(samples: impl Iterator<Item = Sample>, out: &mut dyn Write) -> Result<()> {
    for sample in samples {
        let characters = |bytes: usize| sample.prompt[..bytes].chars().count();
        let named = sample
            .names
            .iter()
            .map(|(name, bytes)| (name.as_str(), [characters(bytes.start), characters(bytes.end)]));
        let line = Line {
            prompt: &sample.prompt,
            response: &sample.response,
            names: named.collect(),
            attends: sample.by_character()?,
        };
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
    }
    Ok(())
}
