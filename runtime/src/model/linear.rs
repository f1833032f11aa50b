//! Linear layers on the CPU: matrices in the element type of their file, products in f32.

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use spanforge_device::Element;
use spanforge_spans::Dtype;

/// A matrix `[rows, columns]`, row by row, that maps `columns` elements to `rows`.
pub(super) struct Matrix {
    rows: usize,
    columns: usize,
    elements: Elements,
}

/// A 16-bit matrix stays one: decoding reads every weight for each token, and half the bytes are half
/// the time.
pub(super) enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Rows that one task multiplies with: as 4096 columns in f32, they fit the L2 cache of a core.
const BLOCK: usize = 32;

impl Matrix {
    /// `elements` are `rows * columns`.
    pub fn new(rows: usize, columns: usize, elements: Elements) -> Self {
        let count = match &elements {
            Elements::F32(all) => all.len(),
            Elements::F16(all) => all.len(),
            Elements::Bf16(all) => all.len(),
        };
        assert_eq!(count, rows * columns, "elements of a matrix of {rows} x {columns}");
        Self { rows, columns, elements }
    }

    /// Random elements, evenly between -a and a with a such that vectors keep their length about.
    pub fn random(rows: usize, columns: usize, dtype: Element, seed: u64) -> Self {
        let most = (3.0 / columns.max(1) as f32).sqrt();
        let elements = match dtype {
            Element::F32 => Elements::F32(random(rows, columns, most, seed, |x| x)),
            Element::F16 => Elements::F16(random(rows, columns, most, seed, f16::from_f32)),
            Element::Bf16 => Elements::Bf16(random(rows, columns, most, seed, bf16::from_f32)),
        };
        Self::new(rows, columns, elements)
    }

    /// Size in memory.
    pub fn bytes(&self) -> usize {
        let size = match &self.elements {
            Elements::F32(_) => 4,
            Elements::F16(_) | Elements::Bf16(_) => 2,
        };
        size * self.rows * self.columns
    }

    /// All elements in 16 bits, as bytes.
    pub fn halves(&self, dtype: Dtype) -> Vec<u8> {
        let bytes = |x: f32| dtype.encode(x).to_le_bytes();
        match &self.elements {
            Elements::F32(all) => all.iter().flat_map(|x| bytes(*x)).collect(),
            Elements::F16(all) => all.iter().flat_map(|x| bytes(x.to_f32())).collect(),
            Elements::Bf16(all) => all.iter().flat_map(|x| bytes(x.to_f32())).collect(),
        }
    }

    /// One row in f32.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let range = row * self.columns..(row + 1) * self.columns;
        match &self.elements {
            Elements::F32(all) => all[range].to_vec(),
            Elements::F16(all) => all[range].iter().map(|x| x.to_f32()).collect(),
            Elements::Bf16(all) => all[range].iter().map(|x| x.to_f32()).collect(),
        }
    }

    /// The products with each of some vectors, `[count, columns]` to `[count, rows]`.
    pub fn apply(&self, vectors: &[f32]) -> Vec<f32> {
        let count = vectors.len() / self.columns;
        // By row of the matrix: each task writes a stretch of its own.
        let mut by_row = vec![0.0; self.rows * count];
        if count == 0 {
            return by_row;
        }
        let blocks = by_row.par_chunks_mut(BLOCK * count).enumerate();
        blocks.for_each(|(block, out)| {
            let rows = out.len() / count;
            let range = block * BLOCK * self.columns..(block * BLOCK + rows) * self.columns;
            match &self.elements {
                Elements::F32(all) => multiply(&all[range], vectors, self.columns, out),
                Elements::F16(all) => {
                    let wide: Vec<f32> = all[range].iter().map(|x| x.to_f32()).collect();
                    multiply(&wide, vectors, self.columns, out);
                }
                Elements::Bf16(all) => {
                    let wide: Vec<f32> = all[range].iter().map(|x| x.to_f32()).collect();
                    multiply(&wide, vectors, self.columns, out);
                }
            }
        });
        if count == 1 {
            return by_row;
        }
        let mut out = vec![0.0; by_row.len()];
        out.par_chunks_mut(self.rows).enumerate().for_each(|(vector, out)| {
            let column = by_row[vector..].iter().step_by(count);
            out.iter_mut().zip(column).for_each(|(to, from)| *to = *from);
        });
        out
    }
}

/// Each row from a seed of its own, so that threads share the work.
fn random<T: Copy + Default + Send>(
    rows: usize,
    columns: usize,
    most: f32,
    seed: u64,
    convert: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let mut all = vec![T::default(); rows * columns];
    all.par_chunks_exact_mut(columns.max(1)).enumerate().for_each(|(row, out)| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ row as u64);
        out.fill_with(|| convert(rng.random_range(-most..most)));
    });
    all
}

/// `out[i, j] = matrix[i, :] . vectors[j, :]`, all row by row, of `inner` elements each.
fn multiply(matrix: &[f32], vectors: &[f32], inner: usize, out: &mut [f32]) {
    let (rows, count) = (matrix.len() / inner, vectors.len() / inner);
    assert_eq!(
        (matrix.len(), vectors.len(), out.len()),
        (rows * inner, count * inner, rows * count)
    );
    // SAFETY: the three slices have the sizes that these dimensions and strides reach, as asserted;
    // `out` is not one of the others, being borrowed mutably.
    unsafe {
        gemm::gemm(
            rows,
            count,
            inner,
            out.as_mut_ptr(),
            1,
            count as isize,
            false,
            matrix.as_ptr(),
            1,
            inner as isize,
            vectors.as_ptr(),
            inner as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|i| ((i as f32 + seed) * 0.37).sin()).collect()
    }

    proptest! {
        /// Sizes beside the blocks of rows, of any dtype, against sums in f64.
        #[test]
        fn products_are_those_of_plain_sums(
            rows in 1_usize..80,
            columns in 1_usize..70,
            count in 0_usize..6,
            dtype in 0..3,
        ) {
            let (weights, vectors) = (values(rows * columns, 0.5), values(count * columns, 9.0));
            let elements = match dtype {
                0 => Elements::F32(weights),
                1 => Elements::F16(weights.into_iter().map(f16::from_f32).collect()),
                _ => Elements::Bf16(weights.into_iter().map(bf16::from_f32).collect()),
            };
            let matrix = Matrix::new(rows, columns, elements);
            let out = matrix.apply(&vectors);
            prop_assert_eq!(out.len(), count * rows);
            for (at, found) in out.iter().enumerate() {
                let (vector, row) = (&vectors[at / rows * columns..][..columns], matrix.row(at % rows));
                let sum: f64 =
                    row.iter().zip(vector).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                prop_assert!((f64::from(*found) - sum).abs() < 1e-4, "{found} {sum}");
            }
        }

        /// What a vector comes to does not depend on those beside it.
        #[test]
        fn a_vector_has_the_same_product_in_any_company(count in 2_usize..9, columns in 1_usize..300) {
            let matrix = Matrix::new(37, columns, Elements::F32(values(37 * columns, 1.0)));
            let vectors = values(count * columns, 2.0);
            let together = matrix.apply(&vectors);
            for (at, vector) in vectors.chunks_exact(columns).enumerate() {
                let alone = matrix.apply(vector);
                for (a, b) in alone.iter().zip(&together[at * 37..]) {
                    prop_assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} {b}");
                }
            }
        }
    }
}
