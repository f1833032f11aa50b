//! Fetching the pinned NVRTC wheels into the cache, once, with the user's own pip: pip knows the
//! user's index, proxy and certificates, and checks the SHA-256 of what it gets.

use super::search::{Attempt, libraries_in};
use crate::error::NvrtcError;
use crate::settings::{NVRTC_DIR_VARIABLE, Settings};
use fs_err as fs;
use serde::Deserialize;
use std::env::consts::ARCH;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

/// The release that is fetched where none is found.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedRelease {
    /// NVRTC's version, such as `13.0.88`.
    pub release: String,
    /// Where the wheels put the library, relative to the folder they are installed in.
    pub library_folder: PathBuf,
    /// The wheels: the compiler, and the headers that kernels include.
    pub wheels: Vec<PinnedWheel>,
}

/// One pinned package.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedWheel {
    /// Its name in the package index.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Its files, one per kind of machine.
    pub files: Vec<WheelFile>,
}

/// One file of a package.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelFile {
    /// `x86_64` or `aarch64`.
    pub machine: String,
    /// File name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

impl PinnedRelease {
    /// The files for one kind of machine, `x86_64` or `aarch64`; empty where there are none.
    pub fn files<'a>(&'a self, machine: &'a str) -> impl Iterator<Item = &'a WheelFile> {
        self.wheels.iter().flat_map(|w| &w.files).filter(move |file| file.machine == machine)
    }

    /// The requirements file that makes pip install exactly these wheels.
    fn requirements(&self) -> String {
        let mut text = String::new();
        for wheel in &self.wheels {
            let _ = write!(text, "{}=={}", wheel.package, wheel.version);
            for file in &wheel.files {
                let _ = write!(text, " \\\n    --hash=sha256:{}", file.sha256);
            }
            text.push('\n');
        }
        text
    }
}

static PINNED: LazyLock<PinnedRelease> = LazyLock::new(|| {
    serde_json::from_str(include_str!("wheels.json")).expect("checked by a test of this file")
});

/// The release that is fetched where none is found. `docs/nvrtc.md` says why it is this one.
pub fn pinned_release() -> &'static PinnedRelease {
    &PINNED
}

/// Where a fetched library lies in a cache folder.
pub(super) fn library_folder(cache: &Path) -> PathBuf {
    release_folder(cache).join(&PINNED.library_folder)
}

fn release_folder(cache: &Path) -> PathBuf {
    cache.join("nvrtc").join(format!("{}-{ARCH}", PINNED.release))
}

/// What to do where nothing can be fetched.
pub(super) fn by_hand() -> String {
    let mut text = String::from(
        "to supply it by hand, download on a connected machine (pip download, or the package's \
         page in the index)\n",
    );
    for file in PINNED.files(ARCH) {
        let _ = writeln!(text, "  {} (sha256 {})", file.name, file.sha256);
    }
    let folder = PINNED.library_folder.display();
    let _ = write!(
        text,
        "unzip {} into one folder F and set {NVRTC_DIR_VARIABLE}=F/{folder}; or set \
         {NVRTC_DIR_VARIABLE} to the folder of a CUDA toolkit (12.0 or newer) that holds \
         libnvrtc.so",
        if PINNED.wheels.len() > 1 { "them" } else { "it" },
    );
    text
}

/// Installs the pinned wheels into the cache and gives the library's folder. Another process that
/// does the same is waited for. A fetch that fails or is interrupted leaves the cache as it was,
/// but for a hidden folder that the next fetch removes.
pub(super) fn into_cache(settings: &Settings, found: &[Attempt]) -> Result<PathBuf, NvrtcError> {
    let commands: [&[&str]; 4] =
        [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
    into_cache_with(settings, found, &commands)
}

fn into_cache_with(
    settings: &Settings,
    found: &[Attempt],
    commands: &[&[&str]],
) -> Result<PathBuf, NvrtcError> {
    let fail = |reason: String| NvrtcError::FetchFailed {
        reason,
        attempts: found.to_vec(),
        remedy: by_hand(),
    };
    let Some(cache) = &settings.cache_dir else { return Err(NvrtcError::NoCacheFolder) };
    let size: u64 = PINNED.files(ARCH).map(|file| file.bytes).sum();
    if size == 0 {
        return Err(fail(format!("there is no pinned wheel for {ARCH} machines")));
    }

    let parent = cache.join("nvrtc");
    let unwritable = |source| NvrtcError::CacheUnwritable { folder: parent.clone(), source };
    fs::create_dir_all(&parent).map_err(unwritable)?;
    let lock = fs::File::create(parent.join(".lock")).map_err(unwritable)?;
    lock.file().lock().map_err(unwritable)?;
    let library = library_folder(cache);
    if libraries_in(&library).is_ok() {
        return Ok(library); // another process was faster
    }
    remove_leftovers(&parent);

    let Some(pip) = commands.iter().copied().find(|pip| runs(pip)) else {
        let tried: Vec<_> = commands.iter().map(|words| words.join(" ")).collect();
        return Err(fail(format!("pip was not found (tried {})", tried.join(", "))));
    };
    let staging =
        tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(&parent).map_err(unwritable)?;
    let requirements = staging.path().join("requirements.txt");
    fs::write(&requirements, PINNED.requirements()).map_err(unwritable)?;
    settings.report(&format!(
        "fetching NVRTC {} ({} MB) with {} into {}, once",
        PINNED.release,
        size.div_ceil(1_000_000),
        pip.join(" "),
        parent.display(),
    ));
    let target = staging.path().join("wheels");
    let output = install(pip, &requirements, &target, staging.path())
        .map_err(|error| fail(format!("{} does not start: {error}", pip.join(" "))))?;
    if !output.status.success() {
        let words = last_words(&output);
        if words.contains("No space left on device") {
            // Wheels and what is unpacked from them, together; a third of it stays.
            let needed = size.saturating_mul(4).div_ceil(1_000_000);
            let text = format!("no storage space left, and unpacking NVRTC takes {needed} MB");
            return Err(unwritable(io::Error::new(io::ErrorKind::StorageFull, text)));
        }
        return Err(fail(format!("{} failed: {words}", pip.join(" "))));
    }
    remove_unused(&target.join(&PINNED.library_folder));
    if let Err(reason) = libraries_in(&target.join(&PINNED.library_folder)) {
        return Err(fail(format!("the wheels have an unexpected layout: {reason}")));
    }
    fs::rename(&target, release_folder(cache)).map_err(unwritable)?;
    settings.report(&format!("NVRTC {} is in {}", PINNED.release, library.display()));
    Ok(library)
}

const STAGING_PREFIX: &str = ".fetching-";

/// Removes what an interrupted fetch left. Only called with the lock held, so none is in progress.
fn remove_leftovers(parent: &Path) {
    for entry in parent.read_dir().into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX) {
            // What cannot be removed does no harm but to the disk.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The wheel brings a second build of the compiler and static libraries, 120 MB that nothing here
/// uses.
fn remove_unused(folder: &Path) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.contains(".alt.") || name.ends_with(".a") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a pip answers to the command.
fn runs(pip: &[&str]) -> bool {
    let mut command = Command::new(pip[0]);
    command.args(&pip[1..]).arg("--version");
    command.stdin(Stdio::null()).output().is_ok_and(|output| output.status.success())
}

fn install(pip: &[&str], requirements: &Path, target: &Path, staging: &Path) -> io::Result<Output> {
    Command::new(pip[0])
        .args(&pip[1..])
        .args(["install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-compile"])
        .args(["--no-deps", "--require-hashes", "--only-binary", ":all:"])
        .arg("--target")
        .arg(target)
        .arg("--requirement")
        .arg(requirements)
        // pip unpacks here before it moves to the target: on one disk that is no copy, and what an
        // interruption leaves is removed with the rest.
        .env("TMPDIR", staging)
        // A user who installs into the home folder by default would clash with --target.
        .env("PIP_USER", "0")
        .env_remove("PIP_PREFIX")
        .env_remove("PIP_ROOT")
        .stdin(Stdio::null())
        .output()
}

/// The last lines that a command wrote to standard error (or, failing that, to standard output).
fn last_words(output: &Output) -> String {
    let text = [&output.stderr, &output.stdout]
        .map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned())
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or_else(|| output.status.to_string());
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(6)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_for_both_kinds_of_machine() {
        let release = pinned_release();
        for machine in ["x86_64", "aarch64"] {
            assert_eq!(release.files(machine).count(), release.wheels.len(), "{machine}");
        }
        for file in release.wheels.iter().flat_map(|wheel| &wheel.files) {
            assert!(file.name.ends_with(&format!("{}.whl", file.machine)), "{}", file.name);
            assert_eq!(file.sha256.len(), 64);
            assert!(file.sha256.bytes().all(|b| b.is_ascii_hexdigit()));
            assert!(file.bytes > 1_000_000);
        }
    }

    #[test]
    fn requirements_hold_every_hash() {
        let text = pinned_release().requirements();
        assert!(text.starts_with("nvidia-cuda-nvrtc==13.0.88 \\\n    --hash=sha256:ad9b6d2e"));
        assert_eq!(text.matches("--hash=sha256:").count(), 4);
    }

    /// A cache folder and a stand-in for pip that runs `script` with the target folder in `$T`, and
    /// notes each install in the file `runs`.
    struct Stage {
        folder: tempfile::TempDir,
        pip: String,
    }

    impl Stage {
        fn new(script: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let pip = folder.path().join("pip");
            let runs = folder.path().join("runs");
            let text = format!(
                "[ \"$1\" = --version ] && exit 0\necho run >> {}\n\
                 while [ \"$1\" != --target ]; do shift; done\nT=\"$2\"\n{script}\n",
                runs.display()
            );
            fs::write(&pip, text).unwrap();
            Self { pip: pip.to_str().unwrap().into(), folder }
        }

        fn fetch(&self) -> Result<PathBuf, NvrtcError> {
            let settings = Settings {
                nvrtc_dir: None,
                cache_dir: Some(self.folder.path().join("cache")),
                fetch: true,
                progress: None,
            };
            into_cache_with(&settings, &[], &[&["no-such-pip"], &["sh", &self.pip]])
        }

        fn installs(&self) -> usize {
            fs::read_to_string(self.folder.path().join("runs")).unwrap_or_default().lines().count()
        }

        /// What lies in the cache, but for the lock.
        fn kept(&self) -> Vec<String> {
            let entries = fs::read_dir(self.folder.path().join("cache/nvrtc")).unwrap();
            let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name != ".lock").collect()
        }
    }

    const INSTALL: &str = "mkdir -p $T/nvidia/cu13/lib; touch $T/nvidia/cu13/lib/libnvrtc.so.13 \
                           $T/nvidia/cu13/lib/libnvrtc.alt.so.13";

    #[test]
    fn wheels_are_fetched_once_though_several_ask() {
        let stage = Stage::new(&format!("{INSTALL}; sleep 0.2"));
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| stage.fetch())).collect();
            for fetch in all {
                let library = fetch.join().unwrap().unwrap();
                assert!(library.join("libnvrtc.so.13").exists());
                assert!(!library.join("libnvrtc.alt.so.13").exists());
            }
        });
        assert_eq!(stage.installs(), 1);
        assert_eq!(stage.kept(), [format!("13.0.88-{ARCH}")]);
    }

    #[test]
    fn a_failed_fetch_leaves_nothing_and_says_what_pip_said_and_what_to_do() {
        let stage =
            Stage::new(&format!("{INSTALL}; echo 'ERROR: No matching distribution' >&2; exit 1"));
        let message = stage.fetch().unwrap_err().to_string();
        for part in ["No matching distribution", "nvidia_cuda_nvrtc-13.0.88", "SPANFORGE_NVRTC_DIR"]
        {
            assert!(message.contains(part), "{message}");
        }
        assert!(stage.kept().is_empty());
        assert!(stage.fetch().is_err());
        assert_eq!(stage.installs(), 2, "the next one tries again");
    }

    #[test]
    fn a_full_disk_is_said_to_be_one() {
        let words = "OSError: [Errno 28] No space left on device: 'libnvrtc.so.13'";
        let stage = Stage::new(&format!("{INSTALL}; echo \"{words}\" >&2; exit 1"));
        let message = stage.fetch().unwrap_err().to_string();
        assert!(message.contains("no storage space") && message.contains("SPANFORGE_CACHE"));
        assert!(stage.kept().is_empty());
    }

    #[test]
    fn wheels_of_another_layout_are_not_kept() {
        let stage = Stage::new("mkdir -p $T/lib");
        assert!(stage.fetch().unwrap_err().to_string().contains("unexpected layout"));
        assert!(stage.kept().is_empty());
    }

    #[test]
    fn a_missing_pip_and_a_cache_that_cannot_be_written_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            nvrtc_dir: None,
            cache_dir: Some(folder.path().join("cache")),
            fetch: true,
            progress: None,
        };
        let error = into_cache_with(&settings, &[], &[&["no-such-pip", "-m"]]).unwrap_err();
        assert!(error.to_string().contains("pip was not found (tried no-such-pip -m)"), "{error}");
        fs::write(folder.path().join("file"), b"").unwrap();
        settings.cache_dir = Some(folder.path().join("file/cache"));
        let error = into_cache(&settings, &[]).unwrap_err();
        assert!(matches!(error, NvrtcError::CacheUnwritable { .. }), "{error}");
        settings.cache_dir = None;
        assert!(matches!(into_cache(&settings, &[]), Err(NvrtcError::NoCacheFolder)));
    }

    #[test]
    fn leftovers_go_and_the_rest_stays() {
        let parent = tempfile::tempdir().unwrap();
        for name in [".fetching-abc/wheels", "13.0.88-x86_64/nvidia"] {
            fs::create_dir_all(parent.path().join(name)).unwrap();
        }
        remove_leftovers(parent.path());
        assert!(!parent.path().join(".fetching-abc").exists());
        assert!(parent.path().join("13.0.88-x86_64/nvidia").exists());
    }
}
