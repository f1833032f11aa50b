//! What bad candidates do to a tuning run: each costs itself alone, and is recorded as what it is.
//!
//! The test is its own worker, one that alters sources and misbehaves for some candidates; the run
//! around it is that of the command. So it has no harness.

mod own_worker;

use spanforge_device::{Compiler, Settings};
use spanforge_tuner::evaluate::serve;
use spanforge_tuner::record::{Record, Status};
use spanforge_tuner::tune::From;
use spanforge_tuner::{CandidateLimits, Means, Request, journal, tune};
use std::cell::Cell;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What is planted in the candidates after the default, how it is recorded, and what the record says.
const PLANTED: [(Plant, Status, &str); 9] = [
    (Plant::Syntax, Status::Compile, "planted"),
    (Plant::CompilerHangs, Status::Timeout, "compiling: took longer than 4 s"),
    (Plant::CompilerCrashes, Status::Compile, "compiling: its process: killed by signal 11"),
    (Plant::WrongNumbers, Status::Correctness, "seed 0"),
    // The emulated device finds out by itself, well before the limit.
    (Plant::KernelSpins, Status::Correctness, "deadlock"),
    (Plant::Segfault, Status::Runtime, "checking: its process: killed by signal 11"),
    (Plant::Hang, Status::Timeout, "checking: took longer than 20 s"),
    (Plant::Memory, Status::Runtime, "memory allocation of"),
    (Plant::Exit, Status::Runtime, "checking: its process: ended with exit code 0"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Plant {
    Syntax,
    CompilerHangs,
    CompilerCrashes,
    WrongNumbers,
    KernelSpins,
    Segfault,
    Hang,
    Memory,
    Exit,
}

fn planted(index: usize) -> Option<Plant> {
    index.checked_sub(1).and_then(|index| PLANTED.get(index)).map(|planted| planted.0)
}

fn main() {
    own_worker::main(bad_candidates_cost_themselves_alone, work);
}

fn bad_candidates_cost_themselves_alone() {
    let here = tempfile::tempdir().expect("a folder");
    let study = own_worker::study(0, 2, 8);
    let request = Request {
        from: From::Study(Box::new(study), here.path().to_owned()),
        budget: Some(PLANTED.len() + 3),
        time_limit: None,
        limits: CandidateLimits {
            compile: Duration::from_secs(4),
            run: Duration::from_secs(20),
            memory_bytes: 4 << 30,
        },
        workers: 2,
        output: here.path().join("artifacts"),
    };
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    let means = Means {
        compiler: &compiler,
        open: &spanforge_device::open,
        cluster: None,
        worker: &own_worker::worker,
        stop: &AtomicBool::new(false),
        progress: &|_| {},
    };
    let outcome = tune(&request, &means).expect("the run completes");
    assert!(outcome.artifact.join("manifest.json").is_file());
    let recorded = journal::read(&outcome.journal).expect("a journal");
    let find = |index: usize| {
        recorded.iter().find_map(|record| match record {
            Record::Candidate(candidate) if candidate.index == index => Some(candidate),
            _ => None,
        })
    };
    for index in 0..PLANTED.len() + 3 {
        let candidate = find(index).unwrap_or_else(|| panic!("candidate {index} is not recorded"));
        let (plant, status, says) = match planted(index) {
            Some(_) => PLANTED[index - 1],
            None => {
                assert_eq!(candidate.status, Status::Correct, "{index}: {:?}", candidate.detail);
                continue;
            }
        };
        let detail = candidate.detail.as_deref().unwrap_or_default();
        assert_eq!(candidate.status, status, "{plant:?}: {detail}");
        assert!(detail.contains(says), "{plant:?}: {detail}");
        assert_eq!(candidate.time_us, None, "{plant:?}");
    }
    // What is recorded is not run again: resumed with workers that cannot even start, it ends alike.
    let resumed = Request { from: From::Journal(outcome.journal.clone()), budget: None, ..request };
    let means = Means { worker: &|| Command::new("/nonexistent"), ..means };
    let again = tune(&resumed, &means).expect("everything is in the journal");
    assert_eq!((again.candidates, again.winner), (outcome.candidates, outcome.winner));
    println!("{} bad candidates were recorded as what they are, and not run again", PLANTED.len());
}

/// A worker that misbehaves.
fn work() {
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    let present = Cell::new(None);
    let alter = |index: usize, source: String| {
        present.set(planted(index));
        match present.get() {
            Some(Plant::Syntax) => source + "\n#error planted\n",
            Some(Plant::CompilerHangs) => hang(),
            Some(Plant::CompilerCrashes) => crash(),
            Some(Plant::WrongNumbers) => replaced(
                &source,
                "key_scale<C>(a, piece.head) * LOG2_E",
                "key_scale<C>(a, piece.head)",
            ),
            Some(Plant::KernelSpins) => replaced(
                &source,
                "const int tid =",
                "for (;;) asm volatile(\"\");\nconst int tid =",
            ),
            _ => source,
        }
    };
    let mut replies = Saboteur { plant: &present, out: std::io::stdout() };
    serve(own_worker::requests(), &mut replies, &compiler, &spanforge_device::open, &alter)
        .expect("somebody reads the replies");
}

fn replaced(source: &str, from: &str, to: &str) -> String {
    assert!(source.contains(from), "no {from:?} in the source");
    source.replace(from, to)
}

/// Misbehaves when the check of a planted candidate begins.
struct Saboteur<'a> {
    plant: &'a Cell<Option<Plant>>,
    out: std::io::Stdout,
}

impl Write for Saboteur<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.out.flush()?;
        if String::from_utf8_lossy(bytes).contains("checking") {
            match self.plant.get() {
                Some(Plant::Segfault) => crash(),
                Some(Plant::Hang) => hang(),
                Some(Plant::Memory) => {
                    let mut held: Vec<Vec<u8>> = Vec::new();
                    loop {
                        held.push(Vec::with_capacity(1 << 28));
                    }
                }
                Some(Plant::Exit) => std::process::exit(0),
                _ => {}
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

fn hang() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn crash() -> ! {
    // SAFETY: none; this is to end the process by a signal.
    unsafe { std::ptr::without_provenance_mut::<u32>(8).write_volatile(1) };
    unreachable!("nothing is mapped there")
}
