//! Decode traces: what each step of recorded or generated responses attends to, compactly.
//!
//! A trace is JSON Lines: a header, then one response per line.
//!
//! ```json
//! {"schema": 1, "protocol": "declarative-attention", "shape": {"query_heads": 32, "kv_heads": 4,
//!  "head_dim": 512, "dtype": "bf16"}, "generator": "da-gemma4", "seed": 7}
//! {"prompt_tokens": 25466, "phases": [{"mode": "global", "tokens": 120, "spans": [[0, 25466]]},
//!  {"mode": "local", "tokens": 300, "spans": [[0, 16], [24358, 25466]]}]}
//! ```
//!
//! (each object on one line). Step s of a response, from 0, is the decode step whose query is
//! response token s: its KV length is `prompt_tokens + s + 1`, its own token included. A phase is a
//! run of `tokens` steps with the same rule: a step attends to the `spans` of its phase and to every
//! token from `tail_start` to itself. `tail_start` is `prompt_tokens` unless given, so that the
//! whole response is attended; a protocol whose steps see only a part of the response sets it to
//! where the phase's own part begins and names the rest in `spans`. Spans may be unsorted and
//! overlap. Unknown fields are ignored; see [`TraceError`] for what is refused.

mod describe;
mod generate;
mod record;

use std::io::{self, BufRead, Write};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize, Serializer};

use crate::{BatchError, Dtype, Span, SpanBatch, SpanSet};

pub use describe::{Description, ModeShare, Percentiles};
pub use generate::Preset;
pub use record::Recorder;

/// The version of the format that this code reads and writes.
pub const SCHEMA: u32 = 1;

/// What keeps a trace from being read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file could not be read.
    #[error("trace line {line}: {source}")]
    Read {
        /// Line, from 1.
        line: usize,
        /// The cause.
        source: io::Error,
    },
    /// The line is not the JSON that belongs there.
    #[error("trace line {line}: not a valid {what}: {source}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// "header" or "response".
        what: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
    /// The file holds no header.
    #[error(
        "the trace is empty: its first line must be a header such as {{\"schema\": 1, \"shape\": \
         {{\"query_heads\": 32, \"kv_heads\": 4, \"head_dim\": 128}}}}"
    )]
    NoHeader,
    /// A version of the format that this code does not know.
    #[error("trace line {line}: schema {found} is not {SCHEMA}, the one version that is known")]
    Schema {
        /// Line, from 1.
        line: usize,
        /// The version as given.
        found: u32,
    },
    /// A shape that no model has.
    #[error(
        "trace line {line}: {query_heads} query heads, {kv_heads} KV heads, head_dim {head_dim}: all must be at least 1 and KV heads divide query heads"
    )]
    Shape {
        /// Line, from 1.
        line: usize,
        /// Query heads.
        query_heads: u32,
        /// KV heads.
        kv_heads: u32,
        /// Elements per head.
        head_dim: u32,
    },
    /// A response whose phases make no sense.
    #[error("trace line {line}: {fault}")]
    Response {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        fault: ResponseError,
    },
    /// No response to take rows from.
    #[error("the trace has no responses: add one line per response after the header")]
    NoResponses,
    /// Rows that do not fit the kernels' arrays.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// What is wrong with a response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResponseError {
    /// No step to take.
    #[error("the response has no phases: it needs at least one")]
    NoPhases,
    /// A phase of no steps.
    #[error("phase {0} has 0 tokens: leave it out")]
    EmptyPhase(usize),
    /// More tokens than positions.
    #[error("prompt and response together exceed {} tokens", i32::MAX)]
    TooLong,
    /// A span of tokens that do not exist yet.
    #[error(
        "phase {phase}: span {span} ends past the {kv_len} tokens that exist at its first step"
    )]
    FutureSpan {
        /// Phase, from 0.
        phase: usize,
        /// The span.
        span: Span,
        /// KV length of the phase's first step.
        kv_len: u32,
    },
    /// A step that the format cannot say.
    #[error("step {step} does not attend to its own token, and every step of a trace does")]
    NotItself {
        /// Step, from 0.
        step: u32,
    },
    /// A tail that begins behind its first step.
    #[error("phase {phase}: tail_start {tail_start} lies behind its first token {first}")]
    FutureTail {
        /// Phase, from 0.
        phase: usize,
        /// As given.
        tail_start: u32,
        /// Position of the phase's first token.
        first: u32,
    },
}

/// The shape of the attention of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelShape {
    /// Query heads.
    pub query_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Elements per head.
    pub head_dim: u32,
    /// Element type; bf16 unless given.
    #[serde(default = "bf16")]
    pub dtype: Dtype,
}

fn bf16() -> Dtype {
    Dtype::Bf16
}

/// The first line of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceHeader {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The model's shape.
    pub shape: ModelShape,
    /// The protocol that declared the spans, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// What made the trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<String>,
    /// Its seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// A run of steps with one rule of what they attend to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// What the phase is called, such as "global", "focus" or "local".
    pub mode: String,
    /// Number of steps, at least 1.
    pub tokens: u32,
    /// What all its steps attend to, besides the tail.
    pub spans: SpanSet,
    /// First token of the tail that every step attends to up to itself.
    pub tail_start: u32,
}

/// One response to one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    source: Option<String>,
    prompt_tokens: u32,
    phases: Vec<Phase>,
}

/// A step of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRow {
    /// Index of the response in the trace.
    pub response: usize,
    /// Step of the response, from 0.
    pub step: u32,
    /// Tokens in the cache, the step's own included.
    pub kv_len: u32,
    /// What the step attends to.
    pub spans: SpanSet,
}

/// Steps of independent responses as one launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceBatch {
    /// The rows; each is a request of its own.
    pub rows: Vec<TraceRow>,
    /// `[rows]`: row r belongs to request r.
    pub row_request: Vec<i32>,
    /// `[requests]`.
    pub kv_len: Vec<i32>,
    /// The spans of the rows.
    pub spans: SpanBatch,
}

/// A header and its responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The header.
    pub header: TraceHeader,
    /// The responses.
    pub responses: Vec<Response>,
}

/// A phase as it stands in the file.
#[derive(Serialize, Deserialize)]
struct PhaseLine {
    #[serde(default)]
    mode: String,
    tokens: u32,
    spans: SpanSet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tail_start: Option<u32>,
}

/// A response as it stands in the file.
#[derive(Serialize, Deserialize)]
struct ResponseLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    prompt_tokens: u32,
    phases: Vec<PhaseLine>,
}

impl Response {
    /// A response of consecutive `phases`; `source` says what kind of request it stands for.
    pub fn new(
        source: Option<String>,
        prompt_tokens: u32,
        phases: Vec<Phase>,
    ) -> Result<Self, ResponseError> {
        if phases.is_empty() {
            return Err(ResponseError::NoPhases);
        }
        let mut first = prompt_tokens;
        for (at, phase) in phases.iter().enumerate() {
            if phase.tokens == 0 {
                return Err(ResponseError::EmptyPhase(at));
            }
            let end = first.checked_add(phase.tokens).filter(|end| *end <= i32::MAX as u32);
            let end = end.ok_or(ResponseError::TooLong)?;
            let kv_len = first + 1;
            if let Some(span) = phase.spans.iter().find(|s| s.end() > kv_len) {
                return Err(ResponseError::FutureSpan { phase: at, span, kv_len });
            }
            if phase.tail_start > first {
                let tail_start = phase.tail_start;
                return Err(ResponseError::FutureTail { phase: at, tail_start, first });
            }
            first = end;
        }
        Ok(Self { source, prompt_tokens, phases })
    }

    /// What kind of request it stands for.
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Length of the prompt.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The phases in order.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// Decode steps, one per response token.
    pub fn steps(&self) -> u32 {
        // Checked against i32::MAX when made.
        self.phases.iter().map(|p| p.tokens).sum()
    }

    /// KV length and attended tokens of a step, from 0; `None` behind the last one.
    pub fn row_at(&self, step: u32) -> Option<(u32, SpanSet)> {
        let mut end = 0;
        let phase = self.phases.iter().find(|phase| {
            end += phase.tokens;
            step < end
        })?;
        let kv_len = self.prompt_tokens + step + 1;
        Some((kv_len, phase.spans.union(&SpanSet::from(phase.tail_start..kv_len))))
    }

    fn from_line(line: ResponseLine) -> Result<Self, ResponseError> {
        let phases = line.phases.into_iter().map(|phase| Phase {
            mode: phase.mode,
            tokens: phase.tokens,
            spans: phase.spans,
            tail_start: phase.tail_start.unwrap_or(line.prompt_tokens),
        });
        Self::new(line.source, line.prompt_tokens, phases.collect())
    }

    fn to_line(&self) -> ResponseLine {
        let phases = self.phases.iter().map(|phase| PhaseLine {
            mode: phase.mode.clone(),
            tokens: phase.tokens,
            spans: phase.spans.clone(),
            tail_start: Some(phase.tail_start).filter(|start| *start != self.prompt_tokens),
        });
        ResponseLine {
            source: self.source.clone(),
            prompt_tokens: self.prompt_tokens,
            phases: phases.collect(),
        }
    }
}

impl Serialize for Response {
    /// As a line of a trace.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_line().serialize(serializer)
    }
}

impl Trace {
    /// Reads a trace; empty lines are skipped.
    pub fn read(reader: impl BufRead) -> Result<Self, TraceError> {
        let mut header = None;
        let mut responses = Vec::new();
        for (at, text) in reader.lines().enumerate() {
            let line = at + 1;
            let text = text.map_err(|source| TraceError::Read { line, source })?;
            if text.trim().is_empty() {
                continue;
            }
            if header.is_none() {
                let read: TraceHeader = serde_json::from_str(&text)
                    .map_err(|source| TraceError::Syntax { line, what: "header", source })?;
                check_header(line, &read)?;
                header = Some(read);
                continue;
            }
            let read: ResponseLine = serde_json::from_str(&text)
                .map_err(|source| TraceError::Syntax { line, what: "response", source })?;
            let response =
                Response::from_line(read).map_err(|fault| TraceError::Response { line, fault })?;
            responses.push(response);
        }
        Ok(Self { header: header.ok_or(TraceError::NoHeader)?, responses })
    }

    /// Writes the trace as [`read`](Self::read) reads it.
    pub fn write(&self, mut writer: impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut writer, &self.header)?;
        writer.write_all(b"\n")?;
        for response in &self.responses {
            serde_json::to_writer(&mut writer, response)?;
            writer.write_all(b"\n")?;
        }
        writer.flush()
    }

    /// Decode steps of all responses.
    pub fn total_steps(&self) -> u64 {
        self.responses.iter().map(|r| u64::from(r.steps())).sum()
    }

    /// `batch` rows at independent steps of independent responses, as a server in the steady state
    /// sees them: every step of the trace is equally likely, so a long response is met more often.
    /// The same seed gives the same rows.
    pub fn batch_at(&self, seed: u64, batch: usize) -> Result<TraceBatch, TraceError> {
        let total = self.total_steps();
        if total == 0 {
            return Err(TraceError::NoResponses);
        }
        let mut ends = Vec::with_capacity(self.responses.len());
        let mut end = 0;
        for response in &self.responses {
            end += u64::from(response.steps());
            ends.push(end);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows: Vec<TraceRow> = (0..batch)
            .filter_map(|_| {
                let pick = rng.random_range(0..total);
                let response = ends.partition_point(|end| *end <= pick);
                let before = response.checked_sub(1).map_or(0, |previous| ends[previous]);
                let step = (pick - before) as u32;
                let (kv_len, spans) = self.responses[response].row_at(step)?;
                Some(TraceRow { response, step, kv_len, spans })
            })
            .collect();
        let spans = SpanBatch::from_sets(rows.iter().map(|row| &row.spans))?;
        // Responses keep to i32::MAX tokens; a batch of that many rows is not built in memory.
        let kv_len = rows.iter().map(|row| row.kv_len as i32).collect();
        let row_request = (0..rows.len() as i32).collect();
        Ok(TraceBatch { rows, row_request, kv_len, spans })
    }
}

fn check_header(line: usize, header: &TraceHeader) -> Result<(), TraceError> {
    if header.schema != SCHEMA {
        return Err(TraceError::Schema { line, found: header.schema });
    }
    let ModelShape { query_heads, kv_heads, head_dim, .. } = header.shape;
    let divides = kv_heads > 0 && query_heads.is_multiple_of(kv_heads);
    if query_heads == 0 || head_dim == 0 || !divides {
        return Err(TraceError::Shape { line, query_heads, kv_heads, head_dim });
    }
    Ok(())
}
