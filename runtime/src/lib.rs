//! The model runtime: what a language model calls to attend to spans of its own context, on a GPU
//! or on an emulated one.
//!
//! - [`SpanAttention`]: loads the kernel of an artifact, plans a decode step, runs it layer by
//!   layer.
//! - [`PagedCache`]: the keys and values of all requests, in pages.
//! - [`model`]: a Llama-architecture decoder that selects its own spans.
//! - [`tensors`]: problems and results as safetensors files.
//! - [`run()`]: one problem from a file to a file, the work of `spanforge run`.
//!
//! ```no_run
//! use spanforge_device::Device;
//! use spanforge_kernels::artifact::Artifact;
//! use spanforge_kernels::configuration::AttentionShape;
//! use spanforge_runtime::{
//!     CacheSize, DecodeStep, DeviceMemory, PagedCache, SpanAttention, SpanAttentionLimits,
//!     StepOperands,
//! };
//! use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch, SpanSet};
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device: Arc<dyn Device> = Arc::from(spanforge_device::open("emulated:h200")?);
//! let attention = AttentionShape {
//!     dtype: Dtype::Bf16,
//!     kv_dtype: KvDtype::Same,
//!     query_heads: 32,
//!     kv_heads: 4,
//!     head_dim: 512,
//!     page_size: 16,
//!     layout: KvLayout::Nhd,
//! };
//! let artifact = Artifact::load(Path::new("artifact"))?;
//! let limits = SpanAttentionLimits { rows: 8, spans: 1024, requests: 8, max_pages: 256 };
//! let mut span_attention = SpanAttention::load(&artifact, device.clone(), attention, limits)?;
//!
//! // A cache of one layer, and a request whose prompt of 1000 tokens is in it.
//! let size = CacheSize { layers: 1, pages: 512, requests: 8, max_pages: 256 };
//! let mut cache = PagedCache::new(&device, attention, size)?;
//! let prompt = cache.pages_mut().extend(0, 1000)?;
//! let (k, v) = (vec![0; 1000 * 4 * 512], vec![0; 1000 * 4 * 512]); // from the model
//! cache.write(0, 0, prompt.start, &k, &v)?;
//!
//! // One decode step: the row reads the first 4 tokens and positions 700 to 760.
//! let selected = SpanSet::from_pairs([(700, 760), (0, 4)])?;
//! let spans = SpanBatch::from_sets([&selected])?;
//! span_attention.plan(&DecodeStep { spans: &spans, row_request: &[0], pages: cache.pages().page_map() })?;
//!
//! // Per layer: q from the model, out to the model.
//! let q = DeviceMemory::allocate(&device, "q", 2 * 32 * 512)?;
//! let out = DeviceMemory::allocate(&device, "out", 2 * 32 * 512)?;
//! let lse = DeviceMemory::allocate(&device, "lse", 4 * 32)?;
//! q.upload(0, &[0; 2 * 32 * 512])?;
//! span_attention.run(&StepOperands {
//!     q: q.buffer(),
//!     kv: cache.layer(0)?,
//!     out: out.buffer(),
//!     lse: lse.buffer(),
//!     scale: 1.0 / 512_f32.sqrt(),
//!     soft_cap: 0.0,
//!     sinks: None,
//! })?;
//! # Ok(())
//! # }
//! ```

pub mod attention;
pub mod cache;
pub mod memory;
pub mod model;
pub mod pages;
pub mod run;
pub mod tensor_file;
pub mod tensors;

pub use attention::{
    AttentionError, DecodeStep, PageMap, PagedKv, PlanReport, SpanAttention, SpanAttentionLimits,
    StepOperands,
};
pub use cache::{CacheError, CacheSize, PagedCache};
pub use memory::DeviceMemory;
pub use pages::Pages;
pub use run::{Origin, RunError, RunReport, RunRequest, run};
pub use tensor_file::{StagedFile, TensorFileError};
pub use tensors::{read_problem, write_output, write_problem};
