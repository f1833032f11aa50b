//! The check of many problems, one device per worker.

use crate::check::{CaseReport, VerifyError, check_seeds};
use spanforge_device::{Device, Image};
use spanforge_kernels::{Decoder, KernelSpec};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Checks the problems of `seeds` with a worker for each of `devices` until one finds a fault, and
/// calls `begun` at the start of each problem. Seeds are handed out in order and those below a faulty
/// one are always checked, so the lowest faulty seed is the same whatever the number of workers.
///
/// # Errors
/// The first error of a check that could not be carried out; what is found is in the reports.
pub fn check_with_workers(
    devices: &[Box<dyn Device>],
    image: &Image,
    spec: KernelSpec,
    seeds: Range<u64>,
    begun: &(dyn Fn() + Sync),
) -> Result<Vec<CaseReport>, VerifyError> {
    // As a distance from the first seed, so that workers asking for one more do not wrap round.
    let next = AtomicU64::new(0);
    let count = seeds.end.saturating_sub(seeds.start);
    let work = |device: &dyn Device| -> Result<Vec<CaseReport>, VerifyError> {
        let decoder = Decoder::load(device, image, spec)?;
        let handed_out = std::iter::from_fn(|| {
            let number = next.fetch_add(1, Ordering::Relaxed);
            (number < count).then(|| {
                begun();
                seeds.start + number
            })
        });
        let reports = check_seeds(&decoder, handed_out)?;
        if reports.iter().any(|report| report.fault.is_some()) {
            next.store(count, Ordering::Relaxed);
        }
        Ok(reports)
    };
    let found: Vec<Result<Vec<CaseReport>, VerifyError>> = std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> =
            devices.iter().map(|device| scope.spawn(move || work(device.as_ref()))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut reports = Vec::new();
    for share in found {
        reports.extend(share?);
    }
    Ok(reports)
}
