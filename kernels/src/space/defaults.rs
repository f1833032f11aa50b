//! The configuration of each space that is used where nothing has been tuned, with what speaks for it.

use super::{SearchSpace, balanced};
use crate::configuration::{Configuration, Core, LoadPath, Merge, QueryHome};

impl SearchSpace {
    /// The configuration to use where nothing has been tuned: warpgroups where rows fill them, other query
    /// tiles in a space that has them, tensor cores for groups of more than three query heads, 16-byte
    /// loads, and as many blocks with a small ring as the device has room for, up to four per
    /// multiprocessor (six, of CUDA cores with elements of 8 bits; eight, of query tiles with few columns).
    /// `None` where no configuration fits the shape on this device.
    pub fn default_configuration(&self) -> Option<Configuration> {
        if let Some(by_warpgroups) = self.warpgroup_default() {
            return Some(by_warpgroups);
        }
        let preferred = if self.most_query_rows() > 1 {
            self.query_tile_preference()
        } else if self.shape.group_size > 3 {
            self.tensor_core_preference()
        } else {
            self.cuda_core_preference()
        };
        // Small rings in many blocks: other warps compute while one waits. Elements of 8 bits take more
        // instructions for the bytes that are under way meanwhile.
        let most = match preferred.core {
            Core::Fma if self.shape.kv_bytes() == 1 => 6,
            // Twenty warps.
            Core::Mma if preferred.query_rows > 1 => 640 / preferred.threads(&self.shape).max(1),
            _ => 4,
        };
        for blocks in [8, 6, 4, 3, 2, 1].into_iter().filter(|blocks| *blocks <= most) {
            // Tensor cores take so many registers that only the cap makes room for all blocks.
            let min_blocks =
                if preferred.core == Core::Mma { blocks } else { preferred.min_blocks };
            let blocks_per_multiprocessor = blocks;
            let it =
                Configuration { blocks_per_multiprocessor, min_blocks, stages: 2, ..preferred };
            if self.broken_constraint(&it).is_none() {
                return Some(it);
            }
        }
        // Shapes at the edge (very large groups): the valid point nearest to the preference.
        self.valid().min_by_key(|c| {
            u32::from(c.core != preferred.core) * 4000
                + u32::from(c.load_path != preferred.load_path) * 1000
                + c.heads_per_warp.abs_diff(preferred.heads_per_warp) * 64
                + c.tile_tokens.abs_diff(preferred.tile_tokens)
                + c.token_warps.abs_diff(preferred.token_warps) * 16
                + c.stages.abs_diff(preferred.stages) * 8
                + c.unroll.abs_diff(preferred.unroll) * 4
                + c.min_blocks
                + c.blocks_per_multiprocessor.abs_diff(2)
                + u32::from(c.query != preferred.query) * 2
                + u32::from(c.merge != preferred.merge)
                + c.smallest_share.abs_diff(preferred.smallest_share) / 64
                + c.l2_prefetch / 128
                + u32::from(c.vector_bytes != 16)
        })
    }

    /// The largest number of query heads per warp, of those that are tried, that `fits`.
    fn most_heads(&self, fits: impl Fn(u32) -> bool) -> u32 {
        let of_heads = self.parameters.iter().find(|p| p.name == "heads_per_warp");
        let heads = of_heads.into_iter().flat_map(|p| &p.values).copied();
        heads.filter(|h| fits(*h)).max().unwrap_or(1)
    }

    /// As many query heads per warp as the registers hold with room to spare, enough token warps for four
    /// warps, and eight elements per lane and load.
    fn cuda_core_preference(&self) -> Configuration {
        let elements = self.shape.head_dim / (self.shape.head_dim / 8).min(32);
        let heads = self.most_heads(|h| h * elements <= 32);
        let head_warps = self.shape.group_size.div_ceil(heads);
        let kv_bytes = self.shape.kv_bytes();
        Configuration {
            core: Core::Fma,
            query_rows: 1,
            load_path: LoadPath::Staged,
            tile_tokens: if self.shape.head_dim <= 128 { 64 } else { 32 } / kv_bytes,
            stages: 2,
            token_warps: if head_warps >= 4 { 1 } else { 4 / head_warps.next_power_of_two() },
            heads_per_warp: heads,
            vector_bytes: 8 * kv_bytes,
            unroll: 2,
            query: QueryHome::Registers,
            l2_prefetch: 0,
            min_blocks: 1,
            blocks_per_multiprocessor: 2,
            smallest_share: 64,
            merge: Merge::SecondKernel,
        }
    }

    fn most_query_rows(&self) -> u32 {
        let of_rows = self.parameters.iter().find(|p| p.name == "query_rows");
        of_rows.and_then(|p| p.values.last().copied()).unwrap_or(1)
    }

    /// Two warpgroups, or one in each of two blocks, where there are rows to fill them and the space has
    /// them: as many columns as there can be, large tiles, and queries in shared memory, where they cost no
    /// registers.
    fn warpgroup_default(&self) -> Option<Configuration> {
        let of_rows = self.parameters.iter().find(|p| p.name == "query_rows")?;
        let rows = of_rows.values.iter().rev().copied();
        let candidates = rows.flat_map(|query_rows| {
            [(128, 1, 3), (128, 1, 2), (64, 2, 3), (64, 2, 2), (64, 1, 3), (64, 1, 2)].map(
                |(tile_tokens, blocks, stages)| Configuration {
                    core: Core::Wgmma,
                    query_rows,
                    tile_tokens,
                    stages,
                    token_warps: 1,
                    heads_per_warp: 16,
                    vector_bytes: 16,
                    unroll: 1,
                    query: QueryHome::Shared,
                    min_blocks: blocks,
                    blocks_per_multiprocessor: blocks,
                    smallest_share: 128,
                    ..self.cuda_core_preference()
                },
            )
        });
        candidates.into_iter().find(|c| {
            // More than two warpgroups have few registers each.
            c.warpgroups(&self.shape) <= 2 && self.broken_constraint(c).is_none()
        })
    }

    /// Sixteen columns per warp and four such warps, fewer where heads are wide: the accumulators of more
    /// do not fit the registers. Elements of 8 bits take more instructions, and more warps for them, and
    /// larger tiles where the blocks are few.
    fn query_tile_preference(&self) -> Configuration {
        let (per_warp, columns) = match self.shape.head_dim {
            ..=128 => (16, 64),
            _ => (8, 32),
        };
        let rows = self.most_query_rows();
        let fits = |rows: &u32| rows * self.shape.group_size <= columns;
        let query_rows = [32, 16, 8, 4, 2].into_iter().filter(|r| *r <= rows).find(fits);
        let query_rows = query_rows.unwrap_or(2);
        let columns = query_rows * self.shape.group_size;
        let of_8_bits = self.shape.kv_bytes() == 1;
        let per_warp = if of_8_bits && columns <= 16 { 8 } else { per_warp };
        // Eights where sixteens would not be filled.
        let sixteens = balanced(columns, per_warp);
        let filled = sixteens.div_ceil(8) * columns.div_ceil(sixteens) == columns.div_ceil(8);
        let token_warps = if self.shape.row_bytes() > 512 { 1 } else { 2 };
        let steps = if of_8_bits && columns > 8 && self.shape.head_dim <= 256 { 2 } else { 1 };
        Configuration {
            core: Core::Mma,
            query_rows,
            tile_tokens: 16 * token_warps * steps,
            token_warps,
            heads_per_warp: if filled { sixteens } else { balanced(columns, 8) },
            vector_bytes: 16,
            unroll: 1,
            query: QueryHome::Shared,
            ..self.cuda_core_preference()
        }
    }

    /// Eight query heads per warp, one step of sixteen tokens per token warp and tile, in small blocks
    /// of which several keep a multiprocessor busy, and queries in registers as long as the
    /// accumulators leave room for them.
    fn tensor_core_preference(&self) -> Configuration {
        let heads_per_warp = self.most_heads(|h| h <= 8);
        let head_warps = self.shape.group_size.div_ceil(heads_per_warp);
        // What a block has under way is 16 to 32 KiB, and its warps are four where that leaves one each.
        let warps = match self.shape.row_bytes() {
            0..=256 => 4,
            257..=512 => 2,
            _ => 1,
        };
        let token_warps = (warps / head_warps.next_power_of_two()).max(1);
        Configuration {
            core: Core::Mma,
            tile_tokens: 16 * token_warps,
            token_warps,
            heads_per_warp,
            vector_bytes: 16,
            unroll: 1,
            query: if self.shape.head_dim > 128 { QueryHome::Shared } else { QueryHome::Registers },
            ..self.cuda_core_preference()
        }
    }
}
