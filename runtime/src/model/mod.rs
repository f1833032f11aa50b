//! A Llama-architecture decoder as Hugging Face lays it out: `config.json`, safetensors in one or
//! several files, `tokenizer.json`.
//!
//! - [`ModelConfig`]: what the model is.
//! - [`Llama`]: its weights, and the step from tokens to logits on the CPU in f32.
//! - [`Attend`]: where a step's keys and values are kept and attended to: [`HostAttention`] on the
//!   CPU in f32, [`DeviceAttention`] with an artifact's kernel on a GPU or an emulated one.
//! - [`Decoder`]: a model with its cache: [`HostDecoder`] on the CPU with any of these, or
//!   [`DeviceDecoder`], all of it on a device.
//! - [`Engine`]: requests that join and leave a batch, each with the protocol by which it selects its
//!   own spans.
//! - [`bench`]: what a step takes, by the steps of a trace.

mod attend;
pub mod bench;
mod config;
mod decoder;
mod device_attention;
mod device_decoder;
mod engine;
mod host_attention;
mod linear;
mod llama;
mod sampling;
mod vocabulary;
mod weights;

pub use attend::{Attend, AttendError, Step};
pub use config::{ModelConfig, Rope, RopeScaling};
pub use decoder::{Decoder, HostDecoder};
pub use device_attention::DeviceAttention;
pub use device_decoder::DeviceDecoder;
pub use engine::{
    Engine, EngineError, Event, Finish, FinishReason, ROWS, Request, RequestId, Selection,
};
pub use host_attention::HostAttention;
pub use llama::Llama;
pub use sampling::Sampling;
pub use vocabulary::{Encoded, Vocabulary, VocabularyError};

use crate::tensor_file::TensorFileError;
use std::path::PathBuf;

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file system refuses; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A configuration that is none of a Llama architecture.
    #[error("{}: {fault}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// An index of weights that makes no sense.
    #[error("{}: not an index of safetensors files: {fault}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// No weights.
    #[error("{}: neither model.safetensors nor model.safetensors.index.json is there", .0.display())]
    NoWeights(PathBuf),
    /// A file of weights that is damaged, or does not match the configuration.
    #[error(transparent)]
    Weights(#[from] TensorFileError),
}
