// The spans of a query tile, from those of its rows: what several rows select is read once, so their sets
// are laid over each other and cut wherever one of them begins or ends. Each span that comes out is
// selected by the same rows all along, and says by which.
//
// A set of n spans gives at most 2n - 1 spans of which some row selects every token, so each tile has
// room for twice the spans of its rows, at a place that is known beforehand; what is left over are spans
// without tokens.
#pragma once

namespace spanforge {

constexpr int OVERLAY_THREADS = 128;

__device__ __forceinline__ int warp_least(int value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        value = min(value, __shfl_xor_sync(~0u, value, step));
    return value;
}

__device__ __forceinline__ int warp_sum(int value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return value;
}

// Each warp lays the sets of one tile, for one of `span_heads`, over each other: lane r follows those of
// row r of the tile. `span_ptr` counts sets by row and head, `tile_span_ptr` by tile and head.
__device__ __forceinline__ void overlay_spans(const int* __restrict__ tile_ptr,
                                              const int* __restrict__ span_ptr,
                                              const int2* __restrict__ spans, int* tile_span_ptr,
                                              int2* tile_spans, unsigned* span_rows, int tiles,
                                              int span_heads) {
    constexpr int END = 0x7fffffff;
    const int lane = threadIdx.x % 32;
    const int set = (blockIdx.x * OVERLAY_THREADS + threadIdx.x) / 32;
    if (set > tiles * span_heads) return;
    const int tile = set / span_heads;
    const int head = set % span_heads;
    // Room begins behind that of the tiles before, and of the heads before in this tile. The set behind
    // the last one tells where all room ends.
    const int first_row = tile_ptr[tile];
    const int rows = tile < tiles ? tile_ptr[tile + 1] - first_row : 0;
    const int first_set = (first_row + lane) * span_heads;
    int next = 0, end = 0, before = 0;
    if (lane < rows) {
        next = span_ptr[first_set + head];
        end = span_ptr[first_set + head + 1];
        before = next - span_ptr[first_set];
    }
    int to = 2 * (span_ptr[first_row * span_heads] + warp_sum(before));
    const int room_end = to + 2 * warp_sum(end - next);
    if (lane == 0) tile_span_ptr[set] = to;

    // From one place where a row's span begins or ends to the next.
    int2 span = next < end ? spans[next] : make_int2(END, END);
    int from = warp_least(span.x);
    while (from < END) {
        const bool within = span.x <= from;
        const int until = warp_least(within ? span.y : span.x);
        const unsigned selecting = __ballot_sync(~0u, within);
        if (selecting != 0) {
            if (lane == 0) {
                tile_spans[to] = make_int2(from, until);
                // Rows that a tile lacks hinder nobody from going by all rows at once.
                span_rows[to] = rows < 32 ? selecting | ~0u << rows : selecting;
            }
            ++to;
        }
        if (within && span.y == until) {
            ++next;
            span = next < end ? spans[next] : make_int2(END, END);
        }
        from = until;
    }
    for (int i = to + lane; i < room_end; i += 32) {
        tile_spans[i] = make_int2(0, 0);
        span_rows[i] = 0;
    }
}

}  // namespace spanforge
