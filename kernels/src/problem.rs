//! One decode launch as data on the host: shapes, pages, spans and tensors, checked before anything
//! is given to a device.

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

    /// Elements from one page to the next, from one token to the next, and from one KV head to the
    /// next.
    pub fn strides(&self) -> [u64; 3] {
        let a = &self.attention;
        let [page_size, kv_heads, head_dim] = [a.page_size, a.kv_heads, a.head_dim].map(u64::from);
        let page = page_size.saturating_mul(kv_heads).saturating_mul(head_dim);
        match a.layout {
            KvLayout::Nhd => [page, kv_heads * head_dim, head_dim],
            KvLayout::Hnd => [page, head_dim, page_size * head_dim],
        }
    }

    /// Checks everything that a kernel would otherwise have to trust.
    pub fn check(&self) -> Result<(), ProblemError> {
        let a = &self.attention;
        a.kernel_shape()?;
        if a.page_size == 0 {
            return Err(ProblemError::PageSize);
        }
        if !self.scale.is_finite() {
            return Err(ProblemError::Scale(self.scale.to_string()));
        }
        self.check_sizes()?;
        self.spans.validate_against(&self.row_request, &self.kv_len)?;
        let room = self.max_pages as u64 * u64::from(a.page_size);
        for (request, &kv_len) in self.kv_len.iter().enumerate() {
            if u64::from(kv_len.max(0).cast_unsigned()) > room {
                return Err(ProblemError::KvLength {
                    request,
                    kv_len,
                    room,
                    max_pages: self.max_pages,
                    page_size: a.page_size,
                });
            }
        }
        for (row, entries) in self.page_entries().into_iter().enumerate() {
            let request = self.row_request[row] as usize;
            for entry in entries {
                let page = self.page_table[request * self.max_pages + entry];
                if usize::try_from(page).map_or(true, |p| p >= self.pages) {
                    let last = self.pages as i64 - 1;
                    return Err(ProblemError::PageOutOfRange { request, entry, page, row, last });
                }
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), ProblemError> {
        let a = &self.attention;
        let limit = i32::MAX as u64;
        let [page, token, head] = self.strides();
        for (what, found) in [
            ("rows x KV heads", self.rows() as u64 * u64::from(a.kv_heads)),
            ("elements per page", page.max(token).max(head)),
            ("page table entries per request", self.max_pages as u64),
            ("selected tokens of all rows", self.spans.total_selected_tokens()),
        ] {
            if found > limit {
                return Err(ProblemError::TooLarge { what, found, limit });
            }
        }
        let kv = self.pages as u64 * page;
        let query = self.rows() as u64 * u64::from(a.query_heads) * u64::from(a.head_dim);
        let table = self.requests() as u64 * self.max_pages as u64;
        let kv_shape = match a.layout {
            KvLayout::Nhd => "[pages, page_size, kv_heads, head_dim]",
            KvLayout::Hnd => "[pages, kv_heads, page_size, head_dim]",
        };
        for (tensor, found, expected, shape) in [
            ("q", self.q.len(), query, "[rows, query_heads, head_dim]"),
            ("k", self.k.len(), kv, kv_shape),
            ("v", self.v.len(), kv, kv_shape),
            ("page_table", self.page_table.len(), table, "[requests, max_pages]"),
        ] {
            if found as u64 != expected {
                return Err(ProblemError::TensorSize {
                    tensor,
                    found,
                    expected: expected as usize,
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
        let a = &self.attention;
        let tokens = self.spans.canonicalise().total_selected_tokens() as f64;
        4.0 * tokens * f64::from(a.query_heads) * f64::from(a.head_dim)
    }
}
