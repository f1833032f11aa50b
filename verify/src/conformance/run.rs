//! Running a table on a device and comparing what comes out.

use super::inputs::cases;
use super::module::{THREADS, kernel_name, module};
use super::row::{Expected, Precision, Row};
use serde::Serialize;
use spanforge_device::{Architecture, Buffer, Device, DeviceError, Image, Launch, ModuleId};

/// Rows whose kernels share a module: few enough to compile quickly, and to find a refused one soon.
const TOGETHER: usize = 48;
/// Mismatches of a row that are kept in full.
const KEPT: usize = 4;
/// What stands where a result is written: a register narrower than its slot leaves the rest.
const POISON: u8 = 0xa5;

/// One result that is not what was expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mismatch {
    /// Operands of the lane, as hexadecimal bits.
    pub operands: Vec<String>,
    /// Which result.
    pub result: usize,
    /// What was expected.
    pub expected: String,
    /// What came out, as hexadecimal bits.
    pub got: String,
}

/// How the results of two devices differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Results compared.
    pub results: usize,
    /// Results with other bits.
    pub different: usize,
    /// For an approximate instruction the largest difference, in steps between neighbouring numbers
    /// of its format.
    pub largest_steps: Option<u64>,
}

/// How a row ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "status")]
pub enum Status {
    /// Every result was expected.
    Passed,
    /// Some were not.
    Mismatched {
        /// How many.
        count: usize,
        /// The first of them.
        first: Vec<Mismatch>,
    },
    /// The device's architecture lacks the form.
    Skipped {
        /// What it needs, such as `sm_90`.
        needs: String,
    },
    /// The device did not take or not run the code.
    Failed {
        /// What it said.
        reason: String,
    },
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowReport {
    /// The form.
    pub form: &'static str,
    /// The form and how it is written.
    pub name: String,
    /// How it ended.
    #[serde(flatten)]
    pub status: Status,
    /// Cases run: lanes, each with its operands.
    pub cases: usize,
    /// NaN results whose bits are not the canonical ones that GPUs give; the manual allows them.
    pub other_nans: usize,
    /// The section of the manual with the bound of an approximate instruction.
    pub section: Option<&'static str>,
    /// Against the device compared with, if there was one.
    pub against: Option<Difference>,
}

/// A table's run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// A report per row, in the order of the table.
    pub rows: Vec<RowReport>,
}

impl Summary {
    fn count(&self, which: impl Fn(&Status) -> bool) -> usize {
        self.rows.iter().filter(|row| which(&row.status)).count()
    }

    /// Rows of which every result was expected.
    pub fn passed(&self) -> usize {
        self.count(|status| *status == Status::Passed)
    }

    /// Rows that the architecture lacks.
    pub fn skipped(&self) -> usize {
        self.count(|status| matches!(status, Status::Skipped { .. }))
    }

    /// Rows with a result that was not expected, or that did not run.
    pub fn failed(&self) -> usize {
        self.rows.len() - self.passed() - self.skipped()
    }

    /// Cases run.
    pub fn cases(&self) -> usize {
        self.rows.iter().map(|row| row.cases).sum()
    }
}

/// Runs the rows on a device, and on a second one to compare with if given. `done` is told how many
/// rows were run.
///
/// # Errors
/// Only if the device cannot hold the operands: whatever else goes wrong is in the row's report.
pub fn run(
    device: &dyn Device,
    rows: &[Row],
    against: Option<&dyn Device>,
    done: &dyn Fn(usize),
) -> Result<Summary, DeviceError> {
    let owned = Architecture::parse(&device.properties().architecture)
        .map_or(u32::MAX, |architecture| architecture.number);
    let mut reports: Vec<Option<RowReport>> = rows.iter().map(|_| None).collect();
    let mut levels: Vec<(u32, u32)> = rows.iter().map(|row| (row.needs, row.version)).collect();
    levels.sort_unstable();
    levels.dedup();
    for (needs, version) in levels {
        let fits = |row: &Row| (row.needs, row.version) == (needs, version);
        let these: Vec<(usize, &Row)> = rows.iter().enumerate().filter(|(_, r)| fits(r)).collect();
        if needs > owned {
            for (index, row) in these {
                let status = Status::Skipped { needs: format!("sm_{needs}") };
                reports[index] = Some(report(row, status, 0));
            }
            continue;
        }
        for group in these.chunks(TOGETHER) {
            let loaded = load(device, group, needs);
            let other = against.map(|against| load(against, group, needs));
            for (at, &(index, row)) in group.iter().enumerate() {
                let other = against.zip(other.as_ref()).map(|(d, modules)| (d, &modules[at]));
                reports[index] = Some(one(device, &loaded[at], other, index, row)?);
            }
            unload(device, loaded);
            if let Some((against, other)) = against.zip(other) {
                unload(against, other);
            }
            done(group.len());
        }
    }
    Ok(Summary { rows: reports.into_iter().flatten().collect() })
}

fn report(row: &Row, status: Status, cases: usize) -> RowReport {
    RowReport {
        form: row.form,
        name: row.name(),
        status,
        cases,
        other_nans: 0,
        section: row.bound(),
        against: None,
    }
}

type Loaded = Result<ModuleId, String>;

/// A module per row: all in one where the device takes it, else each by itself, so that a refused
/// form is found.
fn load(device: &dyn Device, rows: &[(usize, &Row)], needs: u32) -> Vec<Loaded> {
    let image = Image {
        ptx: module(rows),
        cubin: None,
        architecture: format!("sm_{needs}"),
        resources: Default::default(),
    };
    match device.load(&image) {
        Ok(id) => vec![Ok(id); rows.len()],
        Err(error) if rows.len() <= 1 => vec![Err(error.to_string()); rows.len()],
        Err(_) => {
            let (left, right) = rows.split_at(rows.len() / 2);
            let mut all = load(device, left, needs);
            all.extend(load(device, right, needs));
            all
        }
    }
}

fn unload(device: &dyn Device, modules: Vec<Loaded>) {
    let mut ids: Vec<ModuleId> = modules.into_iter().flatten().collect();
    ids.dedup();
    for id in ids {
        // The next run loads its own; what is left goes with the device.
        let _ = device.unload(id);
    }
}

fn one(
    device: &dyn Device,
    module: &Loaded,
    against: Option<(&dyn Device, &Loaded)>,
    index: usize,
    row: &Row,
) -> Result<RowReport, DeviceError> {
    let cases = cases(row);
    let expected = row.expected(&cases);
    let got = match execute(device, module, index, row, &cases)? {
        Ok(got) => got,
        Err(reason) => return Ok(report(row, Status::Failed { reason }, 0)),
    };
    let (mut first, mut count, mut other_nans) = (Vec::new(), 0, 0);
    for (case, (wanted, results)) in cases.iter().zip(expected.iter().zip(&got)) {
        for (result, (wanted, &bits)) in wanted.iter().zip(results).enumerate() {
            if wanted.allows(bits) {
                other_nans += usize::from(wanted.is_other_nan(bits));
                continue;
            }
            count += 1;
            if first.len() < KEPT {
                first.push(Mismatch {
                    operands: case.iter().map(|bits| format!("{bits:#x}")).collect(),
                    result,
                    expected: wanted.describe(),
                    got: format!("{bits:#x}"),
                });
            }
        }
    }
    let status = if count == 0 { Status::Passed } else { Status::Mismatched { count, first } };
    let mut report = RowReport { other_nans, ..report(row, status, cases.len()) };
    if let Some((against, module)) = against
        && let Ok(theirs) = execute(against, module, index, row, &cases)?
    {
        report.against = Some(difference(row, &expected, &got, &theirs));
    }
    Ok(report)
}

fn difference(
    row: &Row,
    expected: &[Vec<Expected>],
    ours: &[Vec<u64>],
    theirs: &[Vec<u64>],
) -> Difference {
    let format = match row.precision {
        Precision::Approximate(_, format) => Some(format),
        Precision::Exact => None,
    };
    let mut out = Difference { largest_steps: format.map(|_| 0), ..Difference::default() };
    for ((wanted, a), b) in expected.iter().zip(ours).zip(theirs) {
        for ((wanted, &a), &b) in wanted.iter().zip(a).zip(b) {
            if *wanted == Expected::Open {
                continue;
            }
            out.results += 1;
            out.different += usize::from(a != b);
            if let (Some(format), Some(largest)) = (format, &mut out.largest_steps) {
                let halves = if matches!(wanted, Expected::Pair(_)) { 2 } else { 1 };
                for at in 0..halves {
                    let cut =
                        |bits: u64| if halves == 2 { bits >> (16 * at) & 0xffff } else { bits };
                    *largest = (*largest).max(format.steps(cut(a), cut(b)).unwrap_or(u64::MAX));
                }
            }
        }
    }
    out
}

/// The results of all cases; an inner error is the row's, an outer one the run's.
fn execute(
    device: &dyn Device,
    module: &Loaded,
    index: usize,
    row: &Row,
    cases: &[Vec<u64>],
) -> Result<Result<Vec<Vec<u64>>, String>, DeviceError> {
    let module = match module {
        Ok(id) => *id,
        Err(reason) => return Ok(Err(reason.clone())),
    };
    let lanes = cases.len().next_multiple_of(THREADS as usize);
    let words = (0..lanes).flat_map(|lane| &cases[lane % cases.len()]);
    let data: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
    let slots = row.results.len();
    let input = device.allocate("operands", data.len())?;
    let output = match device.allocate("results", 8 * slots * lanes) {
        Ok(buffer) => buffer,
        Err(error) => {
            device.free(input)?;
            return Err(error);
        }
    };
    let launched = launch(device, module, index, lanes, input, output, &data);
    let freed = device.free(input).and(device.free(output));
    let bytes = match launched {
        Ok(bytes) => bytes,
        Err(error) => return Ok(Err(error.to_string())),
    };
    freed?;
    let slot = |lane: usize, at: usize| {
        let start = 8 * (lane * slots + at);
        let bits = row.results[at].bits().max(8);
        (0..bits as usize / 8).map(|byte| u64::from(bytes[start + byte]) << (8 * byte)).sum()
    };
    Ok(Ok((0..cases.len()).map(|lane| (0..slots).map(|at| slot(lane, at)).collect()).collect()))
}

fn launch(
    device: &dyn Device,
    module: ModuleId,
    index: usize,
    lanes: usize,
    input: Buffer,
    output: Buffer,
    data: &[u8],
) -> Result<Vec<u8>, DeviceError> {
    device.upload(input, 0, data)?;
    let mut bytes = vec![POISON; output.bytes];
    device.upload(output, 0, &bytes)?;
    device.launch(&Launch {
        module,
        kernel: kernel_name(index),
        grid: [lanes as u32 / THREADS, 1, 1],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
        arguments: vec![input.at(0), output.at(0)],
    })?;
    device.download(output, 0, &mut bytes)?;
    Ok(bytes)
}
