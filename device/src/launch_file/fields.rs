//! Reading the fields of a JSON object one by one, so that every fault names its field by path.

use super::LaunchFileError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;

/// What is wrong with a field, before the file is known.
#[derive(Debug)]
pub(super) struct Fault {
    field: String,
    fault: String,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, fault: impl Into<String>) -> Self {
        Self { field: field.into(), fault: fault.into() }
    }

    pub(super) fn in_file(self, path: &Path) -> LaunchFileError {
        LaunchFileError::Field { path: path.to_owned(), field: self.field, fault: self.fault }
    }
}

/// The fields of an object that have not been read yet. serde's own reader gives a line and a column
/// for a wrong value; this one gives the path of the field.
pub(super) struct Fields {
    at: String,
    pub(super) map: Map<String, Value>,
}

impl Fields {
    pub(super) fn of(value: Value, at: &str) -> Result<Self, Fault> {
        match value {
            Value::Object(map) => Ok(Self { at: at.to_owned(), map }),
            other => {
                let field = if at.is_empty() { "the file" } else { at };
                Err(Fault::new(field, format!("{other} is not an object")))
            }
        }
    }

    fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    pub(super) fn missing(&self, name: &str) -> Fault {
        Fault::new(self.path(name), "missing")
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Fault> {
        let field = self.path(name);
        self.map.remove(name).map(|value| read(value, &field)).transpose()
    }

    pub(super) fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Fault> {
        self.take(name)?.ok_or_else(|| self.missing(name))
    }

    pub(super) fn list<T>(
        &mut self,
        name: &str,
        item: impl Fn(Value, &str) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let values: Vec<Value> = self.take(name)?.unwrap_or_default();
        let field = self.path(name);
        values
            .into_iter()
            .enumerate()
            .map(|(index, value)| item(value, &format!("{field}[{index}]")))
            .collect()
    }

    /// Refuses what was not read.
    pub(super) fn finish(&self, known: &[&str]) -> Result<(), Fault> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => {
                let fault = format!("no such field; there are {}", known.join(", "));
                Err(Fault::new(self.path(name), fault))
            }
        }
    }
}

/// A value of a known type.
pub(super) fn read<T: DeserializeOwned>(value: Value, field: &str) -> Result<T, Fault> {
    serde_json::from_value(value).map_err(|error| Fault::new(field, error.to_string()))
}
