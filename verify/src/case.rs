//! One case as a file: the kernel, the problem, the schedule, and what was found. Such a file needs
//! nothing else to be replayed, and stays meaningful after the fault is fixed: it must then pass.

use crate::check::{CaseReport, Fault, VerifyError, check_recipe};
use crate::recipe::{Recipe, RecipeError};
use serde::{Deserialize, Serialize};
use spanforge_device::{
    Basis, CompileError, Compiler, Device, DeviceError, EmulatedDevice, EmulatedOptions,
    SharedCode, Source, Target,
};
use spanforge_emulator::profile;
use spanforge_kernels::{Decoder, KernelSpec, Limits, RenderError, SearchSpace, render};
use std::sync::Arc;

/// Version of the format.
pub const CASE_VERSION: u32 = 1;

/// Everything that decides how a given kernel fares: what fuzzing draws and shrinking makes smaller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Seed of the schedule of an emulated device; 0 runs warps in order.
    pub schedule: u64,
    /// Multiprocessors that an emulated device has for this trial: with the configuration's blocks
    /// per multiprocessor the number of shares that work is cut into. `None` leaves the GPU's own.
    pub multiprocessors: Option<u32>,
    /// Fewest selected tokens of a block, in place of the configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smallest_share: Option<u32>,
    /// The problem.
    pub problem: Recipe,
}

impl Trial {
    /// The kernel as the trial launches it.
    pub fn spec(&self, kernel: &KernelSpec) -> KernelSpec {
        let mut spec = *kernel;
        if let Some(share) = self.smallest_share {
            spec.configuration.smallest_share = share.clamp(1, i32::MAX.cast_unsigned());
        }
        spec
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Kind of fault, see [`kind`].
    pub kind: String,
    /// The fault in a line.
    pub summary: String,
}

/// A case file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Version of the format.
    pub spanforge_case: u32,
    /// Id of the kernel.
    pub kernel: String,
    /// Device it was found on.
    pub device: String,
    /// What was found, when it was.
    pub found: Found,
    /// Who wrote the file, and why it is kept.
    pub created_by: String,
    /// How to reach it.
    pub trial: Trial,
    /// The source where it was an edited one; else what the tool renders for the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// A case that cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// Not a case file.
    #[error("it is not a case: {0}; `spanforge fuzz` writes one for each fault it finds")]
    Json(#[from] serde_json::Error),
    /// Of another version.
    #[error("it is a case of version {found}; this program reads version {CASE_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// Names no kernel, or one that this device cannot have.
    #[error("kernel: {0}")]
    Kernel(String),
    /// The problem cannot be made.
    #[error("trial.problem: {0}")]
    Recipe(#[from] RecipeError),
    /// Rendering.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// Compiling.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Opening the device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Checking.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

impl Case {
    /// Reads a case file's text.
    pub fn parse(text: &str) -> Result<Self, CaseError> {
        // The version first: another version has other fields.
        let value: serde_json::Value = serde_json::from_str(text)?;
        if let Some(found) = value.get("spanforge_case").and_then(serde_json::Value::as_u64)
            && found != u64::from(CASE_VERSION)
        {
            return Err(CaseError::Version { found: u32::try_from(found).unwrap_or(u32::MAX) });
        }
        Ok(serde_json::from_value(value)?)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a case has only plain fields");
        text.push('\n');
        text
    }

    /// Runs the case again, on its own device or on another.
    pub fn replay(
        &self,
        compiler: &Compiler,
        device: Option<&str>,
    ) -> Result<CaseReport, CaseError> {
        let bad = |e: String| CaseError::Kernel(e);
        let spec: KernelSpec = self.kernel.parse().map_err(|e| bad(format!("{e}")))?;
        let device = open_for(device.unwrap_or(&self.device), &self.trial)?;
        let space = SearchSpace::new(spec.shape, Limits::of(device.properties()));
        if let Some(broken) = space.broken_constraint(&spec.configuration) {
            return Err(bad(format!("{spec} breaks the constraint `{}`", broken.name)));
        }
        // Before anything is compiled, so that a mistake in the file is answered at once.
        self.trial.problem.problem()?;
        let source = match &self.source {
            Some(text) => Source::new("case.cu", text.clone()),
            None => {
                let rendered = render(&spec)?;
                Source::new(rendered.name, rendered.text)
            }
        };
        let image = compiler.compile(&source, &target_of(device.as_ref()))?;
        let decoder = Decoder::load(device.as_ref(), &image, self.trial.spec(&spec))
            .map_err(VerifyError::from)?;
        Ok(check_recipe(&decoder, &self.trial.problem)?)
    }
}

/// Warp instructions of a block before it counts as hanging: more than ten times what any generated
/// problem takes on one multiprocessor, and a fraction of a second.
const INSTRUCTION_BUDGET: u64 = 1 << 25;

/// The device of that name as a trial wants it. A GPU has neither seeds nor other sizes.
pub fn open_for(name: &str, trial: &Trial) -> Result<Box<dyn Device>, DeviceError> {
    open(name, trial, false, None)
}

/// The same for one trial of many: executed source lines are counted, and devices take code from one
/// another.
pub fn open_sharing(
    name: &str,
    trial: &Trial,
    code: &Arc<SharedCode>,
) -> Result<Box<dyn Device>, DeviceError> {
    open(name, trial, true, Some(code))
}

fn open(
    name: &str,
    trial: &Trial,
    lines: bool,
    code: Option<&Arc<SharedCode>>,
) -> Result<Box<dyn Device>, DeviceError> {
    let options = EmulatedOptions {
        seed: trial.schedule,
        instruction_budget: INSTRUCTION_BUDGET,
        lines,
        ..EmulatedOptions::default()
    };
    let built_in = name.strip_prefix("emulated:").and_then(|gpu| profile::find(gpu).ok());
    let Some(mut profile) = built_in else {
        return spanforge_device::open_with(name, options);
    };
    if let Some(count) = trial.multiprocessors {
        profile.multiprocessors.value = u64::from(count.clamp(1, 1024));
    }
    let device = EmulatedDevice::new(profile, options);
    Ok(Box::new(match code {
        Some(code) => device.sharing(code.clone()),
        None => device,
    }))
}

/// What to compile for a device to run: machine code for a GPU, PTX alone for an emulated one.
pub fn target_of(device: &dyn Device) -> Target {
    let properties = device.properties();
    match (properties.basis, properties.architecture.strip_prefix("sm_")) {
        (Basis::Predicted, Some(number)) => Target::Ptx(format!("compute_{number}")),
        _ => Target::Cubin(properties.architecture.clone()),
    }
}

/// The kind of what a check found, if anything: the name of the device's check, such as
/// `uninitialised`, or `wrong-answer`, `not-repeatable`, `extra-bytes`, `overrun`; `driver` for what
/// only a GPU's driver says.
pub fn kind(report: &CaseReport) -> Option<String> {
    Some(match report.fault.as_ref()? {
        Fault::Device(_) => {
            report.findings.first().map_or_else(|| "driver".to_owned(), |f| f.check.to_string())
        }
        Fault::WrongAnswer(_) => "wrong-answer".into(),
        Fault::NotRepeatable(_) => "not-repeatable".into(),
        Fault::ExtraBytes(_) => "extra-bytes".into(),
        Fault::Overrun(_) => "overrun".into(),
    })
}

/// The line of a fault that says most.
pub fn summary(fault: &Fault) -> String {
    let text = fault.to_string();
    let line = match fault {
        Fault::Device(_) => text.lines().nth(1).or_else(|| text.lines().next()),
        _ => text.lines().next(),
    };
    line.unwrap_or_default().trim().to_owned()
}
