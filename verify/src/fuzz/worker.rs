//! A worker: checks the cases of its turns one after the other and tells of each as it ends, so that
//! when the worker is lost its parent knows in which case.

use super::draw::draw;
use super::protocol::{KERNELS_HELD, Line, Reply, Request};
use crate::case::{Trial, kind, open_sharing};
use crate::check::{CaseReport, VerifyError, check_recipe};
use crate::fuzz_coverage::edges_of;
use crate::shrink::shrink;
use spanforge_device::{Basis, Device, Image, SharedCode};
use spanforge_kernels::{Decoder, KernelSpec};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most attempts at making a failing trial smaller, and the longest they may take together.
const SHRINK_ATTEMPTS: u32 = 600;
pub const SHRINK_TIME: Duration = Duration::from_secs(60);

/// Answers `requests` until there are no more.
///
/// # Errors
/// Replies that nobody reads.
pub fn serve(
    requests: impl IntoIterator<Item = Request>,
    replies: &mut dyn Write,
) -> io::Result<()> {
    let mut worker = Worker::default();
    for request in requests {
        let ended = worker.answer(request, &mut |reply| {
            let mut line = serde_json::to_vec(&reply)?;
            line.push(b'\n');
            replies.write_all(&line)?;
            replies.flush()
        });
        match ended {
            Ok(()) => {}
            Err(Stop::Replies(error)) => return Err(error),
            Err(Stop::Failed(reason)) => {
                let line = serde_json::to_string(&Reply::Failed { reason })?;
                writeln!(replies, "{line}")?;
                replies.flush()?;
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Worker {
    device: String,
    seed: u64,
    emulated: bool,
    kernels: BTreeMap<usize, (KernelSpec, Image)>,
    code: Arc<SharedCode>,
    /// Lines told of, and whether as reached.
    told: HashMap<(String, u32), bool>,
}

/// Why a request is not answered.
enum Stop {
    Replies(io::Error),
    Failed(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Replies(error)
    }
}

impl From<VerifyError> for Stop {
    fn from(error: VerifyError) -> Self {
        Self::Failed(error.to_string())
    }
}

type Tell<'a> = dyn FnMut(Reply) -> io::Result<()> + 'a;

impl Worker {
    fn answer(&mut self, request: Request, tell: &mut Tell<'_>) -> Result<(), Stop> {
        match request {
            Request::Setup { device, seed } => {
                let opened = spanforge_device::open(&device).map_err(VerifyError::from)?;
                self.emulated = opened.properties().basis == Basis::Predicted;
                (self.device, self.seed) = (device, seed);
                Ok(tell(Reply::Ready { emulated: self.emulated })?)
            }
            Request::Kernel { index, id, code } => {
                let spec = id.parse().map_err(|e| Stop::Failed(format!("kernel {id}: {e}")))?;
                if self.kernels.len() >= KERNELS_HELD {
                    return Err(Stop::Failed(format!("more than {KERNELS_HELD} kernels to hold")));
                }
                self.kernels.insert(index, (spec, code.into()));
                Ok(())
            }
            Request::Forget { index } => {
                self.kernels.remove(&index);
                Ok(())
            }
            Request::Turn { kernel, first, end } => self.take_turn(kernel, first..end, tell),
            Request::Shrink { kernel, kind, trial } => self.shrink(kernel, &kind, &trial, tell),
        }
    }

    fn kernel(&self, index: usize) -> Result<(KernelSpec, &Image), Stop> {
        let held = self.kernels.get(&index);
        let (spec, image) = held.ok_or_else(|| Stop::Failed(format!("no kernel {index} here")))?;
        Ok((*spec, image))
    }

    fn open(&self, trial: &Trial) -> Result<Box<dyn Device>, VerifyError> {
        Ok(open_sharing(&self.device, trial, &self.code)?)
    }

    /// The cases of one turn: one kernel, loaded once on a device of the turn's own.
    fn take_turn(
        &mut self,
        index: usize,
        mut cases: Range<u64>,
        tell: &mut Tell<'_>,
    ) -> Result<(), Stop> {
        let mut lines = Vec::new();
        // Until a panic, after which the rest of the turn begins again on a new device.
        while !cases.is_empty() {
            let (spec, image) = self.kernel(index)?;
            let trial = draw(self.seed, self.emulated, &spec, cases.start);
            let device = self.open(&trial)?;
            let decoder = Decoder::load(device.as_ref(), image, trial.spec(&spec))
                .map_err(VerifyError::from)?;
            for case in cases.by_ref() {
                let trial = draw(self.seed, self.emulated, &spec, case);
                let edges = edges_of(&spec, &trial);
                let ended =
                    catch_unwind(AssertUnwindSafe(|| check_recipe(&decoder, &trial.problem)));
                let (report, panic) = match ended {
                    Ok(report) => (Some(report?).filter(|report| report.fault.is_some()), None),
                    Err(panic) => (None, Some(said(panic.as_ref()))),
                };
                let panicked = panic.is_some();
                tell(Reply::Case { case, edges, report: report.map(Box::new), panic })?;
                if panicked {
                    break;
                }
            }
            let counts = device.line_counts(decoder.module()).map_err(VerifyError::from)?;
            for count in counts {
                let (file, line, reached) = (count.line.file, count.line.line, count.warps > 0);
                let told = self.told.get(&(file.clone(), line)).copied();
                if told.is_none_or(|before| reached && !before) {
                    self.told.insert((file.clone(), line), reached);
                    lines.push(Line { file, line, reached });
                }
            }
        }
        Ok(tell(Reply::Turn { lines })?)
    }

    /// Makes a failing trial smaller while it fails with the same kind of fault.
    fn shrink(
        &mut self,
        index: usize,
        wanted: &str,
        trial: &Trial,
        tell: &mut Tell<'_>,
    ) -> Result<(), Stop> {
        let (spec, image) = self.kernel(index)?;
        let (start, mut attempts) = (Instant::now(), 0);
        let mut told = Ok(());
        shrink(trial, |smaller| {
            let over = attempts >= SHRINK_ATTEMPTS || start.elapsed() >= SHRINK_TIME;
            if over || told.is_err() {
                return None;
            }
            attempts += 1;
            let ended = catch_unwind(AssertUnwindSafe(|| -> Result<CaseReport, VerifyError> {
                let device = self.open(smaller)?;
                let decoder = Decoder::load(device.as_ref(), image, smaller.spec(&spec))?;
                check_recipe(&decoder, &smaller.problem)
            }));
            // What cannot be run, or panics, is another matter than the fault looked for.
            let Ok(Ok(report)) = ended else { return Some(false) };
            let same = kind(&report).is_some_and(|kind| kind == wanted);
            if same {
                let (trial, report) = (Box::new(smaller.clone()), Box::new(report));
                told = tell(Reply::Smaller { trial, report });
            }
            Some(same)
        });
        told?;
        Ok(tell(Reply::Shrunk { attempts })?)
    }
}

/// The message of a panic.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
