// Decode attention over spans of a paged KV cache.
//
// For each row r (one query token of one request) and query head h:
//   out[r, h] = sum over selected tokens t of softmax_t(q[r, h] . k[t] * scale) * v[t]
// A block takes its share of the plan's line of work, piece by piece; a piece is a run of tokens that
// rows of one query tile select, for one KV head, so all query heads of that KV head's group, of all
// rows of the tile, use each K and V row that is read, and nothing else is read.
//
// Warps form a grid: HEAD_WARPS of them share tokens and split the tile's columns (its rows' query
// heads), TOKEN_WARPS of them split the tokens. Where the columns are not a multiple of HEADS_PER_WARP
// the last of the HEAD_WARPS computes with heads of zeros and writes nothing for them. Each warp keeps a
// softmax state of its own, on CUDA cores (`lanes.cuh`) or tensor cores (`fragments.cuh`); at the end of
// a piece the states are merged, in a fixed order, within the warp and over warps through shared
// memory. Nothing depends on timing, so results repeat bit for bit.
//
// K and V rows come through a ring of tiles in shared memory (`tiles.cuh`) or, for CUDA cores,
// straight into registers: then no warp waits for another before the end of the piece.
//
// Tiles of many rows have another form on sm_90a, whose warps are specialised (`warpgroups.cuh`).
#pragma once

#include "fragments.cuh"
#include "lanes.cuh"
#include "merge.cuh"
#include "overlay.cuh"
#include "tiles.cuh"
#include "warpgroups.cuh"

namespace spanforge {

// What computes.
template <class C, bool TENSOR_CORES>
struct Core {
    using State = LaneState<C>;
};
template <class C>
struct Core<C, true> {
    using State = FragmentState<C>;
};

template <class C>
__device__ __forceinline__ void decode(const DecodeArguments& a) {
    using L = Layout<C>;
    extern __shared__ __align__(C::WARPGROUPS ? 1024 : 16) char shared[];
    write_empty_sets<C>(a);
    const int sets = a.tiles * a.span_heads;
    const Shares<C> shares(a.set_tokens, sets, a.kv_heads / a.span_heads, gridDim.x, a.smallest_share);
    if constexpr (C::WARPGROUPS) {
        attend_by_warpgroups<C>(a, shares, shared);
    } else {
        const int lane = threadIdx.x % 32;
        const int warp = threadIdx.x / 32;
        const int head_warp = warp % L::HEAD_WARPS;
        const int token_warp = warp / L::HEAD_WARPS;
        typename Core<C, C::TENSOR_CORES>::State state;
        Walk<C> walk(a);
        Piece piece;
        for (bool more = walk.first(shares, piece); more; more = walk.next(piece)) {
            state.begin(a, piece, shared, head_warp, lane);
            if constexpr (C::STAGED)
                attend_staged<C>(a, piece, state, shared, token_warp, head_warp, lane);
            else attend_direct<C>(a, piece, state, token_warp, lane);
            state.merge_over_lanes();
            state.store(shared, token_warp, head_warp, lane);
            __syncthreads();  // the states of all warps are written
            finish_piece<C>(a, piece, shared);
            if constexpr (C::LAST_ARRIVER_MERGES) arrive_and_merge<C>(a, shares, piece);
            __syncthreads();  // states and queries are read before the next piece overwrites them
        }
    }
}

}  // namespace spanforge
