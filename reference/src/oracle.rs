//! The oracle: span attention in f64, in the order of the formula and nothing cleverer.

use crate::problem::{Problem, ProblemError};

/// Unit roundoff of f32.
pub(crate) const F32_ROUNDOFF: f64 = 1.0 / (1u32 << 24) as f64;

/// Tokens whose logit is further below the maximum weigh less than e^-25 = 1.4e-11, so their
/// rounding cannot be seen.
const NEGLIGIBLE_LOGIT_GAP: f64 = 25.0;

/// The exact answer, and how far f32 arithmetic may be from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Rows.
    pub rows: usize,
    /// Query heads.
    pub query_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// `[rows, query_heads, head_dim]`.
    pub out: Vec<f64>,
    /// `[rows, query_heads]`, natural logarithm.
    pub lse: Vec<f64>,
    /// `[rows, query_heads, head_dim]`: weighted mean of |v|, the scale of what may cancel in out.
    pub magnitude: Vec<f64>,
    /// `[rows, query_heads]`: bound on the error of a logit computed in f32: (8 + 2 sqrt(head_dim))
    /// roundoffs of `|scale| sum |q_i k_i|`, the largest over tokens that matter. The square root
    /// is the usual growth of rounding errors (Higham, Accuracy and Stability of Numerical
    /// Algorithms, section 2.8); the 8 covers the scale, the base change and the exponential. With a soft
    /// cap, 8 roundoffs of the cap too, which a hyperbolic tangent near 1 has; with a sink that matters,
    /// 4 of it, for the base change and the exponential.
    pub logit_error: Vec<f64>,
    /// `[rows]`: selected tokens, of the KV head that has most.
    pub tokens: Vec<u64>,
}

impl Output {
    /// Bound on the relative error of the softmax weights, and of sums of them, in f32: the error of
    /// the logits, exponentiated twice (weight and normaliser), and 16 + sqrt(tokens) roundoffs.
    pub fn weight_error(&self, row: usize, head: usize) -> f64 {
        let logit = self.logit_error[row * self.query_heads + head];
        (2.0 * logit).exp_m1() + F32_ROUNDOFF * (16.0 + (self.tokens[row] as f64).sqrt())
    }

    /// Bound on the error of out in f32 arithmetic before it is rounded to the dtype, in units of
    /// out. Products below the smallest normal f32 may be flushed to zero.
    pub fn out_error(&self, row: usize, head: usize, dim: usize) -> f64 {
        let at = (row * self.query_heads + head) * self.head_dim + dim;
        self.magnitude[at] * self.weight_error(row, head)
            + 2.0 * self.tokens[row] as f64 * f64::from(f32::MIN_POSITIVE)
    }

    /// Bound on the error of the LSE in f32 arithmetic, including its own rounding.
    pub fn lse_error(&self, row: usize, head: usize) -> f64 {
        let at = row * self.query_heads + head;
        self.logit_error[at]
            + F32_ROUNDOFF * (16.0 + (self.tokens[row] as f64).sqrt() + 2.0 * self.lse[at].abs())
    }
}

/// Span attention in f64 over the rounded inputs; see the crate's semantics. Reads no key or value
/// that is not selected. Any group size.
pub fn attention_f64(problem: &Problem) -> Result<Output, ProblemError> {
    problem.validate()?;
    let (rows, heads, dim) = (problem.rows(), problem.query_heads, problem.head_dim);
    let mut output = Output {
        rows,
        query_heads: heads,
        head_dim: dim,
        out: vec![0.0; rows * heads * dim],
        lse: vec![f64::NEG_INFINITY; rows * heads],
        magnitude: vec![0.0; rows * heads * dim],
        logit_error: vec![0.0; rows * heads],
        tokens: vec![0; rows],
    };
    let mut scratch = Scratch::new(problem);
    for row in 0..rows {
        for kv_head in 0..problem.kv_heads {
            let selected = problem.selected(row, kv_head)?;
            output.tokens[row] = output.tokens[row].max(selected.len() as u64);
            scratch.logits(problem, row, kv_head, &selected);
            scratch.accumulate(problem, row, kv_head, &selected, &mut output);
        }
    }
    Ok(output)
}

/// Working memory of one row and KV head, reused.
struct Scratch {
    kv: Vec<f32>,
    wide: Vec<f64>,
    /// `[group, head_dim]`.
    q: Vec<f64>,
    /// `[group, tokens]`: logits, then weights relative to the largest.
    logits: Vec<f64>,
    /// `[group, tokens]`: |scale| sum |q_i k_i|.
    sizes: Vec<f64>,
}

impl Scratch {
    fn new(problem: &Problem) -> Self {
        let dim = problem.head_dim;
        Self {
            kv: vec![0.0; dim],
            wide: vec![0.0; dim],
            q: vec![0.0; problem.group_size() * dim],
            logits: Vec::new(),
            sizes: Vec::new(),
        }
    }

    /// Fills `logits` and `sizes`; each key row is converted once for the whole group.
    fn logits(&mut self, p: &Problem, row: usize, kv_head: usize, selected: &[(usize, usize)]) {
        let (group, dim, n) = (p.group_size(), p.head_dim, selected.len());
        for g in 0..group {
            p.read_q(row, kv_head * group + g, &mut self.kv);
            widen(&self.kv, &mut self.q[g * dim..][..dim]);
        }
        self.logits.resize(group * n, 0.0);
        self.sizes.resize(group * n, 0.0);
        let k_scale = p.k_scales.get(kv_head).map_or(1.0, |scale| f64::from(*scale));
        let scale = f64::from(p.scale) * k_scale;
        for (t, &at) in selected.iter().enumerate() {
            p.read_kv(p.k, at, kv_head, &mut self.kv);
            widen(&self.kv, &mut self.wide);
            for g in 0..group {
                let (dot, size) = dot(&self.q[g * dim..][..dim], &self.wide);
                let logit = dot * scale;
                self.logits[g * n + t] = match f64::from(p.soft_cap) {
                    0.0 => logit,
                    cap => cap * (logit / cap).tanh(),
                };
                self.sizes[g * n + t] = size * scale.abs();
            }
        }
    }

    /// Softmax and the weighted sum of values of one group, written to `output`.
    fn accumulate(
        &mut self,
        p: &Problem,
        row: usize,
        kv_head: usize,
        selected: &[(usize, usize)],
        output: &mut Output,
    ) {
        let (group, dim, n) = (p.group_size(), p.head_dim, selected.len());
        let first_head = row * p.query_heads + kv_head * group;
        let mut live = Vec::with_capacity(group);
        for g in 0..group {
            let logits = &mut self.logits[g * n..][..n];
            let sink =
                p.sinks.get(kv_head * group + g).map_or(f64::NEG_INFINITY, |s| f64::from(*s));
            let max = logits.iter().copied().fold(sink, f64::max);
            if max == f64::NEG_INFINITY && !logits.iter().any(|l| l.is_nan()) {
                continue;
            }
            let sizes = &self.sizes[g * n..][..n];
            let size = logits.iter().zip(sizes).fold(0.0, |most: f64, (&logit, &size)| {
                if logit >= max - NEGLIGIBLE_LOGIT_GAP { most.max(size) } else { most }
            });
            let of_sink = if sink >= max - NEGLIGIBLE_LOGIT_GAP { 4.0 * sink.abs() } else { 0.0 };
            let other = 8.0 * f64::from(p.soft_cap) + of_sink;
            output.logit_error[first_head + g] =
                F32_ROUNDOFF * ((8.0 + 2.0 * (dim as f64).sqrt()) * size + other);
            // All that a sink does: its value is zero.
            let mut sum = if sink == f64::NEG_INFINITY { 0.0 } else { (sink - max).exp() };
            for logit in logits.iter_mut() {
                *logit = (*logit - max).exp();
                sum += *logit;
            }
            output.lse[first_head + g] = max + sum.ln();
            live.push((g, sum));
        }
        for (t, &at) in selected.iter().enumerate() {
            if live.is_empty() {
                break;
            }
            p.read_kv(p.v, at, kv_head, &mut self.kv);
            widen(&self.kv, &mut self.wide);
            for &(g, _) in &live {
                let weight = self.logits[g * n + t];
                let at = (first_head + g) * dim;
                let out = output.out[at..][..dim].iter_mut();
                let magnitude = output.magnitude[at..][..dim].iter_mut();
                for ((out, magnitude), &v) in out.zip(magnitude).zip(&self.wide) {
                    let share = weight * v;
                    *out += share;
                    *magnitude += share.abs();
                }
            }
        }
        let v_scale = p.v_scales.get(kv_head).map_or(1.0, |scale| f64::from(*scale));
        for (g, sum) in live {
            let at = (first_head + g) * dim;
            let factor = v_scale / sum;
            output.out[at..][..dim].iter_mut().for_each(|x| *x *= factor);
            output.magnitude[at..][..dim].iter_mut().for_each(|x| *x *= factor.abs());
        }
    }
}

fn widen(from: &[f32], to: &mut [f64]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = f64::from(from);
    }
}

/// `(sum a_i b_i, sum |a_i b_i|)`, in eight interleaved sums so that the compiler can vectorise.
fn dot(a: &[f64], b: &[f64]) -> (f64, f64) {
    let mut sums = [0.0; 8];
    let mut sizes = [0.0; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail = a_chunks.remainder().iter().zip(b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..8 {
            let product = a[i] * b[i];
            sums[i] += product;
            sizes[i] += product.abs();
        }
    }
    for (i, (a, b)) in tail.enumerate() {
        sums[i] += a * b;
        sizes[i] += (a * b).abs();
    }
    (sums.iter().sum(), sizes.iter().sum())
}
