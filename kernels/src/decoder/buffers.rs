//! Buffers of a problem on a device: with guard bands around them and NaN in them where the device does not
//! find by itself what a kernel does to memory that is not its own.

use super::UploadOptions;
use spanforge_device::{Buffer, Device, DeviceError};
use spanforge_spans::KvDtype;

/// All bits set: NaN in every float type, and a negative integer.
pub(super) const POISON: u8 = 0xff;
pub(super) const GUARD: u8 = 0xa7;

/// Allocates buffers one after the other, and keeps what it has allocated.
pub(super) struct Builder<'d> {
    pub(super) device: &'d dyn Device,
    pub(super) options: UploadOptions,
    pub(super) allocations: Vec<(String, Buffer)>,
}

impl Builder<'_> {
    /// The buffer between its guard bands. Only the whole allocation is known to the device, so it
    /// is what copies name.
    fn allocate(&mut self, name: &str, bytes: usize) -> Result<Buffer, DeviceError> {
        let guard = self.options.guard_bytes;
        // Empty tensors have an address like all others.
        let whole = self.device.allocate(name, bytes.max(4) + 2 * guard)?;
        self.allocations.push((name.to_owned(), whole));
        if guard > 0 {
            let band = vec![GUARD; guard];
            self.device.upload(whole, 0, &band)?;
            self.device.upload(whole, whole.bytes - guard, &band)?;
        }
        Ok(whole)
    }

    fn inner(&self, whole: Buffer) -> Buffer {
        let guard = self.options.guard_bytes;
        Buffer { address: whole.address + guard as u64, bytes: whole.bytes - 2 * guard }
    }

    /// K or V: of elements of 8 bits, the lower bytes.
    pub(super) fn kv(
        &mut self,
        name: &str,
        bits: &[u16],
        dtype: KvDtype,
    ) -> Result<Buffer, DeviceError> {
        match dtype {
            KvDtype::Same => self.input(name, bits, |e| e.to_le_bytes()),
            KvDtype::E4m3 => self.input(name, bits, |e| [*e as u8]),
        }
    }

    /// A buffer of numbers that need not be there: `None` where they are not.
    pub(super) fn floats(
        &mut self,
        name: &str,
        values: &[f32],
    ) -> Result<Option<Buffer>, DeviceError> {
        let there = !values.is_empty();
        there.then(|| self.input(name, values, |e| e.to_le_bytes())).transpose()
    }

    /// A buffer of `values`, whose bytes are made a stretch at a time: a cache of gigabytes is not
    /// copied whole on the host.
    pub(super) fn input<T, const N: usize>(
        &mut self,
        name: &str,
        values: &[T],
        bytes: impl Fn(&T) -> [u8; N],
    ) -> Result<Buffer, DeviceError> {
        let whole = self.allocate(name, N * values.len())?;
        let mut at = self.options.guard_bytes;
        let mut stretch = Vec::new();
        for values in values.chunks(1 << 20) {
            stretch.clear();
            stretch.extend(values.iter().flat_map(&bytes));
            self.device.upload(whole, at, &stretch)?;
            at += stretch.len();
        }
        Ok(self.inner(whole))
    }

    pub(super) fn scratch(&mut self, name: &str, bytes: usize) -> Result<Buffer, DeviceError> {
        let whole = self.allocate(name, bytes)?;
        if self.options.poison {
            self.device.upload(whole, self.options.guard_bytes, &vec![POISON; bytes])?;
        }
        Ok(self.inner(whole))
    }
}
