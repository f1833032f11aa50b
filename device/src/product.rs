//! Products of matrices, which a GPU leaves to the vendor's library.

use crate::checks::check_range;
use crate::device::Buffer;
use crate::error::DeviceError;
use half::{bf16, f16};
use rayon::prelude::*;

/// The element type of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// Single precision.
    F32,
}

impl Element {
    /// Size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The elements of some bytes.
    fn read(self, bytes: &[u8]) -> Vec<f32> {
        let halves = || bytes.as_chunks::<2>().0.iter();
        match self {
            Self::F16 => halves().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
            Self::Bf16 => halves().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
            Self::F32 => {
                bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
        }
    }

    /// Some elements as bytes, each rounded to the nearest.
    fn write(self, elements: &[f32]) -> Vec<u8> {
        match self {
            Self::F16 => elements.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Self::Bf16 => elements.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Self::F32 => elements.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// `out = x w^T`, or `out += x w^T`, as a linear layer has it: all matrices row by row and without
/// gaps, sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// `[rows, inner]`.
    pub x: Buffer,
    /// `[columns, inner]`.
    pub w: Buffer,
    /// `[rows, columns]`.
    pub out: Buffer,
    /// Vectors.
    pub rows: usize,
    /// Elements of a result.
    pub columns: usize,
    /// Elements of a vector.
    pub inner: usize,
    /// Of `x` and `w`: f16 or bf16.
    pub element: Element,
    /// Of `out`: that of `x`, or f32.
    pub out_element: Element,
    /// Whether the product is added to what `out` has; then it is f32.
    pub accumulate: bool,
}

impl Product {
    /// Refuses matrices that do not fit their buffers, and element types that are not served.
    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        let Self { rows, columns, inner, element, out_element, accumulate, .. } = *self;
        let bad = |reason: String| DeviceError::BadProduct { rows, columns, inner, reason };
        if element == Element::F32 {
            return Err(bad("factors in f32 are not served: give f16 or bf16".to_owned()));
        }
        if out_element != Element::F32 && (accumulate || out_element != element) {
            let what = if accumulate { "what is added to" } else { "the result" };
            return Err(bad(format!("{what} is {out_element:?} with factors in {element:?}")));
        }
        // The library counts in 32 bits where it matters.
        for size in [rows, columns, inner] {
            if size == 0 || size > i32::MAX as usize {
                return Err(bad(format!("a side of {size}")));
            }
        }
        for (buffer, sides, element) in [
            (self.x, [rows, inner], element),
            (self.w, [columns, inner], element),
            (self.out, [rows, columns], out_element),
        ] {
            let bytes = sides[0].saturating_mul(sides[1]).saturating_mul(element.bytes());
            check_range(buffer, 0, bytes)?;
        }
        Ok(())
    }

    /// The product of bytes, for a device that is emulated: `out` is what is there before.
    pub(crate) fn compute(&self, x: &[u8], w: &[u8], out: &[u8]) -> Vec<u8> {
        let (x, w) = (self.element.read(x), self.element.read(w));
        let mut sums = match self.accumulate {
            true => self.out_element.read(out),
            false => vec![0.0; self.rows * self.columns],
        };
        sums.par_chunks_mut(self.columns).zip(x.par_chunks(self.inner)).for_each(|(sums, x)| {
            for (sum, w) in sums.iter_mut().zip(w.chunks(self.inner)) {
                *sum += x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
            }
        });
        self.out_element.write(&sums)
    }
}
