//! The arguments that choose a task and how difficult its problems are.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use spanforge_tasks::{Sample, Split, arithmetic, news};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A task, and problems of it.
#[derive(Args, Clone, Debug)]
pub struct TaskArguments {
    /// What is asked
    #[arg(long)]
    task: Task,
    /// Seed of the problems
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Operands of an expression [default: 3-8]
    #[arg(long, value_name = "N[-N]", help_heading = "Arithmetic")]
    operands: Option<Numbers>,
    /// Largest value of an expression, between or at the end [default: 99]
    #[arg(long, value_name = "N", help_heading = "Arithmetic")]
    largest_value: Option<u32>,
    /// Most digits of an operand [default: 1]
    #[arg(long, value_name = "N", help_heading = "Arithmetic")]
    operand_digits: Option<u32>,
}

/// A task of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// Nested expressions, step by step
    Arithmetic,
    /// Synthetic news articles
    Summarisation,
}

/// Some of the samples; no split has one of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitChoice {
    /// For the reported figures
    HeldOut,
    /// For choices made during training
    Validation,
    /// Trained on
    Train,
}

impl fmt::Display for SplitChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HeldOut => "held-out",
            Self::Validation => "validation",
            Self::Train => "train",
        })
    }
}

/// A number, or a range of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers(RangeInclusive<u32>);

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        match (from.trim().parse(), to.trim().parse()) {
            (Ok(from), Ok(to)) => Ok(Self(from..=to)),
            _ => Err("give a number, or two as in 3-8".to_owned()),
        }
    }
}

/// An endless stream of problems.
pub enum Generated {
    /// Expressions.
    Arithmetic(arithmetic::Generator),
    /// Articles.
    Summarisation(news::Generator),
}

impl TaskArguments {
    /// The problems of a split.
    pub fn problems(&self, split: SplitChoice) -> Result<Generated> {
        let split = match split {
            SplitChoice::HeldOut => Split::HeldOut,
            SplitChoice::Validation => Split::Validation,
            SplitChoice::Train => Split::Train,
        };
        Ok(match self.task {
            Task::Arithmetic => {
                let mut difficulty = arithmetic::Difficulty::default();
                if let Some(Numbers(operands)) = &self.operands {
                    difficulty.operands = operands.clone();
                }
                difficulty.largest_value = self.largest_value.unwrap_or(difficulty.largest_value);
                difficulty.operand_digits =
                    self.operand_digits.unwrap_or(difficulty.operand_digits);
                let generator = arithmetic::Generator::new(difficulty, split, self.seed)?;
                Generated::Arithmetic(generator)
            }
            Task::Summarisation => {
                let given = [
                    ("operands", self.operands.is_some()),
                    ("largest-value", self.largest_value.is_some()),
                    ("operand-digits", self.operand_digits.is_some()),
                ];
                if let Some((flag, _)) = given.iter().find(|(_, is_given)| *is_given) {
                    bail!("--{flag} is of expressions: leave it out with --task summarisation");
                }
                let difficulty = news::Difficulty::default();
                Generated::Summarisation(news::Generator::new(difficulty, split, self.seed)?)
            }
        })
    }

    /// Seed of the problems.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

impl fmt::Display for TaskArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = match self.task {
            Task::Arithmetic => "arithmetic",
            Task::Summarisation => "summarisation",
        };
        write!(f, "{task} of seed {}", self.seed)
    }
}

impl Iterator for Generated {
    type Item = Sample;

    fn next(&mut self) -> Option<Sample> {
        match self {
            Self::Arithmetic(generator) => generator.next().map(|problem| problem.sample),
            Self::Summarisation(generator) => generator.next().map(|article| article.sample),
        }
    }
}
