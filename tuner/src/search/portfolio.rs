//! The default strategy: a Gaussian process, and several other ways of choosing the next point once
//! it stops paying.
//!
//! The process needs the fewest evaluations on all recorded spaces, but may stay on a plateau where
//! it is wrong, which trees and descents leave. These are each used as much as they pay: crediting
//! ways by what they found of late is adaptive operator selection (Fialho et al., LION 3, 2009).

use super::model::{Model, Worth};
use super::process::Process;
use super::unseen::Unseen;
use super::walk::Walk;
use super::{Evaluation, Point, Space, Strategy};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// Points before there is anything to model, the middle of the space and a random one: the fewest,
/// for some budgets are as small.
const START: usize = 2;

/// A way of choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Process,
    Model(Worth),
    Walk,
}

/// Observations without an improvement from which on the process is not the only way.
const PATIENCE: usize = 20;

/// The ways, with the share of points that each is then sure of, whatever it pays.
const WAYS: [(Way, f64); 5] = [
    (Way::Process, 0.40),
    (Way::Model(Worth::Gain), 0.30),
    (Way::Model(Worth::Bound), 0.05),
    (Way::Model(Worth::Near), 0.10),
    (Way::Walk, 0.15),
];
/// Where the process is among them.
const PROCESS: usize = 0;
/// Share of points that goes to the ways in proportion to what they paid, on the same scale.
const PAID: f64 = 0.5;
/// What a payment is still worth one observation later: half after 23.
const MEMORY: f64 = 0.97;

/// Models and descents, switched by what pays.
pub struct Portfolio {
    rng: ChaCha8Rng,
    unseen: Unseen,
    process: Process,
    model: Model,
    walk: Walk,
    proposed: usize,
    /// Observations since the last improvement.
    fruitless: usize,
    /// Ways by which points that are not yet observed were chosen.
    chosen: HashMap<Point, usize>,
    /// Improvements that each way has found, old ones fading.
    paid: [f64; WAYS.len()],
}

impl Portfolio {
    /// A repeatable search.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            unseen: Unseen::default(),
            process: Process::default(),
            model: Model::default(),
            walk: Walk::new(),
            proposed: 0,
            fruitless: 0,
            chosen: HashMap::new(),
            paid: [0.0; WAYS.len()],
        }
    }

    /// Takes a point out that is proposed on another ground; whether it was left.
    pub(super) fn take(&mut self, point: &[usize]) -> bool {
        self.proposed += 1;
        self.unseen.take(point)
    }

    /// The process while it pays, then a way drawn by its share.
    fn way(&mut self) -> usize {
        if self.fruitless < PATIENCE {
            return PROCESS;
        }
        let all: f64 = self.paid.iter().sum();
        let paid = |way: usize| if all > 0.0 { PAID * self.paid[way] / all } else { 0.0 };
        let shares: Vec<f64> =
            WAYS.iter().enumerate().map(|(way, (_, sure))| sure + paid(way)).collect();
        let mut drawn = self.rng.random_range(0.0..shares.iter().sum());
        let within = |share: &f64| {
            drawn -= share;
            drawn < 0.0
        };
        shares.iter().position(within).unwrap_or(0)
    }
}

impl Strategy for Portfolio {
    fn name(&self) -> &'static str {
        "portfolio"
    }

    fn propose(&mut self, space: &dyn Space) -> Option<Point> {
        self.proposed += 1;
        if self.proposed == 1
            && let Some(point) = self.process.middle(space, &mut self.unseen, &mut self.rng)
        {
            return Some(point);
        }
        if self.proposed > START {
            let way = self.way();
            let point = match WAYS[way].0 {
                Way::Process => self.process.take(space, &mut self.unseen, &mut self.rng),
                Way::Model(worth) => self.model.take(space, worth, &mut self.unseen, &mut self.rng),
                Way::Walk => self.walk.take(space, &mut self.unseen, &mut self.rng),
            };
            if let Some(point) = point {
                self.chosen.insert(point.clone(), way);
                return Some(point);
            }
        }
        self.unseen.draw(space, &mut self.rng)
    }

    fn observe(&mut self, space: &dyn Space, evaluation: &Evaluation<'_>) {
        self.unseen.take(evaluation.point);
        let before = self.model.best();
        self.process.observe(space, evaluation);
        self.model.observe(space, evaluation);
        let improved = before.is_some() && self.model.best() < before;
        self.fruitless = if improved { 0 } else { self.fruitless + 1 };
        let Some(way) = self.chosen.remove(evaluation.point) else { return };
        if WAYS[way].0 == Way::Walk {
            self.walk.observe(space, evaluation, &self.model, &self.unseen, &mut self.rng);
        }
        for paid in &mut self.paid {
            *paid *= MEMORY;
        }
        if improved {
            self.paid[way] += 1.0;
        }
    }
}
