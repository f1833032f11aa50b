//! The launches of a decode step, made in one place: which kernels, with what grid, how much shared
//! memory, and how much scratch memory their blocks share.

use crate::abi::{
    self, Kernel, MERGE_RESIDENT, MERGE_SLICES, MERGE_THREADS, OVERLAY_THREADS, Operands,
    PLAN_THREADS, PlanBuffers, Scalars, Workspace, Written,
};
use crate::configuration::{KernelSpec, Merge};
use spanforge_device::{Argument, DeviceProperties, Launch, ModuleId};

/// Makes the launches of one loaded kernel on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launcher {
    module: ModuleId,
    spec: KernelSpec,
    blocks: u32,
}

/// Sizes in bytes of the scratch memory of a decode launch (see [`Workspace`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkspaceBytes {
    /// [`Workspace::partial_acc`].
    pub partial_acc: usize,
    /// [`Workspace::partial_ml`].
    pub partial_ml: usize,
    /// [`Workspace::arrivals`], to be zeroed once.
    pub arrivals: usize,
}

impl Launcher {
    /// For the image of `spec` that a device of those properties has loaded as `module`.
    pub fn new(module: ModuleId, spec: KernelSpec, properties: &DeviceProperties) -> Self {
        let per_multiprocessor = spec.configuration.blocks_per_multiprocessor;
        Self { module, spec, blocks: properties.multiprocessors.saturating_mul(per_multiprocessor) }
    }

    /// The loaded code.
    pub fn module(&self) -> ModuleId {
        self.module
    }

    /// What is launched.
    pub fn spec(&self) -> &KernelSpec {
        &self.spec
    }

    /// Blocks of a decode launch: fixed, whatever the problem.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// How evenly the blocks share sets of so many tokens, each for `heads_per_set` KV heads: tokens of the
    /// block with most, over the mean of all.
    pub fn imbalance(&self, set_tokens: &[u64], heads_per_set: u32) -> f64 {
        let pieces = pieces(&self.spec, self.blocks, set_tokens, heads_per_set);
        let of_blocks = pieces.chunk_by(|a, b| a.block == b.block);
        let tokens = of_blocks.map(|of_block| of_block.iter().map(|piece| piece.tokens).sum());
        let most: u64 = tokens.max().unwrap_or(0);
        let mean = pieces.iter().map(|piece| piece.tokens).sum::<u64>() as f64
            / f64::from(self.blocks.max(1));
        if most == 0 { 1.0 } else { most as f64 / mean }
    }

    /// Scratch memory for launches of at most that many query tiles. Only the arrivals depend on them:
    /// the partial states belong to the blocks, at most two of each.
    pub fn workspace_bytes(&self, tiles: usize, kv_heads: u32) -> WorkspaceBytes {
        let columns = self.spec.configuration.columns(&self.spec.shape);
        let slots = 2 * self.blocks as usize * columns as usize;
        WorkspaceBytes {
            partial_acc: 4 * slots * self.spec.shape.head_dim as usize,
            partial_ml: 8 * slots,
            arrivals: tiles.saturating_mul(kv_heads as usize).saturating_mul(4),
        }
    }

    /// Works out the plan of `tiles` query tiles (at least one) from the spans of their rows, of which
    /// each has `span_heads` sets. `plan` has an overlay where the kernel's tiles have several rows.
    pub fn plan(&self, plan: &PlanBuffers, tiles: i32, span_heads: i32) -> Vec<Launch> {
        let sets = tiles * span_heads;
        let overlay = plan.overlay.map(|overlay| {
            let grid = [sets.cast_unsigned().div_ceil(OVERLAY_THREADS / 32), 1];
            let arguments = abi::overlay_arguments(plan, &overlay, tiles, span_heads);
            self.launch(Kernel::Overlay, grid, OVERLAY_THREADS, 0, arguments)
        });
        let arguments = abi::plan_arguments(plan, sets);
        let plan = self.launch(Kernel::Plan, [1, 1], PLAN_THREADS, 0, arguments);
        overlay.into_iter().chain([plan]).collect()
    }

    /// Attention of what is planned: the decode kernel, and the merge kernel where the configuration
    /// has one. `scalars.tiles` is at least one, and `scalars.tiles * scalars.kv_heads` fits an i32.
    pub fn attention(
        &self,
        operands: &Operands,
        plan: &PlanBuffers,
        workspace: &Workspace,
        scalars: &Scalars,
    ) -> Vec<Launch> {
        let c = &self.spec.configuration;
        let mut launches = vec![self.launch(
            Kernel::Decode,
            [self.blocks, 1],
            c.threads(&self.spec.shape),
            c.shared_bytes(&self.spec.shape) as u32,
            abi::decode_arguments(operands, plan, workspace, scalars),
        )];
        if c.merge == Merge::SecondKernel {
            launches.push(self.merge(operands, plan, workspace, scalars, MERGE_SLICES));
        }
        launches
    }

    /// Adds attention over other tokens to what a step has written, for `heads` query heads (at least
    /// one) of all rows together; for any rows, whatever kernel or device has computed either.
    pub fn merge_outputs(&self, to: &Written, other: &Written, heads: i32) -> Launch {
        let grid = [heads.cast_unsigned().div_ceil(MERGE_THREADS / 32), 1];
        let arguments = abi::merge_outputs_arguments(to, other, heads);
        self.launch(Kernel::MergeOutputs, grid, MERGE_THREADS, 0, arguments)
    }

    /// The merge kernel for what the decode kernel left, of as many slices as the device has room for at
    /// once, up to `most_slices`: how many states a tile and KV head has is not known here.
    pub(crate) fn merge(
        &self,
        operands: &Operands,
        plan: &PlanBuffers,
        workspace: &Workspace,
        scalars: &Scalars,
        most_slices: u32,
    ) -> Launch {
        let shape = &self.spec.shape;
        let quads = self.spec.configuration.columns(shape) * shape.head_dim / 4;
        let tiles = (scalars.tiles * scalars.kv_heads).cast_unsigned();
        let grid = [tiles, quads.div_ceil(MERGE_THREADS)];
        let multiprocessors =
            self.blocks / self.spec.configuration.blocks_per_multiprocessor.max(1);
        let room = MERGE_RESIDENT.saturating_mul(multiprocessors);
        let slices = (room / grid[0].saturating_mul(grid[1]).max(1)).clamp(1, most_slices);
        let blocks = self.blocks.cast_signed();
        let arguments = abi::merge_arguments(operands, plan, workspace, scalars, blocks);
        self.launch(Kernel::Merge, grid, slices * MERGE_THREADS, 0, arguments)
    }

    fn launch(
        &self,
        kernel: Kernel,
        grid: [u32; 2],
        threads: u32,
        shared_bytes: u32,
        arguments: Vec<Argument>,
    ) -> Launch {
        Launch {
            module: self.module,
            kernel: kernel.symbol().to_owned(),
            grid: [grid[0], grid[1], 1],
            block: [threads, 1, 1],
            shared_bytes,
            arguments,
        }
    }
}

/// A run of tokens of one set, for one KV head, that one block attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The block.
    pub block: u64,
    /// How many tokens, at least one.
    pub tokens: u64,
    /// Whether these are all tokens of the set.
    pub is_whole: bool,
}

/// What the blocks of a decode launch make of sets of so many tokens, each for `heads_per_set` KV heads, in the
/// order of the line that `Shares` of `cuda/plan.cuh` cuts.
pub fn pieces(
    spec: &KernelSpec,
    blocks: u32,
    set_tokens: &[u64],
    heads_per_set: u32,
) -> Vec<Piece> {
    let beginning = u64::from(spec.shape.beginning_tokens());
    let places: u64 = set_tokens.iter().map(|tokens| tokens + beginning).sum();
    let share = (places * u64::from(heads_per_set))
        .div_ceil(blocks.max(1).into())
        .max(spec.configuration.smallest_share.into());
    let mut pieces = Vec::new();
    let mut at = 0;
    for tokens in (0..heads_per_set).flat_map(|_| set_tokens) {
        let end = at + tokens;
        while at < end {
            let block = at / share;
            let stop = end.min((block + 1) * share);
            pieces.push(Piece { block, tokens: stop - at, is_whole: stop - at == *tokens });
            at = stop;
        }
        at += beginning;
    }
    pieces
}

/// The query tiles of rows of those requests, for kernels whose tiles have up to `query_rows` rows: the
/// first row of each, and their number of rows last. Rows of one request that follow each other share
/// tiles.
pub fn query_tiles(row_request: &[i32], query_rows: u32) -> Vec<i32> {
    let mut first_rows = Vec::new();
    let mut first = 0;
    for (row, request) in row_request.iter().enumerate() {
        if row == 0 || row - first == query_rows as usize || *request != row_request[first] {
            first = row;
            first_rows.push(row as i32);
        }
    }
    first_rows.push(row_request.len() as i32);
    first_rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Sets of all sizes, cut into shares that are smaller than a set, larger than all of them, and of
        /// places without a token alone.
        #[test]
        fn blocks_have_the_tokens_at_their_places(
            sets in prop::collection::vec(prop_oneof![Just(0), 1..4_u64, 1..900_u64], 1..6),
            heads_per_set in 1..4_u32,
            blocks in 1..50_u32,
            smallest_share in prop_oneof![Just(1), 1..2000_u32],
        ) {
            let id = "f16-d128-g4-mma-staged-t64-s2-w4-h4-v16-u1-qr-p0-b3-x3-m64-second";
            let mut spec: KernelSpec = id.parse().unwrap();
            spec.configuration.smallest_share = smallest_share;
            let beginning = spec.shape.beginning_tokens();
            let has_token: Vec<bool> = (0..heads_per_set)
                .flat_map(|_| &sets)
                .flat_map(|n| [vec![true; *n as usize], vec![false; beginning as usize]].concat())
                .collect();
            let share = has_token.len().div_ceil(blocks as usize).max(smallest_share as usize);
            let expected = has_token
                .chunks(share)
                .map(|of_block| of_block.iter().filter(|has| **has).count() as u64)
                .enumerate()
                .filter(|(_, tokens)| *tokens > 0);
            let pieces = pieces(&spec, blocks, &sets, heads_per_set);
            let found = pieces.chunk_by(|a, b| a.block == b.block).map(|of_block| {
                (of_block[0].block as usize, of_block.iter().map(|piece| piece.tokens).sum())
            });
            prop_assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_of_one_request_share_tiles() {
        assert_eq!(query_tiles(&[], 4), [0]);
        assert_eq!(query_tiles(&[7, 7, 7, 7, 7, 2, 2, 7], 4), [0, 4, 5, 7, 8]);
        assert_eq!(query_tiles(&[1, 1, 1], 1), [0, 1, 2, 3]);
    }
}
