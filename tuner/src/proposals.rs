//! What a tuning run tries next: where the space of kernels meets a search strategy, which knows
//! nothing of them.

use crate::record::{Candidate, Status};
use crate::search::{Evaluation, Point, Space, Strategy};
use spanforge_device::Basis;
use spanforge_kernels::{Configuration, KernelSpec, SearchSpace};
use std::collections::VecDeque;

/// The default configurations, then what the strategy proposes, which is told what became of all.
pub(crate) struct Proposals<'a> {
    space: KernelSpace<'a>,
    default: KernelSpec,
    /// It and other good guesses, which are evaluated first.
    guesses: Vec<KernelSpec>,
    strategy: Box<dyn Strategy>,
    /// What was proposed and it has not been told of; `None` where it would not know it.
    asked: VecDeque<Option<Point>>,
    guessed: usize,
}

impl<'a> Proposals<'a> {
    pub(crate) fn new(
        space: KernelSpace<'a>,
        default: Configuration,
        guesses: &[Configuration],
        strategy: Box<dyn Strategy>,
    ) -> Self {
        let spec = |configuration| KernelSpec { shape: space.space.shape(), configuration };
        let default = spec(default);
        let others = guesses.iter().copied().map(spec).filter(|guess| *guess != default);
        let guesses = std::iter::once(default).chain(others).collect();
        Self { space, default, guesses, strategy, asked: VecDeque::new(), guessed: 0 }
    }

    pub(crate) fn default(&self) -> &KernelSpec {
        &self.default
    }

    /// The next one to evaluate.
    pub(crate) fn next(&mut self) -> Option<KernelSpec> {
        if let Some(guess) = self.guesses.get(self.guessed) {
            self.guessed += 1;
            // A guess is a good one, so the strategy is told, and its neighbours are worth a look.
            self.asked.push_back(self.space.space.point_of(&guess.configuration));
            return Some(*guess);
        }
        loop {
            let point = self.strategy.propose(&self.space)?;
            match self.space.space.at(&point) {
                // It was among the first, and what became of it is told in any case.
                Some(configuration)
                    if self.guesses.iter().any(|g| g.configuration == configuration) => {}
                Some(configuration) => {
                    self.asked.push_back(Some(point));
                    return Some(KernelSpec { configuration, ..self.default });
                }
                None => {}
            }
        }
    }

    /// What became of the first that the strategy has not been told of.
    pub(crate) fn tell(&mut self, candidate: &Candidate) {
        if let Some(Some(point)) = self.asked.pop_front() {
            self.observe(&point, candidate);
        }
    }

    fn observe(&mut self, point: &[usize], candidate: &Candidate) {
        // What a GPU takes counts. On an emulated one a run is to repeat, and all cost the same.
        let cost_seconds = match candidate.basis {
            Basis::Measured => candidate.compile_s + candidate.check_s + candidate.time_s,
            Basis::Predicted => 1.0,
        };
        let objective = candidate.time_us.filter(|_| candidate.status == Status::Correct);
        self.strategy.observe(&self.space, &Evaluation { point, objective, cost_seconds });
    }
}

/// The kernels' space as strategies see it, with what another run took for the best.
pub(crate) struct KernelSpace<'a> {
    space: &'a SearchSpace,
    /// The best first.
    guide: Vec<Point>,
}

impl<'a> KernelSpace<'a> {
    /// The space with the kernels of `guide` that are in it, the best first.
    pub(crate) fn new(space: &'a SearchSpace, guide: &[KernelSpec]) -> Self {
        let guide = guide.iter().filter(|spec| spec.shape == space.shape());
        let guide = guide.filter_map(|spec| space.point_of(&spec.configuration)).collect();
        Self { space, guide }
    }
}

impl Space for SearchSpace {
    fn sizes(&self) -> Vec<usize> {
        self.parameters().iter().map(|p| p.values.len()).collect()
    }

    fn is_valid(&self, point: &[usize]) -> bool {
        self.at(point).is_some_and(|c| self.broken_constraint(&c).is_none())
    }

    fn is_ordered(&self, parameter: usize) -> bool {
        self.parameters()[parameter].words.is_empty()
    }

    fn number(&self, parameter: usize, value: usize) -> Option<f64> {
        let parameter = &self.parameters()[parameter];
        parameter.words.is_empty().then(|| f64::from(parameter.values[value]))
    }
}

impl Space for KernelSpace<'_> {
    fn sizes(&self) -> Vec<usize> {
        self.space.sizes()
    }

    fn is_valid(&self, point: &[usize]) -> bool {
        self.space.is_valid(point)
    }

    fn is_ordered(&self, parameter: usize) -> bool {
        self.space.is_ordered(parameter)
    }

    fn number(&self, parameter: usize, value: usize) -> Option<f64> {
        self.space.number(parameter, value)
    }

    fn predicted_best(&self) -> Vec<Point> {
        self.guide.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::Exhaustive;
    use spanforge_kernels::{KernelShape, Limits};
    use spanforge_spans::Dtype;
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
            status: if wrong { Status::Correctness } else { Status::Correct },
            time_us: (!wrong).then_some(index as f64 + 1.0),
            ..Candidate::begun("", index, spec, Basis::Predicted, 0)
        }
    }

    #[test]
    fn a_strategy_is_told_of_every_point_in_the_order_of_its_proposals() {
        let shape = KernelShape::new(Dtype::F16, 64, 4);
        let limits = Limits {
            shared_bytes_per_block: 227 << 10,
            shared_bytes_per_multiprocessor: 228 << 10,
            threads_per_multiprocessor: 2048,
            warpgroups: true,
        };
        let space = SearchSpace::new(shape, limits);
        // A default that the strategy comes to itself, as its tenth point.
        let mut inner = Exhaustive::default();
        let mut points = std::iter::from_fn(|| inner.propose(&space));
        let default = space.at(&points.nth(9).expect("ten valid points")).expect("a configuration");
        let told = Told::default();
        let listening = Listening { inner: Exhaustive::default(), told: Arc::clone(&told) };
        let mut proposals =
            Proposals::new(KernelSpace::new(&space, &[]), default, &[], Box::new(listening));
        let mut candidates: Vec<Candidate> = Vec::new();
        // Four are under way at a time.
        let mut under_way = VecDeque::new();
        for index in 0..12 {
            under_way.push_back(candidate(index, proposals.next().expect("a large space")));
            if index >= 3 {
                let candidate: Candidate = under_way.pop_front().expect("four");
                proposals.tell(&candidate);
                candidates.push(candidate);
                // The default too, though the strategy comes to it itself only later.
                assert_eq!(told.lock().expect("one thread").len(), candidates.len(), "{index}");
            }
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
