//! From the best candidates to an artifact: compiled for every architecture asked for, written, read
//! back, checked once more as it will be used, and only then put in its place.

use crate::record::Candidate;
use serde_json::json;
use spanforge_device::{CompileError, Compiler, Device, Source, Target};
use spanforge_kernels::artifact::{Artifact, ArtifactError, Contents, InBucket, KernelFiles};
use spanforge_kernels::{Decoder, KernelSpec, RenderError, render};
use spanforge_verify::{CaseReport, VerifyError, check_seeds};
use std::path::Path;

/// Oldest architecture that the kernels can run on (`cp.async`, bf16): the PTX of an artifact is made
/// for it, so that every newer GPU can translate it. PTX of a kernel that is for one architecture alone
/// is made for that one.
pub const PORTABLE_ARCHITECTURE: &str = "compute_80";

/// What can go wrong between the winner and its artifact.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Rendering.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// Compiling, for instance for an unknown architecture.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Writing or reading back.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Checking.
    #[error("the exported kernel could not be checked: {0}")]
    Verify(#[from] VerifyError),
    /// The exported kernel is wrong, though the candidate was right.
    #[error("the exported kernel fails its check on {problem}: {fault}")]
    Faulty {
        /// The problem.
        problem: String,
        /// What was found.
        fault: String,
    },
}

/// A kernel to export, with why it is in the artifact.
pub struct Chosen<'a> {
    /// The candidate.
    pub candidate: &'a Candidate,
    /// `winner`, `bucket`, `default` or `portable`.
    pub role: &'a str,
    /// How it does in each bucket; none where one batch was timed.
    pub buckets: Vec<InBucket>,
}

/// Everything but the kernels that an artifact records.
pub struct Facts {
    /// Name of the workload.
    pub workload: String,
    /// Device, as given on the command line.
    pub device: String,
    /// Seconds since 1970, UTC.
    pub unix_s: u64,
    /// Machine, run and choice, as recorded.
    pub evidence: serde_json::Value,
}

/// Compiles one kernel for `architecture` (`sm_90a` makes machine code, `compute_80` PTX alone).
pub fn compile(
    compiler: &Compiler,
    spec: &KernelSpec,
    architecture: &str,
) -> Result<spanforge_device::Image, ExportError> {
    let rendered = render(spec)?;
    compile_source(compiler, rendered.name, rendered.text, architecture)
}

/// Compiles a source for `architecture`, as [`compile`] does.
pub(crate) fn compile_source(
    compiler: &Compiler,
    name: String,
    text: String,
    architecture: &str,
) -> Result<spanforge_device::Image, ExportError> {
    let target = if architecture.starts_with("compute_") {
        Target::Ptx(architecture.to_owned())
    } else {
        Target::Cubin(architecture.to_owned())
    };
    Ok(compiler.compile(&Source::new(name, text), &target)?)
}

/// Writes the artifact, once its kernels as they were written pass the problems of `seeds`.
pub fn export(
    directory: &Path,
    chosen: &[Chosen<'_>],
    architectures: &[String],
    facts: Facts,
    compiler: &Compiler,
    device: &dyn Device,
    seeds: std::ops::Range<u64>,
) -> Result<Artifact, ExportError> {
    let kernels = chosen
        .iter()
        .map(|c| {
            let spec = c.candidate.spec;
            let own = spec.own_architecture();
            let portable = own.map_or_else(
                || PORTABLE_ARCHITECTURE.to_owned(),
                |architecture| architecture.replace("sm_", "compute_"),
            );
            Ok(KernelFiles {
                spec,
                role: c.role.to_owned(),
                time_us: c.candidate.time_us.unwrap_or(f64::MAX),
                basis: c.candidate.basis,
                buckets: c.buckets.clone(),
                source: render(&spec)?.text,
                portable: compile(compiler, &spec, &portable)?,
                images: architectures
                    .iter()
                    .filter(|architecture| own.is_none_or(|own| own == architecture.as_str()))
                    .map(|a| compile(compiler, &spec, a))
                    .collect::<Result<_, _>>()?,
            })
        })
        .collect::<Result<Vec<_>, ExportError>>()?;
    let candidates: Vec<&Candidate> = chosen.iter().map(|c| c.candidate).collect();
    let contents = Contents {
        workload: facts.workload,
        device: facts.device,
        created_by: format!("spanforge {}", env!("CARGO_PKG_VERSION")),
        created_unix_s: facts.unix_s,
        kernels,
        evidence: json!({ "run": facts.evidence, "candidates": candidates }),
    };
    contents.write_checked(directory, |artifact| {
        for entry in &artifact.manifest().kernels {
            let image = artifact.image(entry, device.properties());
            let decoder = Decoder::load(device, &image, entry.spec).map_err(VerifyError::from)?;
            for report in check_seeds(&decoder, seeds.clone())? {
                let CaseReport { problem, fault: Some(fault), .. } = report else { continue };
                return Err(ExportError::Faulty { problem, fault: fault.to_string() });
            }
        }
        Ok(())
    })
}
