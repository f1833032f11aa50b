//! `doctor`: what this machine has, what it lacks, and what to do about it.

use super::{Outcome, write_json};
use crate::notice;
use anyhow::{Result, bail, ensure};
use clap::Args;
use serde::Serialize;
use spanforge_device::cuda::{self, CudaDevice};
use spanforge_device::nvrtc::pinned_release;
use spanforge_device::{
    Compiler, Device, DeviceError, Launch, Nvrtc, NvrtcError, Settings, Source, Target,
};
use spanforge_emulator::profile;
use std::io::Write;
use std::process::{Command, Stdio};

/// Say what this machine has, what it lacks, and what to do
///
/// Exit code 0 where kernels can be compiled and emulated here, 2 where they cannot; a GPU is not
/// needed for that.
#[derive(Args)]
#[command(after_help = "Examples:\n  spanforge doctor\n  spanforge doctor --fetch --json")]
pub struct Arguments {
    /// Fetch NVRTC with pip now if it is not here (other verbs do so when they first need it)
    #[arg(long)]
    fetch: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Found,
    /// Not here, and nothing needs it.
    Absent,
    /// Not here or not working, and something needs it.
    Missing,
}

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    status: Status,
    detail: String,
    remedy: Option<String>,
}

impl Finding {
    fn found(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, status: Status::Found, detail: detail.into(), remedy: None }
    }

    fn lacking(
        what: &'static str,
        status: Status,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { what, status, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

#[derive(Serialize)]
struct Diagnosis {
    emulated_works: bool,
    gpus_that_work: Vec<String>,
    findings: Vec<Finding>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let settings = Settings { fetch: arguments.fetch, ..notice::settings() };
    let diagnosis = diagnose(&settings);
    if arguments.json {
        write_json(out, &diagnosis)?;
    } else {
        print(&diagnosis, out)?;
    }
    if !diagnosis.emulated_works {
        out.flush()?;
        bail!("kernels cannot be compiled and emulated here: see what is missing above");
    }
    Ok(Outcome::Done)
}

fn diagnose(settings: &Settings) -> Diagnosis {
    let mut findings = vec![cache(settings)];
    let pip = pip();
    let nvrtc = Nvrtc::find(settings);
    findings.push(describe_nvrtc(&nvrtc, pip.is_some()));
    if let Ok(nvrtc) = &nvrtc {
        findings.push(headers(nvrtc));
    }
    findings.push(match pip {
        Some(version) => Finding::found("pip", version),
        None => Finding::lacking(
            "pip",
            if nvrtc.is_ok() { Status::Absent } else { Status::Missing },
            "none of python3 -m pip, python -m pip, pip3 and pip runs",
            "only needed to fetch NVRTC: install Python 3 with pip, or supply NVRTC by hand",
        ),
    });
    let compiler = nvrtc.ok().map(|nvrtc| match &settings.cache_dir {
        Some(cache) => Compiler::without_cache(nvrtc).with_cache(cache),
        None => Compiler::without_cache(nvrtc),
    });
    let emulated = emulated(compiler.as_ref());
    let emulated_works = emulated.status == Status::Found;
    findings.push(emulated);
    let mut gpus_that_work = Vec::new();
    match cuda::device_count() {
        Err(error) => findings.push(Finding::lacking(
            "GPU",
            Status::Absent,
            "no GPU can be used",
            error.to_string(),
        )),
        Ok(0) => findings.push(Finding::lacking(
            "GPU",
            Status::Absent,
            "the driver has no device",
            "emulated devices serve without; check CUDA_VISIBLE_DEVICES if there should be one",
        )),
        Ok(count) => {
            for ordinal in 0..count {
                let finding = gpu(ordinal, compiler.as_ref());
                if finding.status == Status::Found {
                    gpus_that_work.push(format!("cuda:{ordinal}"));
                }
                findings.push(finding);
            }
        }
    }
    Diagnosis { emulated_works, gpus_that_work, findings }
}

fn cache(settings: &Settings) -> Finding {
    let Some(folder) = &settings.cache_dir else {
        let error = NvrtcError::NoCacheFolder.to_string();
        return Finding::lacking("cache folder", Status::Missing, "none is named", error);
    };
    let writable = fs_err::create_dir_all(folder)
        .and_then(|()| tempfile::tempfile_in(folder).map(drop))
        .map_err(|error| error.to_string());
    let name = folder.display().to_string();
    match writable {
        Ok(()) => Finding::found("cache folder", format!("{name} (can be written)")),
        Err(error) => Finding::lacking(
            "cache folder",
            Status::Missing,
            format!("{name} cannot be written: {error}"),
            "set SPANFORGE_CACHE to a folder that can be written",
        ),
    }
}

/// The version line of the first pip that runs, in the order in which NVRTC is fetched with them.
fn pip() -> Option<String> {
    let commands: [&[&str]; 4] =
        [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
    commands.into_iter().find_map(|command| {
        let (program, arguments) = command.split_first()?;
        let output = Command::new(program)
            .args(arguments)
            .arg("--version")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(format!("{}: {}", command.join(" "), String::from_utf8_lossy(&output.stdout).trim()))
    })
}

fn describe_nvrtc(nvrtc: &Result<Nvrtc, NvrtcError>, has_pip: bool) -> Finding {
    match nvrtc {
        Ok(found) => {
            let architectures = found.architectures();
            let range = match (architectures.first(), architectures.last()) {
                (Some(first), Some(last)) => format!(", compiles for sm_{first} to sm_{last}"),
                _ => String::new(),
            };
            Finding::found("NVRTC", format!("{found}, found in {}{range}", found.origin()))
        }
        Err(NvrtcError::NotFound { attempts, remedy }) => {
            let looked: String = attempts.iter().map(|a| format!("; {a}")).collect();
            let remedy = match has_pip {
                true => format!(
                    "`spanforge doctor --fetch` fetches release {} with pip; {remedy}",
                    pinned_release().release
                ),
                false => remedy.clone(),
            };
            Finding::lacking("NVRTC", Status::Missing, format!("not found{looked}"), remedy)
        }
        Err(error) => {
            Finding::lacking("NVRTC", Status::Missing, "cannot be used", error.to_string())
        }
    }
}

fn headers(nvrtc: &Nvrtc) -> Finding {
    match nvrtc.include() {
        Some(folder) => Finding::found("CUDA headers", folder.display().to_string()),
        None => Finding::lacking(
            "CUDA headers",
            Status::Missing,
            format!("no cuda_fp16.h beside {}", nvrtc.library().display()),
            "use the NVRTC of a whole toolkit, or unset SPANFORGE_NVRTC_DIR to have the pinned \
             release fetched",
        ),
    }
}

fn emulated(compiler: Option<&Compiler>) -> Finding {
    let what = "emulated GPUs";
    let names: Vec<String> =
        profile::names().into_iter().map(|name| format!("emulated:{name}")).collect();
    let tried = match compiler {
        None => Err("no compiler for a trial".into()),
        Some(compiler) => spanforge_device::open("emulated:h200")
            .map_err(anyhow::Error::from)
            .and_then(|device| trial(device.as_ref(), compiler))
            .map_err(|error| format!("a trial kernel fails: {error:#}")),
    };
    match tried {
        Ok(()) => Finding::found(what, format!("{} (a trial kernel runs)", names.join(", "))),
        Err(detail) => Finding::lacking(what, Status::Missing, detail, "see the other findings"),
    }
}

fn gpu(ordinal: usize, compiler: Option<&Compiler>) -> Finding {
    let opened = CudaDevice::open(ordinal);
    let described = opened.map_err(|error: DeviceError| (format!("cuda:{ordinal}"), error.into()));
    let tried = described.and_then(|device| {
        let p = device.properties();
        let name = format!(
            "cuda:{ordinal} {} ({}, {} multiprocessors)",
            p.name, p.architecture, p.multiprocessors
        );
        let tried = match compiler {
            Some(compiler) => trial(&device, compiler),
            None => Err(anyhow::anyhow!("no compiler for a trial")),
        };
        tried.map(|()| name.clone()).map_err(|error| (name, error))
    });
    match tried {
        Ok(name) => Finding::found("GPU", format!("{name} (a trial kernel runs)")),
        Err((name, error)) => Finding::lacking("GPU", Status::Missing, name, format!("{error:#}")),
    }
}

/// Compiles, loads and runs a small kernel, and compares what it wrote.
fn trial(device: &dyn Device, compiler: &Compiler) -> Result<()> {
    const THREADS: u32 = 64;
    let architecture = &device.properties().architecture;
    let source = Source::new(
        "trial.cu",
        "extern \"C\" __global__ void trial(int* x) { x[threadIdx.x] = 3 * threadIdx.x + 1; }",
    );
    let image = compiler.compile(&source, &Target::Cubin(architecture.clone()))?;
    let module = device.load(&image)?;
    let buffer = device.allocate("x", 4 * THREADS as usize)?;
    device.launch(&Launch {
        module,
        kernel: "trial".into(),
        grid: [1; 3],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
        arguments: vec![buffer.at(0)],
    })?;
    let mut bytes = vec![0; 4 * THREADS as usize];
    device.download(buffer, 0, &mut bytes)?;
    let expected: Vec<u8> = (0..THREADS).flat_map(|i| (3 * i + 1).to_le_bytes()).collect();
    ensure!(bytes == expected, "the trial kernel wrote other numbers than it should");
    Ok(())
}

fn print(diagnosis: &Diagnosis, out: &mut dyn Write) -> Result<()> {
    for finding in &diagnosis.findings {
        let status = match finding.status {
            Status::Found => "ok",
            Status::Absent => "--",
            Status::Missing => "MISSING",
        };
        writeln!(out, "{status:<8}{:<14}{}", finding.what, finding.detail)?;
        for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
            writeln!(out, "{:22}{line}", "")?;
        }
    }
    let default = spanforge_device::default_spec();
    match diagnosis.emulated_works {
        true => writeln!(out, "\nready: verbs use {default} unless --device says otherwise")?,
        false => writeln!(out, "\nnot ready")?,
    }
    Ok(())
}
