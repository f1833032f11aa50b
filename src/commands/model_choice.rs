//! The model that a verb decodes with, and where its attention is computed.

use super::trace::save;
use crate::notice;
use anyhow::{Context, Result, bail};
use clap::Args;
use spanforge_device::{Compiler, Device, Source};
use spanforge_kernels::artifact::Artifact;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::{Bucket, render_model};
use spanforge_runtime::model::bench::PAGE_SIZE;
use spanforge_runtime::model::{
    Decoder, DeviceAttention, DeviceDecoder, HostAttention, HostDecoder, Llama, ModelConfig, ROWS,
    Vocabulary,
};
use spanforge_runtime::run::{compile_default, compile_target};
use spanforge_runtime::{CacheSize, SpanAttention, SpanAttentionLimits};
use spanforge_spans::trace::{self, ModelShape, Response, Trace, TraceHeader};
use spanforge_spans::{Dtype, KvDtype, KvLayout};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// A model, and the cache that it decodes with.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArguments {
    /// Folder of the model: config.json, safetensors, tokenizer.json
    #[arg(long, value_name = "DIR", help_heading = "Options")]
    model: PathBuf,
    #[command(flatten)]
    on_device: DeviceArguments,
    /// Tokens that the cache holds
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    cache_tokens: u32,
}

/// A model, or its attention, on a device.
#[derive(Args, Clone, Debug)]
pub struct DeviceArguments {
    /// Artifact whose kernels are used on a device [default: the default configurations for generated
    /// tokens and for prompts, compiled now]
    #[arg(long, value_name = "DIR")]
    artifact: Option<PathBuf>,
    /// Device that all of the model runs on, such as cuda:0 or emulated:h200 [default: the CPU]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Element type of what is computed on a device, and of the cache
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_dtype: Dtype,
    /// Element type of the cache where it is another: e4m3, not scaled
    #[arg(long, value_name = "TYPE", default_value = "same")]
    pub kv_dtype: KvDtype,
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

    /// Writes the decode steps of some responses as a trace.
    pub fn save_trace(
        &self,
        path: &Path,
        model: &Llama,
        generator: String,
        responses: Vec<Response>,
    ) -> Result<()> {
        let config = model.config();
        let shape = ModelShape {
            query_heads: config.query_heads as u32,
            kv_heads: config.kv_heads as u32,
            head_dim: config.head_dim as u32,
            dtype: self.on_device.cache_dtype,
        };
        let header = TraceHeader {
            schema: trace::SCHEMA,
            shape,
            protocol: Some("self-span".to_owned()),
            generator: Some(generator),
            seed: None,
        };
        save(&Trace { header, responses }, path)
    }

    /// The model with a cache for `requests` requests at a time.
    pub fn decoder<'m>(
        &self,
        choice: &AttentionChoice,
        model: &'m Llama,
        requests: usize,
    ) -> Result<Box<dyn Decoder + 'm>> {
        let config = model.config();
        let pages = self.cache_tokens.div_ceil(PAGE_SIZE) as usize;
        let size = CacheSize { layers: config.layers, pages, requests, max_pages: pages };
        let all = &self.on_device.device;
        let name = match (choice, all) {
            (AttentionChoice::Device(_), Some(_)) => {
                bail!("--device takes all of the model: give --attention span or dense with it")
            }
            (AttentionChoice::Device(name), None) | (_, Some(name)) => name,
            (_, None) if self.on_device.artifact.is_some() => bail!(
                "--artifact is used on a device: name one with --device or --attention, as \
                 emulated:h200"
            ),
            (_, None) => {
                let attention = Box::new(HostAttention::new(config, PAGE_SIZE, &size)?);
                return Ok(Box::new(HostDecoder::new(model, attention)));
            }
        };
        let opened = spanforge_device::open(name).with_context(|| match all {
            Some(_) => "--device takes a device",
            None => "--attention takes dense, span or a device",
        });
        let device: Arc<dyn Device> = Arc::from(opened?);
        let rows = ROWS.max(requests);
        // More spans than a row of this cache can have are not needed.
        let spans = rows * self.cache_tokens.div_ceil(2).min(1024) as usize;
        let limits = SpanAttentionLimits { rows, spans, requests, max_pages: pages };
        if all.is_some() {
            return Ok(Box::new(self.on_device.decoder(model, &device, limits, size)?));
        }
        let compiler = Compiler::new(&notice::settings())?;
        let attention = self.on_device.attention(config, &device, &compiler, limits)?;
        let attention = Box::new(DeviceAttention::new(&device, attention, size)?);
        Ok(Box::new(HostDecoder::new(model, attention)))
    }
}

impl DeviceArguments {
    /// All of a model on a device.
    pub fn decoder(
        &self,
        model: &Llama,
        device: &Arc<dyn Device>,
        limits: SpanAttentionLimits,
        size: CacheSize,
    ) -> Result<DeviceDecoder> {
        let compiler = Compiler::new(&notice::settings())?;
        let attention = self.attention(model.config(), device, &compiler, limits)?;
        let rendered = render_model(self.cache_dtype, self.kv_dtype)?;
        let target = compile_target(device.properties());
        let image = compiler.compile(&Source::new(rendered.name, rendered.text), &target)?;
        Ok(DeviceDecoder::new(model, device, attention, &image, size)?)
    }

    fn attention(
        &self,
        config: &ModelConfig,
        device: &Arc<dyn Device>,
        compiler: &Compiler,
        limits: SpanAttentionLimits,
    ) -> Result<SpanAttention> {
        let [query_heads, kv_heads, head_dim] =
            [config.query_heads, config.kv_heads, config.head_dim].map(|n| n as u32);
        let attention = AttentionShape {
            dtype: self.cache_dtype,
            kv_dtype: self.kv_dtype,
            query_heads,
            kv_heads,
            head_dim,
            page_size: PAGE_SIZE,
            layout: KvLayout::Nhd,
        };
        Ok(match &self.artifact {
            Some(folder) => {
                SpanAttention::load(&Artifact::load(folder)?, device.clone(), attention, limits)?
            }
            None => {
                let shape = attention.kernel_shape()?;
                // For generated tokens, and for prompts in stretches.
                let kernels = [1, 16].map(|rows| {
                    let bucket = Bucket::of(rows, 1, 1024 * rows, rows);
                    let (image, spec) =
                        compile_default(shape, rows as u32, device.properties(), compiler)?;
                    Ok((bucket, image, spec))
                });
                let kernels = kernels.into_iter().collect::<Result<Vec<_>>>()?;
                SpanAttention::from_images(&kernels, device.clone(), attention, limits)?
            }
        })
    }
}
