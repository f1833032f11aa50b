//! One launch of span attention as borrowed arrays, checked before anything is computed.

use float8::F8E4M3;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch};

/// What keeps a problem from being computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemError {
    /// A dimension of size 0.
    #[error("{0} is 0: it must be at least 1")]
    Zero(&'static str),
    /// Query heads do not divide into groups.
    #[error("{query_heads} query heads do not divide among {kv_heads} KV heads")]
    Group {
        /// Query heads.
        query_heads: usize,
        /// KV heads.
        kv_heads: usize,
    },
    /// A tensor of the wrong size.
    #[error("{tensor} has {found} elements: expected {expected} for {shape}")]
    Length {
        /// The tensor.
        tensor: &'static str,
        /// Elements it should have, or their divisor.
        expected: String,
        /// Elements it has.
        found: usize,
        /// Its shape in words.
        shape: &'static str,
    },
    /// A row of no request.
    #[error("row {row} belongs to request {request}, but the page table has {requests} requests")]
    NoSuchRequest {
        /// Row.
        row: usize,
        /// The request it names.
        request: i32,
        /// Rows of the page table.
        requests: usize,
    },
    /// A selected token behind the page table.
    #[error(
        "row {row} selects token {token}, behind the {limit} tokens that its request's row of the \
         page table covers"
    )]
    PastPageTable {
        /// Row.
        row: usize,
        /// Logical position.
        token: u32,
        /// Tokens that fit: max_pages * page_size.
        limit: usize,
    },
    /// A page that does not exist, at a selected token.
    #[error(
        "page_table[{request}][{entry}] is {page}, but there are {pages} pages (row {row} selects token {token} on it)"
    )]
    NoSuchPage {
        /// Row.
        row: usize,
        /// Logical position that needs the page.
        token: u32,
        /// Request.
        request: usize,
        /// Column of the page table.
        entry: usize,
        /// The page it names.
        page: i32,
        /// Pages of the tensors.
        pages: usize,
    },
}

/// One decode launch over paged keys and values. Elements are raw bits of `dtype`; keys and values may be
/// of 8 bits, which are the lower bytes then.
///
/// Requests = `page_table.len() / max_pages`; pages = `k.len() / (page_size * kv_heads *
/// head_dim)`; rows = `row_request.len()`. Page-table entries that no selected token needs may hold
/// anything.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Element type of q and of the output.
    pub dtype: Dtype,
    /// Element type of k and v.
    pub kv_dtype: KvDtype,
    /// Order of the dimensions of a page.
    pub layout: KvLayout,
    /// Query heads; a multiple of `kv_heads`.
    pub query_heads: usize,
    /// KV heads. Query head h reads KV head `h / (query_heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements per head, of keys and of values.
    pub head_dim: usize,
    /// Tokens per page.
    pub page_size: usize,
    /// Columns of the page table.
    pub max_pages: usize,
    /// Factor on q . k.
    pub scale: f32,
    /// What logits are capped at: `soft_cap * tanh(logit / soft_cap)`. 0 for no cap.
    pub soft_cap: f32,
    /// `[rows, query_heads, head_dim]`.
    pub q: &'a [u16],
    /// `[pages, page_size, kv_heads, head_dim]` (NHD) or `[pages, kv_heads, page_size, head_dim]`
    /// (HND).
    pub k: &'a [u16],
    /// As `k`.
    pub v: &'a [u16],
    /// `[requests, max_pages]`: the page of each `page_size` logical positions of a request.
    pub page_table: &'a [i32],
    /// `[rows]`: the request of each row.
    pub row_request: &'a [i32],
    /// The selected tokens of each row, in logical positions of its request: one set, or one for each
    /// KV head, as sets `[rows, kv_heads]`.
    pub spans: &'a SpanBatch,
    /// `[query_heads]`: a logit beside those of tokens, with a value of zero. Empty for none.
    pub sinks: &'a [f32],
    /// `[kv_heads]`: what every element of k is multiplied by. Empty for 1.
    pub k_scales: &'a [f32],
    /// As `k_scales`, of v.
    pub v_scales: &'a [f32],
}

impl Problem<'_> {
    /// Rows of the launch.
    pub fn rows(&self) -> usize {
        self.row_request.len()
    }

    /// Query heads per KV head; 0 if there is no KV head.
    pub fn group_size(&self) -> usize {
        self.query_heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// Pages of the key and value tensors; 0 if a dimension is 0.
    pub fn pages(&self) -> usize {
        let page = self.page_size.saturating_mul(self.kv_heads).saturating_mul(self.head_dim);
        self.k.len().checked_div(page).unwrap_or(0)
    }

    /// Checks the sizes of all arrays; what the spans reach is checked row by row as it is read.
    pub fn validate(&self) -> Result<(), ProblemError> {
        for (size, name) in [
            (self.query_heads, "query_heads"),
            (self.kv_heads, "kv_heads"),
            (self.head_dim, "head_dim"),
            (self.page_size, "page_size"),
        ] {
            if size == 0 {
                return Err(ProblemError::Zero(name));
            }
        }
        if !self.query_heads.is_multiple_of(self.kv_heads) {
            return Err(ProblemError::Group {
                query_heads: self.query_heads,
                kv_heads: self.kv_heads,
            });
        }
        let length = |tensor, shape, found, factors: &[usize]| {
            let expected = factors.iter().try_fold(1usize, |n, &f| n.checked_mul(f));
            if expected == Some(found) {
                return Ok(());
            }
            let expected = expected.map_or("more than memory holds".to_owned(), |n| n.to_string());
            Err(ProblemError::Length { tensor, expected, found, shape })
        };
        let rows = self.rows();
        length(
            "q",
            "[rows, query_heads, head_dim]",
            self.q.len(),
            &[rows, self.query_heads, self.head_dim],
        )?;
        if self.spans.rows() != rows {
            length(
                "spans",
                "[rows] or [rows, kv_heads] sets",
                self.spans.rows(),
                &[rows, self.kv_heads],
            )?;
        }
        if !self.sinks.is_empty() {
            length("sinks", "[query_heads]", self.sinks.len(), &[self.query_heads])?;
        }
        for (tensor, scales) in [("k_scales", self.k_scales), ("v_scales", self.v_scales)] {
            if !scales.is_empty() {
                length(tensor, "[kv_heads]", scales.len(), &[self.kv_heads])?;
            }
        }
        length("v", "the shape of k", self.v.len(), &[self.k.len()])?;
        let multiple = |tensor, shape, found: usize, factors: &[usize]| {
            let unit = factors.iter().try_fold(1usize, |n, &f| n.checked_mul(f));
            if unit.is_some_and(|unit| found.is_multiple_of(unit)) {
                return Ok(());
            }
            let unit = unit.map_or("a unit larger than memory".to_owned(), |n| n.to_string());
            Err(ProblemError::Length {
                tensor,
                expected: format!("a multiple of {unit}"),
                found,
                shape,
            })
        };
        multiple(
            "k",
            "[pages, page_size, kv_heads, head_dim] in either order",
            self.k.len(),
            &[self.page_size, self.kv_heads, self.head_dim],
        )?;
        multiple("page_table", "[requests, max_pages]", self.page_table.len(), &[self.max_pages])
    }

    /// Page and slot of each token that `row` selects for a KV head, ascending by logical position.
    pub(crate) fn selected(
        &self,
        row: usize,
        kv_head: usize,
    ) -> Result<Vec<(usize, usize)>, ProblemError> {
        let set = match self.spans.rows() == self.rows() {
            true => self.spans.row(row),
            false => self.spans.row(row * self.kv_heads + kv_head),
        };
        let requests = self.page_table.len().checked_div(self.max_pages).unwrap_or(0);
        let request = self.row_request[row];
        let table = usize::try_from(request).ok().filter(|r| *r < requests);
        let Some(request) = table else {
            // A table without columns has no rows to count; an empty row needs none.
            if set.is_empty() && self.max_pages == 0 && request >= 0 {
                return Ok(Vec::new());
            }
            return Err(ProblemError::NoSuchRequest { row, request, requests });
        };
        let table = &self.page_table[request * self.max_pages..][..self.max_pages];
        let pages = self.pages();
        let mut selected = Vec::with_capacity(set.len_tokens().min(1 << 24) as usize);
        for token in set.tokens() {
            let (entry, slot) = (token as usize / self.page_size, token as usize % self.page_size);
            let Some(&page) = table.get(entry) else {
                let limit = self.max_pages.saturating_mul(self.page_size);
                return Err(ProblemError::PastPageTable { row, token, limit });
            };
            match usize::try_from(page) {
                Ok(at) if at < pages => selected.push((at, slot)),
                _ => {
                    return Err(ProblemError::NoSuchPage {
                        row,
                        token,
                        request,
                        entry,
                        page,
                        pages,
                    });
                }
            }
        }
        Ok(selected)
    }

    /// The `head_dim` elements of `tensor` (k or v) at `(page, slot)` for `kv_head`, as f32, which
    /// holds every value of the dtypes exactly. Not multiplied by the head's factor.
    pub(crate) fn read_kv(
        &self,
        tensor: &[u16],
        (page, slot): (usize, usize),
        kv_head: usize,
        out: &mut [f32],
    ) {
        let row = self.layout.row_index(page, slot, kv_head, self.page_size, self.kv_heads);
        let bits = &tensor[row * self.head_dim..][..self.head_dim];
        match self.kv_dtype {
            KvDtype::Same => to_f32(self.dtype, bits, out),
            KvDtype::E4m3 => {
                for (out, bits) in out.iter_mut().zip(bits) {
                    *out = F8E4M3::from_bits(*bits as u8).to_f32();
                }
            }
        }
    }

    /// The query of `(row, head)` as f32.
    pub(crate) fn read_q(&self, row: usize, head: usize, out: &mut [f32]) {
        let at = (row * self.query_heads + head) * self.head_dim;
        to_f32(self.dtype, &self.q[at..][..self.head_dim], out);
    }
}

/// Raw bits of `dtype` as f32, exactly.
pub(crate) fn to_f32(dtype: Dtype, bits: &[u16], out: &mut [f32]) {
    match dtype {
        Dtype::F16 => bits.reinterpret_cast::<f16>().convert_to_f32_slice(out),
        Dtype::Bf16 => bits.reinterpret_cast::<bf16>().convert_to_f32_slice(out),
    }
}

/// The nearest value of `dtype` as raw bits, ties to even.
pub(crate) fn from_f32(dtype: Dtype, value: f32) -> u16 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_bits(),
        Dtype::Bf16 => bf16::from_f32(value).to_bits(),
    }
}
