//! A run on several machines: real NATS servers on loopback, workers, a coordinator, and the loss of
//! each of them in the middle of it.

use crate::nats::{Running, Servers, wait};
use crate::{Ran, command, finish, folder, names, spanforge};
use fs_err as fs;
use spanforge_tuner::journal::{self, Kept};
use spanforge_tuner::record::Record;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

const RUN: [&str; 7] = [
    "tune",
    "--workload=ssas-llama2",
    "--batch=4",
    "--cases=2",
    "--device=emulated:h200",
    "--budget=60",
    "--window=6",
];

/// Starts the command with nobody listening to it.
fn start(here: &Path, arguments: &[&str]) -> Running {
    let mut started = command(here, []);
    started.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    Running(started.spawn().expect("the binary starts"))
}

fn coordinator(here: &Path, servers: &str) -> Running {
    start(here, &[&RUN[..], &["--study", servers]].concat())
}

fn worker(here: &Path, servers: &str) -> Running {
    start(here, &["worker", "--study", servers, "--workers=1"])
}

/// The journal of the only run, once it is there.
fn journal(here: &Path) -> PathBuf {
    let folder = here.join("results/tune");
    wait("there is a journal", || folder.is_dir() && names(&folder).len() == 1);
    folder.join(&names(&folder)[0])
}

/// Lines of candidates that a journal has.
fn evaluated(journal: &Path) -> usize {
    let text = fs::read_to_string(journal).unwrap_or_default();
    text.matches("{\"record\":\"candidate\"").count()
}

fn resume(here: &Path, journal: &Path, servers: &str) -> Ran {
    let mut resumed = command(here, ["tune", "--resume"]);
    resumed.arg(journal).args(["--study", servers]);
    finish(resumed)
}

/// What a run found, without what differs each time: names, clocks and seconds.
fn found(journal: &Path) -> Vec<(String, String, Option<f64>, Vec<f64>)> {
    let kept = Kept::read(journal).expect("a journal");
    assert!(kept.winner.is_some());
    let found = kept.candidates.into_values();
    found.map(|c| (c.id, c.status.to_string(), c.time_us, c.samples_us)).collect()
}

/// The same study on this machine alone, undisturbed, once for all tests.
fn undisturbed() -> &'static [(String, String, Option<f64>, Vec<f64>)] {
    type Found = Vec<(String, String, Option<f64>, Vec<f64>)>;
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(|| {
        let here = folder();
        spanforge(here.path(), RUN).expect(0);
        found(&journal(here.path()))
    })
}

/// No candidate is in the journal twice.
fn assert_once_each(journal: &Path) {
    let mut indices: Vec<usize> = journal::read(journal)
        .unwrap()
        .iter()
        .filter_map(|record| match record {
            Record::Candidate(candidate) => Some(candidate.index),
            _ => None,
        })
        .collect();
    let all = indices.len();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), all);
}

#[test]
fn a_study_survives_the_loss_of_a_worker_a_server_and_the_coordinator() {
    let here = folder();
    let mut servers = Servers::start(3);
    let addresses = servers.addresses();
    let mut leader = coordinator(here.path(), &addresses);
    let mut workers = [worker(here.path(), &addresses), worker(here.path(), &addresses)];
    let journal = journal(here.path());
    let after = |count| wait("more is evaluated", || evaluated(&journal) >= count);
    after(6);
    workers[0].kill();
    after(12);
    servers.kill(0);
    after(20);
    leader.kill();
    let _third = worker(here.path(), &addresses);
    sleep(Duration::from_millis(500));
    servers.begin(0);
    resume(here.path(), &journal, &addresses).expect(0).says("candidates were in the journal");
    assert_eq!(found(&journal), undisturbed());
    assert_once_each(&journal);
    // Workers have heard that it is over, and stay for the next study.
    sleep(Duration::from_secs(1));
    assert!(workers[1].0.try_wait().unwrap().is_none());
}

#[test]
fn servers_that_go_away_end_the_run_and_nothing_is_lost() {
    let here = folder();
    let mut servers = Servers::start(1);
    let addresses = servers.addresses();
    let mut run = command(here.path(), RUN);
    run.args(["--study", &addresses, "--patience=2"]);
    let run = std::thread::spawn(|| finish(run));
    let _worker = worker(here.path(), &addresses);
    let path = journal(here.path());
    wait("some are evaluated", || evaluated(&path) >= 8);
    servers.kill(0);
    let ended = run.join().unwrap().expect(2);
    let ended = ended.says(&format!("servers ({addresses}) do not answer"));
    ended
        .says("nothing that was recorded is lost; to go on: spanforge tune --resume results/tune/");
    let recorded = evaluated(&path);
    assert!((8..60).contains(&recorded));
    // Back again, they have what the worker had not been heard of; even without the journal.
    servers.begin(0);
    fs::remove_file(&path).unwrap();
    let ran = resume(here.path(), &path, &addresses).expect(0);
    let taken =
        ran.err.lines().find_map(|line| line.strip_suffix(" candidates were in the journal"));
    assert!(taken.unwrap().parse::<usize>().unwrap() >= recorded, "{}", ran.err);
    assert_eq!(found(&path), undisturbed());
    assert_once_each(&path);
    // An ended study is still known, and its journal can be had once more.
    fs::remove_file(&path).unwrap();
    resume(here.path(), &path, &addresses).expect(0);
    assert_eq!(found(&path), undisturbed());
}

#[test]
fn workers_leave_what_is_not_for_them() {
    let here = folder();
    let servers = Servers::start(1);
    let addresses = servers.addresses();
    let study = ["--study", &addresses];
    let mut run =
        command(here.path(), ["tune", "--workload=ssas-llama2", "--batch=4", "--budget=6"]);
    run.args(["--device=emulated:h200", "--cases=1"]).args(study);
    let run = std::thread::spawn(|| finish(run));
    let path = journal(here.path());
    let mut other = command(here.path(), ["worker", "--device=emulated:a100", "--idle=3"]);
    other.args(study);
    let other = finish(other).expect(0).says("not for ssas-llama2-emulated-h200");
    let other = other.says("the device was").prints("0 candidates evaluated");
    drop(other);
    assert_eq!(evaluated(&path), 0);
    let mut fitting = command(here.path(), ["worker", "--idle=3"]);
    fitting.args(study);
    finish(fitting).expect(0).says("joined ssas-llama2").prints("6 candidates evaluated");
    run.join().unwrap().expect(0);
}

#[test]
fn servers_that_cannot_be_reached_are_named() {
    let here = folder();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = format!("nats://user:secret@127.0.0.1:{port}");
    for verb in ["tune", "worker"] {
        let ran = spanforge(here.path(), [verb, "--study", &nobody]).expect(2);
        let shown = format!("the study's servers (nats://127.0.0.1:{port}) do not answer");
        let ran = ran.says(&shown);
        assert!(!ran.err.contains("secret"), "{}", ran.err);
        spanforge(here.path(), [verb, "--study", "a b://"]).expect(2).says("nats://HOST:4222");
    }
    assert!(names(here.path()).is_empty());
    // A run that nobody knows.
    let servers = Servers::start(1);
    let study = servers.addresses();
    let resume = ["tune", "--resume", "nobodys.jsonl", "--study", &study];
    spanforge(here.path(), resume).expect(2).says("know no run `nobodys`");
    assert!(names(here.path()).is_empty());
}
