//! Which tokens a decode step attends to, from the text that declares them to the arrays that a
//! kernel takes.
//!
//! - [`Span`], [`SpanSet`]: half-open token ranges and their canonical union.
//! - [`SpanBatch`]: the sets of many rows in compressed (CSR) form, checked.
//! - [`protocol`]: state machines that read declarations of spans from generated text.
//! - [`trace`]: recorded and generated responses, as the workloads that kernels are tuned for.
//! - [`Dtype`], [`KvLayout`]: the words of tensor formats that kernels and the reference share.
//!
//! This room computes; it opens no files and knows no devices.

mod batch;
pub mod protocol;
mod span;
mod tensor;
pub mod trace;

pub use batch::{BatchError, SpanBatch};
pub use span::{Span, SpanError, SpanSet};
pub use tensor::{Dtype, KvDtype, KvLayout, UnknownName};
