//! Files that are whole or absent: written beside their place, then renamed.

use anyhow::{Context, Result, bail};
use fs_err as fs;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Writes `data` to `path`, replacing what is there only once all of it is on disk.
pub fn write(path: &Path, data: &[u8]) -> Result<()> {
    write_all([(path, data)])
}

/// Writes several files; none is replaced before all are on disk.
pub fn write_all<'a>(files: impl IntoIterator<Item = (&'a Path, &'a [u8])>) -> Result<()> {
    let staged: Vec<Staged> =
        files.into_iter().map(|(path, data)| Staged::new(path, data)).collect::<Result<_>>()?;
    staged.into_iter().try_for_each(Staged::finish)
}

/// A file that is on disk, but not yet under its name.
struct Staged {
    path: PathBuf,
    file: Option<NamedTempFile>,
}

impl Staged {
    fn new(path: &Path, data: &[u8]) -> Result<Self> {
        let failed =
            || format!("cannot write {}: choose a folder that exists and has room", path.display());
        // A link is followed, so that the file it names is replaced and not the link.
        let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        match target.metadata() {
            Ok(found) if found.is_dir() => {
                bail!("cannot write {}: it is a folder; name a file", path.display())
            }
            // A terminal, a pipe or /dev/null: nothing to replace.
            Ok(found) if !found.is_file() => {
                fs::write(&target, data).with_context(failed)?;
                return Ok(Self { path: target, file: None });
            }
            _ => {}
        }
        let folder = match target.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut file = tempfile::Builder::new()
            .prefix(".spanforge-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .with_context(failed)?;
        file.write_all(data).and_then(|()| file.as_file().sync_all()).with_context(failed)?;
        Ok(Self { path: target, file: Some(file) })
    }

    fn finish(self) -> Result<()> {
        if let Some(file) = self.file {
            file.persist(&self.path)
                .map_err(|error| error.error)
                .with_context(|| format!("cannot write {}", self.path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_staged_leaves_the_others_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let (good, bad) = (folder.path().join("good"), folder.path().join("missing/bad"));
        fs::write(&good, "old").unwrap();
        let error = write_all([(good.as_path(), &b"new"[..]), (&bad, b"new")]).unwrap_err();
        assert!(error.to_string().contains("missing/bad"), "{error}");
        assert_eq!(fs::read_to_string(&good).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
        write(&good, b"new").unwrap();
        assert_eq!(fs::read_to_string(&good).unwrap(), "new");
    }

    #[test]
    fn folders_are_refused_and_devices_are_written_to() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(folder.path(), b"x").unwrap_err().to_string().contains("it is a folder"));
        write(Path::new("/dev/null"), b"x").unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }
}
