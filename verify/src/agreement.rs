//! Two devices on the same problems: the first thing to know about an emulated device is how far a
//! real one is from it.

use crate::check::VerifyError;
use crate::generate::{Edges, generate};
use serde::Serialize;
use spanforge_kernels::Decoder;
use spanforge_kernels::decoder::{DecodeOutput, UploadOptions};

/// How near the answers of two devices are, bit by bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// Problems compared.
    pub cases: usize,
    /// Output elements compared.
    pub elements: usize,
    /// Output elements whose bits differ.
    pub different: usize,
    /// Largest difference of an output element, in units in the last place of its type.
    pub max_ulps: u32,
    /// LSEs compared.
    pub lse: usize,
    /// LSEs whose bits differ.
    pub different_lse: usize,
    /// Largest difference of an LSE, in units in the last place of f32.
    pub max_lse_ulps: u32,
    /// Seed of the problem with the largest difference of an output element.
    pub worst_seed: Option<u64>,
}

/// Runs the problems of `seeds` on both devices. The decoders hold the same kernel.
pub fn agreement(
    one: &Decoder<'_>,
    other: &Decoder<'_>,
    seeds: impl IntoIterator<Item = u64>,
) -> Result<Agreement, VerifyError> {
    let edges = Edges::of(one.spec());
    let mut sum = Agreement::default();
    for seed in seeds {
        let problem = generate(one.spec().shape, &edges, seed);
        let answer = |decoder: &Decoder<'_>| -> Result<DecodeOutput, VerifyError> {
            let resident = decoder.upload(&problem, UploadOptions::default())?;
            resident.poison_output()?;
            decoder.run(&resident)?;
            Ok(resident.output()?)
        };
        let (a, b) = (answer(one)?, answer(other)?);
        sum.cases += 1;
        sum.elements += a.out.len();
        sum.lse += a.lse.len();
        for (a, b) in a.out.iter().zip(&b.out).filter(|(a, b)| a != b) {
            sum.different += 1;
            // Sign and magnitude of 16 bits, moved to the top of 32.
            let ulps = ulps(u32::from(*a) << 16, u32::from(*b) << 16) >> 16;
            if ulps > sum.max_ulps || sum.worst_seed.is_none() {
                sum.max_ulps = sum.max_ulps.max(ulps);
                sum.worst_seed = Some(seed);
            }
        }
        for (a, b) in a.lse.iter().zip(&b.lse).filter(|(a, b)| a.to_bits() != b.to_bits()) {
            sum.different_lse += 1;
            sum.max_lse_ulps = sum.max_lse_ulps.max(ulps(a.to_bits(), b.to_bits()));
        }
    }
    Ok(sum)
}

/// Representable values between two floats given as sign and magnitude.
fn ulps(a: u32, b: u32) -> u32 {
    let ordered = |bits: u32| {
        let magnitude = i64::from(bits & 0x7fff_ffff);
        if bits >> 31 == 1 { -magnitude } else { magnitude }
    };
    ordered(a).abs_diff(ordered(b)) as u32
}

#[cfg(test)]
mod tests {
    use super::ulps;

    #[test]
    fn distances_are_counted_across_zero() {
        assert_eq!(ulps(0x3f80_0000, 0x3f80_0003), 3);
        assert_eq!(ulps(0x0000_0002, 0x8000_0001), 3);
        assert_eq!(ulps(0x0000_0000, 0x8000_0000), 0, "zeros are equal");
        assert_eq!(ulps(0x4000 << 16, 0x4001 << 16) >> 16, 1);
    }
}
