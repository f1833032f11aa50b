//! `emulate`: one launch of any kernel on the emulator, with its checks and counters.

use super::{Outcome, write_json};
use crate::table::{Table, grouped};
use crate::{atomic_file, notice};
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use spanforge_device::launch_file::{Emulation, LaunchFile};
use spanforge_emulator::counters::{Counters, GlobalTraffic, SharedTraffic};
use spanforge_emulator::{Finding, LineCount, MatrixModel};
use spanforge_verify::SourceMap;
use std::io::Write;
use std::path::{Path, PathBuf};

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
    /// Print the source with how often each line was executed
    #[arg(long)]
    coverage: bool,
    /// How tensor cores add: fast in f32, or with the truncation of an architecture
    #[arg(long, value_name = "MODEL", default_value = "fast", value_parser = MatrixModel::NAMES)]
    mma: String,
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
{"tensor_map": {"buffer": {"file": "k.bin"}, "element": "f16", "shape": [64, 192], "tile": [64, 64],
"swizzle": "128B"}} is a CUtensorMap over a buffer of its own; "arg": N in place of buffer takes that
of another argument. It also has offset, strides, element_strides and fill ("zero", "nan"): what
cuTensorMapEncodeTiled takes, innermost dimension first, strides in bytes.
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
    /// How often each source line was executed.
    lines: &'a [LineCount],
    outputs: Vec<String>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let file = LaunchFile::read(&arguments.launch)?;
    let matrix = MatrixModel::parse(&arguments.mma).unwrap_or_default();
    let Emulation { findings, counters, printed, lines, outputs } =
        file.run(&notice::settings(), arguments.seed, matrix)?;
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
        lines: &lines,
        outputs: outputs.iter().map(|(path, _)| path.display().to_string()).collect(),
    };
    if arguments.json {
        write_json(out, &report)?;
    } else {
        print(&report, out)?;
        if arguments.coverage {
            print_listing(&lines, file.code(), out)?;
        }
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

/// The source with the counts of its lines: the warps that came by, and the warp instructions of the
/// line itself. `-` marks lines without code, `#####` lines that no warp has executed.
fn print_listing(counts: &[LineCount], code: &Path, out: &mut dyn Write) -> Result<()> {
    if counts.is_empty() {
        writeln!(out, "the PTX has no line information: compile it with -lineinfo")?;
        return Ok(());
    }
    let own = fs_err::read_to_string(code).unwrap_or_default();
    // NVRTC is given the source under its path.
    let own = SourceMap::new(&code.display().to_string(), &own);
    for of_file in counts.chunk_by(|a, b| a.line.file == b.line.file) {
        let Some(name) = of_file.first().map(|count| count.line.file.as_str()) else { continue };
        let executed = of_file.iter().filter(|count| count.warps > 0).count();
        writeln!(out, "{name}: {executed} of {} lines with code executed", of_file.len())?;
        writeln!(out, "{:>12} {:>14} {:>6}", "warps", "instructions", "line")?;
        let listing = match own.lines().any(|(file, ..)| file == name) {
            true => own.clone(),
            false => SourceMap::new(name, &text_of(name, code)),
        };
        let mut counts = of_file.iter().peekable();
        let mut lines = listing.lines().filter(|(file, ..)| *file == name).peekable();
        // By line number; a file that cannot be read has counts only.
        loop {
            let line = match (counts.peek(), lines.peek()) {
                (Some(count), Some((_, line, _))) => count.line.line.min(*line),
                (Some(count), None) => count.line.line,
                (None, Some((_, line, _))) => *line,
                (None, None) => break,
            };
            let count = counts.next_if(|count| count.line.line == line);
            let text =
                lines.next_if(|(_, number, _)| *number == line).map_or("", |(.., text)| text);
            let (warps, instructions) = match count {
                None => ("-".to_owned(), String::new()),
                Some(count) if count.warps == 0 => ("#####".to_owned(), String::new()),
                Some(count) => (grouped(count.warps), grouped(count.instructions)),
            };
            writeln!(
                out,
                "{}",
                format!("{warps:>12} {instructions:>14} {line:>6}  {text}").trim_end()
            )?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The text of a file that the line information names: as it is named, or beside the kernel's code.
fn text_of(name: &str, code: &Path) -> String {
    let beside = code.parent().map(|folder| folder.join(name));
    let places = std::iter::once(PathBuf::from(name)).chain(beside);
    places.filter_map(|place| fs_err::read_to_string(place).ok()).next().unwrap_or_default()
}
