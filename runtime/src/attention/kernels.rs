//! The loaded kernels of an attention module, and which of them runs a step.

use super::AttentionError;
use spanforge_device::{Device, Image};
use spanforge_kernels::configuration::KernelSpec;
use spanforge_kernels::{Bucket, Launcher};
use spanforge_spans::SpanBatch;
use std::sync::Arc;

/// The kernels that steps choose from.
pub(super) struct Kernels {
    device: Arc<dyn Device>,
    /// At least one.
    pub(super) launchers: Vec<Launcher>,
    /// The kernel of each bucket, by its place; none where one kernel serves all.
    pub(super) buckets: Vec<(Bucket, usize)>,
    /// The place of the one in use.
    current: usize,
}

impl Kernels {
    pub(super) fn new(device: &Arc<dyn Device>) -> Self {
        Self { device: Arc::clone(device), launchers: Vec::new(), buckets: Vec::new(), current: 0 }
    }

    pub(super) fn current(&self) -> &Launcher {
        &self.launchers[self.current]
    }

    /// Loads one more, and says its place.
    pub(super) fn load(
        &mut self,
        image: &Image,
        spec: KernelSpec,
    ) -> Result<usize, AttentionError> {
        if let Some(place) = self.launchers.iter().position(|l| *l.spec() == spec) {
            return Ok(place);
        }
        let module = self.device.load(image)?;
        self.launchers.push(Launcher::new(module, spec, self.device.properties()));
        Ok(self.launchers.len() - 1)
    }

    /// Takes the kernel for a batch into use, and says whether another one was.
    pub(super) fn choose(&mut self, spans: &SpanBatch, row_request: &[i32]) -> bool {
        let known = self.buckets.iter().map(|(bucket, _)| *bucket);
        let nearest = Bucket::of_spans(spans, row_request).nearest(known);
        let chosen = self.buckets.iter().find(|(bucket, _)| Some(*bucket) == nearest);
        let place = chosen.map_or(0, |(_, place)| *place);
        std::mem::replace(&mut self.current, place) != place
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        for launcher in &self.launchers {
            // A device that refuses has lost the module already.
            let _ = self.device.unload(launcher.module());
        }
    }
}
