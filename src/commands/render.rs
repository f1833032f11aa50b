//! `render`: one self-contained source that can be read, edited and checked.

use super::Outcome;
use super::kernel_choice::{KernelArguments, LimitsArgument};
use crate::atomic_file;
use crate::notice;
use anyhow::{Context, Result};
use clap::Args;
use fs_err as fs;
use spanforge_kernels::render::{self, render_template};
use std::io::Write;
use std::path::PathBuf;

/// Write the CUDA source of a configuration
///
/// The source is self-contained: includes are inlined, with line markers. Edit it and give it to
/// `spanforge check`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge render --output decode.cu\n  \
    spanforge render --dtype bf16 --head-dim 256 --query-heads 24 --kv-heads 4\n  \
    spanforge render --config f16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second")]
pub struct Arguments {
    #[command(flatten)]
    kernel: KernelArguments,
    #[command(flatten)]
    limits: LimitsArgument,
    /// Your own template instead of the built-in one (Tera 2, with ${ value }$ and %{ tag }%)
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE.cu")]
    output: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let spec = arguments.kernel.spec(arguments.limits.limits()?)?;
    let rendered = match &arguments.template {
        None => render::render(&spec)?,
        Some(path) => {
            let text = fs::read_to_string(path).context("cannot read the template")?;
            render_template(&spec, &path.display().to_string(), &text)?
        }
    };
    match &arguments.output {
        None => out.write_all(rendered.text.as_bytes())?,
        Some(path) => {
            atomic_file::write(path, rendered.text.as_bytes())?;
            notice::say(format_args!("rendered {spec} to {}", path.display()));
        }
    }
    Ok(Outcome::Done)
}
