//! What is shipped: a folder with a manifest, the tuned kernels as source, PTX and machine code, and
//! the evidence that chose them.
//!
//! ```text
//! manifest.json                     what the artifact holds and how to launch it
//! evidence.json                     how it was checked, timed and chosen
//! kernels/<id>/source.cu            self-contained CUDA source
//! kernels/<id>/kernel.ptx           for architectures without a cubin, newer ones included
//! kernels/<id>/<architecture>.cubin machine code
//! SHA256SUMS                        of every other file, as `sha256sum` writes and checks it
//! ```
//!
//! A folder is written beside its final place and renamed, so it is whole or absent. Loading reads
//! every file, compares its SHA-256, and compares what the manifest says with itself, with the source
//! and with the argument lists that the cubins declare; a changed byte is refused with the name of
//! the file.

mod consistency;
mod folder;

use crate::Bucket;
use crate::abi::{ABI_VERSION, ArgumentKind, Kernel};
use crate::configuration::{KernelShape, KernelSpec};
use consistency::{check_cubin, check_entry, check_interface, interface};
pub use folder::{check_replaceable, digest};
use folder::{named, put_in_place, verified_files};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use spanforge_device::{Architecture, CubinError, DeviceProperties, Image, Resources};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Raised whenever the manifest changes in a way that older readers would misread.
pub const SCHEMA_VERSION: u32 = 1;

/// Alignment that the kernels need of q, k, v and the output.
const ALIGNMENT_BYTES: u32 = 16;

const MANIFEST: &str = "manifest.json";
const EVIDENCE: &str = "evidence.json";
const SUMS: &str = "SHA256SUMS";

/// What an artifact holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// [`ABI_VERSION`].
    pub abi: u32,
    /// Tool and version that wrote it.
    pub created_by: String,
    /// Seconds since 1970, UTC.
    pub created_unix_s: u64,
    /// Workload it was tuned for.
    pub workload: String,
    /// Device it was tuned on, such as `emulated:h200`.
    pub device: String,
    /// Argument lists of the exported kernels, for loaders that know nothing of this tool.
    pub interface: Vec<Interface>,
    /// Kernels in order of preference. Of those that a device and a shape can use, the fastest in the
    /// bucket nearest to the batch is used, and the first where they were not timed by bucket.
    pub kernels: Vec<KernelEntry>,
}

/// The arguments of one exported kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Which.
    pub kernel: Kernel,
    /// The name it is exported under.
    pub symbol: String,
    /// Names and kinds in order.
    pub arguments: Vec<(String, ArgumentKind)>,
}

/// One kernel of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelEntry {
    /// The spec as an identifier.
    pub id: String,
    /// What it serves and how it is built and launched.
    pub spec: KernelSpec,
    /// Why it is here: `winner`, `bucket` where it is the best in some bucket only, `default` for the
    /// fallback, or `portable` where all others are for one architecture alone.
    pub role: String,
    /// Time of the workload's batch in microseconds, on the manifest's device; of several, the
    /// geometric mean.
    pub time_us: f64,
    /// `predicted` or `measured`.
    pub basis: spanforge_device::Basis,
    /// What it takes in each bucket that was tuned for, where that was more than one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<InBucket>,
    /// Threads per block of the decode kernel.
    pub threads: u32,
    /// Dynamic shared memory of the decode kernel in bytes.
    pub shared_bytes: u32,
    /// Alignment that q, k, v and the output need, in bytes.
    pub alignment_bytes: u32,
    /// Path of the source.
    pub source: String,
    /// Path of the PTX.
    pub ptx: String,
    /// Oldest architecture that can run the PTX.
    pub ptx_architecture: String,
    /// Machine code by architecture.
    pub cubins: BTreeMap<String, CubinEntry>,
}

/// How a kernel does in one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct InBucket {
    /// The bucket.
    pub bucket: Bucket,
    /// Microseconds.
    pub time_us: f64,
    /// Time over that of the best configuration that is known there, less one.
    pub loss: f64,
}

/// The kernel for a batch, and why.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'a> {
    /// The kernel.
    pub entry: &'a KernelEntry,
    /// The bucket as which the batch is served, and how the kernel does there; `None` where kernels
    /// were not timed by bucket.
    pub served_as: Option<&'a InBucket>,
}

/// Machine code for one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CubinEntry {
    /// Path of the file.
    pub file: String,
    /// What each kernel takes there.
    pub resources: BTreeMap<String, Resources>,
}

/// One kernel as it goes into an artifact.
#[derive(Clone, Debug)]
pub struct KernelFiles {
    /// Which.
    pub spec: KernelSpec,
    /// See [`KernelEntry::role`].
    pub role: String,
    /// See [`KernelEntry::time_us`].
    pub time_us: f64,
    /// See [`KernelEntry::basis`].
    pub basis: spanforge_device::Basis,
    /// See [`KernelEntry::buckets`].
    pub buckets: Vec<InBucket>,
    /// Rendered source.
    pub source: String,
    /// PTX for the oldest architecture to serve, or the only one.
    pub portable: Image,
    /// Images with machine code, one per architecture.
    pub images: Vec<Image>,
}

/// Everything that goes into an artifact.
#[derive(Clone, Debug)]
pub struct Contents {
    /// See [`Manifest::workload`].
    pub workload: String,
    /// See [`Manifest::device`].
    pub device: String,
    /// See [`Manifest::created_by`].
    pub created_by: String,
    /// See [`Manifest::created_unix_s`].
    pub created_unix_s: u64,
    /// In order of preference.
    pub kernels: Vec<KernelFiles>,
    /// How they were checked, timed and chosen.
    pub evidence: serde_json::Value,
}

/// A verified artifact in memory.
#[derive(Clone, Debug)]
pub struct Artifact {
    root: PathBuf,
    manifest: Manifest,
    evidence: serde_json::Value,
    files: BTreeMap<String, Vec<u8>>,
}

/// An artifact that cannot be written, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The file system refuses; the message names the path.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A file is not what was written.
    #[error(
        "{}: changed since the artifact was written (SHA-256 {found}, expected {expected}); export it again with `spanforge tune`", path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its digest.
        found: String,
        /// The recorded digest.
        expected: String,
    },
    /// A file that is not listed, a list that cannot be read, or a manifest that makes no sense.
    #[error("{}: {fault}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// Written by a version that this one does not understand.
    #[error("{}: {what} {found} is not supported; this version reads {supported}", path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// `schema` or `abi`.
        what: &'static str,
        /// What it says.
        found: String,
        /// What is read.
        supported: u32,
    },
    /// The machine code expects other arguments than the manifest says.
    #[error("{}: {symbol} takes {found}, but the interface says {expected}", path.display())]
    Interface {
        /// The cubin.
        path: PathBuf,
        /// The kernel.
        symbol: String,
        /// Argument sizes in the cubin.
        found: String,
        /// Argument sizes in the manifest.
        expected: String,
    },
    /// A cubin that cannot be read.
    #[error("{}: {source}", path.display())]
    Cubin {
        /// The cubin.
        path: PathBuf,
        /// Why.
        source: CubinError,
    },
    /// Nothing in the artifact fits.
    #[error("no kernel of this artifact serves {shape} on {device}:\n{reasons}")]
    NoKernel {
        /// The problem's shape.
        shape: String,
        /// The device.
        device: String,
        /// One line per kernel: why not.
        reasons: String,
    },
}

impl Contents {
    /// Writes the artifact to `directory`, replacing one that an earlier run left there. Nothing is
    /// at `directory` until everything is.
    pub fn write(&self, directory: &Path) -> Result<Artifact, ArtifactError> {
        self.write_checked(directory, |_| Ok(()))
    }

    /// [`write`](Self::write) for an artifact that has to pass `check` before it takes its place;
    /// `check` sees it as it was read back, in a temporary folder.
    pub fn write_checked<E: From<ArtifactError>>(
        &self,
        directory: &Path,
        check: impl FnOnce(&Artifact) -> Result<(), E>,
    ) -> Result<Artifact, E> {
        let target = check_replaceable(directory)?;
        let staging = self.stage(&target)?;
        check(&Artifact::load(staging.path())?)?;
        put_in_place(staging, &target).map_err(ArtifactError::from)?;
        Ok(Artifact::load(directory)?)
    }

    /// Writes everything to a temporary folder beside `target`.
    fn stage(&self, target: &Path) -> Result<tempfile::TempDir, ArtifactError> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut entries = Vec::new();
        for kernel in &self.kernels {
            let id = kernel.spec.to_string();
            let path = |name: &str| format!("kernels/{id}/{name}");
            let mut cubins = BTreeMap::new();
            for image in &kernel.images {
                let Some(cubin) = &image.cubin else { continue };
                let file = path(&format!("{}.cubin", image.architecture));
                files.insert(file.clone(), cubin.clone());
                let entry = CubinEntry { file, resources: image.resources.clone() };
                cubins.insert(image.architecture.clone(), entry);
            }
            let c = &kernel.spec.configuration;
            entries.push(KernelEntry {
                threads: c.threads(&kernel.spec.shape),
                shared_bytes: c.shared_bytes(&kernel.spec.shape) as u32,
                alignment_bytes: ALIGNMENT_BYTES,
                spec: kernel.spec,
                role: kernel.role.clone(),
                time_us: kernel.time_us,
                basis: kernel.basis,
                buckets: kernel.buckets.clone(),
                source: path("source.cu"),
                ptx: path("kernel.ptx"),
                ptx_architecture: kernel.portable.architecture.replace("compute_", "sm_"),
                cubins,
                id: id.clone(),
            });
            files.insert(path("source.cu"), kernel.source.clone().into_bytes());
            files.insert(path("kernel.ptx"), kernel.portable.ptx.clone().into_bytes());
        }
        let manifest = Manifest {
            schema: SCHEMA_VERSION,
            abi: ABI_VERSION,
            created_by: self.created_by.clone(),
            created_unix_s: self.created_unix_s,
            workload: self.workload.clone(),
            device: self.device.clone(),
            interface: interface(),
            kernels: entries,
        };
        files.insert(MANIFEST.into(), json(&manifest));
        files.insert(EVIDENCE.into(), json(&self.evidence));
        let mut sums = String::new();
        for (name, data) in &files {
            writeln!(sums, "{}  {name}", digest(data)).expect("writing to a string");
        }
        files.insert(SUMS.into(), sums.into_bytes());

        let parent = match target.parent() {
            Some(p) if p != Path::new("") => p,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent)?;
        let staging = tempfile::Builder::new()
            .prefix(".spanforge-")
            .tempdir_in(parent)
            .map_err(|e| named(parent, e))?;
        for (name, data) in &files {
            let path = staging.path().join(name);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(path, data)?;
        }
        Ok(staging)
    }
}

impl Artifact {
    /// Reads and verifies an artifact.
    pub fn load(root: &Path) -> Result<Self, ArtifactError> {
        let files = verified_files(root)?;
        let malformed =
            |file: &str, fault: String| ArtifactError::Malformed { path: root.join(file), fault };
        let get = |name: &str| {
            files.get(name).ok_or_else(|| malformed(SUMS, format!("does not list {name}")))
        };
        // The versions first: a newer manifest may not even have the fields of this one.
        let raw: serde_json::Value = serde_json::from_slice(get(MANIFEST)?)
            .map_err(|e| malformed(MANIFEST, e.to_string()))?;
        for (what, supported) in [("schema", SCHEMA_VERSION), ("abi", ABI_VERSION)] {
            let found = raw.get(what).unwrap_or(&serde_json::Value::Null);
            if found.as_u64() != Some(u64::from(supported)) {
                let (path, found) = (root.join(MANIFEST), found.to_string());
                return Err(ArtifactError::Version { path, what, found, supported });
            }
        }
        let manifest: Manifest =
            serde_json::from_value(raw).map_err(|e| malformed(MANIFEST, e.to_string()))?;
        let evidence = serde_json::from_slice(get(EVIDENCE)?)
            .map_err(|e| malformed(EVIDENCE, e.to_string()))?;
        check_interface(&manifest).map_err(|fault| malformed(MANIFEST, fault))?;
        for entry in &manifest.kernels {
            get(&entry.ptx)?;
            check_entry(entry, get(&entry.source)?)
                .map_err(|fault| malformed(MANIFEST, format!("kernel `{}`: {fault}", entry.id)))?;
            for cubin in entry.cubins.values() {
                check_cubin(&root.join(&cubin.file), get(&cubin.file)?)?;
            }
        }
        Ok(Self { root: root.to_owned(), manifest, evidence, files })
    }

    /// The folder it was read from.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How its kernels were checked, timed and chosen.
    pub fn evidence(&self) -> &serde_json::Value {
        &self.evidence
    }

    /// Names and sizes in bytes of all files that were verified.
    pub fn files(&self) -> impl Iterator<Item = (&str, usize)> {
        self.files.iter().map(|(name, data)| (name.as_str(), data.len()))
    }

    /// The kernel that serves `shape` on the device: of those that can, the fastest in the bucket that
    /// is nearest to the batch's, the preferred one among equals.
    pub fn select(
        &self,
        shape: KernelShape,
        device: &DeviceProperties,
        batch: &Bucket,
    ) -> Result<Selected<'_>, ArtifactError> {
        let verdicts = self.explain(shape, device);
        let fit = || verdicts.iter().filter(|(_, unfit)| unfit.is_none()).map(|(entry, _)| *entry);
        let known = fit().flat_map(|entry| &entry.buckets).map(|served| served.bucket);
        let nearest = batch.nearest(known);
        let timed = fit().filter_map(|entry| {
            let there = entry.buckets.iter().find(|served| Some(served.bucket) == nearest)?;
            Some((entry, there))
        });
        let fastest = timed.min_by(|one, other| one.1.time_us.total_cmp(&other.1.time_us));
        let fastest = fastest.map(|(entry, there)| Selected { entry, served_as: Some(there) });
        let first = || fit().next().map(|entry| Selected { entry, served_as: None });
        fastest.or_else(first).ok_or_else(|| {
            let mut reasons = String::new();
            for (entry, reason) in &verdicts {
                let reason = reason.as_deref().unwrap_or_default();
                writeln!(reasons, "  {}: {reason}", entry.id).expect("writing to a string");
            }
            ArtifactError::NoKernel {
                shape: shape.to_string(),
                device: device.name.clone(),
                reasons: reasons.trim_end().to_owned(),
            }
        })
    }

    /// For each kernel, in order of preference, why it cannot serve `shape` on the device; `None`
    /// where it can.
    pub fn explain(
        &self,
        shape: KernelShape,
        device: &DeviceProperties,
    ) -> Vec<(&KernelEntry, Option<String>)> {
        self.manifest.kernels.iter().map(|entry| (entry, unfit(entry, shape, device))).collect()
    }

    /// The code of a kernel for a device: machine code where there is some for its architecture,
    /// PTX in any case.
    pub fn image(&self, entry: &KernelEntry, device: &DeviceProperties) -> Image {
        let text = |name: &str| {
            self.files.get(name).map(|data| String::from_utf8_lossy(data).into_owned())
        };
        let ptx = text(&entry.ptx).unwrap_or_default();
        match entry.cubins.get(&device.architecture) {
            Some(cubin) => Image {
                ptx,
                cubin: self.files.get(&cubin.file).cloned(),
                architecture: device.architecture.clone(),
                resources: cubin.resources.clone(),
            },
            None => Image {
                ptx,
                cubin: None,
                architecture: entry.ptx_architecture.clone(),
                resources: BTreeMap::new(),
            },
        }
    }
}

/// Why a kernel cannot serve a shape on a device.
fn unfit(entry: &KernelEntry, shape: KernelShape, device: &DeviceProperties) -> Option<String> {
    if entry.spec.shape != shape {
        return Some(format!("it is built for {}", entry.spec.shape));
    }
    if entry.shared_bytes > device.shared_bytes_per_block {
        return Some(format!(
            "it needs {} bytes of shared memory per block and the device has {}",
            entry.shared_bytes, device.shared_bytes_per_block
        ));
    }
    if entry.cubins.contains_key(&device.architecture) {
        return None;
    }
    let named = [&entry.ptx_architecture, &device.architecture];
    let [of_ptx, here] = named.map(|name| Architecture::parse(name));
    let runs = match of_ptx.and_then(|a| a.suffix) {
        None => of_ptx.map(|a| a.number) <= here.map(|a| a.number),
        Some(_) => of_ptx == here,
    };
    (!runs).then(|| {
        format!(
            "there is no cubin for {} and its PTX is for {}",
            device.architecture,
            entry.ptx_reach()
        )
    })
}

impl KernelEntry {
    /// The architectures whose drivers take its PTX, in words: with instructions of one architecture alone
    /// it is for no newer one.
    pub fn ptx_reach(&self) -> String {
        let suffix = Architecture::parse(&self.ptx_architecture).and_then(|a| a.suffix);
        let which = if suffix.is_some() { "alone" } else { "and newer" };
        format!("{} {which}", self.ptx_architecture)
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain data serialises");
    text.push(b'\n');
    text
}
