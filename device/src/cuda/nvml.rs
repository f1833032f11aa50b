//! What NVML, NVIDIA's management library, says of a GPU at a moment. The library is opened at run
//! time; where there is none, or it refuses, nothing is said.

use crate::conditions::{Conditions, Throttle};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};
use std::collections::BTreeSet;
use std::time::Instant;

/// A GPU at one moment.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// What NVML knows, all but what takes a span of time.
    pub(super) conditions: Conditions,
    /// Energy of the board since its driver was loaded.
    pub(super) millijoules: Option<u64>,
    /// When it was read.
    pub(super) at: Instant,
}

/// NVML with the GPU that it is asked of.
pub(super) struct Monitor {
    nvml: Nvml,
    bus_id: String,
}

impl Monitor {
    /// Opens NVML for the GPU in that place of the PCI bus, whose numbers are the driver's too; the
    /// indices of the two differ. `None` where there is no NVML that knows it.
    pub(super) fn open(domain: u32, bus: u32, device: u32) -> Option<Self> {
        let monitor = Self { nvml: Nvml::init().ok()?, bus_id: bus_id(domain, bus, device) };
        monitor.device().is_some().then_some(monitor)
    }

    fn device(&self) -> Option<Device<'_>> {
        self.nvml.device_by_pci_bus_id(self.bus_id.as_str()).ok()
    }

    /// The GPU now, as far as NVML tells.
    pub(super) fn read(&self) -> Reading {
        let Some(device) = self.device() else {
            return Reading {
                conditions: Conditions::default(),
                millijoules: None,
                at: Instant::now(),
            };
        };
        let megahertz = |clock| device.clock_info(clock).ok().map(|mhz| [mhz; 2]);
        let conditions = Conditions {
            sm_mhz: megahertz(Clock::SM),
            memory_mhz: megahertz(Clock::Memory),
            temperature_c: device.temperature(TemperatureSensor::Gpu).ok(),
            throttled: device.current_throttle_reasons().ok().map(faults),
            ..Conditions::default()
        };
        // The counter and its time, next to each other.
        let millijoules = device.total_energy_consumption().ok();
        Reading { conditions, millijoules, at: Instant::now() }
    }
}

/// The function 0 of a device, as NVML spells it.
fn bus_id(domain: u32, bus: u32, device: u32) -> String {
    format!("{domain:08X}:{bus:02X}:{device:02X}.0")
}

/// The reasons that are faults of a measurement.
fn faults(reasons: ThrottleReasons) -> BTreeSet<Throttle> {
    let known = [
        (ThrottleReasons::HW_SLOWDOWN, Throttle::HardwareSlowdown),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, Throttle::HardwareThermal),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, Throttle::PowerBrake),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, Throttle::SoftwareThermal),
        (ThrottleReasons::SW_POWER_CAP, Throttle::PowerCap),
    ];
    known.into_iter().filter(|(flag, _)| reasons.contains(*flag)).map(|(_, fault)| fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_and_power_are_faults_idling_and_chosen_clocks_are_none() {
        let harmless = ThrottleReasons::GPU_IDLE
            | ThrottleReasons::APPLICATIONS_CLOCKS_SETTING
            | ThrottleReasons::SYNC_BOOST
            | ThrottleReasons::DISPLAY_CLOCK_SETTING;
        assert_eq!(faults(ThrottleReasons::NONE), [].into());
        assert_eq!(faults(harmless), [].into());
        let hot = ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
        let expected = [Throttle::HardwareSlowdown, Throttle::HardwareThermal];
        assert_eq!(faults(harmless | hot), expected.into());
        assert_eq!(faults(ThrottleReasons::all()).len(), 5);
    }

    #[test]
    fn places_on_the_bus_are_spelled_as_nvml_does() {
        assert_eq!(bus_id(0, 1, 0), "00000000:01:00.0");
        assert_eq!(bus_id(0x1_0000, 0xab, 0x1f), "00010000:AB:1F.0");
    }
    #[test]
    fn a_gpu_that_nobody_knows_has_no_monitor() {
        assert!(Monitor::open(0xfffe, 0xff, 0x1f).is_none());
    }
}
