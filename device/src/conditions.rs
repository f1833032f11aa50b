//! What a GPU was like while it was timed: clocks, temperature, what held it back, energy.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Why a GPU's clocks are lower than they could be, as far as that is a fault of a measurement: being
/// idle, or set to other clocks by its owner, is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Throttle {
    /// The hardware has halved the clocks or more, for heat or power.
    HardwareSlowdown,
    /// The hardware has, for heat.
    HardwareThermal,
    /// The hardware has, because the power supply asked for it.
    PowerBrake,
    /// The driver has lowered them for heat, of the GPU or its memory.
    SoftwareThermal,
    /// The driver has lowered them to keep to the power limit.
    PowerCap,
}

impl std::fmt::Display for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HardwareSlowdown => "the hardware",
            Self::HardwareThermal => "heat, by the hardware",
            Self::PowerBrake => "the power supply",
            Self::SoftwareThermal => "heat, by the driver",
            Self::PowerCap => "the power limit",
        })
    }
}

/// What was seen of a GPU while the samples of a [`Timing`](crate::Timing) were taken, by NVML. What
/// NVML does not tell of a GPU is `None`. All of it is of the samples that were kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Lowest and highest clock of the multiprocessors, in MHz.
    pub sm_mhz: Option<[u32; 2]>,
    /// Lowest and highest clock of the memory, in MHz.
    pub memory_mhz: Option<[u32; 2]>,
    /// Highest temperature of the GPU, in degrees Celsius.
    pub temperature_c: Option<u32>,
    /// What held the clocks down; empty where nothing did.
    pub throttled: Option<BTreeSet<Throttle>>,
    /// Energy of the whole board in joules, per run of the sequence, with what prepares the L2 and the
    /// host's pauses; only where the samples took long enough for NVML's counter to tell.
    pub joules_per_sample: Option<f64>,
    /// Samples that were taken while the GPU was throttled, and were dropped and repeated.
    pub repeated_samples: u64,
}

impl Conditions {
    /// The conditions of these samples and of `more` samples of the same sequence together;
    /// `share` is the part of all samples that `more` are, from 0 to 1. Energy is known where both
    /// know it.
    pub fn merge(self, more: Self, share: f64) -> Self {
        let range = |[low, high]: [u32; 2], [l, h]: [u32; 2]| [low.min(l), high.max(h)];
        Self {
            sm_mhz: either(self.sm_mhz, more.sm_mhz, range),
            memory_mhz: either(self.memory_mhz, more.memory_mhz, range),
            temperature_c: self.temperature_c.max(more.temperature_c),
            throttled: either(self.throttled, more.throttled, |mut all, others| {
                all.extend(others);
                all
            }),
            joules_per_sample: self
                .joules_per_sample
                .zip(more.joules_per_sample)
                .map(|(joules, others)| joules + (others - joules) * share),
            repeated_samples: self.repeated_samples + more.repeated_samples,
        }
    }
}

/// Both joined, or the one that there is.
pub(crate) fn either<T>(one: Option<T>, other: Option<T>, join: impl Fn(T, T) -> T) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(join(one, other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_conditions_hold_what_either_saw() {
        let one = Conditions {
            sm_mhz: Some([1700, 1800]),
            temperature_c: Some(61),
            throttled: Some(BTreeSet::new()),
            joules_per_sample: Some(2.0),
            repeated_samples: 10,
            ..Conditions::default()
        };
        let other = Conditions {
            sm_mhz: Some([1750, 1980]),
            memory_mhz: Some([2619, 2619]),
            temperature_c: Some(58),
            throttled: Some([Throttle::PowerCap].into()),
            joules_per_sample: Some(4.0),
            repeated_samples: 30,
        };
        let both = Conditions {
            sm_mhz: Some([1700, 1980]),
            memory_mhz: Some([2619, 2619]),
            temperature_c: Some(61),
            throttled: Some([Throttle::PowerCap].into()),
            joules_per_sample: Some(2.5),
            repeated_samples: 40,
        };
        assert_eq!(one.clone().merge(other.clone(), 0.25), both);
        assert_eq!(other.merge(one, 0.75), both);
    }

    #[test]
    fn energy_that_one_part_does_not_know_is_not_known() {
        let known = Conditions { joules_per_sample: Some(2.0), ..Conditions::default() };
        assert_eq!(known.merge(Conditions::default(), 0.5).joules_per_sample, None);
    }

    #[test]
    fn reasons_are_written_as_words() {
        let conditions = Conditions {
            throttled: Some([Throttle::PowerCap, Throttle::HardwareThermal].into()),
            ..Conditions::default()
        };
        let text = serde_json::to_string(&conditions).unwrap();
        assert!(text.contains(r#""throttled":["hardware-thermal","power-cap"]"#), "{text}");
        assert_eq!(serde_json::from_str::<Conditions>(&text).unwrap(), conditions);
    }
}
