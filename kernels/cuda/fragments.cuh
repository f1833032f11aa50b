// Softmax and products on tensor cores, by mma.m16n8k16 with tokens for rows and query heads for
// columns: eight heads fill a product, where with heads for rows half of every product would be of
// padding.
//
//   logits [16 tokens, 8 heads]   = K [16 tokens, head_dim] * Q^T
//   acc [16 of head_dim, 8 heads] = V^T [16 of head_dim, 16 tokens] * weights
//
// A lane has the logits and the accumulators of the same two heads in each eight, so what rescales
// one rescales the other without an exchange. The weights leave the first product with a token per
// four lanes and are wanted with a head per four lanes: `transposed` turns them around.
//
// A weight is multiplied as the sum of two 16-bit numbers, so the second product is as exact as on
// CUDA cores. Reading K and V takes far longer than twice the products. One number does where weights
// are f16 and outputs bf16, whose rounding is eight times as coarse.
#pragma once

#include "memory.cuh"
#include "piece.cuh"
#include "softmax.cuh"

namespace spanforge {

// What tensor cores multiply: the queries' type, and f16 for elements of 8 bits.
template <class Element, int KV_BYTES>
struct Product {
    using Type = Element;
};
template <class Element>
struct Product<Element, 1> {
    using Type = F16;
};

// A warp's softmax over its tokens, for its HEADS query heads. Heads that do not exist compute with
// queries of zeros.
template <class C>
struct FragmentState {
    using L = Layout<C>;
    using Factor = typename Product<typename C::Element, C::Kv::BYTES>::Type;
    static constexpr int FRAGMENTS = L::FRAGMENTS;
    static constexpr int DEPTH = C::HEAD_DIM / 16;  // products along the head dimension
    static constexpr int RUN = DEPTH < 8 ? DEPTH : 8;

    unsigned query[C::QUERY_SHARED ? 1 : FRAGMENTS][C::QUERY_SHARED ? 1 : DEPTH][2];
    unsigned shared_query;
    float scale[L::CONVERTED ? FRAGMENTS : 1][2];  // of logits, by query head
    float soft_cap;
    float m[FRAGMENTS][2], l[FRAGMENTS][2], acc[FRAGMENTS][DEPTH][4];

    // Reads the queries of `piece`.
    __device__ __forceinline__ void begin(const DecodeArguments& a, const Piece& piece, char* shared,
                                          int head_warp, int lane) {
        const float of_all = key_scale<C>(a, piece.head) * LOG2_E;
        scale[0][0] = of_all;
        soft_cap = a.soft_cap;
        const char* q = static_cast<const char*>(a.q);
        const Columns<C> columns(a, piece.tile, piece.head);
        constexpr int ROWS = 8 * FRAGMENTS;  // per head warp, padding included
        if constexpr (C::QUERY_SHARED) {
            char* queries = shared + L::QUERY_AT;
            const auto query_of = [&](int row) -> const char* {
                const int h = row % ROWS;
                const int c = row / ROWS * L::HEADS + h;
                const bool is_query = is_head(row / ROWS, h) && columns.has_row(c);
                return is_query ? q + columns.place(c) * L::QUERY_ROW_BYTES : nullptr;
            };
            if constexpr (C::Kv::BYTES == 2) {
                for (int i = threadIdx.x; i < L::QUERY / 16; i += L::THREADS) {
                    const int row = i / L::COPIES;
                    const int chunk = i % L::COPIES;
                    uint4 part = {0, 0, 0, 0};
                    if (const char* of_head = query_of(row))
                        part = *reinterpret_cast<const uint4*>(of_head + chunk * 16);
                    *reinterpret_cast<uint4*>(queries + L::query_place(row, chunk)) = part;
                }
            } else {
                float* factors = reinterpret_cast<float*>(shared + L::FACTORS_AT);
                for (int row = threadIdx.x / 32; row < L::HEAD_WARPS * ROWS; row += L::THREADS / 32) {
                    const float back = arrange(query_of(row), queries, row, lane);
                    if (L::CONVERTED && lane == 0) factors[row] = back;
                }
                if constexpr (L::CONVERTED) {
                    __syncthreads();  // the factors are written
#pragma unroll
                    for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
                        for (int j = 0; j < 2; ++j)
                            scale[f][j] =
                                of_all * factors[head_warp * ROWS + 8 * f + lane % 4 * 2 + j];
                }
            }
            // The barriers of the ring come before any warp multiplies by them.
            shared_query = shared_address(queries) + head_warp * ROWS * L::QUERY_ROW_BYTES;
        } else {
#pragma unroll
            for (int f = 0; f < FRAGMENTS; ++f) {
                const int h = 8 * f + lane / 4;
                const int c = head_warp * L::HEADS + h;
                const bool is_query = is_head(head_warp, h) && columns.has_row(c);
                const char* of_head = q + columns.place(c) * L::QUERY_ROW_BYTES;
                unsigned largest = 0;
#pragma unroll
                for (int d = 0; d < DEPTH; ++d) {
                    query[f][d][0] = query[f][d][1] = 0;
                    if (is_query) query_pairs(of_head + d * 32, lane % 4, query[f][d]);
                    largest = largest_of(largest_of(largest, query[f][d][0]), query[f][d][1]);
                }
                if constexpr (L::CONVERTED) {
                    largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
                    const ToF16 f16(max(largest, __shfl_xor_sync(~0u, largest, 2)));
#pragma unroll
                    for (int i = 0; i < 2 * DEPTH; ++i)
                        query[f][i / 2][i % 2] = f16.convert(query[f][i / 2][i % 2]);
#pragma unroll
                    for (int j = 0; j < 2; ++j)
                        scale[f][j] =
                            of_all * __shfl_sync(~0u, f16.back, (lane % 4 * 2 + j) * 4);
                }
            }
        }
#pragma unroll
        for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                m[f][j] = minus_infinity();
                l[f][j] = 0.f;
#pragma unroll
                for (int d = 0; d < DEPTH; ++d) acc[f][d][j] = acc[f][d][j + 2] = 0.f;
            }
    }

    // The pairs of 16 elements of a query that are multiplied by those that the lane numbered `quarter`
    // of four has of a key: its own for 16 bits. Of the 16 bytes of a key's row that `load_matrices` gives
    // to four lanes each has four neighbours; where those are elements of 8 bits, numbers 0 and 2 of each
    // four stand for the first half of 16 elements and numbers 1 and 3 for the second.
    static __device__ __forceinline__ void query_pairs(const char* sixteen, int quarter,
                                                       unsigned (&pairs)[2]) {
        if constexpr (C::Kv::BYTES == 2) {
            const unsigned* words = reinterpret_cast<const unsigned*>(sixteen) + quarter;
            pairs[0] = words[0];
            pairs[1] = words[4];
        } else {
            const uint2 four = reinterpret_cast<const uint2*>(sixteen)[quarter];
            pairs[0] = __byte_perm(four.x, four.y, 0x5410);
            pairs[1] = __byte_perm(four.x, four.y, 0x7632);
        }
    }

    // Writes a query, or zeros for none, to shared memory in that order, by one warp; made f16 where it
    // is not. Tells what brings logits back to size.
    static __device__ __forceinline__ float arrange(const char* of_head, char* queries, int row,
                                                    int lane) {
        constexpr int FOURS = C::HEAD_DIM / 4;
        unsigned pairs[(FOURS + 31) / 32][2] = {}, largest = 0;
#pragma unroll
        for (int i = 0; 32 * i < FOURS; ++i) {
            const int four = 32 * i + lane;
            if (of_head != nullptr && four < FOURS)
                query_pairs(of_head + four / 4 * 32, four % 4, pairs[i]);
            largest = largest_of(largest_of(largest, pairs[i][0]), pairs[i][1]);
        }
        const ToF16 f16(L::CONVERTED ? __reduce_max_sync(~0u, largest) : 0);
#pragma unroll
        for (int i = 0; 32 * i < FOURS; ++i) {
            const int four = 32 * i + lane;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const unsigned pair = L::CONVERTED ? f16.convert(pairs[i][half]) : pairs[i][half];
                char* to = queries + L::query_place(row, four / 4 * 2 + half) + four % 4 * 4;
                if (four < FOURS) *reinterpret_cast<unsigned*>(to) = pair;
            }
        }
        return f16.back;
    }

    // Whether head `h` of a head warp's fragments is one of the tile's columns.
    static __device__ __forceinline__ bool is_head(int head_warp, int h) {
        return h < L::HEADS && exists<C>(head_warp, h);
    }

    // The queries of eight heads, 32 elements of the head dimension from the 16 numbered `d` on.
    __device__ __forceinline__ void queries_at(int f, int d, int lane, unsigned (&of_q)[4]) const {
        if constexpr (C::QUERY_SHARED) {
            const int chunk = 2 * d + lane / 8;
            load_matrices(of_q, shared_query + L::query_place(8 * f + lane % 8, chunk));
        } else {
            of_q[0] = query[f][d][0];
            of_q[1] = query[f][d][1];
            of_q[2] = query[f][d + 1][0];
            of_q[3] = query[f][d + 1][1];
        }
    }

    // Where in a tile this lane's address for matrices of the 16 tokens from `first` on is, by step
    // along the head dimension. A step takes two chunks, and the places of chunks repeat with eight of
    // them, so four addresses serve all steps (`step_offset`).
    static __device__ __forceinline__ void rows_at(unsigned tile, int row, int chunk, int first,
                                                   unsigned (&at)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            at[i] = tile + first * L::ROW_BYTES + L::place(row, 2 * i + chunk);
    }

    // From address `step % 4` to that of the step, `u` times 16 tokens further.
    static __device__ constexpr unsigned step_offset(int u, int step) {
        return u * 16 * L::ROW_BYTES + step / 4 * 128;
    }

    // Keys of 16 tokens for the products numbered `d` (even) and `d` + 1, of which `i` is `d` less a
    // multiple of 8: with elements of 16 bits a step each, with elements of 8 bits one step for both.
    static __device__ __forceinline__ void keys_at(unsigned (&of_k)[2][4], const unsigned (&at)[4],
                                                   int i, int u, int d) {
        if constexpr (C::Kv::BYTES == 2) {
            load_matrices(of_k[0], at[i % 4] + step_offset(u, d));
            load_matrices(of_k[1], at[(i + 1) % 4] + step_offset(u, d + 1));
        } else {
            unsigned four[4];
            load_matrices(four, at[i / 2 % 4] + step_offset(u, d / 2));
#pragma unroll
            for (int j = 0; j < 4; ++j)
                E4m3::halves(four[j], of_k[j / 2][j % 2], of_k[j / 2][j % 2 + 2]);
        }
    }

    // The same for values, transposed. With elements of 8 bits the rows of a product are even elements of
    // the head dimension and then odd ones (`store`).
    static __device__ __forceinline__ void values_at(unsigned (&of_v)[2][4], const unsigned (&at)[4],
                                                     int u, int d) {
        if constexpr (C::Kv::BYTES == 2) {
            load_matrices_transposed(of_v[0], at[d % 4] + step_offset(u, d));
            load_matrices_transposed(of_v[1], at[(d + 1) % 4] + step_offset(u, d + 1));
        } else {
            unsigned four[4];
            load_matrices_transposed(four, at[d / 2 % 4] + step_offset(u, d / 2));
#pragma unroll
            for (int j = 0; j < 4; ++j)
                E4m3::halves(four[j], of_v[j % 2][j / 2 * 2], of_v[j % 2][j / 2 * 2 + 1]);
        }
    }

    // Takes in the warp's part of a tile of `count` tokens: K rows at `tile`, V rows behind them. Where
    // there are several query rows, `rows` says which of them select each token.
    __device__ __forceinline__ void tile(const char* tile, const unsigned* rows, int count,
                                         int token_warp, int head_warp, int lane) {
        const unsigned k = shared_address(tile);
#pragma unroll 1
        for (int first = token_warp * L::STEP; first < count; first += L::TOKEN_WARPS * L::STEP) {
            float logit[C::UNROLL][FRAGMENTS][4] = {};
            unsigned at[4];
            rows_at(k, lane % 16, lane / 16, first, at);
            // Unrolled whole only for queries in registers: what is loaded ahead takes registers too.
#pragma unroll C::QUERY_SHARED ? 1 : DEPTH / RUN
            for (int run = 0; run < DEPTH; run += RUN)
#pragma unroll
                for (int i = 0; i < RUN; i += 2) {
                    unsigned of_q[FRAGMENTS][4];
#pragma unroll
                    for (int f = 0; f < FRAGMENTS; ++f) queries_at(f, run + i, lane, of_q[f]);
#pragma unroll
                    for (int u = 0; u < C::UNROLL; ++u) {
                        unsigned of_k[2][4];
                        keys_at(of_k, at, i, u, run + i);
#pragma unroll
                        for (int half = 0; half < 2; ++half)
#pragma unroll
                            for (int f = 0; f < FRAGMENTS; ++f)
                                Factor::multiply_add(logit[u][f], of_k[half], of_q[f][2 * half],
                                                         of_q[f][2 * half + 1]);
                    }
                }
            if constexpr (C::QUERY_ROWS > 1) select(logit, rows + first, head_warp, lane);
            else select(logit, count - first, lane);
            weigh(logit);
            unsigned weight[C::UNROLL][FRAGMENTS][2], rest[C::UNROLL][FRAGMENTS][2];
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u)
#pragma unroll
                for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const float* w = logit[u][f] + 2 * i;
                        const unsigned rounded = Factor::narrow(w[0], w[1]);
                        weight[u][f][i] = transposed(rounded);
                        if constexpr (!L::CONVERTED) {
                            float low, high;
                            Factor::widen(rounded, low, high);
                            rest[u][f][i] = transposed(Factor::narrow(w[0] - low, w[1] - high));
                        }
                    }
            rows_at(k + L::TILE_BYTES, lane / 16 * 8 + lane % 8, lane / 8 % 2, first, at);
#pragma unroll
            for (int d = 0; d < DEPTH; d += 2)
#pragma unroll
                for (int u = 0; u < C::UNROLL; ++u) {
                    unsigned of_v[2][4];
                    values_at(of_v, at, u, d);
#pragma unroll
                    for (int half = 0; half < 2; ++half)
#pragma unroll
                        for (int f = 0; f < FRAGMENTS; ++f) {
                            float(&sum)[4] = acc[f][d + half];
                            Factor::multiply_add(sum, of_v[half], weight[u][f][0],
                                                     weight[u][f][1]);
                            if constexpr (!L::CONVERTED)
                                Factor::multiply_add(sum, of_v[half], rest[u][f][0], rest[u][f][1]);
                        }
                }
        }
    }

    using Logits = float[C::UNROLL][FRAGMENTS][4];

    // Scales logits, and makes -inf of those whose token does not exist: all but `count`.
    __device__ __forceinline__ void select(Logits& logit, int count, int lane) const {
        scale_all(logit);
#pragma unroll
        for (int i = 0; i < 2 * C::UNROLL; ++i)
            if (8 * i + lane / 4 >= count)
#pragma unroll
                for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
                    for (int j = 0; j < 2; ++j)
                        logit[i / 2][f][i % 2 * 2 + j] = minus_infinity();
    }

    // The same, for those whose row does not select the token. Most steps lie in spans that all rows
    // of the tile select.
    __device__ __forceinline__ void select(Logits& logit, const unsigned* rows, int head_warp,
                                           int lane) const {
        scale_all(logit);
        unsigned of_token[2 * C::UNROLL], by_all = ~0u;
#pragma unroll
        for (int i = 0; i < 2 * C::UNROLL; ++i) by_all &= of_token[i] = rows[8 * i + lane / 4];
        if (__all_sync(~0u, by_all == ~0u)) return;
#pragma unroll
        for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int row =
                    Columns<C>::row(head_warp * L::HEADS + 8 * f + lane % 4 * 2 + j);
#pragma unroll
                for (int i = 0; i < 2 * C::UNROLL; ++i)
                    if (!(of_token[i] >> row & 1)) logit[i / 2][f][i % 2 * 2 + j] = minus_infinity();
            }
    }

    __device__ __forceinline__ void scale_all(Logits& logit) const {
#pragma unroll
        for (int u = 0; u < C::UNROLL; ++u)
#pragma unroll
            for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    logit[u][f][i] *= scale[L::CONVERTED ? f : 0][L::CONVERTED ? i % 2 : 0];
                    if (soft_cap != 0.f) logit[u][f][i] = soft_capped(logit[u][f][i], soft_cap);
                }
    }

    // Turns logits into weights 2^(logit - m + HEADROOM). Where a logit exceeds m by more than GROWTH, m
    // becomes the largest one, and what was accumulated is rescaled.
    __device__ __forceinline__ void weigh(Logits& logit) {
        float smaller[FRAGMENTS][2];
        bool same = true;
#pragma unroll
        for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                float most = m[f][j];
#pragma unroll
                for (int i = 0; i < 2 * C::UNROLL; ++i)
                    most = fmaxf(most, logit[i / 2][f][i % 2 * 2 + j]);
#pragma unroll
                for (int step = 4; step < 32; step *= 2)
                    most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
                if (!(most > m[f][j] + GROWTH)) most = m[f][j];
                const float base = subtrahend(most);
                smaller[f][j] = exp2_approximate(m[f][j] - base);
                same = same && smaller[f][j] == 1.f;
                m[f][j] = most;
                l[f][j] *= smaller[f][j];
#pragma unroll
                for (int i = 0; i < 2 * C::UNROLL; ++i) {
                    float& one = logit[i / 2][f][i % 2 * 2 + j];
                    one = exp2_approximate(one - (base - HEADROOM));
                    l[f][j] += one;
                }
            }
        if (__all_sync(~0u, same)) return;
#pragma unroll
        for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
            for (int d = 0; d < DEPTH; ++d)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[f][d][j] *= smaller[f][j % 2];
    }

    // Completes the sums over the lanes that had the warp's tokens between them.
    __device__ __forceinline__ void merge_over_lanes() {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int step = 4; step < 32; step *= 2)
                    l[f][j] += __shfl_xor_sync(~0u, l[f][j], step);
    }

    // Writes the warp's state to shared memory, as `LaneState` does.
    __device__ __forceinline__ void store(char* shared, int token_warp, int head_warp, int lane) const {
        float* states = reinterpret_cast<float*>(shared);
        float2* maxima = reinterpret_cast<float2*>(states + L::TOKEN_WARPS * L::COLUMNS * L::STATE);
#pragma unroll
        for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int h = 8 * f + lane % 4 * 2 + j;
                if (!is_head(head_warp, h)) continue;
                const int head = token_warp * L::COLUMNS + head_warp * L::HEADS + h;
                float* of_head = states + head * L::STATE;
#pragma unroll
                for (int d = 0; d < DEPTH; ++d) {
                    float* sixteen = of_head + 16 * d;
                    if constexpr (C::Kv::BYTES == 2) {
                        sixteen[lane / 4] = acc[f][d][j];
                        sixteen[lane / 4 + 8] = acc[f][d][j + 2];
                    } else {
                        const float2 pair = make_float2(acc[f][d][j], acc[f][d][j + 2]);
                        reinterpret_cast<float2*>(sixteen)[lane / 4] = pair;
                    }
                }
                if (lane < 4) maxima[head] = make_float2(m[f][j] - HEADROOM, l[f][j]);
            }
    }
};

}  // namespace spanforge
