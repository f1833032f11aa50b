// Decode attention over spans of a paged KV cache, on CUDA cores.
//
// For each row r (one query token of one request) and query head h:
//   out[r, h] = sum over selected tokens t of softmax_t(q[r, h] . k[t] * scale) * v[t]
// A block takes its share of the plan's line of work, piece by piece; a piece is a run of selected
// tokens of one row for one KV head, so all query heads of that KV head's group use each K and V
// row that is read, and nothing else is read.
//
// Threads. A K or V row is spread over `LANES` lanes, so a warp works on `ROWS_PER_WARP` tokens at a
// time. Warps form a grid: HEAD_WARPS of them share tokens and split the group's query heads,
// TOKEN_WARPS of them split the tokens. Where the group is not a multiple of HEADS_PER_WARP the last
// of the HEAD_WARPS computes with heads of zeros and writes nothing for them. Each lane keeps (m, l, acc) for its own tokens; at the end
// of a piece the states are merged, in a fixed order, over lanes by shuffles and over warps through
// shared memory. Nothing depends on timing, so results repeat bit for bit.
//
// Loads. `Staged`: tiles of K and V rows flow through a ring of STAGES buffers in shared memory by
// cp.async; one barrier per tile says both "tile i has landed for everybody" and "everybody has
// finished with tile i - 1, its buffer may be filled again". `Direct`: each warp loads rows straight
// into registers and never waits for another warp before the end of the piece.
#pragma once

#include "element.cuh"
#include "memory.cuh"
#include "plan.cuh"
#include "softmax.cuh"

namespace spanforge {

struct DecodeArguments {
    const void* q;           // [rows, kv_heads * GROUP, HEAD_DIM]
    const char* k;           // pages, addressed by the strides below
    const char* v;
    const int* page_table;   // [requests, max_pages]
    const int* row_request;  // [rows]
    const int* span_ptr;     // [rows + 1]
    const int2* spans;       // [span_ptr[rows]], canonical
    const int* row_tokens;   // the plan
    const int* span_tokens;
    void* out;               // as q
    float* lse;              // [rows, kv_heads * GROUP]
    float* partial_acc;      // [2 * blocks, GROUP, HEAD_DIM]
    float2* partial_ml;      // [2 * blocks, GROUP]: m (base 2) and l
    int* arrivals;           // [rows, kv_heads], zero before and after a launch
    int rows, kv_heads, page_size, max_pages;
    int page_stride, token_stride, head_stride;  // of K and V, in elements
    int smallest_share;
    float scale;
};

// What follows from a configuration `C` (see the rendered file that ends with the kernels).
template <class C>
struct Layout {
    using Chunk = Packed<C::VECTOR_BYTES>;
    static constexpr int VECTOR = C::VECTOR_BYTES / 2;                // elements per load
    static constexpr int VECTORS = C::HEAD_DIM / VECTOR;              // loads per row
    static constexpr int LANES = VECTORS < 32 ? VECTORS : 32;         // lanes per row
    static constexpr int CHUNKS = VECTORS / LANES;                    // loads per lane and row
    static constexpr int PER_LANE = CHUNKS * VECTOR;                  // elements per lane
    static constexpr int ROWS_PER_WARP = 32 / LANES;
    static constexpr int HEADS = C::HEADS_PER_WARP;
    static constexpr int HEAD_WARPS = (C::GROUP + HEADS - 1) / HEADS;
    static constexpr int TOKEN_WARPS = C::TOKEN_WARPS;
    static constexpr int THREADS = 32 * HEAD_WARPS * TOKEN_WARPS;
    static constexpr int STEP = ROWS_PER_WARP * C::UNROLL;            // tokens per softmax update
    static constexpr int ROW_BYTES = 2 * C::HEAD_DIM;
    static constexpr int COPIES = ROW_BYTES / 16;                     // 16-byte copies per row

    // Shared memory, in bytes from the start. The states that warps merge at the end of a piece
    // take the place of the tiles, which are used up by then.
    static constexpr int TILE_BYTES = C::TILE * ROW_BYTES;            // K or V of one stage
    static constexpr int RING = C::STAGED ? C::STAGES * 2 * TILE_BYTES : 0;
    static constexpr int STATES = TOKEN_WARPS * C::GROUP * (C::HEAD_DIM + 2) * 4;
    static constexpr int QUERY_AT = ((RING > STATES ? RING : STATES) + 15) / 16 * 16;
    static constexpr int QUERY = C::QUERY_SHARED ? HEAD_WARPS * HEADS * C::HEAD_DIM * 4 : 0;
    static constexpr int OFFSETS_AT = QUERY_AT + QUERY;
    static constexpr int OFFSETS = C::STAGED ? 2 * C::TILE * 8 : 0;   // two tiles of addresses
    static constexpr int SHARED_BYTES = OFFSETS_AT + OFFSETS;

    // Where a lane's elements lie among a head's queries in shared memory, the first lane's as the
    // others follow: fours of all lanes side by side, so that a warp reads them without conflicts.
    static __device__ constexpr int query_at(int chunk, int element) {
        return (chunk * VECTOR + element / 4 * 4) * LANES + element % 4;
    }

    static_assert(C::STAGED || HEAD_WARPS == 1, "warps share K and V rows in shared memory only");
    static_assert(C::HEAD_DIM % VECTOR == 0 && VECTORS % LANES == 0, "rows are whole vectors");
    static_assert(SHARED_BYTES == C::SHARED_BYTES, "the host computes the same size");
};

// Tokens [begin, end) of the plan's line that belong to one row, for one KV head.
struct Piece {
    int row, head;
    int begin, end;      // in selected tokens of all rows
    bool first, last;    // whether it holds the row's first and last selected token
};

// Where the K and V rows of selected tokens lie. Each thread follows tokens in rising order and
// keeps the span it is in, so finding the next token's span is mostly one comparison.
struct TokenCursor {
    const DecodeArguments& a;
    const int* pages;
    int span;
    long long head_offset;

    __device__ __forceinline__ TokenCursor(const DecodeArguments& a, const Piece& piece, int first)
        : a(a), pages(a.page_table + static_cast<long long>(a.row_request[piece.row]) * a.max_pages),
          head_offset(static_cast<long long>(piece.head) * a.head_stride) {
        const int low = a.span_ptr[piece.row];
        const int high = a.span_ptr[piece.row + 1];
        span = last_at_most(a.span_tokens, low, high, min(first, piece.end - 1));
    }

    // Byte offset of the K (and V) row of selected token `index` of the line.
    __device__ __forceinline__ long long offset(int index) {
        while (a.span_tokens[span + 1] <= index) ++span;
        const unsigned position = a.spans[span].x + (index - a.span_tokens[span]);
        const unsigned page = position / static_cast<unsigned>(a.page_size);
        const unsigned slot = position - page * a.page_size;
        return 2 * (pages[page] * static_cast<long long>(a.page_stride) +
                    slot * static_cast<long long>(a.token_stride) + head_offset);
    }
};

// Whether query head `h` of a head warp is one of the group's, not padding.
template <class C>
__device__ __forceinline__ bool exists(int head_warp, int h) {
    return C::GROUP % C::HEADS_PER_WARP == 0 || head_warp * C::HEADS_PER_WARP + h < C::GROUP;
}

// The part of a row's softmax that one lane computes: its tokens, its HEADS query heads, its
// PER_LANE elements of the head dimension.
template <class C>
struct LaneState {
    using L = Layout<C>;
    using Chunk = typename L::Chunk;
    float query[C::QUERY_SHARED ? 1 : L::HEADS][C::QUERY_SHARED ? 1 : L::PER_LANE];
    const float* shared_query;
    float m[L::HEADS], l[L::HEADS], acc[L::HEADS][L::PER_LANE];

    // Reads the queries of `piece`, times the scale, in base 2.
    __device__ __forceinline__ void begin(const DecodeArguments& a, const Piece& piece, char* shared,
                                          int head_warp, int lane_in_row) {
        const float scale = a.scale * LOG2_E;
        const long long first_head =
            (static_cast<long long>(piece.row) * a.kv_heads + piece.head) * C::GROUP;
        const unsigned* q = static_cast<const unsigned*>(a.q) + first_head * (C::HEAD_DIM / 2);
        if constexpr (C::QUERY_SHARED) {
            float* queries = reinterpret_cast<float*>(shared + L::QUERY_AT);
            for (int i = threadIdx.x; i < L::QUERY / 8; i += L::THREADS) {
                float2 pair = {0.f, 0.f};
                if (i < C::GROUP * C::HEAD_DIM / 2) C::Element::widen(q[i], pair.x, pair.y);
                const int e = 2 * i % C::HEAD_DIM;
                float* to = queries + (2 * i - e) + e / L::VECTOR % L::LANES * 4 +
                            L::query_at(e / (L::VECTOR * L::LANES), e % L::VECTOR);
                *reinterpret_cast<float2*>(to) = make_float2(pair.x * scale, pair.y * scale);
            }
            __syncthreads();  // all queries are written before any lane reads them
            shared_query = queries + head_warp * L::HEADS * C::HEAD_DIM + lane_in_row * 4;
        } else {
#pragma unroll
            for (int h = 0; h < L::HEADS; ++h)
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c) {
                    const unsigned* from = q + (head_warp * L::HEADS + h) * (C::HEAD_DIM / 2) +
                                           (c * L::LANES + lane_in_row) * (L::VECTOR / 2);
#pragma unroll
                    for (int w = 0; w < L::VECTOR / 2; ++w) {
                        const int e = c * L::VECTOR + 2 * w;
                        const unsigned pair = exists<C>(head_warp, h) ? from[w] : 0;
                        C::Element::widen(pair, query[h][e], query[h][e + 1]);
                        query[h][e] *= scale;
                        query[h][e + 1] *= scale;
                    }
                }
        }
#pragma unroll
        for (int h = 0; h < L::HEADS; ++h) {
            m[h] = minus_infinity();
            l[h] = 0.f;
#pragma unroll
            for (int e = 0; e < L::PER_LANE; ++e) acc[h][e] = 0.f;
        }
    }

    // Four elements of a query, in shared memory one load.
    __device__ __forceinline__ float4 query_at(int h, int c, int e) const {
        if constexpr (C::QUERY_SHARED) {
            const float* from = shared_query + h * C::HEAD_DIM + L::query_at(c, e);
            return *reinterpret_cast<const float4*>(from);
        } else {
            const float* from = &query[h][c * L::VECTOR + e];
            return make_float4(from[0], from[1], from[2], from[3]);
        }
    }

    // Adds this lane's elements of one chunk of K rows to the logits.
    __device__ __forceinline__ void dot(const Chunk& k, int c, float (&logit)[L::HEADS]) const {
#pragma unroll
        for (int w = 0; w < L::VECTOR / 2; w += 2) {
            float4 of_k;
            C::Element::widen(k.word[w], of_k.x, of_k.y);
            C::Element::widen(k.word[w + 1], of_k.z, of_k.w);
#pragma unroll
            for (int h = 0; h < L::HEADS; ++h) {
                const float4 of_q = query_at(h, c, 2 * w);
                logit[h] = fmaf(of_q.x, of_k.x, logit[h]);
                logit[h] = fmaf(of_q.y, of_k.y, logit[h]);
                logit[h] = fmaf(of_q.z, of_k.z, logit[h]);
                logit[h] = fmaf(of_q.w, of_k.w, logit[h]);
            }
        }
    }

    // Completes the logits of UNROLL tokens over the lanes of a row and turns them into weights
    // 2^(logit - m), rescaling what was accumulated under a smaller m. `valid` has bit u set where
    // token u exists.
    __device__ __forceinline__ void weigh(float (&logit)[C::UNROLL][L::HEADS], unsigned valid) {
#pragma unroll
        for (int step = L::LANES / 2; step > 0; step /= 2)
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u)
#pragma unroll
                for (int h = 0; h < L::HEADS; ++h)
                    logit[u][h] += __shfl_xor_sync(~0u, logit[u][h], step);
#pragma unroll
        for (int h = 0; h < L::HEADS; ++h) {
            float largest = m[h];
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u) {
                if (!(valid >> u & 1)) logit[u][h] = minus_infinity();
                largest = fmaxf(largest, logit[u][h]);
            }
            const float base = subtrahend(largest);
            const float rescale = exp2_approximate(m[h] - base);
            m[h] = largest;
            l[h] *= rescale;
#pragma unroll
            for (int e = 0; e < L::PER_LANE; ++e) acc[h][e] *= rescale;
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u) {
                logit[u][h] = exp2_approximate(logit[u][h] - base);
                l[h] += logit[u][h];
            }
        }
    }

    // Adds one chunk of a V row under its weights.
    __device__ __forceinline__ void accumulate(const Chunk& v, int c, const float (&weight)[L::HEADS]) {
#pragma unroll
        for (int w = 0; w < L::VECTOR / 2; ++w) {
            float low, high;
            C::Element::widen(v.word[w], low, high);
#pragma unroll
            for (int h = 0; h < L::HEADS; ++h) {
                float* to = &acc[h][c * L::VECTOR + 2 * w];
                to[0] = fmaf(weight[h], low, to[0]);
                to[1] = fmaf(weight[h], high, to[1]);
            }
        }
    }

    // Merges the states of the warp's ROWS_PER_WARP tokens; afterwards every row's lanes hold it.
    __device__ __forceinline__ void merge_over_lanes() {
#pragma unroll
        for (int step = L::LANES; step < 32; step *= 2)
#pragma unroll
            for (int h = 0; h < L::HEADS; ++h) {
                const float other_m = __shfl_xor_sync(~0u, m[h], step);
                const float other_l = __shfl_xor_sync(~0u, l[h], step);
                const float largest = fmaxf(m[h], other_m);
                const float base = subtrahend(largest);
                const float mine = exp2_approximate(m[h] - base);
                const float theirs = exp2_approximate(other_m - base);
                m[h] = largest;
                l[h] = l[h] * mine + other_l * theirs;
#pragma unroll
                for (int e = 0; e < L::PER_LANE; ++e)
                    acc[h][e] = acc[h][e] * mine + __shfl_xor_sync(~0u, acc[h][e], step) * theirs;
            }
    }

    // Writes the warp's state to shared memory: acc, then (m, l), by token warp and query head.
    __device__ __forceinline__ void store(char* shared, int token_warp, int head_warp, int lane) const {
        float* states = reinterpret_cast<float*>(shared);
        float2* ml = reinterpret_cast<float2*>(states + L::TOKEN_WARPS * C::GROUP * C::HEAD_DIM);
        const int first_head = token_warp * C::GROUP + head_warp * L::HEADS;
#pragma unroll
        for (int h = 0; h < L::HEADS; ++h) {
            if (!exists<C>(head_warp, h)) continue;
            if (lane < L::LANES)
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c)
#pragma unroll
                    for (int e = 0; e < L::VECTOR; e += 4) {
                        const float* from = &acc[h][c * L::VECTOR + e];
                        float* to = states + (first_head + h) * C::HEAD_DIM +
                                    (c * L::LANES + lane) * L::VECTOR + e;
                        *reinterpret_cast<float4*>(to) =
                            make_float4(from[0], from[1], from[2], from[3]);
                    }
            if (lane == 0) ml[first_head + h] = make_float2(m[h], l[h]);
        }
    }
};

// Four consecutive elements of a head's merged state.
struct Quad {
    float m, l;
    float4 acc;
};

// Adds a state to another, both for the same elements. Order matters for the last bit, so callers
// fix it.
__device__ __forceinline__ void merge_into(Quad& sum, float m, float l, float4 acc) {
    const float largest = fmaxf(sum.m, m);
    const float base = subtrahend(largest);
    const float mine = exp2_approximate(sum.m - base);
    const float theirs = exp2_approximate(m - base);
    sum.m = largest;
    sum.l = sum.l * mine + l * theirs;
    sum.acc.x = sum.acc.x * mine + acc.x * theirs;
    sum.acc.y = sum.acc.y * mine + acc.y * theirs;
    sum.acc.z = sum.acc.z * mine + acc.z * theirs;
    sum.acc.w = sum.acc.w * mine + acc.w * theirs;
}

// Writes four elements of the final output of one query head, and its LSE with the first four.
template <class C>
__device__ __forceinline__ void write_output(const DecodeArguments& a, long long head, int element,
                                             const Quad& state) {
    const float scale = normaliser(state.l);
    const uint2 packed = make_uint2(C::Element::narrow(state.acc.x * scale, state.acc.y * scale),
                                    C::Element::narrow(state.acc.z * scale, state.acc.w * scale));
    static_cast<uint2*>(a.out)[(head * C::HEAD_DIM + element) / 4] = packed;
    if (element == 0) a.lse[head] = natural_lse(state.m, state.l);
}

// Merges the partial states that the blocks of one row and KV head left, in the order of blocks,
// with all threads of this block. Does nothing for a row that one block has finished.
template <class C>
__device__ __forceinline__ void merge_row(const DecodeArguments& a, const Shares& shares, int row,
                                          int head) {
    const long long begin = static_cast<long long>(head) * shares.tokens + a.row_tokens[row];
    const long long end = static_cast<long long>(head) * shares.tokens + a.row_tokens[row + 1];
    if (begin == end) return;
    const int first = static_cast<int>(begin / shares.share);
    const int last = static_cast<int>((end - 1) / shares.share);
    if (first == last) return;
    const long long first_head = (static_cast<long long>(row) * a.kv_heads + head) * C::GROUP;
    for (int i = threadIdx.x; i < C::GROUP * C::HEAD_DIM / 4; i += blockDim.x) {
        const int h = i / (C::HEAD_DIM / 4);
        Quad sum = {minus_infinity(), 0.f, make_float4(0.f, 0.f, 0.f, 0.f)};
        for (int block = first; block <= last; ++block) {
            const int slot = partial_slot(block, block == first);
            // Written by other blocks of the same launch where the last arriver merges, so these
            // loads may not go through the read-only path or a stale L1 line.
            const float2 ml = __ldcg(a.partial_ml + slot * C::GROUP + h);
            const float4* acc = reinterpret_cast<const float4*>(a.partial_acc) +
                                static_cast<long long>(slot) * (C::GROUP * C::HEAD_DIM / 4) + i;
            merge_into(sum, ml.x, ml.y, __ldcg(acc));
        }
        write_output<C>(a, first_head + h, i % (C::HEAD_DIM / 4) * 4, sum);
    }
}

// Merges the token warps' states from shared memory in warp order, and writes the row's output or,
// where other blocks have a part in the row, its partial state.
template <class C>
__device__ __forceinline__ void finish_piece(const DecodeArguments& a, const Piece& piece,
                                             const char* shared) {
    using L = Layout<C>;
    const float4* states = reinterpret_cast<const float4*>(shared);
    const float2* ml = reinterpret_cast<const float2*>(
        shared + L::TOKEN_WARPS * C::GROUP * C::HEAD_DIM * 4);
    const long long first_head =
        (static_cast<long long>(piece.row) * a.kv_heads + piece.head) * C::GROUP;
    const int slot = partial_slot(blockIdx.x, piece.first);
    for (int i = threadIdx.x; i < C::GROUP * C::HEAD_DIM / 4; i += L::THREADS) {
        const int h = i / (C::HEAD_DIM / 4);
        Quad sum = {ml[h].x, ml[h].y, states[i]};
#pragma unroll
        for (int w = 1; w < L::TOKEN_WARPS; ++w) {
            const float2 other = ml[w * C::GROUP + h];
            merge_into(sum, other.x, other.y, states[w * (C::GROUP * C::HEAD_DIM / 4) + i]);
        }
        if (piece.first && piece.last) {
            write_output<C>(a, first_head + h, i % (C::HEAD_DIM / 4) * 4, sum);
        } else {
            float4* acc = reinterpret_cast<float4*>(a.partial_acc) +
                          static_cast<long long>(slot) * (C::GROUP * C::HEAD_DIM / 4);
            acc[i] = sum.acc;
            if (i % (C::HEAD_DIM / 4) == 0) a.partial_ml[slot * C::GROUP + h] = make_float2(sum.m, sum.l);
        }
    }
}

// The tokens of a piece, through a ring of tiles in shared memory.
template <class C>
__device__ __forceinline__ void attend_staged(const DecodeArguments& a, const Piece& piece,
                                              LaneState<C>& state, char* shared, int token_warp,
                                              int lane) {
    using L = Layout<C>;
    using Chunk = typename L::Chunk;
    long long* offsets = reinterpret_cast<long long*>(shared + L::OFFSETS_AT);
    const unsigned ring = shared_address(shared);
    const int tiles = (piece.end - piece.begin + C::TILE - 1) / C::TILE;
    const int tid = threadIdx.x;
    TokenCursor cursor(a, piece, piece.begin + tid);

    // Addresses of tile `t`, for whoever copies it after the next barrier.
    const auto locate = [&](int t) {
        const int index = piece.begin + t * C::TILE + tid;
        if (tid < C::TILE && index < piece.end)
            offsets[t % 2 * C::TILE + tid] = cursor.offset(index);
    };
    // Starts the copies of tile `t`; a group is committed even where there is no such tile, so that
    // counting groups counts tiles.
    const auto copy = [&](int t) {
        if (t < tiles) {
            const int count = min(C::TILE, piece.end - piece.begin - t * C::TILE);
            const unsigned to = ring + t % C::STAGES * 2 * L::TILE_BYTES;
#pragma unroll 2
            for (int i = tid; i < C::TILE * L::COPIES; i += L::THREADS) {
                const int row = i / L::COPIES;
                const int byte = i % L::COPIES * 16;
                const bool exists = row < count;
                const long long from = exists ? offsets[t % 2 * C::TILE + row] + byte : 0;
                copy_async<C::L2_PREFETCH>(to + i * 16, a.k + from, exists);
                copy_async<C::L2_PREFETCH>(to + L::TILE_BYTES + i * 16, a.v + from, exists);
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
#pragma unroll 1
        for (int base = token_warp * L::STEP; base < count; base += L::TOKEN_WARPS * L::STEP) {
            const int row = base + lane / L::LANES;
            const int column = lane % L::LANES * C::VECTOR_BYTES;
            float logit[C::UNROLL][L::HEADS] = {};
            unsigned valid = 0;
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u) {
                const int r = row + u * L::ROWS_PER_WARP;
                valid |= (r < count ? 1u : 0u) << u;
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c)
                    state.dot(load_shared(k + r * L::ROW_BYTES + c * L::LANES * C::VECTOR_BYTES + column,
                                          static_cast<Chunk*>(nullptr)),
                              c, logit[u]);
            }
            state.weigh(logit, valid);
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u)
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c)
                    state.accumulate(
                        load_shared(k + L::TILE_BYTES + (row + u * L::ROWS_PER_WARP) * L::ROW_BYTES +
                                        c * L::LANES * C::VECTOR_BYTES + column,
                                    static_cast<Chunk*>(nullptr)),
                        c, logit[u]);
        }
    }
    __syncthreads();  // everybody has finished with the tiles: states may take their place
}

// The tokens of a piece, straight into registers, 32 addresses at a time.
template <class C>
__device__ __forceinline__ void attend_direct(const DecodeArguments& a, const Piece& piece,
                                              LaneState<C>& state, int token_warp, int lane) {
    using L = Layout<C>;
    using Chunk = typename L::Chunk;
    const int first = piece.begin + token_warp * 32;
    TokenCursor cursor(a, piece, first + lane);
    for (int base = first; base < piece.end; base += L::TOKEN_WARPS * 32) {
        const long long mine = base + lane < piece.end ? cursor.offset(base + lane) : -1;
#pragma unroll 1
        for (int j = 0; j < 32 && base + j < piece.end; j += L::STEP) {
            Chunk k[C::UNROLL][L::CHUNKS], v[C::UNROLL][L::CHUNKS];
            unsigned valid = 0;
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u) {
                const long long from =
                    __shfl_sync(~0u, mine, j + u * L::ROWS_PER_WARP + lane / L::LANES);
                valid |= (from >= 0 ? 1u : 0u) << u;
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c) {
                    const long long at = from + (c * L::LANES + lane % L::LANES) * C::VECTOR_BYTES;
                    k[u][c] = {};
                    v[u][c] = {};
                    if (from >= 0) {
                        k[u][c] = load_streaming<C::L2_PREFETCH>(a.k + at, static_cast<Chunk*>(nullptr));
                        v[u][c] = load_streaming<C::L2_PREFETCH>(a.v + at, static_cast<Chunk*>(nullptr));
                    }
                }
            }
            float logit[C::UNROLL][L::HEADS] = {};
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u)
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c) state.dot(k[u][c], c, logit[u]);
            state.weigh(logit, valid);
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u)
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c) state.accumulate(v[u][c], c, logit[u]);
        }
    }
}

// Rows without a selected token: +0 and -inf, spread over the blocks.
template <class C>
__device__ __forceinline__ void write_empty_rows(const DecodeArguments& a) {
    const Quad empty = {minus_infinity(), 0.f, make_float4(0.f, 0.f, 0.f, 0.f)};
    const int heads = a.kv_heads * C::GROUP;
    for (int row = blockIdx.x; row < a.rows; row += gridDim.x) {
        if (a.row_tokens[row] != a.row_tokens[row + 1]) continue;
        for (int i = threadIdx.x; i < heads * (C::HEAD_DIM / 4); i += blockDim.x)
            write_output<C>(a, static_cast<long long>(row) * heads + i / (C::HEAD_DIM / 4),
                            i % (C::HEAD_DIM / 4) * 4, empty);
    }
}

// The last block to arrive at a row that several share merges it. Which block that is depends on
// timing; what it computes does not.
template <class C>
__device__ __forceinline__ void arrive_and_merge(const DecodeArguments& a, const Shares& shares,
                                                 const Piece& piece) {
    if (piece.first && piece.last) return;
    __shared__ int is_last;
    __threadfence();  // this thread's part of the partial state is visible to every block
    __syncthreads();  // and so is every other thread's of this block
    const long long line = static_cast<long long>(piece.head) * shares.tokens;
    const int sharing =
        static_cast<int>((line + a.row_tokens[piece.row + 1] - 1) / shares.share -
                         (line + a.row_tokens[piece.row]) / shares.share) + 1;
    if (threadIdx.x == 0) {
        int* arrivals = a.arrivals + piece.row * a.kv_heads + piece.head;
        const int before = atomicAdd(arrivals, 1);
        is_last = before == sharing - 1;
        if (is_last) *arrivals = 0;  // ready for the next launch
        __threadfence();  // what the other blocks made visible before they arrived is seen from here
    }
    __syncthreads();  // is_last is written
    if (is_last) merge_row<C>(a, shares, piece.row, piece.head);
    __syncthreads();  // is_last is read before the next piece writes it
}

template <class C>
__device__ __forceinline__ void decode(const DecodeArguments& a) {
    using L = Layout<C>;
    extern __shared__ __align__(16) char shared[];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int head_warp = warp % L::HEAD_WARPS;
    const int token_warp = warp / L::HEAD_WARPS;

    write_empty_rows<C>(a);
    const Shares shares(a.row_tokens, a.rows, a.kv_heads, gridDim.x, a.smallest_share);
    const long long stop = min(shares.work, (blockIdx.x + 1) * shares.share);
    LaneState<C> state;
    for (long long at = blockIdx.x * shares.share; at < stop;) {
        Piece piece;
        piece.head = static_cast<int>(at / shares.tokens);
        piece.begin = static_cast<int>(at - static_cast<long long>(piece.head) * shares.tokens);
        piece.row = last_at_most(a.row_tokens, 0, a.rows, piece.begin);
        const int row_end = a.row_tokens[piece.row + 1];
        piece.end = static_cast<int>(min(static_cast<long long>(row_end), piece.begin + (stop - at)));
        piece.first = piece.begin == a.row_tokens[piece.row];
        piece.last = piece.end == row_end;

        state.begin(a, piece, shared, head_warp, lane % L::LANES);
        if constexpr (C::STAGED) attend_staged<C>(a, piece, state, shared, token_warp, lane);
        else attend_direct<C>(a, piece, state, token_warp, lane);
        state.merge_over_lanes();
        state.store(shared, token_warp, head_warp, lane);
        __syncthreads();  // the states of all warps are written
        finish_piece<C>(a, piece, shared);
        if constexpr (C::LAST_ARRIVER_MERGES) arrive_and_merge<C>(a, shares, piece);
        __syncthreads();  // states and queries are read before the next piece overwrites them
        at += piece.end - piece.begin;
    }
}

}  // namespace spanforge
