//! Expressions: their text, their value and their steps.

use std::fmt;
use std::str::FromStr;

use super::{IDS, MAX_OPERANDS};

/// What is wrong with the text of an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpressionError {
    /// Not an expression.
    #[error(
        "character {at} of the expression {text:?}: expected {expected}; every operation has its \
         parentheses, as in ((8-2)+4)"
    )]
    Malformed {
        /// The whole text.
        text: String,
        /// Where, from 0.
        at: usize,
        /// What could stand there.
        expected: &'static str,
    },
    /// More steps than ids.
    #[error("the expression {0:?} has more than {MAX_OPERANDS} operands; shorten it")]
    TooManyOperands(String),
    /// A number without an operation.
    #[error("the expression {0:?} has no operation, so there is no step to take")]
    NoOperation(String),
    /// A value that is negative or too large.
    #[error("{left}{operator}{right} in the expression {text:?} is not in 0 to {}", u32::MAX)]
    OutOfRange {
        /// The whole text.
        text: String,
        /// Left operand.
        left: u32,
        /// `+`, `-` or `*`.
        operator: char,
        /// Right operand.
        right: u32,
    },
}

/// An operation on two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
}

impl Operator {
    pub(super) const ALL: [Self; 3] = [Self::Add, Self::Subtract, Self::Multiply];

    pub(super) const fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Subtract => '-',
            Self::Multiply => '*',
        }
    }

    pub(super) fn from_symbol(symbol: char) -> Option<Self> {
        Self::ALL.into_iter().find(|operator| operator.symbol() == symbol)
    }

    /// The result, or `None` where it is negative or too large.
    pub(super) fn apply(self, left: u32, right: u32) -> Option<u32> {
        match self {
            Self::Add => left.checked_add(right),
            Self::Subtract => left.checked_sub(right),
            Self::Multiply => left.checked_mul(right),
        }
    }
}

/// A number, or an operation in parentheses with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    Number(u32),
    Operation { left: Box<Self>, operator: Operator, right: Box<Self>, value: u32 },
}

/// One step of the gold response.
pub(super) struct Step {
    /// With its `;`.
    pub line: String,
    pub declared: Vec<char>,
}

impl Expression {
    /// The operation, or `None` where its value is negative or too large.
    pub(super) fn operation(left: Self, operator: Operator, right: Self) -> Option<Self> {
        let value = operator.apply(left.value(), right.value())?;
        Some(Self::Operation { left: Box::new(left), operator, right: Box::new(right), value })
    }

    pub(super) fn value(&self) -> u32 {
        match self {
            Self::Number(value) | Self::Operation { value, .. } => *value,
        }
    }

    /// The steps in the order of closing parentheses.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        self.add_steps(&mut steps);
        steps
    }

    /// Adds the steps up to this value. Returns the id of the last one, or `None` for a number,
    /// which takes no step.
    fn add_steps(&self, steps: &mut Vec<Step>) -> Option<char> {
        let Self::Operation { left, operator, right, value } = self else { return None };
        let (left_id, right_id) = (left.add_steps(steps), right.add_steps(steps));
        let reference =
            |id: Option<char>, of: &Self| id.map_or(of.value().to_string(), |id| id.to_string());
        // No more operands than MAX_OPERANDS are made or read.
        let id = IDS.chars().nth(steps.len())?;
        let (a, b, symbol) = (left.value(), right.value(), operator.symbol());
        let (left, right) = (reference(left_id, left), reference(right_id, right));
        let line = format!("{id}<{left}{symbol}{right}>{a}{symbol}{b}={value};");
        steps.push(Step { line, declared: left_id.into_iter().chain(right_id).collect() });
        Some(id)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(value) => write!(f, "{value}"),
            Self::Operation { left, operator, right, .. } => {
                write!(f, "({left}{}{right})", operator.symbol())
            }
        }
    }
}

impl FromStr for Expression {
    type Err = ExpressionError;
    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        let mut reader = Reader { text, characters: text.chars().collect(), at: 0, operands: 0 };
        let expression = reader.expression(0)?;
        if reader.at < reader.characters.len() {
            return Err(reader.malformed("the end"));
        }
        match expression {
            Self::Number(_) => Err(ExpressionError::NoOperation(text.to_owned())),
            Self::Operation { .. } => Ok(expression),
        }
    }
}

/// A recursive descent over the characters, no deeper than the deepest expression that has ids.
struct Reader<'a> {
    text: &'a str,
    characters: Vec<char>,
    at: usize,
    operands: u32,
}

impl Reader<'_> {
    fn malformed(&self, expected: &'static str) -> ExpressionError {
        ExpressionError::Malformed { text: self.text.to_owned(), at: self.at, expected }
    }

    fn expression(&mut self, depth: u32) -> Result<Expression, ExpressionError> {
        if depth >= MAX_OPERANDS {
            return Err(ExpressionError::TooManyOperands(self.text.to_owned()));
        }
        if self.characters.get(self.at) != Some(&'(') {
            return self.number();
        }
        self.at += 1;
        let left = self.expression(depth + 1)?;
        let operator = self.characters.get(self.at).and_then(|c| Operator::from_symbol(*c));
        let operator = operator.ok_or_else(|| self.malformed("one of + - *"))?;
        self.at += 1;
        let right = self.expression(depth + 1)?;
        if self.characters.get(self.at) != Some(&')') {
            return Err(self.malformed("a closing parenthesis"));
        }
        self.at += 1;
        let (a, b) = (left.value(), right.value());
        Expression::operation(left, operator, right).ok_or_else(|| ExpressionError::OutOfRange {
            text: self.text.to_owned(),
            left: a,
            operator: operator.symbol(),
            right: b,
        })
    }

    fn number(&mut self) -> Result<Expression, ExpressionError> {
        let digits = self.characters[self.at..].iter().take_while(|c| c.is_ascii_digit()).count();
        let number: String = self.characters[self.at..self.at + digits].iter().collect();
        // One way to write a number, so that an expression has one text.
        let number = number.parse().ok().filter(|value: &u32| value.to_string() == number);
        let number = number.ok_or_else(|| self.malformed("a number or ("))?;
        self.at += digits;
        self.operands += 1;
        if self.operands > MAX_OPERANDS {
            return Err(ExpressionError::TooManyOperands(self.text.to_owned()));
        }
        Ok(Expression::Number(number))
    }
}
