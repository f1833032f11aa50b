//! Nested expressions, evaluated one operation a step.
//!
//! ```text
//! ^(((8-2)+(1*9))+4);a<8-2>8-2=6;b<1*9>1*9=9;c<a+b>6+9=15;d<c+4>15+4=19;$
//!
//! prompt      = "^" expression ";"
//! expression  = number | "(" expression operator expression ")"
//! response    = { step } "$"
//! step        = id "<" reference operator reference ">" number operator number "=" number ";"
//! reference   = number | id of an earlier step
//! operator    = "+" | "-" | "*"
//! ```
//!
//! The k-th `)` of the expression is step k, and ids are the letters from `a` in that order. The
//! declaration of a step is its operation with references, so that its computation needs the
//! declared lines and never the expression: the declared lines are minimal by construction.

mod expression;
mod generate;
mod verdict;

use crate::{Sample, Vocabulary};
use expression::Expression;

pub use expression::ExpressionError;
pub use generate::{Difficulty, DifficultyError, Generator};
pub use verdict::{PromptError, Verdict, evaluate};

/// Ids of the steps, in order.
const IDS: &str = "abcdefghijkl";

/// The most operands of an expression: one more than there are ids of steps.
pub const MAX_OPERANDS: u32 = IDS.len() as u32 + 1;

/// The 34 characters of the task, special ones first: `_` fills up, `^` begins, `$` ends.
pub fn vocabulary() -> Vocabulary {
    Vocabulary::of_characters(&format!("0123456789+-*()<>=;{IDS}"))
}

/// An expression with its gold response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Prompt and response; no part of the prompt is named.
    pub sample: Sample,
    /// The value of the expression.
    pub answer: u32,
    /// The ids that each step declares, left one first.
    pub declared: Vec<Vec<char>>,
}

impl Problem {
    /// The problem of a fully parenthesised expression, such as `((8-2)+4)`.
    pub fn new(expression: &str) -> Result<Self, ExpressionError> {
        expression.parse().map(|expression| Self::of(&expression))
    }

    fn of(expression: &Expression) -> Self {
        let steps = expression.steps();
        let mut response: String = steps.iter().map(|step| step.line.as_str()).collect();
        response.push('$');
        let prompt = format!("^{expression};");
        Self {
            sample: Sample { prompt, names: Vec::new(), response },
            answer: expression.value(),
            declared: steps.into_iter().map(|step| step.declared).collect(),
        }
    }

    /// The expression, without the marks of the prompt.
    pub fn expression(&self) -> &str {
        self.sample.prompt.trim_start_matches('^').trim_end_matches(';')
    }
}
