//! Span attention as a correct kernel computes it: inputs as given, f32 arithmetic, an online
//! softmax over tiles, the output rounded to the dtype. Its distance from the oracle is what
//! rounding alone costs.

use spanforge_spans::Dtype;

use crate::problem::{Problem, ProblemError, from_f32};

/// An answer in the formats of a launch.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundedOutput {
    /// `[rows, query_heads, head_dim]`, bits of the problem's dtype.
    pub out: Vec<u16>,
    /// `[rows, query_heads]`, natural logarithm.
    pub lse: Vec<f32>,
}

/// Span attention in f32, `tile_tokens` (at least 1) selected tokens at a time. With
/// `round_weights` the weights of a tile are rounded to the dtype before they meet the values, as
/// tensor-core kernels do; their sum is not.
pub fn attention_rounded(
    problem: &Problem,
    tile_tokens: usize,
    round_weights: bool,
) -> Result<RoundedOutput, ProblemError> {
    problem.validate()?;
    let (rows, heads, dim) = (problem.rows(), problem.query_heads, problem.head_dim);
    let mut output = RoundedOutput {
        out: vec![0; rows * heads * dim],
        lse: vec![f32::NEG_INFINITY; rows * heads],
    };
    let (mut q, mut kv) = (vec![0.0; dim], vec![0.0; dim]);
    let mut tile = Vec::new();
    for row in 0..rows {
        for head in 0..heads {
            let kv_head = head / problem.group_size();
            let scale = |scales: &[f32]| scales.get(kv_head).copied().unwrap_or(1.0);
            let selected = problem.selected(row, kv_head)?;
            problem.read_q(row, head, &mut q);
            let mut state = Online { max: f32::NEG_INFINITY, sum: 0.0, acc: vec![0.0; dim] };
            for tokens in selected.chunks(tile_tokens.max(1)) {
                tile.clear();
                for &at in tokens {
                    problem.read_kv(problem.k, at, kv_head, &mut kv);
                    let dot: f32 = q.iter().zip(&kv).map(|(q, k)| q * k).sum();
                    let logit = dot * problem.scale * scale(problem.k_scales);
                    tile.push(match problem.soft_cap {
                        0.0 => logit,
                        cap => cap * (logit / cap).tanh(),
                    });
                }
                if !state.weigh(&mut tile) {
                    continue;
                }
                for (&at, &weight) in tokens.iter().zip(&tile) {
                    problem.read_kv(problem.v, at, kv_head, &mut kv);
                    let weight = if round_weights { round(problem.dtype, weight) } else { weight };
                    for (acc, &v) in state.acc.iter_mut().zip(&kv) {
                        *acc += weight * v;
                    }
                }
            }
            if let Some(&sink) = problem.sinks.get(head) {
                state.weigh(&mut [sink]);
            }
            if state.max == f32::NEG_INFINITY {
                continue;
            }
            let at = row * heads + head;
            output.lse[at] = state.max + state.sum.ln();
            for (out, acc) in output.out[at * dim..][..dim].iter_mut().zip(&state.acc) {
                *out = from_f32(problem.dtype, acc / state.sum * scale(problem.v_scales));
            }
        }
    }
    Ok(output)
}

/// The running maximum, sum of weights and weighted sum of values of an online softmax.
struct Online {
    max: f32,
    sum: f32,
    acc: Vec<f32>,
}

impl Online {
    /// Turns the logits of a tile into weights relative to the new maximum and rescales what was
    /// summed before; false where everything so far is -inf and weighs nothing.
    fn weigh(&mut self, tile: &mut [f32]) -> bool {
        let nan = tile.iter().any(|l| l.is_nan());
        let max = tile.iter().copied().fold(self.max, f32::max);
        let max = if nan { f32::NAN } else { max };
        if max == f32::NEG_INFINITY {
            return false;
        }
        let rescale = (self.max - max).exp();
        self.max = max;
        self.sum *= rescale;
        self.acc.iter_mut().for_each(|acc| *acc *= rescale);
        for logit in tile {
            *logit = (*logit - max).exp();
            self.sum += *logit;
        }
        true
    }
}

fn round(dtype: Dtype, value: f32) -> f32 {
    let mut out = [0.0];
    crate::problem::to_f32(dtype, &[from_f32(dtype, value)], &mut out);
    out[0]
}
