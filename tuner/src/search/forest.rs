//! Extremely randomised regression trees (Geurts, Ernst and Wehenkel, Machine Learning 63, 2006):
//! what a surrogate predicts with. Written out because it is a page, predicts three things from one
//! set of trees, and has to be repeatable from a seed of ours.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Trees of a forest.
const TREES: usize = 30;
/// Fewest samples that are split further: single ones make trees too sure of themselves.
const SPLIT: usize = 4;

/// Probability of looking at a feature for a cut: what makes trees differ, and so tells where they
/// know little. With all features they agree too soon and the search stays on plateaus.
const LOOK: f32 = 0.35;

/// What is known of a point.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    /// Scaled objective; `None` where the point failed.
    pub value: Option<f32>,
    /// Logarithm of the cost.
    pub cost: f32,
}

/// What trees say of a point.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Prediction {
    pub mean: f32,
    /// Standard deviation over the trees.
    pub deviation: f32,
    /// Probability of failure.
    pub failure: f32,
    pub cost: f32,
}

struct Node {
    /// Feature that is compared; for a leaf, unused.
    feature: u32,
    cut: f32,
    /// Left child, the right one following it; 0 for a leaf.
    left: u32,
    value: f32,
    failure: f32,
    cost: f32,
}

/// An ensemble of trees.
pub(super) struct Forest {
    trees: Vec<Vec<Node>>,
}

struct Grower<'a> {
    rows: &'a [f32],
    width: usize,
    samples: &'a [Sample],
}

impl Forest {
    /// Trees grown on `samples`, whose features lie in `rows`, `width` each.
    pub fn grow(rows: &[f32], width: usize, samples: &[Sample], rng: &mut ChaCha8Rng) -> Self {
        let grower = Grower { rows, width, samples };
        let trees = (0..TREES).map(|_| grower.tree(rng)).collect();
        Self { trees }
    }

    pub fn predict(&self, row: &[f32]) -> Prediction {
        let (mut sum, mut squares, mut failure, mut cost) = (0.0, 0.0, 0.0, 0.0);
        for nodes in &self.trees {
            let mut node = &nodes[0];
            while node.left != 0 {
                let right = row[node.feature as usize] > node.cut;
                node = &nodes[node.left as usize + usize::from(right)];
            }
            sum += node.value;
            squares += node.value * node.value;
            failure += node.failure;
            cost += node.cost;
        }
        let n = self.trees.len() as f32;
        let mean = sum / n;
        Prediction {
            mean,
            deviation: (squares / n - mean * mean).max(0.0).sqrt(),
            failure: failure / n,
            cost: cost / n,
        }
    }
}

impl Grower<'_> {
    fn feature(&self, sample: u32, feature: usize) -> f32 {
        self.rows[sample as usize * self.width + feature]
    }

    fn tree(&self, rng: &mut ChaCha8Rng) -> Vec<Node> {
        let mut order: Vec<u32> = (0..self.samples.len() as u32).collect();
        let mut nodes = vec![self.leaf_of(&order, 0.0)];
        let mut open = vec![(0, 0, order.len())];
        while let Some((node, from, to)) = open.pop() {
            let members = &mut order[from..to];
            let Some((feature, cut)) = self.split(members, rng) else { continue };
            let mut middle = 0;
            for i in 0..members.len() {
                if self.feature(members[i], feature) <= cut {
                    members.swap(i, middle);
                    middle += 1;
                }
            }
            let left = nodes.len();
            let inherited = nodes[node].value;
            nodes.push(self.leaf_of(&members[..middle], inherited));
            nodes.push(self.leaf_of(&members[middle..], inherited));
            nodes[node].feature = feature as u32;
            nodes[node].cut = cut;
            nodes[node].left = left as u32;
            open.push((left, from, from + middle));
            open.push((left + 1, from + middle, to));
        }
        nodes
    }

    /// What a node says where nothing is below it; `inherited` where all its members failed.
    fn leaf_of(&self, members: &[u32], inherited: f32) -> Node {
        let (mut value, mut good, mut cost) = (0.0, 0.0, 0.0);
        for &member in members {
            let sample = &self.samples[member as usize];
            cost += sample.cost;
            if let Some(known) = sample.value {
                value += known;
                good += 1.0;
            }
        }
        let n = members.len().max(1) as f32;
        Node {
            feature: 0,
            cut: 0.0,
            left: 0,
            value: if good > 0.0 { value / good } else { inherited },
            failure: 1.0 - good / n,
            cost: cost / n,
        }
    }

    /// The best of some random cuts.
    fn split(&self, members: &[u32], rng: &mut ChaCha8Rng) -> Option<(usize, f32)> {
        let value = |member: u32| self.samples[member as usize].value;
        let first = value(*members.first()?);
        if members.len() < SPLIT || members.iter().all(|m| value(*m) == first) {
            return None;
        }
        let mut best = None;
        let mut most = f32::NEG_INFINITY;
        for feature in 0..self.width {
            let last_chance = best.is_none() && feature + 1 == self.width;
            if rng.random_range(0.0..1.0f32) >= LOOK && !last_chance {
                continue;
            }
            let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
            for &member in members.iter() {
                let x = self.feature(member, feature);
                low = low.min(x);
                high = high.max(x);
            }
            if low >= high {
                continue;
            }
            // Rounding may make a cut of the upper end, which would part nothing.
            let cut = (low + (high - low) * rng.random_range(0.0..1.0f32)).min(high.next_down());
            let gain = self.gain(members, feature, cut);
            if gain > most {
                most = gain;
                best = Some((feature, cut));
            }
        }
        best
    }

    /// Between-group sum of squares of the objective, and of failing.
    fn gain(&self, members: &[u32], feature: usize, cut: f32) -> f32 {
        let mut sums = [[0f32; 3]; 2];
        for &member in members {
            let side = &mut sums[usize::from(self.feature(member, feature) > cut)];
            let sample = &self.samples[member as usize];
            side[0] += 1.0;
            if let Some(value) = sample.value {
                side[1] += 1.0;
                side[2] += value;
            }
        }
        sums.iter()
            .map(|[all, good, value]| {
                let within = if *good > 0.0 { value * value / good } else { 0.0 };
                within + if *all > 0.0 { good * good / all } else { 0.0 }
            })
            .sum()
    }
}
