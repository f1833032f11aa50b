//! The report of a run: one HTML file with everything in it, read without a network or a script.
//!
//! [`html`] gathers what the journal holds; `templates/report.html` is the page; `figures` draws.

mod bench;
mod figures;
mod plot;

pub use bench::bench_html;

use crate::buckets::by_bucket;
use crate::choice::{choose, judged, ranked};
use crate::environment::Environment;
use crate::journal::Kept;
use crate::record::{BucketWinner, Candidate, Run, Status, Winner};
use crate::search::importance::importance;
use figures::{Drawn, SLOWEST};
use serde::Serialize;
use spanforge_device::{Basis, Conditions, Prediction, Throttle};
use spanforge_kernels::Limits;
use std::collections::{BTreeMap, BTreeSet};
use tera::{Context, Tera};

const TEMPLATE: &str = include_str!("../../../templates/report.html");
const STYLE: &str = include_str!("../../../templates/report.css");

/// Candidates whose times are shown with their intervals.
const FINALISTS: usize = 12;

/// The page.
#[derive(Serialize)]
struct Page<'a> {
    run: &'a Run,
    title: String,
    is_predicted: bool,
    is_finished: bool,
    /// Big numbers with what they are.
    headline: Vec<(String, String)>,
    /// Sentences on how the winner was chosen.
    choice: Vec<String>,
    plots: Option<Plots>,
    slowest: u32,
    parameters: Vec<Parameter>,
    terms: Vec<Term>,
    finalists: Vec<Row>,
    conditions: Vec<ConditionsRow>,
    buckets: Vec<BucketRow>,
    /// Kernels that serve all buckets.
    shipped: Vec<String>,
    batches: usize,
    failures: Vec<Failure>,
    all: Vec<Row>,
    environment: Vec<(&'static str, String)>,
}

#[derive(Serialize)]
struct Plots {
    by_evaluations: String,
    by_seconds: String,
    /// Of one batch: several have no one intensity.
    roofline: Option<String>,
    intervals: String,
}

#[derive(Serialize)]
struct Parameter {
    name: &'static str,
    best: String,
    /// In per cent, where it can be said.
    importance: Option<u32>,
    plot: String,
}

/// A term of the cost model, of the winner and of the default configuration.
#[derive(Serialize)]
struct Term {
    name: String,
    winner_us: String,
    default_us: String,
    /// Per cent of the largest.
    winner_width: u32,
    default_width: u32,
}

/// A candidate as a line of a table.
#[derive(Serialize)]
struct Row {
    place: usize,
    index: usize,
    id: String,
    /// `winner`, `default`, `tied` or nothing.
    mark: &'static str,
    status: String,
    us: String,
    interval: String,
    over_floor: String,
    registers: String,
    spills: String,
    shared: String,
    occupancy: String,
    bytes_ratio: String,
    limit: String,
    samples: usize,
}

/// What the GPU was like while a finalist was timed, as a line of a table.
#[derive(Serialize)]
struct ConditionsRow {
    place: usize,
    device: String,
    samples: usize,
    sm_mhz: String,
    memory_mhz: String,
    temperature: String,
    held_back: String,
    repeated: u64,
    millijoules: String,
}

/// A bucket as a line of a table.
#[derive(Serialize)]
struct BucketRow {
    bucket: String,
    id: String,
    us: String,
    over_floor: String,
    over_default: String,
    /// Of the shipped kernel that serves it.
    loss: String,
}

#[derive(Serialize)]
struct Failure {
    status: String,
    count: usize,
    first: String,
    detail: String,
}

/// The report of a run as its journal has it, finished or not.
///
/// # Errors
/// None for a journal that this version can resume: the page is the same for all.
pub fn html(kept: &Kept) -> Result<String, tera::Error> {
    let page = Page::new(kept);
    let mut tera = Tera::new();
    tera.add_raw_templates([("report.css", STYLE), ("report.html", TEMPLATE)])?;
    tera.render("report.html", &Context::from_serialize(&page)?)
}

impl<'a> Page<'a> {
    fn new(kept: &'a Kept) -> Self {
        let run = &kept.run;
        let evaluated: Vec<Candidate> = kept.candidates.values().cloned().collect();
        let mut winner = choose(&run.run, run.floor_us, &evaluated, &kept.remeasured);
        if let Some(winner) = &mut winner {
            by_bucket(winner, &run.batches, &evaluated, &kept.remeasured);
        }
        let all = judged(&evaluated, &kept.remeasured);
        let wins = |c: &Candidate| winner.as_ref().is_some_and(|w| w.id == c.id);
        let mut ranked = ranked(&all);
        // The winner first, whatever it is tied with.
        ranked.sort_by_key(|(c, _)| !wins(c));
        let finalists: Vec<_> = ranked.iter().take(FINALISTS).copied().collect();
        let row = |(place, candidate): (usize, &Candidate)| {
            Row::new(run, winner.as_ref(), place + 1, candidate)
        };
        let attention = &kept.study.workload.attention;
        let mut timed = ranked.clone();
        timed.sort_by_key(|(candidate, _)| candidate.index);
        let drawn = Drawn {
            run,
            timed,
            all: &all,
            winner: winner.as_ref().map_or("", |w| &w.id),
            flops: attention.flops(kept.study.workload.selected_tokens()),
        };
        let plots = (!ranked.is_empty()).then(|| Plots {
            by_evaluations: drawn.by_evaluations(),
            by_seconds: drawn.by_seconds(),
            roofline: run.batches.is_empty().then(|| drawn.roofline()),
            intervals: drawn.intervals(&finalists),
        });
        let failed = all.iter().filter(|c| c.status != Status::Correct);
        let best = all.iter().find(|c| wins(c));
        Self {
            run,
            title: format!("{} on {}", run.workload, run.properties.name),
            is_predicted: run.properties.basis == Basis::Predicted,
            is_finished: kept.winner.is_some(),
            headline: headline(run, winner.as_ref(), &all),
            choice: winner.iter().flat_map(|winner| choice(run, winner)).collect(),
            plots,
            slowest: SLOWEST,
            parameters: parameters(kept, &drawn, best),
            terms: terms(best, all.iter().find(|c| c.index == 0)),
            finalists: finalists.iter().map(|f| f.0).enumerate().map(row).collect(),
            conditions: finalists
                .iter()
                .enumerate()
                .filter_map(|(at, (candidate, _))| ConditionsRow::new(at + 1, candidate))
                .collect(),
            buckets: winner.iter().flat_map(|w| &w.buckets).map(BucketRow::new).collect(),
            shipped: winner.as_ref().map_or_else(Vec::new, |winner| winner.shipped.clone()),
            batches: run.batches.len(),
            failures: failures(failed.clone()),
            all: ranked.iter().map(|r| r.0).chain(failed).enumerate().map(row).collect(),
            environment: environment(kept),
        }
    }
}

fn headline(run: &Run, winner: Option<&Winner>, all: &[Candidate]) -> Vec<(String, String)> {
    let mut numbers = Vec::new();
    let mut add = |number: String, what: &str| numbers.push((number, what.to_owned()));
    if let Some(winner) = winner {
        add(format!("{:.1} us", winner.time_us), &format!("winner, {}", winner.basis));
        add(
            format!("{:.2} x", winner.over_floor),
            &format!("of the floor, {:.1} us", run.floor_us),
        );
        if let Some(default_us) = winner.default_us {
            add(format!("{:.2} x", default_us / winner.time_us), "as fast as the default");
        }
    }
    let failed = all.iter().filter(|c| c.status != Status::Correct).count();
    let of = format!("of {} configurations evaluated, {failed} failed", run.valid_configurations);
    add(all.len().to_string(), &of);
    let cases: usize = all.iter().map(|c| c.cases).sum();
    add(cases.to_string(), "problems checked against the oracle");
    numbers
}

fn choice(run: &Run, winner: &Winner) -> Vec<String> {
    let how = match run.properties.basis {
        Basis::Predicted => "the cost model is trusted to tell 1 % apart",
        Basis::Measured => "the 95 % confidence intervals of their medians meet",
    };
    let mut said = vec![match winner.ties.as_slice() {
        [] => format!("No other configuration is tied with it ({how})."),
        ties => format!(
            "{} tied with it ({how}). Of those the default is chosen, else what spills least, else \
             the fastest.",
            match ties.len() {
                1 => "One other is".to_owned(),
                many => format!("{many} others are"),
            }
        ),
    }];
    if let (Some(id), Some(us)) = (&winner.runner_up, winner.runner_up_us) {
        let more = 100.0 * (us / winner.time_us - 1.0);
        said.push(format!("The fastest other is {id} with {us:.1} us, {more:+.1} %."));
    }
    said
}

fn parameters(kept: &Kept, drawn: &Drawn<'_>, best: Option<&Candidate>) -> Vec<Parameter> {
    let run = &kept.run;
    let Ok(shape) = kept.study.workload.attention.kernel_shape() else { return Vec::new() };
    let space = kept.study.space(shape, Limits::of(&run.properties));
    let point = |c: &Candidate| space.point_of(&c.spec.configuration);
    let observed: Vec<_> =
        drawn.timed.iter().filter_map(|(c, us)| Some((point(c)?, *us))).collect();
    let shares = importance(&space, &observed, run.seed);
    let best = best.and_then(point);
    let mut shown: Vec<(f64, Parameter)> = (0..space.parameters().len())
        .filter_map(|at| {
            let share = shares.as_ref().map(|shares| shares[at]);
            let parameter = &space.parameters()[at];
            Some((
                share.unwrap_or(0.0),
                Parameter {
                    name: parameter.name,
                    best: best.as_ref().map_or_else(String::new, |b| parameter.text(b[at])),
                    importance: share.map(|share| (100.0 * share).round() as u32),
                    plot: drawn.by_parameter(&space, at)?,
                },
            ))
        })
        .collect();
    shown.sort_by(|a, b| b.0.total_cmp(&a.0));
    shown.into_iter().map(|(_, parameter)| parameter).collect()
}

/// The launch that takes longest, where times are predicted.
fn longest(candidate: &Candidate) -> Option<&Prediction> {
    let time = |p: &&Prediction| p.estimate.time_us;
    candidate.predictions.iter().max_by(|a, b| time(a).total_cmp(&time(b)))
}

/// The terms that take at least a hundredth of the largest, each of the launch that takes longest.
fn terms(winner: Option<&Candidate>, default: Option<&Candidate>) -> Vec<Term> {
    let of = |candidate: Option<&Candidate>| -> BTreeMap<String, f64> {
        let terms = candidate.and_then(longest).into_iter().flat_map(|p| &p.estimate.terms);
        terms.map(|term| (term.name.clone(), term.us)).collect()
    };
    let (winner, default) = (of(winner), of(default));
    let largest = winner.values().chain(default.values()).copied().fold(0.0, f64::max);
    let mut names: Vec<(&String, f64)> = winner.iter().map(|(name, us)| (name, *us)).collect();
    names.sort_by(|a, b| b.1.total_cmp(&a.1));
    let width = |us: f64| (100.0 * us / largest).round() as u32;
    let terms = names.into_iter().map(|(name, us)| {
        let default_us = default.get(name).copied();
        Term {
            name: name.clone(),
            winner_us: format!("{us:.1}"),
            default_us: default_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}")),
            winner_width: width(us),
            default_width: width(default_us.unwrap_or(0.0)),
        }
    });
    terms.filter(|term| term.winner_width.max(term.default_width) >= 1).collect()
}

impl Row {
    fn new(run: &Run, winner: Option<&Winner>, place: usize, candidate: &Candidate) -> Self {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let us = candidate.time_us.filter(|_| candidate.status == Status::Correct);
        let longest = longest(candidate);
        let is_tied = winner.is_some_and(|w| w.ties.contains(&candidate.id));
        let registers = candidate.resources.values().map(|r| r.registers).max();
        Self {
            place,
            index: candidate.index,
            id: candidate.id.clone(),
            mark: match candidate.index {
                _ if winner.is_some_and(|w| w.id == candidate.id) => "winner",
                0 => "default",
                _ if is_tied => "tied",
                _ => "",
            },
            status: candidate.status.to_string(),
            us: or_dash(us.map(|us| format!("{us:.1}"))),
            interval: or_dash(
                us.and(candidate.interval_us()).map(|[low, high]| format!("{low:.1} to {high:.1}")),
            ),
            over_floor: or_dash(us.map(|us| format!("{:.2}", us / run.floor_us))),
            registers: or_dash(registers.map(|r| r.to_string())),
            spills: or_dash(registers.map(|_| candidate.spill_bytes().to_string())),
            shared: candidate.shared_bytes.to_string(),
            occupancy: or_dash(
                longest.map(|p| format!("{:.0} %", 100.0 * p.estimate.occupancy.fraction)),
            ),
            bytes_ratio: or_dash(candidate.bytes_ratio.map(|ratio| format!("{ratio:.2}"))),
            limit: or_dash(longest.and_then(|p| Some(p.estimate.terms.first()?.name.clone()))),
            samples: candidate.samples_us.len(),
        }
    }
}

impl ConditionsRow {
    /// None of a candidate of which nobody could tell.
    fn new(place: usize, candidate: &Candidate) -> Option<Self> {
        let by_batch = candidate.by_batch.iter().filter_map(|timed| timed.conditions.clone());
        // The energy of one batch says nothing of another.
        let of_all = |conditions| Conditions { joules_per_sample: None, ..conditions };
        let together = by_batch.map(of_all).reduce(|all, more| all.merge(more, 0.5));
        let conditions = candidate.conditions.clone().or(together)?;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let range = |[low, high]: [u32; 2]| match low == high {
            true => low.to_string(),
            false => format!("{low} to {high}"),
        };
        let reasons = |reasons: BTreeSet<Throttle>| match reasons.is_empty() {
            true => "nothing".to_owned(),
            false => reasons.iter().map(Throttle::to_string).collect::<Vec<_>>().join(", "),
        };
        Some(Self {
            place,
            device: or_dash(candidate.device.clone()),
            samples: candidate.samples_us.len(),
            sm_mhz: or_dash(conditions.sm_mhz.map(range)),
            memory_mhz: or_dash(conditions.memory_mhz.map(range)),
            temperature: or_dash(conditions.temperature_c.map(|c| c.to_string())),
            held_back: or_dash(conditions.throttled.map(reasons)),
            repeated: conditions.repeated_samples,
            millijoules: or_dash(conditions.joules_per_sample.map(|j| format!("{:.2}", 1e3 * j))),
        })
    }
}

impl BucketRow {
    fn new(best: &BucketWinner) -> Self {
        let us = best.winner.time_us;
        let gain = best.winner.default_us.map(|default_us| format!("{:.2}", default_us / us));
        Self {
            bucket: best.bucket.to_string(),
            id: best.winner.id.clone(),
            us: format!("{us:.1}"),
            over_floor: format!("{:.2}", us / best.floor_us),
            over_default: gain.unwrap_or_else(|| "-".to_owned()),
            loss: format!("{:.1} %", 100.0 * best.loss),
        }
    }
}

fn failures<'a>(failed: impl Iterator<Item = &'a Candidate>) -> Vec<Failure> {
    let mut by_status: BTreeMap<String, Vec<&Candidate>> = BTreeMap::new();
    for candidate in failed {
        by_status.entry(candidate.status.to_string()).or_default().push(candidate);
    }
    let failures = by_status.into_iter().map(|(status, failed)| Failure {
        status,
        count: failed.len(),
        first: failed[0].id.clone(),
        detail: failed[0].detail.clone().unwrap_or_default(),
    });
    failures.collect()
}

fn environment(kept: &Kept) -> Vec<(&'static str, String)> {
    let (run, study) = (&kept.run, &kept.study);
    let properties = &run.properties;
    let mut lines = vec![
        ("run", run.run.clone()),
        ("workload", format!("{}: {}", run.workload, run.problem)),
        (
            "device",
            format!(
                "{} ({}), {} multiprocessors, {}, {:.2} TB/s, {:.1} Tflop/s in f32",
                properties.name,
                run.device,
                properties.multiprocessors,
                properties.architecture,
                properties.dram_bytes_per_second / 1e12,
                properties.float32_per_second / 1e12
            ),
        ),
        ("floor", format!("{:.1} us: {} bytes", run.floor_us, run.floor_bytes)),
        (
            "search",
            format!(
                "{}, seed {}, {} configurations at most, each checked on {} problems",
                run.strategy, run.seed, run.budget, study.cases
            ),
        ),
        ("kernel source", format!("SHA-256 {}", run.kernel_source)),
    ];
    lines.extend(tools(&run.environment));
    lines
}

/// The machine and the tools, in lines.
fn tools(environment: &Environment) -> [(&'static str, String); 4] {
    [
        ("spanforge", environment.spanforge.clone()),
        ("commit", environment.commit.clone().unwrap_or_else(|| "-".to_owned())),
        ("NVRTC", environment.nvrtc.clone()),
        (
            "host",
            format!(
                "{}, {} ({} cores)",
                environment.platform,
                environment.cpu.as_deref().unwrap_or("unknown processor"),
                environment.cpus
            ),
        ),
    ]
}

impl Candidate {
    /// Bytes that its launches move to and from memory, where they were counted.
    pub(crate) fn bytes_moved(&self) -> Option<u64> {
        let moved = self.predictions.iter().map(|p| p.counters.bytes_moved());
        (!self.predictions.is_empty()).then(|| moved.sum())
    }
}
