//! Replaying search strategies over recorded search spaces, so that they can be judged without a
//! GPU: every evaluation is answered from the record and charged what it took when it was recorded.

mod figures;
mod score;

pub use figures::{Figures, LEAST_EVALUATIONS, Share};
pub use score::{Scale, Score, aggregate};

use crate::formats::{Failure, Recording};
use crate::search::parameters::Parameter;
use crate::search::{Evaluation, ParameterSpace, Point, Space, Strategy, Value};
use rayon::prelude::{IntoParallelIterator, ParallelIterator};
use std::collections::HashMap;

/// A recorded search space: its valid points are those that were recorded, failed ones included.
#[derive(Debug)]
pub struct Recorded {
    parameters: Vec<Parameter>,
    sizes: Vec<usize>,
    outcomes: Vec<Outcome>,
    by_point: HashMap<Point, usize>,
    optimum: usize,
}

/// What became of a recorded configuration.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Value index of each parameter.
    pub point: Point,
    /// Time of the kernel in milliseconds, the median of its warm runs, or why there is none.
    pub time_ms: Result<f64, Failure>,
    /// Seconds that compiling took.
    pub compile_seconds: f64,
    /// Seconds that checking and timing took.
    pub measure_seconds: f64,
    /// Seconds that choosing the configuration and the tool itself took.
    pub other_seconds: f64,
}

impl Outcome {
    /// Seconds that are charged for evaluating the configuration.
    pub fn cost_seconds(&self) -> f64 {
        self.compile_seconds + self.measure_seconds + self.other_seconds
    }

    fn objective(&self) -> Option<f64> {
        self.time_ms.as_ref().ok().copied()
    }
}

/// A recording in which nothing ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("every recorded configuration failed, so there is no optimum to search for")]
pub struct NothingRan;

impl Recorded {
    /// The space of a recording. Where a configuration was recorded twice, the later record counts.
    ///
    /// # Errors
    /// No configuration of the recording ran.
    pub fn new(recording: Recording) -> Result<Self, NothingRan> {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(recording.entries.len());
        let mut by_point = HashMap::new();
        for entry in recording.entries {
            let no_time = || Failure::Other("no time".into());
            let phases = entry.phases;
            let outcome = Outcome {
                time_ms: entry.result.and_then(|runs| runs.objective_ms().ok_or_else(no_time)),
                compile_seconds: phases.compile_ms / 1e3,
                measure_seconds: (phases.verification_ms + phases.benchmark_ms) / 1e3,
                other_seconds: (phases.framework_ms + phases.strategy_ms) / 1e3,
                point: entry.point,
            };
            match by_point.get(&outcome.point) {
                Some(index) => outcomes[*index] = outcome,
                None => {
                    by_point.insert(outcome.point.clone(), outcomes.len());
                    outcomes.push(outcome);
                }
            }
        }
        let ran = (0..outcomes.len()).filter_map(|i| Some((i, outcomes[i].objective()?)));
        let best = ran.min_by(|(_, a), (_, b)| a.total_cmp(b));
        let (optimum, _) = best.ok_or(NothingRan)?;
        let sizes = recording.parameters.iter().map(|p| p.values.len()).collect();
        Ok(Self { parameters: recording.parameters, sizes, outcomes, by_point, optimum })
    }

    /// Checks that every recorded configuration is a valid point of the described space.
    ///
    /// # Errors
    /// What is not, in words.
    pub fn check_within(&self, described: &ParameterSpace) -> Result<(), String> {
        let is_known = |p: &Parameter| described.parameters().iter().any(|d| d.name == p.name);
        if let Some(unknown) = self.parameters.iter().find(|p| !is_known(p)) {
            return Err(format!("that has no parameter `{}`", unknown.name));
        }
        for (index, outcome) in self.outcomes.iter().enumerate() {
            let value = |name: &str| {
                let at = self.parameters.iter().position(|p| p.name == name)?;
                self.parameters[at].values.get(outcome.point[at]).cloned()
            };
            let here = |error: String| format!("configuration {}: {error}", self.key(index));
            let point = described.point_of(&value).map_err(|error| here(error.to_string()))?;
            if let Some(broken) = described.pruned_by(&point) {
                return Err(here(format!("it breaks `{}`", broken.name)));
            }
        }
        Ok(())
    }

    /// The parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What became of each configuration.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// The fastest configuration, the first of equals, as an index into the outcomes.
    pub fn optimum(&self) -> usize {
        self.optimum
    }

    /// Time of the fastest configuration, in milliseconds.
    pub fn optimum_ms(&self) -> f64 {
        self.outcomes[self.optimum].objective().unwrap_or(f64::INFINITY)
    }

    /// Times of all configurations that ran, in milliseconds, ascending.
    pub fn sorted_times(&self) -> Vec<f64> {
        let mut times: Vec<f64> = self.outcomes.iter().filter_map(Outcome::objective).collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// The values of a configuration in the order of the parameters: `16,1,True`.
    pub fn key(&self, outcome: usize) -> String {
        let values = self.parameters.iter().zip(&self.outcomes[outcome].point);
        let values: Vec<String> = values.map(|(p, index)| p.values[*index].to_string()).collect();
        values.join(",")
    }
}

impl Space for Recorded {
    fn sizes(&self) -> Vec<usize> {
        self.sizes.clone()
    }

    fn is_valid(&self, point: &[usize]) -> bool {
        self.by_point.contains_key(point)
    }

    fn is_ordered(&self, parameter: usize) -> bool {
        self.parameters.get(parameter).is_some_and(Parameter::is_ordered)
    }

    fn number(&self, parameter: usize, value: usize) -> Option<f64> {
        match self.parameters.get(parameter)?.values.get(value)? {
            Value::Int(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            Value::Bool(_) | Value::Text(_) | Value::List(_) => None,
        }
    }
}

/// How long a strategy is replayed.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// Until this many evaluations.
    Evaluations(usize),
    /// Until both this many evaluations and this many charged seconds.
    Both(usize, f64),
}

/// One replay of a strategy.
#[derive(Clone, Debug)]
pub struct Run {
    /// Seed of the strategy.
    pub seed: u64,
    /// Evaluations in order.
    pub steps: Vec<Step>,
    /// Whether the strategy had nothing more to propose.
    pub is_exhausted: bool,
}

/// One evaluation of a replay.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The configuration, as an index into the outcomes.
    pub outcome: usize,
    /// Seconds charged up to its end.
    pub elapsed_seconds: f64,
    /// Best time so far, in milliseconds; `None` where all failed so far.
    pub best_ms: Option<f64>,
}

/// Proposals in a row that are no use before a strategy is taken for exhausted: the interface
/// forbids them, but a mistake in a strategy shall not hang a replay.
const USELESS_PROPOSALS: usize = 100_000;

/// Replays a strategy over a recorded space.
pub fn replay(space: &Recorded, strategy: &mut dyn Strategy, seed: u64, until: Until) -> Run {
    let mut run = Run { seed, steps: Vec::new(), is_exhausted: false };
    let mut seen = vec![false; space.outcomes.len()];
    let (mut elapsed, mut best, mut useless) = (0.0, None::<f64>, 0);
    let is_over = |evaluations: usize, seconds: f64| match until {
        Until::Evaluations(most) => evaluations >= most,
        Until::Both(least, budget) => evaluations >= least && seconds >= budget,
    };
    while !is_over(run.steps.len(), elapsed) {
        let proposed = strategy.propose(space).filter(|_| useless < USELESS_PROPOSALS);
        let Some(point) = proposed else {
            run.is_exhausted = true;
            break;
        };
        let known = space.by_point.get(&point).copied();
        let Some(index) = known.filter(|index| !std::mem::replace(&mut seen[*index], true)) else {
            useless += 1;
            continue;
        };
        useless = 0;
        let outcome = &space.outcomes[index];
        let (objective, cost_seconds) = (outcome.objective(), outcome.cost_seconds());
        elapsed += cost_seconds;
        best = match (best, objective) {
            (Some(best), Some(time)) => Some(best.min(time)),
            (best, time) => best.or(time),
        };
        run.steps.push(Step { outcome: index, elapsed_seconds: elapsed, best_ms: best });
        strategy.observe(space, &Evaluation { point: &point, objective, cost_seconds });
    }
    run
}

/// Replays a strategy `repeats` times in parallel, with the seeds from `seed` on; `finished` is
/// called after each.
pub fn repeats(
    space: &Recorded,
    make: &(dyn Fn(u64) -> Box<dyn Strategy> + Sync),
    seed: u64,
    repeats: usize,
    until: Until,
    finished: &(dyn Fn() + Sync),
) -> Vec<Run> {
    (0..repeats)
        .into_par_iter()
        .map(|repeat| {
            let seed = seed.wrapping_add(repeat as u64);
            let run = replay(space, &mut *make(seed), seed, until);
            finished();
            run
        })
        .collect()
}
