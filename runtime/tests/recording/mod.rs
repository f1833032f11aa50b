//! A device that remembers bytes and launches and executes nothing: for what happens around
//! kernels.

use spanforge_device::{
    Basis, Buffer, Device, DeviceError, DeviceProperties, Image, Launch, LaunchReport, ModuleId,
    Product, TimeOptions, Timing,
};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

#[derive(Default)]
pub struct State {
    /// Name and bytes of each allocation, by address.
    pub memory: BTreeMap<u64, (String, Vec<u8>)>,
    pub launches: Vec<Launch>,
    pub loaded: i32,
    /// Names of the buffers that were written since the list was last cleared, with byte counts.
    pub uploads: Vec<(String, usize)>,
    /// Refuse the upload after that many more.
    pub fail_upload_after: Option<usize>,
    pub fail_launches: bool,
    last: u64,
}

pub struct Recording {
    properties: DeviceProperties,
    state: Mutex<State>,
}

impl Recording {
    pub fn new() -> Self {
        Self {
            properties: DeviceProperties {
                name: "recording".into(),
                basis: Basis::Predicted,
                architecture: "sm_90a".into(),
                multiprocessors: 132,
                shared_bytes_per_block: 232_448,
                threads_per_multiprocessor: 2048,
                shared_bytes_per_multiprocessor: 233_472,
                l2_bytes: 50 << 20,
                dram_bytes_per_second: 4.8e12,
                float32_per_second: 6.7e13,
                tensor_per_second: 9.9e14,
            },
            state: Mutex::new(State { last: 256, ..State::default() }),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn refused(call: &str) -> DeviceError {
    DeviceError::Driver { device: "recording".into(), call: call.into(), reason: "asked to".into() }
}

impl Device for Recording {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn allocate(&self, name: &str, bytes: usize) -> Result<Buffer, DeviceError> {
        let mut state = self.state();
        let address = state.last;
        state.last += (bytes as u64).next_multiple_of(256) + 256;
        state.memory.insert(address, (name.to_owned(), vec![0xcc; bytes]));
        Ok(Buffer { address, bytes })
    }

    fn free(&self, buffer: Buffer) -> Result<(), DeviceError> {
        self.state().memory.remove(&buffer.address).map(|_| ()).ok_or_else(|| refused("free"))
    }

    fn upload(&self, buffer: Buffer, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        let mut state = self.state();
        if let Some(left) = &mut state.fail_upload_after {
            if *left == 0 {
                return Err(refused("upload"));
            }
            *left -= 1;
        }
        let (name, bytes) =
            state.memory.get_mut(&buffer.address).ok_or_else(|| refused("upload"))?;
        let range = offset..offset + data.len();
        bytes.get_mut(range).ok_or_else(|| refused("upload"))?.copy_from_slice(data);
        let upload = (name.clone(), data.len());
        state.uploads.push(upload);
        Ok(())
    }

    fn download(&self, buffer: Buffer, offset: usize, data: &mut [u8]) -> Result<(), DeviceError> {
        let state = self.state();
        let (_, bytes) = state.memory.get(&buffer.address).ok_or_else(|| refused("download"))?;
        let from = bytes.get(offset..offset + data.len()).ok_or_else(|| refused("download"))?;
        data.copy_from_slice(from);
        Ok(())
    }

    fn load(&self, _: &Image) -> Result<ModuleId, DeviceError> {
        self.state().loaded += 1;
        Ok(ModuleId(7))
    }

    fn unload(&self, _: ModuleId) -> Result<(), DeviceError> {
        self.state().loaded -= 1;
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<LaunchReport, DeviceError> {
        let mut state = self.state();
        if state.fail_launches {
            return Err(refused("launch"));
        }
        state.launches.push(launch.clone());
        Ok(LaunchReport::default())
    }

    fn multiply(&self, _: &Product) -> Result<(), DeviceError> {
        Err(refused("multiply"))
    }

    fn time(&self, _: &[Launch], _: &TimeOptions) -> Result<Timing, DeviceError> {
        Err(refused("time"))
    }
}
