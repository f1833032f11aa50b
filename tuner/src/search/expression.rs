//! Constraint expressions: the part of Python that constraints of tuning files are written in, read
//! and evaluated safely, so that such files can be used without Python.
//!
//! Numbers, strings, `True` and `False`, lists, list comprehensions, `range`, `list`, `min`, `max`,
//! `abs`, `+ - * / // % **`, chained comparisons, `in`, `and`, `or`, `not`, with the meaning that
//! Python gives them. Whole numbers are limited to 64 bits. Reading is bounded in nesting and
//! evaluating in steps, so no text makes either hang or exhaust the stack.

mod evaluate;
mod lex;
mod parse;
mod value;

pub use value::Value;

use evaluate::Evaluator;
use parse::Node;

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("character {position}: {message}")]
pub struct ExpressionError {
    /// Character at fault, counted from 1.
    pub position: usize,
    /// What is there and what was expected.
    pub message: String,
}

impl ExpressionError {
    fn new(position: usize, message: impl Into<String>) -> Self {
        Self { position, message: message.into() }
    }
}

/// A parsed expression.
#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    root: Node,
    names: Vec<String>,
}

impl Expression {
    /// Parses a text.
    ///
    /// # Errors
    /// The text is not an expression of the subset, or nests too deeply.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let root = parse::parse(text)?;
        let mut names = Vec::new();
        root.free_names(&mut Vec::new(), &mut names);
        Ok(Self { text: text.to_owned(), root, names })
    }

    /// The text as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Names that the expression reads from outside, in order of appearance.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The value, names being looked up in `lookup`.
    ///
    /// # Errors
    /// An unknown name, operands of the wrong kind, a division by zero, a number beyond 64 bits, or
    /// more work than a constraint can need.
    pub fn evaluate(
        &self,
        lookup: &dyn Fn(&str) -> Option<Value>,
    ) -> Result<Value, ExpressionError> {
        Evaluator::new(lookup).value(&self.root)
    }
}
