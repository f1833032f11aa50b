//! The search core: expressions, parameter spaces, files of other tools, replay and score.

mod expressions;
mod formats;
mod parameters;
mod replay;

use std::io::Write;
use std::path::{Path, PathBuf};

/// A file of the recorded tuning data that may lie beside this repository or above it.
pub fn recorded(file: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found =
        root.ancestors().map(|f| f.join("shared/data/tuning").join(file)).find(|f| f.is_file());
    if found.is_none() {
        // Past the capture of the test harness, so that it is seen.
        let _ = writeln!(
            std::io::stderr(),
            "SKIP: there is no shared/data/tuning/{file} beside this repository"
        );
    }
    found
}
