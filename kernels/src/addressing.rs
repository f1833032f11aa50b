//! Where the selected tokens of a launch lie, and the proof that every address a kernel will form
//! from the page table lies in the cache. A kernel trusts its integers; this is what lets it.

use crate::configuration::{AttentionShape, MOST_BEGINNING_TOKENS};
use crate::problem::ProblemError;
use spanforge_spans::{BatchError, KvLayout, SpanBatch};
use std::borrow::Cow;

const _: () = assert!(MOST_BEGINNING_TOKENS == 256, "a message says so");

/// The integers of a launch, on the host.
#[derive(Clone, Copy, Debug)]
pub struct Addressing<'a> {
    /// Per row the selected tokens, in logical positions: one set, or one for each KV head, as sets
    /// `[rows, kv_heads]`.
    pub spans: &'a SpanBatch,
    /// `[rows]`: request of each row.
    pub row_request: &'a [i32],
    /// `[requests]`: tokens in the cache of each request.
    pub kv_len: &'a [i32],
    /// `[requests, max_pages]`: page that holds each run of `page_size` logical positions. Entries
    /// that no selected token needs may be anything.
    pub page_table: &'a [i32],
    /// Entries of each request's row of the page table.
    pub max_pages: usize,
    /// Pages of the cache.
    pub pages: usize,
}

impl Addressing<'_> {
    /// Sets of spans of each row: 1, or as many as KV heads.
    ///
    /// # Errors
    /// [`BatchError::RowCount`] where there are neither as many sets as rows nor as many for each KV head.
    pub fn span_heads(&self, kv_heads: u32) -> Result<u32, ProblemError> {
        let (rows, sets) = (self.row_request.len(), self.spans.rows());
        match sets {
            _ if sets == rows => Ok(1),
            _ if Some(sets) == rows.checked_mul(kv_heads as usize) => Ok(kv_heads),
            _ => Err(BatchError::RowCount { expected: sets, found: rows }.into()),
        }
    }

    /// Checks that rows name requests, that no span ends past its request's KV length, that KV
    /// lengths fit the page table, that the entries which selected tokens need name pages, and that
    /// every count fits the kernels' 32-bit integers. The spans must be canonical for the count of
    /// selected tokens to be fast.
    pub fn check(&self, attention: &AttentionShape) -> Result<(), ProblemError> {
        let page_size = attention.page_size;
        if page_size == 0 {
            return Err(ProblemError::PageSize);
        }
        let limit = i32::MAX as u64;
        for (what, found) in [
            (
                "rows x KV heads",
                (self.row_request.len() as u64).saturating_mul(u64::from(attention.kv_heads)),
            ),
            ("page table entries per request", self.max_pages as u64),
            ("tokens per page", u64::from(page_size)),
            // Places of the line that the plan cuts.
            (
                "selected tokens of all rows, and 256 for each row,",
                self.spans.total_selected_tokens()
                    + self.spans.rows() as u64 * u64::from(MOST_BEGINNING_TOKENS),
            ),
            // Query tiles have room for twice as many.
            ("twice the spans", 2 * self.spans.spans().len() as u64),
        ] {
            if found > limit {
                return Err(ProblemError::TooLarge { what, found, limit });
            }
        }
        let table = (self.kv_len.len() as u64).saturating_mul(self.max_pages as u64);
        if self.page_table.len() as u64 != table {
            return Err(ProblemError::TensorSize {
                tensor: "page_table",
                found: self.page_table.len(),
                expected: usize::try_from(table).unwrap_or(usize::MAX),
                shape: "[requests, max_pages]".to_owned(),
            });
        }
        let span_heads = self.span_heads(attention.kv_heads)? as usize;
        let set_request: Cow<'_, [i32]> = match span_heads {
            1 => self.row_request.into(),
            _ => {
                self.row_request.iter().flat_map(|r| std::iter::repeat_n(*r, span_heads)).collect()
            }
        };
        self.spans.validate_against(&set_request, self.kv_len).map_err(|error| match error {
            // A row has several sets.
            BatchError::PastKvLen { row, span, start, end, request, kv_len } => {
                let row = row / span_heads;
                BatchError::PastKvLen { row, span, start, end, request, kv_len }
            }
            BatchError::NoSuchRequest { row, request, requests } => {
                BatchError::NoSuchRequest { row: row / span_heads, request, requests }
            }
            other => other,
        })?;
        let room = self.max_pages as u64 * u64::from(page_size);
        for (request, &kv_len) in self.kv_len.iter().enumerate() {
            if u64::from(kv_len.max(0).cast_unsigned()) > room {
                return Err(ProblemError::KvLength {
                    request,
                    kv_len,
                    room,
                    max_pages: self.max_pages,
                    page_size,
                });
            }
        }
        self.check_pages(page_size, &set_request, span_heads)
    }

    fn check_pages(
        &self,
        page_size: u32,
        set_request: &[i32],
        span_heads: usize,
    ) -> Result<(), ProblemError> {
        for (set, &request) in set_request.iter().enumerate() {
            // Rows name requests and spans end before `max_pages` pages do: checked above.
            let request = request as usize;
            let table = &self.page_table[request * self.max_pages..][..self.max_pages];
            for &[start, end] in self.spans.row_raw(set).iter().filter(|[start, end]| start < end) {
                let first = (start.cast_unsigned() / page_size) as usize;
                let last = ((end.cast_unsigned() - 1) / page_size) as usize;
                let entries = &table[first..=last];
                let bad = |&page: &i32| usize::try_from(page).map_or(true, |p| p >= self.pages);
                if let Some(at) = entries.iter().position(bad) {
                    return Err(ProblemError::PageOutOfRange {
                        request,
                        entry: first + at,
                        page: entries[at],
                        row: set / span_heads,
                        last: i64::try_from(self.pages).map_or(i64::MAX, |pages| pages - 1),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Elements of K (and V) from one page to the next, from one token of a page to the next, and from
/// one KV head to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvStrides {
    /// From page to page.
    pub page: u64,
    /// From token to token.
    pub token: u64,
    /// From head to head.
    pub head: u64,
}

impl KvStrides {
    /// Those of a tensor without gaps: `[pages, page_size, kv_heads, head_dim]` (NHD) or
    /// `[pages, kv_heads, page_size, head_dim]` (HND).
    pub fn packed(attention: &AttentionShape) -> Self {
        let [page_size, kv_heads, head_dim] =
            [attention.page_size, attention.kv_heads, attention.head_dim].map(u64::from);
        let page = page_size.saturating_mul(kv_heads).saturating_mul(head_dim);
        match attention.layout {
            KvLayout::Nhd => Self { page, token: kv_heads * head_dim, head: head_dim },
            KvLayout::Hnd => Self { page, token: head_dim, head: page_size * head_dim },
        }
    }

    /// Elements that a tensor of `pages` pages has at least; `None` where that is no 64-bit number.
    pub fn elements(&self, attention: &AttentionShape, pages: usize) -> Option<u64> {
        if pages == 0 || attention.page_size == 0 || attention.kv_heads == 0 {
            return Some(0);
        }
        let last = (pages as u64 - 1).checked_mul(self.page)?;
        let last = last.checked_add(self.token.checked_mul(u64::from(attention.page_size) - 1)?)?;
        let last = last.checked_add(self.head.checked_mul(u64::from(attention.kv_heads) - 1)?)?;
        last.checked_add(u64::from(attention.head_dim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spanforge_spans::{Dtype, KvDtype, SpanSet};

    /// Places on the plan's line are counted by 32 bits, those behind a row included.
    #[test]
    fn as_many_tokens_are_refused_as_the_line_cannot_hold() {
        let page_size = i32::MAX.cast_unsigned();
        let attention = AttentionShape {
            dtype: Dtype::F16,
            kv_dtype: KvDtype::Same,
            query_heads: 4,
            kv_heads: 1,
            head_dim: 128,
            page_size,
            layout: KvLayout::Nhd,
        };
        let check = |tokens: u32| {
            let spans = &SpanBatch::from_sets(&[SpanSet::from(0..tokens)]).unwrap();
            let (kv_len, one) = (&[i32::MAX][..], &[0][..]);
            Addressing { spans, row_request: one, kv_len, page_table: one, max_pages: 1, pages: 1 }
                .check(&attention)
        };
        let most = page_size - MOST_BEGINNING_TOKENS;
        check(most).unwrap();
        let refused = check(most + 1).unwrap_err().to_string();
        assert!(refused.contains("all rows, and 256 for each row, is 2147483648"), "{refused}");
    }
}
