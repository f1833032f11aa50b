//! What can go wrong in the attention module, and what to do about it.

use spanforge_device::DeviceError;
use spanforge_kernels::ProblemError;
use spanforge_kernels::artifact::ArtifactError;
use spanforge_kernels::configuration::KernelShape;
use spanforge_spans::KvDtype;

/// What can go wrong in the attention module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionError {
    /// The artifact has no kernel for the shape on this device.
    #[error("{source}\n{}", remedy(shape))]
    NoKernel {
        /// The shape.
        shape: KernelShape,
        /// Why each kernel of the artifact does not serve.
        source: ArtifactError,
    },
    /// The step is at fault, or the shape.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// The device is, or a check of the emulated one has reported.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The image is for another shape.
    #[error("the kernel is built for {kernel} and cannot serve {shape}")]
    OtherShape {
        /// Shape of the kernel.
        kernel: KernelShape,
        /// Shape of the model.
        shape: KernelShape,
    },
    /// A step beyond the limits that the module was loaded for.
    #[error(
        "{found} {what}, and the module was loaded for at most {limit}; load it with larger limits"
    )]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How many.
        found: usize,
        /// The most.
        limit: usize,
    },
    /// Limits beyond what the kernels' 32-bit integers hold.
    #[error("limits of {found} {what}: the kernels count up to {}", i32::MAX)]
    Limits {
        /// What is counted.
        what: &'static str,
        /// How many; `usize::MAX` for more than that.
        found: usize,
    },
    /// A run without a plan.
    #[error("there is no plan to run: plan the step first, and again after an error")]
    NotPlanned,
    /// A buffer or number of a run that does not serve the plan.
    #[error("{operand}: {fault}")]
    Operand {
        /// Which.
        operand: &'static str,
        /// What is wrong and what was expected.
        fault: String,
    },
}

/// What makes a kernel for a shape.
pub(crate) fn remedy(shape: &KernelShape) -> String {
    let of_8_bits = match shape.kv_dtype {
        KvDtype::Same => String::new(),
        other => format!(" --kv-dtype {other}"),
    };
    format!(
        "`spanforge tune --workload W{of_8_bits}` makes one, where W is a workload or a trace in {} \
         with head_dim {} and {} query head(s) per KV head",
        shape.dtype, shape.head_dim, shape.group_size
    )
}
