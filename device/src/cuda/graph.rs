//! CUDA graphs: work that is captured once and queued by one call from then on.

use super::CudaDevice;
use crate::error::DeviceError;
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{self, CUstreamCaptureMode as CaptureMode};

/// A graph that a device keeps.
pub(super) struct Graph(CudaGraph);

// SAFETY: a graph may be used by any thread, but by one at a time, and by one that the context is
// bound to. It lies behind the device's lock, and launching it binds the context.
unsafe impl Send for Graph {}

impl Graph {
    /// A graph of what `queue` puts on the device's stream; `None` where the driver makes none.
    pub fn of(
        device: &CudaDevice,
        queue: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Option<Self> {
        capture(device, queue).map(Self)
    }

    /// Queues what was captured.
    pub fn replay(&self, device: &CudaDevice) -> Result<(), DeviceError> {
        self.0.launch().map_err(device.failed("the launch of recorded work"))
    }
}

/// A graph of what `queue` puts on the device's stream, where the driver makes one. All of it has to
/// have run before: loading code and growing tables may not happen during a capture. The caller holds
/// the device's lock, so that nothing else goes to the stream.
pub(super) fn capture(
    device: &CudaDevice,
    queue: impl FnOnce() -> Result<(), DeviceError>,
) -> Option<CudaGraph> {
    // Of this thread alone: others may be loading code.
    device.stream.begin_capture(CaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).ok()?;
    let queued = queue();
    // Whatever became of the work: the stream would go on recording instead of running.
    let graph = device.stream.end_capture(sys::CUgraphInstantiate_flags(0));
    queued.ok().and(graph.ok().flatten())
}
