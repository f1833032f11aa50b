//! T1 inputs: the description of a search space, whose values and conditions are Python
//! expressions.

use super::FormatError;
use crate::search::parameters::Parameter;
use crate::search::{Expression, ParameterSpace, Value};
use serde::Deserialize;
use serde_json::Value as Json;
use std::path::Path;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Input {
    configuration_space: ConfigurationSpace,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigurationSpace {
    tuning_parameters: Vec<TuningParameter>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TuningParameter {
    name: String,
    #[serde(rename = "Type")]
    kind: String,
    values: Json,
}

/// Its `Parameters` are left aside: the expression says which it reads.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Condition {
    expression: String,
}

/// Reads the search space of a T1 file. A condition is named by its expression.
///
/// # Errors
/// The file cannot be read or is not a T1 input, a list of values is not an expression or does not
/// fit the type of its parameter, or a condition is not an expression over the parameters.
pub fn read(path: &Path) -> Result<ParameterSpace, FormatError> {
    parse(&path.display().to_string(), &fs_err::read(path)?)
}

/// Reads the contents of a T1 file, which errors call `file`.
///
/// # Errors
/// As [`read`].
pub fn parse(file: &str, bytes: &[u8]) -> Result<ParameterSpace, FormatError> {
    let input: Input = serde_json::from_slice(bytes)
        .map_err(|error| FormatError::Json { file: file.to_owned(), error })?;
    space(&input.configuration_space)
        .map_err(|message| FormatError::Content { file: file.to_owned(), message })
}

fn space(space: &ConfigurationSpace) -> Result<ParameterSpace, String> {
    let parameters =
        space.tuning_parameters.iter().map(parameter).collect::<Result<Vec<_>, _>>()?;
    let constraints: Vec<(&str, &str)> =
        space.conditions.iter().map(|c| (c.expression.as_str(), c.expression.as_str())).collect();
    ParameterSpace::new(parameters, &constraints).map_err(|error| error.to_string())
}

fn parameter(parameter: &TuningParameter) -> Result<Parameter, String> {
    let name = &parameter.name;
    let fault = |message: String| format!("values of parameter `{name}`: {message}");
    let values = match &parameter.values {
        Json::String(text) => Expression::parse(text)
            .and_then(|expression| expression.evaluate(&|_| None))
            .map_err(|error| fault(error.to_string()))?,
        other => Value::from_json(other),
    };
    let Value::List(values) = values else {
        return Err(fault(format!("expected a list, found {}", values.kind())));
    };
    let typed = |value: Value| {
        let typed = match parameter.kind.as_str() {
            "int" => value.as_int().map(Value::Int),
            "uint" => value.as_int().filter(|value| *value >= 0).map(Value::Int),
            "float" => value.as_float().map(Value::Float),
            "bool" => value.as_int().filter(|v| matches!(v, 0 | 1)).map(|v| Value::Bool(v == 1)),
            "string" => match value {
                Value::Text(_) => Some(value.clone()),
                _ => None,
            },
            other => {
                return Err(format!(
                    "parameter `{name}` has the type {other:?}; expected int, uint, float, bool \
                     or string"
                ));
            }
        };
        typed.ok_or_else(|| fault(format!("{value} is not of the type {}", parameter.kind)))
    };
    let values = values.into_iter().map(typed).collect::<Result<Vec<_>, _>>()?;
    Ok(Parameter::new(name.clone(), values))
}
