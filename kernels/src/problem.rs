//! One decode launch as data on the host: shapes, pages, spans and tensors, checked before anything
//! is given to a device.

use crate::addressing::{Addressing, KvStrides};
use crate::bucket::Bucket;
use crate::configuration::{AttentionShape, KernelShape, ShapeError};
use crate::launch::query_tiles;
use spanforge_spans::{BatchError, KvDtype, KvLayout, SpanBatch, SpanSet};
use std::collections::BTreeSet;

/// Inputs of a decode launch. Elements are raw bits of the shape's dtypes; those of 8 bits are lower bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeProblem {
    /// Heads, dimensions, page size and layout.
    pub attention: AttentionShape,
    /// Factor of q . k before the softmax.
    pub scale: f32,
    /// What logits are capped at, smoothly: `soft_cap * tanh(logit / soft_cap)`. 0 for no cap.
    pub soft_cap: f32,
    /// Pages of the cache.
    pub pages: usize,
    /// Entries of each request's row of the page table.
    pub max_pages: usize,
    /// `[requests]`: tokens in the cache of each request.
    pub kv_len: Vec<i32>,
    /// `[requests, max_pages]`: page that holds each run of `page_size` logical positions. Entries
    /// that no selected token needs may be anything.
    pub page_table: Vec<i32>,
    /// `[rows]`: request of each row.
    pub row_request: Vec<i32>,
    /// Per row the selected tokens, in logical positions: one set, or one for each KV head, as sets
    /// `[rows, kv_heads]`.
    pub spans: SpanBatch,
    /// `[query_heads]`: a logit for each query head that its softmax has besides those of tokens, with a
    /// value of zero. Empty for none.
    pub sinks: Vec<f32>,
    /// `[kv_heads]`: what elements of `k` are multiplied by, where they have 8 bits. Empty for 1.
    pub k_scales: Vec<f32>,
    /// As `k_scales`, of `v`.
    pub v_scales: Vec<f32>,
    /// `[rows, query_heads, head_dim]`.
    pub q: Vec<u16>,
    /// `[pages, page_size, kv_heads, head_dim]` (NHD) or `[pages, kv_heads, page_size, head_dim]`
    /// (HND).
    pub k: Vec<u16>,
    /// As `k`.
    pub v: Vec<u16>,
}

/// A problem that cannot be launched, with the input at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProblemError {
    /// The kernels do not serve the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Spans, rows and KV lengths do not fit together.
    #[error(transparent)]
    Spans(#[from] BatchError),
    /// A tensor has another size than its shape says.
    #[error("{tensor} has {found} elements where {expected} are expected ({shape})")]
    TensorSize {
        /// Which.
        tensor: &'static str,
        /// Elements found.
        found: usize,
        /// Elements expected.
        expected: usize,
        /// The expected shape in words.
        shape: String,
    },
    /// Page size of zero.
    #[error("page_size is 0: a page holds at least one token")]
    PageSize,
    /// A KV length beyond the page table.
    #[error(
        "kv_len[{request}] is {kv_len}, but the page table has room for {room} tokens per request (max_pages {max_pages} x page_size {page_size})"
    )]
    KvLength {
        /// Request.
        request: usize,
        /// Its KV length.
        kv_len: i32,
        /// Tokens that fit.
        room: u64,
        /// Entries per request.
        max_pages: usize,
        /// Tokens per page.
        page_size: u32,
    },
    /// A page table entry that a selected token needs, and that names no page.
    #[error(
        "page_table[{request}, {entry}] is {page}, but row {row} selects tokens there and the cache has pages 0 to {last}"
    )]
    PageOutOfRange {
        /// Request.
        request: usize,
        /// Entry of its row of the table.
        entry: usize,
        /// What it holds.
        page: i32,
        /// A row that needs it.
        row: usize,
        /// Last page of the cache (-1 where it has none).
        last: i64,
    },
    /// More than the kernels' 32-bit counters hold.
    #[error("{what} is {found}; the kernels count up to {limit}")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// How many.
        found: u64,
        /// The most.
        limit: u64,
    },
    /// A scale that is not a finite number.
    #[error("scale is {0}: it must be a finite number")]
    Scale(String),
    /// A soft cap that is none.
    #[error("soft_cap is {0}: it must be a number from 1e-30 to 1e30, or 0 for no cap")]
    SoftCap(String),
    /// Factors of K or V that are none, or that the kernels would not use.
    #[error("{tensor}: {fault}")]
    Scales {
        /// `k_scales` or `v_scales`.
        tensor: &'static str,
        /// What is wrong and what was expected.
        fault: String,
    },
    /// A sink that is no logit.
    #[error("sinks[{head}] is {value}: it must be a finite number, or -inf for none")]
    Sink {
        /// Query head.
        head: usize,
        /// What it is.
        value: String,
    },
}

impl DecodeProblem {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.row_request.len()
    }

    /// Requests.
    pub fn requests(&self) -> usize {
        self.kv_len.len()
    }

    /// What a kernel for this problem is compiled for.
    pub fn kernel_shape(&self) -> Result<KernelShape, ShapeError> {
        self.attention.kernel_shape()
    }

    /// The kind of batch it is.
    pub fn bucket(&self) -> Bucket {
        Bucket::of_spans(&self.spans.canonicalise(), &self.row_request)
    }

    /// Strides of K and V.
    pub fn strides(&self) -> KvStrides {
        KvStrides::packed(&self.attention)
    }

    /// The integers that K and V are addressed with.
    pub fn addressing(&self) -> Addressing<'_> {
        Addressing {
            spans: &self.spans,
            row_request: &self.row_request,
            kv_len: &self.kv_len,
            page_table: &self.page_table,
            max_pages: self.max_pages,
            pages: self.pages,
        }
    }

    /// Checks everything that a kernel would otherwise have to trust.
    pub fn check(&self) -> Result<(), ProblemError> {
        self.attention.kernel_shape()?;
        if !self.scale.is_finite() {
            return Err(ProblemError::Scale(self.scale.to_string()));
        }
        check_soft_cap(self.soft_cap)?;
        check_sinks(&self.sinks)?;
        check_kv_scales("k_scales", &self.k_scales, self.attention.kv_dtype)?;
        check_kv_scales("v_scales", &self.v_scales, self.attention.kv_dtype)?;
        self.addressing().check(&self.attention)?;
        self.check_sizes()
    }

    fn check_sizes(&self) -> Result<(), ProblemError> {
        let a = &self.attention;
        let limit = i32::MAX as u64;
        let KvStrides { page, token, head } = self.strides();
        let found = page.max(token).max(head);
        if found > limit {
            return Err(ProblemError::TooLarge { what: "elements per page", found, limit });
        }
        let kv = (self.pages as u64).saturating_mul(page);
        let query = self.rows() as u64 * u64::from(a.query_heads) * u64::from(a.head_dim);
        let sinks = if self.sinks.is_empty() { 0 } else { u64::from(a.query_heads) };
        let scales = |s: &[f32]| if s.is_empty() { 0 } else { u64::from(a.kv_heads) };
        let kv_shape = match a.layout {
            KvLayout::Nhd => "[pages, page_size, kv_heads, head_dim]",
            KvLayout::Hnd => "[pages, kv_heads, page_size, head_dim]",
        };
        for (tensor, found, expected, shape) in [
            ("q", self.q.len(), query, "[rows, query_heads, head_dim]"),
            ("k", self.k.len(), kv, kv_shape),
            ("v", self.v.len(), kv, kv_shape),
            ("sinks", self.sinks.len(), sinks, "[query_heads], or none"),
            ("k_scales", self.k_scales.len(), scales(&self.k_scales), "[kv_heads], or none"),
            ("v_scales", self.v_scales.len(), scales(&self.v_scales), "[kv_heads], or none"),
        ] {
            if found as u64 != expected {
                return Err(ProblemError::TensorSize {
                    tensor,
                    found,
                    expected: usize::try_from(expected).unwrap_or(usize::MAX),
                    shape: shape.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Sets of spans of each row: 1, or as many as KV heads. 1 where [`check`](Self::check) fails.
    pub fn span_heads(&self) -> u32 {
        self.addressing().span_heads(self.attention.kv_heads).unwrap_or(1)
    }

    /// The page table entries that the spans of any KV head of each row touch, all rows together.
    fn page_entries(&self) -> u64 {
        let page_size = self.attention.page_size;
        let mut entries = 0;
        let sets: Vec<SpanSet> = self.spans.sets().collect();
        for of_row in sets.chunks(self.span_heads() as usize) {
            let touched: BTreeSet<u32> = of_row
                .iter()
                .flat_map(SpanSet::iter)
                .filter(|span| !span.is_empty())
                .flat_map(|span| span.start() / page_size..=(span.end() - 1) / page_size)
                .collect();
            entries += touched.len() as u64;
        }
        entries
    }

    /// Bytes of the K and V rows of all selected tokens: what a kernel that reads nothing else and
    /// nothing twice fetches. Rows count one by one, whatever they have in common.
    pub fn selected_kv_bytes(&self) -> u64 {
        self.kv_bytes(self.spans.canonicalise().total_selected_tokens())
    }

    /// Bytes of the K and V rows of all tokens that some row of a query tile selects, tile by tile: what
    /// a kernel fetches whose tiles have up to `query_rows` rows. [`selected_kv_bytes`] for 1.
    ///
    /// [`selected_kv_bytes`]: Self::selected_kv_bytes
    pub fn tile_kv_bytes(&self, query_rows: u32) -> u64 {
        self.kv_bytes(self.set_tokens(query_rows).iter().sum())
    }

    /// Tokens that some row of a query tile of up to so many rows selects, by set of spans.
    pub fn set_tokens(&self, query_rows: u32) -> Vec<u64> {
        if query_rows == 1 {
            return self.spans.sets().map(|set| set.len_tokens()).collect();
        }
        let heads = self.span_heads() as usize;
        let tiles = query_tiles(&self.row_request, query_rows);
        let sets = tiles.windows(2).flat_map(|tile| {
            (0..heads).map(|head| {
                (tile[0]..tile[1])
                    .map(|row| self.spans.row(row as usize * heads + head))
                    .reduce(|a, b| a.union(&b))
            })
        });
        sets.map(|set| set.map_or(0, |set| set.len_tokens())).collect()
    }

    /// Bytes of K and V of so many tokens of all sets.
    fn kv_bytes(&self, tokens: u64) -> u64 {
        let a = &self.attention;
        let row = u64::from(a.head_dim) * a.kv_bytes() as u64;
        2 * tokens * u64::from(a.kv_heads / self.span_heads()) * row
    }

    /// The floor of a launch in bytes (DESIGN, section 4): selected K and V, once for all rows of a request
    /// that follow each other, q and output with LSE, span offsets, spans, and the page table entries that
    /// are needed.
    pub fn floor_bytes(&self) -> u64 {
        let a = &self.attention;
        let canonical = self.spans.canonicalise();
        let heads = self.rows() as u64 * u64::from(a.query_heads);
        let io = heads * (2 * u64::from(a.head_dim) * a.dtype.bytes() as u64 + 4);
        let meta = 4 * (canonical.rows() as u64 + 1)
            + 8 * canonical.spans().len() as u64
            + 4 * self.page_entries()
            + 4 * (self.sinks.len() + self.k_scales.len() + self.v_scales.len()) as u64;
        self.tile_kv_bytes(u32::MAX) + io + meta
    }

    /// Floating-point operations of the two products (a multiply-add is two).
    pub fn flops(&self) -> f64 {
        let tokens = self.spans.canonicalise().total_selected_tokens();
        self.attention.flops(tokens) / f64::from(self.span_heads())
    }
}

/// Fails for a soft cap that is neither 0 nor from 1e-30 to 1e30: by which kernels divide without an
/// infinity.
pub fn check_soft_cap(soft_cap: f32) -> Result<(), ProblemError> {
    match soft_cap == 0.0 || (1e-30..=1e30).contains(&soft_cap) {
        true => Ok(()),
        false => Err(ProblemError::SoftCap(soft_cap.to_string())),
    }
}

/// Fails for factors of K or V of which one is not a positive number, and for any where elements have
/// none.
pub fn check_kv_scales(
    tensor: &'static str,
    scales: &[f32],
    kv_dtype: KvDtype,
) -> Result<(), ProblemError> {
    let fault = |fault: String| Err(ProblemError::Scales { tensor, fault });
    if kv_dtype.is_same() && !scales.is_empty() {
        return fault("only a cache of 8-bit elements has factors; leave them out".to_owned());
    }
    match scales.iter().enumerate().find(|(_, s)| !(s.is_finite() && **s > 0.0)) {
        None => Ok(()),
        Some((head, scale)) => {
            fault(format!("that of KV head {head} is {scale}: not a positive number"))
        }
    }
}

/// Fails for sinks of which one is NaN or +inf.
pub fn check_sinks(sinks: &[f32]) -> Result<(), ProblemError> {
    let bad = sinks.iter().enumerate().find(|(_, sink)| sink.is_nan() || **sink == f32::INFINITY);
    match bad {
        None => Ok(()),
        Some((head, value)) => Err(ProblemError::Sink { head, value: value.to_string() }),
    }
}
