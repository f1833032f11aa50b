//! One kernel on one problem: what the checks of the device say, whether the answer is the oracle's,
//! whether it is the same twice, and whether only the selected tokens were fetched.

use crate::generate::{Edges, generate_recipe};
use crate::recipe::Recipe;
use serde::{Deserialize, Serialize};
use spanforge_device::{Basis, DeviceError, LaunchReport};
use spanforge_emulator::Finding;
use spanforge_kernels::decoder::{DecodeOutput, DecoderError, Resident, UploadOptions};
use spanforge_kernels::{DecodeProblem, Decoder};
use spanforge_reference::{
    Comparison, Problem, RoundedOutput, Tolerance, attention_f64, compare, merge_outputs_f64,
};
use std::fmt;

/// Bytes before and after each buffer on a device that does not check bounds by itself.
const GUARD_BYTES: usize = 4096;

/// What is wrong with a kernel, in one sentence or a diagnosis of several lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "detail")]
pub enum Fault {
    /// A check of the emulated device reported, or the GPU did.
    Device(String),
    /// The answer is not the oracle's.
    WrongAnswer(String),
    /// A second run gave other bits.
    NotRepeatable(String),
    /// Bytes of K and V were fetched that no row selects, or fetched twice.
    ExtraBytes(String),
    /// Something was written beyond a buffer.
    Overrun(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(s) => write!(f, "{s}"),
            Self::WrongAnswer(s) => write!(f, "wrong answer: {s}"),
            Self::NotRepeatable(s) => write!(f, "not repeatable: {s}"),
            Self::ExtraBytes(s) => write!(f, "extra bytes: {s}"),
            Self::Overrun(s) => write!(f, "overrun: {s}"),
        }
    }
}

/// The check of one problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseReport {
    /// Seed of the problem; `None` for one that was given.
    pub seed: Option<u64>,
    /// The problem in words.
    pub problem: String,
    /// What is wrong; `None` where all is well.
    pub fault: Option<Fault>,
    /// What the checks of an emulated device reported, where `fault` is theirs.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Largest absolute error of the output.
    #[serde(deserialize_with = "nan_for_null")]
    pub max_abs_error: f64,
    /// K and V bytes fetched over those of the selected tokens, where the device counts.
    pub bytes_ratio: Option<f64>,
}

/// JSON has no NaN and no infinity, and writes null for both.
fn nan_for_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A check that could not be carried out, as opposed to one that found something.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The decoder or its device.
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The oracle refuses the problem.
    #[error("the oracle cannot compute the problem: {0}")]
    Oracle(String),
}

/// Checks a kernel on the problems of the given seeds and stops at the first fault.
pub fn check_seeds(
    decoder: &Decoder<'_>,
    seeds: impl IntoIterator<Item = u64>,
) -> Result<Vec<CaseReport>, VerifyError> {
    let edges = Edges::of(decoder.spec());
    let mut reports = Vec::new();
    for seed in seeds {
        let recipe = generate_recipe(decoder.spec().shape, &edges, seed);
        let mut report = check_recipe(decoder, &recipe)?;
        report.seed = Some(seed);
        let faulty = report.fault.is_some();
        reports.push(report);
        if faulty {
            break;
        }
    }
    Ok(reports)
}

/// Checks a kernel on the problem of a recipe, with its pages numbered and its tokens appended as the recipe
/// says.
pub fn check_recipe(decoder: &Decoder<'_>, recipe: &Recipe) -> Result<CaseReport, VerifyError> {
    let problem = recipe.problem().map_err(|error| VerifyError::Oracle(error.to_string()))?;
    let Recipe { first_page, appended, .. } = *recipe;
    let options = UploadOptions { first_page, appended, ..Default::default() };
    let mut report = check_with(decoder, &problem, options)?;
    let parts = recipe.parts(&problem).map_err(|error| VerifyError::Oracle(error.to_string()))?;
    if let (Some(parts), None) = (parts, &report.fault) {
        report.problem += ", in two parts too";
        match check_parts(decoder, &parts, options) {
            Ok(fault) => report.fault = fault,
            Err(error) => {
                report.findings = findings_of(&error).to_vec();
                report.fault = Some(as_fault(error)?);
            }
        }
    }
    Ok(report)
}

/// Checks attention over two parts of the selected tokens, merged on the device, with what merging the two
/// has to give; that attention over a part is right itself is not looked at.
fn check_parts(
    decoder: &Decoder<'_>,
    parts: &[DecodeProblem; 2],
    options: UploadOptions,
) -> Result<Option<Fault>, VerifyError> {
    let options = at_risk(decoder, options);
    let [one, other] = parts;
    let (one_resident, other_resident) =
        (decoder.upload(one, options)?, decoder.upload(other, options)?);
    let attend = |resident: &Resident<'_>| -> Result<RoundedOutput, VerifyError> {
        resident.poison_output()?;
        decoder.run(resident)?;
        let DecodeOutput { out, lse } = resident.output()?;
        Ok(RoundedOutput { out, lse })
    };
    let (first, second) = (attend(&one_resident)?, attend(&other_resident)?);
    decoder.merge_outputs(&one_resident, &other_resident)?;
    let DecodeOutput { out, lse } = one_resident.output()?;
    for resident in [&one_resident, &other_resident] {
        let broken = resident.broken_guards()?;
        if !broken.is_empty() {
            return Ok(Some(Fault::Overrun(format!("beyond {}", broken.join(", ")))));
        }
    }
    let a = &one.attention;
    let shape = [one.rows(), a.query_heads as usize, a.head_dim as usize];
    let comparison = merge_outputs_f64(a.dtype, shape, &first, &second)
        .and_then(|merged| compare(&out, &lse, &merged, a.dtype, &Tolerance::of(a.dtype)))
        .map_err(|e| VerifyError::Oracle(e.to_string()))?;
    let wrong = || Fault::WrongAnswer(format!("two parts, merged: {comparison}"));
    Ok((!comparison.passed).then(wrong))
}

/// The options under which what a kernel does to memory that is not its own is found.
fn at_risk(decoder: &Decoder<'_>, options: UploadOptions) -> UploadOptions {
    let emulated = decoder.device().properties().basis == Basis::Predicted;
    // On an emulated device every allocation has its own bounds, and scratch memory must stay
    // uninitialised for reads of it to be found.
    let guard_bytes = if emulated { 0 } else { GUARD_BYTES };
    UploadOptions { guard_bytes, poison: !emulated, ..options }
}

/// Checks a kernel on one problem.
pub fn check_problem(
    decoder: &Decoder<'_>,
    problem: &DecodeProblem,
) -> Result<CaseReport, VerifyError> {
    check_with(decoder, problem, UploadOptions::default())
}

fn check_with(
    decoder: &Decoder<'_>,
    problem: &DecodeProblem,
    options: UploadOptions,
) -> Result<CaseReport, VerifyError> {
    let mut described = describe(problem);
    if options.first_page > 0 {
        described += &format!(", the first being page {}", options.first_page);
    }
    if options.appended > 0 {
        described += &format!(", up to {} tokens of each set appended", options.appended);
    }
    let mut report = CaseReport {
        seed: None,
        problem: described,
        fault: None,
        findings: Vec::new(),
        max_abs_error: 0.0,
        bytes_ratio: None,
    };
    // The answer first, the reference after: memory that the reference has just used cannot pass
    // for an answer.
    let (answer, reports) = match run(decoder, problem, options) {
        Ok(Ok(run)) => run,
        Ok(Err(fault)) => {
            report.fault = Some(fault);
            return Ok(report);
        }
        Err(error) => {
            report.findings = findings_of(&error).to_vec();
            report.fault = Some(as_fault(error)?);
            return Ok(report);
        }
    };
    let comparison = compare_with_oracle(problem, &answer)?;
    report.max_abs_error = comparison.max_abs;
    if !comparison.passed {
        report.fault = Some(Fault::WrongAnswer(comparison.to_string()));
        return Ok(report);
    }
    if let Some(read) = kv_bytes_read(&reports) {
        let selected = problem.tile_kv_bytes(decoder.spec().configuration.query_rows);
        report.bytes_ratio = (selected > 0).then(|| read as f64 / selected as f64);
        if read != selected {
            report.fault = Some(Fault::ExtraBytes(format!(
                "fetched {read} bytes of K and V where the selected tokens have {selected}"
            )));
        }
    }
    Ok(report)
}

/// Computes the oracle's answer to a problem and compares another with it, under the tolerance of the
/// problem's dtype.
pub fn compare_with_oracle(
    problem: &DecodeProblem,
    answer: &DecodeOutput,
) -> Result<Comparison, VerifyError> {
    let a = &problem.attention;
    let oracle = attention_f64(&Problem {
        dtype: a.dtype,
        kv_dtype: a.kv_dtype,
        layout: a.layout,
        query_heads: a.query_heads as usize,
        kv_heads: a.kv_heads as usize,
        head_dim: a.head_dim as usize,
        page_size: a.page_size as usize,
        max_pages: problem.max_pages,
        scale: problem.scale,
        soft_cap: problem.soft_cap,
        q: &problem.q,
        k: &problem.k,
        v: &problem.v,
        page_table: &problem.page_table,
        row_request: &problem.row_request,
        spans: &problem.spans,
        sinks: &problem.sinks,
        k_scales: &problem.k_scales,
        v_scales: &problem.v_scales,
    })
    .map_err(|e| VerifyError::Oracle(e.to_string()))?;
    compare(&answer.out, &answer.lse, &oracle, a.dtype, &Tolerance::of(a.dtype))
        .map_err(|e| VerifyError::Oracle(e.to_string()))
}

type Answer = (DecodeOutput, Vec<LaunchReport>);

/// Runs the problem twice, the second time over poisoned outputs.
fn run(
    decoder: &Decoder<'_>,
    problem: &DecodeProblem,
    options: UploadOptions,
) -> Result<Result<Answer, Fault>, VerifyError> {
    let resident = decoder.upload(problem, at_risk(decoder, options))?;
    resident.poison_output()?;
    let reports = decoder.run(&resident)?;
    let first = resident.output()?;
    resident.poison_output()?;
    decoder.run(&resident)?;
    let second = resident.output()?;
    let same_lse = first.lse.iter().zip(&second.lse).all(|(a, b)| a.to_bits() == b.to_bits());
    if first.out != second.out || !same_lse {
        return Ok(Err(Fault::NotRepeatable("two runs gave different bits".into())));
    }
    let broken = resident.broken_guards()?;
    if !broken.is_empty() {
        return Ok(Err(Fault::Overrun(format!("beyond {}", broken.join(", ")))));
    }
    Ok(Ok((first, reports)))
}

/// What a check found is a fault of the kernel; everything else is an error of the check.
fn as_fault(error: VerifyError) -> Result<Fault, VerifyError> {
    match error {
        VerifyError::Decoder(DecoderError::Device(e)) | VerifyError::Device(e)
            if matches!(e, DeviceError::Findings { .. } | DeviceError::Driver { .. }) =>
        {
            Ok(Fault::Device(e.to_string()))
        }
        other => Err(other),
    }
}

/// What the checks of an emulated device reported, if that is the error.
fn findings_of(error: &VerifyError) -> &[Finding] {
    match error {
        VerifyError::Decoder(DecoderError::Device(DeviceError::Findings { findings, .. }))
        | VerifyError::Device(DeviceError::Findings { findings, .. }) => findings,
        _ => &[],
    }
}

/// Bytes of K and V that the launches read, sector by sector; `None` where nothing was counted.
pub fn kv_bytes_read(reports: &[LaunchReport]) -> Option<u64> {
    let mut bytes = 0;
    for report in reports {
        for buffer in &report.counters.as_ref()?.buffers {
            if buffer.name == "k" || buffer.name == "v" {
                bytes += buffer.read_sectors * spanforge_emulator::counters::SECTOR_BYTES;
            }
        }
    }
    Some(bytes)
}

/// A problem in one line.
pub fn describe(problem: &DecodeProblem) -> String {
    let a = &problem.attention;
    let counts: Vec<String> =
        problem.spans.sets().map(|set| set.len_tokens().to_string()).collect();
    format!(
        "{} rows of {} requests selecting {} tokens, {} query and {} KV heads of {} {}, pages of {} {}, scale {}",
        problem.rows(),
        problem.requests(),
        counts.join("+"),
        a.query_heads,
        a.kv_heads,
        a.head_dim,
        a.dtype,
        a.page_size,
        a.layout,
        problem.scale
    )
}
