//! The arguments that choose a kernel: a configuration, or a shape whose default configuration is
//! meant, and the GPU whose limits hold.

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use fs_err as fs;
use spanforge_device::Architecture;
use spanforge_emulator::profile;
use spanforge_kernels::{KernelShape, KernelSpec, Limits, SearchSpace};
use spanforge_spans::{Dtype, KvDtype};
use std::path::Path;

/// Heading of the flags of a shape.
const SHAPE: &str = "Shape (default: f16, head_dim 128, group size 4; for an artifact, its own)";

/// Shape of the kernel: what it is compiled for.
#[derive(Args, Clone, Debug)]
pub struct ShapeArguments {
    /// Element type: f16 or bf16
    #[arg(long, value_name = "TYPE", help_heading = SHAPE)]
    dtype: Option<Dtype>,
    /// Element type of the cache: same (as the queries) or e4m3
    #[arg(long, value_name = "TYPE", help_heading = SHAPE)]
    kv_dtype: Option<KvDtype>,
    /// Elements per head: 64, 128, 256 or 512
    #[arg(long, value_name = "N", help_heading = SHAPE)]
    head_dim: Option<u32>,
    /// Query heads per KV head
    #[arg(long, value_name = "N", help_heading = SHAPE, conflicts_with_all = ["query_heads", "kv_heads"])]
    group_size: Option<u32>,
    /// Query heads of the model, instead of --group-size
    #[arg(long, value_name = "N", help_heading = SHAPE, requires = "kv_heads")]
    query_heads: Option<u32>,
    /// KV heads of the model
    #[arg(long, value_name = "N", help_heading = SHAPE, requires = "query_heads")]
    kv_heads: Option<u32>,
    /// New tokens of a request that are computed together: those of a draft, or of a piece of a prompt
    /// [default: 1]
    #[arg(long, value_name = "N", help_heading = SHAPE, value_parser = clap::value_parser!(u32).range(1..=4096))]
    queries: Option<u32>,
}

impl ShapeArguments {
    /// Whether any was given.
    pub fn given(&self) -> bool {
        self.dtype.is_some()
            || self.kv_dtype.is_some()
            || self.head_dim.is_some()
            || self.group_size.is_some()
            || self.query_heads.is_some()
            || self.queries.is_some()
    }

    /// New tokens of a request.
    pub fn queries(&self) -> u32 {
        self.queries.unwrap_or(1)
    }

    /// The shape; that of Llama-3-8B (f16, 32 query heads, 8 KV heads, head_dim 128) where nothing
    /// else is said.
    pub fn shape(&self) -> Result<KernelShape> {
        self.shape_or(KernelShape::new(Dtype::F16, 128, 4))
    }

    /// The shape, with what was not said taken from `base`.
    pub fn shape_or(&self, base: KernelShape) -> Result<KernelShape> {
        let group_size = match (self.query_heads, self.kv_heads) {
            (Some(query), Some(kv)) if kv > 0 && query % kv == 0 => query / kv,
            (Some(query), Some(kv)) => {
                bail!("--query-heads {query} is not a multiple of --kv-heads {kv}")
            }
            _ => self.group_size.unwrap_or(base.group_size),
        };
        let shape = KernelShape {
            dtype: self.dtype.unwrap_or(base.dtype),
            kv_dtype: self.kv_dtype.unwrap_or(base.kv_dtype),
            head_dim: self.head_dim.unwrap_or(base.head_dim),
            group_size,
        };
        shape.check()?;
        Ok(shape)
    }
}

/// The limits of the GPU whose name is given.
#[derive(Args, Clone, Debug)]
pub struct LimitsArgument {
    /// GPU whose limits the configuration must keep, such as emulated:a100 or cuda:0
    #[arg(long, value_name = "DEVICE", default_value = "emulated:h200")]
    device: String,
}

impl LimitsArgument {
    /// The limits.
    pub fn limits(&self) -> Result<Limits> {
        Ok(Limits::of(spanforge_device::open(&self.device)?.properties()))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.device
    }
}

/// A configuration, or a shape.
#[derive(Args, Clone, Debug)]
pub struct KernelArguments {
    /// Configuration: an id that `spanforge configs` lists, or a JSON file
    /// [default: the shape's default configuration]
    #[arg(short, long, value_name = "ID|FILE.json",
        conflicts_with_all = ["dtype", "kv_dtype", "head_dim", "group_size", "query_heads", "kv_heads", "queries"])]
    config: Option<String>,
    #[command(flatten)]
    shape: ShapeArguments,
}

impl KernelArguments {
    /// The kernel, checked against the constraints on a device with these limits.
    pub fn spec(&self, limits: Limits) -> Result<KernelSpec> {
        match &self.config {
            Some(config) => read_config(config).and_then(|spec| checked(spec, limits)),
            None => default_spec(self.shape.shape()?, self.shape.queries(), limits),
        }
    }

    /// The shape, where one was given.
    pub fn given_shape(&self) -> Result<Option<KernelShape>> {
        self.shape.given().then(|| self.shape.shape()).transpose()
    }

    /// The kernel of `--config`, not checked against any limits; `None` without `--config`.
    pub fn config(&self) -> Result<Option<KernelSpec>> {
        self.config.as_deref().map(read_config).transpose()
    }
}

/// The default configuration of a shape, for so many new tokens of a request.
pub fn default_spec(shape: KernelShape, queries: u32, limits: Limits) -> Result<KernelSpec> {
    let space = SearchSpace::for_rows(shape, limits, queries);
    let configuration = space.default_configuration().ok_or_else(|| {
        anyhow!(
            "no configuration serves {shape} on this device: every one breaks a constraint; \
             `spanforge configs` with the same flags counts which"
        )
    })?;
    Ok(KernelSpec { shape, configuration })
}

/// Refuses a configuration that breaks a constraint.
pub fn checked(spec: KernelSpec, limits: Limits) -> Result<KernelSpec> {
    let space = SearchSpace::new(spec.shape, limits);
    match space.broken_constraint(&spec.configuration) {
        None => Ok(spec),
        Some(constraint) => Err(anyhow!(
            "configuration {spec} breaks the constraint `{}` ({}); `spanforge configs` lists valid \
             ones",
            constraint.name,
            constraint.reason
        )),
    }
}

/// The kernel of an identifier or a JSON file, not checked against any limits.
pub fn read_config(config: &str) -> Result<KernelSpec> {
    if !config.ends_with(".json") && !Path::new(config).is_file() {
        return Ok(config.parse()?);
    }
    let text = fs::read_to_string(config).context("cannot read the configuration of --config")?;
    let spec: KernelSpec = serde_json::from_str(&text).map_err(|error| {
        anyhow!(
            "{config} is not a configuration: {error}; `spanforge configs --json` prints one, \
             under `default`"
        )
    })?;
    spec.shape.check().with_context(|| format!("{config}: shape"))?;
    Ok(spec)
}

/// The limits of GPUs of an architecture: those of the first profile that has it, or of the H200
/// for architectures without a profile, whose limits nobody here knows.
pub fn limits_of_architecture(architecture: &str) -> Result<Limits> {
    let number = |name: &str| Architecture::parse(name).map(|a| a.number);
    let asked = number(architecture);
    let profile = profile::names().into_iter().find(|name| {
        profile::find(name).is_ok_and(|p| asked.is_some() && number(&p.architecture) == asked)
    });
    let device = format!("emulated:{}", profile.unwrap_or("h200"));
    Ok(Limits::of(spanforge_device::open(&device)?.properties()))
}
