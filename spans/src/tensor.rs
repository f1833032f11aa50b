//! The formats of query, key and value tensors, named once for the kernels, the reference and
//! the files that carry tensors between them.

use std::fmt;
use std::str::FromStr;

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
    fn row_index_follows_the_layouts() {
        // Two heads, three slots: page 1, slot 2, head 1.
        assert_eq!(KvLayout::Nhd.row_index(1, 2, 1, 3, 2), 11);
        assert_eq!(KvLayout::Hnd.row_index(1, 2, 1, 3, 2), 11);
        assert_eq!(KvLayout::Nhd.row_index(0, 1, 0, 3, 2), 2);
        assert_eq!(KvLayout::Hnd.row_index(0, 1, 0, 3, 2), 1);
    }
}
