//! `bench`: kernels on named batches.

use crate::commands::device_choice::DeviceArgument;
use crate::commands::kernel_choice::{checked, default_spec, read_config};
use crate::commands::workload_choice::AttentionArguments;
use crate::commands::{Outcome, append_json, write_json};
use crate::table::Table;
use crate::{atomic_file, notice};
use anyhow::{Result, bail};
use clap::Args;
use spanforge_device::{Basis, Compiler, Device, EmulatedOptions, Image, open_with};
use spanforge_kernels::artifact::Artifact;
use spanforge_kernels::{KernelSpec, Limits};
use spanforge_tuner::Workload;
use spanforge_tuner::bench::{
    BenchReport, BenchRow, CASES, NUMBERS, case, dense, read_bandwidth, time,
};
use spanforge_tuner::environment::{Environment, unix_seconds};
use spanforge_tuner::export::compile;
use spanforge_tuner::report::bench_html;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct Arguments {
    /// Cases, with commas between several [default: those of docs/benchmarks.md]
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    case: Vec<String>,
    /// Kernel: a configuration id or a JSON file; cases of other shapes are left out [default: the
    /// default configuration of each case's shape]
    #[arg(short, long, value_name = "ID|FILE.json", conflicts_with = "artifact")]
    config: Option<String>,
    /// Artifact whose kernel for each batch is used; cases that it does not serve are left out
    #[arg(long, value_name = "DIR")]
    artifact: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgument,
    /// Seed of batches and tensors
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print the cases with all their rows, for other tools to time, instead of timing them
    #[arg(long, conflicts_with_all = ["results", "report", "config", "artifact"])]
    list: bool,
    /// Write a page with the roofline to this file
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Append the report to bench.jsonl in this folder
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    attention: AttentionArguments,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let names: Vec<&str> = match &arguments.case[..] {
        [] => CASES.to_vec(),
        names => names.iter().map(String::as_str).collect(),
    };
    let cases = names.iter().map(|name| {
        let mut workload = case(name, arguments.seed)?;
        workload.attention = arguments.attention.over(workload.attention);
        Ok(workload)
    });
    let cases: Vec<Workload> = cases.collect::<Result<_>>()?;
    if arguments.list {
        match arguments.json {
            true => write_json(out, &cases)?,
            false => {
                for case in &cases {
                    writeln!(out, "{:16} {}", case.name, case.describe())?;
                }
            }
        }
        return Ok(Outcome::Done);
    }
    // Checks have no part in what is counted and predicted.
    let options = EmulatedOptions { checks: false, ..EmulatedOptions::default() };
    let device = open_with(&arguments.device.name(), options)?;
    let compiler = Compiler::new(&notice::settings())?;
    let mut kernels = Kernels::new(arguments, device.as_ref(), &compiler)?;
    let properties = device.properties();
    let read = read_bandwidth(device.as_ref(), &compiler)?;
    let mut report = BenchReport {
        unix_s: unix_seconds(),
        environment: Environment::current(compiler.nvrtc().version()),
        device: properties.name.clone(),
        basis: properties.basis,
        seed: arguments.seed,
        read_gb_per_second: read / 1e9,
        dram_gb_per_second: properties.dram_bytes_per_second / 1e9,
        peak_gflop_per_second: properties.float32_per_second.max(properties.tensor_per_second)
            / 1e9,
        rows: Vec::new(),
        left_out: Vec::new(),
    };
    let bar = notice::bar(cases.len() as u64, "cases");
    for workload in &cases {
        match kernels.rows(workload, arguments.seed, read)? {
            Ok(rows) => report.rows.extend(rows),
            Err(why) => report.left_out.push(format!("{}: {why}", workload.name)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for left_out in &report.left_out {
        notice::say(format_args!("left out: {left_out}"));
    }
    if report.rows.is_empty() {
        bail!("no case was timed");
    }
    if let Some(folder) = &arguments.results {
        append_json(&folder.join("bench.jsonl"), &report)?;
    }
    if let Some(path) = &arguments.report {
        atomic_file::write(path, bench_html(&report)?.as_bytes())?;
        notice::say(format_args!("wrote {}", path.display()));
    }
    match arguments.json {
        true => write_json(out, &report)?,
        false => print(&report, out)?,
    }
    Ok(Outcome::Done)
}

/// Where the kernels of cases come from.
enum Source {
    Defaults,
    One(KernelSpec),
    Artifact(Artifact),
}

/// Kernels, compiled once each.
struct Kernels<'a> {
    source: Source,
    device: &'a dyn Device,
    compiler: &'a Compiler,
    images: BTreeMap<KernelSpec, Image>,
}

impl<'a> Kernels<'a> {
    fn new(arguments: &Arguments, device: &'a dyn Device, compiler: &'a Compiler) -> Result<Self> {
        let limits = Limits::of(device.properties());
        let source = match (&arguments.config, &arguments.artifact) {
            (Some(config), _) => Source::One(checked(read_config(config)?, limits)?),
            (None, Some(folder)) => Source::Artifact(Artifact::load(folder)?),
            (None, None) => Source::Defaults,
        };
        Ok(Self { source, device, compiler, images: BTreeMap::new() })
    }

    /// The kernel for a batch; why there is none where there is none.
    fn choose(&mut self, workload: &Workload) -> Result<Result<KernelSpec, String>> {
        let shape = match workload.attention.kernel_shape() {
            Ok(shape) => shape,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let properties = self.device.properties();
        let spec = match &self.source {
            Source::Defaults => default_spec(shape, workload.queries(), Limits::of(properties))?,
            Source::One(spec) if spec.shape != shape => {
                return Ok(Err(format!("{spec} does not serve {shape}")));
            }
            Source::One(spec) => *spec,
            Source::Artifact(artifact) => {
                match artifact.select(shape, properties, &workload.bucket()) {
                    Ok(selected) => {
                        let spec = selected.entry.spec;
                        let image = || artifact.image(selected.entry, properties);
                        self.images.entry(spec).or_insert_with(image);
                        spec
                    }
                    Err(error) => return Ok(Err(error.to_string())),
                }
            }
        };
        if !self.images.contains_key(&spec) {
            let image = compile(self.compiler, &spec, &properties.architecture)?;
            self.images.insert(spec, image);
        }
        Ok(Ok(spec))
    }

    /// The lines of one case: as it is, and dense where that is something else.
    fn rows(
        &mut self,
        workload: &Workload,
        seed: u64,
        read: f64,
    ) -> Result<Result<Vec<BenchRow>, String>> {
        let everything = dense(workload);
        let mut rows: Vec<BenchRow> = Vec::new();
        for (attention, batch) in [("span", workload), ("dense", &everything)] {
            if attention == "dense" && batch.rows == workload.rows {
                continue;
            }
            let spec = match self.choose(batch)? {
                Ok(spec) => spec,
                Err(why) => return Ok(Err(why)),
            };
            let time = time(self.device, &self.images[&spec], spec, batch, seed)?;
            let gb_per_second = time.selected_kv_bytes as f64 / (1e3 * time.time_us);
            rows.push(BenchRow {
                case: workload.name.clone(),
                attention,
                kernel: spec.to_string(),
                batch: batch.describe(),
                gb_per_second,
                share_of_read_bandwidth: 1e9 * gb_per_second / read,
                speedup: 1.0,
                time,
            });
        }
        let of_dense = rows.last().map_or(f64::NAN, |row| row.time.time_us);
        rows.iter_mut().for_each(|row| row.speedup = of_dense / row.time.time_us);
        Ok(Ok(rows))
    }
}

fn print(report: &BenchReport, out: &mut dyn Write) -> Result<()> {
    let predicted = report.basis == Basis::Predicted;
    let word = if predicted { "predicted" } else { "measured" };
    let heading = report.heading();
    let mut table = Table::new(&heading.each_ref().map(String::as_str), &NUMBERS);
    for row in &report.rows {
        table.row(row.cells());
    }
    table.write(out, "")?;
    writeln!(
        out,
        "\n{word} on {}; plan: what of it all layers share; GB/s: K and V bytes of selected tokens; of \
         reading: of the\n{:.0} GB/s that a kernel reads which does nothing else, {word} too (data sheet \
         {:.0}); x dense: faster than dense by\nthe same kernels; bytes: K and V fetched over selected, \
         {}; shares: tokens of the block with\nmost over the mean",
        report.device,
        report.read_gb_per_second,
        report.dram_gb_per_second,
        if predicted { "counted over the whole grid" } else { "which a GPU does not count" },
    )?;
    Ok(())
}
