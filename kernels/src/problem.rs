//! One decode launch as data on the host: shapes, pages, spans and tensors, checked before anything
//! is given to a device.

use crate::addressing::{Addressing, KvStrides};
use crate::bucket::Bucket;
use crate::configuration::{AttentionShape, KernelShape, ShapeError};
use spanforge_spans::{BatchError, KvLayout, SpanBatch};
use std::collections::BTreeSet;

/// Inputs of a decode launch. Elements are raw bits of the shape's dtype.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeProblem {
    /// Heads, dimensions, page size and layout.
    pub attention: AttentionShape,
    /// Factor of q . k before the softmax.
    pub scale: f32,
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
    /// Per row the selected tokens, in logical positions.
    pub spans: SpanBatch,
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
        Bucket::of_spans(&self.spans.canonicalise())
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
        let kv_shape = match a.layout {
            KvLayout::Nhd => "[pages, page_size, kv_heads, head_dim]",
            KvLayout::Hnd => "[pages, kv_heads, page_size, head_dim]",
        };
        for (tensor, found, expected, shape) in [
            ("q", self.q.len(), query, "[rows, query_heads, head_dim]"),
            ("k", self.k.len(), kv, kv_shape),
            ("v", self.v.len(), kv, kv_shape),
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

    /// Per row the page table entries that its spans touch.
    fn page_entries(&self) -> Vec<BTreeSet<usize>> {
        let page_size = self.attention.page_size;
        self.spans
            .sets()
            .map(|set| {
                set.iter()
                    .filter(|span| !span.is_empty())
                    .flat_map(|span| {
                        (span.start() / page_size) as usize
                            ..=((span.end() - 1) / page_size) as usize
                    })
                    .collect()
            })
            .collect()
    }

    /// Bytes of the K and V rows of all selected tokens: what a kernel that reads nothing else and
    /// nothing twice fetches.
    pub fn selected_kv_bytes(&self) -> u64 {
        let a = &self.attention;
        let row = u64::from(a.head_dim) * a.dtype.bytes() as u64;
        2 * self.spans.canonicalise().total_selected_tokens() * u64::from(a.kv_heads) * row
    }

    /// The floor of a launch in bytes (DESIGN, section 4): selected K and V, q and output with LSE,
    /// span offsets, spans, and the page table entries that are needed.
    pub fn floor_bytes(&self) -> u64 {
        let a = &self.attention;
        let canonical = self.spans.canonicalise();
        let heads = self.rows() as u64 * u64::from(a.query_heads);
        let io = heads * (2 * u64::from(a.head_dim) * a.dtype.bytes() as u64 + 4);
        let pages: u64 = self.page_entries().iter().map(|entries| entries.len() as u64).sum();
        let meta = 4 * (self.rows() as u64 + 1) + 8 * canonical.spans().len() as u64 + 4 * pages;
        self.selected_kv_bytes() + io + meta
    }

    /// Floating-point operations of the two products (a multiply-add is two).
    pub fn flops(&self) -> f64 {
        self.attention.flops(self.spans.canonicalise().total_selected_tokens())
    }
}
