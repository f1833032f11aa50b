//! What tests have in common that tune with themselves as workers, so that workers can be what they
//! are not in use. Such a test has no harness; called with `worker`, it is one.

use spanforge_kernels::configuration::AttentionShape;
use spanforge_tuner::Workload;
use spanforge_tuner::evaluate::Request;
use spanforge_tuner::record::Study;
use std::process::Command;

/// Runs the test, or the worker where this process was started as one.
pub fn main(test: fn(), work: fn()) {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => work(),
        Some("--list") => {}
        _ => test(),
    }
}

/// Starts a worker.
pub fn worker() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg("worker").env("RAYON_NUM_THREADS", "1");
    command
}

/// What a worker is told.
pub fn requests() -> impl Iterator<Item = Request> {
    let lines = std::io::stdin().lines();
    lines.map_while(|line| serde_json::from_str(&line.ok()?).ok())
}

/// A study of two small rows by random search.
pub fn study(seed: u64, cases: usize, window: usize) -> Study {
    let mut workload = Workload::named("ssas-llama2", 2, 0).expect("a preset");
    workload.attention = AttentionShape { query_heads: 2, kv_heads: 1, ..workload.attention };
    Study {
        workload,
        others: Vec::new(),
        device: "emulated:h200".to_owned(),
        also: Vec::new(),
        architectures: Vec::new(),
        strategy: "random".to_owned(),
        seed,
        cases,
        guide: Vec::new(),
        window,
    }
}
