//! What must be the same for a run to go on, or to be served: else other times came of the same
//! configurations.

use crate::export::ExportError;
use crate::record::Run;
use spanforge_kernels::artifact::digest;
use spanforge_kernels::{KernelSpec, render};

/// Something that a run follows from and that is not the same here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is.
    pub what: &'static str,
    /// What it was.
    pub then: String,
    /// What it is here.
    pub now: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was {} and is {}", self.what, self.then, self.now)
    }
}

/// The first difference between two runs that makes other times of the same configurations.
pub(crate) fn change(then: &Run, now: &Run) -> Option<Change> {
    let parts = |run: &Run| {
        [
            ("the version of this program", run.environment.spanforge.clone()),
            ("the source of the kernels", run.kernel_source.clone()),
            ("the version of NVRTC", run.environment.nvrtc.clone()),
            ("the device", format!("{:?}", run.properties)),
            ("the search space", format!("a space of {} configurations", run.valid_configurations)),
        ]
    };
    let mut pairs = parts(then).into_iter().zip(parts(now));
    let ((what, then), (_, now)) = pairs.find(|((_, then), (_, now))| then != now)?;
    Some(Change { what, then, now })
}

/// SHA-256 of the source of a space's default configuration, which changes as the kernels do.
pub(crate) fn kernel_source(default: &KernelSpec) -> Result<String, ExportError> {
    Ok(digest(render(default)?.text.as_bytes()))
}
