//! The processes of `fuzz`: what is lost when one is, and that none is left behind.
#![cfg(target_os = "linux")]

use crate::{command, folder, names, spanforge};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run of one small kernel that goes on for seconds.
fn fuzzing(folder: &Path, more: &[&str]) -> Child {
    let mut run =
        command(folder, ["fuzz", "--configs", "1", "--json", "--device", "emulated:h200"]);
    run.args(["--head-dim", "64", "--group-size", "4"]);
    run.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    run.spawn().expect("the binary starts")
}

/// The `count` processes whose parent is `parent`, once they are there, and those that check cases
/// have had the time to begin.
fn workers(parent: &Child, count: usize) -> Vec<u32> {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        let found: Vec<u32> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|id| stat(*id).is_some_and(|(_, of)| of == parent.id()))
            .collect();
        if found.len() >= count {
            std::thread::sleep(Duration::from_secs(4));
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{count} workers were not started");
}

/// State and parent of a process.
fn stat(id: u32) -> Option<(String, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn signal(name: &str, id: u32) {
    let sent = Command::new("kill").args([name, &id.to_string()]).status().unwrap();
    assert!(sent.success(), "{name} {id}");
}

fn report(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_worker_that_is_killed_costs_the_case_it_had_in_hand() {
    let here = folder();
    let run = fuzzing(here.path(), &["--cases", "4000", "--workers", "2"]);
    signal("-KILL", workers(&run, 2)[0]);
    let output = run.wait_with_output().unwrap();
    let report = report(&output);
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    assert_eq!((&report["cases"], &report["lost_count"]), (&3999.into(), &1.into()), "{report:#}");
    let lost = &report["lost"][0];
    assert_eq!(
        (&lost["kind"], &lost["how"]),
        (&"worker-lost".into(), &"killed by signal 9".into())
    );
    assert_eq!(lost["configuration"], report["configurations"][0]);
    assert!(report["failures"].as_array().unwrap().is_empty(), "nothing else failed: {report:#}");
    // The kernel is not at fault, and the case shows it.
    let file = format!("case-worker-lost-{}.json", lost["case"]);
    assert_eq!(names(here.path()).join(" "), file);
    spanforge(here.path(), ["check", &file]).expect(0).prints("written for: worker-lost");
}

#[test]
fn a_worker_that_hangs_costs_the_case_it_had_in_hand() {
    let here = folder();
    let limits = ["--cases", "3000", "--workers", "1", "--case-limit", "3"];
    let run = fuzzing(here.path(), &limits);
    signal("-STOP", workers(&run, 1)[0]);
    let output = run.wait_with_output().unwrap();
    let report = report(&output);
    assert_eq!((&report["cases"], &report["lost_count"]), (&2999.into(), &1.into()), "{report:#}");
    assert_eq!(report["lost"][0]["how"], "no answer within 3 s");
}

#[test]
fn workers_end_with_their_parent() {
    let here = folder();
    let mut run = fuzzing(here.path(), &["--time", "600", "--workers", "2"]);
    let workers = workers(&run, 2);
    run.kill().unwrap();
    run.wait().unwrap();
    // Nobody may be there to take note of their end.
    let alive = |id: &u32| stat(*id).is_some_and(|(state, _)| state != "Z");
    let until = Instant::now() + Duration::from_secs(60);
    while workers.iter().any(alive) {
        assert!(Instant::now() < until, "workers outlive their parent");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_interrupt_ends_the_run_with_its_summary() {
    let here = folder();
    let run = fuzzing(here.path(), &["--time", "600", "--workers", "2"]);
    let workers = workers(&run, 2);
    signal("-INT", run.id());
    let output = run.wait_with_output().unwrap();
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!((&report["interrupted"], &report["lost_count"]), (&true.into(), &0.into()));
    assert!(report["cases"].as_u64().unwrap() > 0, "{report:#}");
    assert!(workers.iter().all(|id| stat(*id).is_none()), "workers are gone before their parent");
}
