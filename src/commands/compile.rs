//! `compile`: PTX, machine code or a table of resources from a source or a configuration.

use super::kernel_choice::{KernelArguments, limits_of_architecture};
use super::{Outcome, write_json};
use crate::table::{Table, grouped};
use crate::{atomic_file, notice};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use spanforge_device::compiler::Compilation;
use spanforge_device::launch_file::{compiler_of_files, read_source};
use spanforge_device::{Compiler, Resources, Source, Target};
use spanforge_kernels::render;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Compile a configuration or a source with NVRTC
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge compile --emit resources --arch sm_80,sm_90a\n  \
    spanforge compile mine.cu --emit ptx --arch sm_89 --output mine.ptx\n  \
    spanforge compile mine.cu --emit cubin --arch sm_80,sm_90a --output mine.cubin \
    --option=--use_fast_math\n\n\
    With several architectures, the name of each goes before the extension of --output:\n\
    mine.sm_80.cubin, mine.sm_90a.cubin.")]
pub struct Arguments {
    /// CUDA source to compile instead of a configuration
    #[arg(value_name = "SOURCE.cu",
        conflicts_with_all = ["config", "dtype", "head_dim", "group_size", "query_heads", "kv_heads", "queries"])]
    source: Option<PathBuf>,
    #[command(flatten)]
    kernel: KernelArguments,
    /// What to make
    #[arg(long, value_enum)]
    emit: Emit,
    /// Architectures, separated by commas
    #[arg(long, value_name = "sm_90a,...", value_delimiter = ',', default_value = "sm_90a")]
    arch: Vec<String>,
    /// Option for NVRTC, such as -DTILE=32; may be repeated
    #[arg(long = "option", value_name = "OPTION", allow_hyphen_values = true)]
    options: Vec<String>,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print resources as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// PTX text.
    Ptx,
    /// Machine code.
    Cubin,
    /// Registers, spills and shared memory of each kernel.
    Resources,
}

#[derive(Serialize)]
struct OfArchitecture {
    architecture: String,
    kernels: BTreeMap<String, Resources>,
    log: String,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    if arguments.output.is_none() && arguments.emit != Emit::Resources && arguments.arch.len() > 1 {
        bail!("{} architectures need --output: a file is written for each", arguments.arch.len());
    }
    if arguments.output.is_none()
        && arguments.emit == Emit::Cubin
        && std::io::stdout().is_terminal()
    {
        bail!("machine code is not text: name a file with --output, or redirect the output");
    }
    let source = source(arguments)?;
    let settings = notice::settings();
    let compiler = match arguments.source {
        Some(_) => compiler_of_files(&settings)?,
        None => Compiler::new(&settings)?,
    };
    let mut compiled = Vec::new();
    for architecture in &arguments.arch {
        let target = match arguments.emit {
            Emit::Ptx => Target::Ptx(architecture.clone()),
            Emit::Cubin | Emit::Resources => Target::Cubin(architecture.clone()),
        };
        let compilation = compiler.compile_with_log(&source, &target)?;
        compiled.push((architecture.as_str(), compilation));
    }
    match arguments.emit {
        Emit::Resources => print_resources(arguments, compiled, out)?,
        Emit::Ptx | Emit::Cubin => write_code(arguments, &compiled, out)?,
    }
    Ok(Outcome::Done)
}

fn source(arguments: &Arguments) -> Result<Source> {
    match &arguments.source {
        Some(path) => read_source(path, &arguments.options).context("cannot read the source"),
        None => {
            // The configuration must suit every architecture it is compiled for.
            let mut spec = None;
            for architecture in &arguments.arch {
                let limits = limits_of_architecture(architecture)?;
                spec.get_or_insert(arguments.kernel.spec(limits)?);
            }
            let spec = spec.context("--arch names no architecture")?;
            let rendered = render(&spec)?;
            let mut source = Source::new(rendered.name, rendered.text);
            source.options.clone_from(&arguments.options);
            Ok(source)
        }
    }
}

fn code(compilation: &Compilation) -> &[u8] {
    match &compilation.image.cubin {
        Some(cubin) => cubin,
        None => compilation.image.ptx.as_bytes(),
    }
}

fn write_code(
    arguments: &Arguments,
    compiled: &[(&str, Compilation)],
    out: &mut dyn Write,
) -> Result<()> {
    for (_, compilation) in compiled {
        // Warnings belong beside the code, not in it; ptxas' figures are what `resources` is for.
        if arguments.emit == Emit::Ptx && !compilation.log.trim().is_empty() {
            notice::say(compilation.log.trim_end());
        }
    }
    let Some(output) = &arguments.output else {
        compiled.iter().try_for_each(|(_, compilation)| out.write_all(code(compilation)))?;
        return Ok(());
    };
    let files: Vec<(PathBuf, &[u8])> = compiled
        .iter()
        .map(|(architecture, compilation)| {
            let path = match compiled.len() {
                1 => output.clone(),
                _ => path_for(output, architecture),
            };
            (path, code(compilation))
        })
        .collect();
    atomic_file::write_all(files.iter().map(|(path, data)| (path.as_path(), *data)))?;
    for (path, data) in &files {
        notice::say(format_args!(
            "wrote {} ({} bytes)",
            path.display(),
            grouped(data.len() as u64)
        ));
    }
    Ok(())
}

/// `mine.cubin` -> `mine.sm_80.cubin`.
fn path_for(output: &Path, architecture: &str) -> PathBuf {
    match output.extension() {
        Some(extension) => output.with_extension(format!("{architecture}.{}", extension.display())),
        None => output.with_extension(architecture),
    }
}

fn print_resources(
    arguments: &Arguments,
    compiled: Vec<(&str, Compilation)>,
    out: &mut dyn Write,
) -> Result<()> {
    let all: Vec<OfArchitecture> = compiled
        .into_iter()
        .map(|(_, compilation)| OfArchitecture {
            architecture: compilation.image.architecture,
            kernels: compilation.image.resources,
            log: compilation.log,
        })
        .collect();
    let mut text = Vec::new();
    if arguments.json {
        write_json(&mut text, &all)?;
    } else {
        let heading = [
            "kernel",
            "architecture",
            "registers/thread",
            "static shared B/block",
            "stack B/thread",
            "spill stores B",
            "spill loads B",
        ];
        let mut table = Table::new(&heading, &[2, 3, 4, 5, 6]);
        for one in &all {
            for (kernel, r) in &one.kernels {
                table.row([
                    kernel.clone(),
                    one.architecture.clone(),
                    r.registers.to_string(),
                    r.static_shared_bytes.to_string(),
                    r.stack_bytes.to_string(),
                    r.spill_store_bytes.to_string(),
                    r.spill_load_bytes.to_string(),
                ]);
            }
        }
        table.write(&mut text, "")?;
    }
    match &arguments.output {
        Some(path) => atomic_file::write(path, &text),
        None => Ok(out.write_all(&text)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_architecture_goes_before_the_extension() {
        assert_eq!(path_for(Path::new("a/b.cubin"), "sm_80"), Path::new("a/b.sm_80.cubin"));
        assert_eq!(path_for(Path::new("b"), "sm_90a"), Path::new("b.sm_90a"));
    }
}
