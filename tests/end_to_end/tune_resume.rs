//! `tune --resume`: runs that are killed, interrupted or spoilt, and what they come to.
#![cfg(target_os = "linux")]

use crate::{Ran, command, finish, folder, names, spanforge};
use fs_err as fs;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_tuner::journal::{self, JournalError};
use spanforge_tuner::record::{Candidate, Record, Status};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const STUDY: [&str; 14] = [
    "tune",
    "--workload=ssas-llama2",
    "--device=emulated:h200",
    "--batch=2",
    "--query-heads=2",
    "--kv-heads=1",
    "--head-dim=64",
    "--cases=2",
    "--seed=3",
    "--strategy=portfolio",
    "--workers=2",
    "--output=artifacts",
    "--results=results",
    "--json",
];

/// Candidates of a study that ends.
const BUDGET: usize = 14;

/// A new run of the study.
fn begin(here: &Path, budget: usize) -> Command {
    let mut run = command(here, STUDY);
    run.arg(format!("--budget={budget}"));
    run
}

/// The one journal of a folder.
fn the_journal(here: &Path) -> Option<PathBuf> {
    let folder = here.join("results/tune");
    let mut names = if folder.is_dir() { names(&folder) } else { Vec::new() };
    assert!(names.len() <= 1, "{names:?}");
    Some(folder.join(names.pop()?))
}

fn resume(here: &Path) -> Command {
    let journal = the_journal(here).expect("a journal");
    let mut resume = command(here, ["tune", "--output=artifacts", "--workers=2", "--json"]);
    resume.arg("--resume").arg(journal);
    resume
}

/// The recorded candidates, each once.
fn recorded(journal: &Path) -> BTreeMap<usize, Candidate> {
    let mut candidates = BTreeMap::new();
    for record in journal::read(journal).expect("a journal is readable at any instant") {
        if let Record::Candidate(candidate) = record {
            let index = candidate.index;
            assert_eq!(candidates.insert(index, *candidate), None, "{index} was run twice");
        }
    }
    candidates
}

/// All that a run finds out which does not depend on when and how fast it ran.
fn findings(ran: &Ran) -> serde_json::Value {
    let text = ran.out.trim_end().rsplit_once('\n').expect("JSON and a path").0;
    let mut value: serde_json::Value = serde_json::from_str(text).expect("JSON");
    for candidate in value["candidates"].as_array_mut().expect("candidates") {
        for name in ["run", "compile_s", "check_s", "time_s"] {
            candidate[name].take();
        }
    }
    value["winner"]["run"].take();
    serde_json::json!([value["candidates"], value["winner"]])
}

/// Whether a process is there that was started in this folder.
fn is_worked_in(here: &Path) -> bool {
    let here = fs::canonicalize(here).unwrap();
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|process| {
        std::fs::read_link(process.path().join("cwd")).is_ok_and(|folder| folder == here)
    })
}

/// Kills runs of one study at random instants and resumes them until one ends, again and again until
/// there were `kills`: nothing that was recorded is lost or run twice, and the end is that of a run
/// that nobody disturbed, and no worker is left behind.
fn killed_at_random_instants(kills: usize) {
    let undisturbed = folder();
    let expected = findings(&finish(begin(undisturbed.path(), BUDGET)).expect(0));
    let mut random = ChaCha8Rng::seed_from_u64(kills as u64);
    let (mut killed, mut ends) = (0, 0);
    while killed < kills || ends == 0 {
        let here = folder();
        let mut before = BTreeMap::new();
        loop {
            let journal = the_journal(here.path());
            let begun = journal.as_deref().is_some_and(|journal| {
                let records = journal::read(journal).expect("readable at any instant");
                matches!(records[..], [Record::Study(_), Record::Run(_), ..])
            });
            if let (Some(journal), false) = (journal, begun) {
                finish(resume(here.path())).expect(2).says("nothing to resume");
                fs::remove_file(journal).unwrap();
            }
            let mut run = if begun { resume(here.path()) } else { begin(here.path(), BUDGET) };
            // A file, since a run that fills a pipe which nobody reads stands still.
            let printed = tempfile::NamedTempFile::new().unwrap();
            run.stdout(printed.reopen().unwrap()).stderr(Stdio::null());
            let mut run = run.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(random.random_range(0..900)));
            let ended = run.try_wait().unwrap().is_some();
            run.kill().unwrap();
            let status = run.wait().unwrap();
            let Some(journal) = the_journal(here.path()) else {
                killed += 1;
                continue;
            };
            let now = recorded(&journal);
            for (index, candidate) in &before {
                assert_eq!(now.get(index), Some(candidate), "{index} was recorded and is lost");
            }
            before = now;
            if ended {
                assert!(status.success(), "{status}");
                let out = fs::read_to_string(printed.path()).unwrap();
                assert_eq!(findings(&Ran { code: 0, out, err: String::new() }), expected);
                ends += 1;
                break;
            }
            killed += 1;
        }
        spanforge(here.path(), ["inspect", "artifacts/ssas-llama2-f16-d64-g2"]).expect(0);
        let until = Instant::now() + Duration::from_secs(60);
        while is_worked_in(here.path()) {
            assert!(Instant::now() < until, "a worker outlives its parent");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    println!("{killed} runs were killed, {ends} studies ended");
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_as_if_it_were_not() {
    killed_at_random_instants(12);
}

#[test]
#[ignore = "takes minutes: three hundred kills"]
fn hundreds_of_kills_lose_nothing() {
    killed_at_random_instants(300);
}

#[test]
fn an_interrupted_run_says_what_it_knows_and_how_to_go_on() {
    let here = folder();
    let mut run = begin(here.path(), 5000);
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let journal = loop {
        assert_eq!(run.try_wait().unwrap(), None, "it goes on until it is interrupted");
        std::thread::sleep(Duration::from_millis(50));
        match the_journal(here.path()) {
            Some(journal) if recorded(&journal).len() > 3 => break journal,
            _ => {}
        }
    };
    // Nobody else may write it now.
    finish(resume(here.path())).expect(2).says("in use by another run");
    let interrupt = Command::new("kill").args(["-INT", &run.id().to_string()]).status();
    assert!(interrupt.unwrap().success());
    let output = run.wait_with_output().unwrap();
    let ran = Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    let ran = ran.expect(130).prints("not measured").says("tune --resume");
    assert!(ran.err.contains(&*journal.file_name().unwrap().to_string_lossy()), "{}", ran.err);
    assert!(!here.path().join("artifacts/ssas-llama2-f16-d64-g2").exists());
    let known = recorded(&journal).len();
    let mut rest = resume(here.path());
    rest.arg(format!("--budget={}", known + 2));
    finish(rest).expect(0).says("were in the journal");
    assert_eq!(recorded(&journal).len(), known + 2);
    // A larger budget takes a finished run further.
    let mut further = resume(here.path());
    further.arg(format!("--budget={}", known + 3));
    finish(further).expect(0);
    assert_eq!(recorded(&journal).len(), known + 3);
    // It is remembered.
    let again = finish(resume(here.path())).expect(0);
    assert!(again.out.contains(&format!("\"budget\": {}", known + 3)), "{}", again.out);
}

#[test]
fn a_journal_that_cannot_be_used_is_refused_and_left_alone() {
    let here = folder();
    finish(begin(here.path(), BUDGET)).expect(0);
    let journal = the_journal(here.path()).expect("a journal");
    let good = fs::read_to_string(&journal).unwrap();
    let refused = |text: &str, says: &str| {
        fs::write(&journal, text).unwrap();
        finish(resume(here.path())).expect(2).says(says);
        assert_eq!(fs::read_to_string(&journal).unwrap(), text, "it was changed");
    };
    let lines: Vec<&str> = good.lines().collect();
    let with = |at: usize, line: &str| {
        let mut lines = lines.clone();
        lines[at] = line;
        lines.join("\n") + "\n"
    };
    refused(
        &with(5, "{\"record\":\"candidate\",\"index\":\"five\"}"),
        ":6: not a line of a journal",
    );
    refused(&with(5, "nonsense"), ":6: not a line of a journal");
    refused(&with(0, ""), "nothing to resume");
    refused("", "nothing to resume");
    refused(
        &good.replace("\"nvrtc\":\"13.0\"", "\"nvrtc\":\"12.6\""),
        "the version of NVRTC was 12.6",
    );
    refused(
        &good.replacen("\"strategy\":\"portfolio\"", "\"strategy\":\"random\"", 1),
        "a proposal of the strategy was",
    );
    refused(&good.replacen("\"seed\":3", "\"seed\":4", 1), "a proposal of the strategy was");
    refused(&good.replacen("emulated:h200", "emulated:a100", 1), "the device was");
    fs::remove_file(&journal).unwrap();
    let mut missing = command(here.path(), ["tune", "--resume", "missing.jsonl"]);
    missing.arg("--output=artifacts");
    finish(missing).expect(2).says("missing.jsonl");
    let both = command(here.path(), ["tune", "--resume", "a.jsonl", "--seed", "1"]);
    finish(both).expect(2).says("cannot be used with");
    // A line that a crash has cut short is no fault.
    fs::write(&journal, &good[..good.len() - 40]).unwrap();
    finish(resume(here.path())).expect(0);
    assert!(matches!(journal::read(&journal), Ok(records) if !records.is_empty()));
    assert!(matches!(journal::read(&here.path().join("none")), Err(JournalError::Io(_))));
}

#[test]
fn a_candidate_that_the_machine_went_down_with_twice_is_left_alone() {
    let here = folder();
    finish(begin(here.path(), BUDGET)).expect(0);
    let journal = the_journal(here.path()).expect("a journal");
    let whole = recorded(&journal);
    // What is left where the machine went down while two candidates ran, for one not the first time.
    let mut lines = Vec::new();
    for record in journal::read(&journal).unwrap() {
        match record {
            Record::Candidate(candidate) if [4, 5].contains(&candidate.index) => {}
            Record::Winner(_) => {}
            Record::Started(mut started) if [4, 5].contains(&started.index) => {
                started.boot = Some("an earlier one".to_owned());
                lines.push(Record::Started(started.clone()));
                if started.index == 5 {
                    started.boot = Some("the one before".to_owned());
                    lines.push(Record::Started(started));
                }
            }
            record => lines.push(record),
        }
    }
    let lines: Vec<String> = lines.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
    fs::write(&journal, lines.join("\n") + "\n").unwrap();
    // The strategy is told of it too, so what it proposes after that is its own affair.
    let mut rest = resume(here.path());
    rest.arg("--budget=6");
    finish(rest).expect(0);
    let now = recorded(&journal);
    assert_eq!((now[&4].status, now[&4].time_us), (Status::Correct, whole[&4].time_us));
    assert_eq!((now[&5].status, now[&5].time_us), (Status::Runtime, None));
    let detail = now[&5].detail.as_deref().unwrap();
    assert_eq!(detail, "the machine went down 2 times while this was evaluated");
}
