//! What a tuning run tries next: where the space of kernels meets a search strategy, which knows
//! nothing of them.

use crate::record::{Candidate, Status};
use crate::search::{Evaluation, Point, Strategy};
use spanforge_device::Basis;
use spanforge_kernels::{Configuration, KernelSpec, SearchSpace};

/// The default configuration, then what the strategy proposes, which is told what became of it.
pub(crate) struct Proposals<'a> {
    space: &'a SearchSpace,
    default: KernelSpec,
    strategy: Box<dyn Strategy>,
    /// Proposed points that it has not been told of; `None` for the default.
    asked: Vec<Option<Point>>,
    begun: bool,
}

impl<'a> Proposals<'a> {
    pub(crate) fn new(
        space: &'a SearchSpace,
        default: Configuration,
        strategy: Box<dyn Strategy>,
    ) -> Self {
        let default = KernelSpec { shape: space.shape(), configuration: default };
        Self { space, default, strategy, asked: Vec::new(), begun: false }
    }

    pub(crate) fn default(&self) -> &KernelSpec {
        &self.default
    }

    /// The next few, to be evaluated side by side. `candidates` are all that were evaluated.
    pub(crate) fn take(&mut self, count: usize, candidates: &[Candidate]) -> Vec<KernelSpec> {
        let mut specs = Vec::with_capacity(count);
        if count > 0 && !std::mem::replace(&mut self.begun, true) {
            specs.push(self.default);
            self.asked.push(None);
        }
        while specs.len() < count {
            let Some(point) = self.strategy.propose(self.space) else { break };
            match self.space.at(&point) {
                // It was first; a strategy that comes to it learns what became of it.
                Some(configuration) if configuration == self.default.configuration => {
                    if let Some(candidate) = candidates.first() {
                        self.observe(&point, candidate);
                    }
                }
                Some(configuration) => {
                    specs.push(KernelSpec { configuration, ..self.default });
                    self.asked.push(Some(point));
                }
                None => {}
            }
        }
        specs
    }

    /// What became of those that were taken last, in their order.
    pub(crate) fn tell(&mut self, candidates: &[Candidate]) {
        for (point, candidate) in std::mem::take(&mut self.asked).iter().zip(candidates) {
            if let Some(point) = point {
                self.observe(point, candidate);
            }
        }
    }

    fn observe(&mut self, point: &[usize], candidate: &Candidate) {
        // What a GPU takes counts. On an emulated one a run is to repeat, and all cost the same.
        let cost_seconds = match candidate.basis {
            Basis::Measured => candidate.compile_s + candidate.check_s + candidate.time_s,
            Basis::Predicted => 1.0,
        };
        let objective = candidate.time_us.filter(|_| candidate.status == Status::Correct);
        self.strategy.observe(self.space, &Evaluation { point, objective, cost_seconds });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::{Exhaustive, Space};
    use spanforge_kernels::{KernelShape, Limits};
    use spanforge_spans::Dtype;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    type Told = Arc<Mutex<Vec<(Point, Option<f64>)>>>;

    /// Goes through the space in order and writes down what it is told.
    struct Listening {
        inner: Exhaustive,
        told: Told,
    }

    impl Strategy for Listening {
        fn name(&self) -> &'static str {
            "listening"
        }

        fn propose(&mut self, space: &dyn Space) -> Option<Point> {
            self.inner.propose(space)
        }

        fn observe(&mut self, _space: &dyn Space, evaluation: &Evaluation<'_>) {
            let entry = (evaluation.point.to_vec(), evaluation.objective);
            self.told.lock().expect("one thread").push(entry);
        }
    }

    /// The candidate of this number: every third one computes something wrong.
    fn candidate(index: usize, spec: KernelSpec) -> Candidate {
        let wrong = index % 3 == 2;
        Candidate {
            run: String::new(),
            index,
            id: spec.to_string(),
            spec,
            status: if wrong { Status::Correctness } else { Status::Correct },
            detail: None,
            cases: 1,
            first_case_seed: 0,
            max_abs_error: 0.0,
            bytes_ratio: None,
            basis: Basis::Predicted,
            samples_us: Vec::new(),
            time_us: (!wrong).then_some(index as f64 + 1.0),
            predictions: Vec::new(),
            resources: BTreeMap::new(),
            shared_bytes: 0,
            compile_s: 0.0,
            check_s: 0.0,
            time_s: 0.0,
        }
    }

    #[test]
    fn a_strategy_is_told_of_every_point_before_it_is_asked_for_more() {
        let shape = KernelShape { dtype: Dtype::F16, head_dim: 64, group_size: 4 };
        let limits = Limits {
            shared_bytes_per_block: 227 << 10,
            shared_bytes_per_multiprocessor: 228 << 10,
            threads_per_multiprocessor: 2048,
        };
        let space = SearchSpace::new(shape, limits);
        // A default that the strategy comes to itself, in the third round.
        let mut inner = Exhaustive::default();
        let mut points = std::iter::from_fn(|| inner.propose(&space));
        let default = space.at(&points.nth(9).expect("ten valid points")).expect("a configuration");
        let told = Told::default();
        let listening = Listening { inner: Exhaustive::default(), told: Arc::clone(&told) };
        let mut proposals = Proposals::new(&space, default, Box::new(listening));
        let mut candidates: Vec<Candidate> = Vec::new();
        for round in 1..=3 {
            let specs = proposals.take(4, &candidates);
            assert_eq!(specs.len(), 4);
            let from = candidates.len();
            candidates.extend((from..).zip(specs).map(|(index, spec)| candidate(index, spec)));
            proposals.tell(&candidates[from..]);
            // All but the default, and that once the strategy has come to it.
            let expected = 4 * round - usize::from(round < 3);
            assert_eq!(told.lock().expect("one thread").len(), expected, "round {round}");
        }
        assert_eq!(candidates[0].spec.configuration, default);
        for (point, objective) in told.lock().expect("one thread").iter() {
            let configuration = space.at(point).expect("a configuration");
            let same = |c: &&Candidate| c.spec.configuration == configuration;
            let candidate = candidates.iter().find(same).expect("it was evaluated");
            assert_eq!(*objective, candidate.time_us, "{}", candidate.id);
        }
        assert!(told.lock().expect("one thread").iter().any(|(_, objective)| objective.is_none()));
    }
}
