//! What `fuzz` reports, for machines and in words.

use crate::table::{Table, grouped};
use anyhow::Result;
use serde::Serialize;
use spanforge_verify::CaseReport;
use spanforge_verify::fuzz::{LineCoverage, Panicked};
use spanforge_verify::fuzz_coverage::{Coverage, ParameterCoverage};
use std::io::Write;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) passed: bool,
    pub(super) device: String,
    pub(super) seed: u64,
    pub(super) configurations: Vec<String>,
    pub(super) cases: u64,
    pub(super) seconds: f64,
    pub(super) cases_per_second: f64,
    /// Whether Ctrl-C ended the run.
    pub(super) interrupted: bool,
    pub(super) fewest_cases_per_configuration: u64,
    pub(super) failures: Vec<Found>,
    /// Cases with those faults.
    pub(super) faulty_cases: u64,
    /// Cases whose worker was lost, the first few.
    pub(super) lost: Vec<LostCase>,
    pub(super) lost_count: u64,
    pub(super) ledger: Vec<Known>,
    pub(super) panics: Vec<Panicked>,
    pub(super) panic_count: u64,
    pub(super) edges: Coverage,
    pub(super) lines: LineCoverage,
    pub(super) parameters: Vec<ParameterCoverage>,
}

#[derive(Serialize)]
pub(super) struct Found {
    pub(super) case: u64,
    pub(super) configuration: String,
    pub(super) kind: String,
    pub(super) file: String,
    pub(super) replay: String,
    /// Attempts at making it smaller.
    pub(super) attempts: u32,
    pub(super) report: CaseReport,
}

/// A case whose worker was lost.
#[derive(Serialize)]
pub(super) struct LostCase {
    pub(super) case: u64,
    pub(super) configuration: String,
    pub(super) kind: &'static str,
    /// How the worker ended.
    pub(super) how: String,
    /// Seed of the schedule, and of the problem's tensors.
    pub(super) schedule: u64,
    pub(super) tensors: u64,
    pub(super) file: String,
    pub(super) replay: String,
}

/// An entry of the ledger and what became of it.
#[derive(Serialize)]
pub(super) struct Known {
    pub(super) kernel: String,
    pub(super) kind: String,
    pub(super) reason: String,
    pub(super) case: String,
    /// Cases that it let pass.
    pub(super) tolerated: u64,
    /// Whether its case still fails as the entry says.
    pub(super) stands: bool,
}

/// Lines of device code, with runs of those that were not reached.
fn lines_in_words(lines: &LineCoverage) -> String {
    let mut text = format!("lines {} of {}", lines.reached, lines.with_code);
    let mut before: Option<&str> = None;
    for line in &lines.not_reached {
        text.push_str(match before {
            None => ", not reached: ",
            Some(file) if file == line.file => ",",
            Some(_) => "; ",
        });
        match before {
            Some(file) if file == line.file => text.push_str(&line.line.to_string()),
            _ => text.push_str(&line.to_string()),
        }
        before = Some(&line.file);
    }
    text
}

pub(super) fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    let count = report.configurations.len();
    writeln!(
        out,
        "{} cases in {:.1} s ({:.0} cases/s) on {}, {count} configuration{} with at least {} each{}\n",
        grouped(report.cases),
        report.seconds,
        report.cases_per_second,
        report.device,
        if count == 1 { "" } else { "s" },
        report.fewest_cases_per_configuration,
        if report.interrupted { "; ended by Ctrl-C" } else { "" }
    )?;
    let mut edges = Table::new(&["edge of the problem space", "cases"], &[1]);
    for (name, cases) in &report.edges.edges {
        edges.row([(*name).to_owned(), grouped(*cases)]);
    }
    edges.write(out, "")?;
    writeln!(out)?;
    let mut parameters = Table::new(&["parameter", "values met", "not met"], &[]);
    for parameter in &report.parameters {
        let words = |values: &[String]| values.join(" ");
        parameters.row([
            parameter.name.to_owned(),
            words(&parameter.met),
            words(&parameter.missed),
        ]);
    }
    parameters.write(out, "")?;
    let (met, all) = report.edges.met();
    writeln!(out, "\n{met} of {all} edges met")?;
    if report.lines.with_code > 0 {
        writeln!(out, "{}", lines_in_words(&report.lines))?;
    }

    for known in &report.ledger {
        if known.stands {
            writeln!(
                out,
                "tolerated {} times: {} in {} ({})",
                known.tolerated, known.kind, known.kernel, known.reason
            )?;
        } else {
            writeln!(
                out,
                "\nFIXED? {} no longer fails with {}: take the entry out of the ledger and keep the \
                 case among the regressions (it was tolerated because: {})",
                known.case, known.kind, known.reason
            )?;
        }
    }
    for lost in &report.lost {
        writeln!(
            out,
            "\nLOST worker in case {} of {}: {}\n  schedule {}, tensors {}",
            lost.case, lost.configuration, lost.how, lost.schedule, lost.tensors
        )?;
        writeln!(out, "replay it with: {}", lost.replay)?;
    }
    if report.lost_count > report.lost.len() as u64 {
        writeln!(out, "{} workers lost in all, each in one case", grouped(report.lost_count))?;
    }
    for panicked in &report.panics {
        writeln!(
            out,
            "\nPANIC of the tool itself in case {} of {}: {}",
            panicked.case, panicked.kernel, panicked.message
        )?;
    }
    if report.panic_count > report.panics.len() as u64 {
        writeln!(out, "{} panics in all", report.panic_count)?;
    }
    for found in &report.failures {
        writeln!(out, "\nFAULT {} in case {} of {}", found.kind, found.case, found.configuration)?;
        writeln!(out, "  smallest case: {}", found.report.problem)?;
        if let Some(fault) = &found.report.fault {
            for line in fault.to_string().lines() {
                writeln!(out, "  {line}")?;
            }
        }
        writeln!(out, "replay it with: {}", found.replay)?;
    }
    if report.faulty_cases > report.failures.len() as u64 {
        writeln!(out, "{} cases failed in all", grouped(report.faulty_cases))?;
    }
    if report.passed {
        writeln!(out, "no fault")?;
    }
    Ok(())
}
