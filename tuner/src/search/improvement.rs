//! What models of the objective share: the scale that they learn it on, and what a prediction makes
//! a point worth.

/// Brings objectives to a mean of 0 and a deviation of 1: of their logarithms where all are
/// positive, for times span orders of magnitude.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    logarithmic: bool,
    mean: f64,
    deviation: f64,
}

impl Scale {
    /// The scale of some finite objectives, at least one.
    pub fn of(objectives: &[f64]) -> Self {
        let logarithmic = objectives.iter().all(|o| *o > 0.0);
        let unscaled = Self { logarithmic, mean: 0.0, deviation: 1.0 };
        let n = objectives.len() as f64;
        let mean = objectives.iter().map(|o| unscaled.scaled(*o)).sum::<f64>() / n;
        let square = |o: &f64| (unscaled.scaled(*o) - mean).powi(2);
        let variance = objectives.iter().map(square).sum::<f64>() / n;
        let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };
        Self { logarithmic, mean, deviation }
    }

    /// An objective on this scale.
    pub fn scaled(&self, objective: f64) -> f64 {
        let value = if self.logarithmic { objective.max(1e-300).ln() } else { objective };
        (value - self.mean) / self.deviation
    }
}

/// Logarithm of the improvement over `best` that is expected where the objective is normally
/// distributed (Jones, Schonlau and Welch, Journal of Global Optimization 13, 1998).
pub(super) fn log_expected_improvement(mean: f64, deviation: f64, best: f64) -> f64 {
    let z = (best - mean) / deviation;
    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (deviation * (z * normal(z) + density)).max(1e-300).ln()
}

/// The normal distribution function; Abramowitz and Stegun, 26.2.17.
fn normal(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - normal(-z);
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let tail = [1.330_274_429, -1.821_255_978, 1.781_477_937, -0.356_563_782, 0.319_381_530]
        .iter()
        .fold(0.0, |sum, c| (sum + c) * t);
    1.0 - (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt() * tail
}
