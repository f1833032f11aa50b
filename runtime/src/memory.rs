//! Device memory with an owner: freed when it is dropped, and mirrored on the host where only what
//! changed is worth copying.

use spanforge_device::{Buffer, Device, DeviceError};
use std::sync::Arc;

/// An allocation, freed on drop.
pub struct DeviceMemory {
    device: Arc<dyn Device>,
    buffer: Buffer,
}

impl DeviceMemory {
    /// Allocates `bytes` (4 where that is fewer, so that empty tensors have an address too);
    /// `name` is for diagnoses.
    pub fn allocate(
        device: &Arc<dyn Device>,
        name: &str,
        bytes: usize,
    ) -> Result<Self, DeviceError> {
        let buffer = device.allocate(name, bytes.max(4))?;
        Ok(Self { device: Arc::clone(device), buffer })
    }

    /// Where it is.
    pub fn buffer(&self) -> Buffer {
        self.buffer
    }

    /// Copies `data` to `offset` bytes into it.
    pub fn upload(&self, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        self.device.upload(self.buffer, offset, data)
    }

    /// Copies from `offset` bytes into it, after all earlier launches.
    pub fn download(&self, offset: usize, data: &mut [u8]) -> Result<(), DeviceError> {
        self.device.download(self.buffer, offset, data)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // Nothing to be done about a device that is gone.
        let _ = self.device.free(self.buffer);
    }
}

/// An array of integers on the device, and what it holds.
pub(crate) struct Mirror {
    memory: DeviceMemory,
    held: Vec<i32>,
}

impl Mirror {
    pub(crate) fn allocate(
        device: &Arc<dyn Device>,
        name: &str,
        most: usize,
    ) -> Result<Self, DeviceError> {
        let memory = DeviceMemory::allocate(device, name, most.saturating_mul(4))?;
        Ok(Self { memory, held: Vec::new() })
    }

    pub(crate) fn buffer(&self) -> Buffer {
        self.memory.buffer()
    }

    pub(crate) fn held(&self) -> &[i32] {
        &self.held
    }

    /// Makes the device hold `values`, copying from the first that differs to the last. Returns the
    /// bytes that were copied.
    pub(crate) fn update(&mut self, values: &[i32]) -> Result<usize, DeviceError> {
        let same = |(a, b): &(&i32, &i32)| a == b;
        let first = self.held.iter().zip(values).take_while(same).count();
        let behind = if self.held.len() == values.len() {
            self.held[first..]
                .iter()
                .rev()
                .zip(values[first..].iter().rev())
                .take_while(same)
                .count()
        } else {
            0
        };
        let changed = &values[first..values.len() - behind];
        if !changed.is_empty() {
            let bytes: Vec<u8> = changed.iter().flat_map(|v| v.to_le_bytes()).collect();
            if let Err(error) = self.memory.upload(4 * first, &bytes) {
                // What the device holds now is not known.
                self.held.clear();
                return Err(error);
            }
        }
        self.held.truncate(first);
        self.held.extend_from_slice(&values[first..]);
        Ok(4 * changed.len())
    }
}
