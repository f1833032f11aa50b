//! From the name of a device, such as `cuda:0` or `emulated:h200`, to the device.

use crate::cuda::{self, CudaDevice};
use crate::device::Device;
use crate::emulated::{EmulatedDevice, EmulatedOptions};
use crate::error::DeviceError;
use spanforge_emulator::MatrixModel;
use spanforge_emulator::profile::{self, Profile};

/// The emulated device that stands in where there is no GPU.
const DEFAULT_EMULATED: &str = "emulated:h200";

/// Opens the device of that name: `cuda:<n>`, `emulated:<gpu>` with the name of a GPU profile, or
/// `emulated:<file>.json` with a profile of the user's. An emulated device checks and counts.
pub fn open(spec: &str) -> Result<Box<dyn Device>, DeviceError> {
    open_with(spec, EmulatedOptions::default())
}

/// [`open`] with options for an emulated device; a GPU has none. The name of an emulated device may
/// say by itself how its tensor cores add: `emulated:h200,mma=hopper`.
pub fn open_with(spec: &str, options: EmulatedOptions) -> Result<Box<dyn Device>, DeviceError> {
    match spec.split_once(':') {
        Some(("cuda", number)) if number.bytes().all(|b| b.is_ascii_digit()) => {
            let ordinal = number.parse().map_err(|_| unknown(spec))?;
            Ok(Box::new(CudaDevice::open(ordinal)?))
        }
        _ => Ok(Box::new(open_emulated(spec, options)?)),
    }
}

/// Opens an emulated device by its name, as [`open_with`] does.
pub fn open_emulated(
    spec: &str,
    mut options: EmulatedOptions,
) -> Result<EmulatedDevice, DeviceError> {
    let place = match spec.rsplit_once(",mma=") {
        Some((place, model)) => {
            options.matrix = MatrixModel::parse(model).ok_or_else(|| unknown(spec))?;
            place
        }
        None => spec,
    };
    let profile = match place.split_once(':') {
        Some(("emulated", file)) if file.ends_with(".json") => {
            let bad = |reason| DeviceError::BadProfile { file: file.into(), reason };
            let text = fs_err::read_to_string(file).map_err(|error| bad(error.to_string()))?;
            Profile::from_json(file, &text).map_err(|error| bad(error.to_string()))?
        }
        Some(("emulated", name)) => profile::find(name).map_err(|_| unknown(spec))?,
        _ => return Err(unknown(spec)),
    };
    Ok(EmulatedDevice::new(profile, options))
}

fn unknown(spec: &str) -> DeviceError {
    DeviceError::UnknownDevice { spec: spec.into(), known: emulated_specs().collect() }
}

/// Names of the emulated devices.
pub fn emulated_specs() -> impl Iterator<Item = String> {
    profile::names().into_iter().map(|name| format!("emulated:{name}"))
}

/// Names of the GPUs of this machine.
pub fn gpu_specs() -> impl Iterator<Item = String> {
    (0..cuda::device_count().unwrap_or(0)).map(|ordinal| format!("cuda:{ordinal}"))
}

/// The name of the device to use where none is given: `cuda:0` where there is one that can be
/// opened, else `emulated:h200`.
pub fn default_spec() -> &'static str {
    match cuda::device_count() {
        Ok(1..) => "cuda:0",
        _ => DEFAULT_EMULATED,
    }
}

/// Opens the device to use where none is given; see [`default_spec`].
pub fn default_device() -> Result<Box<dyn Device>, DeviceError> {
    open(default_spec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_emulated_devices_open_them() {
        for (spec, architecture) in
            [("emulated:h200", "sm_90a"), ("emulated:a100", "sm_80"), ("emulated:rtx4090", "sm_89")]
        {
            let device = open(&format!("{spec},mma=ampere")).and(open(spec)).unwrap();
            assert_eq!(device.properties().architecture, architecture);
        }
    }

    #[test]
    fn other_names_are_refused_with_the_known_ones() {
        for spec in [
            "",
            "gpu",
            "cuda",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "cuda:99999999999999999999",
            "emulated",
            "emulated:",
            "emulated:b300",
            "emulated:h200,mma=volta",
            "cuda:0,mma=hopper",
            "h200",
        ] {
            let Err(error) = open(spec) else { panic!("{spec} opens") };
            assert!(matches!(error, DeviceError::UnknownDevice { .. }), "{spec}: {error}");
            assert!(error.to_string().contains("cuda:<n> and emulated:a100, emulated:h100"));
        }
    }

    #[test]
    fn a_profile_file_that_is_not_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.json");
        fs_err::write(&path, "{}").unwrap();
        for file in [path.to_str().unwrap(), "/nowhere/mine.json"] {
            let Err(error) = open(&format!("emulated:{file}")) else { panic!("{file} opens") };
            assert!(error.to_string().contains(file), "{error}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        let Err(error) = open("cuda:4000") else { panic!("there is no such GPU") };
        match error {
            DeviceError::DriverUnavailable { .. } => {
                let text = error.to_string();
                assert!(text.contains("libcuda.so.1") && text.contains("emulated:h200"), "{text}");
            }
            DeviceError::NoSuchDevice { ordinal, .. } => assert_eq!(ordinal, 4000),
            DeviceError::DriverUnusable { .. } => {}
            other => panic!("{other}"),
        }
    }
}
