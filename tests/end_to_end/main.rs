//! The command as its users meet it: the built binary in temporary folders. All tests share the
//! cache of the environment, so that NVRTC is fetched at most once.

mod artifact;
mod bad_input;
mod bench;
mod calibrate;
mod check;
mod cluster;
mod conformance;
mod convert;
mod emulate;
mod fuzz;
mod model;
mod predict;
mod python;
mod replay;
mod report;
mod run;
mod t1;
mod trained;
mod tune;
mod tune_resume;
mod verbs;
mod workers;

#[path = "../../runtime/tests/model/folder.rs"]
mod model_folder;
#[path = "../nats/mod.rs"]
mod nats;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// How a run of the command ended.
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Fails the test unless the exit code is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Fails the test unless standard error has this text.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "no {text:?} in stderr:\n{}", self.err);
        self
    }

    /// Fails the test unless standard output has this text.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert!(self.out.contains(text), "no {text:?} in stdout:\n{}", self.out);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}:\n{}", self.out))
    }
}

/// The command with arguments, in a folder.
pub fn command<const N: usize>(folder: &Path, arguments: [&str; N]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanforge"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn finish(mut command: Command) -> Ran {
    let output = command.output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Ran {
        code: output.status.code().expect("not killed by a signal"),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// Runs the command with arguments, in a folder.
pub fn spanforge<const N: usize>(folder: &Path, arguments: [&str; N]) -> Ran {
    finish(command(folder, arguments))
}

/// An empty folder, removed with the value.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Says, past the capture of the test harness, why a test does nothing here.
pub fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP: {reason}");
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
