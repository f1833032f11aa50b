//! Three operations with gradients of their own. Composed of candle's, each is a dozen passes over
//! memory on one thread, and their gradients take most of a step.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use wide::f32x8;

/// The rows of a batch: sequences one behind the other, without padding.
#[derive(Debug, Default)]
pub struct Rows {
    /// Rows of each sequence.
    pub sequences: Vec<Range<usize>>,
    /// Per row what it attends to, as `[start, end)` of positions in its sequence.
    pub spans: Vec<Vec<[u32; 2]>>,
}

/// How queries, keys and values lie in a row: query heads, KV heads, KV heads, each of `head_dim`.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub query: usize,
    pub kv: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Elements of a row of queries, keys and values.
    pub fn width(&self) -> usize {
        (self.query + 2 * self.kv) * self.head_dim
    }

    fn out_width(&self) -> usize {
        self.query * self.head_dim
    }

    /// Where a KV head's keys and values begin in a row.
    fn kv_at(&self, head: usize) -> (usize, usize) {
        let k = (self.query + head) * self.head_dim;
        (k, k + self.kv * self.head_dim)
    }
}

/// Rotary positions, then attention over each row's spans: `[rows, heads.width()]` to
/// `[rows, query * head_dim]`. What is not attended costs nothing, forwards or backwards.
pub struct SpanAttention {
    pub rows: Arc<Rows>,
    pub heads: Heads,
    /// Cosine and sine by position and pair (i, i + head_dim / 2).
    pub turns: Arc<Vec<(f32, f32)>>,
}

impl SpanAttention {
    /// Turns the query and key heads of a row, or turns gradients back.
    fn rotate(&self, row: &mut [f32], position: usize, back: bool) {
        let pairs = self.heads.head_dim / 2;
        let turns = &self.turns[position * pairs..][..pairs];
        let rotated = (self.heads.query + self.heads.kv) * self.heads.head_dim;
        for head in row[..rotated].chunks_exact_mut(2 * pairs) {
            let (low, high) = head.split_at_mut(pairs);
            for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                let sin = if back { -sin } else { *sin };
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }

    fn rotated(&self, rows: &[f32]) -> Vec<f32> {
        let mut rows = rows.to_vec();
        for (position, row) in rows.chunks_exact_mut(self.heads.width()).enumerate() {
            self.rotate(row, position, false);
        }
        rows
    }

    /// The softmax of one query over its spans, by attended token.
    fn weights(&self, rows: &[f32], q: &[f32], k_at: usize, spans: &[[u32; 2]]) -> Vec<f32> {
        let Heads { head_dim, .. } = self.heads;
        let (width, scale) = (self.heads.width(), 1.0 / (head_dim as f32).sqrt());
        let keys = |token: usize| &rows[token * width + k_at..][..head_dim];
        let mut weights = dots(q, keys, spans);
        weights.iter_mut().for_each(|weight| *weight *= scale);
        let most = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        weights.iter_mut().for_each(|weight| *weight -= most);
        exp(&mut weights);
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        weights
    }

    fn forward(&self, sequence: &Range<usize>, qkv: &[f32], out: &mut [f32]) {
        let Heads { query, kv, head_dim } = self.heads;
        let width = self.heads.width();
        let rows = self.rotated(&qkv[sequence.start * width..sequence.end * width]);
        for (position, out) in out.chunks_exact_mut(self.heads.out_width()).enumerate() {
            let spans = &self.rows.spans[sequence.start + position];
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let (k_at, v_at) = self.heads.kv_at(head / (query / kv));
                let q = &rows[position * width + head * head_dim..][..head_dim];
                let weights = self.weights(&rows, q, k_at, spans);
                for (token, weight) in tokens(spans).zip(weights) {
                    add(out, weight, &rows[token * width + v_at..][..head_dim]);
                }
            }
        }
    }

    fn backward(&self, sequence: &Range<usize>, qkv: &[f32], of_out: &[f32], of_qkv: &mut [f32]) {
        let Heads { query, kv, head_dim } = self.heads;
        let (width, out_width) = (self.heads.width(), self.heads.out_width());
        let scale = 1.0 / (head_dim as f32).sqrt();
        let rows = self.rotated(&qkv[sequence.start * width..sequence.end * width]);
        let of_out = &of_out[sequence.start * out_width..sequence.end * out_width];
        for (position, of_out) in of_out.chunks_exact(out_width).enumerate() {
            let spans = &self.rows.spans[sequence.start + position];
            for (head, of_out) in of_out.chunks_exact(head_dim).enumerate() {
                let (k_at, v_at) = self.heads.kv_at(head / (query / kv));
                let q_at = position * width + head * head_dim;
                let q = &rows[q_at..][..head_dim];
                let weights = self.weights(&rows, q, k_at, spans);
                let values = |token: usize| &rows[token * width + v_at..][..head_dim];
                let of_weights = dots(of_out, values, spans);
                let mean: f32 = weights.iter().zip(&of_weights).map(|(w, g)| w * g).sum();
                let mut of_q = vec![0.0; head_dim];
                for ((token, weight), of_weight) in tokens(spans).zip(&weights).zip(of_weights) {
                    let of_score = scale * weight * (of_weight - mean);
                    add(&mut of_q, of_score, &rows[token * width + k_at..][..head_dim]);
                    add(&mut of_qkv[token * width + k_at..][..head_dim], of_score, q);
                    add(&mut of_qkv[token * width + v_at..][..head_dim], *weight, of_out);
                }
                add(&mut of_qkv[q_at..][..head_dim], 1.0, &of_q);
            }
        }
        for (position, row) in of_qkv.chunks_exact_mut(width).enumerate() {
            self.rotate(row, position, true);
        }
    }

    /// A buffer `[rows, width]`, written by sequence.
    fn by_sequence(
        &self,
        width: usize,
        write: impl Fn(&Range<usize>, &mut [f32]) + Sync,
    ) -> Vec<f32> {
        let mut all = vec![0.0; self.rows.spans.len() * width];
        let mut rest = all.as_mut_slice();
        let mut parts = Vec::with_capacity(self.rows.sequences.len());
        for sequence in &self.rows.sequences {
            let (part, more) = rest.split_at_mut(sequence.len() * width);
            parts.push((sequence, part));
            rest = more;
        }
        parts.into_par_iter().for_each(|(sequence, part)| write(sequence, part));
        all
    }
}

impl CustomOp1 for SpanAttention {
    fn name(&self) -> &'static str {
        "span-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = elements(storage, layout)?;
        let width = self.heads.out_width();
        let out = self.by_sequence(width, |sequence, out| self.forward(sequence, qkv, out));
        Ok((CpuStorage::F32(out), (self.rows.spans.len(), width).into()))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, of_out: &Tensor) -> Result<Option<Tensor>> {
        let (qkv, of_out) = (values(qkv)?, values(of_out)?);
        let width = self.heads.width();
        let gradient = self.by_sequence(width, |sequence, of_qkv| {
            self.backward(sequence, &qkv, &of_out, of_qkv);
        });
        let shape = (self.rows.spans.len(), width);
        Ok(Some(Tensor::from_vec(gradient, shape, &candle_core::Device::Cpu)?))
    }
}

/// RMSNorm: `[rows, size]` and a gain `[size]` to `[rows, size]`.
pub struct RmsNorm {
    pub eps: f32,
}

impl RmsNorm {
    fn factor(&self, row: &[f32]) -> f32 {
        1.0 / (dot(row, row) / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, gain) = (elements(x, x_layout)?, elements(gain, gain_layout)?);
        let mut out = x.to_vec();
        out.par_chunks_exact_mut(gain.len()).for_each(|row| {
            let factor = self.factor(row);
            row.iter_mut().zip(gain).for_each(|(x, gain)| *x *= factor * gain);
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _: &Tensor,
        of_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (shape, device) = (x.shape().clone(), candle_core::Device::Cpu);
        let (x, gain, mut of_x) = (values(x)?, values(gain)?, values(of_out)?);
        let size = gain.len();
        let mut of_gain = vec![0.0; size];
        for (x, of) in x.chunks_exact(size).zip(of_x.chunks_exact_mut(size)) {
            let factor = self.factor(x);
            let mut along = 0.0;
            for at in 0..size {
                of_gain[at] += of[at] * x[at] * factor;
                of[at] *= gain[at];
                along += of[at] * x[at];
            }
            let along = along * factor * factor / size as f32;
            of.iter_mut().zip(x).for_each(|(of, x)| *of = factor * (*of - along * x));
        }
        let of_gain = Tensor::from_vec(of_gain, size, &device)?;
        Ok((Some(Tensor::from_vec(of_x, shape, &device)?), Some(of_gain)))
    }
}

/// SwiGLU: `[rows, 2 * size]`, gate then up, to silu(gate) * up, `[rows, size]`.
pub struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, size) = (layout.dims()[0], layout.dims()[1] / 2);
        let x = elements(storage, layout)?;
        let mut out = vec![0.0; rows * size];
        out.par_chunks_exact_mut(size).zip(x.par_chunks_exact(2 * size)).for_each(|(out, x)| {
            let (gate, up) = x.split_at(size);
            for (at, sigmoid) in sigmoids(gate).into_iter().enumerate() {
                out[at] = gate[at] * sigmoid * up[at];
            }
        });
        Ok((CpuStorage::F32(out), (rows, size).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, of_out: &Tensor) -> Result<Option<Tensor>> {
        let shape = x.shape().clone();
        let size = shape.dims()[1] / 2;
        let (mut x, of_out) = (values(x)?, values(of_out)?);
        x.par_chunks_exact_mut(2 * size).zip(of_out.par_chunks_exact(size)).for_each(|(x, of)| {
            for (at, sigmoid) in sigmoids(&x[..size]).into_iter().enumerate() {
                let (gate, up) = (x[at], x[size + at]);
                x[at] = of[at] * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
                x[size + at] = of[at] * gate * sigmoid;
            }
        });
        Ok(Some(Tensor::from_vec(x, shape, &candle_core::Device::Cpu)?))
    }
}

/// Products of one vector with those of the tokens of some spans, four at a time: they share what is
/// loaded of the first and do not wait for each other.
fn dots<'a>(a: &[f32], of: impl Fn(usize) -> &'a [f32], spans: &[[u32; 2]]) -> Vec<f32> {
    let mut out = Vec::with_capacity(spans.iter().map(|[start, end]| (end - start) as usize).sum());
    for [start, end] in spans {
        let mut token = *start as usize;
        while token + 4 <= *end as usize {
            out.extend(products(a, [0, 1, 2, 3].map(|next| of(token + next))));
            token += 4;
        }
        out.extend((token..*end as usize).map(|token| dot(a, of(token))));
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let [product] = products(a, [b]);
    product
}

/// Products of one vector with some others.
fn products<const COUNT: usize>(a: &[f32], others: [&[f32]; COUNT]) -> [f32; COUNT] {
    let mut sums = [f32x8::ZERO; COUNT];
    let (eights, rest) = a.as_chunks::<8>();
    let blocks = others.map(|other| &other.as_chunks::<8>().0[..eights.len()]);
    for (at, a) in eights.iter().enumerate() {
        let a = f32x8::new(*a);
        for (sum, block) in sums.iter_mut().zip(blocks) {
            *sum = a.mul_add(f32x8::new(block[at]), *sum);
        }
    }
    let mut out = sums.map(|sum| sum.reduce_add());
    for (out, other) in out.iter_mut().zip(others) {
        let others = &other[8 * eights.len()..];
        *out += rest.iter().zip(others).map(|(a, b)| a * b).sum::<f32>();
    }
    out
}

fn add(to: &mut [f32], factor: f32, more: &[f32]) {
    let (eights, rest) = to.as_chunks_mut::<8>();
    let (more_eights, more_rest) = more.as_chunks::<8>();
    let factors = f32x8::splat(factor);
    for (to, more) in eights.iter_mut().zip(more_eights) {
        *to = factors.mul_add(f32x8::new(*more), f32x8::new(*to)).to_array();
    }
    rest.iter_mut().zip(more_rest).for_each(|(to, more)| *to += factor * more);
}

/// Raises e to each of them.
fn exp(values: &mut [f32]) {
    let (eights, rest) = values.as_chunks_mut::<8>();
    eights.iter_mut().for_each(|values| *values = f32x8::new(*values).exp().to_array());
    let mut last = [0.0; 8];
    last[..rest.len()].copy_from_slice(rest);
    rest.copy_from_slice(&f32x8::new(last).exp().to_array()[..rest.len()]);
}

/// The logistic function of gates.
fn sigmoids(gates: &[f32]) -> Vec<f32> {
    let mut out: Vec<f32> = gates.iter().map(|gate| -gate).collect();
    exp(&mut out);
    out.iter_mut().for_each(|power| *power = 1.0 / (1.0 + *power));
    out
}

fn tokens(spans: &[[u32; 2]]) -> impl Iterator<Item = usize> + '_ {
    spans.iter().flat_map(|[start, end]| *start as usize..*end as usize)
}

fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((from, to)), CpuStorage::F32(all)) => Ok(&all[from..to]),
        _ => bail!("contiguous f32 tensors only"),
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(shape: &[usize], seed: u64) -> Tensor {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0_f32)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// The gradient of a weighted sum of results against differences, element by element.
    fn assert_gradient(x: &Tensor, apply: impl Fn(&Tensor) -> Tensor) {
        let var = Var::from_tensor(x).unwrap();
        let out = apply(var.as_tensor());
        let weights = random(out.dims(), 99);
        let loss = |x: &Tensor| -> f64 {
            let sum = (apply(x) * &weights).unwrap().to_dtype(candle_core::DType::F64).unwrap();
            sum.sum_all().unwrap().to_scalar().unwrap()
        };
        let total = (out * &weights).unwrap().sum_all().unwrap();
        let gradients = total.backward().unwrap();
        let found = values(gradients.get(var.as_tensor()).unwrap()).unwrap();
        let at = values(x).unwrap();
        for (index, found) in found.iter().enumerate().step_by(7) {
            let moved = |by: f32| {
                let mut at = at.clone();
                at[index] += by;
                loss(&Tensor::from_vec(at, x.shape(), &Device::Cpu).unwrap())
            };
            let wanted = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((f64::from(*found) - wanted).abs() < 3e-3, "{index}: {found} {wanted}");
        }
    }

    #[test]
    fn the_exponential_function_is_that_of_the_library() {
        let at: Vec<f32> = (-8700..=8800).map(|at| at as f32 / 100.0).collect();
        let mut found = at.clone();
        exp(&mut found);
        for (x, found) in at.iter().zip(found) {
            let wanted = f64::from(*x).exp();
            assert!((f64::from(found) / wanted - 1.0).abs() < 3e-7, "{x}: {found} {wanted}");
        }
    }

    #[test]
    fn gradients_are_the_differences() {
        let heads = Heads { query: 4, kv: 2, head_dim: 10 };
        let spans = |row: u32, from: u32| vec![[0, 1], [from.max(1).min(row), row + 1]];
        let rows = Rows {
            sequences: vec![0..5, 5..8],
            spans: [(0, 0), (1, 1), (2, 1), (3, 3), (4, 1), (0, 0), (1, 1), (2, 2)]
                .map(|(row, from)| if row == 0 { vec![[0, 1]] } else { spans(row, from) })
                .to_vec(),
        };
        let rows = Arc::new(rows);
        let turns: Vec<(f32, f32)> =
            (0..40).map(|i| ((i as f32 * 0.7).cos(), (i as f32 * 0.7).sin())).collect();
        let turns = Arc::new(turns);
        assert_gradient(&random(&[8, heads.width()], 1), |x| {
            let op = SpanAttention { rows: rows.clone(), heads, turns: turns.clone() };
            x.apply_op1(op).unwrap()
        });
        let (x, gain) = (random(&[5, 12], 2), random(&[12], 3));
        assert_gradient(&x, |x| x.apply_op2(&gain, RmsNorm { eps: 1e-5 }).unwrap());
        assert_gradient(&gain, |gain| x.apply_op2(gain, RmsNorm { eps: 1e-5 }).unwrap());
        assert_gradient(&random(&[4, 10], 4), |x| x.apply_op1(SwiGlu).unwrap());
    }
}
