//! From CUDA source to code: options, architectures, the compiler's log, and the cache of what was
//! compiled before.

mod kept;
mod log;

use crate::cubin;
use crate::device::Image;
use crate::error::{CompileError, NvrtcError};
use crate::nvrtc::{Failure, Nvrtc, Output};
use crate::settings::Settings;
use kept::{Entry, Kept};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Options of every compilation, before those of the source: source lines in the code, so that a
/// diagnosis can name them; functions without a specifier are device functions.
pub const DEFAULT_OPTIONS: [&str; 3] = ["-lineinfo", "-default-device", "--std=c++17"];

/// A CUDA translation unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What messages and line information call it; no such file need exist.
    pub name: String,
    /// The text.
    pub text: String,
    /// NVRTC options, after the default ones; `--std` replaces the default's.
    pub options: Vec<String>,
}

impl Source {
    /// A source with no options of its own.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), options: Vec::new() }
    }
}

/// What to make of a source. The string names an architecture: `sm_90a`, or `compute_90a`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// PTX alone.
    Ptx(String),
    /// Machine code, and the PTX on the way to it.
    Cubin(String),
}

impl Target {
    /// The name of the architecture, as given.
    pub fn architecture(&self) -> &str {
        match self {
            Self::Ptx(name) | Self::Cubin(name) => name,
        }
    }
}

/// The name of a GPU architecture, such as `sm_90a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Architecture {
    /// Compute capability times ten: 90 in `sm_90a`.
    pub number: u32,
    /// `a` (code for exactly this architecture) or `f` (for its family), where there is one.
    pub suffix: Option<char>,
}

impl Architecture {
    /// Reads `sm_90a` or `compute_90a`; `None` for anything else.
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("sm_").or_else(|| name.strip_prefix("compute_"))?;
        let (digits, suffix) = match digits.strip_suffix(['a', 'f']) {
            Some(rest) => (rest, digits.chars().next_back()),
            None => (digits, None),
        };
        let plain = digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit());
        Some(Self { number: digits.parse().ok().filter(|_| plain)?, suffix })
    }

    /// Whether machine code for this architecture runs on a GPU of compute capability
    /// `major.minor`: the same major and no newer minor; with `a`, that very one; with `f`, one of
    /// its family, which is the same rule as without.
    pub fn runs_on(&self, major: u32, minor: u32) -> bool {
        let (own_major, own_minor) = (self.number / 10, self.number % 10);
        match self.suffix {
            Some('a') => (own_major, own_minor) == (major, minor),
            _ => own_major == major && own_minor <= minor,
        }
    }

    /// The name that NVRTC takes for PTX, such as `compute_90a`.
    pub fn compute(&self) -> String {
        self.to_string().replace("sm_", "compute_")
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.number)?;
        self.suffix.map_or(Ok(()), |suffix| write!(f, "{suffix}"))
    }
}

/// A compilation with what the compiler said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compilation {
    /// The code.
    pub image: Image,
    /// Warnings, and for machine code the lines of `ptxas -v`.
    pub log: String,
    /// Whether it was compiled before and taken from the cache.
    pub from_cache: bool,
}

/// Compiles sources, each once. Usable from many threads.
#[derive(Clone, Debug)]
pub struct Compiler {
    nvrtc: Nvrtc,
    kept: Option<Kept>,
    default_options: Vec<String>,
}

impl Compiler {
    /// A compiler on the NVRTC that [`Nvrtc::find`] finds, keeping code in the cache folder of the
    /// settings.
    pub fn new(settings: &Settings) -> Result<Self, NvrtcError> {
        let nvrtc = Nvrtc::find(settings)?;
        let cache = settings.cache_dir.as_deref().ok_or(NvrtcError::NoCacheFolder)?;
        Ok(Self::without_cache(nvrtc).with_cache(cache))
    }

    /// A compiler that keeps nothing.
    pub fn without_cache(nvrtc: Nvrtc) -> Self {
        let default_options = DEFAULT_OPTIONS.map(String::from).to_vec();
        Self { nvrtc, kept: None, default_options }
    }

    /// Keeps code below the folder `cache`, which is made when it is first needed.
    pub fn with_cache(mut self, cache: &Path) -> Self {
        self.kept = Some(Kept::in_cache(cache));
        self
    }

    /// Replaces [`DEFAULT_OPTIONS`], for example to leave line information out of code to ship.
    pub fn with_default_options(mut self, options: &[&str]) -> Self {
        self.default_options = options.iter().map(|option| option.to_string()).collect();
        self
    }

    /// The NVRTC in use.
    pub fn nvrtc(&self) -> &Nvrtc {
        &self.nvrtc
    }

    /// Compiles `source`, or takes the code from the cache.
    pub fn compile(&self, source: &Source, target: &Target) -> Result<Image, CompileError> {
        Ok(self.compile_with_log(source, target)?.image)
    }

    /// Compiles several sources on the threads of the current rayon pool; the results are in the
    /// order of the jobs.
    pub fn compile_many(&self, jobs: &[(Source, Target)]) -> Vec<Result<Image, CompileError>> {
        jobs.par_iter().map(|(source, target)| self.compile(source, target)).collect()
    }

    /// [`Compiler::compile`] with the compiler's log.
    pub fn compile_with_log(
        &self,
        source: &Source,
        target: &Target,
    ) -> Result<Compilation, CompileError> {
        let architecture = self.architecture(target)?;
        let options = self.options(source, target, architecture);
        let name = match target {
            Target::Ptx(_) => architecture.compute(),
            Target::Cubin(_) => architecture.to_string(),
        };
        let key = kept::Key::new(&self.nvrtc, source, &options);
        if let Some(kept) = &self.kept
            && let Some(entry) = kept.load(&key, source, &name)
        {
            return Ok(Compilation { image: entry.image, log: entry.log, from_cache: true });
        }
        let output = self.nvrtc.run(&source.text, &source.name, &options);
        let output = output.map_err(|failure| match failure {
            Failure::Source(log) => {
                CompileError::Source { name: source.name.clone(), architecture: name.clone(), log }
            }
            Failure::Call(call, message) => {
                CompileError::Compiler { name: source.name.clone(), call: call.into(), message }
            }
        })?;
        let entry =
            read(output, source, target, &name).map_err(|reason| CompileError::Unreadable {
                name: source.name.clone(),
                architecture: name.clone(),
                reason,
            })?;
        if let Some(kept) = &self.kept {
            kept.store(&key, source, &options, &entry).map_err(|error| {
                CompileError::CacheUnwritable { folder: kept.folder().to_owned(), source: error }
            })?;
        }
        Ok(Compilation { image: entry.image, log: entry.log, from_cache: false })
    }

    /// The architecture of a target, checked before anything is compiled.
    fn architecture(&self, target: &Target) -> Result<Architecture, CompileError> {
        let asked = target.architecture();
        let known = self.nvrtc.architectures();
        // NVRTC lists numbers only. The suffix a came with Hopper, f with Blackwell.
        let suffix_from = |suffix| if suffix == 'a' { 90 } else { 100 };
        Architecture::parse(asked)
            .filter(|found| known.contains(&found.number))
            .filter(|found| found.suffix.is_none_or(|s| found.number >= suffix_from(s)))
            .ok_or_else(|| CompileError::UnknownArchitecture {
                asked: asked.into(),
                version: self.nvrtc.version(),
                supported: known
                    .iter()
                    .flat_map(|&number| {
                        let variants = [None, Some('a'), Some('f')];
                        variants
                            .into_iter()
                            .filter(move |s| s.is_none_or(|s| number >= suffix_from(s)))
                            .map(move |suffix| Architecture { number, suffix }.to_string())
                    })
                    .collect(),
            })
    }

    fn options(&self, source: &Source, target: &Target, architecture: Architecture) -> Vec<String> {
        let is_standard = |o: &String| o.starts_with("--std") || o.starts_with("-std");
        let own_standard = source.options.iter().any(is_standard);
        let mut options = match target {
            Target::Ptx(_) => vec![format!("--gpu-architecture={}", architecture.compute())],
            Target::Cubin(_) => {
                vec![format!("--gpu-architecture={architecture}"), "--ptxas-options=-v".into()]
            }
        };
        let defaults = self.default_options.iter();
        options.extend(defaults.filter(|o| !(own_standard && is_standard(o))).cloned());
        options.extend(source.options.iter().cloned());
        options.extend(self.nvrtc.include().map(|path| format!("-I{}", path.display())));
        options
    }
}

/// Turns what NVRTC gave into an image.
fn read(
    output: Output,
    source: &Source,
    target: &Target,
    architecture: &str,
) -> Result<Entry, String> {
    let ptx = String::from_utf8(output.ptx).map_err(|_| "the PTX is not UTF-8")?;
    let ptx = log::relative_files(ptx.trim_end_matches('\0'), &source.name);
    let cubin = match target {
        Target::Ptx(_) => None,
        Target::Cubin(_) if output.cubin.is_empty() => return Err("the cubin is empty".into()),
        Target::Cubin(_) => Some(output.cubin),
    };
    let mut resources = match &cubin {
        Some(cubin) => cubin::resources(cubin).map_err(|error| error.to_string())?,
        None => BTreeMap::new(),
    };
    for (kernel, spills) in log::spills(&output.log) {
        if let Some(resources) = resources.get_mut(&kernel) {
            resources.spill_store_bytes = spills.stored;
            resources.spill_load_bytes = spills.loaded;
        }
    }
    let image = Image { ptx, cubin, architecture: architecture.into(), resources };
    Ok(Entry { image, log: log::without_times(&output.log) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architecture_names_are_read_strictly() {
        let arch = |number, suffix| Some(Architecture { number, suffix });
        assert_eq!(Architecture::parse("sm_80"), arch(80, None));
        assert_eq!(Architecture::parse("compute_90a"), arch(90, Some('a')));
        assert_eq!(Architecture::parse("sm_120f"), arch(120, Some('f')));
        for bad in ["", "90a", "sm_", "sm_a", "sm_90b", "sm_+90", "sm_90aa", "SM_90", "sm_99999"] {
            assert_eq!(Architecture::parse(bad), None, "{bad}");
        }
        assert_eq!(Architecture { number: 90, suffix: Some('a') }.compute(), "compute_90a");
    }

    #[test]
    fn machine_code_runs_on_the_same_major_and_no_older_minor() {
        let runs = |name, major, minor| Architecture::parse(name).unwrap().runs_on(major, minor);
        assert!(runs("sm_80", 8, 0) && runs("sm_80", 8, 9));
        assert!(!runs("sm_89", 8, 0) && !runs("sm_80", 9, 0) && !runs("sm_90", 8, 0));
        assert!(runs("sm_90a", 9, 0) && !runs("sm_100a", 10, 3) && runs("sm_100f", 10, 3));
        assert!(runs("sm_120", 12, 1));
    }
}
