//! The lines of a CUDA source under the names that the compiler gives them: a rendered source is made
//! of several files, and its `#line` markers say which line of which a line was.

use similar::{Algorithm, DiffTag, capture_diff_slices};
use std::collections::BTreeMap;

/// A source and the names of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceMap {
    /// Per file and line that the markers say, the line of the source, from 1, and its text.
    lines: BTreeMap<(String, u32), (u32, String)>,
}

/// One line under the name that the compiler gives it.
struct Line<'m> {
    file: &'m str,
    number: u32,
    text: &'m str,
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

    /// The lines that were changed or put in since `other`, as file and line, in order of the source.
    /// Where lines were only taken out, the one that now stands in their place is meant.
    pub fn changed_from(&self, other: &Self) -> Vec<(&str, u32)> {
        let (new, old) = (self.in_order(), other.in_order());
        let before: Vec<&str> = old.iter().map(|line| line.text).collect();
        let after: Vec<&str> = new.iter().map(|line| line.text).collect();
        let mut changed = Vec::new();
        for op in capture_diff_slices(Algorithm::Myers, &before, &after) {
            let range = op.new_range();
            match op.tag() {
                DiffTag::Equal => {}
                DiffTag::Delete => changed.extend(new.get(range.start).or(new.last())),
                DiffTag::Insert | DiffTag::Replace => changed.extend(&new[range]),
            }
        }
        changed.into_iter().map(|line| (line.file, line.number)).collect()
    }

    fn in_order(&self) -> Vec<Line<'_>> {
        let mut lines: Vec<_> = self.lines.iter().collect();
        lines.sort_unstable_by_key(|(_, (own, _))| *own);
        lines
            .into_iter()
            .map(|((file, number), (_, text))| Line { file, number: *number, text })
            .collect()
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

    #[test]
    fn lines_put_in_and_taken_out_leave_the_others_as_they_are() {
        let map = SourceMap::new("mine.cu", "one\ntwo\nthree\nfour\n");
        let changed = |text: &str| {
            let edited = SourceMap::new("mine.cu", text);
            edited.changed_from(&map).into_iter().map(|(_, line)| line).collect::<Vec<_>>()
        };
        assert_eq!(changed("one\nthree\nfour\n"), [2]);
        assert_eq!(changed("one\ntwo\nnew\nnewer\nthree\nfour\n"), [3, 4]);
        assert_eq!(changed("one\ntwo\nthree\n"), [3]);
        assert!(changed("").is_empty());
    }
}
