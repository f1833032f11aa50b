//! What a trace is like: the numbers by which a workload is chosen, and by which a generated one is
//! accepted.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Phase, Trace};
use crate::SpanSet;

/// Points of a distribution: `p90` is the smallest value that at least 90 % of all do not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Percentiles {
    /// Smallest.
    pub min: u64,
    /// 10 %.
    pub p10: u64,
    /// 50 %.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

/// The part of a trace that one mode makes up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModeShare {
    /// The mode.
    pub mode: String,
    /// Its phases.
    pub phases: u64,
    /// Its share of all steps.
    pub step_share: f64,
    /// Its share of all attended tokens.
    pub attended_share: f64,
    /// Attended tokens per step.
    pub attended_per_step: f64,
}

/// Statistics of a trace. Attended tokens are summed over steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// Responses.
    pub responses: usize,
    /// Decode steps of all responses.
    pub steps: u64,
    /// Decode steps per response.
    pub steps_per_response: f64,
    /// Attended tokens per response.
    pub attended_per_response: f64,
    /// Attended tokens per step.
    pub attended_per_step: f64,
    /// Attended tokens of the same steps without a mask, per response.
    pub dense_per_response: f64,
    /// Modes by name.
    pub modes: Vec<ModeShare>,
    /// KV length of steps.
    pub kv_len: Percentiles,
    /// Attended tokens of steps.
    pub attended: Percentiles,
    /// Spans of steps, canonical.
    pub spans_per_step: Percentiles,
    /// Tokens per span of steps.
    pub span_tokens: Percentiles,
}

/// Steps of a phase that enter the percentiles one by one; of longer phases, evenly spaced ones do.
const SAMPLED_STEPS: u32 = 16_384;

/// Counts of values.
#[derive(Default)]
struct Histogram(BTreeMap<u64, u64>);

impl Histogram {
    fn add(&mut self, value: u64, count: u64) {
        *self.0.entry(value).or_default() += count;
    }

    fn percentiles(&self) -> Percentiles {
        let total: u64 = self.0.values().sum();
        let at = |percent: u64| {
            let rank = (u128::from(total) * u128::from(percent)).div_ceil(100).max(1);
            let mut seen = 0u128;
            let reached = self.0.iter().find(|(_, count)| {
                seen += u128::from(**count);
                seen >= rank
            });
            reached.map_or(0, |(value, _)| *value)
        };
        Percentiles { min: at(0), p10: at(10), p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

#[derive(Default)]
struct ModeSum {
    phases: u64,
    steps: u64,
    attended: u128,
}

impl Trace {
    /// Statistics over every step.
    pub fn describe(&self) -> Description {
        let mut modes: BTreeMap<&str, ModeSum> = BTreeMap::new();
        let (mut attended, mut kv_lens) = (Histogram::default(), Histogram::default());
        let (mut counts, mut lengths) = (Histogram::default(), Histogram::default());
        let mut dense_total = 0u128;
        for response in &self.responses {
            let mut first = response.prompt_tokens;
            for phase in &response.phases {
                let mode = modes.entry(&phase.mode).or_default();
                mode.phases += 1;
                mode.steps += u64::from(phase.tokens);
                let fixed = Fixed::of(phase, first);
                for &tokens in &fixed.lengths {
                    lengths.add(tokens, u64::from(phase.tokens));
                }
                counts.add(fixed.lengths.len() as u64 + 1, u64::from(phase.tokens));
                let steps = u128::from(phase.tokens);
                let tail_before = u128::from(first - fixed.tail_start);
                let growth = steps * (steps + 1) / 2;
                mode.attended += steps * (u128::from(fixed.tokens) + tail_before) + growth;
                dense_total += steps * u128::from(first) + growth;
                let stride = phase.tokens.div_ceil(SAMPLED_STEPS);
                for step in (1..=phase.tokens).step_by(stride as usize) {
                    let count = u64::from(stride.min(phase.tokens - step + 1));
                    let kv_len = first + step;
                    let tail = u64::from(kv_len - fixed.tail_start);
                    lengths.add(tail, count);
                    attended.add(fixed.tokens + tail, count);
                    kv_lens.add(u64::from(kv_len), count);
                }
                first += phase.tokens;
            }
        }
        let steps = u128::from(self.total_steps());
        let attended_total = modes.values().map(|m| m.attended).sum::<u128>();
        let per = |sum: u128, count: u128| if count == 0 { 0.0 } else { sum as f64 / count as f64 };
        let responses = self.responses.len() as u128;
        Description {
            responses: self.responses.len(),
            steps: self.total_steps(),
            steps_per_response: per(steps, responses),
            attended_per_response: per(attended_total, responses),
            attended_per_step: per(attended_total, steps),
            dense_per_response: per(dense_total, responses),
            modes: (modes.into_iter())
                .map(|(mode, sum)| ModeShare {
                    mode: mode.to_owned(),
                    phases: sum.phases,
                    step_share: per(sum.steps.into(), steps),
                    attended_share: per(sum.attended, attended_total),
                    attended_per_step: per(sum.attended, sum.steps.into()),
                })
                .collect(),
            kv_len: kv_lens.percentiles(),
            attended: attended.percentiles(),
            spans_per_step: counts.percentiles(),
            span_tokens: lengths.percentiles(),
        }
    }
}

/// What the steps of a phase share: all their spans but the last, which grows.
struct Fixed {
    /// Tokens of each of these spans.
    lengths: Vec<u64>,
    /// Their sum.
    tokens: u64,
    /// Where the growing span starts: the tail, or what of the phase's spans touches it.
    tail_start: u32,
}

impl Fixed {
    /// Of a phase whose first token is at `first`.
    fn of(phase: &Phase, first: u32) -> Self {
        let row = phase.spans.union(&SpanSet::from(phase.tail_start..first + 1));
        let (tail_start, fixed) = match row.spans().split_last() {
            Some((last, fixed)) => (last.start(), fixed),
            None => (phase.tail_start, &[][..]),
        };
        let lengths: Vec<u64> = fixed.iter().map(|s| u64::from(s.len())).collect();
        Self { tokens: lengths.iter().sum(), lengths, tail_start }
    }
}
