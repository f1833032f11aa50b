//! Which samples are trained on, by a hash of their content.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A part of the samples. The parts are disjoint whatever the seed, because the content of a sample
/// decides on its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Trained on: 93 %.
    Train,
    /// For choices made during training: 2 %.
    Validation,
    /// For the reported figures only: 5 %.
    HeldOut,
}

impl Split {
    /// Every part.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::HeldOut];

    /// The part of a sample with this content, by the first byte of its SHA-256: 13 of the 256
    /// values are held out, the next 5 are for validation.
    pub fn of(content: &str) -> Self {
        match Sha256::digest(content.as_bytes())[0] {
            0..13 => Self::HeldOut,
            13..18 => Self::Validation,
            _ => Self::Train,
        }
    }

    /// `"train"`, `"validation"` or `"held_out"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::HeldOut => "held_out",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
