// Tiles of K and V rows through a ring of STAGES buffers in shared memory, by cp.async.
//
// One barrier per tile says both "tile i has landed for everybody" and "everybody has finished with
// tile i - 1, its buffer may be filled again".
#pragma once

#include "memory.cuh"
#include "piece.cuh"

namespace spanforge {

// The tokens of a piece, through a ring of tiles in shared memory.
template <class C, class State>
__device__ __forceinline__ void attend_staged(const DecodeArguments& a, const Piece& piece,
                                              State& state, char* shared, int token_warp,
                                              int head_warp, int lane) {
    using L = Layout<C>;
    long long* offsets = reinterpret_cast<long long*>(shared + L::OFFSETS_AT);
    unsigned* rows = reinterpret_cast<unsigned*>(shared + L::ROWS_AT);
    const unsigned ring = shared_address(shared);
    const int tiles = (piece.end - piece.begin + C::TILE - 1) / C::TILE;
    const int tid = threadIdx.x;
    const int first_query_row = Columns<C>(a, piece.tile, piece.head).first_row;
    TokenCursor<C> cursor(a, piece, first_query_row, piece.begin + tid / 32 * 32);
    // Each warp copies whole rows, each lane the same 16 bytes of them.
    const int first_row = tid / 32 * L::WARP_ROWS + lane / L::COPIES;
    const int chunk = lane % L::COPIES;
    const char* k_chunk = a.k + chunk * 16;
    const char* v_chunk = a.v + chunk * 16;

    // Addresses of tile `t`, for whoever copies it after the next barrier, and the rows that select its
    // tokens: none where there is no token.
    const auto locate = [&](int t) {
        if (tid / 32 * 32 >= C::TILE) return;
        const int index = piece.begin + t * C::TILE + tid % C::TILE;
        const bool exists = index < piece.end;
        const long long offset = cursor.offset(index);
        if (C::TILE % 32 != 0 && tid >= C::TILE) return;
        offsets[t % 2 * C::TILE + tid] = exists ? offset : 0;
        if (C::QUERY_ROWS > 1) rows[t % (C::STAGES + 1) * C::TILE + tid] = exists ? cursor.rows() : 0;
    };
    // Starts the copies of tile `t`; a group is committed even where there is no such tile, so that
    // counting groups counts tiles.
    const auto copy = [&](int t) {
        if (t < tiles) {
            const int count = min(C::TILE, piece.end - piece.begin - t * C::TILE);
            const unsigned to = ring + t % C::STAGES * 2 * L::TILE_BYTES;
            const long long* from = offsets + t % 2 * C::TILE;
#pragma unroll 4
            for (int row = first_row; row < C::TILE; row += L::ROWS_AT_ONCE) {
                const bool exists = row < count;
                const char* k = k_chunk + from[row];
                const char* v = v_chunk + from[row];
#pragma unroll
                for (int c = 0; c < L::COPIES; c += 32) {
                    const unsigned place = to + L::place(row, chunk + c);
                    copy_async<C::L2_PREFETCH>(place, k + c * 16, exists);
                    copy_async<C::L2_PREFETCH>(place + L::TILE_BYTES, v + c * 16, exists);
                }
            }
        }
        commit_copies();
    };

    locate(0);
#pragma unroll 1
    for (int t = 0; t < C::STAGES - 1; ++t) {
        __syncthreads();  // the addresses of tile t are written; those of tile t - 1 are used
        copy(t);
        locate(t + 1);
    }
    for (int t = 0; t < tiles; ++t) {
        wait_copies<C::STAGES - 2>();  // this thread's part of tile t has landed
        __syncthreads();  // everybody's part has; and everybody has finished with tile t - 1
        copy(t + C::STAGES - 1);
        locate(t + C::STAGES);
        const char* k = shared + t % C::STAGES * 2 * L::TILE_BYTES;
        const int count = min(C::TILE, piece.end - piece.begin - t * C::TILE);
        if constexpr (C::TENSOR_CORES)
            state.tile(k, rows + t % (C::STAGES + 1) * C::TILE, count, token_warp, head_warp, lane);
        else state.tile(k, count, token_warp, lane);
    }
    __syncthreads();  // everybody has finished with the tiles: states may take their place
}

}  // namespace spanforge
