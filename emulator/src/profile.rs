//! GPU profiles: what the occupancy calculation and the cost model know of a GPU.
//!
//! A profile is a JSON file in `profiles/`, and every figure in it carries its unit and its
//! source, so that a figure which was taken from a sister GPU or scaled can be told from one that
//! was read in a data sheet or measured. [`Profile::from_json`] takes a file of the user's.

use serde::{Deserialize, Serialize};

/// The built-in profiles, by name.
const BUILT_IN: [(&str, &str); 7] = [
    ("a100", include_str!("../profiles/a100.json")),
    ("h100", include_str!("../profiles/h100.json")),
    ("h200", include_str!("../profiles/h200.json")),
    ("rtx4090", include_str!("../profiles/rtx4090.json")),
    ("l4", include_str!("../profiles/l4.json")),
    ("rtx3090", include_str!("../profiles/rtx3090.json")),
    ("a10g", include_str!("../profiles/a10g.json")),
];

/// A number with its unit and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure<T> {
    /// The number.
    pub value: T,
    /// Its unit; [`Profile::from_json`] refuses any but the field's own.
    pub unit: String,
    /// The document or the measurement it was taken from.
    pub source: String,
}

/// A figure of a profile with its field's name, for listing.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedFigure<'a> {
    /// Field of [`Profile`].
    pub name: &'static str,
    /// The number; whole numbers of a profile are all below 2^53.
    pub value: f64,
    /// Unit.
    pub unit: &'a str,
    /// The document or the measurement it was taken from.
    pub source: &'a str,
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No built-in profile has this name.
    #[error("no GPU profile named `{name}`; known are {known}, or give a profile file")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names that exist, comma separated.
        known: String,
    },
    /// The text is not the JSON of a profile.
    #[error("GPU profile `{origin}` is not valid: {source}; compare it with a built-in profile")]
    Json {
        /// File or name of the profile.
        origin: String,
        /// What the parser found, with line and column.
        source: serde_json::Error,
    },
    /// A field has a value that cannot be.
    #[error("GPU profile `{origin}`: `{field}` is {found}, expected {expected}")]
    Field {
        /// File or name of the profile.
        origin: String,
        /// The field at fault.
        field: String,
        /// What the field holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
}

/// Declares the figures of a profile once: their fields, their units, their listing.
macro_rules! profile {
    ($($(#[$doc:meta])* $field:ident: $type:ty, $unit:literal;)*) => {
        /// One GPU. Figures are per multiprocessor where their name or unit says so.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Profile {
            /// Short name, as given on the command line: `h200`.
            pub name: String,
            /// Name as the driver reports it.
            pub marketing_name: String,
            /// Architecture to compile cubins for: `sm_80`, `sm_90a`.
            pub architecture: String,
            $($(#[$doc])* pub $field: Figure<$type>,)*
        }

        impl Profile {
            /// Every figure of the profile, in the order of its fields.
            pub fn figures(&self) -> Vec<NamedFigure<'_>> {
                vec![$(NamedFigure {
                    name: stringify!($field),
                    value: self.$field.value as f64,
                    unit: &self.$field.unit,
                    source: &self.$field.source,
                },)*]
            }
        }

        /// The unit of each figure, in the order of [`Profile::figures`].
        const UNITS: &[&str] = &[$($unit,)*];
    };
}

profile! {
    /// Multiprocessors of the GPU.
    multiprocessors: u64, "count";
    /// Boost clock, at which the model runs the multiprocessors.
    boost_clock: f64, "MHz";
    /// Base clock; the model does not use it, a power-limited run may fall to it.
    base_clock: f64, "MHz";
    /// Most threads of a block.
    max_threads_per_block: u64, "threads";
    /// Most resident threads.
    max_threads_per_multiprocessor: u64, "threads";
    /// Most resident blocks.
    max_blocks_per_multiprocessor: u64, "blocks";
    /// 32-bit registers.
    registers_per_multiprocessor: u64, "registers";
    /// Most registers that a thread can have.
    max_registers_per_thread: u64, "registers";
    /// Registers are allotted to a warp in multiples of this.
    register_allocation_unit: u64, "registers per warp";
    /// Partitions with a scheduler and a share of the registers each.
    partitions_per_multiprocessor: u64, "count";
    /// Shared memory.
    shared_bytes_per_multiprocessor: u64, "bytes";
    /// Most shared memory of a block, after opting in.
    shared_bytes_per_block: u64, "bytes";
    /// Shared memory that the system takes of each block's.
    shared_bytes_reserved_per_block: u64, "bytes";
    /// Shared memory is allotted to a block in multiples of this.
    shared_allocation_unit: u64, "bytes";
    /// Second-level cache.
    l2_bytes: u64, "bytes";
    /// Memory bandwidth of the data sheet.
    dram_bandwidth: f64, "bytes/s";
    /// Share of the data sheet's bandwidth that a streaming kernel reaches.
    achievable_bandwidth_fraction: f64, "fraction";
    /// Latency of a load from memory with nothing else under way.
    dram_latency: f64, "ns";
    /// Latency of a load that hits the second-level cache.
    l2_latency: f64, "ns";
    /// Bandwidth of the second-level cache, all multiprocessors together.
    l2_bandwidth: f64, "bytes/s";
    /// What one multiprocessor can take from the second-level cache.
    l2_bytes_per_cycle: f64, "bytes/cycle/multiprocessor";
    /// How sharply throughput turns from latency-bound to bandwidth-bound: the p of the p-norm
    /// that combines the two times. Infinite would be a plain maximum.
    saturation_exponent: f64, "exponent";
    /// Time that a block needs beside its work, from its predecessor's end.
    block_start: f64, "ns";
    /// Time that a launch needs beside its blocks, in a row of launches of a CUDA graph.
    kernel_launch: f64, "us";
    /// f32 results per cycle.
    float32_lanes: f64, "lanes";
    /// f16x2 results per cycle.
    half2_lanes: f64, "lanes";
    /// 32-bit integer results per cycle.
    integer_lanes: f64, "lanes";
    /// Conversions per cycle.
    convert_lanes: f64, "lanes";
    /// Special functions per cycle.
    special_lanes: f64, "lanes";
    /// Shuffle results per cycle.
    exchange_lanes: f64, "lanes";
    /// f64 results per cycle.
    float64_lanes: f64, "lanes";
    /// Bandwidth of shared memory.
    shared_bytes_per_cycle: f64, "bytes/cycle/multiprocessor";
    /// Dense f16 tensor-core rate with f32 accumulation, all multiprocessors together.
    tensor_f16_flops: f64, "flop/s";
    /// Share of that rate which `mma.sync` reaches.
    warp_matrix_fraction: f64, "fraction";
}

impl Profile {
    /// Parses and checks a profile; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ProfileError::Json`] where a field is missing, unknown or of the wrong type;
    /// [`ProfileError::Field`] where a unit is not the field's, a source is empty, a number is not
    /// positive and finite, or two figures contradict each other.
    pub fn from_json(origin: &str, text: &str) -> Result<Self, ProfileError> {
        let profile: Self = serde_json::from_str(text)
            .map_err(|source| ProfileError::Json { origin: origin.to_owned(), source })?;
        profile.check(origin)?;
        Ok(profile)
    }

    fn check(&self, origin: &str) -> Result<(), ProfileError> {
        let fault = |field: &str, found: String, expected: &str| {
            Err(ProfileError::Field {
                origin: origin.to_owned(),
                field: field.to_owned(),
                found,
                expected: expected.to_owned(),
            })
        };
        let digits = self.architecture.strip_prefix("sm_").unwrap_or("");
        let digits = digits.strip_suffix(['a', 'f']).unwrap_or(digits);
        if digits.len() < 2 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return fault("architecture", self.architecture.clone(), "such as sm_80 or sm_90a");
        }
        for (figure, unit) in self.figures().iter().zip(UNITS) {
            if figure.unit != *unit {
                return fault(figure.name, format!("in `{}`", figure.unit), &format!("`{unit}`"));
            }
            if figure.source.trim().is_empty() {
                return fault(figure.name, "without a source".to_owned(), "where it comes from");
            }
            // The upper bound keeps every later product of whole numbers far inside 64 bits.
            if !(figure.value.is_finite() && figure.value > 0.0 && figure.value < 1e18) {
                return fault(
                    figure.name,
                    figure.value.to_string(),
                    "a positive number below 1e18",
                );
            }
            if *unit == "fraction" && figure.value > 1.0 {
                return fault(figure.name, figure.value.to_string(), "at most 1");
            }
            let whole = matches!(
                *unit,
                "count" | "threads" | "blocks" | "registers" | "registers per warp" | "bytes"
            );
            if whole && figure.value > f64::from(u32::MAX) {
                return fault(figure.name, figure.value.to_string(), "below 2^32");
            }
        }
        if self.saturation_exponent.value < 1.0 {
            let found = self.saturation_exponent.value.to_string();
            return fault("saturation_exponent", found, "at least 1");
        }
        let of_block =
            self.shared_bytes_per_block.value + self.shared_bytes_reserved_per_block.value;
        if of_block > self.shared_bytes_per_multiprocessor.value {
            let found = self.shared_bytes_per_block.value.to_string();
            return fault(
                "shared_bytes_per_block",
                found,
                "with the reserved bytes, within shared_bytes_per_multiprocessor",
            );
        }
        Ok(())
    }

    /// Bytes per second that a streaming kernel reaches.
    pub fn achievable_bandwidth(&self) -> f64 {
        self.dram_bandwidth.value * self.achievable_bandwidth_fraction.value
    }

    /// Most resident warps of a multiprocessor.
    pub fn max_warps_per_multiprocessor(&self) -> u64 {
        self.max_threads_per_multiprocessor.value / u64::from(crate::occupancy::WARP_THREADS)
    }
}

/// Names of the built-in profiles.
pub fn names() -> Vec<&'static str> {
    BUILT_IN.iter().map(|(name, _)| *name).collect()
}

/// A built-in profile by its short name or by the name that the driver reports, whatever the case.
///
/// # Errors
/// [`ProfileError::Unknown`], which lists the known names.
pub fn find(name: &str) -> Result<Profile, ProfileError> {
    for (short, text) in BUILT_IN {
        let profile = Profile::from_json(short, text)?;
        if short.eq_ignore_ascii_case(name) || profile.marketing_name.eq_ignore_ascii_case(name) {
            return Ok(profile);
        }
    }
    Err(ProfileError::Unknown { name: name.to_owned(), known: names().join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(pointer: &str, value: serde_json::Value) -> Result<Profile, ProfileError> {
        let mut json: serde_json::Value =
            serde_json::from_str(include_str!("../profiles/h200.json")).expect("valid JSON");
        *json.pointer_mut(pointer).expect("the field exists") = value;
        Profile::from_json("mine.json", &json.to_string())
    }

    #[test]
    fn every_built_in_profile_loads_under_its_own_name() {
        for name in names() {
            let profile = find(name).expect(name);
            assert_eq!(profile.name, name);
            assert_eq!(profile.figures().len(), UNITS.len());
        }
    }

    #[test]
    fn known_figures() {
        let h200 = find("H200").expect("built in");
        assert_eq!(h200.architecture, "sm_90a");
        assert_eq!(h200.multiprocessors.value, 132);
        assert_eq!(h200.shared_bytes_per_block.value, 232_448);
        assert_eq!(h200.max_warps_per_multiprocessor(), 64);
        let a100 = find("NVIDIA A100-SXM4-80GB").expect("found by the driver's name");
        assert_eq!(a100.shared_bytes_per_block.value, 166_912);
        assert_eq!(find("l4").expect("built in").max_warps_per_multiprocessor(), 48);
        // Peak f32 rates of the data sheets, from lanes and clock: 67 and 19.5 TFLOP/s.
        for (profile, tflops) in [(&h200, 66.9), (&a100, 19.5)] {
            let rate = 2e6
                * profile.boost_clock.value
                * profile.float32_lanes.value
                * profile.multiprocessors.value as f64;
            assert!((rate / 1e12 - tflops).abs() < 0.1, "{}: {rate:e}", profile.name);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = find("b200").expect_err("not built in").to_string();
        assert_eq!(
            message,
            "no GPU profile named `b200`; known are a100, h100, h200, rtx4090, l4, rtx3090, a10g, \
             or give a profile file"
        );
    }

    #[test]
    fn faults_name_the_file_the_field_and_what_was_expected() {
        let cases = [
            ("/dram_bandwidth/unit", "GB/s".into(), "`dram_bandwidth` is in `GB/s`, expected"),
            ("/dram_bandwidth/value", (-1.0).into(), "`dram_bandwidth` is -1, expected a positive"),
            ("/l2_latency/source", " ".into(), "`l2_latency` is without a source"),
            ("/achievable_bandwidth_fraction/value", 89.6.into(), "is 89.6, expected at most 1"),
            ("/multiprocessors/value", 0.into(), "`multiprocessors` is 0, expected a positive"),
            ("/multiprocessors/value", 1.5.into(), "expected u64"),
            (
                "/l2_bytes/value",
                (1_u64 << 40).into(),
                "`l2_bytes` is 1099511627776, expected below",
            ),
            ("/saturation_exponent/value", 0.5.into(), "is 0.5, expected at least 1"),
            ("/architecture", "hopper".into(), "`architecture` is hopper, expected such as sm_80"),
            ("/shared_bytes_per_block/value", 233_472.into(), "within shared_bytes_per_multi"),
        ];
        for (pointer, value, expected) in cases {
            let message = edited(pointer, value).expect_err(pointer).to_string();
            assert!(message.contains("mine.json"), "{message}");
            assert!(message.contains(expected), "{pointer}: {message}");
        }
    }

    #[test]
    fn a_cut_file_is_an_error() {
        let text = include_str!("../profiles/l4.json");
        for length in (0..text.len() - 2).step_by(97) {
            assert!(Profile::from_json("cut", &text[..length]).is_err(), "{length}");
        }
    }
}
