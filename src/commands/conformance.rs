//! `conformance`: every opcode form that the emulator accepts, on a device, against an independent
//! statement of what it computes.

use super::device_choice::DeviceArgument;
use super::{Outcome, write_json};
use crate::notice;
use crate::table::{Table, grouped};
use anyhow::{Context, Result, ensure};
use clap::Args;
use fs_err as fs;
use serde::Serialize;
use spanforge_device::{Device, EmulatedOptions, open_with};
use spanforge_verify::conformance::{self, Row, RowReport, Status, Summary};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// What a GPU's results are compared with besides the table.
const AGAINST: &str = "emulated:h200";
/// Rows whose mismatches are printed in full.
const SHOWN: usize = 20;

/// Compare each PTX opcode form with an independent statement of what it computes
///
/// The table has every form that the emulator accepts, with the corner cases of its operands and an
/// expected result, or for approximate instructions the bound of the PTX manual. On a GPU the driver
/// compiles the same PTX, and its results are also compared with the emulator's. Exit code 1 if a
/// result is not an expected one.
#[derive(Args)]
#[command(after_help = "Examples:\n  spanforge conformance --device emulated:h200\n  \
    spanforge conformance --device cuda:0 --json > forms.json\n  \
    spanforge conformance --only fma.rn --list")]
pub struct Arguments {
    #[command(flatten)]
    device: DeviceArgument,
    /// Only forms whose name has this text, such as `cvt.rni` or `mma`
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
    /// List the forms, with what architecture and how many cases each has, and run nothing
    #[arg(long)]
    list: bool,
    /// Write the generated PTX modules to this folder, and run nothing
    #[arg(long, value_name = "FOLDER")]
    ptx: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    needs: String,
    cases: usize,
    /// Section of the PTX manual with the bound of an approximate instruction.
    bound: Option<&'static str>,
}

#[derive(Serialize)]
struct Report<'a> {
    device: &'a str,
    name: &'a str,
    against: Option<&'static str>,
    passed: bool,
    rows: &'a [RowReport],
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let table = conformance::table()
        .map_err(|missing| anyhow::anyhow!("the table lacks the forms {}", missing.join(", ")))?;
    let rows: Vec<Row> =
        table.into_iter().filter(|row| row.name().contains(&arguments.only)).collect();
    ensure!(
        !rows.is_empty(),
        "no form has `{}` in its name; --list without --only shows them all",
        arguments.only
    );
    if arguments.list {
        return list(&rows, arguments.json, out);
    }
    if let Some(folder) = &arguments.ptx {
        return write_modules(&rows, folder, out);
    }
    let name = arguments.device.name();
    let options = EmulatedOptions { counters: false, ..EmulatedOptions::default() };
    let device = open_with(&name, options)?;
    let against = if name.starts_with("cuda:") { Some(AGAINST) } else { None };
    let other = against.map(|against| open_with(against, options)).transpose()?;
    let bar = notice::bar(rows.len() as u64, "forms");
    let done = |count: usize| bar.inc(count as u64);
    let summary = conformance::run(&*device, &rows, other.as_deref(), &done)
        .with_context(|| format!("the run on {name} ended early"))?;
    bar.finish_and_clear();
    let report = Report {
        device: &name,
        name: &device.properties().name,
        against,
        passed: summary.failed() == 0,
        rows: &summary.rows,
    };
    if arguments.json {
        write_json(out, &report)?;
    } else {
        print(&report, &summary, &*device, out)?;
    }
    Ok(if report.passed { Outcome::Done } else { Outcome::CheckFailed })
}

fn list(rows: &[Row], json: bool, out: &mut dyn Write) -> Result<Outcome> {
    let listed: Vec<Listed> = rows
        .iter()
        .map(|row| Listed {
            name: row.name(),
            needs: format!("sm_{}", row.needs),
            cases: conformance::cases(row).len(),
            bound: row.bound(),
        })
        .collect();
    if json {
        write_json(out, &listed)?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(&["form", "needs", "cases", "bound of PTX manual"], &[2]);
    for Listed { name, needs, cases, bound } in listed {
        table.row([name, needs, grouped(cases as u64), bound.unwrap_or("").to_owned()]);
    }
    table.write(out, "")?;
    Ok(Outcome::Done)
}

fn write_modules(rows: &[Row], folder: &PathBuf, out: &mut dyn Write) -> Result<Outcome> {
    fs::create_dir_all(folder)?;
    let mut groups: BTreeMap<(u32, u32), Vec<(usize, &Row)>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        groups.entry((row.needs, row.version)).or_default().push((index, row));
    }
    for ((needs, version), group) in groups {
        let file = folder.join(format!("sm_{needs}-isa-{}.{}.ptx", version / 10, version % 10));
        fs::write(&file, conformance::module::module(&group))?;
        writeln!(out, "wrote {} ({} kernels)", file.display(), group.len())?;
    }
    Ok(Outcome::Done)
}

fn print(
    report: &Report<'_>,
    summary: &Summary,
    device: &dyn Device,
    out: &mut dyn Write,
) -> Result<()> {
    let architecture = &device.properties().architecture;
    writeln!(out, "{} ({architecture})\n", report.name)?;
    let forms = |which: &dyn Fn(&RowReport) -> bool| {
        let mut names: Vec<&str> =
            summary.rows.iter().filter(|row| which(row)).map(|row| row.form).collect();
        names.dedup();
        names.len()
    };
    let mut counts = Table::new(&["", "forms", "ways to write them", "cases"], &[1, 2, 3]);
    let mut count = |what: &str, which: &dyn Fn(&RowReport) -> bool| {
        let rows: Vec<_> = summary.rows.iter().filter(|row| which(row)).collect();
        let cases = rows.iter().map(|row| row.cases as u64).sum();
        let forms = grouped(forms(which) as u64);
        counts.row([what.into(), forms, grouped(rows.len() as u64), grouped(cases)]);
    };
    let wrong =
        |row: &RowReport| matches!(row.status, Status::Mismatched { .. } | Status::Failed { .. });
    count("as expected", &|row| row.status == Status::Passed);
    count("not as expected", &wrong);
    count("not on this architecture", &|row| matches!(row.status, Status::Skipped { .. }));
    counts.write(out, "")?;
    for row in summary.rows.iter().filter(|row| wrong(row)).take(SHOWN) {
        match &row.status {
            Status::Mismatched { count, first } => {
                writeln!(out, "\n{}: {count} results of {} cases", row.name, row.cases)?;
                for mismatch in first {
                    writeln!(
                        out,
                        "  operands {}: result {} should be {}, is {}",
                        mismatch.operands.join(", "),
                        mismatch.result,
                        mismatch.expected,
                        mismatch.got
                    )?;
                }
            }
            Status::Failed { reason } => writeln!(out, "\n{}: {reason}", row.name)?,
            _ => {}
        }
    }
    if summary.failed() > SHOWN {
        writeln!(out, "\nand {} more; --json has them all", summary.failed() - SHOWN)?;
    }
    if let Some(against) = report.against {
        differences(summary, against, out)?;
    }
    Ok(())
}

/// How the device's results differ from the emulator's, where both are as expected.
fn differences(summary: &Summary, against: &str, out: &mut dyn Write) -> Result<()> {
    let heading = ["against", "results", "other bits", "largest difference", "bound of PTX manual"];
    let mut table = Table::new(&heading, &[1, 2, 3]);
    let mut equal = 0;
    for row in &summary.rows {
        let Some(difference) = row.against else { continue };
        if difference.different == 0 {
            equal += 1;
            continue;
        }
        let steps = difference.largest_steps.map_or(String::new(), |steps| format!("{steps} ulp"));
        table.row([
            row.name.clone(),
            grouped(difference.results as u64),
            grouped(difference.different as u64),
            steps,
            row.section.unwrap_or("").to_owned(),
        ]);
    }
    writeln!(
        out,
        "\nthe same bits as {against}: {} ways to write a form; others:",
        grouped(equal)
    )?;
    table.write(out, "  ")?;
    Ok(())
}
