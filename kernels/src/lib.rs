//! The span-attention kernel family: CUDA device code (`cuda/*.cuh`), the problems it solves, the
//! configurations it can be built in, how a configuration becomes source text, how it is launched,
//! and the artifact it ships in. The binary interface of the kernels is written down here and
//! nowhere else ([`abi`]).
//!
//! The way of a configuration: [`KernelSpec`] -> [`render()`] -> (compiled by the device room) ->
//! [`Decoder`] -> launches.

pub mod abi;
pub mod addressing;
pub mod artifact;
pub mod bucket;
pub mod configuration;
pub mod decoder;
pub mod launch;
pub mod model;
pub mod problem;
pub mod render;
pub mod space;

pub use addressing::{Addressing, KvStrides};
pub use bucket::Bucket;
pub use configuration::{
    Configuration, Core, KernelShape, KernelSpec, LoadPath, Merge, QueryHome, WARPGROUP_COLUMNS,
};
pub use decoder::Decoder;
pub use launch::Launcher;
pub use model::ModelKernels;
pub use problem::{DecodeProblem, ProblemError};
pub use render::{RenderError, Rendered, render, render_model, render_read};
pub use space::{Limits, SearchSpace};
