//! A tuning run on a device that measures: the way of a run on a GPU, on a stand-in for one. It
//! executes on the emulator, and its times are the cost model's with noise and a drift on them, which
//! it calls measured. So what the tuner makes of noisy times can be held against the true ones.
//! Two of them are two GPUs of one kind, of this machine or of a worker elsewhere.
//!
//! The test is its own worker, so it has no harness.

mod nats;
mod own_worker;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_device::{
    Basis, Buffer, Compiler, Conditions, Device, DeviceError, DeviceProperties, EmulatedOptions,
    Image, Launch, LaunchReport, ModuleId, Product, Settings, TimeOptions, Timing, open_emulated,
};
use spanforge_tuner::cluster::{Cluster, PATIENCE, Told, WorkerRequest, work as join};
use spanforge_tuner::evaluate::{predict, serve};
use spanforge_tuner::journal::Kept;
use spanforge_tuner::measure::{BATCH, BEHIND, MOST, ROUNDS};
use spanforge_tuner::record::{Candidate, Finalist, Status, Study};
use spanforge_tuner::tune::From;
use spanforge_tuner::{CandidateLimits, Means, Request, tune};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const DEVICE: &str = "emulated:h200";
/// Another one of the same kind.
const SECOND: &str = "emulated:h200,mma=ampere";
const BUDGET: usize = 24;
const WINDOW: usize = 6;

/// Times lie up to so much above the true one, most of them little.
const NOISE: f64 = 0.03;
/// Over some hundred samples the device becomes slower by so much, and faster again.
const DRIFT: f64 = 0.05;

/// Names a file that the second one makes when it measures, and that the first one waits for, so that
/// both take part however slow compiling is.
const MET: &str = "SPANFORGE_TEST_MET";

struct Noisy {
    inner: Box<dyn Device>,
    /// Tells one from the other.
    temperature_c: u32,
    properties: DeviceProperties,
    /// True times by module, and the samples so far.
    state: Mutex<(HashMap<ModuleId, f64>, u64, ChaCha8Rng)>,
}

fn open(name: &str) -> Result<Box<dyn Device>, DeviceError> {
    let options = EmulatedOptions { checks: false, ..EmulatedOptions::default() };
    let inner: Box<dyn Device> = Box::new(open_emulated(name, options)?);
    let properties = DeviceProperties {
        basis: Basis::Measured,
        name: "a stand-in for a GPU".into(),
        ..inner.properties().clone()
    };
    let state = Mutex::new((HashMap::new(), 0, ChaCha8Rng::seed_from_u64(7)));
    let temperature_c = if name == SECOND { 60 } else { 50 };
    Ok(Box::new(Noisy { inner, temperature_c, properties, state }))
}

impl Device for Noisy {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn allocate(&self, name: &str, bytes: usize) -> Result<Buffer, DeviceError> {
        self.inner.allocate(name, bytes)
    }

    fn free(&self, buffer: Buffer) -> Result<(), DeviceError> {
        self.inner.free(buffer)
    }

    fn upload(&self, buffer: Buffer, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        self.inner.upload(buffer, offset, data)
    }

    fn download(&self, buffer: Buffer, offset: usize, data: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.download(buffer, offset, data)
    }

    fn load(&self, image: &Image) -> Result<ModuleId, DeviceError> {
        self.inner.load(image)
    }

    fn unload(&self, module: ModuleId) -> Result<(), DeviceError> {
        self.inner.unload(module)
    }

    fn launch(&self, launch: &Launch) -> Result<LaunchReport, DeviceError> {
        self.inner.launch(launch)
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        self.inner.multiply(product)
    }

    fn time(&self, launches: &[Launch], options: &TimeOptions) -> Result<Timing, DeviceError> {
        if let Some(met) = std::env::var_os(MET).map(PathBuf::from) {
            match self.temperature_c {
                60 => std::fs::write(met, []).expect("a folder of the test's"),
                _ => nats::wait("the second one measures", || met.exists()),
            }
        }
        let (known, taken, rng) = &mut *self.state.lock().expect("one thread");
        let module = launches[0].module;
        let us = match known.get(&module) {
            Some(us) => *us,
            None => {
                let us = self.inner.time(launches, options)?.median_us();
                *known.entry(module).or_insert(us)
            }
        };
        let sample = |_| {
            *taken += 1;
            let drift = DRIFT * (*taken as f64 / 300.0).sin().abs();
            us * (1.0 + drift + NOISE * rng.random_range(0.0..1.0_f64).powi(4))
        };
        let samples_us = (0..options.samples).map(sample).collect();
        let temperature_c = Some(self.temperature_c);
        let conditions = Some(Conditions { temperature_c, ..Conditions::default() });
        Ok(Timing { basis: Basis::Measured, samples_us, predictions: Vec::new(), conditions })
    }
}

fn main() {
    own_worker::main(
        || {
            noisy_times_lead_to_a_winner_that_is_one();
            a_worker_elsewhere_measures_the_finalists_of_a_study_in_turn();
        },
        work,
    );
}

fn request(study: Study, here: &Path) -> Request {
    Request {
        from: From::Study(Box::new(study), here.to_owned()),
        budget: Some(BUDGET),
        time_limit: None,
        limits: CandidateLimits::default(),
        workers: 2,
        output: here.join("artifacts"),
    }
}

fn work() {
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    serve(own_worker::requests(), &mut std::io::stdout(), &compiler, &open, &|_, source| source)
        .expect("somebody reads the replies");
}

fn noisy_times_lead_to_a_winner_that_is_one() {
    let here = tempfile::tempdir().expect("a folder");
    let study = Study { also: vec![SECOND.to_owned()], ..own_worker::study(1, 1, WINDOW) };
    let workload = study.workload.clone();
    let request = request(study, here.path());
    let met = here.path().join("met");
    let worker = || {
        let mut command = own_worker::worker();
        command.env(MET, &met);
        command
    };
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    let means = Means {
        compiler: &compiler,
        open: &open,
        cluster: None,
        worker: &worker,
        stop: &AtomicBool::new(false),
        progress: &|_| {},
    };
    let outcome = tune(&request, &means).expect("the run completes");
    assert_eq!((outcome.winner.basis, outcome.candidates.len()), (Basis::Measured, BUDGET));

    // Each was compiled by one process and measured by another, and as often as it deserved.
    let kept = Kept::read(&outcome.journal).expect("a journal");
    let samples = |c: &Candidate| c.samples_us.len();
    for candidate in kept.candidates.values() {
        assert_eq!(candidate.status, Status::Correct, "{:?}", candidate.detail);
        assert!(candidate.compile_s > 0.0 && candidate.predictions.is_empty());
        assert!((BATCH as usize..=MOST).contains(&samples(candidate)), "{}", samples(candidate));
    }
    // Both GPUs measured, and each said so.
    let measured_on = |device: &str, temperature| {
        let here = kept.candidates.values().filter(|c| c.device.as_deref() == Some(device));
        let temperatures = here.map(|c| c.conditions.as_ref().and_then(|c| c.temperature_c));
        let all: Vec<_> = temperatures.collect();
        assert!(all.iter().all(|one| *one == Some(temperature)), "{device}: {all:?}");
        all.len()
    };
    let (first, second) = (measured_on(DEVICE, 50), measured_on(SECOND, 60));
    assert!(first > 0 && second > 0 && first + second == BUDGET, "{first} and {second}");
    let by_time =
        |a: &&Candidate, b: &&Candidate| a.time_us.partial_cmp(&b.time_us).expect("times");
    let best = kept.candidates.values().min_by(by_time).expect("candidates");
    // What is clearly behind those that were known when it was begun is dropped at once.
    let (mut dropped, mut kept_on) = (0, 0);
    for candidate in kept.candidates.values() {
        let known = kept.candidates.values().filter(|c| c.index + WINDOW <= candidate.index);
        let best = known.filter_map(|c| c.time_us).fold(f64::INFINITY, f64::min);
        if candidate.time_us > Some(1.1 * BEHIND * best) {
            assert_eq!(samples(candidate), BATCH as usize, "{}", candidate.id);
            dropped += 1;
        } else if samples(candidate) > BATCH as usize {
            kept_on += 1;
        }
    }
    assert!(dropped > 0 && kept_on > 0, "{dropped} dropped, {kept_on} not");

    // The finalists took turns, the default configuration among them, and decided.
    let again = &kept.remeasured.finalists;
    let took_part = |index| kept.remeasured.samples_us(index).is_some();
    assert!(took_part(0) && took_part(best.index) && again.len() > 1);
    assert_in_turn_on_the_first(again);
    let judged = outcome.candidates.iter().find(|c| c.id == outcome.winner.id).expect("it");
    assert_eq!(judged.conditions.as_ref().and_then(|c| c.temperature_c), Some(50));
    let winner = kept.candidates.values().find(|c| c.id == outcome.winner.id).expect("the winner");
    assert!(took_part(winner.index));
    assert_eq!(kept.winner.as_ref(), Some(&outcome.winner));

    // Without noise nothing would have been faster by more than what cannot be told apart.
    let device = open_emulated(DEVICE, EmulatedOptions::default()).expect("a device");
    let truth = |c: &Candidate| -> f64 {
        let predicted = predict(&device, &compiler, &workload, c.spec, 1).expect("a prediction");
        predicted.predictions.iter().map(|p| p.estimate.time_us).sum()
    };
    let fastest = kept.candidates.values().map(truth).fold(f64::INFINITY, f64::min);
    let lost = truth(winner) / fastest - 1.0;
    assert!(lost < 0.02, "the winner is {:.1} % slower than the best", 100.0 * lost);

    // What is recorded is not measured again: resumed with workers that cannot start, it ends alike.
    let resumed = Request { from: From::Journal(outcome.journal.clone()), budget: None, ..request };
    let means = Means { worker: &|| Command::new("/nonexistent"), ..means };
    let ended = tune(&resumed, &means).expect("everything is in the journal");
    assert_eq!(ended.winner, outcome.winner);
    println!(
        "{BUDGET} candidates measured with noise, {} of them once more in turn; the winner is {:.2} % \
         slower than the best",
        again.len(),
        100.0 * lost
    );
}

/// Finalists were timed by one GPU, whichever of the two had measured them before.
fn assert_in_turn_on_the_first(finalists: &[Finalist]) {
    for Finalist { samples_us, conditions, .. } in finalists {
        assert_eq!(samples_us.len(), ROUNDS * BATCH as usize);
        assert_eq!(conditions.as_ref().and_then(|c| c.temperature_c), Some(50));
    }
}

fn a_worker_elsewhere_measures_the_finalists_of_a_study_in_turn() {
    let here = tempfile::tempdir().expect("a folder");
    let mut servers = nats::Servers::start(3);
    let addresses = servers.addresses();
    let connect = || Cluster::connect(&addresses, PATIENCE).expect("servers");
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    let stop = AtomicBool::new(false);
    let again = AtomicUsize::new(0);
    let told = |told: Told<'_>| {
        if let Told::Again(count) = told {
            again.fetch_add(count, Ordering::Relaxed);
        }
    };
    let cluster = connect();
    let request = request(own_worker::study(3, 1, WINDOW), here.path());
    let means = Means {
        compiler: &compiler,
        open: &open,
        cluster: Some(&cluster),
        worker: &own_worker::worker,
        stop: &AtomicBool::new(false),
        progress: &|_| {},
    };
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let cluster = connect();
            let request = WorkerRequest {
                device: Some(DEVICE.to_owned()),
                workers: 2,
                run: None,
                idle: None,
                compiler: &compiler,
                open: &open,
                process: &own_worker::worker,
                stop: &stop,
                progress: &told,
            };
            join(&cluster, &request).expect("the worker works")
        });
        let outcome = tune(&request, &means);
        stop.store(true, Ordering::Relaxed);
        outcome.expect("the run completes")
    });
    let kept = Kept::read(&outcome.journal).expect("a journal");
    let finalists = &kept.remeasured.finalists;
    assert!(finalists.len() > 1 && finalists.iter().any(|finalist| finalist.index == 0));
    assert_eq!(again.load(Ordering::Relaxed), finalists.len());
    assert_in_turn_on_the_first(finalists);

    // A coordinator that has lost its journal finds all of it on the servers that are left, the
    // finalists' times too.
    servers.kill(0);
    std::fs::remove_file(&outcome.journal).expect("a journal");
    let resumed = Request { from: From::Journal(outcome.journal.clone()), budget: None, ..request };
    let ended = tune(&resumed, &means).expect("everything is on the servers");
    assert_eq!(ended.winner, outcome.winner);
    assert_eq!(Kept::read(&ended.journal).expect("a journal").remeasured, kept.remeasured);
    println!("{} finalists measured once more by a worker of a cluster", finalists.len());
}
