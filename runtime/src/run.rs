//! One problem from a file, computed with an artifact's kernel: the work of `spanforge run`.

use crate::attention::remedy;
use crate::tensor_file::{StagedFile, TensorFileError};
use crate::tensors::{read_problem, write_output_to};
use spanforge_device::{
    Basis, CompileError, Compiler, Device, DeviceProperties, Image, LaunchReport, NvrtcError,
    Source, Target,
};
use spanforge_kernels::artifact::{Artifact, ArtifactError, Selected};
use spanforge_kernels::configuration::{KernelShape, KernelSpec};
use spanforge_kernels::decoder::{DecoderError, UploadOptions};
use spanforge_kernels::{Decoder, Limits, RenderError, SearchSpace, render};
use std::fmt;
use std::path::Path;

/// What to compute.
#[derive(Clone, Copy, Debug)]
pub struct RunRequest<'a> {
    /// The artifact; without one, the kernel is compiled.
    pub artifact: Option<&'a Path>,
    /// The problem, see [`crate::tensors`].
    pub inputs: &'a Path,
    /// Where results go.
    pub output: &'a Path,
    /// Whether to compile the default configuration where the artifact has no kernel.
    pub compile: bool,
}

/// Where the kernel came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The artifact, in the role it has there (`winner` or `default`).
    Artifact {
        /// See [`spanforge_kernels::artifact::KernelEntry::role`].
        role: String,
    },
    /// Compiled for this run: the default configuration, since no artifact's kernel serves.
    Compiled,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Artifact { role } => write!(f, "the artifact's {role}"),
            Self::Compiled => f.write_str("compiled now: the default configuration"),
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// The kernel.
    pub kernel: KernelSpec,
    /// Why this one.
    pub origin: Origin,
    /// Name of the device.
    pub device: String,
    /// Rows.
    pub rows: usize,
    /// Selected tokens of all rows together, each counted once.
    pub selected_tokens: u64,
    /// Bytes of the K and V rows of the selected tokens.
    pub selected_kv_bytes: u64,
    /// Per launch its kernel's name and what the device reports; none without rows.
    pub launches: Vec<(String, LaunchReport)>,
}

/// What can go wrong in a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The artifact cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The inputs cannot be read, or the output cannot be written.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// No kernel at hand for the shape.
    #[error(
        "{reason}\n{}; or pass --compile to use the default configuration for it",
        remedy(shape)
    )]
    NoKernel {
        /// The shape.
        shape: KernelShape,
        /// Why the artifact's kernels do not serve.
        reason: String,
    },
    /// No configuration keeps all constraints for the shape on the device.
    #[error("no configuration for {shape} fits the limits of {device}")]
    NoConfiguration {
        /// The shape.
        shape: KernelShape,
        /// The device.
        device: String,
    },
    /// The default configuration cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// NVRTC is not at hand.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
    /// The default configuration does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The kernel cannot be run.
    #[error(transparent)]
    Decoder(#[from] DecoderError),
}

/// Reads the inputs, computes them on the device and writes the output, which is whole or absent.
/// `compiler` is asked for only where something is to be compiled.
pub fn run(
    request: &RunRequest<'_>,
    device: &dyn Device,
    compiler: impl FnOnce() -> Result<Compiler, NvrtcError>,
) -> Result<RunReport, RunError> {
    let artifact = request.artifact.map(Artifact::load).transpose()?;
    let problem = read_problem(request.inputs)?;
    let file = StagedFile::create(request.output)?;
    let shape = problem.kernel_shape().map_err(|e| DecoderError::Problem(e.into()))?;
    let properties = device.properties();

    let bucket = problem.bucket();
    let selected =
        artifact.as_ref().map(|artifact| (artifact, artifact.select(shape, properties, &bucket)));
    let (image, kernel, origin) = match selected {
        Some((artifact, Ok(Selected { entry, .. }))) => (
            artifact.image(entry, properties),
            entry.spec,
            Origin::Artifact { role: entry.role.clone() },
        ),
        _ if request.compile => {
            let (image, spec) =
                compile_default(shape, bucket.rows_per_request, properties, &compiler()?)?;
            (image, spec, Origin::Compiled)
        }
        Some((_, Err(ArtifactError::NoKernel { .. }))) | None => {
            let reason = match selected {
                Some((_, Err(error))) => error.to_string(),
                _ => format!("there is no artifact to take a kernel for {shape} from"),
            };
            return Err(RunError::NoKernel { shape, reason });
        }
        Some((_, Err(error))) => return Err(error.into()),
    };

    let decoder = Decoder::load(device, &image, kernel)?;
    let resident = decoder.upload(&problem, UploadOptions::default())?;
    let mut launches = Vec::new();
    for launch in decoder.launches(&resident) {
        let report = device.launch(&launch).map_err(DecoderError::from)?;
        launches.push((launch.kernel, report));
    }
    let output = resident.output().map_err(DecoderError::from)?;
    write_output_to(file, &problem, &output)?;
    Ok(RunReport {
        kernel,
        origin,
        device: properties.name.clone(),
        rows: problem.rows(),
        selected_tokens: problem.spans.total_selected_tokens(),
        selected_kv_bytes: problem.selected_kv_bytes(),
        launches,
    })
}

/// Renders and compiles the default configuration of a shape for a device and for batches of which a
/// request has `rows` rows: machine code for a GPU, PTX for an emulated one, which executes nothing else.
pub fn compile_default(
    shape: KernelShape,
    rows: u32,
    properties: &DeviceProperties,
    compiler: &Compiler,
) -> Result<(Image, KernelSpec), RunError> {
    let space = SearchSpace::for_rows(shape, Limits::of(properties), rows);
    let configuration = space
        .default_configuration()
        .ok_or_else(|| RunError::NoConfiguration { shape, device: properties.name.clone() })?;
    let spec = KernelSpec { shape, configuration };
    let rendered = render(&spec)?;
    let target = compile_target(properties);
    let image = compiler.compile(&Source::new(rendered.name, rendered.text), &target)?;
    Ok((image, spec))
}

/// What to make of a source to run it on a device: machine code on a GPU, PTX on an emulated one.
pub fn compile_target(properties: &DeviceProperties) -> Target {
    let architecture = properties.architecture.clone();
    match properties.basis {
        Basis::Measured => Target::Cubin(architecture),
        Basis::Predicted => Target::Ptx(architecture),
    }
}
