//! The verbs, one file each: arguments, what they resolve to, a call of the room that does the
//! work, printing.

mod bench;
mod calibrate;
mod check;
mod compile;
mod configs;
mod conformance;
mod convert;
mod dataset;
mod demo;
mod device_choice;
mod doctor;
mod emulate;
mod eval;
mod fuzz;
mod generate;
mod inspect;
mod join;
mod kernel_choice;
mod model_choice;
mod mutate;
mod predict;
mod render;
mod replay;
mod report;
mod run;
mod task_choice;
mod trace;
mod tune;
mod worker;
mod workload_choice;

use anyhow::Result;
use clap::Subcommand;
use fs_err as fs;
use std::io::Write;
use std::path::Path;

/// How a verb ended that did what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Done,
    /// A check reported.
    CheckFailed,
    /// The user ended it, and it can be resumed.
    Interrupted,
}

/// The verbs.
#[derive(Subcommand)]
pub enum Verb {
    Demo(demo::Arguments),
    Tune(tune::Arguments),
    Run(run::Arguments),
    Generate(generate::Arguments),
    Eval(eval::Arguments),
    Bench(bench::Arguments),
    Inspect(inspect::Arguments),
    Render(render::Arguments),
    Compile(compile::Arguments),
    Configs(configs::Arguments),
    Replay(replay::Arguments),
    Report(report::Arguments),
    Predict(predict::Arguments),
    Calibrate(calibrate::Arguments),
    Convert(convert::Arguments),
    #[command(name = "worker")]
    Join(join::Arguments),
    Check(check::Arguments),
    Fuzz(fuzz::Arguments),
    /// Check cases for `fuzz`
    #[command(name = worker::FUZZ, hide = true)]
    FuzzWorker,
    /// Evaluate candidates for `tune`
    #[command(name = worker::TUNE, hide = true)]
    TuneWorker,
    Mutate(mutate::Arguments),
    Emulate(emulate::Arguments),
    Conformance(conformance::Arguments),
    Trace(trace::Arguments),
    Dataset(dataset::Arguments),
    Doctor(doctor::Arguments),
}

/// Runs a verb; what it has to say goes to `out`.
pub fn run(verb: Verb, out: &mut dyn Write) -> Result<Outcome> {
    match verb {
        Verb::Demo(arguments) => demo::run(&arguments, out),
        Verb::Tune(arguments) => tune::run(&arguments, out),
        Verb::Run(arguments) => run::run(&arguments, out),
        Verb::Generate(arguments) => generate::run(&arguments, out),
        Verb::Eval(arguments) => eval::run(&arguments, out),
        Verb::Bench(arguments) => bench::run(&arguments, out),
        Verb::Inspect(arguments) => inspect::run(&arguments, out),
        Verb::Render(arguments) => render::run(&arguments, out),
        Verb::Compile(arguments) => compile::run(&arguments, out),
        Verb::Configs(arguments) => configs::run(&arguments, out),
        Verb::Replay(arguments) => replay::run(&arguments, out),
        Verb::Predict(arguments) => predict::run(&arguments, out),
        Verb::Calibrate(arguments) => calibrate::run(&arguments, out),
        Verb::Report(arguments) => report::run(&arguments, out),
        Verb::Convert(arguments) => convert::run(&arguments, out),
        Verb::Join(arguments) => join::run(&arguments, out),
        Verb::Check(arguments) => check::run(&arguments, out),
        Verb::Fuzz(arguments) => fuzz::run(&arguments, out),
        Verb::FuzzWorker => worker::fuzz(out),
        Verb::TuneWorker => worker::tune(out),
        Verb::Mutate(arguments) => mutate::run(&arguments, out),
        Verb::Emulate(arguments) => emulate::run(&arguments, out),
        Verb::Conformance(arguments) => conformance::run(&arguments, out),
        Verb::Trace(arguments) => trace::run(&arguments, out),
        Verb::Dataset(arguments) => dataset::run(&arguments, out),
        Verb::Doctor(arguments) => doctor::run(&arguments, out),
    }
}

/// Appends a value to a file of JSON Lines, whose folder is made.
fn append_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    Ok(file.write_all(&line)?)
}

/// Writes a value as JSON for machines.
fn write_json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<()> {
    // Serialised first, so that an error of the writer keeps its kind.
    let text = serde_json::to_string_pretty(value)?;
    writeln!(out, "{text}")?;
    Ok(())
}
