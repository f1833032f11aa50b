//! An artifact as a folder: read whole and verified, and put in its place whole.

use super::{ArtifactError, SUMS};
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// The most often that a place is taken by another run between two steps of this one.
const ATTEMPTS: u32 = 16;

/// Where an artifact for `directory` goes (a link is followed), if nothing but an artifact or an
/// empty folder is there: what is there is replaced.
pub fn check_replaceable(directory: &Path) -> Result<PathBuf, ArtifactError> {
    let refused = |fault: &str| ArtifactError::Malformed {
        path: directory.to_owned(),
        fault: format!("{fault}; remove it, or choose another place for the artifact"),
    };
    match fs::symlink_metadata(directory) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(directory.to_owned()),
        Err(e) => return Err(e.into()),
    }
    let target =
        fs::canonicalize(directory).map_err(|_| refused("a link that leads nowhere is there"))?;
    if !target.is_dir() {
        return Err(refused("a file is there"));
    }
    if !target.join(SUMS).is_file() && fs::read_dir(&target)?.next().is_some() {
        return Err(refused("a folder that is not an artifact is there"));
    }
    Ok(target)
}

/// Renames a finished folder to `directory`, where an older artifact may be.
pub(super) fn put_in_place(staging: tempfile::TempDir, directory: &Path) -> std::io::Result<()> {
    let old = staging.path().with_extension("old");
    for attempt in 1.. {
        let replaces = match fs::rename(directory, &old) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        let placed = fs::rename(staging.path(), directory);
        if replaces && (placed.is_ok() || fs::rename(&old, directory).is_err()) {
            fs::remove_dir_all(&old)?;
        }
        match placed {
            Ok(()) => break,
            // Another run has put its own there in between.
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty && attempt < ATTEMPTS => {}
            Err(e) => return Err(e),
        }
    }
    // It is no longer at the temporary place, so there is nothing to remove.
    let _ = staging.keep();
    Ok(())
}

/// Reads every file that the list of digests names and compares them; refuses files it does not
/// name.
pub(super) fn verified_files(root: &Path) -> Result<BTreeMap<String, Vec<u8>>, ArtifactError> {
    let sums_path = root.join(SUMS);
    let sums = read_file(&sums_path)?;
    let malformed = |fault: String| ArtifactError::Malformed { path: sums_path.clone(), fault };
    let text =
        std::str::from_utf8(&sums).map_err(|_| malformed("is not text: it was changed".into()))?;
    let mut files = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let (expected, name) = line
            .split_once("  ")
            .filter(|(sum, _)| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()))
            .ok_or_else(|| malformed(format!("line {} is not a digest and a file", index + 1)))?;
        let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
        if !inside || name.is_empty() {
            return Err(malformed(format!("line {} names a file outside the artifact", index + 1)));
        }
        let path = root.join(name);
        let data = read_file(&path)?;
        let found = digest(&data);
        if found != expected {
            return Err(ArtifactError::Changed { path, found, expected: expected.to_owned() });
        }
        files.insert(name.to_owned(), data);
    }
    refuse_unlisted(root, root, &files)?;
    Ok(files)
}

fn refuse_unlisted(
    root: &Path,
    folder: &Path,
    listed: &BTreeMap<String, Vec<u8>>,
) -> Result<(), ArtifactError> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        // A link is not followed: it may lead anywhere, even back here.
        if entry.file_type()?.is_dir() {
            refuse_unlisted(root, &path, listed)?;
            continue;
        }
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        if name != SUMS && !listed.contains_key(&name) {
            let fault = format!("is not listed in {SUMS}: it does not belong to the artifact");
            return Err(ArtifactError::Malformed { path, fault });
        }
    }
    Ok(())
}

/// The SHA-256 of `data` in hexadecimal digits.
pub fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

/// Reads a regular file; anything else might never end.
fn read_file(path: &Path) -> Result<Vec<u8>, ArtifactError> {
    if fs::metadata(path)?.is_file() {
        return Ok(fs::read(path)?);
    }
    Err(ArtifactError::Malformed { path: path.to_owned(), fault: "is not a regular file".into() })
}

pub(super) fn named(path: &Path, error: std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
