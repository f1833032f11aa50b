//! The JSON text of a recorded space, read entry by entry, so that what stands before
//! a cut is kept.

use super::{FormatError, Object, t4};
use crate::packed::Plain;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use std::borrow::Cow;
use std::fmt;

/// What a file holds, as far as it goes.
#[derive(Debug, Default)]
pub struct Document {
    /// Members other than the configurations.
    pub header: Object,
    /// Configurations by key, of a Kernel Tuner cache.
    pub cache: Option<Vec<(String, Object)>>,
    /// Configurations of a T4 file.
    pub results: Option<Vec<t4::Recorded>>,
    /// Whether the file ends early.
    pub is_cut: bool,
}

impl Document {
    pub fn read(file: &str, plain: Plain<'_>) -> Result<Self, FormatError> {
        let mut document = Self { is_cut: plain.is_cut, ..Self::default() };
        let text = without_nan(plain.bytes);
        let mut reader = serde_json::Deserializer::from_slice(&text);
        match Whole(&mut document).deserialize(&mut reader).and_then(|()| reader.end()) {
            Ok(()) => {}
            Err(error) if error.is_eof() => document.is_cut = true,
            Err(error) => return Err(FormatError::Json { file: file.to_owned(), error }),
        }
        Ok(document)
    }
}

/// Python writes numbers that are none as `NaN` and `Infinity`, which JSON does not have: they
/// become `null`, padded so that positions in error messages stay right.
fn without_nan(text: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let mut found = Vec::new();
    let (mut at, mut in_string) = (0, false);
    while let Some(&byte) = text.get(at) {
        match byte {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' | b'-' if !in_string => {
                let rest = &text[at..];
                let words: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
                // The word may be what the text is cut off in.
                let is_here = |word: &&&[u8]| rest.starts_with(word) || word.starts_with(rest);
                if let Some(word) = words.iter().find(is_here) {
                    let length = word.len().min(rest.len());
                    found.push((at, length));
                    at += length - 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if found.is_empty() {
        return text;
    }
    let mut text = text.into_owned();
    for (at, length) in found.into_iter().rev() {
        let blanks = length.saturating_sub(4);
        text.splice(at..at + length, [b"null".as_slice(), &vec![b' '; blanks]].concat());
    }
    Cow::Owned(text)
}

/// The object that a file is.
struct Whole<'a>(&'a mut Document);

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `cache` or `results`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "cache" => map.next_value_seed(Cache(self.0.cache.insert(Vec::new())))?,
                "results" => map.next_value_seed(Results(self.0.results.insert(Vec::new())))?,
                _ => {
                    let value = map.next_value::<Json>()?;
                    self.0.header.insert(key, value);
                }
            }
        }
        Ok(())
    }
}

/// Configurations by key.
struct Cache<'a>(&'a mut Vec<(String, Object)>);

impl<'de> DeserializeSeed<'de> for Cache<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Cache<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of configurations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(entry) = map.next_entry()? {
            self.0.push(entry);
        }
        Ok(())
    }
}

/// Configurations in a list.
struct Results<'a>(&'a mut Vec<t4::Recorded>);

impl<'de> DeserializeSeed<'de> for Results<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Results<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of configurations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(entry) = list.next_element()? {
            self.0.push(entry);
        }
        Ok(())
    }
}
