//! From a trial that fails to the smallest one found that fails the same way: fewer rows, requests,
//! spans and tokens, one page in plain order, ordinary values, warps in order.

use crate::case::Trial;
use crate::recipe::{Row, Values, default_scale};
use spanforge_spans::{KvLayout, SpanSet};

/// Makes `trial` smaller for as long as `fails` says that the result still fails the same way.
/// Greedy: every step that keeps the fault is taken. `fails` is called until it has no more to
/// propose, or until it says `None`, which ends the search.
pub fn shrink(trial: &Trial, mut fails: impl FnMut(&Trial) -> Option<bool>) -> Trial {
    let mut best = trial.clone();
    loop {
        let before = best.clone();
        for pass in PASSES {
            let mut at = 0;
            // A step taken changes what comes after it, not the steps before that were refused.
            while let Some(candidate) = pass(&best).into_iter().nth(at) {
                if candidate == best || candidate.problem.problem().is_err() {
                    at += 1;
                    continue;
                }
                match fails(&candidate) {
                    None => return best,
                    Some(true) => best = candidate,
                    Some(false) => at += 1,
                }
            }
        }
        if best == before {
            return best;
        }
    }
}

type Pass = fn(&Trial) -> Vec<Trial>;

/// The coarse steps first.
const PASSES: [Pass; 6] =
    [circumstances, fewer_rows, fewer_requests, fewer_spans, shorter, plainer];

fn with(trial: &Trial, change: impl FnOnce(&mut Trial)) -> Trial {
    let mut changed = trial.clone();
    change(&mut changed);
    changed
}

fn circumstances(trial: &Trial) -> Vec<Trial> {
    let mut steps = vec![with(trial, |t| t.schedule = 0), with(trial, |t| t.smallest_share = None)];
    if let Some(count) = trial.multiprocessors {
        steps.extend(
            [1, count / 2]
                .into_iter()
                .filter(|n| (1..count).contains(n))
                .map(|n| with(trial, |t| t.multiprocessors = Some(n))),
        );
    }
    steps
}

/// Ranges that cover `0..count`: all, halves, quarters and so on down to single ones.
fn chunks(count: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    std::iter::successors((count > 0).then_some(count), |size| {
        (*size > 1).then(|| size.div_ceil(2))
    })
    .flat_map(move |size| {
        (0..count).step_by(size).map(move |start| start..(start + size).min(count))
    })
}

fn fewer_rows(trial: &Trial) -> Vec<Trial> {
    chunks(trial.problem.rows.len())
        .map(|range| with(trial, |t| drop(t.problem.rows.drain(range))))
        .collect()
}

/// Without a request that no row names.
fn fewer_requests(trial: &Trial) -> Vec<Trial> {
    let rows = &trial.problem.rows;
    (0..trial.problem.kv_len.len())
        .filter(|request| rows.iter().all(|row| row.request != *request))
        .map(|request| {
            with(trial, |t| {
                t.problem.kv_len.remove(request);
                for row in t.problem.rows.iter_mut().filter(|row| row.request > request) {
                    row.request -= 1;
                }
            })
        })
        .collect()
}

/// With other spans of a row, for one KV head where each has its own.
fn of_set(
    trial: &Trial,
    row: usize,
    head: usize,
    change: impl FnOnce(&mut Vec<[u32; 2]>),
) -> Trial {
    with(trial, |t| {
        if let Some(spans) = t.problem.rows[row].sets_mut().nth(head) {
            change(spans);
        }
    })
}

fn fewer_spans(trial: &Trial) -> Vec<Trial> {
    let mut steps = Vec::new();
    for (index, row) in trial.problem.rows.iter().enumerate() {
        for (head, spans) in row.sets().enumerate() {
            let to = |spans: Vec<[u32; 2]>| of_set(trial, index, head, |old| *old = spans);
            let canonical = canonical(spans);
            if spans.len() > canonical.len() {
                steps.push(to(canonical.clone()));
            }
            if let (Some(first), Some(last), true) =
                (canonical.first(), canonical.last(), canonical.len() > 1)
            {
                steps.push(to(vec![[first[0], last[1]]]));
            }
            steps.extend(
                chunks(spans.len())
                    .map(|range| of_set(trial, index, head, |spans| drop(spans.drain(range)))),
            );
        }
    }
    steps
}

fn canonical(spans: &[[u32; 2]]) -> Vec<[u32; 2]> {
    let set = SpanSet::from_pairs(spans.iter().map(|[start, end]| (*start, *end)));
    set.map_or_else(|_| spans.to_vec(), Into::into)
}

/// Spans that begin at 0 or are shorter, and caches no longer than the spans need.
fn shorter(trial: &Trial) -> Vec<Trial> {
    let mut steps = Vec::new();
    for (index, row) in trial.problem.rows.iter().enumerate() {
        let spans = row.sets().enumerate();
        let spans = spans.flat_map(|(head, set)| set.iter().enumerate().map(move |s| (head, s)));
        for (head, (at, &[start, end])) in spans {
            let length = end.saturating_sub(start);
            let mut spans = vec![[0, length]];
            for part in [2, 4, 8, 16, 32] {
                spans.push([start, end - length / part]);
            }
            if length > 0 {
                spans.push([start, end - 1]);
            }
            spans.retain(|span| *span != [start, end]);
            spans.dedup();
            steps.extend(
                spans.into_iter().map(|span| of_set(trial, index, head, |set| set[at] = span)),
            );
        }
    }
    for (request, &kv_len) in trial.problem.kv_len.iter().enumerate() {
        let rows = trial.problem.rows.iter().filter(|row| row.request == request);
        let needed = rows.flat_map(Row::sets).flatten().map(|span| span[1]).max().unwrap_or(0);
        if needed < kv_len {
            steps.push(with(trial, |t| t.problem.kv_len[request] = needed));
        }
    }
    steps
}

fn plainer(trial: &Trial) -> Vec<Trial> {
    let a = trial.problem.attention;
    let longest = trial.problem.kv_len.iter().copied().max().unwrap_or(1).max(1);
    let mut steps = vec![
        with(trial, |t| {
            t.problem.attention.kv_heads = 1;
            t.problem.attention.query_heads = a.query_heads / a.kv_heads.max(1);
            t.problem.rows.iter_mut().for_each(|row| row.other_heads.clear());
        }),
        with(trial, |t| t.problem.rows.iter_mut().for_each(|row| row.other_heads.clear())),
        with(trial, |t| t.problem.soft_cap = 0.0),
        with(trial, |t| t.problem.sinks = 0),
        with(trial, |t| t.problem.kv_scales = 0),
        with(trial, |t| (t.problem.extra_entries, t.problem.extra_pages) = (0, 0)),
        with(trial, |t| t.problem.first_page = 0),
        with(trial, |t| t.problem.appended = 0),
        with(trial, |t| t.problem.parts = 0),
        with(trial, |t| t.problem.shared_pages = 0),
        with(trial, |t| t.problem.page_order = 0),
        with(trial, |t| t.problem.unneeded_entry = -1),
        with(trial, |t| t.problem.attention.layout = KvLayout::Nhd),
        with(trial, |t| t.problem.values = Values::Ordinary),
        with(trial, |t| t.problem.scale = default_scale(a.head_dim)),
        with(trial, |t| t.problem.tensors = 0),
    ];
    // One page for all, and where that will not do pages of one token.
    if a.page_size != longest {
        steps.push(with(trial, |t| t.problem.attention.page_size = longest));
        steps.push(with(trial, |t| t.problem.attention.page_size = 1));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Edges, generate_recipe};
    use spanforge_kernels::KernelSpec;

    fn trial(seed: u64) -> Trial {
        let spec: KernelSpec =
            "f16-d64-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second".parse().unwrap();
        let problem = generate_recipe(spec.shape, &Edges::of(&spec), seed);
        Trial { schedule: seed, multiprocessors: Some(3), smallest_share: Some(7), problem }
    }

    /// A fault that needs one row of more than 100 tokens shrinks to exactly that and nothing else.
    #[test]
    fn what_the_fault_does_not_need_is_taken_away() {
        let long = |t: &Trial| {
            (0..t.problem.rows.len()).any(|r| t.problem.spans().unwrap().row(r).len_tokens() > 100)
        };
        let mut shrunk = 0;
        for seed in (0..60).filter(|seed| long(&trial(*seed))) {
            let small = shrink(&trial(seed), |t| Some(long(t)));
            let p = &small.problem;
            assert_eq!((small.schedule, small.multiprocessors), (0, Some(1)));
            assert_eq!((small.smallest_share, p.first_page, p.shared_pages), (None, 0, 0));
            assert_eq!(p.rows, [Row::new(0, vec![[0, 101]])], "seed {seed}");
            assert_eq!((p.kv_len.as_slice(), p.attention.kv_heads), (&[101][..], 1));
            assert_eq!(p.attention.page_size, 101);
            assert_eq!((p.values, p.page_order, p.tensors), (Values::Ordinary, 0, 0));
            shrunk += 1;
        }
        assert!(shrunk > 10, "{shrunk}");
    }

    /// Every step that is proposed makes a problem, and the search ends where it is told to.
    #[test]
    fn shrinking_ends_when_told_to() {
        let mut left = 25;
        let small = shrink(&trial(7), |_| {
            left -= 1;
            (left > 0).then_some(false)
        });
        assert_eq!(small, trial(7));
        assert_eq!(left, 0);
    }
}
