//! Generators of traces in the likeness of published ones.
//!
//! `da-*` follow the statistics of Declarative Attention (arXiv 2609.02737): per-source contexts and
//! response lengths of its Gemma-4-31B table, orders of modes, focus calls, and the share of global
//! steps that grows with the context; two constants per model are fitted so that the averages over
//! the sources meet the published ones. `ssas-llama2` is in the likeness of Self-Selected Attention
//! Span (arXiv 2404.09336), of which only the kind is public: contexts up to 2K tokens of a 7B model
//! and many short spans that change every few steps. All of them are synthetic.

use std::fmt;
use std::str::FromStr;

use rand::seq::index;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{ModelShape, Phase, Response, SCHEMA, Trace, TraceHeader};
use crate::protocol::{Mode, PromptLayout};
use crate::{Dtype, Span, SpanSet, UnknownName};

/// A trace generator by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Preset {
    /// Declarative Attention on the global layers of Gemma-4-31B: 32 query heads, 4 KV heads,
    /// head_dim 512.
    #[serde(rename = "da-gemma4")]
    DaGemma4,
    /// Declarative Attention on the global layers of Qwen-3.6-27B: 24 query heads, 4 KV heads,
    /// head_dim 256.
    #[serde(rename = "da-qwen3.6")]
    DaQwen36,
    /// Short self-selected spans on a Llama-2-7B shape: 32 query heads, 32 KV heads, head_dim 128.
    #[serde(rename = "ssas-llama2")]
    SsasLlama2,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 3] = [Self::DaGemma4, Self::DaQwen36, Self::SsasLlama2];

    /// `"da-gemma4"`, `"da-qwen3.6"` or `"ssas-llama2"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DaGemma4 => "da-gemma4",
            Self::DaQwen36 => "da-qwen3.6",
            Self::SsasLlama2 => "ssas-llama2",
        }
    }

    /// The model's shape.
    pub const fn shape(self) -> ModelShape {
        let (query_heads, kv_heads, head_dim, dtype) = match self {
            Self::DaGemma4 => (32, 4, 512, Dtype::Bf16),
            Self::DaQwen36 => (24, 4, 256, Dtype::Bf16),
            Self::SsasLlama2 => (32, 32, 128, Dtype::F16),
        };
        ModelShape { query_heads, kv_heads, head_dim, dtype }
    }

    /// A trace of `responses` responses, the same for the same seed. The sources of `da-*` take
    /// turns, so that averages over a multiple of 15 responses are averages over sources.
    pub fn generate(self, seed: u64, responses: usize) -> Trace {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let respond = |at: usize| match self {
            Self::DaGemma4 => GEMMA4.respond(at, &mut rng),
            Self::DaQwen36 => QWEN36.respond(at, &mut rng),
            Self::SsasLlama2 => short_spans(&mut rng),
        };
        let protocol = match self {
            Self::DaGemma4 | Self::DaQwen36 => "declarative-attention",
            Self::SsasLlama2 => "self-span",
        };
        let header = TraceHeader {
            schema: SCHEMA,
            shape: self.shape(),
            protocol: Some(protocol.to_owned()),
            generator: Some(self.name().to_owned()),
            seed: Some(seed),
        };
        Trace { header, responses: (0..responses).map(respond).collect() }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Preset {
    type Err = UnknownName;
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| UnknownName {
            what: "trace preset",
            name: name.to_owned(),
            expected: "da-gemma4, da-qwen3.6, ssas-llama2",
        })
    }
}

/// A source of requests: name, context in tokens (mean, standard deviation), mean response tokens
/// of Gemma-4-31B. The paper gives no response length for `code_repo`: see
/// [`DeclarativeModel::code_repo_steps`].
type Source = (&'static str, f64, f64, Option<f64>);

const SOURCES: [Source; 15] = [
    ("niah_single_1", 9.0e3, 5.0e3, Some(135.0)),
    ("niah_single_2", 9.2e3, 5.0e3, Some(145.0)),
    ("niah_single_3", 9.3e3, 5.0e3, Some(224.0)),
    ("niah_multikey_2", 11.1e3, 6.4e3, Some(124.0)),
    ("niah_multikey_3", 11.5e3, 7.1e3, Some(341.0)),
    ("qmsum", 13.7e3, 6.6e3, Some(168.0)),
    ("multidoc_qa", 121.7e3, 146.0e3, Some(174.0)),
    ("loogle_summarization", 21.4e3, 16.6e3, Some(262.0)),
    ("code_repo", 1071.0e3, 1208.0e3, None),
    ("quality", 6.4e3, 1.7e3, Some(569.0)),
    ("singledoc_qa", 115.9e3, 136.5e3, Some(146.0)),
    ("dialogue_history", 75.6e3, 44.1e3, Some(1057.0)),
    ("longdep_qa", 31.3e3, 12.2e3, Some(462.0)),
    ("shortdep_cloze", 34.5e3, 12.1e3, Some(504.0)),
    ("space_digest", 6.7e3, 0.7e3, Some(1221.0)),
];

/// Longest and shortest context that is generated, in tokens.
const CONTEXT: (f64, f64) = (1.0e3, 244.0e3);

/// Generation stops here.
const MAX_STEPS: u32 = 8192;

/// Share of responses that do not end by themselves (published: below 1 %). They repeat themselves
/// in their last, local phase.
const ENDLESS: f64 = 0.005;

/// Spread of response lengths around the mean of their source (of the logarithm).
const STEPS_SIGMA: f64 = 0.5;

/// What differs between models.
struct DeclarativeModel {
    /// Response tokens against Gemma-4-31B's, fitted.
    step_scale: f64,
    /// Mean response tokens on `code_repo`, fitted.
    code_repo_steps: f64,
    /// Share of global steps at contexts from 128K tokens; 0.20 up to 8K, linear in the logarithm
    /// between.
    long_global_share: f64,
}

const GEMMA4: DeclarativeModel =
    DeclarativeModel { step_scale: 1.21, code_repo_steps: 150.0, long_global_share: 0.45 };
const QWEN36: DeclarativeModel =
    DeclarativeModel { step_scale: 1.93, code_repo_steps: 770.0, long_global_share: 0.55 };

impl DeclarativeModel {
    fn respond(&self, at: usize, rng: &mut ChaCha8Rng) -> Response {
        let (name, mean, deviation, steps) = SOURCES[at % SOURCES.len()];
        let context = loop {
            let sigma = (1.0 + (deviation / mean).powi(2)).ln().sqrt();
            let draw = lognormal(rng, mean, sigma);
            if (CONTEXT.0..=CONTEXT.1).contains(&draw) {
                break draw;
            }
        };
        let layout = prompt(rng, context as u32);
        let mean_steps = steps.map_or(self.code_repo_steps, |steps| steps * self.step_scale);
        // The mean of a source and its share of global steps include the responses without end,
        // which add local steps only.
        let ending = ((mean_steps - ENDLESS * f64::from(MAX_STEPS)) / (1.0 - ENDLESS)).max(40.0);
        let endless_factor = mean_steps / ending;
        let steps = (lognormal(rng, ending, STEPS_SIGMA) as u32).clamp(32, MAX_STEPS);
        let slope = ((context / 8.0e3).log2() / (128f64 / 8.0).log2()).clamp(0.0, 1.0);
        let share = 0.20 + slope * (self.long_global_share - 0.20);
        let share = share * endless_factor * rng.random_range(0.6..1.4);
        let mut phases = phases(rng, &layout, steps, share);
        if rng.random_bool(ENDLESS)
            && let Some(last) = phases.last_mut()
        {
            last.tokens += MAX_STEPS - steps;
        }
        response(Some(name), layout.prompt_tokens(), phases)
    }
}

/// Phases in the orders G F L, L G F L, G F G F L, G F L G F L and their continuations, of
/// `steps` steps in all, about `global_share` of them global.
fn phases(
    rng: &mut ChaCha8Rng,
    layout: &PromptLayout,
    steps: u32,
    global_share: f64,
) -> Vec<Phase> {
    let calls = (1 + poisson(rng, 0.65)).min(5);
    let mut modes = Vec::new();
    if rng.random_bool(0.2) {
        modes.push(Mode::Local);
    }
    for call in 0..calls {
        if call > 0 && rng.random_bool(0.5) {
            modes.push(Mode::Local);
        }
        modes.extend([Mode::Global, focus(rng, layout)]);
    }
    modes.push(Mode::Local);

    let locals = modes.iter().filter(|m| **m == Mode::Local).count() as u32;
    // The focus payload is 1 to 12 words, quoted, between its tags.
    let quoted: u32 = (0..calls).map(|_| rng.random_range(4..=24)).sum();
    let most_global = steps - calls - locals;
    let global = ((f64::from(steps) * global_share) as u32).clamp(calls, most_global);
    let quoted = quoted.min(steps - global - locals);
    let mut global = parts(rng, global, calls).into_iter();
    let mut quoted = parts(rng, quoted, calls).into_iter();
    let local =
        steps - global.as_slice().iter().sum::<u32>() - quoted.as_slice().iter().sum::<u32>();
    let mut local = parts(rng, local, locals).into_iter();

    let mut previous_global = false;
    let phases = modes.iter().map(|mode| {
        // A focus call follows each global phase; one that names no segment stays global.
        let (name, tokens) = match mode {
            Mode::Local => ("local", local.next()),
            _ if previous_global => ("focus", quoted.next()),
            _ => ("global", global.next()),
        };
        previous_global = name == "global";
        let name = if *mode == Mode::Global { "global" } else { name };
        Phase {
            mode: name.to_owned(),
            tokens: tokens.unwrap_or(1),
            spans: layout.attended(mode),
            tail_start: layout.prompt_tokens(),
        }
    });
    phases.collect()
}

/// A focus call on one (85 %), two (12 %) or three (3 %) segments; 1 % of the calls are invalid and
/// stay global, as under [`Fallback::Dense`](crate::protocol::Fallback::Dense).
fn focus(rng: &mut ChaCha8Rng, layout: &PromptLayout) -> Mode {
    if rng.random_bool(0.01) {
        return Mode::Global;
    }
    let segments = layout.segments().len();
    let count = match rng.random_range(0..100) {
        0..85 => 1,
        85..97 => 2,
        _ => 3,
    };
    let chosen = index::sample(rng, segments, count.min(segments));
    Mode::Focus(chosen.iter().map(|at| at as u32 + 1).collect())
}

/// A prompt around `context` tokens: system instruction, segments with templates between them,
/// question and instruction.
fn prompt(rng: &mut ChaCha8Rng, context: u32) -> PromptLayout {
    let mut at = rng.random_range(150..=210);
    let mut left = context;
    let mut segments = Vec::new();
    while left > 0 {
        // One in a hundred is a single unbreakable run of text above the cap of 2,560.
        let length = if rng.random_bool(0.01) {
            rng.random_range(2561..=4096)
        } else {
            (2048.0 + 250.0 * normal(rng)).clamp(256.0, 2560.0) as u32
        };
        let length = length.min(left);
        at += rng.random_range(20..=40);
        segments.push(Span::from(at..at + length));
        at += length;
        left -= length;
    }
    // The question, and the instruction as it counts in the paper's Figure 1.
    let window = rng.random_range(20..=100) + 1063;
    PromptLayout::new(segments, at, at + window).expect("segments are laid out in order")
}

/// Contexts of at most 2,048 tokens; 4 to 30 spans of 5 to 60 tokens, besides the sink and the
/// phase's own tokens, that change every 5 to 40 tokens.
fn short_spans(rng: &mut ChaCha8Rng) -> Response {
    const CONTEXT_TOKENS: u32 = 2048;
    let prompt_tokens = rng.random_range(400..=1500);
    let response_tokens = rng.random_range(128..=CONTEXT_TOKENS - prompt_tokens);
    let mut phases = Vec::new();
    let mut first = prompt_tokens;
    while first < prompt_tokens + response_tokens {
        let tokens = rng.random_range(5..=40).min(prompt_tokens + response_tokens - first);
        let mut lengths: Vec<u32> =
            (0..rng.random_range(4..=30)).map(|_| rng.random_range(5..=60)).collect();
        // Fewer spans where they would cover more than two thirds of what there is.
        while lengths.len() > 4 && lengths.iter().sum::<u32>() > first * 2 / 3 {
            lengths.pop();
        }
        phases.push(Phase {
            mode: "step".to_owned(),
            tokens,
            spans: scatter(rng, &lengths, first).union(&SpanSet::from(0..1)),
            tail_start: first,
        });
        first += tokens;
    }
    response(None, prompt_tokens, phases)
}

/// Spans of the given lengths at random places from token 2 to below `end - 1`, at least one token
/// apart.
fn scatter(rng: &mut ChaCha8Rng, lengths: &[u32], end: u32) -> SpanSet {
    let taken = lengths.iter().sum::<u32>() + lengths.len() as u32;
    let free = (end - 2).saturating_sub(taken);
    let mut gaps: Vec<u32> = lengths.iter().map(|_| rng.random_range(0..=free)).collect();
    gaps.sort_unstable();
    let mut before = 2;
    let spans = lengths.iter().zip(gaps).map(|(length, gap)| {
        let start = before + gap;
        before += length + 1;
        Span::from(start..start + length)
    });
    SpanSet::from_raw(spans)
}

/// A response whose phases are built to be valid.
fn response(source: Option<&str>, prompt_tokens: u32, phases: Vec<Phase>) -> Response {
    Response::new(source.map(str::to_owned), prompt_tokens, phases)
        .expect("generated phases only attend to what exists")
}

/// Cuts `total` (at least `count`) into `count` random parts of at least 1.
fn parts(rng: &mut ChaCha8Rng, total: u32, count: u32) -> Vec<u32> {
    let mut cuts: Vec<u32> = (1..count).map(|_| rng.random_range(0..=total - count)).collect();
    cuts.extend([0, total - count]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| pair[1] - pair[0] + 1).collect()
}

/// Standard normal, by Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Lognormal of the given mean, `sigma` being the deviation of the logarithm.
fn lognormal(rng: &mut ChaCha8Rng, mean: f64, sigma: f64) -> f64 {
    (mean.ln() - sigma * sigma / 2.0 + sigma * normal(rng)).exp()
}

/// Poisson of a small mean, by Knuth.
fn poisson(rng: &mut ChaCha8Rng, mean: f64) -> u32 {
    let (limit, mut product, mut count) = ((-mean).exp(), rng.random::<f64>(), 0);
    while product > limit {
        product *= rng.random::<f64>();
        count += 1;
    }
    count
}
