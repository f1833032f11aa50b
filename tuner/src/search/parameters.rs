//! A search space of typed parameters under named constraints: which points are valid, which
//! constraint prunes a point, and drawing valid points without listing a large space.

use super::{Expression, ExpressionError, Point, Space, Value};
use rand::{Rng, RngExt};
use std::cmp::Ordering;
use std::sync::OnceLock;

/// What the values of a parameter are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whole numbers.
    Int,
    /// Floating-point numbers.
    Float,
    /// Booleans.
    Bool,
    /// Strings, or values of several kinds.
    Text,
}

/// A parameter and its values.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name, as constraints spell it.
    pub name: String,
    /// What its values are.
    pub kind: Kind,
    /// The values; a point holds an index into them.
    pub values: Vec<Value>,
}

impl Parameter {
    /// A parameter of the narrowest kind that all values have.
    pub fn new(name: impl Into<String>, values: Vec<Value>) -> Self {
        let all = |test: fn(&Value) -> bool| values.iter().all(test);
        let kind = if all(|v| matches!(v, Value::Bool(_))) {
            Kind::Bool
        } else if all(|v| matches!(v, Value::Int(_))) {
            Kind::Int
        } else if all(|v| matches!(v, Value::Int(_) | Value::Float(_))) {
            Kind::Float
        } else {
            Kind::Text
        };
        Self { name: name.into(), kind, values }
    }

    /// Whether the values are numbers that rise or fall throughout.
    pub fn is_ordered(&self) -> bool {
        let sorted = |order| self.values.windows(2).all(|w| w[0].order(&w[1]) == Some(order));
        matches!(self.kind, Kind::Int | Kind::Float)
            && (sorted(Ordering::Less) || sorted(Ordering::Greater))
    }
}

/// A condition that valid points keep.
#[derive(Clone, Debug)]
pub struct Constraint {
    /// Name, for reports.
    pub name: String,
    /// True for points that keep it.
    pub expression: Expression,
    /// Parameters that the expression reads, as indices.
    parameters: Vec<usize>,
}

/// What is wrong with the description of a space.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpaceError {
    /// There is nothing to search.
    #[error("a search space needs at least one parameter")]
    NoParameters,
    /// Two parameters have the same name.
    #[error("there are two parameters `{0}`")]
    TwoParameters(String),
    /// A parameter without values.
    #[error("parameter `{0}` has no values")]
    NoValues(String),
    /// A parameter with more values than anything tuned has.
    #[error("parameter `{0}` has more than {MOST_VALUES} values")]
    TooManyValues(String),
    /// The same value twice.
    #[error("parameter `{parameter}` has the value {value} twice")]
    TwoValues {
        /// The parameter.
        parameter: String,
        /// The value.
        value: String,
    },
    /// A constraint that is not an expression.
    #[error("constraint `{constraint}`: {error}")]
    Expression {
        /// Name of the constraint.
        constraint: String,
        /// What is wrong with its text.
        error: ExpressionError,
    },
    /// A constraint that names what is no parameter.
    #[error("constraint `{constraint}` reads `{name}`, which is not a parameter")]
    UnknownName {
        /// Name of the constraint.
        constraint: String,
        /// The unknown name.
        name: String,
    },
}

/// A configuration that is no point of a space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PointError {
    /// It lacks a parameter.
    #[error("it has no parameter `{0}`")]
    Missing(String),
    /// A parameter has another value.
    #[error("`{parameter}` does not have the value {value}")]
    Value {
        /// The parameter.
        parameter: String,
        /// What it is to be.
        value: String,
    },
}

/// Values of a parameter, at most: they are compared in pairs.
pub const MOST_VALUES: usize = 10_000;
/// Points of a group that are listed before draws from it are made blindly and rejected instead.
const LISTED: usize = 1 << 16;
/// Partial points visited to list a group.
const VISITED: usize = 1 << 20;
/// Partial points visited to count a group.
const COUNTED: usize = 1 << 24;
/// Blind draws of a group before giving up.
const DRAWS: usize = 1 << 20;

/// Parameters and constraints.
#[derive(Debug)]
pub struct ParameterSpace {
    parameters: Vec<Parameter>,
    constraints: Vec<Constraint>,
    groups: OnceLock<Vec<Group>>,
}

/// Parameters that constraints tie together. Groups are independent of each other, so that valid
/// points can be drawn group by group.
#[derive(Debug)]
struct Group {
    parameters: Vec<usize>,
    constraints: Vec<usize>,
    /// All valid assignments of the group's parameters, where they are few.
    valid: Option<Vec<Point>>,
}

impl ParameterSpace {
    /// A space; each constraint is its name and its expression.
    ///
    /// # Errors
    /// No parameter, a parameter without values, with too many or with a value twice, a name used
    /// twice, or a constraint that is not an expression over the parameters.
    pub fn new(
        parameters: Vec<Parameter>,
        constraints: &[(&str, &str)],
    ) -> Result<Self, SpaceError> {
        if parameters.is_empty() {
            return Err(SpaceError::NoParameters);
        }
        for (index, parameter) in parameters.iter().enumerate() {
            let name = &parameter.name;
            if parameters[..index].iter().any(|other| other.name == *name) {
                return Err(SpaceError::TwoParameters(name.clone()));
            }
            if parameter.values.is_empty() {
                return Err(SpaceError::NoValues(name.clone()));
            }
            if parameter.values.len() > MOST_VALUES {
                return Err(SpaceError::TooManyValues(name.clone()));
            }
            for (index, value) in parameter.values.iter().enumerate() {
                if parameter.values[..index].contains(value) {
                    let (parameter, value) = (name.clone(), value.to_string());
                    return Err(SpaceError::TwoValues { parameter, value });
                }
            }
        }
        let constraint = |&(name, text): &(&str, &str)| {
            let name = name.to_owned();
            let expression = Expression::parse(text)
                .map_err(|error| SpaceError::Expression { constraint: name.clone(), error })?;
            let index = |wanted: &String| {
                parameters.iter().position(|p| p.name == *wanted).ok_or_else(|| {
                    SpaceError::UnknownName { constraint: name.clone(), name: wanted.clone() }
                })
            };
            let read = expression.names().iter().map(index).collect::<Result<_, _>>()?;
            Ok(Constraint { name, expression, parameters: read })
        };
        let constraints = constraints.iter().map(constraint).collect::<Result<_, _>>()?;
        Ok(Self { parameters, constraints, groups: OnceLock::new() })
    }

    /// The parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The constraints.
    pub fn constraints(&self) -> &[Constraint] {
        &self.constraints
    }

    /// The values of a point; parameters beyond a point that is too short are left out.
    pub fn values<'a>(&'a self, point: &'a [usize]) -> impl Iterator<Item = &'a Value> {
        self.parameters.iter().zip(point).filter_map(|(p, index)| p.values.get(*index))
    }

    /// The first constraint that a point breaks. One that cannot be evaluated at the point, for
    /// example because it divides by zero there, counts as broken.
    pub fn pruned_by(&self, point: &[usize]) -> Option<&Constraint> {
        self.constraints.iter().find(|constraint| !self.holds(constraint, point))
    }

    fn holds(&self, constraint: &Constraint, point: &[usize]) -> bool {
        let lookup = |name: &str| {
            let parameter = *constraint
                .parameters
                .iter()
                .find(|parameter| self.parameters[**parameter].name == name)?;
            self.parameters[parameter].values.get(*point.get(parameter)?).cloned()
        };
        constraint.expression.evaluate(&lookup).is_ok_and(|value| value.is_true())
    }

    /// All valid points in lexical order, found by setting one parameter after the other and
    /// checking each constraint as soon as its parameters are set.
    pub fn points(&self) -> impl Iterator<Item = Point> + '_ {
        let all: Vec<usize> = (0..self.parameters.len()).collect();
        let constraints: Vec<usize> = (0..self.constraints.len()).collect();
        Backtracking::new(self, all, &constraints).flatten()
    }

    /// A valid point, all being equally likely; `None` where there is none, or where so few of a
    /// large group of parameters are valid that a million draws found none.
    pub fn sample(&self, rng: &mut impl Rng) -> Option<Point> {
        let mut point = vec![0; self.parameters.len()];
        for group in self.groups.get_or_init(|| self.make_groups()) {
            match &group.valid {
                Some(valid) => {
                    let chosen = (!valid.is_empty()).then(|| rng.random_range(0..valid.len()))?;
                    for parameter in &group.parameters {
                        point[*parameter] = valid[chosen][*parameter];
                    }
                }
                None => self.draw(group, &mut point, rng)?,
            }
        }
        Some(point)
    }

    /// By constraint, in order, the share of all points that it is the first to prune, seen on
    /// `count` points drawn at random.
    pub fn pruned_shares(&self, count: usize, rng: &mut impl Rng) -> Vec<f64> {
        let mut pruned = vec![0_usize; self.constraints.len()];
        for _ in 0..count {
            let sizes = self.parameters.iter().map(|p| p.values.len());
            let point: Point = sizes.map(|size| rng.random_range(0..size)).collect();
            let first = self.constraints.iter().position(|c| !self.holds(c, &point));
            if let Some(first) = first {
                pruned[first] += 1;
            }
        }
        pruned.into_iter().map(|pruned| pruned as f64 / count.max(1) as f64).collect()
    }

    /// How many points are valid; `None` where that takes too long to find out.
    pub fn count_valid(&self) -> Option<u64> {
        let groups = self.groups.get_or_init(|| self.make_groups());
        groups.iter().try_fold(1_u64, |product, group| {
            let count = match &group.valid {
                Some(valid) => valid.len() as u64,
                None => self.count_group(group)?,
            };
            product.checked_mul(count)
        })
    }

    fn count_group(&self, group: &Group) -> Option<u64> {
        let mut count = 0;
        let search = Backtracking::new(self, group.parameters.clone(), &group.constraints);
        for (visited, found) in search.enumerate() {
            count += u64::from(found.is_some());
            if visited >= COUNTED {
                return None;
            }
        }
        Some(count)
    }

    /// The first constraint that leaves no point valid together with those before it; `None` where
    /// there are valid points, or where that takes too long to find out.
    pub fn contradiction(&self) -> Option<&Constraint> {
        if self.count_valid() != Some(0) {
            return None;
        }
        self.constraints.iter().enumerate().find_map(|(last, constraint)| {
            let constraints = self.constraints[..=last].to_vec();
            let parameters = self.parameters.clone();
            let fewer = Self { parameters, constraints, groups: OnceLock::new() };
            (fewer.count_valid() == Some(0)).then_some(constraint)
        })
    }

    /// The point of the values that are given by name; a parameter with one value need not be given.
    ///
    /// # Errors
    /// Another parameter without a value, or one with a value that it does not have.
    pub fn point_of(&self, value: &dyn Fn(&str) -> Option<Value>) -> Result<Point, PointError> {
        let index = |parameter: &Parameter| {
            let name = || parameter.name.clone();
            let Some(value) = value(&parameter.name) else {
                let is_fixed = parameter.values.len() == 1;
                return is_fixed.then_some(0).ok_or_else(|| PointError::Missing(name()));
            };
            let place = parameter.values.iter().position(|known| *known == value);
            place.ok_or_else(|| PointError::Value { parameter: name(), value: value.to_string() })
        };
        self.parameters.iter().map(index).collect()
    }

    fn draw(&self, group: &Group, point: &mut [usize], rng: &mut impl Rng) -> Option<()> {
        for _ in 0..DRAWS {
            for parameter in &group.parameters {
                point[*parameter] = rng.random_range(0..self.parameters[*parameter].values.len());
            }
            if group.constraints.iter().all(|c| self.holds(&self.constraints[*c], point)) {
                return Some(());
            }
        }
        None
    }

    fn make_groups(&self) -> Vec<Group> {
        // The first member of each parameter's group.
        let mut root: Vec<usize> = (0..self.parameters.len()).collect();
        for constraint in &self.constraints {
            let tied: Vec<usize> = constraint.parameters.iter().map(|p| root[*p]).collect();
            let Some(first) = tied.iter().min().copied() else { continue };
            root.iter_mut().filter(|r| tied.contains(r)).for_each(|r| *r = first);
        }
        let members = |first: usize| -> Vec<usize> {
            (0..root.len()).filter(|p| root[*p] == first).collect()
        };
        // A constraint that reads no parameter goes with the first group: it spoils all or none.
        let group_of = |c: &Constraint| c.parameters.first().map_or(0, |p| root[*p]);
        let firsts = (0..root.len()).filter(|p| root[*p] == *p);
        firsts
            .map(|first| {
                let parameters = members(first);
                let constraints: Vec<usize> = (0..self.constraints.len())
                    .filter(|c| group_of(&self.constraints[*c]) == first)
                    .collect();
                let search = Backtracking::new(self, parameters.clone(), &constraints);
                let mut valid = Some(Vec::new());
                for (visited, found) in search.enumerate() {
                    let Some(list) = &mut valid else { break };
                    list.extend(found);
                    if visited >= VISITED || list.len() > LISTED {
                        valid = None;
                    }
                }
                Group { parameters, constraints, valid }
            })
            .collect()
    }
}

impl Space for ParameterSpace {
    fn sizes(&self) -> Vec<usize> {
        self.parameters.iter().map(|p| p.values.len()).collect()
    }

    fn is_valid(&self, point: &[usize]) -> bool {
        point.len() == self.parameters.len()
            && self.values(point).count() == point.len()
            && self.pruned_by(point).is_none()
    }

    fn is_ordered(&self, parameter: usize) -> bool {
        self.parameters.get(parameter).is_some_and(Parameter::is_ordered)
    }
}

/// Depth-first search over some parameters of a space, the others being at their first value. Every
/// partial point that is visited yields an item: the point where it is complete, else `None`, so
/// that a caller can bound the work.
struct Backtracking<'a> {
    space: &'a ParameterSpace,
    parameters: Vec<usize>,
    /// Constraints that can be checked once this many parameters, and one more, are set.
    complete_at: Vec<Vec<usize>>,
    point: Point,
    /// Parameters set; the next to visit is the current value of the one after them.
    depth: usize,
    finished: bool,
}

impl<'a> Backtracking<'a> {
    fn new(space: &'a ParameterSpace, parameters: Vec<usize>, constraints: &[usize]) -> Self {
        let mut complete_at = vec![Vec::new(); parameters.len()];
        for index in constraints {
            let read = &space.constraints[*index].parameters;
            let last = parameters.iter().rposition(|p| read.contains(p)).unwrap_or(0);
            complete_at[last].push(*index);
        }
        let point = vec![0; space.parameters.len()];
        Self { space, parameters, complete_at, point, depth: 0, finished: false }
    }

    /// To the next value of the parameter at the current depth, or of one before it.
    fn step(&mut self) {
        loop {
            let parameter = self.parameters[self.depth];
            self.point[parameter] += 1;
            if self.point[parameter] < self.space.parameters[parameter].values.len() {
                return;
            }
            self.point[parameter] = 0;
            match self.depth.checked_sub(1) {
                Some(depth) => self.depth = depth,
                None => {
                    self.finished = true;
                    return;
                }
            }
        }
    }
}

impl Iterator for Backtracking<'_> {
    type Item = Option<Point>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let keeps = self.complete_at[self.depth]
            .iter()
            .all(|c| self.space.holds(&self.space.constraints[*c], &self.point));
        if !keeps {
            self.step();
            return Some(None);
        }
        if self.depth + 1 < self.parameters.len() {
            self.depth += 1;
            return Some(None);
        }
        let found = self.point.clone();
        self.step();
        Some(Some(found))
    }
}
