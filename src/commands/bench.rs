//! `bench`: what kernels and whole models take, beside what they cannot do without.

mod decode;
mod kernels;

use super::Outcome;
use anyhow::Result;
use clap::{Args, Subcommand};
use std::io::Write;

/// What a kernel takes for named batches, beside the floor and dense attention
///
/// A case is a workload with a batch size, such as da-gemma4/16, or a mix: `1x64K+31x4K` has one row of
/// 65 536 tokens and 31 of 4 096, `64x2K/128` attends to 2 048 tokens in spans of 128. Every case is
/// timed as it is and dense, by the same kernel. The floor is what reading the selected tokens once
/// takes at the data sheet's bandwidth; beside it stands the bandwidth of a kernel that only reads, of
/// the same run. On an emulated device times are predicted, and K and V bytes counted. `bench decode`
/// measures a whole model.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    spanforge bench\n  \
    spanforge bench --case da-qwen3.6/16,1x64K+31x4K --device emulated:a100\n  \
    spanforge bench --artifact artifacts/da-qwen3.6-bf16-d256-g6 --case da-qwen3.6/64 --json\n  \
    spanforge bench decode --model models/shapes/llama-2-7b --trace ssas-llama2 --batch 1,4"
)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    kernels: kernels::Arguments,
}

#[derive(Subcommand)]
enum Verb {
    Decode(decode::Arguments),
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    match &arguments.verb {
        Some(Verb::Decode(arguments)) => decode::run(arguments, out),
        None => kernels::run(&arguments.kernels, out),
    }
}
