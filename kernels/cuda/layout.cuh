// What the decode kernels are given, and what follows from a configuration alone: who works on what,
// and where in shared memory things lie.
#pragma once

#include "element.cuh"

namespace spanforge {

// A *query tile* is up to QUERY_ROWS rows of one request, one after the other, whose queries are
// computed together; with QUERY_ROWS of 1 tiles are rows. Each tile has `span_heads` sets of spans: one
// for all KV heads, or one for each.
struct DecodeArguments {
    const void* q;           // [rows, kv_heads * GROUP, HEAD_DIM]
    const char* k;           // pages, addressed by the strides below
    const char* v;
    const int* page_table;   // [requests, max_pages]
    const int* row_request;  // [rows]
    const int* tile_ptr;     // [tiles + 1]: first rows; not read where QUERY_ROWS is 1
    const int* span_ptr;     // [sets + 1]: first spans; or, of query tiles, [sets, 4] (`overlay.cuh`)
    const int2* spans;       // of each set canonical
    const unsigned* span_rows;  // [spans, ROW_WORDS]: bits of the rows of its tile that select a span; not
                                // read where QUERY_ROWS is 1
    const int* set_tokens;   // [sets + 2]: the plan
    const int* span_tokens;
    const float* sinks;      // [kv_heads * GROUP], or null
    const float* k_scales;   // [kv_heads]: factors of elements of 8 bits, or null for 1
    const float* v_scales;   // as k_scales
    void* out;               // as q
    float* lse;              // [rows, kv_heads * GROUP]
    float* partial_acc;      // [2 * blocks, COLUMNS, HEAD_DIM]
    float2* partial_ml;      // [2 * blocks, COLUMNS]: m (base 2) and l
    int* arrivals;           // [tiles, kv_heads], zero before and after a launch
    int tiles, kv_heads, span_heads, page_size, max_pages;
    int page_stride, token_stride, head_stride;  // of K and V, in elements
    int smallest_share;
    float scale;
    float soft_cap;          // 0 for none
};

// What follows from a configuration `C` (see the rendered file that ends with the kernels).
template <class C>
struct Layout {
    using Chunk = Packed<C::VECTOR_BYTES>;
    static constexpr int VECTOR = C::VECTOR_BYTES / C::Kv::BYTES;     // elements per load
    static constexpr int VECTORS = C::HEAD_DIM / VECTOR;              // loads per row
    static constexpr int LANES = VECTORS < 32 ? VECTORS : 32;         // lanes per row
    static constexpr int CHUNKS = VECTORS / LANES;                    // loads per lane and row
    static constexpr int PER_LANE = CHUNKS * VECTOR;                  // elements per lane
    static constexpr int ROWS_PER_WARP = 32 / LANES;
    static constexpr int HEADS = C::HEADS_PER_WARP;
    static constexpr int ROW_WORDS = (C::QUERY_ROWS + 31) / 32;       // words of a bit per row
    static constexpr int COLUMNS = C::QUERY_ROWS * C::GROUP;          // query heads of a tile's rows
    static constexpr int GROUPS = C::WARPGROUPS ? (COLUMNS + 63) / 64 : 0;  // warpgroups that compute
    static constexpr int HEAD_WARPS = C::WARPGROUPS ? 4 * GROUPS : (COLUMNS + HEADS - 1) / HEADS;
    static constexpr int TOKEN_WARPS = C::TOKEN_WARPS;
    static constexpr int THREADS = 32 * HEAD_WARPS * TOKEN_WARPS + (C::WARPGROUPS ? 128 : 0);
    static constexpr int FRAGMENTS = (HEADS + 7) / 8;                 // eights of heads per warp
    static constexpr int STEP =                                       // tokens per softmax update
        (C::TENSOR_CORES ? 16 : ROWS_PER_WARP) * C::UNROLL;
    static constexpr int ROW_BYTES = C::Kv::BYTES * C::HEAD_DIM;
    static constexpr int QUERY_ROW_BYTES = 2 * C::HEAD_DIM;
    static constexpr int COPIES = ROW_BYTES / 16;                     // 16-byte copies per row
    static constexpr int WARP_ROWS = COPIES < 32 ? 32 / COPIES : 1;   // rows that a warp copies
    static constexpr int ROWS_AT_ONCE = THREADS / 32 * WARP_ROWS;     // and a block

    // Shared memory, in bytes from the start. The states that warps merge at the end of a piece
    // take the place of the tiles, which are used up by then.
    static constexpr int TILE_BYTES = C::TILE * ROW_BYTES;            // K or V of one stage
    static constexpr int RING = C::STAGED ? C::STAGES * 2 * TILE_BYTES : 0;
    // Floats from one head's accumulator to the next: those of tensor cores are stored by columns,
    // which four floats of padding keep on different banks.
    static constexpr int STATE = C::HEAD_DIM + (C::TENSOR_CORES ? 4 : 0);
    static constexpr int STATES = C::WARPGROUPS ? 0 : TOKEN_WARPS * COLUMNS * (STATE + 2) * 4;
    static constexpr int QUERY_AT = ((RING > STATES ? RING : STATES) + 15) / 16 * 16;
    static constexpr int QUERY_BYTES =                                // 16 bits, or f32
        HEAD_WARPS * (C::TENSOR_CORES ? FRAGMENTS * 8 * QUERY_ROW_BYTES : HEADS * C::HEAD_DIM * 4);
    static constexpr int QUERY = C::QUERY_SHARED ? QUERY_BYTES : 0;
    // Tensor cores multiply elements of 8 bits as f16, and with them queries that are made f16 (`ToF16`):
    // a factor for each.
    static constexpr bool CONVERTED =
        C::TENSOR_CORES && C::Kv::BYTES == 1 && !C::Element::IS_F16;
    static constexpr int FACTORS_AT = QUERY_AT + QUERY;
    static constexpr int FACTORS = CONVERTED && C::QUERY_SHARED ? HEAD_WARPS * FRAGMENTS * 8 * 4 : 0;
    static constexpr int OFFSETS_AT = FACTORS_AT + FACTORS;
    static constexpr int OFFSETS =                                    // two tiles of addresses
        C::STAGED && !C::WARPGROUPS ? 2 * C::TILE * 8 : 0;
    // Which rows select the tokens of the tiles that are located and not used up.
    static constexpr int ROWS_AT = OFFSETS_AT + OFFSETS;
    static constexpr int ROWS =
        C::QUERY_ROWS > 1 ? (C::WARPGROUPS ? C::STAGES : C::STAGES + 1) * ROW_WORDS * C::TILE * 4 : 0;
    static constexpr int BARRIERS_AT = ROWS_AT + ROWS;                // two for each stage
    static constexpr int BARRIERS = C::WARPGROUPS ? 16 * C::STAGES : 0;
    static constexpr int PIECES_AT = BARRIERS_AT + BARRIERS;          // that the tiles of stages are of
    static constexpr int PIECES = C::WARPGROUPS ? 16 * C::STAGES : 0;
    static constexpr int SHARED_BYTES = PIECES_AT + PIECES;

    // Registers of a thread as the launch has them, and as warpgroups share them: those that bring tiles
    // need few.
    static constexpr int EQUAL_REGISTERS = 65536 / (THREADS * C::MIN_BLOCKS) / 8 * 8;
    static constexpr bool SHARES_REGISTERS = EQUAL_REGISTERS < 240;
    static constexpr int BRINGING_REGISTERS = 40;
    static constexpr int ALL_REGISTERS = EQUAL_REGISTERS * (GROUPS + 1) - BRINGING_REGISTERS;
    static constexpr int MOST_REGISTERS = ALL_REGISTERS / (GROUPS > 0 ? GROUPS : 1) / 8 * 8;
    static constexpr int COMPUTING_REGISTERS = MOST_REGISTERS < 240 ? MOST_REGISTERS : 240;

    // Where a lane's elements lie among a head's queries in shared memory, the first lane's as the
    // others follow: fours of all lanes side by side, so that a warp reads them without conflicts.
    static __device__ constexpr int query_at(int chunk, int element) {
        return (chunk * VECTOR + element / 4 * 4) * LANES + element % 4;
    }

    // Where 16 bytes of a row lie in a tile.
    static __device__ constexpr int place(int row, int chunk) {
        if constexpr (C::WARPGROUPS) return in_panels(C::TILE, row, chunk);
        return C::TENSOR_CORES ? exchanged<ROW_BYTES>(row, chunk) : row * ROW_BYTES + chunk * 16;
    }

    // And among `rows` rows that warpgroups take: 128 bytes of all of them, then the next 128.
    static __device__ constexpr int in_panels(int rows, int row, int chunk) {
        return chunk / 8 * rows * 128 + exchanged<128>(row, chunk % 8);
    }

    // And among the queries that tensor cores take.
    static __device__ constexpr int query_place(int row, int chunk) {
        return exchanged<QUERY_ROW_BYTES>(row, chunk);
    }

    // Tensor cores take the same 16 bytes of eight rows at a time: exchanged like this, they lie on
    // different banks. Of rows of 64 bytes two lie side by side on all banks.
    template <int BYTES>
    static __device__ constexpr int exchanged(int row, int chunk) {
        return row * BYTES + (chunk ^ (BYTES >= 128 ? row % 8 : row / 2 % 4)) * 16;
    }

    static_assert(C::STAGED || !C::TENSOR_CORES, "tensor cores take tiles from shared memory");
    static_assert(C::QUERY_ROWS == 1 || C::TENSOR_CORES, "CUDA cores take one row at a time");
    static_assert(ROW_WORDS == 1 || C::WARPGROUPS, "a word has a bit for each row of a query tile");
    static_assert(!C::WARPGROUPS || (C::TENSOR_CORES && C::Kv::BYTES == 2 && C::QUERY_ROWS > 1 &&
                                     C::TILE % 64 == 0 && C::TILE <= 128 && !C::LAST_ARRIVER_MERGES),
                  "warpgroups take query tiles, 64 or 128 tokens of 16 bits at a time");
    static_assert(C::STAGED || HEAD_WARPS == 1, "warps share K and V rows in shared memory only");
    static_assert(C::HEAD_DIM % VECTOR == 0 && VECTORS % LANES == 0, "rows are whole vectors");
    static_assert(SHARED_BYTES == C::SHARED_BYTES, "the host computes the same size");
};

// What elements of K or V of a KV head are to be multiplied by.
__device__ __forceinline__ float scale_of(const float* scales, int head) {
    return scales == nullptr ? 1.f : scales[head];
}

// The factor of q . k, for elements of K as they are stored.
template <class C>
__device__ __forceinline__ float key_scale(const DecodeArguments& a, int head) {
    return C::Kv::BYTES == 1 ? a.scale * scale_of(a.k_scales, head) : a.scale;
}

// Whether query head `h` of a head warp is one of the tile's columns, not padding.
template <class C>
__device__ __forceinline__ bool exists(int head_warp, int h) {
    constexpr int COLUMNS = Layout<C>::COLUMNS;
    return COLUMNS % C::HEADS_PER_WARP == 0 || head_warp * C::HEADS_PER_WARP + h < COLUMNS;
}

// The columns of a query tile, for one KV head: its rows' query heads, row after row.
template <class C>
struct Columns {
    int first_row, rows, kv_heads, head;

    __device__ __forceinline__ Columns(const DecodeArguments& a, int tile, int head)
        : first_row(tile), rows(1), kv_heads(a.kv_heads), head(head) {
        if constexpr (C::QUERY_ROWS > 1) {
            first_row = a.tile_ptr[tile];
            rows = a.tile_ptr[tile + 1] - first_row;
        }
    }

    // Row of the tile that column `c` belongs to.
    static __device__ __forceinline__ int row(int c) { return C::QUERY_ROWS > 1 ? c / C::GROUP : 0; }

    // Whether the tile has that row: the last tile of a request may have fewer than others.
    __device__ __forceinline__ bool has_row(int c) const {
        return C::QUERY_ROWS == 1 || row(c) < rows;
    }

    // Which of the model's query heads it is.
    __device__ __forceinline__ int query_head(int c) const {
        return head * C::GROUP + c - row(c) * C::GROUP;
    }

    // Its place in [rows, query_heads].
    __device__ __forceinline__ long long place(int c) const {
        return static_cast<long long>(first_row + row(c)) * (kv_heads * C::GROUP) + query_head(c);
    }
};

}  // namespace spanforge
