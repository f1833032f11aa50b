//! `generate`: a model goes on with a text, and what it attends to is shown as it changes.

use super::model_choice::{AttentionChoice, ModelArguments};
use super::{Outcome, write_json};
use crate::notice;
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use spanforge_runtime::model::{
    Engine, Event, Finish, FinishReason, ROWS, Request, Sampling, Selection,
};
use spanforge_spans::protocol::{Fallback, SelfSpanAttention, SelfSpanPrompt};
use spanforge_spans::{Span, SpanSet};
use std::io::{Read, Write};
use std::time::Instant;

/// Go on with a text, each step attending to the spans that the model has declared for it
///
/// The model's output is read by the self-span protocol as it comes: `name < declaration >` begins a
/// step, and up to its `;` it attends to the lines that it has declared. What does not parse falls
/// back to everything, and is counted. Each line shows text with what its tokens attend to.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge generate --model models/arithmetic --prompt '^(((8-2)+(1*9))+4);'\n  \
    spanforge generate --model models/arithmetic --prompt '^((3*4)-5);' --attention dense\n  \
    spanforge generate --model models/arithmetic --prompt '^((3*4)-5);' --attention emulated:h200")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// What generated tokens attend to, and where: dense (everything) or span (what the model has
    /// declared), both on the CPU in f32; or a device, such as emulated:h200 or cuda:0, on which a
    /// kernel attends to what the model has declared
    #[arg(long, value_name = "dense|span|DEVICE", default_value = "span")]
    attention: AttentionChoice,
    /// Text to go on with; - reads it from standard input
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// The most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Choose tokens by chance, logits divided by this [default: the most probable token]
    #[arg(long, value_name = "X")]
    temperature: Option<f32>,
    /// Of those only the most probable that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, requires = "temperature")]
    top_p: f32,
    /// Seed of the choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print the text alone
    #[arg(long, conflicts_with = "json")]
    plain: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tokens that attend alike, in the order in which they were written.
#[derive(Debug, Serialize)]
struct Stretch {
    text: String,
    /// What the last of them attends to, as `[start, end)`.
    spans: Vec<[u32; 2]>,
}

#[derive(Serialize)]
struct Report {
    prompt_tokens: usize,
    tokens: usize,
    text: String,
    stretches: Vec<Stretch>,
    finish: &'static str,
    /// Tokens that generated tokens attended to, of all that were there.
    attended_share: f64,
    faults: u64,
    tokens_per_second: f64,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let (model, vocabulary) = arguments.model.load()?;
    let text = match arguments.prompt.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input is no text")?;
            text.trim_end_matches('\n').to_owned()
        }
        text => text.to_owned(),
    };
    let prompt = vocabulary.encode(&text, true)?.tokens;
    let prompt_tokens = prompt.len();
    let selection = match arguments.attention {
        AttentionChoice::Dense => Selection::Dense,
        AttentionChoice::Span | AttentionChoice::Device(_) => {
            // More tokens than 32 bits count are more than any cache holds.
            let tokens = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
            let protocol = SelfSpanAttention::new(SelfSpanPrompt::new(tokens), Fallback::Dense);
            Selection::Protocol(Box::new(protocol))
        }
    };
    let sampling = match arguments.temperature {
        None => Sampling::Greedy,
        Some(temperature) => Sampling::Random { temperature, top_p: arguments.top_p },
    };
    let (seed, max_tokens) = (arguments.seed, arguments.max_tokens);
    let mut engine = Engine::new(
        &model,
        &vocabulary,
        arguments.model.attention(&arguments.attention, &model, 1)?,
        ROWS,
    );
    engine.submit(Request { prompt, selection, sampling, seed, max_tokens })?;
    let begun = Instant::now();
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut end: Option<Finish> = None;
    while !engine.is_idle() {
        for event in engine.step()? {
            if arguments.plain {
                write!(out, "{}", event.text)?;
                out.flush()?;
            }
            if event.changed && !arguments.json && !arguments.plain {
                show(stretches.last(), out)?;
            }
            add(&mut stretches, &event);
            end = event.finish.or(end);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let Some(end) = end else { bail!("the engine has stopped without an end") };
    let (finish, reason) = match end.reason {
        FinishReason::Stop => ("stop", "the model has ended"),
        FinishReason::Length => ("length", "ended by --max-tokens"),
        FinishReason::Full => ("full", "ended since the cache or the model's positions are full"),
    };
    let report = Report {
        prompt_tokens,
        tokens: end.tokens,
        text: stretches.iter().map(|stretch| stretch.text.as_str()).collect(),
        finish,
        attended_share: end.attended as f64 / end.available.max(1) as f64,
        faults: end.faults.total(),
        tokens_per_second: end.tokens as f64 / seconds,
        stretches,
    };
    if arguments.json {
        write_json(out, &report)?;
        return Ok(Outcome::Done);
    }
    match arguments.plain {
        true => writeln!(out)?,
        false => show(report.stretches.last(), out)?,
    }
    notice::say(format_args!(
        "{} tokens after a prompt of {prompt_tokens}, {reason}; {:.1} % of the context attended to, \
         {} malformed annotations, {:.0} tokens/s",
        report.tokens,
        100.0 * report.attended_share,
        report.faults,
        report.tokens_per_second
    ));
    Ok(Outcome::Done)
}

fn add(stretches: &mut Vec<Stretch>, event: &Event) {
    if event.changed || stretches.is_empty() {
        stretches.push(Stretch { text: String::new(), spans: Vec::new() });
    }
    if let Some(stretch) = stretches.last_mut() {
        stretch.text += &event.text;
        stretch.spans = pairs(&event.spans);
    }
}

fn pairs(spans: &SpanSet) -> Vec<[u32; 2]> {
    spans.iter().map(|span: Span| [span.start(), span.end()]).collect()
}

/// One line: the text, then what it attends to.
fn show(stretch: Option<&Stretch>, out: &mut dyn Write) -> Result<()> {
    let Some(stretch) = stretch else { return Ok(()) };
    let spans = stretch.spans.iter().map(|[start, end]| format!("[{start}, {end})"));
    let spans = spans.collect::<Vec<_>>().join(" ");
    writeln!(out, "{:<32}  {spans}", stretch.text.escape_debug().to_string())?;
    out.flush()?;
    Ok(())
}
