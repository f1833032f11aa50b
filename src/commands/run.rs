//! `run`: one problem from a file, computed with an artifact's kernel.

use super::device_choice::DeviceArgument;
use super::{Outcome, write_json};
use crate::notice;
use crate::table::{Table, grouped};
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use spanforge_device::Compiler;
use spanforge_emulator::counters::Counters;
use spanforge_runtime::{RunRequest, run as compute};
use std::io::Write;
use std::path::PathBuf;

/// Compute attention over the spans of a file with an artifact's kernel
///
/// Inputs are the tensors q, k, v, page_table, row_request, span_ptr, spans and kv_len; their
/// metadata may hold layout (NHD or HND) and scale. Spans may overlap, repeat and be unsorted. The
/// output holds out, in q's type, and lse in f32; it is written whole or not at all.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge run artifacts/da-qwen3.6-bf16-d256-g6 --inputs problem.safetensors --output out.safetensors\n  \
    spanforge run --compile --inputs problem.safetensors --output out.safetensors --device cuda:0\n\n\
    Tensors: q [rows, query_heads, head_dim] f16 or bf16; k and v [pages, page_size, kv_heads,\n\
    head_dim] (NHD) or [pages, kv_heads, page_size, head_dim] (HND); page_table [requests,\n\
    max_pages], row_request [rows], span_ptr [rows + 1], spans [n, 2], kv_len [requests], all i32.")]
pub struct Arguments {
    /// Folder of the artifact; may be left out with --compile
    #[arg(required_unless_present = "compile")]
    artifact: Option<PathBuf>,
    /// Problem to compute
    #[arg(long, value_name = "FILE.safetensors")]
    inputs: PathBuf,
    /// File for the results
    #[arg(short, long, value_name = "FILE.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArgument,
    /// Where the artifact has no kernel for the shape, compile the default configuration for it
    #[arg(long)]
    compile: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    origin: String,
    device: String,
    rows: usize,
    selected_tokens: u64,
    selected_kv_bytes: u64,
    output: String,
    launches: Vec<Launched>,
}

#[derive(Serialize)]
struct Launched {
    kernel: String,
    /// `None` where the device does not count.
    counters: Option<Counters>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let device = spanforge_device::open(&arguments.device.name())?;
    let request = RunRequest {
        artifact: arguments.artifact.as_deref(),
        inputs: &arguments.inputs,
        output: &arguments.output,
        compile: arguments.compile,
    };
    let done = compute(&request, device.as_ref(), || Compiler::new(&notice::settings()))?;
    let launches = done.launches.into_iter();
    let report = Report {
        kernel: done.kernel.to_string(),
        origin: done.origin.to_string(),
        device: done.device,
        rows: done.rows,
        selected_tokens: done.selected_tokens,
        selected_kv_bytes: done.selected_kv_bytes,
        output: arguments.output.display().to_string(),
        launches: launches
            .map(|(kernel, report)| Launched { kernel, counters: report.counters })
            .collect(),
    };
    if arguments.json {
        write_json(out, &report)?;
    } else {
        print(&report, out)?;
    }
    Ok(Outcome::Done)
}

fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    let mut table = Table::plain();
    table.row(["kernel".into(), format!("{} ({})", report.kernel, report.origin)]);
    table.row(["device".into(), report.device.clone()]);
    let selected = format!(
        "{} tokens in {} rows, {} bytes of K and V",
        grouped(report.selected_tokens),
        report.rows,
        grouped(report.selected_kv_bytes)
    );
    table.row(["selected".into(), selected]);
    table.row(["wrote".into(), report.output.clone()]);
    table.write(out, "")?;
    Ok(())
}
