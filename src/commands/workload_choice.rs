//! The arguments that choose a workload.

use anyhow::{Result, bail};
use clap::Args;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_spans::{Dtype, KvDtype, KvLayout};
use spanforge_tuner::Workload;

/// Rows of the one batch that most verbs take.
const BATCH: u32 = 16;

/// Rows of the batches that a kernel is tuned for: a single user, a few, and a full server.
const BATCHES: [u32; 3] = [1, 8, 64];

/// A workload, or its spans on another model's attention.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and cache (default: the workload's own)")]
pub struct WorkloadArguments {
    /// da-gemma4, da-qwen3.6, ssas-llama2, or a trace file
    #[arg(long, value_name = "WORKLOAD", default_value = "da-qwen3.6", help_heading = "Options")]
    workload: String,
    /// Rows of the batch; for tuning, of several batches, with commas between them [default: 16; for
    /// tuning 1,8,64]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Vec<u32>,
    /// New tokens of each request, every one a row: those of a draft, or of a piece of a prompt; for
    /// tuning, several numbers with commas between them
    #[arg(long, value_name = "N", default_value = "1", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Options")]
    queries: Vec<u32>,
    #[command(flatten)]
    attention: AttentionArguments,
}

impl WorkloadArguments {
    /// The workload with a batch drawn by `seed`.
    pub fn workload(&self, seed: u64) -> Result<Workload> {
        let [queries] = self.queries[..] else {
            bail!("--queries gives {} numbers, and one is taken here", self.queries.len())
        };
        match self.batch[..] {
            [] => self.drawn(BATCH, queries, seed),
            [rows] => self.drawn(rows, queries, seed),
            _ => bail!("--batch gives {} batches, and one is taken here", self.batch.len()),
        }
    }

    /// The workload with `draws` batches of each size and number of new tokens, drawn by the seeds from
    /// `seed` on.
    pub fn workloads(&self, seed: u64, draws: u32) -> Result<Vec<Workload>> {
        let batches = if self.batch.is_empty() { &BATCHES[..] } else { &self.batch };
        let sizes = self.queries.iter().flat_map(|queries| batches.iter().map(|b| (*b, *queries)));
        let each = sizes.flat_map(|size| (0..draws).map(move |draw| (size, draw)));
        each.map(|((rows, queries), draw)| {
            self.drawn(rows, queries, seed.wrapping_add(draw.into()))
        })
        .collect()
    }

    fn drawn(&self, rows: u32, queries: u32, seed: u64) -> Result<Workload> {
        let workload = Workload::named(&self.workload, rows as usize, seed)?;
        Ok(self.on_attention(workload.with_queries(queries)))
    }

    /// The workload, on the attention that was given.
    pub fn on_attention(&self, workload: Workload) -> Workload {
        Workload { attention: self.attention.over(workload.attention), ..workload }
    }
}

/// A model's attention and its cache, where they are not the workload's own.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and cache (default: the workload's own)")]
pub struct AttentionArguments {
    /// Element type: f16 or bf16
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Element type of the cache: same (as the queries) or e4m3
    #[arg(long, value_name = "TYPE")]
    kv_dtype: Option<KvDtype>,
    /// Elements per head: 64, 128, 256 or 512
    #[arg(long, value_name = "N")]
    head_dim: Option<u32>,
    /// Query heads
    #[arg(long, value_name = "N")]
    query_heads: Option<u32>,
    /// KV heads
    #[arg(long, value_name = "N")]
    kv_heads: Option<u32>,
    /// Tokens per page of the cache [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    page_size: Option<u32>,
    /// Order of a page: NHD or HND [default: NHD]
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<KvLayout>,
}

impl AttentionArguments {
    /// The shape, with what was not said taken from `base`.
    pub fn over(&self, base: AttentionShape) -> AttentionShape {
        AttentionShape {
            dtype: self.dtype.unwrap_or(base.dtype),
            kv_dtype: self.kv_dtype.unwrap_or(base.kv_dtype),
            head_dim: self.head_dim.unwrap_or(base.head_dim),
            query_heads: self.query_heads.unwrap_or(base.query_heads),
            kv_heads: self.kv_heads.unwrap_or(base.kv_heads),
            page_size: self.page_size.unwrap_or(base.page_size),
            layout: self.layout.unwrap_or(base.layout),
        }
    }
}
