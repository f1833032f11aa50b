//! What a user can set about finding the compiler and keeping what it made: a value, made once.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Environment variable that names a folder with `libnvrtc.so*`.
pub const NVRTC_DIR_VARIABLE: &str = "SPANFORGE_NVRTC_DIR";
/// Environment variable that names the cache folder.
pub const CACHE_VARIABLE: &str = "SPANFORGE_CACHE";

/// Called with one line of text before each step that can take long, such as a download.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// Settings of this room.
#[derive(Clone)]
pub struct Settings {
    /// Folder with `libnvrtc.so*`; where set, no other place is looked at.
    pub nvrtc_dir: Option<PathBuf>,
    /// Cache folder; `None` where the environment names neither a cache nor a home folder.
    pub cache_dir: Option<PathBuf>,
    /// Whether NVRTC may be fetched with pip where it is not found.
    pub fetch: bool,
    /// Where lines of progress go; nowhere where there is none.
    pub progress: Option<Progress>,
}

impl Settings {
    /// The settings of the process environment: `SPANFORGE_NVRTC_DIR`; `SPANFORGE_CACHE`, else
    /// `$XDG_CACHE_HOME/spanforge`, else `~/.cache/spanforge`. Fetching is allowed and silent.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var_os(name).map(PathBuf::from))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let set = |name| variable(name).filter(|path| !path.as_os_str().is_empty());
        // The XDG base directory specification says to ignore a relative path.
        let absolute = |name| set(name).filter(|path: &PathBuf| path.is_absolute());
        let cache_dir = set(CACHE_VARIABLE)
            .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("spanforge")))
            .or_else(|| absolute("HOME").map(|path| path.join(".cache/spanforge")));
        Self { nvrtc_dir: set(NVRTC_DIR_VARIABLE), cache_dir, fetch: true, progress: None }
    }

    /// The same settings with progress lines going to `sink`.
    pub fn with_progress(mut self, sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(sink));
        self
    }

    pub(crate) fn report(&self, line: &str) {
        if let Some(sink) = &self.progress {
            sink(line);
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("nvrtc_dir", &self.nvrtc_dir)
            .field("cache_dir", &self.cache_dir)
            .field("fetch", &self.fetch)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_of(variables: &[(&str, &str)]) -> Option<PathBuf> {
        Settings::from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v))
        })
        .cache_dir
    }

    #[test]
    fn the_cache_folder_is_the_first_that_is_named() {
        let all = [("SPANFORGE_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(cache_of(&all), Some("/a".into()));
        assert_eq!(cache_of(&all[1..]), Some("/b/spanforge".into()));
        assert_eq!(cache_of(&all[2..]), Some("/c/.cache/spanforge".into()));
        assert_eq!(cache_of(&[]), None);
    }

    #[test]
    fn empty_and_relative_folders_are_passed_over() {
        let variables = [("SPANFORGE_CACHE", ""), ("XDG_CACHE_HOME", "rel"), ("HOME", "/c")];
        assert_eq!(cache_of(&variables), Some("/c/.cache/spanforge".into()));
    }
}
