//! The hunt for a planted bug: compile, check problem after problem under changing schedules, and
//! make sure that the kernel without the bug passes where the bug was found.

use super::{Kind, Mutant, PlantError, Planted, plant};
use crate::case::target_of;
use crate::check::{CaseReport, Fault, VerifyError, check_seeds};
use serde::{Deserialize, Serialize};
use spanforge_device::{
    CompileError, Compiler, Device, DeviceError, EmulatedOptions, Image, Source,
};
use spanforge_emulator::SourceLine;
use spanforge_kernels::configuration::IdError;
use spanforge_kernels::render::{RenderError, render};
use spanforge_kernels::{Decoder, KernelSpec};
use std::time::{Duration, Instant};

/// Bugs are planted for the emulated device only: on a GPU they could take the context with them.
const DEVICE: &str = "emulated:h200";

/// Schedules of warps that cases alternate between: in order, and three shuffled ones.
const SCHEDULES: [u64; 4] = [0, 1, 2, 3];

/// Warp instructions of one block before it counts as hanging. The generated problems stay below a
/// hundredth of it, and it is reached in about a second.
const INSTRUCTION_BUDGET: u64 = 1 << 24;

/// How long and on what a mutant is hunted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HuntOptions {
    /// Seed of the first problem.
    pub seed: u64,
    /// Most problems to check.
    pub cases: u64,
    /// Longest time, compiling included.
    pub time: Duration,
}

/// What became of one mutant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MutantReport {
    /// Name of the mutant.
    pub mutant: String,
    /// Sort of mistake.
    pub kind: Kind,
    /// File of the device code that was changed.
    pub file: String,
    /// Its changed lines.
    pub lines: Vec<u32>,
    /// What came of it.
    pub outcome: Hunt,
    /// Problems checked.
    pub cases: u64,
    /// Seconds from the source to the end of the hunt, compiling included.
    pub seconds: f64,
    /// What a check that catches it would have to have, for a mutant that is known to be missed.
    pub needs: Option<String>,
}

impl MutantReport {
    /// Whether it must count as an error of the workbench: a bug missed that should be caught, an
    /// alarm that the correct kernel raises too, or a mutant that cannot be run.
    pub fn failed(&self) -> bool {
        match &self.outcome {
            Hunt::Caught(catch) => catch.false_alarm || catch.late,
            Hunt::Missed => self.needs.is_none(),
            Hunt::Stillborn(_) => true,
        }
    }
}

/// How a hunt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "detail")]
pub enum Hunt {
    /// A check has found it.
    Caught(Catch),
    /// No check has, in all cases or all the time there was.
    Missed,
    /// It does not compile or load, which is a mistake of the table; with the reason.
    Stillborn(String),
}

/// How a mutant was caught.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Catch {
    /// The check: its name where the emulator has found something, else `oracle`, `repeatability`,
    /// `extra-bytes` or `overrun`.
    pub check: String,
    /// Kernel, problem and schedule that caught it.
    pub kernel: String,
    /// Seed of the problem.
    pub seed: u64,
    /// Seed of the schedule.
    pub schedule: u64,
    /// What was reported.
    pub report: String,
    /// The line that was named, if any was.
    pub line: Option<NamedLine>,
    /// Whether it took longer than the limit.
    pub late: bool,
    /// Whether the kernel without the bug fails on the same problem and schedule too.
    pub false_alarm: bool,
}

/// A line that a diagnosis names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedLine {
    /// File of the device code.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Whether it leads to the bug: it, or the line of a call by which it was inlined, was changed or
    /// reads what the changed line should have ordered or written.
    pub right: bool,
    /// The first changed line of the finding's trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trail: Option<InTrail>,
}

/// A changed line in the trail of a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTrail {
    /// Which line of the trail it is, from 1.
    pub rank: usize,
    /// File of the device code.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

/// A hunt that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum HuntError {
    /// The mutant does not fit the device code.
    #[error(transparent)]
    Plant(#[from] PlantError),
    /// A kernel of the table has no valid id.
    #[error(transparent)]
    Kernel(#[from] IdError),
    /// The correct kernel cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The correct kernel cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The emulated device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The check.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// The schedules' devices.
fn devices() -> Result<Vec<Box<dyn Device>>, DeviceError> {
    SCHEDULES
        .iter()
        .map(|&seed| {
            let options = EmulatedOptions {
                seed,
                instruction_budget: INSTRUCTION_BUDGET,
                ..Default::default()
            };
            spanforge_device::open_with(DEVICE, options)
        })
        .collect()
}

/// Checks the unchanged kernel `id` on `cases` problems under every schedule in turn. `Some` is a
/// false alarm.
pub fn baseline(
    compiler: &Compiler,
    id: &str,
    seed: u64,
    cases: u64,
) -> Result<Option<CaseReport>, HuntError> {
    let devices = devices()?;
    let spec: KernelSpec = id.parse()?;
    let rendered = render(&spec)?;
    let source = Source::new(rendered.name, rendered.text);
    let image = compiler.compile(&source, &target_of(devices[0].as_ref()))?;
    let mut decoders = Vec::new();
    for device in &devices {
        decoders.push(Decoder::load(device.as_ref(), &image, spec).map_err(VerifyError::from)?);
    }
    for (number, decoder) in (0..cases).zip(decoders.iter().cycle()) {
        let reports = check_seeds(decoder, [seed.wrapping_add(number)])?;
        if let Some(faulty) = reports.into_iter().find(|report| report.fault.is_some()) {
            return Ok(Some(faulty));
        }
    }
    Ok(None)
}

/// Hunts one mutant. Cases alternate between its kernels and the schedules.
///
/// # Errors
/// The mutant does not fit the device code, or the unchanged kernel cannot be built and checked.
pub fn hunt(
    compiler: &Compiler,
    mutant: &Mutant,
    options: &HuntOptions,
) -> Result<MutantReport, HuntError> {
    let started = Instant::now();
    let mut kernels = Vec::new();
    for id in mutant.kernels {
        let spec: KernelSpec = id.parse()?;
        kernels.push((*id, spec, plant(mutant, &spec)?));
    }
    let (file, lines) = kernels
        .first()
        .map(|(_, _, planted)| (planted.file.clone(), planted.lines.iter().copied().collect()))
        .unwrap_or_default();
    let mut report = MutantReport {
        mutant: mutant.name.to_owned(),
        kind: mutant.kind,
        file,
        lines,
        outcome: Hunt::Missed,
        cases: 0,
        seconds: 0.0,
        needs: mutant.needs.map(str::to_owned),
    };
    let devices = devices()?;
    report.outcome =
        match search(compiler, mutant, &kernels, &devices, options, started, &mut report.cases) {
            Ok(outcome) => outcome,
            Err(error) => Hunt::Stillborn(error.to_string()),
        };
    report.seconds = started.elapsed().as_secs_f64();
    if let Hunt::Caught(catch) = &mut report.outcome {
        let index = SCHEDULES.iter().position(|s| *s == catch.schedule).unwrap_or(0);
        let spec: KernelSpec = catch.kernel.parse()?;
        let rendered = render(&spec)?;
        let source = Source::new(rendered.name, rendered.text);
        let image = compiler.compile(&source, &target_of(devices[index].as_ref()))?;
        let decoder =
            Decoder::load(devices[index].as_ref(), &image, spec).map_err(VerifyError::from)?;
        let control = check_seeds(&decoder, [catch.seed])?;
        catch.false_alarm = control.iter().any(|report| report.fault.is_some());
    }
    Ok(report)
}

fn search(
    compiler: &Compiler,
    mutant: &Mutant,
    kernels: &[(&'static str, KernelSpec, Planted)],
    devices: &[Box<dyn Device>],
    options: &HuntOptions,
    started: Instant,
    cases: &mut u64,
) -> Result<Hunt, HuntError> {
    let mut images: Vec<Image> = Vec::new();
    for (_, _, planted) in kernels {
        images.push(compiler.compile(&planted.source, &target_of(devices[0].as_ref()))?);
    }
    // By kernel, then by schedule.
    let mut decoders = Vec::new();
    for ((_, spec, _), image) in kernels.iter().zip(&images) {
        let mut of_kernel = Vec::new();
        for device in devices {
            of_kernel
                .push(Decoder::load(device.as_ref(), image, *spec).map_err(VerifyError::from)?);
        }
        decoders.push(of_kernel);
    }
    while *cases < options.cases && started.elapsed() < options.time {
        let number = *cases;
        let (round, kernel) = (number / kernels.len() as u64, number % kernels.len() as u64);
        let (kernel, schedule) = (kernel as usize, (round % SCHEDULES.len() as u64) as usize);
        let seed = options.seed.wrapping_add(number);
        *cases += 1;
        let reports = check_seeds(&decoders[kernel][schedule], [seed])?;
        let Some((case, fault)) =
            reports.iter().find_map(|case| case.fault.as_ref().map(|fault| (case, fault)))
        else {
            continue;
        };
        let finding = case.findings.first();
        let check = match (fault, finding) {
            (Fault::Device(_), Some(finding)) => finding.check.to_string(),
            (Fault::Device(_), None) => "device".to_owned(),
            (Fault::WrongAnswer(_), _) => "oracle".to_owned(),
            (Fault::NotRepeatable(_), _) => "repeatability".to_owned(),
            (Fault::ExtraBytes(_), _) => "extra-bytes".to_owned(),
            (Fault::Overrun(_), _) => "overrun".to_owned(),
        };
        let (id, _, planted) = &kernels[kernel];
        let changed =
            |place: &SourceLine| place.file == planted.file && planted.lines.contains(&place.line);
        let leads_there = |place: &SourceLine| {
            let text = planted.original_line(&place.file, place.line).unwrap_or_default();
            changed(place) || mutant.shows_at.iter().any(|part| text.contains(part))
        };
        let line = finding.and_then(|finding| {
            let place = finding.source.as_ref()?;
            // A race has two lines, and it may be either side that is out of order.
            let other = finding.other.iter().flat_map(|o| o.source.iter().chain(&o.inlined_at));
            let mut named = std::iter::once(place).chain(&finding.inlined_at).chain(other);
            let right = named.any(leads_there);
            // Here the changed line itself counts, not those that read what it should have written.
            let trail = finding.trail.iter().position(|step| changed(&step.line)).map(|at| {
                let SourceLine { file, line } = finding.trail[at].line.clone();
                InTrail { rank: at + 1, file, line }
            });
            Some(NamedLine { file: place.file.clone(), line: place.line, right, trail })
        });
        return Ok(Hunt::Caught(Catch {
            check,
            kernel: (*id).to_owned(),
            seed,
            schedule: SCHEDULES[schedule],
            report: fault.to_string(),
            line,
            late: started.elapsed() > options.time,
            false_alarm: false,
        }));
    }
    Ok(Hunt::Missed)
}
