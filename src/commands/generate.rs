//! `generate`: a model goes on with a text, and what it attends to is shown as it changes.

use super::model_choice::{AttentionChoice, ModelArguments};
use super::{Outcome, write_json};
use crate::notice;
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use spanforge_runtime::model::{
    Engine, Event, Finish, FinishReason, ROWS, Request, Sampling, Selection,
};
use spanforge_spans::protocol::{
    DeclarativeAttention, Fallback, PromptLayout, SelfSpanAttention, TagProtocol,
};
use spanforge_spans::trace::Recorder;
use spanforge_spans::{Span, SpanSet};
use spanforge_tasks::Sample;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// Go on with a text, each step attending to the spans that the model has declared for it
///
/// The model's output is read by a protocol as it comes. With self-span, `name < declaration >` begins a
/// step, and up to its `;` it attends to the lines that it has declared. What does not parse falls
/// back to everything, and is counted. Each line shows text with what its tokens attend to.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge generate --model models/arithmetic --prompt '^(((8-2)+(1*9))+4);'\n  \
    spanforge generate --model models/arithmetic --prompt '^((3*4)-5);' --attention dense\n  \
    spanforge generate --model models/arithmetic --prompt '^((3*4)-5);' --attention emulated:h200\n  \
    spanforge generate --model models/summarisation --sample article.json")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// What generated tokens attend to, and where: dense (everything) or span (what the model has
    /// declared), both on the CPU in f32; or a device, such as emulated:h200 or cuda:0, on which a
    /// kernel attends to what the model has declared
    #[arg(long, value_name = "dense|span|DEVICE", default_value = "span")]
    attention: AttentionChoice,
    /// Text to go on with; - reads it from standard input
    #[arg(long, value_name = "TEXT", required_unless_present = "sample")]
    prompt: Option<String>,
    /// The prompt with its parts, in place of --prompt: a JSON object such as a line of `dataset`, with
    /// `prompt`, and in characters of it, as [start, end), `names` for self-span, or `segments` and the
    /// start of the `question` for declarative
    #[arg(long, value_name = "FILE.json", conflicts_with = "prompt")]
    sample: Option<PathBuf>,
    /// How the model declares what it attends to: self-span (`name < names > text ;`) or declarative
    /// (`<focus magic_chunks="2,5">`, `<local>`)
    #[arg(long, value_name = "NAME", default_value = "self-span")]
    protocol: ProtocolChoice,
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
    /// Write the decode steps as a trace
    #[arg(long, value_name = "FILE.jsonl")]
    save_trace: Option<PathBuf>,
    /// Print the text alone
    #[arg(long, conflicts_with = "json")]
    plain: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolChoice {
    /// Steps that name the earlier steps and parts of the prompt that they read
    SelfSpan,
    /// Tags that name segments of the prompt
    Declarative,
}

/// A prompt and its parts, in characters as `[start, end)`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptParts {
    prompt: String,
    /// Of self-span.
    names: BTreeMap<String, [usize; 2]>,
    /// Of declarative.
    segments: Vec<[usize; 2]>,
    /// Where the question begins; its end where there is none.
    question: Option<usize>,
}

impl Arguments {
    fn sample(&self) -> Result<PromptParts> {
        if let Some(path) = &self.sample {
            let text = fs::read_to_string(path)?;
            let not_one = || format!("{} is not one JSON object with a prompt", path.display());
            return serde_json::from_str(&text).with_context(not_one);
        }
        let prompt = match self.prompt.as_deref() {
            Some("-") => {
                let mut text = String::new();
                let read = std::io::stdin().read_to_string(&mut text);
                read.context("standard input is no text")?;
                text.trim_end_matches('\n').to_owned()
            }
            prompt => prompt.unwrap_or_default().to_owned(),
        };
        Ok(PromptParts { prompt, ..PromptParts::default() })
    }
}

impl PromptParts {
    /// The protocol, begun with this prompt. `offsets` are the bytes of its tokens.
    fn protocol(
        &self,
        protocol: ProtocolChoice,
        offsets: &[Range<usize>],
    ) -> Result<Box<dyn TagProtocol + Send>> {
        let characters: Vec<usize> =
            self.prompt.char_indices().map(|(at, _)| at).chain([self.prompt.len()]).collect();
        let last = characters.len() - 1;
        let bytes = |[start, end]: [usize; 2]| {
            let part = characters.get(start..=end).unwrap_or_default();
            match (part.first(), part.last()) {
                (Some(first), Some(last)) => Ok(*first..*last),
                _ => Err(anyhow!("[{start}, {end}) is no part of a prompt of {last} characters")),
            }
        };
        // A token belongs to the segment in which it begins.
        let token = |byte: usize| offsets.partition_point(|token| token.start < byte) as u32;
        Ok(match protocol {
            ProtocolChoice::SelfSpan => {
                let named = self.names.iter().map(|(name, part)| Ok((name.clone(), bytes(*part)?)));
                let sample = Sample {
                    prompt: String::new(),
                    names: named.collect::<Result<_>>()?,
                    response: String::new(),
                };
                Box::new(SelfSpanAttention::new(sample.span_prompt(offsets)?, Fallback::Dense))
            }
            ProtocolChoice::Declarative => {
                let segments = self.segments.iter().map(|part| {
                    let bytes = bytes(*part)?;
                    Ok(Span::from(token(bytes.start)..token(bytes.end)))
                });
                let question = bytes([self.question.unwrap_or(last), last])?;
                let layout = PromptLayout::new(
                    segments.collect::<Result<_>>()?,
                    token(question.start),
                    offsets.len() as u32,
                )?;
                Box::new(DeclarativeAttention::new(layout, Fallback::Dense))
            }
        })
    }
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
    let sample = arguments.sample()?;
    let prompt = vocabulary.encode(&sample.prompt, true)?;
    let prompt_tokens = prompt.tokens.len();
    let selection = match arguments.attention {
        AttentionChoice::Dense => Selection::Dense,
        AttentionChoice::Span | AttentionChoice::Device(_) => {
            Selection::Protocol(sample.protocol(arguments.protocol, &prompt.offsets)?)
        }
    };
    let prompt = prompt.tokens;
    let sampling = match arguments.temperature {
        None => Sampling::Greedy,
        Some(temperature) => Sampling::Random { temperature, top_p: arguments.top_p },
    };
    let (seed, max_tokens) = (arguments.seed, arguments.max_tokens);
    let decoder = arguments.model.decoder(&arguments.attention, &model, 1)?;
    let mut engine = Engine::new(decoder, &vocabulary, ROWS);
    engine.submit(Request { prompt, selection, sampling, seed, max_tokens })?;
    let begun = Instant::now();
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut end: Option<Finish> = None;
    let mut recorder = Recorder::new(u32::try_from(prompt_tokens).unwrap_or(u32::MAX));
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
            match event.finish {
                Some(finish) => end = Some(finish),
                None => recorder.push(&event.spans)?,
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let Some(end) = end else { bail!("the engine has stopped without an end") };
    if let Some(path) = &arguments.save_trace {
        let response = recorder.finish(None).context("--save-trace: nothing was decoded")?;
        arguments.model.save_trace(path, &model, "generate".to_owned(), vec![response])?;
    }
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
