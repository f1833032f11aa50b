//! How many blocks of a kernel fit on a multiprocessor.
//!
//! The rules are those of the CUDA toolkit's occupancy calculator (`cuda_occupancy.h`, compute
//! capability 8.0 to 9.0, default caching): registers are allotted warp by warp inside one of four
//! partitions, shared memory block by block with the system's reserve on top. The driver is taken
//! to give the multiprocessor as much of the L1 cache for shared memory as the blocks can use.

use crate::cost::Occupancy;
use crate::profile::Profile;

/// Threads of a warp.
pub const WARP_THREADS: u32 = 32;

/// Why not even one block fits on a multiprocessor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DoesNotFit {
    /// The block has no threads, or more than any block may have.
    #[error("a block of {threads} threads cannot be launched; 1 to {most} can")]
    Threads {
        /// Threads of the block.
        threads: u32,
        /// Most threads of a block.
        most: u64,
    },
    /// A thread has more registers than the architecture can name.
    #[error("{registers} registers per thread are more than the {most} a thread can have")]
    RegistersPerThread {
        /// Registers per thread.
        registers: u32,
        /// Most registers of a thread.
        most: u64,
    },
    /// The warps of one block need more registers than there are.
    #[error(
        "a block of {threads} threads with {registers} registers each does not fit in {available} \
         registers; use fewer threads or cap the registers"
    )]
    Registers {
        /// Threads of the block.
        threads: u32,
        /// Registers per thread.
        registers: u32,
        /// Registers of a multiprocessor.
        available: u64,
    },
    /// The block needs more shared memory than a block may have.
    #[error("{bytes} bytes of shared memory per block are more than the {most} a block can have")]
    SharedMemory {
        /// Shared memory of the block.
        bytes: u32,
        /// Most shared memory of a block.
        most: u64,
    },
}

/// Resident blocks of a kernel, and what stops more.
///
/// `registers` is per thread, as `ptxas` reports it; `shared_bytes` is static plus dynamic shared
/// memory of a block, without the system's reserve (which the `.nv.shared` section of an sm_90
/// cubin includes). Where several resources stop at the same number, the limiter is the first of
/// registers, shared memory, threads, blocks: the one a configuration can do something about.
///
/// # Errors
/// [`DoesNotFit`] where a launch would be refused.
pub fn occupancy(
    profile: &Profile,
    threads_per_block: u32,
    registers: u32,
    shared_bytes: u32,
) -> Result<Occupancy, DoesNotFit> {
    let threads = u64::from(threads_per_block);
    if threads == 0 || threads > profile.max_threads_per_block.value {
        let most = profile.max_threads_per_block.value;
        return Err(DoesNotFit::Threads { threads: threads_per_block, most });
    }
    let warps = threads.div_ceil(u64::from(WARP_THREADS));

    let by_registers = blocks_by_registers(profile, warps, threads_per_block, registers)?;

    let shared = u64::from(shared_bytes);
    if shared > profile.shared_bytes_per_block.value {
        let most = profile.shared_bytes_per_block.value;
        return Err(DoesNotFit::SharedMemory { bytes: shared_bytes, most });
    }
    let allotted = (shared + profile.shared_bytes_reserved_per_block.value)
        .next_multiple_of(profile.shared_allocation_unit.value);
    let by_shared = profile.shared_bytes_per_multiprocessor.value / allotted;
    if by_shared == 0 {
        let most = profile.shared_bytes_per_block.value;
        return Err(DoesNotFit::SharedMemory { bytes: shared_bytes, most });
    }

    let most_warps = profile.max_warps_per_multiprocessor();
    let by_threads = most_warps / warps;
    if by_threads == 0 {
        let most = profile.max_threads_per_multiprocessor.value;
        return Err(DoesNotFit::Threads { threads: threads_per_block, most });
    }

    let limits = [
        ("registers", by_registers),
        ("shared memory", by_shared),
        ("threads", by_threads),
        ("blocks", profile.max_blocks_per_multiprocessor.value),
    ];
    let (mut limiter, mut blocks) = limits[0];
    for (name, limit) in limits {
        if limit < blocks {
            (limiter, blocks) = (name, limit);
        }
    }
    // Every limit comes from figures below 2^32, so neither count can be cut.
    let resident_warps = blocks * warps;
    Ok(Occupancy {
        blocks_per_multiprocessor: u32::try_from(blocks).unwrap_or(u32::MAX),
        warps_per_multiprocessor: u32::try_from(resident_warps).unwrap_or(u32::MAX),
        fraction: resident_warps as f64 / most_warps as f64,
        limiter: limiter.to_owned(),
    })
}

/// Blocks that the register file holds; `u64::MAX` for a kernel without registers.
fn blocks_by_registers(
    profile: &Profile,
    warps: u64,
    threads: u32,
    registers: u32,
) -> Result<u64, DoesNotFit> {
    if u64::from(registers) > profile.max_registers_per_thread.value {
        let most = profile.max_registers_per_thread.value;
        return Err(DoesNotFit::RegistersPerThread { registers, most });
    }
    if registers == 0 {
        return Ok(u64::MAX);
    }
    let partitions = profile.partitions_per_multiprocessor.value;
    let available = profile.registers_per_multiprocessor.value;
    let of_warp = (u64::from(registers) * u64::from(WARP_THREADS))
        .next_multiple_of(profile.register_allocation_unit.value);
    let warps_resident = available / partitions / of_warp * partitions;
    let blocks = warps_resident / warps;
    // The launch check of the hardware assumes that all partitions hold equally many warps.
    if of_warp * warps.next_multiple_of(partitions) > available || blocks == 0 {
        return Err(DoesNotFit::Registers { threads, registers, available });
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{find, names};
    use proptest::prelude::*;

    fn fit(gpu: &str, threads: u32, registers: u32, shared: u32) -> (u32, String) {
        let profile = find(gpu).expect(gpu);
        let occupancy = occupancy(&profile, threads, registers, shared).expect("fits");
        (occupancy.blocks_per_multiprocessor, occupancy.limiter)
    }

    #[test]
    fn known_values_of_the_occupancy_calculator() {
        let cases = [
            ("h100", 256, 64, 0, 4, "registers"),
            ("h100", 128, 255, 0, 2, "registers"),
            // 168 registers: 5376 per warp, three warps in a partition; 169 is rounded to 5632.
            ("h100", 128, 168, 0, 3, "registers"),
            ("h100", 128, 169, 0, 2, "registers"),
            // Three warps of 1536 registers: ten fit in a partition, not the 42.7 / 4 of the file.
            ("h100", 96, 48, 0, 13, "registers"),
            ("h100", 1024, 64, 0, 1, "registers"),
            ("h100", 32, 16, 0, 32, "blocks"),
            ("h100", 64, 32, 0, 32, "registers"),
            ("h100", 128, 32, 0, 16, "registers"),
            ("h100", 128, 24, 0, 16, "threads"),
            ("h100", 33, 24, 0, 32, "threads"),
            ("h100", 128, 32, 100 * 1024, 2, "shared memory"),
            ("h100", 128, 32, 227 * 1024, 1, "shared memory"),
            // 113 KiB and the reserved KiB are exactly half; one byte more takes 128 bytes more.
            ("h100", 128, 32, 113 * 1024, 2, "shared memory"),
            ("h100", 128, 32, 113 * 1024 + 1, 1, "shared memory"),
            ("a100", 128, 32, 163 * 1024, 1, "shared memory"),
            ("a100", 128, 40, 16_640, 9, "shared memory"),
            ("a100", 256, 64, 0, 4, "registers"),
            ("rtx4090", 256, 32, 0, 6, "threads"),
            ("rtx4090", 32, 16, 0, 24, "blocks"),
            ("rtx3090", 32, 16, 0, 16, "blocks"),
            ("l4", 64, 168, 16_888, 5, "shared memory"),
            ("l4", 64, 200, 16_888, 4, "registers"),
        ];
        for (gpu, threads, registers, shared, blocks, limiter) in cases {
            let found = fit(gpu, threads, registers, shared);
            assert_eq!(found, (blocks, limiter.to_owned()), "{gpu} {threads} {registers} {shared}");
        }
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let h100 = find("h100").expect("built in");
        assert_eq!(occupancy(&h100, 0, 32, 0), Err(DoesNotFit::Threads { threads: 0, most: 1024 }));
        assert_eq!(
            occupancy(&h100, 1025, 32, 0),
            Err(DoesNotFit::Threads { threads: 1025, most: 1024 })
        );
        assert_eq!(
            occupancy(&h100, 128, 256, 0),
            Err(DoesNotFit::RegistersPerThread { registers: 256, most: 255 })
        );
        assert_eq!(
            occupancy(&h100, 512, 160, 0),
            Err(DoesNotFit::Registers { threads: 512, registers: 160, available: 65_536 })
        );
        assert_eq!(
            occupancy(&h100, 128, 32, 227 * 1024 + 1),
            Err(DoesNotFit::SharedMemory { bytes: 232_449, most: 232_448 })
        );
    }

    proptest! {
        /// Asking for more of anything never makes room for more blocks, and what is resident
        /// never exceeds what the multiprocessor has.
        #[test]
        fn more_resources_never_fit_more_often(
            gpu in prop::sample::select(names()),
            threads in 1_u32..=1100,
            registers in 0_u32..=260,
            shared in 0_u32..=240_000,
            extra in (0_u32..200, 0_u32..64, 0_u32..20_000),
        ) {
            let profile = find(gpu).expect(gpu);
            let blocks = |threads, registers, shared| {
                occupancy(&profile, threads, registers, shared)
                    .map_or(0, |fit| fit.blocks_per_multiprocessor)
            };
            let base = blocks(threads, registers, shared);
            prop_assert!(blocks(threads + extra.0, registers, shared) <= base);
            prop_assert!(blocks(threads, registers + extra.1, shared) <= base);
            prop_assert!(blocks(threads, registers, shared + extra.2) <= base);
            let base = u64::from(base);
            let warps = u64::from(threads.div_ceil(WARP_THREADS));
            prop_assert!(base * warps <= profile.max_warps_per_multiprocessor());
            prop_assert!(
                base * warps * 32 * u64::from(registers)
                    <= profile.registers_per_multiprocessor.value
            );
            prop_assert!(
                base * (u64::from(shared) + 1024) <= profile.shared_bytes_per_multiprocessor.value
            );
        }
    }
}
