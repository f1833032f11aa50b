//! The formats of query, key and value tensors, named once for the kernels, the reference and
//! the files that carry tensors between them.

use std::fmt;
use std::str::FromStr;

use float8::F8E4M3;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// A name that is none of those expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a {what}: expected one of {expected}")]
pub struct UnknownName {
    /// What was being named, such as "dtype".
    pub what: &'static str,
    /// The name as given.
    pub name: String,
    /// The names there are.
    pub expected: &'static str,
}

/// Element type of queries, keys, values and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE binary16: 5 exponent and 10 mantissa bits.
    F16,
    /// bfloat16: 8 exponent and 7 mantissa bits.
    Bf16,
}

impl Dtype {
    /// Every dtype.
    pub const ALL: [Self; 2] = [Self::F16, Self::Bf16];

    /// Size of an element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Bits of the nearest element, ties to even.
    pub fn encode(self, value: f32) -> u16 {
        match self {
            Self::F16 => f16::from_f32(value).to_bits(),
            Self::Bf16 => bf16::from_f32(value).to_bits(),
        }
    }

    /// `"f16"` or `"bf16"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dtype {
    type Err = UnknownName;
    /// Reads `"f16"` or `"bf16"` in either case.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            UnknownName { what: "dtype", name: name.to_owned(), expected: "f16, bf16" }
        })
    }
}

/// Element type of cached keys and values.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// That of the queries.
    #[default]
    Same,
    /// OCP 8-bit floating point of 4 exponent and 3 mantissa bits (the FN kind: no infinity, largest
    /// value 448), which a factor per KV head multiplies.
    E4m3,
}

impl KvDtype {
    /// Every element type.
    pub const ALL: [Self; 2] = [Self::Same, Self::E4m3];

    /// Size of an element in bytes where queries have `dtype`.
    pub const fn bytes(self, dtype: Dtype) -> usize {
        match self {
            Self::Same => dtype.bytes(),
            Self::E4m3 => 1,
        }
    }

    /// Bits of the nearest element where queries have `dtype`, ties to even. In e4m3 what exceeds 448 is
    /// 448, infinity too; its bits are the lower byte.
    pub fn encode(self, dtype: Dtype, value: f32) -> u16 {
        match self {
            Self::Same => dtype.encode(value),
            Self::E4m3 => F8E4M3::from_f32(value).to_bits().into(),
        }
    }

    /// `"same"` or `"e4m3"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::E4m3 => "e4m3",
        }
    }

    /// Whether it is that of the queries.
    pub fn is_same(&self) -> bool {
        *self == Self::Same
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KvDtype {
    type Err = UnknownName;
    /// Reads `"same"` or `"e4m3"` in either case.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            UnknownName { what: "KV dtype", name: name.to_owned(), expected: "same, e4m3" }
        })
    }
}

/// Order of the dimensions of a page of keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum KvLayout {
    /// `[pages, page_size, kv_heads, head_dim]`.
    Nhd,
    /// `[pages, kv_heads, page_size, head_dim]`.
    Hnd,
}

impl KvLayout {
    /// Every layout.
    pub const ALL: [Self; 2] = [Self::Nhd, Self::Hnd];

    /// `"NHD"` or `"HND"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nhd => "NHD",
            Self::Hnd => "HND",
        }
    }

    /// Index of the row of `head_dim` elements that holds `slot` of `page` for `kv_head`, counted
    /// in such rows from the start of the tensor.
    pub const fn row_index(
        self,
        page: usize,
        slot: usize,
        kv_head: usize,
        page_size: usize,
        kv_heads: usize,
    ) -> usize {
        match self {
            Self::Nhd => (page * page_size + slot) * kv_heads + kv_head,
            Self::Hnd => (page * kv_heads + kv_head) * page_size + slot,
        }
    }
}

impl fmt::Display for KvLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KvLayout {
    type Err = UnknownName;
    /// Reads `"NHD"` or `"HND"` in either case.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|l| l.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            UnknownName { what: "KV layout", name: name.to_owned(), expected: "NHD, HND" }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_name_the_choice() {
        assert_eq!("BF16".parse::<Dtype>(), Ok(Dtype::Bf16));
        assert_eq!(serde_json::to_string(&Dtype::F16).ok().as_deref(), Some("\"f16\""));
        assert_eq!("hnd".parse::<KvLayout>(), Ok(KvLayout::Hnd));
        assert_eq!(serde_json::to_string(&KvLayout::Nhd).ok().as_deref(), Some("\"NHD\""));
        let error = "f32".parse::<Dtype>().map_err(|e| e.to_string());
        assert_eq!(error, Err("\"f32\" is not a dtype: expected one of f16, bf16".to_owned()));
    }

    #[test]
    fn e4m3_has_256_codes_and_rounds_to_even() {
        let encode = |value: f32| KvDtype::E4m3.encode(Dtype::F16, value);
        // Exponent biased by 7, subnormals of 2^-9, NaN where all but the sign is set.
        let value = |code: u16| {
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
            let size = match exponent {
                0 => mantissa * 2f32.powi(-9),
                _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
            };
            if code & 0x80 == 0 { size } else { -size }
        };
        for code in (0..=0xff).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(encode(value(code)), code, "{code:#x}");
        }
        for code in (0..0x7e).step_by(2) {
            let [low, middle, high] = [0, 1, 2].map(|i| value(code + i));
            assert_eq!(encode((low + middle) / 2.0), code, "{code:#x}");
            assert_eq!(encode((middle + high) / 2.0), code + 2, "{code:#x}");
        }
        assert_eq!([449.0, f32::INFINITY, -1e9].map(encode), [0x7e, 0x7e, 0xfe]);
        assert_eq!(encode(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn row_index_follows_the_layouts() {
        // Two heads, three slots: page 1, slot 2, head 1.
        assert_eq!(KvLayout::Nhd.row_index(1, 2, 1, 3, 2), 11);
        assert_eq!(KvLayout::Hnd.row_index(1, 2, 1, 3, 2), 11);
        assert_eq!(KvLayout::Nhd.row_index(0, 1, 0, 3, 2), 2);
        assert_eq!(KvLayout::Hnd.row_index(0, 1, 0, 3, 2), 1);
    }
}
