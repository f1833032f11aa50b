//! A Gaussian process over the points of a space: what it predicts where nothing was evaluated yet,
//! from how alike points are, and the point that this makes most worth trying.
//!
//! It learns from far fewer points than trees do, at a cost that grows with their cube. So it
//! remembers a bounded number, and between two fits it takes an observation in by one more row.

use super::features::Coordinates;
use super::improvement::{Scale, log_expected_improvement};
use super::likeness::{Factor, Likeness, dot};
use super::moves::hamming;
use super::unseen::Unseen;
use super::{Evaluation, Point, Space};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{HashMap, HashSet};

/// Lengths are fitted again when there are this many times the observations of the last fit.
const REFIT: f64 = 1.15;
/// Observations that are remembered at a fit: one half the best ones, the other any.
const REMEMBERED: usize = 250;
/// Points that are predicted: drawn from the whole space, and the neighbours of the best.
const DRAWN: usize = 2000;
const LEADERS: usize = 10;
/// Likeness to a point that succeeded which every candidate is credited with.
const CREDIT: f64 = 0.1;
/// Least share of the objective's deviation that a prediction is uncertain by.
const LEAST_DEVIATION: f64 = 1e-4;

/// Everything observed, and what follows from it.
#[derive(Default)]
pub(super) struct Process {
    coordinates: Option<Coordinates>,
    observed: Vec<Observed>,
    likeness: Option<Likeness>,
    /// Number of observations at which lengths are fitted again.
    refit: usize,
    posterior: Option<Posterior>,
}

/// A point, and its objective if it did not fail.
type Observed = (Point, Option<f64>);

impl Process {
    pub fn observe(&mut self, space: &dyn Space, evaluation: &Evaluation<'_>) {
        let coordinates = self.coordinates.get_or_insert_with(|| Coordinates::new(space));
        let objective = evaluation.objective.filter(|o| o.is_finite());
        self.observed.push((evaluation.point.to_vec(), objective));
        if let Some(posterior) = &mut self.posterior {
            posterior.observe(coordinates, evaluation.point, objective);
        }
    }

    /// Takes the unseen point that is most worth trying; `None` where too little is known or no
    /// candidate is left.
    pub fn take(
        &mut self,
        space: &dyn Space,
        unseen: &mut Unseen,
        rng: &mut ChaCha8Rng,
    ) -> Option<Point> {
        if self.observed.len() >= self.refit {
            self.fit(space, unseen, rng);
        }
        let coordinates = self.coordinates.as_ref()?;
        let posterior = self.posterior.as_mut()?;
        if let Some(leader) = posterior.leader.take() {
            posterior.enlist(coordinates, space, unseen, hamming(&leader, &space.sizes()));
        }
        let point = posterior.take(coordinates, space, unseen)?;
        posterior.know(coordinates, &point);
        Some(point)
    }

    /// Takes the unseen point nearest to the middle of the space: where nothing is known yet, better
    /// than chance on most recorded spaces, for what is very small or very large is mostly slow.
    pub fn middle(
        &mut self,
        space: &dyn Space,
        unseen: &mut Unseen,
        rng: &mut ChaCha8Rng,
    ) -> Option<Point> {
        let coordinates = self.coordinates.get_or_insert_with(|| Coordinates::new(space));
        let off = |point: &Point| -> f64 {
            coordinates.of(point).iter().map(|x| (x - 0.5).powi(2)).sum()
        };
        let points = unseen.candidates(space, DRAWN, rng).into_iter();
        let (_, point) = points
            .map(|point| (off(&point), point))
            .min_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)))?;
        unseen.take(&point).then_some(point)
    }

    /// Fits the likeness to what is remembered, and starts from there with new candidates.
    fn fit(&mut self, space: &dyn Space, unseen: &mut Unseen, rng: &mut ChaCha8Rng) {
        let Some(coordinates) = &self.coordinates else { return };
        let remembered = remembered(&self.observed, rng);
        let known = || remembered.iter().filter_map(|(point, o)| o.map(|o| (point, o)));
        let objectives: Vec<f64> = known().map(|(_, objective)| objective).collect();
        if objectives.len() < 2 {
            return;
        }
        let scale = Scale::of(&objectives);
        let values: Vec<f64> = objectives.iter().map(|o| scale.scaled(*o)).collect();
        let rows: Vec<Vec<f64>> = known().map(|(point, _)| coordinates.of(point)).collect();
        let likeness = self.likeness.get_or_insert_with(|| Likeness::new(rows[0].len()));
        likeness.fit(&rows, &values, rng);
        let observed = self.observed.len();
        self.refit = ((observed as f64 * REFIT) as usize + 1).min(observed + REMEMBERED);

        let mut posterior = Posterior::new(likeness.clone(), scale);
        for (point, objective) in &remembered {
            posterior.observe(coordinates, point, *objective);
        }
        posterior.leader = None;
        let sizes = space.sizes();
        let mut candidates = unseen.candidates(space, DRAWN, rng);
        let mut leaders: Vec<(&Point, f64)> = known().collect();
        leaders.sort_by(|a, b| a.1.total_cmp(&b.1));
        for (leader, _) in leaders.into_iter().take(LEADERS) {
            candidates.extend(hamming(leader, &sizes));
        }
        posterior.enlist(coordinates, space, unseen, candidates);
        self.posterior = Some(posterior);
    }
}

/// What a fit learns from.
fn remembered(observed: &[Observed], rng: &mut ChaCha8Rng) -> Vec<Observed> {
    let mut all = observed.to_vec();
    if all.len() > REMEMBERED {
        let key = |observed: &Observed| observed.1.unwrap_or(f64::INFINITY);
        all.sort_by(|a, b| key(a).total_cmp(&key(b)));
        all[REMEMBERED / 2..].shuffle(rng);
        all.truncate(REMEMBERED);
    }
    all
}

/// What the points that are known of say of others.
struct Posterior {
    likeness: Likeness,
    scale: Scale,
    /// Scaled coordinates of these points.
    rows: Vec<Vec<f64>>,
    positions: HashMap<Point, usize>,
    fates: Vec<Fate>,
    factor: Factor,
    /// The factor's inverse by the objectives. One that is not known is taken as what the points
    /// before predict, which makes its weight 0: such a point only says that there is less to learn.
    weights: Vec<f64>,
    best: f64,
    /// The best point, where its neighbours are not yet candidates.
    leader: Option<Point>,
    candidates: Vec<Candidate>,
    /// All points that ever were candidates here.
    listed: HashSet<Point>,
}

/// What is known of a point.
#[derive(Clone, Copy)]
enum Fate {
    Pending,
    Failed,
    /// With its objective on the scale.
    Succeeded(f64),
}

/// A point that may be proposed.
struct Candidate {
    point: Point,
    row: Vec<f64>,
    /// The factor's inverse by the covariances with the known points.
    solved: Vec<f64>,
    /// Sum of the likeness to points that succeeded, and to those that failed.
    succeeded: f64,
    failed: f64,
}

impl Posterior {
    fn new(likeness: Likeness, scale: Scale) -> Self {
        Self {
            likeness,
            scale,
            rows: Vec::new(),
            positions: HashMap::new(),
            fates: Vec::new(),
            factor: Factor::default(),
            weights: Vec::new(),
            best: f64::INFINITY,
            leader: None,
            candidates: Vec::new(),
            listed: HashSet::new(),
        }
    }

    /// Takes in that a point is evaluated; where it stands.
    fn know(&mut self, coordinates: &Coordinates, point: &[usize]) -> usize {
        if let Some(position) = self.positions.get(point) {
            return *position;
        }
        let row = self.likeness.scaled(&coordinates.of(point));
        let covariances = self.rows.iter().map(|other| Likeness::between(other, &row)).collect();
        self.factor.push(covariances, self.likeness.own());
        let position = self.rows.len();
        for candidate in &mut self.candidates {
            candidate.solved.push(Likeness::between(&candidate.row, &row));
            self.factor.solve(&mut candidate.solved, position);
        }
        self.positions.insert(point.to_vec(), position);
        self.rows.push(row);
        self.fates.push(Fate::Pending);
        self.weights.push(0.0);
        position
    }

    /// Takes in what became of a point.
    fn observe(&mut self, coordinates: &Coordinates, point: &[usize], objective: Option<f64>) {
        let position = self.know(coordinates, point);
        self.fates[position] = match objective {
            Some(objective) => Fate::Succeeded(self.scale.scaled(objective)),
            None => Fate::Failed,
        };
        for candidate in &mut self.candidates {
            candidate.judge(&self.rows[position], self.fates[position]);
        }
        let Fate::Succeeded(value) = self.fates[position] else { return };
        if value < self.best {
            self.best = value;
            self.leader = Some(point.to_vec());
        }
        for i in position..self.fates.len() {
            let (row, diagonal) = self.factor.row(i);
            self.weights[i] = match self.fates[i] {
                Fate::Succeeded(value) => (value - dot(row, &self.weights[..i])) / diagonal,
                Fate::Pending | Fate::Failed => 0.0,
            };
        }
    }

    /// Makes candidates of those points that are left.
    fn enlist(
        &mut self,
        coordinates: &Coordinates,
        space: &dyn Space,
        unseen: &Unseen,
        points: Vec<Point>,
    ) {
        for point in points {
            if !unseen.has(space, &point) || !self.listed.insert(point.clone()) {
                continue;
            }
            let row = self.likeness.scaled(&coordinates.of(&point));
            let mut solved: Vec<f64> =
                self.rows.iter().map(|other| Likeness::between(other, &row)).collect();
            self.factor.solve(&mut solved, 0);
            let mut candidate = Candidate { point, row, solved, succeeded: CREDIT, failed: 0.0 };
            for (other, fate) in self.rows.iter().zip(&self.fates) {
                candidate.judge(other, *fate);
            }
            self.candidates.push(candidate);
        }
    }

    /// Takes out the unseen candidate of the highest expected improvement, to which neighbours of
    /// the best ones are climbed.
    fn take(
        &mut self,
        coordinates: &Coordinates,
        space: &dyn Space,
        unseen: &mut Unseen,
    ) -> Option<Point> {
        let sizes = space.sizes();
        let mut worths = Vec::new();
        let variance = self.variance();
        loop {
            let new = &self.candidates[worths.len()..];
            worths.extend(new.iter().map(|candidate| self.worth(candidate, variance)));
            let (best, _) = worths.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
            let point = self.candidates[best].point.clone();
            if unseen.has(space, &point) {
                let before = self.candidates.len();
                self.enlist(coordinates, space, unseen, hamming(&point, &sizes));
                if self.candidates.len() > before {
                    continue;
                }
            }
            worths.swap_remove(best);
            self.candidates.swap_remove(best);
            if unseen.take(&point) {
                return Some(point);
            }
        }
    }

    /// Logarithm of the expected improvement, by the chance of success.
    fn worth(&self, candidate: &Candidate, variance: f64) -> f64 {
        let mean = dot(&candidate.solved, &self.weights);
        let unknown = (1.0 - dot(&candidate.solved, &candidate.solved)).max(0.0);
        let deviation = (unknown * variance).sqrt().max(LEAST_DEVIATION);
        log_expected_improvement(mean, deviation, self.best) + candidate.log_success()
    }

    /// The likeliest variance of the process.
    fn variance(&self) -> f64 {
        let succeeded = self.fates.iter().filter(|fate| matches!(fate, Fate::Succeeded(_))).count();
        dot(&self.weights, &self.weights) / succeeded.max(1) as f64
    }
}

impl Candidate {
    /// Takes in how a point fared.
    fn judge(&mut self, row: &[f64], fate: Fate) {
        match fate {
            Fate::Succeeded(_) => self.succeeded += Likeness::between(&self.row, row),
            Fate::Failed => self.failed += Likeness::between(&self.row, row),
            Fate::Pending => {}
        }
    }

    /// Logarithm of the share of successes among points like this one.
    fn log_success(&self) -> f64 {
        (self.succeeded / (self.succeeded + self.failed)).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// Two parameters of nine values each.
    struct Square;

    impl Space for Square {
        fn sizes(&self) -> Vec<usize> {
            vec![9, 9]
        }

        fn is_valid(&self, _point: &[usize]) -> bool {
            true
        }
    }

    const POINTS: [([usize; 2], Option<f64>); 6] = [
        ([0, 0], Some(5.0)),
        ([8, 0], Some(3.0)),
        ([0, 8], None),
        ([4, 4], Some(1.0)),
        ([8, 8], Some(4.0)),
        ([2, 6], Some(2.0)),
    ];

    fn posterior() -> (Posterior, Coordinates) {
        let coordinates = Coordinates::new(&Square);
        let known: Vec<f64> = POINTS.iter().filter_map(|(_, objective)| *objective).collect();
        let mut posterior = Posterior::new(Likeness::new(2), Scale::of(&known));
        for (point, objective) in POINTS {
            posterior.observe(&coordinates, &point, objective);
        }
        let all = (0..81).map(|i| vec![i / 9, i % 9]).collect();
        posterior.enlist(&coordinates, &Square, &Unseen::default(), all);
        (posterior, coordinates)
    }

    fn of<'a>(posterior: &'a Posterior, point: &[usize]) -> &'a Candidate {
        posterior.candidates.iter().find(|c| c.point == point).expect("a candidate")
    }

    #[test]
    fn the_middle_comes_first_and_next_what_is_left_beside_it() {
        let (mut process, mut unseen) = (Process::default(), Unseen::default());
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut middle = || process.middle(&Square, &mut unseen, &mut rng);
        assert_eq!(middle(), Some(vec![4, 4]));
        assert_eq!(middle(), Some(vec![3, 4]));
    }

    #[test]
    fn predictions_go_through_what_was_observed() {
        let (posterior, _) = posterior();
        for (point, objective) in POINTS {
            let Some(objective) = objective else { continue };
            let mean = dot(&of(&posterior, &point).solved, &posterior.weights);
            let value = posterior.scale.scaled(objective);
            assert!((mean - value).abs() < 0.05, "{mean} at {point:?}, observed {value}");
        }
    }

    #[test]
    fn pending_points_make_others_certain_and_move_no_prediction() {
        let (mut posterior, coordinates) = posterior();
        let near = [5, 5];
        let mean = |p: &Posterior| dot(&of(p, &near).solved, &p.weights);
        let known = |p: &Posterior| dot(&of(p, &near).solved, &of(p, &near).solved);
        let before = (mean(&posterior), known(&posterior));
        posterior.know(&coordinates, &[5, 6]);
        assert_eq!(mean(&posterior), before.0);
        assert!(known(&posterior) > before.1 + 1e-3, "{} of {}", known(&posterior), before.1);
    }

    #[test]
    fn the_order_in_which_results_come_does_not_matter() {
        let (mut late, coordinates) = posterior();
        let mut early = Posterior::new(late.likeness.clone(), late.scale);
        for (point, objective) in [([6, 2], 2.5), ([1, 3], 0.5)] {
            late.know(&coordinates, &point);
            assert!(late.weights.last().is_some_and(|weight| *weight == 0.0), "{objective}");
        }
        late.observe(&coordinates, &[1, 3], Some(0.5));
        late.observe(&coordinates, &[6, 2], Some(2.5));
        for (point, objective) in POINTS {
            early.observe(&coordinates, &point, objective);
        }
        early.observe(&coordinates, &[6, 2], Some(2.5));
        early.observe(&coordinates, &[1, 3], Some(0.5));
        assert_eq!(early.weights, late.weights);
        assert_eq!(late.leader, Some(vec![1, 3]));
    }

    #[test]
    fn points_like_those_that_failed_are_worth_less() {
        let (posterior, _) = posterior();
        let success = |point: [usize; 2]| of(&posterior, &point).log_success();
        assert!(success([0, 8]) < success([0, 7]) && success([0, 7]) < success([4, 5]));
    }

    #[test]
    fn a_bounded_number_is_remembered_the_best_among_them() {
        let observed: Vec<Observed> =
            (0..1000).map(|i| (vec![i], (i % 3 != 0).then_some(i as f64))).collect();
        let kept = remembered(&observed, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(kept.len(), REMEMBERED);
        assert!((1..180).filter(|i| i % 3 != 0).all(|i| kept.contains(&observed[i])));
        assert!(kept.iter().any(|(_, objective)| objective.is_none()));
    }
}
