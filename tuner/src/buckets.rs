//! A study of several batches: one time for all of them, the winner of each bucket, and the few
//! kernels that serve all buckets with little loss.
//!
//! The search sees the geometric mean over the batches, so that a batch of a hundred rows does not
//! drown one of a single row. Every candidate is timed on every batch, so the best of each bucket is
//! known afterwards; the kernels that are shipped are the winner over all and, where it loses, the
//! winners of buckets.

use crate::choice::{PREDICTION_RESOLUTION, choose, judged, ranked};
use crate::record::{Batch, BucketWinner, Candidate, Finalist, Remeasured, Timed, Winner};
use spanforge_device::median;
use spanforge_kernels::Bucket;
use spanforge_kernels::artifact::InBucket;

/// Kernels that an artifact may ship, besides the default configuration.
pub const MOST_KERNELS: usize = 4;

/// A loss that is not worth a further kernel: what the cost model cannot tell apart.
pub const SMALL_LOSS: f64 = PREDICTION_RESOLUTION;

/// The geometric mean; 0 of nothing.
pub(crate) fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().collect();
    match values[..] {
        [] => 0.0,
        [one] => one,
        _ => (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp(),
    }
}

/// Samples of several batches as one: the n-th is the geometric mean of their n-th samples.
pub(crate) fn together(by_batch: &[&[f64]]) -> Vec<f64> {
    let count = by_batch.iter().map(|samples| samples.len()).min().unwrap_or(0);
    (0..count).map(|at| geometric_mean(by_batch.iter().map(|samples| samples[at]))).collect()
}

/// The buckets of some batches in the order in which they first come, with the places of their
/// batches.
pub fn buckets(batches: &[Batch]) -> Vec<(Bucket, Vec<usize>)> {
    let mut out: Vec<(Bucket, Vec<usize>)> = Vec::new();
    for (place, batch) in batches.iter().enumerate() {
        match out.iter_mut().find(|(bucket, _)| *bucket == batch.bucket) {
            Some((_, places)) => places.push(place),
            None => out.push((batch.bucket, vec![place])),
        }
    }
    out
}

/// The candidates as they would be if only the batches at `places` had been timed.
fn on(candidates: &[Candidate], places: &[usize]) -> Vec<Candidate> {
    let of = |candidate: &Candidate| {
        let timed: Option<Vec<&[f64]>> = places
            .iter()
            .map(|place| Some(candidate.by_batch.get(*place)?.samples_us.as_slice()))
            .collect();
        let samples_us = timed.map_or_else(Vec::new, |timed| together(&timed));
        let time_us = median(&samples_us);
        Candidate { time_us, samples_us, by_batch: Vec::new(), ..candidate.clone() }
    };
    candidates.iter().map(of).collect()
}

/// What finalists took on the batches at `places`.
fn again_on(remeasured: &Remeasured, places: &[usize]) -> Remeasured {
    let of = |finalist: &Finalist| {
        let timed = places.iter().filter_map(|place| finalist.by_batch.get(*place));
        let timed: Vec<&[f64]> = timed.map(|timed| timed.samples_us.as_slice()).collect();
        Finalist { samples_us: together(&timed), by_batch: Vec::new(), ..finalist.clone() }
    };
    Remeasured { finalists: remeasured.finalists.iter().map(of).collect() }
}

/// Those that may win a bucket: for each, the fastest few of the first measurement.
pub(crate) fn contenders<'c>(
    candidates: &'c [Candidate],
    batches: &[Batch],
    count: usize,
) -> Vec<&'c Candidate> {
    let mut out: Vec<&Candidate> = Vec::new();
    for (_, places) in buckets(batches) {
        for (candidate, _) in ranked(&on(candidates, &places)).into_iter().take(count) {
            let original = candidates.iter().find(|c| c.index == candidate.index);
            out.extend(original.filter(|c| !out.iter().any(|other| other.index == c.index)));
        }
    }
    out
}

/// Tells a winner over all batches of the winners by bucket and of the kernels to ship. A study of one
/// batch has none of that.
pub fn by_bucket(
    winner: &mut Winner,
    batches: &[Batch],
    candidates: &[Candidate],
    remeasured: &Remeasured,
) {
    if batches.len() < 2 {
        return;
    }
    let buckets = buckets(batches);
    let mut winners = Vec::new();
    let mut times: Vec<Vec<Candidate>> = Vec::new();
    for (bucket, places) in &buckets {
        let floor_us = geometric_mean(places.iter().map(|place| batches[*place].floor_us));
        let (here, again) = (on(candidates, places), again_on(remeasured, places));
        let Some(best) = choose(&winner.run, floor_us, &here, &again) else { continue };
        let best = Box::new(best);
        winners.push(BucketWinner { bucket: *bucket, floor_us, winner: best, loss: 0.0 });
        times.push(judged(&here, &again));
    }
    let us = |at: usize, id: &str| times[at].iter().find(|c| c.id == *id)?.time_us;
    let loss = |at: usize, shipped: &[String]| {
        let best = winners[at].winner.time_us;
        let least = shipped.iter().filter_map(|id| us(at, id)).fold(f64::INFINITY, f64::min);
        (least / best - 1.0).max(0.0)
    };
    let mut shipped = vec![winner.id.clone()];
    while shipped.len() < MOST_KERNELS {
        let worst = (0..winners.len())
            .map(|at| (at, loss(at, &shipped)))
            .max_by(|one, other| one.1.total_cmp(&other.1).then_with(|| other.0.cmp(&one.0)));
        match worst {
            Some((at, loss)) if loss > SMALL_LOSS => shipped.push(winners[at].winner.id.clone()),
            _ => break,
        }
    }
    let losses: Vec<f64> = (0..winners.len()).map(|at| loss(at, &shipped)).collect();
    for (best, loss) in winners.iter_mut().zip(losses) {
        best.loss = loss;
    }
    (winner.buckets, winner.shipped) = (winners, shipped);
}

/// How a candidate does in each bucket, against the winner there. `candidates` are as judged.
pub fn in_buckets(
    batches: &[Batch],
    candidate: &Candidate,
    winners: &[BucketWinner],
) -> Vec<InBucket> {
    let buckets = buckets(batches);
    let of = |best: &BucketWinner| {
        let (_, places) = buckets.iter().find(|(bucket, _)| *bucket == best.bucket)?;
        let here = on(std::slice::from_ref(candidate), places);
        let time_us = here.first()?.time_us?;
        let loss = (time_us / best.winner.time_us - 1.0).max(0.0);
        Some(InBucket { bucket: best.bucket, time_us, loss })
    };
    winners.iter().filter_map(of).collect()
}

/// What was timed on all batches as one, and by batch where there are several, of which no conditions
/// are those of all.
pub(crate) fn summarised(by_batch: Vec<Timed>) -> (Timed, Vec<Timed>) {
    match <[Timed; 1]>::try_from(by_batch) {
        Ok([one]) => (one, Vec::new()),
        Err(several) => {
            let samples: Vec<&[f64]> = several.iter().map(|t| t.samples_us.as_slice()).collect();
            (Timed { samples_us: together(&samples), conditions: None }, several)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::tests::candidate as predicted;

    fn batch(rows: u32) -> Batch {
        let bucket =
            Bucket { rows, rows_per_request: 1, tokens_per_row: 1024, tokens_per_span: 128 };
        Batch { bucket, problem: format!("{rows} rows"), floor_us: 0.5 }
    }

    /// A candidate with these predicted times, by batch.
    fn candidate(index: usize, us: &[f64]) -> Candidate {
        let timed = |us: &f64| Timed { samples_us: vec![*us], conditions: None };
        let (all, by_batch) = summarised(us.iter().map(timed).collect());
        let time_us = median(&all.samples_us);
        Candidate { samples_us: all.samples_us, time_us, by_batch, ..predicted(index, 0.0, 0) }
    }

    fn chosen(batches: &[Batch], candidates: &[Candidate]) -> Winner {
        let again = Remeasured::default();
        let mut winner = choose("run", 0.5, candidates, &again).expect("a winner");
        by_bucket(&mut winner, batches, candidates, &again);
        winner
    }

    #[test]
    fn batches_of_one_bucket_are_judged_together() {
        let batches = [batch(1), batch(8), batch(1)];
        let all: Vec<Bucket> = batches.iter().map(|batch| batch.bucket).collect();
        assert_eq!(buckets(&batches), [(all[0], vec![0, 2]), (all[1], vec![1])]);
        // On the two batches of one row: 2 and 8, of mean 4, against 3 and 3.
        let candidates = [candidate(0, &[2.0, 50.0, 8.0]), candidate(1, &[3.0, 90.0, 3.0])];
        let winner = chosen(&batches, &candidates);
        let ids: Vec<&str> = winner.buckets.iter().map(|b| b.winner.id.as_str()).collect();
        assert_eq!(ids, ["c1", "c0"]);
        assert!((winner.buckets[0].winner.time_us - 3.0).abs() < 1e-12);
        assert_eq!(winner.buckets[0].winner.default_us.map(f64::round), Some(4.0));
    }

    #[test]
    fn a_kernel_is_shipped_for_each_bucket_that_would_lose() {
        let batches = [batch(1), batch(8), batch(64)];
        let candidates = [
            candidate(0, &[9.0, 9.0, 9.0]),
            candidate(1, &[2.0, 2.0, 2.0]),   // the winner over all
            candidate(2, &[9.0, 9.0, 1.0]),   // twice as fast with 64 rows
            candidate(3, &[1.995, 9.0, 9.0]), // no more than can be told apart
        ];
        let winner = chosen(&batches, &candidates);
        assert_eq!(winner.shipped, ["c1", "c2"]);
        let losses: Vec<f64> = winner.buckets.iter().map(|bucket| bucket.loss).collect();
        assert_eq!(losses[1..], [0.0, 0.0]);
        assert!(losses[0] < SMALL_LOSS, "{losses:?}");
        let of_first = in_buckets(&batches, &candidates[1], &winner.buckets);
        assert_eq!((of_first[2].time_us, of_first[2].loss), (2.0, 1.0));
    }

    #[test]
    fn no_more_kernels_are_shipped_than_may_be() {
        let rows: Vec<u32> = (0..6).map(|power| 1 << power).collect();
        let batches: Vec<Batch> = rows.iter().map(|rows| batch(*rows)).collect();
        // Each is the best in one bucket, the later ones by more.
        let us = |at: usize| (0..6).map(|b| if b == at { 1.0 } else { 2.0 + b as f64 }).collect();
        let candidates: Vec<Candidate> = (0..6)
            .map(|at| {
                let us: Vec<f64> = us(at);
                candidate(at, &us)
            })
            .collect();
        let winner = chosen(&batches, &candidates);
        assert_eq!(winner.shipped, ["c5", "c4", "c3", "c2"]);
        assert_eq!(winner.buckets[1].loss, 2.0);
    }

    #[test]
    fn one_batch_is_the_run_itself() {
        let one = candidate(0, &[0.1]);
        assert_eq!(
            (one.time_us, one.samples_us.as_slice(), one.by_batch.len()),
            (Some(0.1), &[0.1][..], 0)
        );
        let winner = chosen(&[], &[one]);
        assert!(winner.buckets.is_empty() && winner.shipped.is_empty());
    }

    #[test]
    fn samples_go_together_one_by_one() {
        assert_eq!(together(&[&[1.0, 4.0, 9.0], &[4.0, 4.0]]), [2.0, 4.0]);
        assert_eq!(together(&[&[0.1, 0.3]]), [0.1, 0.3]);
        assert!(together(&[]).is_empty());
    }

    /// Finalists that were timed once more decide each bucket by what they took there then.
    #[test]
    fn later_samples_decide_in_each_bucket() {
        let batches = [batch(1), batch(8)];
        let candidates =
            [candidate(0, &[3.0, 3.0]), candidate(1, &[2.0, 4.0]), candidate(2, &[1.0, 1.0])];
        let again = |index, us: [f64; 2]| Finalist {
            index,
            samples_us: together(&[&us[..1], &us[1..]]),
            conditions: None,
            by_batch: us.map(|us| Timed { samples_us: vec![us], conditions: None }).to_vec(),
        };
        // The third, which was the fastest, is no finalist.
        let remeasured = Remeasured { finalists: vec![again(0, [2.0, 5.0]), again(1, [4.0, 3.0])] };
        let mut winner = choose("run", 0.5, &candidates, &remeasured).expect("a winner");
        by_bucket(&mut winner, &batches, &candidates, &remeasured);
        let best: Vec<(&str, f64)> =
            winner.buckets.iter().map(|b| (b.winner.id.as_str(), b.winner.time_us)).collect();
        assert_eq!(best, [("c0", 2.0), ("c1", 3.0)]);
        // What the manifest says of a kernel is of the same samples.
        let again = judged(&candidates, &remeasured);
        let of_second = in_buckets(&batches, &again[1], &winner.buckets);
        let of_second: Vec<_> = of_second.iter().map(|one| (one.time_us, one.loss)).collect();
        assert_eq!(of_second, [(4.0, 1.0), (3.0, 0.0)]);
    }
}
