//! Values of expressions and of parameters, compared as Python compares them.

use serde::Serialize;
use std::cmp::Ordering;
use std::fmt;

/// A value. Booleans count as 0 and 1 among numbers, and 1 equals 1.0.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// `True` or `False`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A string.
    Text(String),
    /// A list or a tuple.
    List(Vec<Value>),
}

impl Value {
    /// The value of a JSON value; what has no counterpart becomes its text.
    pub fn from_json(json: &serde_json::Value) -> Self {
        match json {
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::String(text) => Self::Text(text.clone()),
            serde_json::Value::Array(values) => {
                Self::List(values.iter().map(Self::from_json).collect())
            }
            other => match (other.as_i64(), other.as_f64()) {
                (Some(value), _) => Self::Int(value),
                (None, Some(value)) => Self::Float(value),
                (None, None) => Self::Text(other.to_string()),
            },
        }
    }

    /// Whether Python takes the value for true.
    pub fn is_true(&self) -> bool {
        match self {
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(values) => !values.is_empty(),
        }
    }

    /// The value as a whole number, if it is one or a boolean.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Bool(value) => Some(i64::from(*value)),
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The value as a number, if it is one or a boolean.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            other => other.as_int().map(|value| value as f64),
        }
    }

    /// The order of two numbers or two texts; `None` for anything else.
    pub fn order(&self, other: &Self) -> Option<Ordering> {
        if let (Some(a), Some(b)) = (self.as_int(), other.as_int()) {
            return Some(a.cmp(&b));
        }
        if let (Self::Text(a), Self::Text(b)) = (self, other) {
            return Some(a.cmp(b));
        }
        self.as_float()?.partial_cmp(&other.as_float()?)
    }

    /// The kind, for error messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "a whole number",
            Self::Float(_) => "a float",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
        }
    }

    /// Number of parts that a copy copies.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Text(text) => 1 + text.len() as u64,
            Self::List(values) => 1 + values.iter().map(Self::weight).sum::<u64>(),
            _ => 1,
        }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) => a == b,
            _ => self.order(other) == Some(Ordering::Equal),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Text(text) => f.write_str(text),
            Self::List(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    let gap = if index == 0 { "" } else { ", " };
                    write!(f, "{gap}{value}")?;
                }
                f.write_str("]")
            }
        }
    }
}
