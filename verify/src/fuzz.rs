//! Fuzzing: problems x configurations x schedules over all cores, until a time, a count, a fault or
//! the user says stop. Nothing is kept of a case but counts, so a run of any length needs the same
//! memory.

use crate::case::{CASE_VERSION, Case, Found, Trial, kind, open_for, summary};
use crate::check::{CaseReport, VerifyError, check_problem};
use crate::fuzz_coverage::Coverage;
use crate::generate::{Edges, generate_recipe};
use crate::ledger::Ledger;
use crate::recipe::Recipe;
use crate::shrink::shrink;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_device::{Basis, Image};
use spanforge_kernels::{Decoder, KernelSpec};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Cases in a row of one kernel under one schedule: loading code costs about as much as running a
/// case.
const CASES_PER_TURN: u64 = 8;

/// Most attempts at making a failing trial smaller, and the longest they may take together.
const SHRINK_ATTEMPTS: u32 = 600;
const SHRINK_TIME: Duration = Duration::from_secs(60);

/// Panics of the tool itself whose messages are kept.
const PANICS_KEPT: usize = 10;

/// A kernel to fuzz.
pub struct Subject {
    /// What it was built for.
    pub spec: KernelSpec,
    /// Its code.
    pub image: Image,
    /// Its source where it is an edited one.
    pub source: Option<String>,
}

/// What to do, and when to stop.
#[derive(Clone, Debug)]
pub struct Options {
    /// Device: `emulated:<gpu>`, or `cuda:<n>`, which has one worker and its own schedule.
    pub device: String,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Most cases.
    pub cases: u64,
    /// Longest time for the cases; shrinking comes on top.
    pub time: Option<Duration>,
    /// Whether to go on after a fault; a later fault of the same kind in the same kernel is counted
    /// only.
    pub keep_going: bool,
    /// Workers; each holds one device.
    pub workers: usize,
    /// Faults to tolerate.
    pub ledger: Ledger,
}

/// A fault, shrunk, with the way to it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Number of the case.
    pub case: u64,
    /// Kernel.
    pub spec: KernelSpec,
    /// Kind of fault.
    pub kind: String,
    /// The smallest trial that fails the same way.
    pub trial: Trial,
    /// Its diagnosis.
    pub report: CaseReport,
    /// Attempts at making it smaller.
    pub attempts: u32,
}

/// A panic of the tool itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Panicked {
    /// Number of the case.
    pub case: u64,
    /// Kernel.
    pub kernel: String,
    /// What it said.
    pub message: String,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Cases checked.
    pub cases: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Cases of the kernel with fewest, and of that with most.
    pub cases_per_kernel: (u64, u64),
    /// Edges met.
    pub coverage: Coverage,
    /// Faults that are not in the ledger, one for each kernel and kind.
    pub failures: Vec<Failure>,
    /// Cases with those faults.
    pub faulty_cases: u64,
    /// Per entry of the ledger the cases it let pass.
    pub tolerated: Vec<u64>,
    /// Panics of the tool itself, the first few.
    pub panics: Vec<Panicked>,
    /// How many there were.
    pub panic_count: u64,
}

impl Failure {
    /// The case file.
    pub fn case_file(&self, subject: &Subject, device: &str, created_by: String) -> Case {
        let fault = self.report.fault.as_ref();
        Case {
            spanforge_case: CASE_VERSION,
            kernel: self.spec.to_string(),
            device: device.to_owned(),
            found: Found {
                kind: self.kind.clone(),
                summary: fault.map(summary).unwrap_or_default(),
            },
            created_by,
            trial: self.trial.clone(),
            source: subject.source.clone(),
        }
    }
}

/// The trial of case `number` for a kernel, and the same for the same seed and number.
fn draw(options: &Options, emulated: bool, spec: &KernelSpec, number: u64) -> Trial {
    // The schedule and the size of the device are those of the turn, the problem is the case's own.
    let mut turn = stream(options.seed, 2 * (number / CASES_PER_TURN));
    // A few multiprocessors cut short rows into shares as many do long ones; now and then all of
    // them, of which most have nothing to do.
    let count =
        *[Some(1), Some(2), Some(3), Some(5), Some(16), None].choose(&mut turn).expect("six");
    let schedule = if turn.random_ratio(1, 8) { 0 } else { turn.random() };
    let problem_seed = stream(options.seed, 2 * number + 1).random();
    Trial {
        schedule: if emulated { schedule } else { 0 },
        multiprocessors: if emulated { count } else { None },
        problem: generate_recipe(spec.shape, &Edges::of(spec), problem_seed),
    }
}

fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// What the workers share.
struct Shared<'a> {
    subjects: &'a [Subject],
    options: &'a Options,
    stop: &'a AtomicBool,
    /// Set when the workers are to end although the user has not said so.
    done: AtomicBool,
    next_turn: AtomicU64,
    deadline: Option<Instant>,
    emulated: bool,
    /// The first failing case of each kernel and kind.
    failing: Mutex<BTreeMap<(usize, String), Failing>>,
}

impl Shared<'_> {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self.done.load(Ordering::Relaxed)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// A case in which something was found.
struct Failing {
    case: u64,
    trial: Trial,
    report: CaseReport,
}

/// What one worker has counted.
#[derive(Default)]
struct Share {
    cases: u64,
    per_kernel: Vec<u64>,
    coverage: Coverage,
    faulty: u64,
    tolerated: Vec<u64>,
    panics: Vec<Panicked>,
    panic_count: u64,
}

/// Fuzzes `subjects` (at least one) and shrinks what fails. `stop` ends the run early with the
/// summary of what was done; `begun` is called at the start of each case.
///
/// # Errors
/// A case that could not be carried out, such as a device that is lost.
pub fn fuzz(
    subjects: &[Subject],
    options: &Options,
    stop: &AtomicBool,
    begun: &(dyn Fn() + Sync),
) -> Result<Summary, VerifyError> {
    let start = Instant::now();
    let emulated = spanforge_device::open(&options.device)?.properties().basis == Basis::Predicted;
    let shared = Shared {
        subjects,
        options,
        stop,
        done: AtomicBool::new(false),
        next_turn: AtomicU64::new(0),
        deadline: options.time.and_then(|time| start.checked_add(time)),
        emulated,
        failing: Mutex::default(),
    };
    let workers = if emulated { options.workers.max(1) } else { 1 };
    let shares: Vec<Result<Share, VerifyError>> = std::thread::scope(|scope| {
        let shared = &shared;
        let handles: Vec<_> =
            (0..workers).map(|_| scope.spawn(move || work(shared, begun))).collect();
        let joined = handles.into_iter().map(|handle| handle.join());
        joined.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut sum = Summary { seconds: start.elapsed().as_secs_f64(), ..Summary::default() };
    sum.tolerated = vec![0; options.ledger.0.len()];
    let mut per_kernel = vec![0; subjects.len()];
    for share in shares {
        let share = share?;
        sum.cases += share.cases;
        sum.faulty_cases += share.faulty;
        sum.coverage.merge(&share.coverage);
        sum.tolerated.iter_mut().zip(&share.tolerated).for_each(|(sum, n)| *sum += n);
        per_kernel.iter_mut().zip(&share.per_kernel).for_each(|(sum, n)| *sum += n);
        sum.panics.extend(share.panics);
        sum.panic_count += share.panic_count;
    }
    sum.panics.truncate(PANICS_KEPT);
    let fewest = per_kernel.iter().min().copied().unwrap_or(0);
    sum.cases_per_kernel = (fewest, per_kernel.iter().max().copied().unwrap_or(0));
    let failing = shared.failing.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    for ((subject, kind), failing) in failing {
        sum.failures.push(smallest(&subjects[subject], options, stop, kind, failing));
    }
    sum.failures.sort_by_key(|failure| failure.case);
    Ok(sum)
}

fn work(shared: &Shared<'_>, begun: &(dyn Fn() + Sync)) -> Result<Share, VerifyError> {
    let mut share = Share {
        per_kernel: vec![0; shared.subjects.len()],
        tolerated: vec![0; shared.options.ledger.0.len()],
        ..Share::default()
    };
    while !shared.is_over() {
        let turn = shared.next_turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.saturating_mul(CASES_PER_TURN);
        let last = first.saturating_add(CASES_PER_TURN).min(shared.options.cases);
        if first >= last {
            break;
        }
        if let Err(error) = take_turn(shared, &mut share, turn, first..last, begun) {
            shared.done.store(true, Ordering::Relaxed);
            return Err(error);
        }
    }
    Ok(share)
}

/// The cases of one turn: one kernel, loaded once on a device of the turn's own.
fn take_turn(
    shared: &Shared<'_>,
    share: &mut Share,
    turn: u64,
    mut cases: std::ops::Range<u64>,
    begun: &(dyn Fn() + Sync),
) -> Result<(), VerifyError> {
    let index = (turn % shared.subjects.len() as u64) as usize;
    let subject = &shared.subjects[index];
    // Until a panic, after which the rest of the turn begins again on a new device.
    while !cases.is_empty() {
        let first = draw(shared.options, shared.emulated, &subject.spec, cases.start);
        let device = open_for(&shared.options.device, &first)?;
        let decoder = Decoder::load(device.as_ref(), &subject.image, subject.spec)?;
        for case in cases.by_ref() {
            if shared.is_over() {
                return Ok(());
            }
            begun();
            let trial = draw(shared.options, shared.emulated, &subject.spec, case);
            share.cases += 1;
            share.per_kernel[index] += 1;
            share.coverage.add(&subject.spec, &trial);
            let ended = catch_unwind(AssertUnwindSafe(|| check(&decoder, &trial.problem)));
            match ended {
                Ok(report) => record(shared, share, index, case, trial, report?),
                Err(panic) => {
                    share.panic_count += 1;
                    if share.panics.len() < PANICS_KEPT {
                        let (kernel, message) = (subject.spec.to_string(), said(panic.as_ref()));
                        share.panics.push(Panicked { case, kernel, message });
                    }
                    break;
                }
            }
        }
    }
    Ok(())
}

fn check(decoder: &Decoder<'_>, recipe: &Recipe) -> Result<CaseReport, VerifyError> {
    let problem = recipe.problem().map_err(|error| VerifyError::Oracle(error.to_string()))?;
    check_problem(decoder, &problem)
}

fn record(
    shared: &Shared<'_>,
    share: &mut Share,
    index: usize,
    case: u64,
    trial: Trial,
    report: CaseReport,
) {
    let Some(kind) = kind(&report) else { return };
    let kernel = shared.subjects[index].spec.to_string();
    if let Some(entry) = shared.options.ledger.tolerates(&kernel, &kind) {
        share.tolerated[entry] += 1;
        return;
    }
    share.faulty += 1;
    let mut failing = shared.failing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let known = failing.get(&(index, kind.clone()));
    if known.is_none_or(|earlier| case < earlier.case) {
        failing.insert((index, kind), Failing { case, trial, report });
    }
    if !shared.options.keep_going {
        shared.done.store(true, Ordering::Relaxed);
    }
}

/// Makes a failing trial smaller while it fails with the same kind of fault.
fn smallest(
    subject: &Subject,
    options: &Options,
    stop: &AtomicBool,
    wanted: String,
    failing: Failing,
) -> Failure {
    let Failing { case, trial, mut report } = failing;
    let (start, mut attempts) = (Instant::now(), 0);
    let trial = shrink(&trial, |smaller| {
        let over = attempts >= SHRINK_ATTEMPTS || start.elapsed() >= SHRINK_TIME;
        if over || stop.load(Ordering::Relaxed) {
            return None;
        }
        attempts += 1;
        let ended = catch_unwind(AssertUnwindSafe(|| -> Result<CaseReport, VerifyError> {
            let device = open_for(&options.device, smaller)?;
            let decoder = Decoder::load(device.as_ref(), &subject.image, subject.spec)?;
            check(&decoder, &smaller.problem)
        }));
        // What cannot be run, or panics, is another matter than the fault looked for.
        let Ok(Ok(found)) = ended else { return Some(false) };
        let same = kind(&found).is_some_and(|kind| kind == wanted);
        if same {
            report = found;
        }
        Some(same)
    });
    Failure { case, spec: subject.spec, kind: wanted, trial, report, attempts }
}

/// The message of a panic.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
