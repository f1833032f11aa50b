//! Where a record was made: recorded with every run, so that a number can be judged later.

use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// The machine and the tools of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this tool.
    pub spanforge: String,
    /// Commit of the checkout the run was started in, if any.
    pub commit: Option<String>,
    /// Operating system and architecture.
    pub platform: String,
    /// Processor of the host.
    pub cpu: Option<String>,
    /// Processors of the host.
    pub cpus: usize,
    /// Version of NVRTC.
    pub nvrtc: String,
}

impl Environment {
    /// Looks at the machine; the argument is the version of NVRTC.
    pub fn current((major, minor): (u32, u32)) -> Self {
        Self {
            spanforge: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit(),
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: cpu(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            nvrtc: format!("{major}.{minor}"),
        }
    }
}

/// Seconds since 1970, UTC.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success()).then(|| text.trim().to_owned())
}
