//! From logits to the next token.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most probable one; of equals the first.
    Greedy,
    /// By chance.
    Random {
        /// Logits are divided by it; positive.
        temperature: f32,
        /// Only the most probable tokens that together have this probability, at least one; 1 for all.
        top_p: f32,
    },
}

impl Sampling {
    /// Chooses among tokens by their logits. A logit that is NaN is never chosen, unless all are.
    pub(super) fn choose(&self, logits: &[f32], rng: &mut ChaCha8Rng) -> u32 {
        let better = |best: usize, next: usize| match logits[next] > logits[best] {
            true => next,
            false if logits[best].is_nan() => next,
            false => best,
        };
        let best = (0..logits.len()).reduce(better).unwrap_or(0);
        let chosen = match *self {
            Self::Greedy => best,
            Self::Random { temperature, top_p } => {
                let weight = |token: usize| ((logits[token] - logits[best]) / temperature).exp();
                let known = (0..logits.len()).filter(|token| weight(*token) > 0.0);
                let mut tokens: Vec<(usize, f32)> = known.map(|t| (t, weight(t))).collect();
                tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                let all: f32 = tokens.iter().map(|token| token.1).sum();
                let mut sum = 0.0;
                let enough = tokens.iter().position(|token| {
                    sum += token.1;
                    sum >= top_p * all
                });
                tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
                let kept: f32 = tokens.iter().map(|token| token.1).sum();
                let mut left = kept * rng.random_range(0.0..1.0_f32);
                let drawn = tokens.iter().find(|token| {
                    left -= token.1;
                    left < 0.0
                });
                drawn.or(tokens.last()).map_or(best, |token| token.0)
            }
        };
        chosen as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn drawn(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = vec![0; logits.len()];
        for _ in 0..10_000 {
            counts[sampling.choose(logits, &mut rng) as usize] += 1;
        }
        counts
    }

    #[test]
    fn tokens_come_as_often_as_they_should() {
        let logits = [0.0, 2.0_f32.ln(), f32::NAN, 5.0_f32.ln(), f32::NEG_INFINITY];
        let random = |temperature, top_p| drawn(Sampling::Random { temperature, top_p }, &logits);
        assert_eq!(drawn(Sampling::Greedy, &logits), [0, 0, 0, 10_000, 0]);
        // Weights 1, 2 and 5 of 8.
        let counts = random(1.0, 1.0);
        assert!(counts[0].abs_diff(1250) < 120 && counts[1].abs_diff(2500) < 150, "{counts:?}");
        assert_eq!((counts[2], counts[4]), (0, 0));
        // 5 of 8 and 2 of 8 are 0.875.
        let counts = random(1.0, 0.8);
        assert!(counts[0] == 0 && counts[1].abs_diff(2857) < 150, "{counts:?}");
        assert_eq!(random(1.0, 0.6), [0, 0, 0, 10_000, 0]);
        // Squared weights 1, 4 and 25 of 30.
        let counts = random(0.5, 1.0);
        assert!(counts[3].abs_diff(8333) < 150, "{counts:?}");
    }

    #[test]
    fn logits_without_a_number_choose_something() {
        assert_eq!(drawn(Sampling::Greedy, &[f32::NAN; 3])[2], 10_000);
        let random = Sampling::Random { temperature: 1.0, top_p: 0.9 };
        assert_eq!(drawn(random, &[f32::NAN; 3]).iter().sum::<usize>(), 10_000);
        assert_eq!(drawn(Sampling::Greedy, &[f32::NAN, 1.0])[1], 10_000);
    }
}
