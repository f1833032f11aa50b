//! Articles and highlights from JSON Lines.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use fs_err::File;
use serde::Deserialize;

/// An article with its highlights, as in the usual collections. Other fields of a line, such as
/// `id`, are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Story {
    /// The whole text.
    pub article: String,
    /// The summary; a sentence or point a line.
    pub highlights: String,
}

/// What is wrong with a file of stories.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoryError {
    /// The file does not open; the message names it.
    #[error(transparent)]
    Open(io::Error),
    /// The file cannot be read on, or is not UTF-8.
    #[error("{}, line {line}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why.
        source: io::Error,
    },
    /// A line is no story.
    #[error(
        "{}, line {line}, column {column}: {problem}; each line must be a JSON object with the \
         texts \"article\" and \"highlights\"",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
        /// What the reader says.
        problem: String,
    },
}

/// The stories of a JSON Lines file, read one at a time. Empty lines are passed over; a line that is
/// no story is an error, and the next one is read all the same.
#[derive(Debug)]
pub struct Stories {
    path: PathBuf,
    lines: io::Lines<BufReader<File>>,
    line: usize,
    failed: bool,
}

impl Stories {
    /// Opens a file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoryError> {
        let path = path.as_ref().to_owned();
        let file = File::open(&path).map_err(StoryError::Open)?;
        Ok(Self { path, lines: BufReader::new(file).lines(), line: 0, failed: false })
    }

    fn read(&self, line: &str) -> Result<Story, StoryError> {
        serde_json::from_str(line).map_err(|error| StoryError::Malformed {
            path: self.path.clone(),
            line: self.line,
            column: error.column(),
            // Its own place counts lines within the line.
            problem: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        })
    }
}

impl Iterator for Stories {
    type Item = Result<Story, StoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            self.line += 1;
            match self.lines.next()? {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => return Some(self.read(&line)),
                Err(source) => {
                    self.failed = true;
                    let (path, line) = (self.path.clone(), self.line);
                    return Some(Err(StoryError::Read { path, line, source }));
                }
            }
        }
        None
    }
}
