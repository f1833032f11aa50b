//! NVRTC, NVIDIA's run-time compiler: where it is found, how it is fetched, how it is called.

mod fetch;
mod ffi;
mod search;

pub use fetch::{PinnedRelease, PinnedWheel, WheelFile, pinned_release};
pub use search::{Attempt, Origin};

use crate::error::NvrtcError;
use crate::settings::Settings;
use std::ffi::CString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use ffi::{Failure, Output};

/// Oldest release that is used: the first that knows sm_90 and sm_90a.
const OLDEST_MAJOR: u32 = 12;

/// A loaded NVRTC. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Nvrtc {
    api: Arc<ffi::Api>,
    version: (u32, u32),
    architectures: Vec<u32>,
    library: PathBuf,
    include: Option<PathBuf>,
    origin: Origin,
    attempts: Vec<Attempt>,
}

impl Nvrtc {
    /// Finds NVRTC and loads it. Looked at in this order: the folder of `settings.nvrtc_dir` (and
    /// then nothing else); the system's toolkits (`LD_LIBRARY_PATH`, `CUDA_HOME`, `CUDA_PATH`,
    /// `nvcc` on the `PATH`, the loader's cache, `/usr/local/cuda*`); Python site-packages; the
    /// cache; once more Python, by asking `python3`. Where none has one that serves (release 12 or newer, with `cuda_fp16.h` beside it),
    /// the pinned wheels are fetched into the cache with the user's own pip, if
    /// `settings.fetch` allows.
    ///
    /// # Errors
    /// Says every place that was looked at, what was wrong there, and how to supply the library by
    /// hand.
    pub fn find(settings: &Settings) -> Result<Self, NvrtcError> {
        if let Some(folder) = &settings.nvrtc_dir {
            return Self::open(folder);
        }
        let mut attempts = Vec::new();
        for place in search::places(settings) {
            match Self::load(&place.folder, place.origin, true) {
                Ok(found) => {
                    attempts.push(place.attempt(format!("used: {found}")));
                    return Ok(Self { attempts, ..found });
                }
                Err(outcome) => attempts.push(place.attempt(outcome)),
            }
        }
        if !settings.fetch {
            return Err(NvrtcError::NotFound { attempts, remedy: fetch::by_hand() });
        }
        let folder = fetch::into_cache(settings, &attempts)?;
        let found = Self::load(&folder, Origin::Cache, true).map_err(|reason| {
            NvrtcError::Unusable { folder: folder.clone(), reason, remedy: fetch::by_hand() }
        })?;
        attempts.push(Attempt {
            origin: Origin::Cache,
            folder,
            outcome: format!("fetched: {found}"),
        });
        Ok(Self { attempts, ..found })
    }

    /// Loads NVRTC from the folder that holds `libnvrtc.so*`, whatever its release and whether or
    /// not the CUDA headers are beside it.
    pub fn open(folder: &Path) -> Result<Self, NvrtcError> {
        let found = Self::load(folder, Origin::Setting, false).map_err(|reason| {
            let folder = folder.to_owned();
            NvrtcError::Unusable { folder, reason, remedy: fetch::by_hand() }
        })?;
        let outcome = format!("used: {found}");
        let attempts =
            vec![Attempt { origin: Origin::Setting, folder: folder.to_owned(), outcome }];
        Ok(Self { attempts, ..found })
    }

    /// Loads the library of a folder; the error is the reason why it does not serve.
    fn load(folder: &Path, origin: Origin, with_headers: bool) -> Result<Self, String> {
        let files = search::libraries_in(folder)?;
        let include = search::headers_beside(folder);
        if with_headers && include.is_none() {
            return Err("no cuda_fp16.h in the include folder beside it".into());
        }
        let api = ffi::Api::load(&files.library, &files.builtins)
            .map_err(|error| format!("it does not load: {error}"))?;
        let words = |failure| match failure {
            ffi::Failure::Source(text) => text,
            ffi::Failure::Call(call, text) => format!("{call} failed: {text}"),
        };
        let version = api.version().map_err(words)?;
        if version.0 < OLDEST_MAJOR {
            let (major, minor) = version;
            return Err(format!("release {major}.{minor} is older than {OLDEST_MAJOR}.0"));
        }
        let architectures = api.architectures().map_err(words)?;
        Ok(Self {
            api: Arc::new(api),
            version,
            architectures,
            library: files.library,
            include,
            origin,
            attempts: Vec::new(),
        })
    }

    /// Major and minor release, such as (13, 0).
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The library file in use.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Folder of the CUDA headers (`cuda_fp16.h` and its kin), where there is one.
    pub fn include(&self) -> Option<&Path> {
        self.include.as_deref()
    }

    /// How the library was found.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Numbers of the architectures that it compiles for, such as 90, in rising order.
    pub fn architectures(&self) -> &[u32] {
        &self.architectures
    }

    /// The places that were looked at on the way, the one in use last.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    pub(crate) fn run(
        &self,
        text: &str,
        name: &str,
        options: &[String],
    ) -> Result<Output, Failure> {
        let zero = |what: &str| Failure::Source(format!("{what} holds a zero byte"));
        let text = CString::new(text).map_err(|_| zero("the source"))?;
        let name = CString::new(name).map_err(|_| zero("the source's name"))?;
        let options: Result<Vec<_>, _> = options.iter().map(|o| CString::new(o.as_str())).collect();
        self.api.compile(&text, &name, &options.map_err(|_| zero("an option"))?)
    }
}

impl fmt::Display for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version;
        write!(f, "NVRTC {major}.{minor} ({})", self.library.display())
    }
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
