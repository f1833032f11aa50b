//! AdamW with a warm-up, a plateau and a linear decay, and moments that can be kept and restored.

use crate::model::Model;
use anyhow::{Context, Result};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

const BETAS: (f64, f64) = (0.9, 0.98);
const EPS: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.05;

/// Gradients longer than this are shortened to it.
const CLIP: f64 = 1.0;

/// Parts of all steps: the rate rises over the first and falls from the second on.
const WARM_UP: f64 = 0.05;
const DECAY: f64 = 0.5;

/// First and second moments, by weight.
pub struct AdamW {
    pub moments: Vec<(Vec<f32>, Vec<f32>)>,
    /// Steps made.
    pub steps: u64,
}

/// The share of the full rate at a step of `steps`.
pub fn rate(step: u64, steps: u64) -> f64 {
    let done = step as f64 / steps.max(1) as f64;
    (done / WARM_UP).min(1.0).min((1.0 - done) / (1.0 - DECAY))
}

impl AdamW {
    pub fn new(model: &Model) -> Self {
        let zeros = |count: usize| (vec![0.0; count], vec![0.0; count]);
        let moments = model.vars().iter().map(|(_, var)| zeros(var.elem_count())).collect();
        Self { moments, steps: 0 }
    }

    /// One step at `rate`; the length of the gradient is returned.
    pub fn step(&mut self, model: &Model, gradients: &GradStore, rate: f64) -> Result<f64> {
        self.steps += 1;
        let mut all = Vec::with_capacity(self.moments.len());
        let mut square = 0.0;
        for (name, var) in model.vars() {
            let gradient =
                gradients.get(var.as_tensor()).context(format!("no gradient of {name}"))?;
            let gradient: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
            square += gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
            all.push(gradient);
        }
        let length = square.sqrt();
        let shorten = (CLIP / length).min(1.0) as f32;
        let steps = self.steps.min(i32::MAX as u64) as i32;
        let (first_bias, second_bias) = (1.0 - BETAS.0.powi(steps), 1.0 - BETAS.1.powi(steps));
        let step_size = (rate / first_bias) as f32;
        let root = second_bias.sqrt() as f32;
        let (b1, b2) = (BETAS.0 as f32, BETAS.1 as f32);
        for (((_, var), gradient), (first, second)) in
            model.vars().iter().zip(all).zip(&mut self.moments)
        {
            let mut weights: Vec<f32> = var.flatten_all()?.to_vec1()?;
            // Gains are not decayed.
            let keep = if var.rank() > 1 { 1.0 - (rate * WEIGHT_DECAY) as f32 } else { 1.0 };
            for (at, weight) in weights.iter_mut().enumerate() {
                let gradient = shorten * gradient[at];
                first[at] = b1 * first[at] + (1.0 - b1) * gradient;
                second[at] = b2 * second[at] + (1.0 - b2) * gradient * gradient;
                *weight = keep * *weight
                    - step_size * first[at] / (second[at].sqrt() / root + EPS as f32);
            }
            var.set(&Tensor::from_vec(weights, var.shape(), &Device::Cpu)?)?;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_stays_and_falls() {
        let rates: Vec<f64> = [0, 25, 50, 500, 750, 1000].map(|step| rate(step, 1000)).to_vec();
        assert_eq!(rates, [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]);
    }
}
