// The spans of a query tile, from those of its rows: what several rows select is read once, so their sets
// are laid over each other and cut wherever one of them begins or ends. Each span that comes out is
// selected by the same rows all along, and says by which.
//
// A set of n spans gives at most 2n - 1 spans of which some row selects every token, so each tile has
// room for twice the spans of its rows, at a place that is known beforehand.
#pragma once

namespace spanforge {

constexpr int OVERLAY_THREADS = 128;

// Of a word with a bit for each of 32 rows, those of rows that are not among the first `rows`.
__device__ __forceinline__ unsigned bits_beyond(int rows) {
    return rows >= 32 ? 0 : ~0u << max(rows, 0);
}

// Each warp lays the sets of one tile, for one of `span_heads`, over each other: lane r follows those of
// rows r, r + 32 and so on of the tile, of up to 32 WORDS. `span_ptr` counts sets by row and head, the
// others by tile and head. Tells where each set's spans begin and end in `tile_spans` and how many tokens
// it has, and the tokens of the set before each of them and at their end.
template <int WORDS>
__device__ __forceinline__ void overlay_spans(const int* __restrict__ tile_ptr,
                                              const int* __restrict__ span_ptr,
                                              const int2* __restrict__ spans, int4* tile_span_ptr,
                                              int2* tile_spans, unsigned* span_rows, int* span_tokens,
                                              int tiles, int span_heads) {
    constexpr int END = 0x7fffffff;
    const int lane = threadIdx.x % 32;
    const int set = (blockIdx.x * OVERLAY_THREADS + threadIdx.x) / 32;
    if (set >= tiles * span_heads) return;
    const int tile = set / span_heads;
    const int head = set % span_heads;
    // Room begins behind that of the tiles before, and of the heads before in this tile.
    const int first_row = tile_ptr[tile];
    const int rows = tile_ptr[tile + 1] - first_row;
    int next[WORDS], end[WORDS], before = 0;
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
        span[w] = next[w] < end[w] ? spans[next[w]] : make_int2(END, END);
    }
    const int room = 2 * (span_ptr[first_row * span_heads] + __reduce_add_sync(~0u, before));
    int to = room, tokens = 0;

    // From one place where a row's span begins or ends to the next.
    int from = END;
#pragma unroll
    for (int w = 0; w < WORDS; ++w) from = min(from, span[w].x);
    from = __reduce_min_sync(~0u, from);
    while (from < END) {
        int until = END;
        unsigned selecting[WORDS], by_any = 0;
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            const bool within = span[w].x <= from;
            until = min(until, within ? span[w].y : span[w].x);
            by_any |= selecting[w] = __ballot_sync(~0u, within);
        }
        until = __reduce_min_sync(~0u, until);
        if (by_any != 0) {
            if (lane == 0) {
                tile_spans[to] = make_int2(from, until);
                span_tokens[to] = tokens;
                // Rows that a tile lacks hinder nobody from going by all rows at once.
#pragma unroll
                for (int w = 0; w < WORDS; ++w)
                    span_rows[to * WORDS + w] = selecting[w] | bits_beyond(rows - 32 * w);
            }
            tokens += until - from;
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
    if (lane == 0) {
        tile_span_ptr[set] = make_int4(room, to, tokens, 0);
        if (to > room) span_tokens[to] = tokens;
    }
}

}  // namespace spanforge
