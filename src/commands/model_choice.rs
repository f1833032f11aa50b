//! The model that a verb decodes with, and where its attention is computed.

use crate::notice;
use anyhow::{Context, Result, bail};
use clap::Args;
use spanforge_device::{Compiler, Device};
use spanforge_kernels::artifact::Artifact;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_runtime::model::{Attend, DeviceAttention, HostAttention, Llama, ROWS, Vocabulary};
use spanforge_runtime::run::compile_default;
use spanforge_runtime::{CacheSize, SpanAttention, SpanAttentionLimits};
use spanforge_spans::{Dtype, KvLayout};
use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Tokens per page of the cache.
const PAGE_SIZE: u32 = 16;

/// A model, and the cache that it decodes with.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArguments {
    /// Folder of the model: config.json, safetensors, tokenizer.json
    #[arg(long, value_name = "DIR", help_heading = "Options")]
    model: PathBuf,
    /// Artifact whose kernel is used on a device [default: the default configuration, compiled now]
    #[arg(long, value_name = "DIR")]
    artifact: Option<PathBuf>,
    /// Element type of the cache on a device
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    cache_dtype: Dtype,
    /// Tokens that the cache holds
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    cache_tokens: u32,
}

/// What tokens attend to, and where that is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttentionChoice {
    /// Everything, on the CPU.
    Dense,
    /// What was declared, on the CPU.
    Span,
    /// What was declared, on this device.
    Device(String),
}

impl FromStr for AttentionChoice {
    type Err = Infallible;

    fn from_str(word: &str) -> Result<Self, Infallible> {
        Ok(match word {
            "dense" => Self::Dense,
            "span" => Self::Span,
            device => Self::Device(device.to_owned()),
        })
    }
}

impl ModelArguments {
    /// The model and its vocabulary.
    pub fn load(&self) -> Result<(Llama, Vocabulary)> {
        let model = Llama::load(&self.model)?;
        let vocabulary = Vocabulary::load(&self.model.join("tokenizer.json"))?;
        let (tokens, size) = (vocabulary.size(), model.config().vocab_size);
        if tokens > size {
            bail!(
                "{}: tokenizer.json has {tokens} tokens, and the model {size}: they do not belong \
                 together",
                self.model.display()
            );
        }
        Ok((model, vocabulary))
    }

    /// A cache for `requests` requests at a time, and the attention over it.
    pub fn attention(
        &self,
        choice: &AttentionChoice,
        model: &Llama,
        requests: usize,
    ) -> Result<Box<dyn Attend>> {
        let config = model.config();
        let pages = self.cache_tokens.div_ceil(PAGE_SIZE) as usize;
        let size = CacheSize { layers: config.layers, pages, requests, max_pages: pages };
        let AttentionChoice::Device(name) = choice else {
            if self.artifact.is_some() {
                bail!(
                    "--artifact is used on a device: name one with --attention, as emulated:h200"
                );
            }
            return Ok(Box::new(HostAttention::new(config, PAGE_SIZE, &size)?));
        };
        let device: Arc<dyn Device> = Arc::from(
            spanforge_device::open(name).context("--attention takes dense, span or a device")?,
        );
        let [query_heads, kv_heads, head_dim] =
            [config.query_heads, config.kv_heads, config.head_dim].map(|n| n as u32);
        let attention = AttentionShape {
            dtype: self.cache_dtype,
            query_heads,
            kv_heads,
            head_dim,
            page_size: PAGE_SIZE,
            layout: KvLayout::Nhd,
        };
        let rows = ROWS.max(requests);
        // More spans than a row of this cache can have are not needed.
        let spans = rows * self.cache_tokens.div_ceil(2).min(1024) as usize;
        let limits = SpanAttentionLimits { rows, spans, requests, max_pages: pages };
        let loaded = match &self.artifact {
            Some(folder) => {
                SpanAttention::load(&Artifact::load(folder)?, device.clone(), attention, limits)?
            }
            None => {
                let compiler = Compiler::new(&notice::settings())?;
                let shape = attention.kernel_shape()?;
                let (image, spec) = compile_default(shape, device.properties(), &compiler)?;
                SpanAttention::from_image(&image, spec, device.clone(), attention, limits)?
            }
        };
        Ok(Box::new(DeviceAttention::new(&device, loaded, size)?))
    }
}
