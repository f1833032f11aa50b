//! Where the elements of a warpgroup's operands lie (PTX ISA 9.7.15.5.1): matrix descriptors, the
//! canonical layouts of each swizzle, and the fragments that registers hold.

use crate::hopper::tensor_map::Swizzle;

/// A matrix in shared memory, as a descriptor of 64 bits says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    /// Rows of 128 bytes from an aligned address to the beginning of the swizzle's pattern.
    base: u64,
    swizzle: Swizzle,
}

impl Descriptor {
    /// Bits that mean nothing must be zero.
    pub(crate) fn decode(bits: u64) -> Option<Self> {
        const RESERVED: u64 = 3 << 14 | 3 << 30 | 7 << 46 | 0x3ff << 52;
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        (bits & RESERVED == 0).then(|| Self {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base: bits >> 49 & 7,
            swizzle: match bits >> 62 {
                0 => Swizzle::None,
                1 => Swizzle::Bytes128,
                2 => Swizzle::Bytes64,
                _ => Swizzle::Bytes32,
            },
        })
    }

    /// The shared-memory address of 16 bytes: a run of elements along the major dimension. `outer`
    /// numbers elements of the other dimension, `run` runs of the major one. In a K-major matrix
    /// the major dimension is k; otherwise (`across`) it is m or n, and `outer` is k.
    ///
    /// This is the table of canonical layouts in units of 16 bytes: with W chunks in the swizzle's
    /// span, K-major is ((8,m),2):((W,SBO),1) (without swizzle ((8,m),2):((1,SBO),LBO)), and
    /// MN-major ((W,m),(8,k)):((1,LBO),(W,SBO)) (without swizzle ((1,m),(8,k)):((-,SBO),(1,LBO))).
    pub(crate) fn chunk(&self, across: bool, outer: u64, run: u64) -> u64 {
        let (inner, block) = (outer % 8, outer / 8);
        let offset = match (self.swizzle.span(), across) {
            (None, false) => inner * 16 + block * self.stride + run * self.leading,
            (None, true) => inner * 16 + block * self.leading + run * self.stride,
            (Some(span), false) => inner * span + block * self.stride + run * 16,
            (Some(span), true) => {
                let chunks = span / 16;
                inner * span + block * self.stride + run % chunks * 16 + run / chunks * self.leading
            }
        };
        self.swizzle.apply_from(self.start + offset, self.base)
    }
}

/// Row (of the 16 of a warp) and first k of what register `index` of A holds in a lane; `each` is
/// the elements of a register. The fragments are those of `mma.m16n8`.
pub(crate) fn in_registers(index: usize, lane: usize, each: usize) -> (usize, usize) {
    (lane / 4 + 8 * (index % 2), each * (lane % 4) + 4 * each * (index / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the ISA's section, in bytes: tf32 K-major without swizzle and with 32 bytes,
    /// bf16 MN-major without swizzle, with 32 and with 64 bytes.
    #[test]
    fn layouts_are_those_of_the_manuals_examples() {
        let descriptor = |leading: u64, stride: u64, swizzle: u64| {
            let bits = 0x1000 >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | swizzle << 62;
            Descriptor::decode(bits).unwrap()
        };
        let cute = |strides: [u64; 4], at: [u64; 4], bytes: u64| -> u64 {
            0x1000 + strides.iter().zip(at).map(|(stride, at)| stride * at).sum::<u64>() * bytes
        };
        // ((8,2),(4,4)):((4,32),(1,64))
        let d = descriptor(64 * 4, 32 * 4, 0);
        for (row, k) in [(0, 0), (3, 1), (9, 1), (15, 3)] {
            assert_eq!(d.chunk(false, row, k), cute([4, 32, 1, 64], [row % 8, row / 8, 0, k], 4));
        }
        // ((8,2),(4,4)):((8,64),(1,4)), with Swizzle<1,4,3>
        let d = descriptor(16, 64 * 4, 3);
        for (row, k) in [(0, 0), (3, 1), (9, 1), (15, 0)] {
            let plain = cute([8, 64, 1, 4], [row % 8, row / 8, 0, k], 4);
            assert_eq!(d.chunk(false, row, k), Swizzle::Bytes32.apply(plain));
        }
        // ((8,1,2),(8,2)):((1,8,64),(8,128))
        let d = descriptor(128 * 2, 64 * 2, 0);
        for (k, run) in [(0, 0), (3, 1), (9, 0), (15, 1)] {
            assert_eq!(d.chunk(true, k, run), cute([64, 8, 128, 0], [run, k % 8, k / 8, 0], 2));
        }
        // ((8,2,2),(8,2)):((1,8,128),(16,256)), with Swizzle<1,4,3>
        let d = descriptor(128 * 2, 256 * 2, 3);
        for (k, run) in [(0, 0), (3, 1), (9, 2), (15, 3)] {
            let plain = cute([8, 128, 16, 256], [run % 2, run / 2, k % 8, k / 8], 2);
            assert_eq!(d.chunk(true, k, run), Swizzle::Bytes32.apply(plain));
        }
        // ((8,4,2),(8,2)):((1,8,256),(32,512)), with Swizzle<2,4,3>
        let d = descriptor(256 * 2, 512 * 2, 2);
        for (k, run) in [(0, 0), (3, 1), (9, 5), (15, 7)] {
            let plain = cute([8, 256, 32, 512], [run % 4, run / 4, k % 8, k / 8], 2);
            assert_eq!(d.chunk(true, k, run), Swizzle::Bytes64.apply(plain));
        }
        assert_eq!(Descriptor::decode(1 << 46), None);
    }
}
