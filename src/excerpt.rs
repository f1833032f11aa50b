//! Source lines for people: an excerpt around the line of a finding, and what was changed in a
//! rendered source.

use spanforge_emulator::{Finding, SourceLine};
use spanforge_verify::SourceMap;
use std::io::{self, Write};

/// Lines shown before and after the one that is meant.
const AROUND: u32 = 3;

/// Changed lines that are listed one by one.
const MOST_CHANGES: usize = 12;

/// A source, its name on disk, and the lines that are not as they were rendered.
pub struct Edited {
    name: String,
    map: SourceMap,
    changed: Vec<SourceLine>,
}

impl Edited {
    /// The source `text` of the file `name`, where `rendered` is what it was before it was edited.
    pub fn new(name: &str, text: &str, rendered: &str) -> Self {
        let map = SourceMap::new(name, text);
        let changed = map.changed_from(&SourceMap::new(name, rendered));
        let changed =
            changed.into_iter().map(|(file, line)| SourceLine { file: file.to_owned(), line });
        Self { name: name.to_owned(), changed: changed.collect(), map }
    }

    /// Whether it is just as it was rendered.
    pub fn is_as_rendered(&self) -> bool {
        self.changed.is_empty()
    }

    /// The changed lines in words, after `differs in`.
    pub fn changes(&self) -> String {
        let shown: Vec<String> =
            self.changed.iter().take(MOST_CHANGES).map(|line| self.place(line)).collect();
        let count = self.changed.len();
        let more = if count > shown.len() { ", ..." } else { "" };
        let lines = if count == 1 { "line" } else { "lines" };
        format!("{count} {lines}: {}{more}", shown.join(", "))
    }

    /// A line by its place in the file that is edited, and by that in the device code.
    fn place(&self, line: &SourceLine) -> String {
        match self.map.own_line(&line.file, line.line) {
            Some(own) if line.file != self.name => format!("{}:{own} ({line})", self.name),
            _ => line.to_string(),
        }
    }

    /// The lines around a finding's, that one marked, where it was inlined, and the lines of its
    /// trail; an edited one among those tells most.
    pub fn excerpt(&self, finding: &Finding, out: &mut dyn Write) -> io::Result<()> {
        let Some(at) = &finding.source else { return Ok(()) };
        writeln!(out, "  --> {}", self.place(at))?;
        self.around(at, out)?;
        for call in &finding.inlined_at {
            writeln!(out, "  inlined at {}", self.place(call))?;
            self.line(call, true, out)?;
        }
        for step in &finding.trail {
            let edited = if self.changed.contains(&step.line) { ", an edited line" } else { "" };
            writeln!(out, "  from {} ({}){edited}", self.place(&step.line), step.why)?;
            self.line(&step.line, true, out)?;
        }
        Ok(())
    }

    fn around(&self, at: &SourceLine, out: &mut dyn Write) -> io::Result<()> {
        for line in at.line.saturating_sub(AROUND)..=at.line.saturating_add(AROUND) {
            self.line(&SourceLine { file: at.file.clone(), line }, line == at.line, out)?;
        }
        Ok(())
    }

    fn line(&self, line: &SourceLine, marked: bool, out: &mut dyn Write) -> io::Result<()> {
        let Some(text) = self.map.text(&line.file, line.line) else { return Ok(()) };
        let number = self.map.own_line(&line.file, line.line).unwrap_or(line.line);
        let mark = if marked { ">" } else { " " };
        let edited = if self.changed.contains(line) { "*" } else { " " };
        writeln!(out, "  {mark}{edited}{number:>5} | {}", text.trim_end())
    }

    /// The changed lines with those around them: where to look when no line was named.
    pub fn changes_shown(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut shown_to = None;
        for line in self.changed.iter().take(MOST_CHANGES) {
            // Neighbours are shown once.
            let next = Some((line.file.clone(), line.line));
            let follows = shown_to.as_ref().is_some_and(|(file, last): &(String, u32)| {
                *file == line.file && line.line <= last.saturating_add(AROUND)
            });
            if !follows {
                writeln!(out, "  --> {}", self.place(line))?;
                self.around(line, out)?;
            }
            shown_to = next;
        }
        Ok(())
    }
}
