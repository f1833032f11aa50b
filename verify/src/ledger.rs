//! Known faults that fuzzing tolerates: a list that cites a reason for each, and that is loud about
//! one that has gone away.

use serde::{Deserialize, Serialize};

/// A tolerated fault: one line of JSON in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Kernels by id, where `*` stands for anything.
    pub kernel: String,
    /// Kind of fault, as case files have it.
    pub kind: String,
    /// Why it is tolerated: a sentence, an issue, a link.
    pub reason: String,
    /// A case file that shows it, from the ledger's folder: the entry stands as long as it fails.
    pub case: String,
}

/// The entries in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger(pub Vec<Entry>);

/// A ledger that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "line {line}: {fault}; an entry is {{\"kernel\": \"f16-d128-*\", \"kind\": \"wrong-answer\", \"reason\": \"...\", \"case\": \"case.json\"}} on one line"
)]
pub struct LedgerError {
    line: usize,
    fault: String,
}

impl Ledger {
    /// Reads a ledger: a JSON object per line; empty lines are skipped.
    pub fn parse(text: &str) -> Result<Self, LedgerError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let entries = lines.map(|(index, line)| {
            let error = |fault: String| LedgerError { line: index + 1, fault };
            let entry: Entry = serde_json::from_str(line).map_err(|e| error(e.to_string()))?;
            if entry.reason.trim().is_empty() {
                return Err(error("the reason is empty".into()));
            }
            Ok(entry)
        });
        Ok(Self(entries.collect::<Result<_, _>>()?))
    }

    /// The entry that tolerates a fault of that kind in that kernel.
    pub fn tolerates(&self, kernel: &str, kind: &str) -> Option<usize> {
        self.0.iter().position(|entry| entry.kind == kind && matches(&entry.kernel, kernel))
    }
}

/// Whether `text` is `pattern` with something in place of each `*`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| &rest[at..])
                .chain([""])
                .any(|rest| matches(after, rest))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("f16-*-last", "f16-d128-g4-last", true),
            ("f16-*-last", "f16-d128-g4-second", false),
            ("*-d128-*", "f16-d128-g4", true),
            ("*-d128-*", "f16-d1280", false),
            ("f16", "f16-d64", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn every_entry_has_a_reason_and_a_bad_line_is_named() {
        let good = r#"{"kernel":"f16-*","kind":"race","reason":"issue 7","case":"a.json"}"#;
        let ledger = Ledger::parse(&format!("\n{good}\n")).unwrap();
        assert_eq!(ledger.tolerates("f16-d64", "race"), Some(0));
        assert_eq!(ledger.tolerates("f16-d64", "deadlock"), None);
        assert_eq!(ledger.tolerates("bf16-d64", "race"), None);
        let empty = good.replace("issue 7", " ");
        let error = Ledger::parse(&format!("{good}\n{empty}\n")).unwrap_err().to_string();
        assert!(error.starts_with("line 2: the reason is empty"), "{error}");
        assert!(Ledger::parse("{}").unwrap_err().to_string().contains("missing field"));
    }
}
