//! The span sets of many rows as the two integer arrays that a kernel reads, and every check that
//! stands between a user's arrays and a launch.

use std::fmt;

use crate::{Span, SpanSet};

/// What is wrong with the arrays of a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// `span_ptr` needs rows + 1 entries.
    #[error("span_ptr is empty: it must hold rows + 1 offsets, at least the single 0 of no rows")]
    NoOffsets,
    /// `span_ptr` counts from somewhere else than 0.
    #[error("span_ptr[0] is {0}: offsets must start at 0")]
    FirstOffset(i32),
    /// `span_ptr` goes down.
    #[error(
        "row {row}: span_ptr goes from {from} to {to}: offsets must never decrease (the row's \
         spans are spans[span_ptr[row]..span_ptr[row + 1]])"
    )]
    DecreasingOffsets {
        /// The row between the two offsets.
        row: usize,
        /// Offset of the row.
        from: i32,
        /// Offset of the next row.
        to: i32,
    },
    /// `span_ptr` does not end where `spans` ends.
    #[error("span_ptr ends at {last} but there are {spans} spans: the two must be equal")]
    LastOffset {
        /// Last entry of `span_ptr`.
        last: i32,
        /// Number of spans given.
        spans: usize,
    },
    /// A position below 0.
    #[error("row {row}, span {span}: [{start}, {end}) has a negative position")]
    Negative {
        /// Row.
        row: usize,
        /// Index of the span within the row.
        span: usize,
        /// Start as given.
        start: i32,
        /// End as given.
        end: i32,
    },
    /// Start behind end.
    #[error("row {row}, span {span}: [{start}, {end}) is reversed (spans are half-open)")]
    Reversed {
        /// Row.
        row: usize,
        /// Index of the span within the row.
        span: usize,
        /// Start as given.
        start: i32,
        /// End as given.
        end: i32,
    },
    /// A span that reads past the cache of its request.
    #[error(
        "row {row}, span {span}: [{start}, {end}) ends past the KV length {kv_len} of request \
         {request}"
    )]
    PastKvLen {
        /// Row.
        row: usize,
        /// Index of the span within the row.
        span: usize,
        /// Start as given.
        start: i32,
        /// End as given.
        end: i32,
        /// The row's request.
        request: i32,
        /// Tokens in the request's cache.
        kv_len: i32,
    },
    /// `row_request` has another number of rows.
    #[error("row_request has {found} entries but span_ptr describes {expected} rows")]
    RowCount {
        /// Rows of the batch.
        expected: usize,
        /// Entries given.
        found: usize,
    },
    /// A row names no request.
    #[error("row {row} belongs to request {request}, but there are {requests} requests")]
    NoSuchRequest {
        /// Row.
        row: usize,
        /// The request it names.
        request: i32,
        /// Number of requests.
        requests: usize,
    },
    /// A KV length below 0.
    #[error("kv_len[{request}] is {kv_len}: a KV length must not be negative")]
    NegativeKvLen {
        /// Request.
        request: usize,
        /// Length as given.
        kv_len: i32,
    },
    /// Positions or counts that the 32-bit arrays of the kernels cannot hold.
    #[error(
        "row {row}: {what} {value} exceeds {}, the most that the kernels' arrays hold",
        i32::MAX
    )]
    TooLarge {
        /// Row.
        row: usize,
        /// What is too large.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

/// Span sets of many rows in CSR form: the spans of row `r` are
/// `spans[span_ptr[r]..span_ptr[r + 1]]`, each `[start, end)` in logical positions of the row's
/// request.
///
/// A batch is always well formed (offsets monotone, spans neither negative nor reversed); it is
/// *canonical* if the spans of every row are. Kernels take canonical ones, see
/// [`canonicalise`](Self::canonicalise).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpanBatch {
    span_ptr: Vec<i32>,
    spans: Vec<[i32; 2]>,
    canonical: bool,
}

impl SpanBatch {
    /// A canonical batch of one set per row. Fails only where a position or the number of spans
    /// exceeds `i32::MAX`.
    pub fn from_sets<'a>(sets: impl IntoIterator<Item = &'a SpanSet>) -> Result<Self, BatchError> {
        let mut batch = Self { span_ptr: vec![0], spans: Vec::new(), canonical: true };
        for (row, set) in sets.into_iter().enumerate() {
            for span in set.iter() {
                let end = i32::try_from(span.end()).map_err(|_| BatchError::TooLarge {
                    row,
                    what: "the span end",
                    value: u64::from(span.end()),
                })?;
                // The start is below an end that fits.
                batch.spans.push([span.start() as i32, end]);
            }
            batch.span_ptr.push(offset(row, batch.spans.len())?);
        }
        Ok(batch)
    }

    /// Takes the arrays as a user's file holds them. Spans may be unsorted, overlapping, repeated
    /// or empty; see [`BatchError`] for what is refused. KV lengths are checked by
    /// [`validate_against`](Self::validate_against).
    pub fn from_raw(span_ptr: Vec<i32>, spans: Vec<[i32; 2]>) -> Result<Self, BatchError> {
        match span_ptr.first() {
            None => return Err(BatchError::NoOffsets),
            Some(0) => {}
            Some(&first) => return Err(BatchError::FirstOffset(first)),
        }
        for (row, pair) in span_ptr.windows(2).enumerate() {
            if pair[0] > pair[1] {
                return Err(BatchError::DecreasingOffsets { row, from: pair[0], to: pair[1] });
            }
        }
        let last = span_ptr[span_ptr.len() - 1];
        if usize::try_from(last) != Ok(spans.len()) {
            return Err(BatchError::LastOffset { last, spans: spans.len() });
        }
        let mut batch = Self { span_ptr, spans, canonical: false };
        let mut canonical = true;
        for row in 0..batch.rows() {
            let mut previous_end = -1;
            for (span, &[start, end]) in batch.row_raw(row).iter().enumerate() {
                if start < 0 || end < 0 {
                    return Err(BatchError::Negative { row, span, start, end });
                }
                if start > end {
                    return Err(BatchError::Reversed { row, span, start, end });
                }
                // Touching spans would have been merged.
                canonical &= start < end && start > previous_end;
                previous_end = end;
            }
        }
        batch.canonical = canonical;
        Ok(batch)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.span_ptr.len() - 1
    }

    /// Offsets `[rows + 1]` into [`spans`](Self::spans).
    pub fn span_ptr(&self) -> &[i32] {
        &self.span_ptr
    }

    /// All spans `[n, 2]`, row after row.
    pub fn spans(&self) -> &[[i32; 2]] {
        &self.spans
    }

    /// The spans of one row as stored. Panics if there is no such row.
    pub fn row_raw(&self, row: usize) -> &[[i32; 2]] {
        &self.spans[self.span_ptr[row] as usize..self.span_ptr[row + 1] as usize]
    }

    /// The canonical set of one row. Panics if there is no such row.
    pub fn row(&self, row: usize) -> SpanSet {
        // Positions are checked to be neither negative nor reversed when a batch is made.
        self.row_raw(row).iter().map(|&[start, end]| Span::from(start as u32..end as u32)).collect()
    }

    /// The canonical sets of all rows.
    pub fn sets(&self) -> impl ExactSizeIterator<Item = SpanSet> + '_ {
        (0..self.rows()).map(|row| self.row(row))
    }

    /// Whether every row is stored as its canonical set.
    pub fn is_canonical(&self) -> bool {
        self.canonical
    }

    /// The same sets, each stored as its canonical spans. Never more spans than before.
    pub fn canonicalise(&self) -> Self {
        if self.canonical {
            return self.clone();
        }
        let mut batch = Self { span_ptr: vec![0], spans: Vec::new(), canonical: true };
        for set in self.sets() {
            batch.spans.extend(set.iter().map(|s| [s.start() as i32, s.end() as i32]));
            // At most as many as before, whose number fits.
            batch.span_ptr.push(batch.spans.len() as i32);
        }
        batch
    }

    /// Selected tokens of a row: each token counts once. Panics if there is no such row.
    pub fn selected_tokens(&self, row: usize) -> u64 {
        if self.canonical {
            self.row_raw(row).iter().map(|&[start, end]| (end - start) as u64).sum()
        } else {
            self.row(row).len_tokens()
        }
    }

    /// Selected tokens of all rows together.
    pub fn total_selected_tokens(&self) -> u64 {
        (0..self.rows()).map(|row| self.selected_tokens(row)).sum()
    }

    /// Selected tokens of the row that has most; 0 without rows.
    pub fn max_selected_tokens(&self) -> u64 {
        (0..self.rows()).map(|row| self.selected_tokens(row)).max().unwrap_or(0)
    }

    /// Checks that every row names a request and that no span ends past the KV length of it.
    ///
    /// `row_request` is `[rows]`, `kv_len` is `[requests]`, in tokens.
    pub fn validate_against(&self, row_request: &[i32], kv_len: &[i32]) -> Result<(), BatchError> {
        if row_request.len() != self.rows() {
            return Err(BatchError::RowCount { expected: self.rows(), found: row_request.len() });
        }
        if let Some((request, &kv_len)) = kv_len.iter().enumerate().find(|(_, len)| **len < 0) {
            return Err(BatchError::NegativeKvLen { request, kv_len });
        }
        for (row, &request) in row_request.iter().enumerate() {
            let limit = usize::try_from(request).ok().and_then(|r| kv_len.get(r)).copied();
            let Some(limit) = limit else {
                return Err(BatchError::NoSuchRequest { row, request, requests: kv_len.len() });
            };
            for (span, &[start, end]) in self.row_raw(row).iter().enumerate() {
                if end > limit {
                    return Err(BatchError::PastKvLen {
                        row,
                        span,
                        start,
                        end,
                        request,
                        kv_len: limit,
                    });
                }
            }
        }
        Ok(())
    }
}

fn offset(row: usize, spans: usize) -> Result<i32, BatchError> {
    i32::try_from(spans).map_err(|_| BatchError::TooLarge {
        row,
        what: "the number of spans",
        value: spans as u64,
    })
}

impl fmt::Debug for SpanBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..self.rows()).map(|row| self.row_raw(row))).finish()
    }
}
