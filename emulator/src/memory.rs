//! Emulated global memory. Every allocation has an address window of its own, so that no overrun,
//! however long, reaches another one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::MemoryError;
use crate::kernel::{Kernel, Module};
use crate::order::Epoch;
use crate::races::Cells;
use crate::shadow::Shadow;

/// An address is a window number above these bits and an offset in them.
pub(crate) const WINDOW_BITS: u32 = 40;
pub(crate) const WINDOW_MASK: u64 = (1 << WINDOW_BITS) - 1;
/// Windows of module variables, of local, shared and parameter memory. Those below are of
/// allocations, from 1, so that a null pointer and its neighbours belong to nothing.
pub(crate) const MODULE_BASE: u64 = 0x80_0000 << WINDOW_BITS;
pub(crate) const LOCAL_BASE: u64 = 0xf0_0000 << WINDOW_BITS;
pub(crate) const SHARED_BASE: u64 = 0xf1_0000 << WINDOW_BITS;
pub(crate) const PARAMETER_BASE: u64 = 0xf2_0000 << WINDOW_BITS;

/// Bytes that all allocations together may have. Pages are zero until touched, so this bounds
/// address space, not what is resident.
const MOST_BYTES: usize = 64 << 30;
const MOST_ALLOCATIONS: usize = 1 << 20;
/// Launches that are remembered.
const MOST_PAST: usize = 4;

/// Bytes and sectors of one launch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub read_bytes: u64,
    pub read_sectors: u64,
    pub written_bytes: u64,
    pub written_sectors: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Allocation {
    pub name: String,
    pub data: Vec<u8>,
    pub shadow: Shadow,
    /// Every byte has been written: the shadow need not be asked.
    pub whole: bool,
    /// Bits were set since `whole` was last worked out.
    changed: bool,
    pub traffic: Traffic,
    /// Who wrote and read what, for races.
    pub cells: Cells,
    /// The kernel may write here: reads must be remembered.
    pub may_write: bool,
}

/// What is kept of a launch, so that what it wrote can be traced to its instructions.
#[derive(Debug)]
pub(crate) struct PastLaunch {
    pub kernel: Arc<Kernel>,
    pub parameters: Vec<u8>,
    /// After the first and up to the second.
    pub epochs: (Epoch, Epoch),
}

impl Allocation {
    fn write(&mut self, offset: usize, data: &[u8]) {
        self.data[offset..offset + data.len()].copy_from_slice(data);
        if !self.whole {
            if offset == 0 && data.len() == self.data.len() {
                self.whole = true;
            }
            self.shadow.set_range(offset, data.len());
            self.changed = true;
        }
    }
}

/// Global memory of the emulated device.
#[derive(Debug, Default)]
pub struct Memory {
    pub(crate) allocations: Vec<Option<Allocation>>,
    /// Variables of each module that was launched, kept between launches.
    pub(crate) modules: HashMap<u64, Vec<Allocation>>,
    total: usize,
    /// The last epoch of the launches so far.
    pub(crate) epoch: Epoch,
    /// The first number that lists of reads may have in the next launch.
    pub(crate) first_list: u32,
    /// The last launches, the newest last.
    pub(crate) past: Vec<PastLaunch>,
}

impl Memory {
    /// Empty memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reserves `bytes` bytes, zero but marked uninitialised, and returns their address.
    ///
    /// # Errors
    /// When the host cannot hold them.
    pub fn allocate(&mut self, name: &str, bytes: usize) -> Result<u64, MemoryError> {
        let refuse = |reason| MemoryError::TooLarge { name: name.to_owned(), bytes, reason };
        if self.total.checked_add(bytes).is_none_or(|total| total > MOST_BYTES) {
            return Err(refuse("all allocations together may have 64 GiB"));
        }
        if self.allocations.len() >= MOST_ALLOCATIONS {
            return Err(refuse("too many allocations were made"));
        }
        // A reservation that is dropped again shows whether the zeroed one below can succeed.
        if Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
            return Err(refuse("the host has not enough memory"));
        }
        self.allocations.push(Some(Allocation {
            name: name.to_owned(),
            data: vec![0; bytes],
            shadow: Shadow::new(bytes),
            whole: bytes == 0,
            changed: false,
            traffic: Traffic::default(),
            cells: Cells::default(),
            may_write: true,
        }));
        self.total += bytes;
        Ok((self.allocations.len() as u64) << WINDOW_BITS)
    }

    /// Releases an allocation; using its address afterwards is an out-of-bounds access.
    ///
    /// # Errors
    /// When `address` is not what `allocate` returned.
    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let index = ((address >> WINDOW_BITS) as usize).wrapping_sub(1);
        match self.allocations.get_mut(index) {
            Some(slot) if address & WINDOW_MASK == 0 => match slot.take() {
                Some(allocation) => {
                    self.total -= allocation.data.len();
                    Ok(())
                }
                None => Err(MemoryError::NotAStart { address }),
            },
            _ => Err(MemoryError::NotAStart { address }),
        }
    }

    fn find(&self, address: u64, bytes: usize) -> Result<(usize, usize), MemoryError> {
        let index = ((address >> WINDOW_BITS) as usize).wrapping_sub(1);
        let Some(Some(allocation)) = self.allocations.get(index) else {
            return Err(MemoryError::UnknownAddress { address });
        };
        let offset = address & WINDOW_MASK;
        let length = allocation.data.len();
        if offset.checked_add(bytes as u64).is_none_or(|end| end > length as u64) {
            let name = allocation.name.clone();
            return Err(MemoryError::OutOfRange { name, offset, bytes, length });
        }
        Ok((index, offset as usize))
    }

    /// Copies bytes in and marks them initialised.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        let (index, offset) = self.find(address, data.len())?;
        if let Some(Some(allocation)) = self.allocations.get_mut(index) {
            allocation.write(offset, data);
        }
        Ok(())
    }

    /// Copies bytes out, whether or not they were initialised.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let (index, offset) = self.find(address, data.len())?;
        if let Some(Some(allocation)) = self.allocations.get(index) {
            data.copy_from_slice(&allocation.data[offset..offset + data.len()]);
        }
        Ok(())
    }

    /// Makes a module's variables, the first time, forgets the traffic of earlier launches, and
    /// notes which allocations the kernel may write, given its parameters.
    pub(crate) fn prepare(&mut self, module: &Module, kernel: &Kernel, parameters: &[u8]) {
        let restart = self.epoch > Epoch::MAX / 2 || self.first_list > u32::MAX / 2;
        if restart {
            (self.epoch, self.first_list) = (0, 0);
            self.past.clear();
        }
        let variables = self.modules.entry(module.id).or_insert_with(|| {
            module
                .variables
                .iter()
                .map(|variable| Allocation {
                    name: variable.name.clone(),
                    data: variable.bytes.clone(),
                    shadow: Shadow::default(),
                    whole: true,
                    changed: false,
                    traffic: Traffic::default(),
                    cells: Cells::default(),
                    may_write: true,
                })
                .collect()
        });
        for allocation in self.allocations.iter_mut().flatten().chain(variables.iter_mut()) {
            allocation.traffic = Traffic::default();
            allocation.may_write = kernel.stores_through.is_none();
            if restart {
                allocation.cells = Cells::default();
            }
            if !allocation.whole && allocation.changed {
                allocation.changed = false;
                allocation.whole = allocation.shadow.has_range(0, allocation.data.len());
            }
        }
        variables.iter_mut().for_each(|variable| variable.may_write = true);
        self.note_written(kernel, parameters);
    }

    fn note_written(&mut self, kernel: &Kernel, parameters: &[u8]) {
        for &index in kernel.stores_through.iter().flatten() {
            let load = &kernel.parameter_loads[index];
            let mut bits = [0u8; 8];
            bits[..load.bytes].copy_from_slice(&parameters[load.offset..load.offset + load.bytes]);
            let window = (u64::from_le_bytes(bits) >> WINDOW_BITS) as usize;
            if let Some(Some(allocation)) = self.allocations.get_mut(window.wrapping_sub(1)) {
                allocation.may_write = true;
            }
        }
    }

    pub(crate) fn after_launch(&mut self, launch: PastLaunch) {
        // The same kernel with the same buffers writes what it wrote before.
        self.past.retain(|past| {
            !Arc::ptr_eq(&past.kernel, &launch.kernel) || past.parameters != launch.parameters
        });
        if self.past.len() >= MOST_PAST {
            self.past.remove(0);
        }
        self.past.push(launch);
        for allocation in self.allocations.iter_mut().flatten() {
            allocation.changed = true;
        }
    }
}
