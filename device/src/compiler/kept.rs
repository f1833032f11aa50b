//! Compiled code on disk. An entry is a folder that a person can read:
//! `<cache>/compiled/<source>-<architecture>-<key>/` with `entry.json`, `kernel.ptx`, where there is
//! one `kernel.cubin`, and `SHA256SUMS` over the others (`sha256sum -c` checks it too). It is
//! written beside its place and renamed, so it is there whole or not at all; an entry whose sums do
//! not agree is compiled anew and replaced.

use super::Source;
use crate::device::{Image, Resources};
use crate::nvrtc::Nvrtc;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Changed whenever the meaning of an entry changes; entries of another format are not read.
const FORMAT: u32 = 1;
const ENTRY: &str = "entry.json";
const PTX: &str = "kernel.ptx";
const CUBIN: &str = "kernel.cubin";
const SUMS: &str = "SHA256SUMS";

/// What is kept of a compilation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) image: Image,
    pub(super) log: String,
}

/// SHA-256, in hexadecimal, of everything that the code depends on: the text, the name (which is in
/// the line information), the options with architecture and include folder, and the compiler.
pub(super) struct Key(String);

impl Key {
    pub(super) fn new(nvrtc: &Nvrtc, source: &Source, options: &[String]) -> Self {
        // A release can be updated in place; its size then differs.
        let bytes = fs::metadata(nvrtc.library()).map_or(0, |file| file.len());
        let (major, minor) = nvrtc.version();
        let compiler = format!("{major}.{minor} {bytes} {}", nvrtc.library().display());
        let mut hash = Sha256::new();
        let parts = [FORMAT.to_string(), compiler, source.name.clone(), source.text.clone()];
        for part in parts.iter().chain(options) {
            // The length keeps neighbouring parts apart.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        Self(hexadecimal(&hash.finalize()))
    }
}

/// The part of an entry that is neither PTX nor cubin.
#[derive(Serialize, Deserialize)]
struct Description {
    format: u32,
    key: String,
    source: String,
    architecture: String,
    options: Vec<String>,
    resources: BTreeMap<String, Resources>,
    log: String,
}

/// The folder of entries.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

impl Kept {
    pub(super) fn in_cache(cache: &Path) -> Self {
        Self { folder: cache.join("compiled") }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn place(&self, key: &Key, source: &Source, architecture: &str) -> PathBuf {
        let stem = Path::new(&source.name).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let readable = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        let stem: String = stem.chars().map(readable).take(60).collect();
        let key = key.0.get(..32).unwrap_or(&key.0);
        self.folder.join(format!("{stem}-{architecture}-{key}"))
    }

    /// The entry, if it is there and undamaged.
    pub(super) fn load(&self, key: &Key, source: &Source, architecture: &str) -> Option<Entry> {
        let place = self.place(key, source, architecture);
        let sums = fs::read_to_string(place.join(SUMS)).ok()?;
        let checked = |name: &str| {
            let data = fs::read(place.join(name)).ok()?;
            let line = format!("{}  {name}", hexadecimal(&Sha256::digest(&data)));
            sums.lines().any(|sum| sum == line).then_some(data)
        };
        let found: Description = serde_json::from_slice(&checked(ENTRY)?).ok()?;
        if found.format != FORMAT || found.key != key.0 {
            return None;
        }
        let ptx = String::from_utf8(checked(PTX)?).ok()?;
        let has_cubin = sums.lines().any(|sum| sum.ends_with(CUBIN));
        let cubin = if has_cubin { Some(checked(CUBIN)?) } else { None };
        let Description { architecture, resources, log, .. } = found;
        Some(Entry { image: Image { ptx, cubin, architecture, resources }, log })
    }

    pub(super) fn store(
        &self,
        key: &Key,
        source: &Source,
        options: &[String],
        entry: &Entry,
    ) -> io::Result<()> {
        let image = &entry.image;
        let description = Description {
            format: FORMAT,
            key: key.0.clone(),
            source: source.name.clone(),
            architecture: image.architecture.clone(),
            options: options.to_vec(),
            resources: image.resources.clone(),
            log: entry.log.clone(),
        };
        let description = serde_json::to_vec_pretty(&description)?;
        fs::create_dir_all(&self.folder)?;
        let staging = tempfile::Builder::new().prefix(".writing-").tempdir_in(&self.folder)?;
        let mut sums = String::new();
        let mut write = |name: &str, data: &[u8]| {
            let _ = writeln!(sums, "{}  {name}", hexadecimal(&Sha256::digest(data)));
            fs::write(staging.path().join(name), data)
        };
        write(ENTRY, &description)?;
        write(PTX, image.ptx.as_bytes())?;
        if let Some(cubin) = &image.cubin {
            write(CUBIN, cubin)?;
        }
        fs::write(staging.path().join(SUMS), sums)?;

        let place = self.place(key, source, &image.architecture);
        if place.exists() && self.load(key, source, &image.architecture).is_none() {
            fs::remove_dir_all(&place)?; // damaged
        }
        match fs::rename(staging.path(), &place) {
            // Another process was faster; what it wrote is the same.
            Err(_) if self.load(key, source, &image.architecture).is_some() => Ok(()),
            result => result,
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
