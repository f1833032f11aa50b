//! What decides, besides the shape, which configuration is fast: how many rows a batch has and each of
//! its requests, how much each selects, and in what pieces. Batches that are alike in these, to a power
//! of two, are in one bucket; a batch that was not tuned for is served as the bucket that is nearest to it.

use serde::{Deserialize, Serialize};
use spanforge_spans::SpanBatch;

/// A kind of batch. Every number is a power of two, the nearest one by ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bucket {
    /// Rows.
    pub rows: u32,
    /// Rows that follow each other and are of one request, on average.
    #[serde(default = "crate::configuration::one", skip_serializing_if = "is_one")]
    pub rows_per_request: u32,
    /// Selected tokens per row, on average.
    pub tokens_per_row: u32,
    /// Tokens per span, on average.
    pub tokens_per_span: u32,
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

/// How much a doubling of the rows of a request counts, where one of the other numbers counts 1: a kernel
/// that takes several rows at a time computes in vain where there is one, and one that takes one reads
/// again what the row before has read.
const ROWS_PER_REQUEST_WEIGHT: f64 = 4.0;

impl Bucket {
    /// The bucket of a batch with so many rows, requests (as often as rows of another one follow), selected
    /// tokens and canonical spans in all.
    pub fn of(rows: u64, requests: u64, tokens: u64, spans: u64) -> Self {
        Self {
            rows: nearest_power(rows as f64),
            rows_per_request: nearest_power(rows as f64 / requests.max(1) as f64),
            tokens_per_row: nearest_power(tokens as f64 / rows.max(1) as f64),
            tokens_per_span: nearest_power(tokens as f64 / spans.max(1) as f64),
        }
    }

    /// The bucket of the canonical spans of rows of those requests; where each KV head has its own, of
    /// the mean of all heads.
    pub fn of_spans(spans: &SpanBatch, row_request: &[i32]) -> Self {
        let rows = row_request.len() as u64;
        let requests = row_request.chunk_by(|one, next| one == next).count() as u64;
        let sets = (spans.rows() as u64).checked_div(rows).unwrap_or(1).max(1);
        let [tokens, spans] = [spans.total_selected_tokens(), spans.spans().len() as u64];
        Self::of(rows, requests, tokens / sets, spans / sets)
    }

    /// How far two buckets are apart: the factors between their numbers, as doublings, added up, those
    /// between rows per request four times.
    pub fn distance(&self, other: &Self) -> f64 {
        let parts = |b: &Self| {
            [
                (b.rows, 1.0),
                (b.rows_per_request, ROWS_PER_REQUEST_WEIGHT),
                (b.tokens_per_row, 1.0),
                (b.tokens_per_span, 1.0),
            ]
            .map(|(number, weight)| weight * f64::from(number.max(1)).log2())
        };
        parts(self).iter().zip(parts(other)).map(|(one, other)| (one - other).abs()).sum()
    }

    /// The nearest of some buckets; of equally near ones the smallest.
    pub fn nearest(&self, known: impl IntoIterator<Item = Self>) -> Option<Self> {
        known.into_iter().min_by(|one, other| {
            self.distance(one).total_cmp(&self.distance(other)).then_with(|| one.cmp(other))
        })
    }

    /// Whether every number is at least one.
    pub(crate) fn is_sound(&self) -> bool {
        [self.rows, self.rows_per_request, self.tokens_per_row, self.tokens_per_span]
            .iter()
            .all(|number| *number > 0)
    }
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, rows_per_request, tokens_per_row, tokens_per_span } = self;
        let noun = if *rows == 1 { "row" } else { "rows" };
        let per_request = match rows_per_request {
            1 => String::new(),
            several => format!(", {several} per request,"),
        };
        write!(
            f,
            "{rows} {noun}{per_request} x {tokens_per_row} tokens in spans of {tokens_per_span}"
        )
    }
}

fn nearest_power(value: f64) -> u32 {
    let exponent = value.max(1.0).log2().round().min(31.0);
    1 << exponent as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bucket_is_the_nearest_power_of_two() {
        let bucket = |rows, tokens, spans| Bucket::of(rows, rows, tokens, spans).to_string();
        assert_eq!(bucket(16, 16 * 8192, 16), "16 rows x 8192 tokens in spans of 8192");
        assert_eq!(bucket(11, 11 * 700, 70), "8 rows x 512 tokens in spans of 128");
        assert_eq!(bucket(12, 12 * 750, 70), "16 rows x 1024 tokens in spans of 128");
        // Nothing at all, and rows that select nothing.
        assert_eq!(bucket(0, 0, 0), "1 row x 1 tokens in spans of 1");
        assert_eq!(bucket(5, 0, 0), "4 rows x 1 tokens in spans of 1");
        assert_eq!(bucket(u64::MAX, u64::MAX, 1).split(' ').next(), Some("2147483648"));
    }

    #[test]
    fn the_distance_counts_doublings() {
        let bucket = |rows, tokens_per_row, tokens_per_span| Bucket {
            rows,
            rows_per_request: 1,
            tokens_per_row,
            tokens_per_span,
        };
        assert_eq!(bucket(1, 1024, 64).distance(&bucket(8, 512, 64)), 4.0);
        assert_eq!(bucket(8, 512, 64).distance(&bucket(1, 1024, 64)), 4.0);
        assert_eq!(bucket(8, 512, 64).distance(&bucket(8, 512, 64)), 0.0);
        // Of two that are as near the smaller, whatever their order.
        let (few, many) = (bucket(2, 512, 64), bucket(8, 512, 64));
        for known in [[few, many], [many, few]] {
            assert_eq!(bucket(4, 512, 64).nearest(known), Some(few));
        }
        assert_eq!(few.nearest([]), None);
        // A step of 16 requests is served by what was tuned for one row, not by what was tuned for as
        // many rows of four requests.
        let drafts = Bucket { rows_per_request: 4, ..bucket(16, 512, 64) };
        assert_eq!(drafts.to_string(), "16 rows, 4 per request, x 512 tokens in spans of 64");
        assert_eq!(
            bucket(16, 512, 64).nearest([bucket(1, 512, 64), drafts]),
            Some(bucket(1, 512, 64))
        );
    }

    #[test]
    fn rows_of_one_request_count_where_they_follow_each_other() {
        let spans = SpanBatch::from_raw(vec![0, 1, 2, 3, 4], vec![[0, 8]; 4]).unwrap();
        let per_request = |requests| Bucket::of_spans(&spans, requests).rows_per_request;
        assert_eq!(per_request(&[0, 0, 1, 1]), 2);
        assert_eq!(per_request(&[0, 1, 0, 1]), 1);
        assert_eq!(per_request(&[3, 3, 3, 3]), 4);
        // Two KV heads with spans of their own: two rows.
        let bucket = Bucket::of_spans(&spans, &[0, 1]);
        assert_eq!((bucket.rows, bucket.tokens_per_row), (2, 8));
    }

    proptest! {
        #[test]
        fn a_batch_is_within_half_a_doubling_of_its_bucket(
            rows in 1..1000_u64, per_row in 1..100_000_u64, spans in 1..50_u64,
        ) {
            let tokens = rows * per_row;
            let bucket = Bucket::of(rows, rows, tokens, spans.min(tokens));
            for (exact, power) in [
                (rows as f64, bucket.rows),
                (per_row as f64, bucket.tokens_per_row),
                (tokens as f64 / spans.min(tokens) as f64, bucket.tokens_per_span),
            ] {
                prop_assert!((exact / f64::from(power)).log2().abs() <= 0.5 + 1e-9);
            }
        }
    }
}
