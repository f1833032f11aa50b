//! `inspect`: what an artifact holds, after every file of it was verified.

use super::kernel_choice::ShapeArguments;
use super::{Outcome, write_json};
use crate::table::{Table, grouped};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use spanforge_kernels::Bucket;
use spanforge_kernels::artifact::{Artifact, InBucket, KernelEntry, Manifest};
use std::io::Write;
use std::path::PathBuf;

/// Verify an artifact and describe what it holds
///
/// Every file is compared with its SHA-256, and the argument lists with those in the machine code;
/// a changed file is named and ends the command with exit code 2.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge inspect artifacts/da-qwen3.6-bf16-d256-g6\n  \
    spanforge inspect artifacts/da-qwen3.6-bf16-d256-g6 --explain --head-dim 128 \
    --device emulated:a100\n  \
    spanforge inspect artifacts/da-qwen3.6-bf16-d256-g6 --explain --bucket 1,4096,512")]
pub struct Arguments {
    /// Folder of the artifact
    artifact: PathBuf,
    /// Say which kernel would serve a shape [default: the preferred kernel's] on a device, and why not
    /// the others
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    shape: ShapeArguments,
    /// Device for --explain [default: the one it was tuned on]
    #[arg(long, value_name = "DEVICE", requires = "explain")]
    device: Option<String>,
    /// Batch for --explain: rows, selected tokens per row and tokens per span [default: 16,8192,1024]
    #[arg(long, value_name = "N,N,N", value_delimiter = ',', requires = "explain", value_parser = clap::value_parser!(u32).range(1..))]
    bucket: Vec<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Inspection<'a> {
    root: String,
    files: Vec<File<'a>>,
    manifest: &'a Manifest,
    evidence: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<Explanation>,
}

#[derive(Serialize)]
struct File<'a> {
    name: &'a str,
    bytes: usize,
}

#[derive(Serialize)]
struct Explanation {
    shape: String,
    device: String,
    /// The bucket that was asked for.
    bucket: Bucket,
    /// The one that is used, by its place.
    chosen: Option<usize>,
    /// The bucket as which it is served, where kernels were timed by bucket.
    served_as: Option<Bucket>,
    kernels: Vec<Verdict>,
}

#[derive(Serialize)]
struct Verdict {
    id: String,
    role: String,
    unfit: Option<String>,
    /// Time and loss in the bucket as which it is served.
    served_as: Option<InBucket>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    if arguments.shape.given() && !arguments.explain {
        bail!("the flags of a shape say what to explain: add --explain");
    }
    let artifact = Artifact::load(&arguments.artifact).with_context(|| {
        format!("{} cannot be used as an artifact", arguments.artifact.display())
    })?;
    let explanation = match arguments.explain {
        true => Some(explain(arguments, &artifact)?),
        false => None,
    };
    let inspection = Inspection {
        root: artifact.root().display().to_string(),
        files: artifact.files().map(|(name, bytes)| File { name, bytes }).collect(),
        manifest: artifact.manifest(),
        evidence: artifact.evidence(),
        explanation,
    };
    if arguments.json {
        write_json(out, &inspection)?;
    } else {
        print(&inspection, out)?;
    }
    Ok(Outcome::Done)
}

fn explain(arguments: &Arguments, artifact: &Artifact) -> Result<Explanation> {
    // What the flags leave open is as in the preferred kernel.
    let shape = match artifact.manifest().kernels.first() {
        Some(first) => arguments.shape.shape_or(first.spec.shape)?,
        None => arguments.shape.shape()?,
    };
    let name = arguments.device.clone().unwrap_or_else(|| artifact.manifest().device.clone());
    let device = spanforge_device::open(&name)?;
    let properties = device.properties();
    let [rows, tokens_per_row, tokens_per_span] = match arguments.bucket[..] {
        [] => [16, 8192, 1024],
        [rows, per_row, per_span] => [rows, per_row, per_span],
        _ => bail!("--bucket takes three numbers: rows, tokens per row and tokens per span"),
    };
    let rows_per_request = arguments.shape.queries();
    let bucket = Bucket { rows, rows_per_request, tokens_per_row, tokens_per_span };
    let selected = artifact.select(shape, properties, &bucket).ok();
    let served_as = selected.and_then(|selected| Some(selected.served_as?.bucket));
    let verdicts = artifact.explain(shape, properties);
    let is_chosen = |id: &str| selected.is_some_and(|selected| selected.entry.id == id);
    let chosen = verdicts.iter().position(|(entry, _)| is_chosen(&entry.id));
    let there = |entry: &KernelEntry| {
        entry.buckets.iter().find(|served| Some(served.bucket) == served_as).copied()
    };
    let verdict = |(entry, unfit): (&KernelEntry, _)| Verdict {
        id: entry.id.clone(),
        role: entry.role.clone(),
        unfit,
        served_as: there(entry),
    };
    let kernels = verdicts.into_iter().map(verdict).collect();
    let shape = shape.to_string();
    Ok(Explanation { shape, device: name, bucket, chosen, served_as, kernels })
}

fn print(inspection: &Inspection<'_>, out: &mut dyn Write) -> Result<()> {
    let manifest = inspection.manifest;
    let bytes: u64 = inspection.files.iter().map(|file| file.bytes as u64).sum();
    let mut table = Table::plain();
    table.row(["artifact".into(), inspection.root.clone()]);
    let count = inspection.files.len();
    table.row(["verified".into(), format!("{count} files, {} bytes", grouped(bytes))]);
    table.row(["made by".into(), manifest.created_by.clone()]);
    table.row(["made at".into(), utc(manifest.created_unix_s)]);
    table.row(["workload".into(), manifest.workload.clone()]);
    table.row(["tuned on".into(), manifest.device.clone()]);
    table.row(["versions".into(), format!("schema {}, ABI {}", manifest.schema, manifest.abi)]);
    table.write(out, "")?;
    writeln!(out, "\nkernels, the preferred one first")?;
    for kernel in &manifest.kernels {
        let basis = serde_json::to_value(kernel.basis)?;
        writeln!(out, "  {}", kernel.id)?;
        let mut table = Table::plain();
        table.row(["role".into(), kernel.role.clone()]);
        table.row(["serves".into(), kernel.spec.shape.to_string()]);
        let time = format!("{:.2} us {}", kernel.time_us, basis.as_str().unwrap_or_default());
        table.row(["time".into(), time]);
        for InBucket { bucket, time_us, loss } in &kernel.buckets {
            let loss = 100.0 * loss;
            table
                .row([bucket.to_string(), format!("{time_us:.2} us, {loss:.1} % behind the best")]);
        }
        let launch = format!(
            "{} threads and {} bytes of dynamic shared memory per block",
            kernel.threads,
            grouped(kernel.shared_bytes.into())
        );
        table.row(["launch".into(), launch]);
        table.row(["PTX".into(), kernel.ptx_reach()]);
        table.write(out, "    ")?;
        let heading = ["cubin", "kernel", "registers/thread", "static shared B", "spills B"];
        let mut table = Table::new(&heading, &[2, 3, 4]);
        for (architecture, cubin) in &kernel.cubins {
            for (symbol, r) in &cubin.resources {
                table.row([
                    architecture.clone(),
                    symbol.clone(),
                    r.registers.to_string(),
                    r.static_shared_bytes.to_string(),
                    (u64::from(r.spill_store_bytes) + u64::from(r.spill_load_bytes)).to_string(),
                ]);
            }
        }
        table.write(out, "    ")?;
    }
    writeln!(out, "\nevidence")?;
    print_value(inspection.evidence, "  ", out)?;
    if let Some(explanation) = &inspection.explanation {
        writeln!(out, "\n{} on {}", explanation.shape, explanation.device)?;
        if let Some(served_as) = &explanation.served_as {
            writeln!(out, "  {} is served as {served_as}", explanation.bucket)?;
        }
        for (place, verdict) in explanation.kernels.iter().enumerate() {
            let is_chosen = explanation.chosen == Some(place);
            let why = match (&verdict.unfit, &verdict.served_as) {
                (Some(reason), _) => reason.clone(),
                (None, Some(InBucket { time_us, loss, .. })) => format!(
                    "{}{time_us:.1} us there, {:.1} % behind the best",
                    if is_chosen { "used: " } else { "fits: " },
                    100.0 * loss
                ),
                (None, None) if is_chosen => "used: the first that fits".to_owned(),
                (None, None) => "fits, but a preferred one does too".to_owned(),
            };
            writeln!(out, "  {} ({}): {why}", verdict.id, verdict.role)?;
        }
        if explanation.chosen.is_none() {
            writeln!(out, "  no kernel serves it: `spanforge tune` for this shape makes one")?;
        }
    }
    Ok(())
}

/// Evidence is what the tuner recorded; it is shown as it stands, long lists by their length.
fn print_value(value: &Value, indent: &str, out: &mut dyn Write) -> Result<()> {
    let Value::Object(fields) = value else {
        writeln!(out, "{indent}{}", brief(value))?;
        return Ok(());
    };
    let width = fields.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, value) in fields {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                writeln!(out, "{indent}{name}")?;
                print_value(value, &format!("{indent}  "), out)?;
            }
            _ => writeln!(out, "{indent}{name:<width$}  {}", brief(value))?,
        }
    }
    Ok(())
}

fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.len() > 8 || items.iter().any(Value::is_object) => {
            let noun = if items.len() == 1 { "entry" } else { "entries" };
            format!("{} {noun} (see --json)", items.len())
        }
        Value::Array(items) => items.iter().map(brief).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A time as ISO 8601, by the civil-from-days algorithm of Howard Hinnant's "chrono-Compatible
/// Low-Level Date Algorithms".
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_767_225_599), "2025-12-31 23:59:59 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }
}
