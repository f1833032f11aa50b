//! `calibrate`: the cost model's figures of a GPU, fitted to a tuning run on it.

use super::{Outcome, write_json};
use crate::table::Table;
use crate::{atomic_file, notice};
use anyhow::{Context, Result, bail};
use clap::Args;
use spanforge_device::{Basis, Compiler, EmulatedOptions, median};
use spanforge_emulator::profile::Profile;
use spanforge_tuner::calibrate::{Calibration, FEWEST, Observation, Quality, calibrate};
use spanforge_tuner::choice::ranked;
use spanforge_tuner::evaluate::predict;
use spanforge_tuner::journal::Kept;
use spanforge_tuner::record::Candidate;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Fit the cost model to a GPU, from a tuning run that measured it
///
/// The emulated device counts what the run's configurations do, and the figures of the GPU's profile
/// that documents do not state well (bandwidth that is reached, clock, latency and the like) are
/// chosen so that the model predicts what was measured. Says how well predictions agree before and
/// after, and for times that were not fitted to. No GPU is needed: the run's journal is.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge calibrate results/tune/da-qwen3.6-cuda-0-1790000000-0.jsonl --output mine.json\n  \
    spanforge tune --device emulated:mine.json")]
pub struct Arguments {
    /// Journal of a run on a GPU, plain or gzip
    #[arg(value_name = "JOURNAL")]
    journal: PathBuf,
    /// Profile to begin with: a GPU, or a JSON file [default: the one of the run's GPU]
    #[arg(long, value_name = "GPU|FILE.json")]
    profile: Option<String>,
    /// Most configurations of the run to fit to, at even distances from the fastest to the slowest
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(FEWEST as u64..))]
    configurations: u64,
    /// File to write the fitted profile to
    #[arg(short, long, value_name = "FILE.json")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let kept = Kept::read(&arguments.journal)?;
    let properties = &kept.run.properties;
    if properties.basis != Basis::Measured {
        bail!(
            "the times of {} are predicted, by the very model that would be fitted: calibrate takes \
             a run on a GPU (`spanforge tune --device cuda:0`)",
            arguments.journal.display()
        );
    }
    let name = arguments.profile.as_ref().unwrap_or(&properties.name);
    let device =
        spanforge_device::open_emulated(&format!("emulated:{name}"), EmulatedOptions::default())
            .context("there is no profile to begin with: name one with --profile")?;
    let profile = device.profile();
    let candidates: Vec<Candidate> = kept.candidates.values().cloned().collect();
    let by_time: Vec<&Candidate> = ranked(&candidates).into_iter().map(|timed| timed.0).collect();
    let chosen = spread(&by_time, arguments.configurations as usize);
    if chosen.len() < FEWEST {
        bail!(
            "{} has {} configurations that were timed, and a fit needs {FEWEST}: resume it with a \
             larger --budget",
            arguments.journal.display(),
            chosen.len()
        );
    }
    let compiler = Compiler::new(&notice::settings())?;
    let bar = notice::bar(chosen.len() as u64, "configurations counted");
    let mut observations = Vec::with_capacity(chosen.len());
    let study = &kept.study;
    for (configuration, candidate) in chosen.into_iter().enumerate() {
        for (batch, workload) in study.batches().enumerate() {
            let time_us = match candidate.by_batch.get(batch) {
                Some(timed) => median(&timed.samples_us),
                None => candidate.time_us,
            };
            let Some(time_us) = time_us else { continue };
            let predicted = predict(&device, &compiler, workload, candidate.spec, study.seed)
                .with_context(|| format!("{} cannot be counted", candidate.id))?;
            let predictions = predicted.predictions;
            observations.push(Observation { configuration, batch, time_us, predictions });
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let origin = format!("{} on {}", kept.run.run, properties.name);
    let mut calibration = calibrate(profile, &observations, &origin)?;
    if let Some(output) = &arguments.output {
        calibration.profile.name = short_name(output, &profile.name);
        let mut text = serde_json::to_string_pretty(&calibration.profile)?;
        text.push('\n');
        atomic_file::write(output, text.as_bytes())?;
    }
    if arguments.json {
        let mut value = serde_json::to_value(&calibration)?;
        value["run"] = kept.run.run.clone().into();
        value["device"] = properties.name.clone().into();
        value["profile"] = profile.name.clone().into();
        write_json(out, &value)?;
    } else {
        print(&calibration, profile, &origin, out)?;
        match &arguments.output {
            Some(output) => writeln!(out, "\n{}", output.display())?,
            None => writeln!(out, "\nkeep the fitted profile with --output FILE.json")?,
        }
    }
    Ok(Outcome::Done)
}

/// The name of a profile in a file: that of the file, or one that says what it came from.
fn short_name(output: &Path, base: &str) -> String {
    let stem = output.file_stem().and_then(|stem| stem.to_str());
    stem.map_or_else(|| format!("{base}-calibrated"), str::to_owned)
}

/// At most so many of some configurations, at even distances.
fn spread<'c>(configurations: &[&'c Candidate], most: usize) -> Vec<&'c Candidate> {
    match configurations.len() {
        few if few <= most => configurations.to_vec(),
        many => (0..most).map(|at| configurations[at * (many - 1) / (most - 1)]).collect(),
    }
}

fn print(
    calibration: &Calibration,
    profile: &Profile,
    origin: &str,
    out: &mut dyn Write,
) -> Result<()> {
    let times = calibration.times;
    writeln!(out, "{}, fitted to {times} measured times ({origin})\n", profile.marketing_name)?;
    let mut table =
        Table::new(&["figure", "unit", "documented", "fitted", "within a factor of"], &[2, 3, 4]);
    for figure in &calibration.figures {
        let after = match figure.fitted {
            true => format!("{:.4}", figure.after),
            false => "left: the times say too little".to_owned(),
        };
        table.row([
            figure.name.to_owned(),
            figure.unit.clone(),
            format!("{:.4}", figure.before),
            after,
            format!("{:.2}", figure.within),
        ]);
    }
    table.write(out, "")?;
    writeln!(out)?;
    let mut table =
        Table::new(&["predicted against measured", "rank correlation", "median error"], &[1, 2]);
    let mut row = |what: &str, quality: &Quality| {
        let correlation = quality.rank_correlation.map_or("none".to_owned(), |c| format!("{c:.3}"));
        let error = format!("{:.1} %", 100.0 * quality.median_error);
        table.row([what.to_owned(), correlation, error]);
    };
    row("as documented", &calibration.before);
    row("fitted, on what it was fitted to", &calibration.after);
    row("fitted, on what was held out", &calibration.held_out);
    table.write(out, "")?;
    Ok(())
}
