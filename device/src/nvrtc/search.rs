//! The places where an NVRTC may lie, in the order in which they are looked at.

use super::fetch;
use crate::settings::Settings;
use serde::Serialize;
use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a place came to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Named by a setting.
    Setting,
    /// A CUDA toolkit of the system.
    System,
    /// A Python environment.
    SitePackages,
    /// The tool's own cache.
    Cache,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setting => "setting",
            Self::System => "system",
            Self::SitePackages => "site-packages",
            Self::Cache => "cache",
        })
    }
}

/// A place that was looked at, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Why it was looked at.
    pub origin: Origin,
    /// The folder.
    pub folder: PathBuf,
    /// What was found, or why it does not serve.
    pub outcome: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.origin, self.folder.display(), self.outcome)
    }
}

/// A folder to look at.
pub(super) struct Place {
    pub(super) origin: Origin,
    pub(super) folder: PathBuf,
}

impl Place {
    pub(super) fn attempt(&self, outcome: String) -> Attempt {
        Attempt { origin: self.origin, folder: self.folder.clone(), outcome }
    }
}

/// The folders that exist and hold a `libnvrtc.so*`, in order, each once. Lazy: starting `python3`
/// takes 30 to 250 ms, so it is asked last, where neither the folders that Python environments
/// commonly have nor the cache hold one.
pub(super) fn places(settings: &Settings) -> impl Iterator<Item = Place> {
    let cache = settings.cache_dir.as_deref().map(fetch::library_folder);
    let of = |origin| move |folder| Place { origin, folder };
    let wheels = |sites: Vec<PathBuf>| sites.into_iter().flat_map(|site| wheel_folders(&site));
    let mut seen = BTreeSet::new();
    system_folders()
        .map(of(Origin::System))
        .chain(wheels(site_packages()).chain(conda()).map(of(Origin::SitePackages)))
        .chain(cache.map(of(Origin::Cache)))
        .chain(
            std::iter::once_with(move || wheels(asked_of_python()))
                .flatten()
                .map(of(Origin::SitePackages)),
        )
        .filter(|place| libraries_in(&place.folder).is_ok())
        .filter(move |place| match place.folder.canonicalize() {
            Ok(folder) => seen.insert(folder),
            Err(_) => false,
        })
}

fn system_folders() -> impl Iterator<Item = PathBuf> {
    let listed = |name| env::var_os(name).into_iter().flat_map(|v| split(&v));
    let roots = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    // nvcc lies in the toolkit's bin folder.
    let nvcc = listed("PATH")
        .filter(|folder| folder.join("nvcc").exists())
        .filter_map(|folder| folder.canonicalize().ok()?.parent().map(Path::to_owned));
    let toolkits = std::iter::once_with(|| numbered_folders(Path::new("/usr/local"), "cuda"));
    listed("LD_LIBRARY_PATH")
        .chain(roots.chain(nvcc).flat_map(library_folders))
        .chain(std::iter::once_with(loader_cache).flatten())
        .chain(toolkits.flatten().flat_map(library_folders))
}

fn split(paths: &std::ffi::OsStr) -> Vec<PathBuf> {
    env::split_paths(paths).filter(|path| path.is_absolute()).collect()
}

fn library_folders(toolkit: PathBuf) -> [PathBuf; 3] {
    let target = format!("targets/{}-linux/lib", env::consts::ARCH);
    [toolkit.join("lib64"), toolkit.join(target), toolkit.join("lib")]
}

/// Folders of `parent` whose name begins with `prefix`: the bare name first, then the highest
/// version number.
fn numbered_folders(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = parent.read_dir().into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let rest = name.strip_prefix(prefix)?;
            Some((rest.is_empty(), version_numbers(rest), entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, _, path)| path).collect()
}

/// The folders of the libnvrtc files that `ldconfig` knows.
fn loader_cache() -> Vec<PathBuf> {
    let run = |program| {
        Command::new(program).arg("-p").stderr(Stdio::null()).stdin(Stdio::null()).output().ok()
    };
    let Some(output) = run("/sbin/ldconfig").or_else(|| run("ldconfig")) else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.trim_start().starts_with("libnvrtc.so"))
        .filter_map(|line| Path::new(line.split("=>").nth(1)?.trim()).parent().map(Path::to_owned))
        .collect()
}

/// The package folders of the active virtual environment, of the `python3` on the `PATH`, and of
/// the user.
fn site_packages() -> Vec<PathBuf> {
    let python = env::var_os("PATH")
        .into_iter()
        .flat_map(|paths| split(&paths))
        .map(|folder| folder.join("python3"))
        .find(|python| python.exists());
    // A virtual environment's python3 links to the one it was made with.
    let resolved = python.as_ref().and_then(|python| python.canonicalize().ok());
    let prefix = |python: PathBuf| Some(python.parent()?.parent()?.to_owned());
    let prefixes = [
        env::var_os("VIRTUAL_ENV").map(PathBuf::from),
        python.and_then(prefix),
        resolved.and_then(prefix),
        env::var_os("HOME").map(|home| Path::new(&home).join(".local")),
    ];
    prefixes.into_iter().flatten().flat_map(|prefix| packages_below(&prefix)).collect()
}

/// Package folders of a Python installed at `prefix`; Debian has its own, and some in `local`.
fn packages_below(prefix: &Path) -> Vec<PathBuf> {
    ["lib", "local/lib"]
        .into_iter()
        .flat_map(|lib| numbered_folders(&prefix.join(lib), "python"))
        .flat_map(|python| [python.join("site-packages"), python.join("dist-packages")])
        .collect()
}

/// The library folder of the active conda environment.
fn conda() -> Option<PathBuf> {
    env::var_os("CONDA_PREFIX").map(|root| Path::new(&root).join("lib"))
}

/// The package folders that `python3` itself names.
fn asked_of_python() -> Vec<PathBuf> {
    let script = "import site\n\
                  for f in site.getsitepackages() + [site.getusersitepackages()]: print(f)";
    let mut command = Command::new("python3");
    command.args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::null());
    let text = command.output().map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    text.unwrap_or_default().lines().map(PathBuf::from).collect()
}

/// The library folders that NVIDIA's wheels make in a package folder: one per CUDA release since
/// 13, before that one per library.
fn wheel_folders(site: &Path) -> Vec<PathBuf> {
    let nvidia = site.join("nvidia");
    let mut folders: Vec<_> =
        numbered_folders(&nvidia, "cu").into_iter().map(|folder| folder.join("lib")).collect();
    folders.push(nvidia.join("cuda_nvrtc/lib"));
    folders
}

/// The files that make up one NVRTC.
#[derive(Debug, PartialEq)]
pub(super) struct Libraries {
    pub(super) library: PathBuf,
    pub(super) builtins: Vec<PathBuf>,
}

/// The newest `libnvrtc.so*` of a folder with the data libraries beside it; the error says what is
/// missing.
pub(super) fn libraries_in(folder: &Path) -> Result<Libraries, String> {
    let entries = folder.read_dir().map_err(|error| format!("cannot be read: {error}"))?;
    let (mut libraries, mut builtins) = (Vec::new(), Vec::new());
    for entry in entries.flatten() {
        // Several names commonly link to one file.
        let Ok(path) = entry.path().canonicalize() else { continue };
        match entry.file_name().to_str() {
            Some(name) if name.starts_with("libnvrtc.so") => libraries.push(path),
            Some(name) if name.starts_with("libnvrtc-builtins.so") => builtins.push(path),
            _ => {}
        }
    }
    let version = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        version_numbers(name.split_once(".so").map_or("", |(_, rest)| rest))
    };
    builtins.sort();
    builtins.dedup();
    match libraries.into_iter().max_by_key(version) {
        Some(library) => Ok(Libraries { library, builtins }),
        None => Err("no libnvrtc.so in it".into()),
    }
}

fn version_numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// The folder with `cuda_fp16.h` that belongs to a library folder: a toolkit keeps it at
/// `../include` (or two levels up, from `targets/*/lib`), older wheels in a package of their own,
/// distributions in `/usr/include`.
pub(super) fn headers_beside(folder: &Path) -> Option<PathBuf> {
    let folder = folder.canonicalize().ok()?;
    ["../include", "../../../include", "../../cuda_runtime/include", "../../include"]
        .into_iter()
        .map(|path| folder.join(path))
        .find(|path| path.join("cuda_fp16.h").is_file())
        .and_then(|path| path.canonicalize().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_is_taken_and_alternatives_are_not() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "libnvrtc.so.12.9.86",
            "libnvrtc.so.13.0.88",
            "libnvrtc.alt.so.13.5",
            "libnvrtc-builtins.so.13.0",
            "libnvrtc-builtins.alt.so.13.0",
            "libnvrtc_static.a",
        ] {
            fs_err::write(folder.path().join(name), b"").unwrap();
        }
        std::os::unix::fs::symlink("libnvrtc.so.13.0.88", folder.path().join("libnvrtc.so"))
            .unwrap();
        let found = libraries_in(folder.path()).unwrap();
        let root = folder.path().canonicalize().unwrap();
        assert_eq!(found.library, root.join("libnvrtc.so.13.0.88"));
        assert_eq!(found.builtins, [root.join("libnvrtc-builtins.so.13.0")]);
    }

    #[test]
    fn a_folder_without_the_library_says_so() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(libraries_in(folder.path()), Err("no libnvrtc.so in it".into()));
        let gone = folder.path().join("gone");
        assert!(libraries_in(&gone).unwrap_err().starts_with("cannot be read"));
    }

    #[test]
    fn headers_are_found_in_the_layouts_of_toolkits_and_wheels() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().canonicalize().unwrap();
        for (library, include) in [
            ("toolkit/lib64", "toolkit/include"),
            ("target/targets/x86_64-linux/lib", "target/targets/x86_64-linux/include"),
            ("site/nvidia/cuda_nvrtc/lib", "site/nvidia/cuda_runtime/include"),
        ] {
            fs_err::create_dir_all(top.join(library)).unwrap();
            assert_eq!(headers_beside(&top.join(library)), None, "{library}");
            fs_err::create_dir_all(top.join(include)).unwrap();
            fs_err::write(top.join(include).join("cuda_fp16.h"), b"").unwrap();
            assert_eq!(headers_beside(&top.join(library)), Some(top.join(include)), "{library}");
        }
    }

    #[test]
    fn toolkit_folders_come_bare_name_first_then_newest() {
        let root = tempfile::tempdir().unwrap();
        for name in ["cuda-12.9", "cuda", "cuda-13.0", "cuda-9.2", "other"] {
            fs_err::create_dir(root.path().join(name)).unwrap();
        }
        let names: Vec<_> = numbered_folders(root.path(), "cuda")
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["cuda", "cuda-13.0", "cuda-12.9", "cuda-9.2"]);
    }

    #[test]
    fn wheels_are_found_in_the_package_folders_of_a_python() {
        let root = tempfile::tempdir().unwrap();
        let site = root.path().join("lib/python3.11/site-packages");
        for folder in ["nvidia/cu13/lib", "nvidia/cublas/lib", "nvidia/cuda_nvrtc/lib"] {
            fs_err::create_dir_all(site.join(folder)).unwrap();
        }
        assert_eq!(packages_below(root.path())[0], site);
        let found: Vec<_> =
            wheel_folders(&site).into_iter().filter(|folder| folder.exists()).collect();
        assert_eq!(found[0], site.join("nvidia/cu13/lib"));
        assert_eq!(found.last().unwrap(), &site.join("nvidia/cuda_nvrtc/lib"));
    }
}
