//! The lines of a CUDA source under the names that the compiler gives them: a rendered source is made
//! of several files, and its `#line` markers say which line of which a line was.

use std::collections::BTreeMap;

/// A source and the names of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceMap {
    /// Per file and line that the markers say, the line of the source, from 1, and its text.
    lines: BTreeMap<(String, u32), (u32, String)>,
}

impl SourceMap {
    /// Reads the markers of `text`; lines before the first one are of the file `name`.
    pub fn new(name: &str, text: &str) -> Self {
        let (mut file, mut number) = (name.to_owned(), 1u32);
        let mut lines = BTreeMap::new();
        for (own, line) in (1..).zip(text.lines()) {
            let marker = line.strip_prefix("#line ").and_then(|rest| rest.split_once(' '));
            let marker = marker.and_then(|(first, name)| Some((first.parse().ok()?, name)));
            if let Some((first, name)) = marker {
                file = name.trim().trim_matches('"').to_owned();
                number = first;
            } else {
                lines.insert((file.clone(), number), (own, line.to_owned()));
                number = number.saturating_add(1);
            }
        }
        Self { lines }
    }

    /// The text of a line.
    pub fn text(&self, file: &str, line: u32) -> Option<&str> {
        self.lines.get(&(file.to_owned(), line)).map(|(_, text)| text.as_str())
    }

    /// Which line of the whole source it is.
    pub fn own_line(&self, file: &str, line: u32) -> Option<u32> {
        self.lines.get(&(file.to_owned(), line)).map(|(own, _)| *own)
    }

    /// All lines as file, line and text, file by file.
    pub fn lines(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.lines.iter().map(|((file, line), (_, text))| (file.as_str(), *line, text.as_str()))
    }

    /// The lines that another source has otherwise or not at all, as file and line, in order of the
    /// source. Lines are compared by their names; a line put in makes all after it in its file others.
    pub fn changed_from(&self, other: &Self) -> Vec<(&str, u32)> {
        let mut changed: Vec<_> = self
            .lines
            .iter()
            .filter(|(place, (_, text))| {
                other.lines.get(place).is_none_or(|(_, before)| before != text)
            })
            .map(|((file, line), (own, _))| (*own, file.as_str(), *line))
            .collect();
        changed.sort_unstable();
        changed.into_iter().map(|(_, file, line)| (file, line)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "// head\n#line 1 \"a.cu\"\none\n#line 7 \"b.cuh\"\nseven\neight\n#line 3 \"a.cu\"\nthree\n";

    #[test]
    fn lines_have_the_names_of_their_markers_and_their_own_numbers() {
        let map = SourceMap::new("mine.cu", TEXT);
        assert_eq!(map.text("mine.cu", 1), Some("// head"));
        assert_eq!((map.text("b.cuh", 8), map.own_line("b.cuh", 8)), (Some("eight"), Some(6)));
        assert_eq!((map.text("a.cu", 3), map.own_line("a.cu", 3)), (Some("three"), Some(8)));
        assert_eq!(map.text("a.cu", 2), None);
        assert_eq!(map.lines().count(), 5);
        // What looks like a marker but is none is a line.
        assert_eq!(SourceMap::new("m", "#line x \"y\"").lines().count(), 1);
    }

    #[test]
    fn changes_are_found_where_they_were_made() {
        let map = SourceMap::new("mine.cu", TEXT);
        let edited = SourceMap::new("mine.cu", &TEXT.replace("three", "3").replace("eight", "8"));
        assert_eq!(edited.changed_from(&map), [("b.cuh", 8), ("a.cu", 3)]);
        assert_eq!(map.changed_from(&map), []);
    }
}
