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

// Of a word with a bit for each of 32 rows, those of rows that are not among the first `rows`.
__device__ __forceinline__ unsigned bits_beyond(int rows) {
    return rows >= 32 ? 0 : ~0u << max(rows, 0);
}

// Each warp lays the sets of one tile, for one of `span_heads`, over each other: lane r follows those of
// rows r, r + 32 and so on of the tile, of up to 32 WORDS. `span_ptr` counts sets by row and head,
// `tile_span_ptr` by tile and head.
template <int WORDS>
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
    int next[WORDS], end[WORDS], before = 0, own = 0;
    int2 span[WORDS];
#pragma unroll
    for (int w = 0; w < WORDS; ++w) {
        const int row = 32 * w + lane;
        const int first_set = (first_row + row) * span_heads;
        next[w] = end[w] = 0;
        if (row < rows) {
            next[w] = span_ptr[first_set + head];
            end[w] = span_ptr[first_set + head + 1];
            before += next[w] - span_ptr[first_set];
        }
        own += end[w] - next[w];
        span[w] = next[w] < end[w] ? spans[next[w]] : make_int2(END, END);
    }
    int to = 2 * (span_ptr[first_row * span_heads] + warp_sum(before));
    const int room_end = to + 2 * warp_sum(own);
    if (lane == 0) tile_span_ptr[set] = to;

    // From one place where a row's span begins or ends to the next.
    int from = END;
#pragma unroll
    for (int w = 0; w < WORDS; ++w) from = min(from, span[w].x);
    from = warp_least(from);
    while (from < END) {
        int until = END;
        unsigned selecting[WORDS], by_any = 0;
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            const bool within = span[w].x <= from;
            until = min(until, within ? span[w].y : span[w].x);
            by_any |= selecting[w] = __ballot_sync(~0u, within);
        }
        until = warp_least(until);
        if (by_any != 0) {
            if (lane == 0) {
                tile_spans[to] = make_int2(from, until);
                // Rows that a tile lacks hinder nobody from going by all rows at once.
#pragma unroll
                for (int w = 0; w < WORDS; ++w)
                    span_rows[to * WORDS + w] = selecting[w] | bits_beyond(rows - 32 * w);
            }
            ++to;
        }
#pragma unroll
        for (int w = 0; w < WORDS; ++w)
            if (span[w].x <= from && span[w].y == until) {
                ++next[w];
                span[w] = next[w] < end[w] ? spans[next[w]] : make_int2(END, END);
            }
        from = until;
    }
    for (int i = to + lane; i < room_end; i += 32) {
        tile_spans[i] = make_int2(0, 0);
#pragma unroll
        for (int w = 0; w < WORDS; ++w) span_rows[i * WORDS + w] = 0;
    }
}

}  // namespace spanforge
