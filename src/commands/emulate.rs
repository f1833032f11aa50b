//! `emulate`: one launch of any kernel on the emulator, with its checks and counters.

use super::{Outcome, write_json};
use crate::table::{Table, grouped};
use crate::{atomic_file, notice};
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use spanforge_device::launch_file::{Emulation, LaunchFile};
use spanforge_emulator::Finding;
use spanforge_emulator::counters::{Counters, GlobalTraffic, SharedTraffic};
use std::io::Write;
use std::path::PathBuf;

/// Run any kernel on the emulator, with checks and counters
///
/// The kernel is CUDA source or PTX, not just one of ours. Exit code 1 if a check reports; outputs
/// are written only if none does.
#[derive(Args)]
#[command(after_help = EXAMPLE)]
pub struct Arguments {
    /// Launch file; paths in it are relative to it
    #[arg(value_name = "LAUNCH.json")]
    launch: PathBuf,
    /// Seed of the order in which warps run
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = r#"Example:
  spanforge emulate launch.json

with launch.json:
  {
    "source": "saxpy.cu", "arch": "sm_80", "options": ["-DN=4"],
    "entry": "saxpy", "grid": [2, 1, 1], "block": [64, 1, 1], "shared_bytes": 0,
    "args": [
      {"i32": 100}, {"f32": 1.5},
      {"buffer": {"bytes": 400, "file": "x.bin"}},
      {"buffer": {"bytes": 400, "fill": 0}}
    ],
    "outputs": [{"arg": 3, "file": "y.bin"}]
  }

"ptx": "k.ptx" in place of source, arch and options runs PTX. The entry is declared extern "C".
A scalar is i32, u32, i64, u64, f32 or f64 (floats also "nan", "inf", "-inf"). A buffer begins with
the bytes of its file, if any; the rest is set to the byte fill, or uninitialised without one. It has
as many bytes as its file where bytes is left out; a file that is longer is an error.
"instruction_budget": N lets a block run N warp instructions before it counts as hanging (2^28)."#;

#[derive(Serialize)]
struct Report<'a> {
    kernel: &'a str,
    grid: [u32; 3],
    block: [u32; 3],
    passed: bool,
    findings: &'a [Finding],
    counters: &'a Counters,
    printed: &'a str,
    outputs: Vec<String>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let file = LaunchFile::read(&arguments.launch)?;
    let Emulation { findings, counters, printed, outputs } =
        file.run(&notice::settings(), arguments.seed)?;
    atomic_file::write_all(outputs.iter().map(|(path, data)| (path.as_path(), data.as_slice())))?;
    let (grid, block) = file.shape();
    let report = Report {
        kernel: file.entry(),
        grid,
        block,
        passed: findings.is_empty(),
        findings: &findings,
        counters: &counters,
        printed: &printed,
        outputs: outputs.iter().map(|(path, _)| path.display().to_string()).collect(),
    };
    if arguments.json {
        write_json(out, &report)?;
    } else {
        print(&report, out)?;
    }
    Ok(if report.passed { Outcome::Done } else { Outcome::CheckFailed })
}

fn print(report: &Report<'_>, out: &mut dyn Write) -> Result<()> {
    let by = |n: [u32; 3]| n.map(|n| n.to_string()).join(" x ");
    writeln!(
        out,
        "kernel {}, {} blocks of {} threads\n",
        report.kernel,
        by(report.grid),
        by(report.block)
    )?;
    if !report.printed.is_empty() {
        writeln!(out, "printed by the kernel:")?;
        for line in report.printed.lines() {
            writeln!(out, "  {line}")?;
        }
        writeln!(out)?;
    }
    if report.passed {
        writeln!(out, "checks: nothing found\n")?;
    } else {
        writeln!(out, "checks: {} found", report.findings.len())?;
        for finding in report.findings {
            writeln!(out, "  {finding}")?;
        }
        writeln!(out)?;
    }
    print_counters(report.counters, out)?;
    for path in &report.outputs {
        writeln!(out, "wrote {path}")?;
    }
    if !report.passed {
        writeln!(out, "no outputs were written")?;
    }
    Ok(())
}

fn print_counters(c: &Counters, out: &mut dyn Write) -> Result<()> {
    let mut table = Table::new(&["executed", ""], &[1]);
    for (name, count) in [
        ("blocks", c.blocks),
        ("warps", c.warps),
        ("warp instructions", c.warp_instructions),
        ("thread instructions", c.thread_instructions),
        ("divergent branches", c.divergent_branches),
        ("waits for asynchronous copies", c.async_waits),
    ] {
        table.row([name.into(), grouped(count)]);
    }
    table.write(out, "")?;
    writeln!(out)?;
    let m = &c.mix;
    let mut table = Table::new(&["warp instructions", "", "%"], &[1, 2]);
    for (name, count) in [
        ("float32", m.float32),
        ("float64", m.float64),
        ("half", m.half),
        ("integer", m.integer),
        ("convert", m.convert),
        ("special functions", m.special),
        ("moves", m.moves),
        ("control", m.control),
        ("memory", m.memory),
        ("shuffles and votes", m.exchange),
        ("barriers and fences", m.synchronise),
        ("matrix", m.matrix),
    ] {
        if count > 0 {
            let share = 100.0 * count as f64 / c.warp_instructions.max(1) as f64;
            table.row([name.into(), grouped(count), format!("{share:.1}")]);
        }
    }
    table.write(out, "")?;
    writeln!(out)?;
    let heading = ["global memory", "requests", "bytes", "sectors", "sectors/request"];
    let mut table = Table::new(&heading, &[1, 2, 3, 4]);
    let mut global = |name: &str, t: &GlobalTraffic| {
        if t.requests > 0 {
            table.row([
                name.into(),
                grouped(t.requests),
                grouped(t.bytes),
                grouped(t.sectors),
                format!("{:.2}", t.sectors as f64 / t.requests as f64),
            ]);
        }
    };
    global("loads", &c.global_load);
    global("stores", &c.global_store);
    global("asynchronous copies", &c.async_copy);
    global("atomics", &c.global_atomic);
    table.write(out, "")?;
    writeln!(out)?;
    if c.shared_load.requests + c.shared_store.requests > 0 {
        let heading = ["shared memory", "requests", "wavefronts", "without conflicts"];
        let mut table = Table::new(&heading, &[1, 2, 3]);
        for (name, t) in [("loads", &c.shared_load), ("stores", &c.shared_store)] {
            let SharedTraffic { requests, wavefronts, ideal_wavefronts } = *t;
            let [requests, wavefronts, ideal] =
                [requests, wavefronts, ideal_wavefronts].map(grouped);
            table.row([name.into(), requests, wavefronts, ideal]);
        }
        table.write(out, "")?;
        writeln!(out)?;
    }
    if !c.buffers.is_empty() {
        let heading = ["buffer", "bytes read", "sectors read", "bytes written", "sectors written"];
        let mut table = Table::new(&heading, &[1, 2, 3, 4]);
        for b in &c.buffers {
            let [read, read_sectors, written, written_sectors] =
                [b.read_bytes, b.read_sectors, b.written_bytes, b.written_sectors].map(grouped);
            table.row([b.name.clone(), read, read_sectors, written, written_sectors]);
        }
        table.write(out, "")?;
        writeln!(out)?;
    }
    Ok(())
}
