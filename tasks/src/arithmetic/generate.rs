//! Random expressions of a chosen difficulty.

use std::ops::RangeInclusive;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::expression::{Expression, Operator};
use super::{MAX_OPERANDS, Problem};
use crate::Split;

/// What the expressions are like. The default is that of the study the recipe comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Difficulty {
    /// Numbers of operands, each equally likely; within 2 to [`MAX_OPERANDS`].
    pub operands: RangeInclusive<u32>,
    /// No value, between or at the end, exceeds this; at least 9.
    pub largest_value: u32,
    /// Parentheses are nested no deeper than this.
    pub depth: u32,
    /// Operands have up to this many digits; they begin at 1. Within 1 to 4.
    pub operand_digits: u32,
    /// Probability with which an operation on two values from 10 is made a subtraction, larger one
    /// first, in [`Split::Train`] alone: what is measured stays unweighted.
    pub train_subtraction: f64,
}

impl Difficulty {
    /// The [`train_subtraction`](Self::train_subtraction) of the study: two-digit subtraction with
    /// a borrow was 21 of 24 errors without it and 2 of 600 answers with it.
    pub const STUDIED_SUBTRACTION: f64 = 0.5;

    /// Most digits of an operand.
    const MAX_DIGITS: u32 = 4;

    fn check(&self) -> Result<(), DifficultyError> {
        let operands = self.operands.clone();
        if operands.is_empty() || *operands.start() < 2 || *operands.end() > MAX_OPERANDS {
            return Err(DifficultyError::Operands(operands));
        }
        if self.largest_value < 9 {
            return Err(DifficultyError::LargestValue(self.largest_value));
        }
        if leaves(self.depth) < *operands.end() {
            return Err(DifficultyError::Depth { depth: self.depth, operands: *operands.end() });
        }
        if !(1..=Self::MAX_DIGITS).contains(&self.operand_digits) {
            return Err(DifficultyError::Digits(self.operand_digits));
        }
        if !(0.0..=1.0).contains(&self.train_subtraction) {
            return Err(DifficultyError::Subtraction(self.train_subtraction));
        }
        Ok(())
    }
}

impl Default for Difficulty {
    fn default() -> Self {
        Self {
            operands: 3..=8,
            largest_value: 99,
            depth: 5,
            operand_digits: 1,
            train_subtraction: 0.0,
        }
    }
}

/// What is wrong with a difficulty.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DifficultyError {
    /// No expression, or one with more steps than ids.
    #[error(
        "operands {} to {}: give a range within 2 to {MAX_OPERANDS}, smaller one first",
        .0.start(), .0.end()
    )]
    Operands(RangeInclusive<u32>),
    /// Not even every digit is a value.
    #[error("the largest value {0} leaves out operands of one digit: give at least 9")]
    LargestValue(u32),
    /// The tree has too few leaves.
    #[error(
        "{operands} operands do not fit into depth {depth}: allow more depth or fewer operands"
    )]
    Depth {
        /// The depth asked for.
        depth: u32,
        /// The most operands asked for.
        operands: u32,
    },
    /// No operand, or one beyond what is foreseen.
    #[error("operands of up to {0} digits: give 1 to {max}", max = Difficulty::MAX_DIGITS)]
    Digits(u32),
    /// Not a probability.
    #[error("the share of forced subtractions {0} is not a probability: give 0 to 1")]
    Subtraction(f64),
}

/// An endless stream of problems of one split. It is the same for the same seed on every platform.
#[derive(Debug, Clone)]
pub struct Generator {
    difficulty: Difficulty,
    split: Split,
    rng: ChaCha8Rng,
}

impl Generator {
    /// A stream of problems.
    pub fn new(difficulty: Difficulty, split: Split, seed: u64) -> Result<Self, DifficultyError> {
        difficulty.check()?;
        Ok(Self { difficulty, split, rng: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// A random tree of `operands` leaves and at most `depth` levels of operations.
    fn tree(&mut self, operands: u32, depth: u32) -> Expression {
        if operands == 1 {
            let largest = self.difficulty.largest_value;
            let largest = largest.min(10u32.pow(self.difficulty.operand_digits) - 1);
            return Expression::Number(self.rng.random_range(1..=largest));
        }
        let most = leaves(depth - 1).min(operands - 1);
        let on_the_left = self.rng.random_range(operands - most..=most);
        let left = self.tree(on_the_left, depth - 1);
        let right = self.tree(operands - on_the_left, depth - 1);
        self.operation(left, right)
    }

    /// An operation uniform among those whose value is allowed; where there is none, the difference
    /// with the larger one first.
    fn operation(&mut self, left: Expression, right: Expression) -> Expression {
        let (a, b) = (left.value(), right.value());
        let forced = self.split == Split::Train
            && a >= 10
            && b >= 10
            && self.rng.random_bool(self.difficulty.train_subtraction);
        let allowed: Vec<Operator> = Operator::ALL
            .into_iter()
            .filter(|operator| {
                operator.apply(a, b).is_some_and(|value| value <= self.difficulty.largest_value)
            })
            .collect();
        let made = match allowed.len() as u32 {
            count if count > 0 && !forced => {
                let operator = allowed[self.rng.random_range(0..count) as usize];
                Expression::operation(left, operator, right)
            }
            _ if a >= b => Expression::operation(left, Operator::Subtract, right),
            _ => Expression::operation(right, Operator::Subtract, left),
        };
        made.expect("the operation was chosen for its value")
    }
}

impl Iterator for Generator {
    type Item = Problem;

    /// Draws until an expression belongs to the split, which one in fifty does at the least; even
    /// the least difficulty has expressions of every split.
    fn next(&mut self) -> Option<Problem> {
        loop {
            let operands = self.rng.random_range(self.difficulty.operands.clone());
            let expression = self.tree(operands, self.difficulty.depth);
            if Split::of(&expression.to_string()) == self.split {
                return Some(Problem::of(&expression));
            }
        }
    }
}

/// Most operands of an expression of a depth, as far as it matters.
fn leaves(depth: u32) -> u32 {
    1 << depth.min(5)
}
