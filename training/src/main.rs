//! Trains a small model that selects its own spans, from scratch, on the CPU.
//!
//! ```text
//! cd training && cargo run --release -- --task arithmetic --output ../models/arithmetic
//! ```
//!
//! Everything follows from the arguments: data, initial weights, masks. A run that is ended goes on
//! from its last checkpoint when the same command is given again.

mod data;
mod model;
mod ops;
mod optimizer;

use anyhow::{Context, Result, bail};
use candle_core::{D, Device, Tensor};
use clap::Parser;
use data::{Batch, Masks, Source, Task, vocabulary};
use fs_err as fs;
use model::{Model, Shape};
use optimizer::{AdamW, rate};
use serde::{Deserialize, Serialize};
use spanforge_tasks::{BOS, EOS, Split, arithmetic};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// Each step takes and gives back tens of megabytes, which the system's allocator hands to the kernel
/// and has cleared again: a third of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a small model that selects its own spans.
#[derive(Parser, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Arguments {
    /// What is learnt.
    #[arg(long)]
    task: Task,
    /// Folder of the model; checkpoints are beside it while it is trained.
    #[arg(long)]
    output: PathBuf,
    /// What training sequences attend to.
    #[arg(long, default_value = "mixed")]
    masks: Masks,
    /// Tokens to train on, in millions.
    #[arg(long, default_value_t = 16.0)]
    megatokens: f64,
    /// Tokens of a step.
    #[arg(long, default_value_t = 2048)]
    batch_tokens: usize,
    /// Rate of the plateau.
    #[arg(long, default_value_t = 4e-3)]
    rate: f64,
    /// Part of the training over which articles get as difficult as those that are evaluated.
    #[arg(long, default_value_t = 0.0)]
    curriculum: f64,
    /// Most operands of an expression.
    #[arg(long, default_value_t = 8)]
    operands: u32,
    /// Largest value of an expression, between or at the end.
    #[arg(long, default_value_t = 99)]
    largest_value: u32,
    /// Most digits of an operand.
    #[arg(long, default_value_t = 1)]
    operand_digits: u32,
    /// Seed of the data and of the initial weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value_t = 64)]
    hidden: usize,
    #[arg(long, default_value_t = 176)]
    inner: usize,
    #[arg(long, default_value_t = 4)]
    layers: usize,
    #[arg(long, default_value_t = 2)]
    query_heads: usize,
    #[arg(long, default_value_t = 1)]
    kv_heads: usize,
    /// Elements of a head, as the kernels have them.
    #[arg(long, default_value_t = 64)]
    head_dim: usize,
}

/// Steps between lines of the loss curve.
const LINE: u64 = 100;

/// Steps between checkpoints.
const CHECKPOINT: u64 = 500;

/// Batches of the validation loss.
const VALIDATION: u64 = 8;

/// One line of `training.jsonl`.
#[derive(Serialize, Deserialize)]
struct Line {
    step: u64,
    tokens: u64,
    /// Mean over the steps since the line before, in nats per token of a response.
    loss: f64,
    /// The same of samples that are not trained on, with the masks of training.
    validation_loss: f64,
    /// Share of their tokens that are the most probable ones.
    validation_accuracy: f64,
    rate: f64,
    seconds: f64,
}

/// What a checkpoint says of itself.
#[derive(Serialize, Deserialize)]
struct State {
    arguments: Arguments,
    step: u64,
    tokens: u64,
    seconds: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let tokens = vocabulary(arguments.task);
    let shape = Shape {
        hidden: arguments.hidden,
        inner: arguments.inner,
        layers: arguments.layers,
        query_heads: arguments.query_heads,
        kv_heads: arguments.kv_heads,
        head_dim: arguments.head_dim,
        vocabulary: tokens.len(),
    };
    if shape.kv_heads == 0 || !shape.query_heads.is_multiple_of(shape.kv_heads) {
        bail!("{} query heads cannot share {} KV heads", shape.query_heads, shape.kv_heads);
    }
    let steps = (1e6 * arguments.megatokens / arguments.batch_tokens as f64).ceil() as u64;
    let expressions = arithmetic::Difficulty {
        operands: 3..=arguments.operands,
        largest_value: arguments.largest_value,
        operand_digits: arguments.operand_digits,
        train_subtraction: arithmetic::Difficulty::STUDIED_SUBTRACTION,
        ..arithmetic::Difficulty::default()
    };
    let source = Source {
        expressions,
        task: arguments.task,
        vocabulary: tokens.clone(),
        split: Split::Train,
        masks: arguments.masks,
        rows: arguments.batch_tokens,
        easy: (arguments.curriculum * steps as f64) as u64,
        seed: arguments.seed,
    };
    let validation = Source { split: Split::Validation, easy: 0, ..source.clone() };
    let validation: Vec<Batch> =
        (0..VALIDATION).map(|number| validation.batch(number)).collect::<Result<_>>()?;

    let model = Model::new(&shape, arguments.seed)?;
    let mut optimizer = AdamW::new(&model);
    fs::create_dir_all(&arguments.output)?;
    let checkpoints = arguments.output.join("checkpoint");
    let mut state = restore(&checkpoints, &arguments, &model, &mut optimizer)?;
    let mut lines = kept_lines(&arguments.output, state.step)?;
    eprintln!("{} weights, {steps} steps, from step {}", model.count(), state.step);

    let (batches, next) = sync_channel(4);
    let first = state.step;
    std::thread::spawn(move || {
        // The trainer has ended where nobody takes them.
        (first..steps).map(|number| source.batch(number)).all(|b| batches.send(b).is_ok());
    });
    let before = state.seconds;
    let begun = Instant::now();
    let (mut losses, mut count) = (0.0, 0.0);
    for batch in next {
        let batch = batch?;
        let loss = loss(&model, &batch)?.0;
        let gradients = loss.backward()?;
        let rate = arguments.rate * rate(state.step, steps);
        optimizer.step(&model, &gradients, rate)?;
        state.step += 1;
        state.tokens += batch.tokens.len() as u64;
        state.seconds = before + begun.elapsed().as_secs_f64();
        losses += f64::from(loss.to_scalar::<f32>()?);
        count += 1.0;
        if state.step.is_multiple_of(LINE) || state.step == steps {
            let (validation_loss, validation_accuracy) = evaluated(&model, &validation)?;
            let State { step, tokens, seconds, .. } = state;
            let loss = losses / count;
            let line =
                Line { step, tokens, loss, validation_loss, validation_accuracy, rate, seconds };
            eprintln!(
                "step {step} of {steps}: loss {loss:.4}, validation {validation_loss:.4}, \
                 {:.2} % of tokens right, {:.0} tokens/s",
                100.0 * validation_accuracy,
                tokens as f64 / seconds
            );
            lines.push(serde_json::to_string(&line)?);
            (losses, count) = (0.0, 0.0);
        }
        if state.step.is_multiple_of(CHECKPOINT) && state.step < steps {
            keep(&checkpoints, &state, &model, &optimizer)?;
            write(&arguments.output.join("training.jsonl"), &(lines.join("\n") + "\n"))?;
        }
    }
    export(&arguments, &shape, &model, &tokens.tokenizer_json(), &lines)?;
    if checkpoints.exists() {
        fs::remove_dir_all(&checkpoints)?;
    }
    println!("{}", arguments.output.display());
    Ok(())
}

/// The mean loss of a batch, and its logits.
fn loss(model: &Model, batch: &Batch) -> Result<(Tensor, Tensor)> {
    let tensor = |ids: &[u32]| Tensor::new(ids, &Device::Cpu);
    // The rows are shared with the gradient, which comes later.
    let rows = Arc::new(ops::Rows {
        sequences: batch.rows.sequences.clone(),
        spans: batch.rows.spans.clone(),
    });
    let logits = model.logits(&tensor(&batch.tokens)?, &rows, &tensor(&batch.wanted)?)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let targets = tensor(&batch.targets)?.unsqueeze(1)?;
    let loss = (log_sum - shifted.gather(&targets, 1)?)?.mean_all()?;
    Ok((loss, logits))
}

/// Mean loss, and share of tokens that are the most probable ones.
fn evaluated(model: &Model, batches: &[Batch]) -> Result<(f64, f64)> {
    let (mut losses, mut right, mut count) = (0.0, 0.0, 0.0);
    for batch in batches {
        let (loss, logits) = loss(model, batch)?;
        let targets = batch.targets.len() as f64;
        losses += f64::from(loss.to_scalar::<f32>()?) * targets;
        let chosen: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
        right += chosen.iter().zip(&batch.targets).filter(|(a, b)| a == b).count() as f64;
        count += targets;
    }
    Ok((losses / count, right / count))
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

fn keep(folder: &Path, state: &State, model: &Model, optimizer: &AdamW) -> Result<()> {
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for ((name, var), (first, second)) in model.vars().iter().zip(&optimizer.moments) {
        let moment = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        tensors.insert(name.clone(), var.as_tensor().clone());
        tensors.insert(format!("{name}.first"), moment(first)?);
        tensors.insert(format!("{name}.second"), moment(second)?);
    }
    // A new folder takes the place of the old one: the two files belong together.
    let new = folder.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    fs::create_dir_all(&new)?;
    candle_core::safetensors::save(&tensors, new.join("weights.safetensors"))?;
    write(&new.join("state.json"), &serde_json::to_string_pretty(state)?)?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&new, folder)?;
    Ok(())
}

/// The checkpoint of the same run, or its beginning.
fn restore(
    folder: &Path,
    arguments: &Arguments,
    model: &Model,
    optimizer: &mut AdamW,
) -> Result<State> {
    if !folder.exists() {
        return Ok(State { arguments: arguments.clone(), step: 0, tokens: 0, seconds: 0.0 });
    }
    let text = fs::read_to_string(folder.join("state.json"))?;
    let state: State = serde_json::from_str(&text).context("a checkpoint's state.json")?;
    if state.arguments != *arguments {
        bail!(
            "{} is the checkpoint of a run with other arguments ({:?}): give those, or remove it",
            folder.display(),
            state.arguments
        );
    }
    let path = folder.join("weights.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
    let tensor =
        |name: &str| tensors.get(name).context(format!("{} has no {name}", path.display()));
    for ((name, var), (first, second)) in model.vars().iter().zip(&mut optimizer.moments) {
        var.set(tensor(name)?)?;
        *first = tensor(&format!("{name}.first"))?.to_vec1()?;
        *second = tensor(&format!("{name}.second"))?.to_vec1()?;
    }
    optimizer.steps = state.step;
    Ok(state)
}

/// The lines of the loss curve up to a step.
fn kept_lines(folder: &Path, step: u64) -> Result<Vec<String>> {
    let path = folder.join("training.jsonl");
    if step == 0 || !path.exists() {
        return Ok(Vec::new());
    }
    let mut kept = Vec::new();
    for line in fs::read_to_string(&path)?.lines() {
        let parsed: Line = serde_json::from_str(line).context("a line of training.jsonl")?;
        if parsed.step <= step {
            kept.push(line.to_owned());
        }
    }
    Ok(kept)
}

/// Writes the model as Hugging Face lays it out, with what it was made by.
fn export(
    arguments: &Arguments,
    shape: &Shape,
    model: &Model,
    tokenizer: &str,
    lines: &[String],
) -> Result<()> {
    let folder = &arguments.output;
    let partial = folder.join("model.safetensors.new");
    candle_core::safetensors::save(&model.exported()?, &partial)?;
    fs::rename(&partial, folder.join("model.safetensors"))?;
    write(&folder.join("config.json"), &serde_json::to_string_pretty(&shape.config(BOS, EOS))?)?;
    write(&folder.join("tokenizer.json"), tokenizer)?;
    write(&folder.join("training.jsonl"), &(lines.join("\n") + "\n"))?;
    let made_by = serde_json::json!({ "arguments": arguments, "commit": commit() });
    write(&folder.join("training.json"), &serde_json::to_string_pretty(&made_by)?)
}

/// The commit that is checked out, where git can tell.
fn commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
