//! Workloads: what a model's decode steps look like, and the problem that stands for them when
//! configurations are timed.
//!
//! A workload is a trace (one of the presets, or a file of the user's) and a batch drawn from it:
//! independent responses, each caught at a random step, as a server that batches continuously sees
//! them. A batch of Declarative Attention is bimodal: some rows read everything, the others little.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::{Bucket, DecodeProblem, ProblemError};
use spanforge_spans::trace::{Preset, Trace, TraceError};
use spanforge_spans::{KvDtype, KvLayout, SpanBatch, SpanSet};
use spanforge_verify::generate::normal;
use std::path::Path;

/// Responses that a preset's trace has: enough for batches to be drawn from.
const PRESET_RESPONSES: usize = 64;

/// The most that one page of K, or all queries of the timed problem, may take in bytes.
pub const LARGEST_PART_BYTES: u64 = 1 << 30;

/// One row of the batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRow {
    /// Tokens in the request's cache that it could attend to.
    pub kv_len: u32,
    /// Tokens it attends to.
    pub spans: SpanSet,
    /// Whether it is of the same request as the row before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub same_request: bool,
}

/// A batch to tune for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Name of the preset or the file.
    pub name: String,
    /// The model's attention.
    pub attention: AttentionShape,
    /// The batch. Rows of a request follow each other.
    pub rows: Vec<WorkloadRow>,
}

/// A workload that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Neither a preset nor a file.
    #[error(
        "there is no workload and no trace file `{name}`: use {presets}, or a trace as `spanforge trace generate` writes it"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The presets.
        presets: String,
    },
    /// A trace file that cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A batch that the kernels do not serve.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// More than is worth timing.
    #[error(
        "{part} of {} x {} x {} elements is more than the {} MiB that a timed problem may have; choose smaller pages, fewer heads or a smaller batch", sizes[0], sizes[1], sizes[2], LARGEST_PART_BYTES >> 20
    )]
    TooLarge {
        /// Which tensor.
        part: &'static str,
        /// Its sizes.
        sizes: [usize; 3],
    },
    /// A trace that makes no sense.
    #[error("{path}: {source}")]
    Trace {
        /// The file.
        path: String,
        /// Why.
        source: TraceError,
    },
}

/// The trace of a preset, drawn by `seed`, or of a file.
pub fn named_trace(name: &str, seed: u64) -> Result<Trace, WorkloadError> {
    match name.parse::<Preset>() {
        Ok(preset) => Ok(preset.generate(seed, PRESET_RESPONSES)),
        Err(_) => read_trace(name),
    }
}

impl Workload {
    /// The preset or trace file `name`, with a batch of `batch` rows drawn by `seed`.
    pub fn named(name: &str, batch: usize, seed: u64) -> Result<Self, WorkloadError> {
        Self::from_trace(name, &named_trace(name, seed)?, batch, seed)
    }

    /// A batch of `batch` rows from a trace.
    pub fn from_trace(
        name: &str,
        trace: &Trace,
        batch: usize,
        seed: u64,
    ) -> Result<Self, WorkloadError> {
        let drawn = trace
            .batch_at(seed, batch)
            .map_err(|source| WorkloadError::Trace { path: name.to_owned(), source })?;
        let rows = drawn
            .rows
            .into_iter()
            .map(|row| WorkloadRow { kv_len: row.kv_len, spans: row.spans, same_request: false })
            .collect();
        let model = &trace.header.shape;
        let attention = AttentionShape {
            dtype: model.dtype,
            kv_dtype: KvDtype::Same,
            query_heads: model.query_heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            page_size: 16,
            layout: KvLayout::Nhd,
        };
        Ok(Self { name: name.to_owned(), attention, rows })
    }

    /// The same with `queries` new tokens for each row instead of one, as a step that checks a draft has
    /// them or a piece of a prompt: each a row that attends to what the row did and to the new tokens
    /// before it. `queries` is at least 1.
    #[must_use]
    pub fn with_queries(mut self, queries: u32) -> Self {
        let several = |row: WorkloadRow| {
            (0..queries).map(move |new| {
                let tokens = SpanSet::from(row.kv_len..row.kv_len + new);
                WorkloadRow {
                    kv_len: row.kv_len + new,
                    spans: row.spans.union(&tokens),
                    same_request: row.same_request || new > 0,
                }
            })
        };
        self.rows = self.rows.into_iter().flat_map(several).collect();
        self
    }

    /// The first row of each request, and the number of rows.
    fn requests(&self) -> Vec<usize> {
        let first = |(at, row): (usize, &WorkloadRow)| (at == 0 || !row.same_request).then_some(at);
        let firsts = self.rows.iter().enumerate().filter_map(first);
        firsts.chain([self.rows.len()]).collect()
    }

    /// The kind of batch it is.
    pub fn bucket(&self) -> Bucket {
        let spans: usize = self.rows.iter().map(|row| row.spans.spans().len()).sum();
        let requests = self.requests().len() - 1;
        let rows = self.rows.len() as u64;
        Bucket::of(rows, requests as u64, self.selected_tokens(), spans as u64)
    }

    /// Rows of the request that has most.
    pub fn queries(&self) -> u32 {
        self.requests().windows(2).map(|rows| (rows[1] - rows[0]) as u32).max().unwrap_or(1).max(1)
    }

    /// Selected tokens of all rows.
    pub fn selected_tokens(&self) -> u64 {
        self.rows.iter().map(|row| row.spans.len_tokens()).sum()
    }

    /// The batch in words.
    pub fn describe(&self) -> String {
        let a = &self.attention;
        let mut tokens: Vec<u64> = self.rows.iter().map(|r| r.spans.len_tokens()).collect();
        tokens.sort_unstable();
        let spans: usize = self.rows.iter().map(|r| r.spans.spans().len()).sum();
        let rows = match tokens.len() {
            1 => "1 row".to_owned(),
            count => format!("{count} rows"),
        };
        format!(
            "{rows} selecting {} tokens in {spans} spans ({} to {} per row), {} query and {} KV heads of {} {}, pages of {} {}",
            self.selected_tokens(),
            tokens.first().copied().unwrap_or(0),
            tokens.last().copied().unwrap_or(0),
            a.query_heads,
            a.kv_heads,
            a.head_dim,
            a.dtype,
            a.page_size,
            a.layout
        )
    }

    /// The decode launch of this batch with random tensors. Where K and V together would exceed
    /// `cache_bytes`, requests share physical pages: every address calculation and every byte
    /// fetched stays, only what is found there repeats. That suits an emulated device, which has no
    /// caches; on a GPU give enough for all.
    ///
    /// Fails for a batch that the kernels do not serve, and where a page of K or all queries are larger
    /// than [`LARGEST_PART_BYTES`].
    pub fn problem(&self, seed: u64, cache_bytes: u64) -> Result<DecodeProblem, WorkloadError> {
        let a = self.attention;
        a.kernel_shape().map_err(ProblemError::from)?;
        let [page_size, query_heads, kv_heads, head_dim] =
            [a.page_size, a.query_heads, a.kv_heads, a.head_dim].map(|n| n as usize);
        if page_size == 0 {
            return Err(ProblemError::PageSize.into());
        }
        let page_elements = elements("a page of K", [page_size, kv_heads, head_dim])?;
        let queries = elements("q", [self.rows.len(), query_heads, head_dim])?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let requests = self.requests();
        let kv_len: Vec<u32> = requests
            .windows(2)
            .map(|rows| self.rows[rows[0]..rows[1]].iter().map(|r| r.kv_len).max().unwrap_or(0))
            .collect();
        let entries: Vec<usize> =
            kv_len.iter().map(|tokens| tokens.div_ceil(a.page_size) as usize).collect();
        let needed: usize = entries.iter().sum();
        let page_bytes = (2 * page_elements * a.kv_bytes()) as u64;
        let pages = needed.min((cache_bytes / page_bytes.max(1)) as usize).max(1);
        let mut order: Vec<i32> = (0..pages as i32).collect();
        rand::seq::SliceRandom::shuffle(&mut order[..], &mut rng);
        let max_pages = entries.iter().copied().max().unwrap_or(0);
        let mut page_table = vec![-1; kv_len.len() * max_pages];
        let mut next = 0;
        for (request, &count) in entries.iter().enumerate() {
            for entry in 0..count {
                page_table[request * max_pages + entry] = order[next % pages];
                next += 1;
            }
        }
        let spans = SpanBatch::from_sets(self.rows.iter().map(|r| &r.spans))
            .expect("canonical sets make a batch");
        let problem = DecodeProblem {
            attention: a,
            scale: (a.head_dim as f32).sqrt().recip(),
            soft_cap: 0.0,
            sinks: Vec::new(),
            k_scales: Vec::new(),
            v_scales: Vec::new(),
            pages,
            max_pages,
            kv_len: kv_len.into_iter().map(|tokens| tokens as i32).collect(),
            page_table,
            row_request: (0..)
                .zip(requests.windows(2))
                .flat_map(|(request, rows)| vec![request; rows[1] - rows[0]])
                .collect(),
            spans,
            q: random_elements(&mut rng, |x| a.dtype.encode(x), queries),
            k: random_elements(&mut rng, |x| a.encode_kv(x), pages * page_elements),
            v: random_elements(&mut rng, |x| a.encode_kv(x), pages * page_elements),
        };
        problem.check()?;
        Ok(problem)
    }
}

/// The product of a tensor part's sizes.
fn elements(part: &'static str, sizes: [usize; 3]) -> Result<usize, WorkloadError> {
    let product = sizes.iter().try_fold(1_u64, |product, &n| product.checked_mul(n as u64));
    let most = LARGEST_PART_BYTES / 2;
    match product {
        Some(product) if product <= most => Ok(product as usize),
        _ => Err(WorkloadError::TooLarge { part, sizes }),
    }
}

fn read_trace(path: &str) -> Result<Trace, WorkloadError> {
    if !Path::new(path).exists() {
        let presets = Preset::ALL.map(Preset::name).join(", ");
        return Err(WorkloadError::Unknown { name: path.to_owned(), presets });
    }
    let file = std::fs::File::open(path)
        .map_err(|source| WorkloadError::Io { path: path.to_owned(), source })?;
    Trace::read(std::io::BufReader::new(file))
        .map_err(|source| WorkloadError::Trace { path: path.to_owned(), source })
}

/// Standard normal elements, drawn from a table of 65,536 since caches have hundreds of millions.
fn random_elements(rng: &mut ChaCha8Rng, encode: impl Fn(f32) -> u16, count: usize) -> Vec<u16> {
    let table: Vec<u16> = (0..65_536).map(|_| encode(normal(rng))).collect();
    let mut elements = Vec::with_capacity(count + 3);
    while elements.len() < count {
        let word: u64 = rng.random();
        for part in 0..4 {
            elements.push(table[(word >> (16 * part)) as usize & 0xffff]);
        }
    }
    elements.truncate(count);
    elements
}
