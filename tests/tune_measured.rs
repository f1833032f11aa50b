//! A tuning run on a device that measures: the way of a run on a GPU, on a stand-in for one. It
//! executes on the emulator, and its times are the cost model's with noise and a drift on them, which
//! it calls measured. So what the tuner makes of noisy times can be held against the true ones.
//!
//! The test is its own worker, so it has no harness.

mod own_worker;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_device::{
    Basis, Buffer, Compiler, Device, DeviceError, DeviceProperties, EmulatedOptions, Image, Launch,
    LaunchReport, ModuleId, Settings, TimeOptions, Timing, open_emulated,
};
use spanforge_tuner::evaluate::{predict, serve};
use spanforge_tuner::journal::Kept;
use spanforge_tuner::measure::{BATCH, BEHIND, MOST, ROUNDS};
use spanforge_tuner::record::{Candidate, Status};
use spanforge_tuner::tune::From;
use spanforge_tuner::{CandidateLimits, Means, Request, tune};
use std::collections::HashMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

const DEVICE: &str = "emulated:h200";
const BUDGET: usize = 24;
const WINDOW: usize = 6;

/// Times lie up to so much above the true one, most of them little.
const NOISE: f64 = 0.03;
/// Over some hundred samples the device becomes slower by so much, and faster again.
const DRIFT: f64 = 0.05;

struct Noisy {
    inner: Box<dyn Device>,
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
    Ok(Box::new(Noisy { inner, properties, state }))
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

    fn time(&self, launches: &[Launch], options: &TimeOptions) -> Result<Timing, DeviceError> {
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
        Ok(Timing { basis: Basis::Measured, samples_us, predictions: Vec::new(), conditions: None })
    }
}

fn main() {
    own_worker::main(noisy_times_lead_to_a_winner_that_is_one, work);
}

fn work() {
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    serve(own_worker::requests(), &mut std::io::stdout(), &compiler, &open, &|_, source| source)
        .expect("somebody reads the replies");
}

fn noisy_times_lead_to_a_winner_that_is_one() {
    let here = tempfile::tempdir().expect("a folder");
    let study = own_worker::study(1, 1, WINDOW);
    let workload = study.workload.clone();
    let request = Request {
        from: From::Study(Box::new(study), here.path().to_owned()),
        budget: Some(BUDGET),
        time_limit: None,
        limits: CandidateLimits::default(),
        workers: 2,
        output: here.path().join("artifacts"),
    };
    let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
    let means = Means {
        compiler: &compiler,
        open: &open,
        cluster: None,
        worker: &own_worker::worker,
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
    assert!(again.iter().all(|finalist| finalist.samples_us.len() == ROUNDS * BATCH as usize));
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
