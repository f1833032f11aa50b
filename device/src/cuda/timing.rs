//! Timing a sequence of launches. A batch of samples is warmed up, taken with events, and watched; one
//! that was throttled is taken again.
//!
//! The sequence is captured into a CUDA graph once, and each sample is one launch of that graph, so
//! that the time which the host takes to queue kernels is not part of any sample: between two short
//! kernels it would be most of it. Where the driver refuses to make a graph of launches that it has
//! run, they are queued one by one for each sample, and the GPU may wait for the host between them:
//! that is slower, but it is what a program without graphs would see.

use super::graph::capture;
use super::nvml::Reading;
use super::{CudaDevice, State};
use crate::conditions::Conditions;
use crate::device::{Basis, Launch, TimeOptions, Timing};
use crate::error::DeviceError;
use cudarc::driver::sys;
use cudarc::driver::{CudaEvent, CudaGraph, DriverError};
use std::thread;
use std::time::Duration;

/// Rounds before the samples of a batch, which raise the clocks.
const WARM_UP_ROUNDS: u32 = 3;
/// How often a batch that was throttled is taken again, before it is kept as it is.
const REPEATS: u32 = 3;
/// Time for a GPU to recover before that.
const REST: Duration = Duration::from_millis(50);
/// How long a batch takes at least where its energy is told. An A100 or H100 looks at its power for 25
/// of 100 ms (arXiv 2312.02741), so that what a shorter one takes is chance.
const ENERGY_SPAN: Duration = Duration::from_millis(500);

/// Times the launches; see [`Device::time`](crate::Device::time). The caller holds the device's lock, so that nothing else
/// goes to the stream while it is captured.
pub(super) fn time(
    device: &CudaDevice,
    state: &mut State,
    launches: &[Launch],
    options: &TimeOptions,
) -> Result<Timing, DeviceError> {
    let mut rounds = Rounds::new(device, state, launches, options.cold_l2)?;
    undisturbed(&mut |attempt| {
        if attempt > 0 {
            thread::sleep(REST);
        }
        rounds.batch(options.samples)
    })
}

/// Samples in microseconds, and what the GPU was like meanwhile.
#[derive(Clone, Debug, PartialEq)]
struct Batch {
    samples_us: Vec<f64>,
    seen: Option<Conditions>,
}

impl Batch {
    fn is_throttled(&self) -> bool {
        let reasons = self.seen.as_ref().and_then(|seen| seen.throttled.as_ref());
        reasons.is_some_and(|reasons| !reasons.is_empty())
    }
}

/// The first batch that was not throttled, or the last one that may be tried. `take` is given how many
/// were taken before.
fn undisturbed<E>(take: &mut dyn FnMut(u32) -> Result<Batch, E>) -> Result<Timing, E> {
    let mut batch = take(0)?;
    let mut repeated_samples = 0;
    for attempt in 1..=REPEATS {
        if !batch.is_throttled() {
            break;
        }
        repeated_samples += batch.samples_us.len() as u64;
        batch = take(attempt)?;
    }
    if repeated_samples > 0 {
        batch.seen.get_or_insert_default().repeated_samples = repeated_samples;
    }
    Ok(Timing {
        basis: Basis::Measured,
        samples_us: batch.samples_us,
        predictions: Vec::new(),
        conditions: batch.seen,
    })
}

/// What two readings say of the `rounds` between them; `None` where they say nothing.
fn summary(before: Reading, after: Reading, rounds: u32) -> Option<Conditions> {
    let joules_per_sample = joules(&before, &after).map(|joules| joules / f64::from(rounds));
    let seen = before.conditions.merge(after.conditions, 0.5);
    let seen = Conditions { joules_per_sample, ..seen };
    (seen != Conditions::default()).then_some(seen)
}

/// Energy between two readings in joules, where they are far enough apart.
fn joules(before: &Reading, after: &Reading) -> Option<f64> {
    if after.at.duration_since(before.at) < ENERGY_SPAN {
        return None;
    }
    // The counter begins anew when the driver is loaded.
    let millijoules = after.millijoules?.checked_sub(before.millijoules?)?;
    Some(millijoules as f64 / 1e3)
}

/// A sequence that is run again and again.
struct Rounds<'a> {
    device: &'a CudaDevice,
    state: &'a mut State,
    launches: &'a [Launch],
    /// The launches; `None` where the driver makes no graph of them.
    graph: Option<CudaGraph>,
    cold_l2: bool,
    start: CudaEvent,
    end: CudaEvent,
}

impl<'a> Rounds<'a> {
    fn new(
        device: &'a CudaDevice,
        state: &'a mut State,
        launches: &'a [Launch],
        cold_l2: bool,
    ) -> Result<Self, DeviceError> {
        if cold_l2 && state.flush.is_none() {
            let l2_bytes = usize::try_from(device.properties.l2_bytes).unwrap_or(0);
            state.flush = Some(device.reserve("L2 flush", l2_bytes.saturating_mul(2))?);
        }
        let event = || device.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let (start, end) = (event().map_err(failed(device))?, event().map_err(failed(device))?);
        let mut rounds = Self { device, state, launches, graph: None, cold_l2, start, end };
        // Once without a graph: this loads code and grows tables, which may not happen during a
        // capture, and what is wrong with a launch is said of that launch.
        rounds.queue()?;
        device.stream.synchronize().map_err(failed(device))?;
        rounds.graph = capture(device, || rounds.queue());
        Ok(rounds)
    }

    /// Queues the sequence.
    fn queue(&mut self) -> Result<(), DeviceError> {
        match &self.graph {
            Some(graph) => graph.launch().map_err(failed(self.device)),
            None => self
                .launches
                .iter()
                .try_for_each(|launch| self.device.queue_launch(self.state, launch)),
        }
    }

    /// Takes the samples of one batch. What the GPU is like is asked in a round before and in one
    /// after them, so that no sample has to do with the asking.
    fn batch(&mut self, samples: u32) -> Result<Batch, DeviceError> {
        for _ in 0..WARM_UP_ROUNDS {
            self.round(|| ())?;
        }
        let before = self.reading()?;
        let samples_us: Result<Vec<f64>, _> =
            (0..samples).map(|_| Ok(self.round(|| ())?.0)).collect();
        let samples_us = samples_us?;
        let readings = before.zip(self.reading()?);
        let seen =
            readings.and_then(|(before, after)| summary(before, after, samples.saturating_add(1)));
        Ok(Batch { samples_us, seen })
    }

    /// What the GPU is like at work, where there is anybody to ask.
    fn reading(&mut self) -> Result<Option<Reading>, DeviceError> {
        match self.device.monitor() {
            Some(monitor) => Ok(Some(self.round(|| monitor.read())?.1)),
            None => Ok(None),
        }
    }

    /// Runs the sequence once, and meanwhile what is given; returns its time in microseconds. What
    /// comes before the first event, the flush of the L2 or the sequence itself, also gives the host
    /// time to queue the rest, so that the GPU does not wait for it.
    fn round<T>(&mut self, meanwhile: impl FnOnce() -> T) -> Result<(f64, T), DeviceError> {
        let device = self.device;
        match &mut self.state.flush {
            Some(flush) if self.cold_l2 => {
                device.stream.memset_zeros(flush).map_err(failed(device))?;
            }
            _ => self.queue()?,
        }
        self.start.record(&device.stream).map_err(failed(device))?;
        self.queue()?;
        self.end.record(&device.stream).map_err(failed(device))?;
        let result = meanwhile();
        let milliseconds = self.start.elapsed_ms(&self.end).map_err(failed(device))?;
        Ok((f64::from(milliseconds) * 1e3, result))
    }
}

fn failed(device: &CudaDevice) -> impl Fn(DriverError) -> DeviceError {
    device.failed("the timing, or a kernel in it,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::Throttle;
    use std::time::Instant;

    /// A batch of two samples with these reasons.
    fn batch(us: f64, throttled: &[Throttle]) -> Batch {
        let throttled = Some(throttled.iter().copied().collect());
        let seen = Conditions { sm_mhz: Some([1500; 2]), throttled, ..Conditions::default() };
        Batch { samples_us: vec![us; 2], seen: Some(seen) }
    }

    /// What is kept of a GPU that is throttled for so many batches, and how many were taken.
    fn kept(throttled_batches: u32) -> (Timing, u32) {
        let mut taken = 0;
        let timing = undisturbed(&mut |attempt| {
            assert_eq!(attempt, taken);
            taken += 1;
            let reasons: &[Throttle] =
                if attempt < throttled_batches { &[Throttle::PowerCap] } else { &[] };
            Ok::<_, DeviceError>(batch(f64::from(attempt), reasons))
        });
        (timing.expect("no errors"), taken)
    }

    #[test]
    fn a_gpu_that_is_not_throttled_is_asked_once() {
        let (timing, taken) = kept(0);
        assert_eq!((timing.samples_us, taken), (vec![0.0; 2], 1));
        assert_eq!(timing.conditions, batch(0.0, &[]).seen);
    }

    #[test]
    fn throttled_samples_are_repeated_and_counted() {
        let (timing, taken) = kept(2);
        assert_eq!((timing.samples_us, taken), (vec![2.0; 2], 3));
        let conditions = timing.conditions.expect("they were seen");
        assert_eq!(conditions.throttled, Some([].into()));
        assert_eq!(conditions.repeated_samples, 4);
    }

    #[test]
    fn a_gpu_that_stays_throttled_is_kept_and_says_so() {
        let (timing, taken) = kept(u32::MAX);
        assert_eq!((timing.samples_us, taken), (vec![3.0; 2], 1 + REPEATS));
        let conditions = timing.conditions.expect("they were seen");
        assert_eq!(conditions.throttled, Some([Throttle::PowerCap].into()));
        assert_eq!(conditions.repeated_samples, 6);
    }

    #[test]
    fn a_monitor_that_says_nothing_repeats_nothing_and_claims_nothing() {
        let silent = Batch { samples_us: vec![1.0], seen: None };
        let timing = undisturbed(&mut |_| Ok::<_, DeviceError>(silent.clone()));
        assert_eq!(timing.expect("no errors").conditions, None);
        let at = Instant::now();
        let reading = Reading { conditions: Conditions::default(), millijoules: None, at };
        assert_eq!(summary(reading.clone(), reading, 3), None);
    }

    #[test]
    fn a_monitor_that_falls_silent_leaves_the_count() {
        let mut batches = vec![
            Batch { samples_us: vec![1.0], seen: None },
            batch(2.0, &[Throttle::HardwareSlowdown]),
        ];
        let timing = undisturbed(&mut |_| Ok::<_, DeviceError>(batches.pop().expect("two")));
        let timing = timing.expect("no errors");
        assert_eq!(timing.samples_us, [1.0]);
        let expected = Conditions { repeated_samples: 2, ..Conditions::default() };
        assert_eq!(timing.conditions, Some(expected));
    }

    #[test]
    fn a_batch_that_fails_is_an_error_at_once() {
        let mut taken = 0;
        let result = undisturbed(&mut |attempt| {
            taken += 1;
            if attempt == 1 { Err("lost") } else { Ok(batch(1.0, &[Throttle::PowerBrake])) }
        });
        assert_eq!((result, taken), (Err("lost"), 2));
    }

    #[test]
    fn two_readings_make_a_range_and_a_long_batch_an_energy() {
        let at = Instant::now();
        let reading = |sm_mhz: u32, celsius, millijoules, ms| Reading {
            conditions: Conditions {
                sm_mhz: Some([sm_mhz; 2]),
                temperature_c: Some(celsius),
                ..Conditions::default()
            },
            millijoules: Some(millijoules),
            at: at + Duration::from_millis(ms),
        };
        let seen = summary(reading(1980, 40, 5_000, 0), reading(1755, 44, 405_000, 600), 20);
        let expected = Conditions {
            sm_mhz: Some([1755, 1980]),
            temperature_c: Some(44),
            joules_per_sample: Some(20.0),
            ..Conditions::default()
        };
        assert_eq!(seen, Some(expected));
        // Too short for the counter, and a counter that began anew.
        for (millijoules, ms) in [(405_000, 400), (10, 600)] {
            let seen = summary(reading(1980, 40, 5_000, 0), reading(1755, 44, millijoules, ms), 20);
            assert_eq!(seen.and_then(|seen| seen.joules_per_sample), None);
        }
    }
}
