//! The journal of a run: a file of its own, one JSON object per line, appended and never rewritten.
//!
//! ```text
//! study                what the run follows from
//! run                  where it was made
//! started, candidate   each configuration, before and after
//! remeasured           the finalists once more, on a GPU
//! winner               the choice
//! ```
//!
//! A line is on the disk before the run goes on, and it is whole or ignored: a crash can only cut
//! the last one. To resume is to run the study again and to take what is recorded instead of
//! evaluating it. A configuration that was started and not finished is evaluated again, since it
//! ran in a process of its own and can hardly be the reason that the run ended; unless the machine
//! itself went down. Then it runs alone, and after a second time not any more.

use crate::choice::{judged, ranked};
use crate::packed::Plain;
use crate::record::{Candidate, Record, Remeasured, Run, Study, Winner};
use fs_err as fs;
use spanforge_kernels::KernelSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How often the machine may go down while a configuration runs before that is left alone.
pub const MOST_CRASHES: usize = 2;

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another process writes it.
    #[error("{0} is in use by another run: wait for it to end, or end it")]
    Busy(PathBuf),
    /// A line is none of a journal.
    #[error(
        "{path}:{line}: not a line of a journal: {reason}; nothing was changed: remove the line to go on without it, and what it recorded is evaluated again"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// There is no study in it.
    #[error(
        "{0} has no `study` and `run` lines, as the journal of a run begins with: nothing to resume"
    )]
    NoStudy(PathBuf),
}

/// A journal that is written.
#[derive(Debug)]
pub struct Journal {
    file: fs::File,
}

impl Journal {
    /// A new one in `folder`, named after the run, with a number where there is one of that name.
    ///
    /// # Errors
    /// A folder or file that cannot be made.
    pub fn create(folder: &Path, run: &str) -> Result<Self, JournalError> {
        fs::create_dir_all(folder)?;
        for number in 1.. {
            let suffix = if number == 1 { String::new() } else { format!("-{number}") };
            let path = folder.join(format!("{run}{suffix}.jsonl"));
            match fs::OpenOptions::new().create_new(true).append(true).open(&path) {
                Ok(file) => return Self { file }.locked(),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
        unreachable!("numbers do not end")
    }

    /// Makes the journal `path` of what is known from elsewhere.
    ///
    /// # Errors
    /// A file that is there already or cannot be written.
    pub fn restore(path: &Path, records: &[Record]) -> Result<(), JournalError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = fs::OpenOptions::new().create_new(true).append(true).open(path)?;
        let mut journal = Self { file }.locked()?;
        Ok(records.iter().try_for_each(|record| journal.append(record))?)
    }

    /// Goes on with the journal `path`: it, and what it holds.
    ///
    /// # Errors
    /// A file that cannot be read or written, that another process writes, or that is no journal.
    pub fn resume(path: &Path) -> Result<(Self, Kept), JournalError> {
        let file = fs::OpenOptions::new().read(true).append(true).open(path)?;
        let mut journal = Self { file }.locked()?;
        let kept = Kept::from(path, read(path)?)?;
        // A line that a crash has cut short is ended, so that it spoils no other.
        if journal.file.metadata()?.len() > 0 {
            journal.file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            journal.file.read_exact(&mut last)?;
            if last != *b"\n" {
                journal.file.write_all(b"\n")?;
            }
        }
        Ok((journal, kept))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Appends one line in one write, and waits until it is kept.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()
    }

    fn locked(self) -> Result<Self, JournalError> {
        match self.file.file().try_lock() {
            Ok(()) => Ok(self),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(JournalError::Busy(self.file.path().to_owned()))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

/// What a journal holds.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What the run follows from.
    pub study: Study,
    /// Where it was made.
    pub run: Run,
    /// What was evaluated, by position.
    pub candidates: BTreeMap<usize, Candidate>,
    /// How often the machine went down during a configuration that was not finished, by position.
    pub crashes: BTreeMap<usize, usize>,
    /// What the finalists took when they were timed once more.
    pub remeasured: Remeasured,
    /// The choice, where the run was finished.
    pub winner: Option<Winner>,
}

impl Kept {
    /// What the journal `path` holds, which another process may be writing; as gzip too.
    ///
    /// # Errors
    /// A file that cannot be read or that is no journal.
    pub fn read(path: &Path) -> Result<Self, JournalError> {
        let bytes = fs::read(path)?;
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let plain = Plain::read(&bytes).map_err(named)?;
        Self::from(path, parse(path, &plain.bytes)?)
    }

    /// The kernels that were found correct, the fastest first, equals in the order of their
    /// identifiers.
    pub fn fastest(&self) -> Vec<KernelSpec> {
        let candidates: Vec<Candidate> = self.candidates.values().cloned().collect();
        let candidates = judged(&candidates, &self.remeasured);
        ranked(&candidates).into_iter().map(|(candidate, _)| candidate.spec).collect()
    }

    pub(crate) fn from(path: &Path, records: Vec<Record>) -> Result<Self, JournalError> {
        let (mut study, mut winner) = (None, None);
        let mut run: Option<Run> = None;
        let mut remeasured = Remeasured::default();
        let mut candidates = BTreeMap::new();
        let mut starts: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for record in records {
            match record {
                Record::Study(it) => study = study.or(Some(*it)),
                Record::Run(it) => run = run.or(Some(*it)),
                Record::Budget(it) => {
                    if let Some(run) = &mut run {
                        run.budget = it.budget;
                    }
                }
                Record::Started(it) => {
                    starts.entry(it.index).or_default().extend(it.boot);
                }
                Record::Candidate(it) => {
                    candidates.entry(it.index).or_insert(*it);
                }
                Record::Remeasured(it) => remeasured = it,
                Record::Winner(it) => winner = Some(it),
            }
        }
        let (Some(study), Some(run)) = (study, run) else {
            return Err(JournalError::NoStudy(path.to_owned()));
        };
        let now = boot();
        let crashes = starts
            .into_iter()
            .filter(|(index, _)| !candidates.contains_key(index))
            .map(|(index, boots)| {
                (index, boots.iter().filter(|b| Some(*b) != now.as_ref()).count())
            })
            .collect();
        Ok(Self { study, run, candidates, crashes, remeasured, winner })
    }
}

/// What the operating system calls its present start, where it says.
pub fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// The lines of a journal. One that a crash has cut short is left out.
///
/// # Errors
/// A file that cannot be read, and a whole line that is none of a journal.
pub fn read(path: &Path) -> Result<Vec<Record>, JournalError> {
    parse(path, &fs::read(path)?)
}

/// The lines of a journal's contents; errors name `path`.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Record>, JournalError> {
    let mut records = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            Err(error) if error.is_eof() => {}
            Err(error) => {
                let (path, reason) = (path.to_owned(), error.to_string());
                return Err(JournalError::Line { path, line: index + 1, reason });
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spanforge_device::{Conditions, Throttle};

    #[test]
    fn candidates_are_read_with_and_without_conditions() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/tune");
        let mut read = 0;
        for entry in fs::read_dir(folder).expect("recorded runs") {
            let path = entry.expect("a file").path();
            let kept = Kept::read(&path).expect("a journal");
            read += kept.candidates.len();
            let mut candidate = kept.candidates[&0].clone();
            let plain = serde_json::to_string(&candidate).expect("JSON");
            assert!(candidate.conditions.is_none() && !plain.contains("conditions"), "{plain}");
            candidate.conditions = Some(Conditions {
                sm_mhz: Some([1755, 1980]),
                temperature_c: Some(58),
                throttled: Some([Throttle::SoftwareThermal].into()),
                repeated_samples: 10,
                ..Conditions::default()
            });
            let line = serde_json::to_vec(&Record::Candidate(Box::new(candidate.clone())));
            let records = parse(&path, &line.expect("JSON")).expect("a line");
            assert_eq!(records, [Record::Candidate(Box::new(candidate))]);
        }
        assert!(read > 100, "{read} candidates");
    }
}
