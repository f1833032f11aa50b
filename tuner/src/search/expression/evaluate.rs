//! Tree to value, in a bounded number of steps.

use super::parse::{Arithmetic, Clause, Comparison, Function, Kind, Node};
use super::{ExpressionError, Value};
use std::cmp::Ordering;

/// Steps of one evaluation: a node, or a part of a value copied. Value lists of real files need
/// some thousands.
const STEPS: u64 = 1_000_000;

type Result<T> = std::result::Result<T, ExpressionError>;

/// One evaluation.
pub struct Evaluator<'a> {
    lookup: &'a dyn Fn(&str) -> Option<Value>,
    /// Names of the comprehensions around the place being evaluated, innermost last.
    bound: Vec<(&'a str, Value)>,
    steps_left: u64,
}

impl<'a> Evaluator<'a> {
    pub fn new(lookup: &'a dyn Fn(&str) -> Option<Value>) -> Self {
        Self { lookup, bound: Vec::new(), steps_left: STEPS }
    }

    pub fn value(&mut self, node: &'a Node) -> Result<Value> {
        let position = node.position;
        self.spend(1, position)?;
        match &node.kind {
            Kind::Constant(value) => self.copy(value, position),
            Kind::Name(name) => self.name(name, position),
            Kind::List(nodes) => Ok(Value::List(self.values(nodes)?)),
            Kind::Comprehension { element, clauses } => {
                let mut list = Vec::new();
                self.comprehend(element, clauses, &mut list)?;
                Ok(Value::List(list))
            }
            Kind::Call { function, arguments } => {
                let arguments = self.values(arguments)?;
                self.call(*function, arguments, position)
            }
            Kind::Sign { minus, of } => {
                let value = self.value(of)?;
                let zero = Value::Int(0);
                let operator = if *minus { Arithmetic::Subtract } else { Arithmetic::Add };
                match value {
                    Value::Float(value) => Ok(Value::Float(if *minus { -value } else { value })),
                    value => self.arithmetic(operator, zero, value, position),
                }
            }
            Kind::Not(of) => Ok(Value::Bool(!self.value(of)?.is_true())),
            Kind::Chain { first, rest } => {
                let mut value = self.value(first)?;
                for (operator, node) in rest {
                    let right = self.value(node)?;
                    value = self.arithmetic(*operator, value, right, node.position)?;
                }
                Ok(value)
            }
            Kind::Power { base, exponent } => {
                let (base, exponent) = (self.value(base)?, self.value(exponent)?);
                power(&base, &exponent, position)
            }
            Kind::Compare { first, rest } => {
                let mut left = self.value(first)?;
                for (comparison, node) in rest {
                    let right = self.value(node)?;
                    if !self.compare(*comparison, &left, &right, node.position)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Kind::And(nodes) => self.first_that(nodes, false),
            Kind::Or(nodes) => self.first_that(nodes, true),
        }
    }

    fn spend(&mut self, steps: u64, position: usize) -> Result<()> {
        match self.steps_left.checked_sub(steps) {
            Some(left) => {
                self.steps_left = left;
                Ok(())
            }
            None => {
                let message = format!("needs more than {STEPS} steps to evaluate");
                Err(ExpressionError::new(position, message))
            }
        }
    }

    fn copy(&mut self, value: &Value, position: usize) -> Result<Value> {
        self.spend(value.weight(), position)?;
        Ok(value.clone())
    }

    fn name(&mut self, name: &str, position: usize) -> Result<Value> {
        let bound = self.bound.iter().rposition(|(bound, _)| *bound == name);
        let value = match bound {
            Some(index) => {
                self.spend(self.bound[index].1.weight(), position)?;
                Some(self.bound[index].1.clone())
            }
            None => (self.lookup)(name),
        };
        value.ok_or_else(|| ExpressionError::new(position, format!("unknown name `{name}`")))
    }

    fn values(&mut self, nodes: &'a [Node]) -> Result<Vec<Value>> {
        nodes.iter().map(|node| self.value(node)).collect()
    }

    /// The first value whose truth is `wanted`, or the last.
    fn first_that(&mut self, nodes: &'a [Node], wanted: bool) -> Result<Value> {
        let mut value = Value::Bool(!wanted);
        for node in nodes {
            value = self.value(node)?;
            if value.is_true() == wanted {
                break;
            }
        }
        Ok(value)
    }

    fn comprehend(
        &mut self,
        element: &'a Node,
        clauses: &'a [Clause],
        list: &mut Vec<Value>,
    ) -> Result<()> {
        let Some((clause, inner)) = clauses.split_first() else {
            list.push(self.value(element)?);
            return Ok(());
        };
        match clause {
            Clause::If(condition) => {
                if self.value(condition)?.is_true() {
                    self.comprehend(element, inner, list)?;
                }
            }
            Clause::For { name, values } => match self.value(values)? {
                Value::List(items) => {
                    for item in items {
                        self.spend(1, values.position)?;
                        self.bound.push((name, item));
                        let result = self.comprehend(element, inner, list);
                        self.bound.pop();
                        result?;
                    }
                }
                other => return Err(wrong("a list after `in`", &other, values.position)),
            },
        }
        Ok(())
    }

    fn call(&mut self, function: Function, arguments: Vec<Value>, at: usize) -> Result<Value> {
        match (function, arguments.as_slice()) {
            (Function::Range, [_] | [_, _] | [_, _, _]) => self.range(&arguments, at),
            (Function::Range, _) => Err(count("range", "1 to 3 numbers", arguments.len(), at)),
            (Function::List, [Value::List(_)]) => {
                Ok(arguments.into_iter().next().unwrap_or(Value::List(Vec::new())))
            }
            (Function::List, [other]) => Err(wrong("a list", other, at)),
            (Function::List, _) => Err(count("list", "a list", arguments.len(), at)),
            (Function::Abs, [value]) => match (value.as_int(), value.as_float()) {
                (Some(value), _) => {
                    value.checked_abs().map(Value::Int).ok_or_else(|| too_large(at))
                }
                (None, Some(value)) => Ok(Value::Float(value.abs())),
                (None, None) => Err(wrong("a number", value, at)),
            },
            (Function::Abs, _) => Err(count("abs", "a number", arguments.len(), at)),
            (Function::Min, [Value::List(items)]) => extreme(items, Ordering::Less, at),
            (Function::Max, [Value::List(items)]) => extreme(items, Ordering::Greater, at),
            (Function::Min | Function::Max, [other]) => Err(wrong("a list", other, at)),
            (Function::Min, items) => extreme(items, Ordering::Less, at),
            (Function::Max, items) => extreme(items, Ordering::Greater, at),
        }
    }

    fn range(&mut self, arguments: &[Value], at: usize) -> Result<Value> {
        let mut whole = [0, 0, 1];
        for (slot, value) in whole.iter_mut().zip(arguments) {
            *slot = value.as_int().ok_or_else(|| wrong("a whole number", value, at))?;
        }
        let [start, end, step] = match arguments.len() {
            1 => [0, whole[0], 1],
            _ => whole,
        };
        if step == 0 {
            return Err(ExpressionError::new(at, "a range cannot have steps of 0"));
        }
        let mut values = Vec::new();
        let mut next = Some(start);
        while let Some(value) = next.filter(|v| if step > 0 { *v < end } else { *v > end }) {
            self.spend(1, at)?;
            values.push(Value::Int(value));
            next = value.checked_add(step);
        }
        Ok(Value::List(values))
    }

    fn arithmetic(
        &mut self,
        operator: Arithmetic,
        left: Value,
        right: Value,
        at: usize,
    ) -> Result<Value> {
        if matches!(operator, Arithmetic::Add) {
            match (&left, &right) {
                (Value::Text(_), Value::Text(_)) | (Value::List(_), Value::List(_)) => {
                    self.spend(left.weight().saturating_add(right.weight()), at)?;
                }
                _ => {}
            }
        }
        match (operator, left, right) {
            (Arithmetic::Add, Value::Text(a), Value::Text(b)) => Ok(Value::Text(a + &b)),
            (Arithmetic::Add, Value::List(mut a), Value::List(b)) => {
                a.extend(b);
                Ok(Value::List(a))
            }
            (operator, left, right) => {
                if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
                    return whole(operator, a, b, at);
                }
                let number =
                    |value: &Value| value.as_float().ok_or_else(|| wrong("a number", value, at));
                floating(operator, number(&left)?, number(&right)?, at)
            }
        }
    }

    fn compare(
        &mut self,
        comparison: Comparison,
        left: &Value,
        right: &Value,
        at: usize,
    ) -> Result<bool> {
        // Texts and lists are compared part by part.
        self.spend(right.weight(), at)?;
        let ordered = || {
            left.order(right).ok_or_else(|| {
                let message = format!("cannot order {} and {}", left.kind(), right.kind());
                ExpressionError::new(at, message)
            })
        };
        Ok(match comparison {
            Comparison::Equal => left == right,
            Comparison::Unequal => left != right,
            Comparison::Less => ordered()?.is_lt(),
            Comparison::LessOrEqual => ordered()?.is_le(),
            Comparison::Greater => ordered()?.is_gt(),
            Comparison::GreaterOrEqual => ordered()?.is_ge(),
            Comparison::In => contains(right, left, at)?,
            Comparison::NotIn => !contains(right, left, at)?,
        })
    }
}

fn wrong(wanted: &str, found: &Value, at: usize) -> ExpressionError {
    ExpressionError::new(at, format!("expected {wanted}, found {}", found.kind()))
}

fn count(function: &str, wanted: &str, found: usize, at: usize) -> ExpressionError {
    ExpressionError::new(at, format!("`{function}` takes {wanted}, found {found} arguments"))
}

fn too_large(at: usize) -> ExpressionError {
    ExpressionError::new(at, "the result does not fit into 64 bits")
}

fn by_zero(at: usize) -> ExpressionError {
    ExpressionError::new(at, "division by zero")
}

fn contains(outer: &Value, inner: &Value, at: usize) -> Result<bool> {
    match (outer, inner) {
        (Value::List(values), _) => Ok(values.contains(inner)),
        (Value::Text(outer), Value::Text(inner)) => Ok(outer.contains(inner.as_str())),
        _ => Err(wrong("a list after `in`", outer, at)),
    }
}

/// The first item that no other one precedes in the `wanted` direction.
fn extreme(items: &[Value], wanted: Ordering, at: usize) -> Result<Value> {
    let Some((mut best, rest)) = items.split_first() else {
        return Err(ExpressionError::new(at, "expected at least one value"));
    };
    for item in rest {
        let order = item.order(best).ok_or_else(|| {
            let message = format!("cannot order {} and {}", best.kind(), item.kind());
            ExpressionError::new(at, message)
        })?;
        if order == wanted {
            best = item;
        }
    }
    Ok(best.clone())
}

fn whole(operator: Arithmetic, a: i64, b: i64, at: usize) -> Result<Value> {
    if b == 0
        && matches!(operator, Arithmetic::Divide | Arithmetic::FloorDivide | Arithmetic::Modulo)
    {
        return Err(by_zero(at));
    }
    // Python rounds quotients down, and gives remainders the sign of the divisor.
    let apart = (a < 0) != (b < 0);
    let result = match operator {
        Arithmetic::Add => a.checked_add(b),
        Arithmetic::Subtract => a.checked_sub(b),
        Arithmetic::Multiply => a.checked_mul(b),
        Arithmetic::Divide => return Ok(Value::Float(a as f64 / b as f64)),
        Arithmetic::FloorDivide => {
            a.checked_div(b).map(|q| q - i64::from(apart && a.wrapping_rem(b) != 0))
        }
        Arithmetic::Modulo => {
            let rest = a.wrapping_rem(b);
            Some(if rest != 0 && apart { rest + b } else { rest })
        }
    };
    result.map(Value::Int).ok_or_else(|| too_large(at))
}

fn floating(operator: Arithmetic, a: f64, b: f64, at: usize) -> Result<Value> {
    let rest = |a: f64, b: f64| {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    };
    let result = match operator {
        Arithmetic::Add => a + b,
        Arithmetic::Subtract => a - b,
        Arithmetic::Multiply => a * b,
        _ if b == 0.0 => return Err(by_zero(at)),
        Arithmetic::Divide => a / b,
        Arithmetic::FloorDivide => ((a - rest(a, b)) / b).round(),
        Arithmetic::Modulo => rest(a, b),
    };
    Ok(Value::Float(result))
}

fn power(base: &Value, exponent: &Value, at: usize) -> Result<Value> {
    if let (Some(base), Some(exponent)) = (base.as_int(), exponent.as_int())
        && exponent >= 0
    {
        let small = match base {
            0 | 1 => Some(if exponent == 0 { 1 } else { base }),
            -1 => Some(if exponent % 2 == 0 { 1 } else { -1 }),
            _ => u32::try_from(exponent).ok().and_then(|exponent| base.checked_pow(exponent)),
        };
        return small.map(Value::Int).ok_or_else(|| too_large(at));
    }
    let number = |value: &Value| value.as_float().ok_or_else(|| wrong("a number", value, at));
    let (base, exponent) = (number(base)?, number(exponent)?);
    if base == 0.0 && exponent < 0.0 {
        return Err(by_zero(at));
    }
    let result = base.powf(exponent);
    if result.is_finite() {
        Ok(Value::Float(result))
    } else {
        Err(ExpressionError::new(at, "the result is not a finite real number"))
    }
}
