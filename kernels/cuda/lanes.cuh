// Softmax and products on CUDA cores.
//
// A K or V row is spread over `LANES` lanes, so a warp works on `ROWS_PER_WARP` tokens at a time. Each
// lane keeps (m, l, acc) for its own tokens and its own elements of the head dimension.
#pragma once

#include "memory.cuh"
#include "piece.cuh"
#include "softmax.cuh"

namespace spanforge {

// The part of a row's softmax that one lane computes: its tokens, its HEADS query heads, its
// PER_LANE elements of the head dimension.
template <class C>
struct LaneState {
    using L = Layout<C>;
    using Chunk = typename L::Chunk;
    float query[C::QUERY_SHARED ? 1 : L::HEADS][C::QUERY_SHARED ? 1 : L::PER_LANE];
    const float* shared_query;
    float soft_cap;
    float m[L::HEADS], l[L::HEADS], acc[L::HEADS][L::PER_LANE];

    // Reads the queries of `piece`, times the scale, in base 2.
    __device__ __forceinline__ void begin(const DecodeArguments& a, const Piece& piece, char* shared,
                                          int head_warp, int lane) {
        const int lane_in_row = lane % L::LANES;
        const float scale = key_scale<C>(a, piece.head) * LOG2_E;
        soft_cap = a.soft_cap;
        const long long first_head = Columns<C>(a, piece.tile, piece.head).place(0);
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
            unsigned pair[L::HEADS][L::PER_LANE / 2];
#pragma unroll
            for (int h = 0; h < L::HEADS; ++h)
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c) {
                    const unsigned* from = q + (head_warp * L::HEADS + h) * (C::HEAD_DIM / 2) +
                                           (c * L::LANES + lane_in_row) * (L::VECTOR / 2);
#pragma unroll
                    for (int w = 0; w < L::VECTOR / 2; ++w)
                        pair[h][c * L::VECTOR / 2 + w] = exists<C>(head_warp, h) ? from[w] : 0;
                }
            // All are asked for before one is used.
#pragma unroll
            for (int h = 0; h < L::HEADS; ++h)
#pragma unroll
                for (int e = 0; e < L::PER_LANE; e += 2) {
                    C::Element::widen(pair[h][e / 2], query[h][e], query[h][e + 1]);
                    query[h][e] *= scale;
                    query[h][e + 1] *= scale;
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
        for (int i = 0; i < L::VECTOR / 4; ++i) {
            const float4 of_k = widen_four<typename C::Kv>(k.word, i);
#pragma unroll
            for (int h = 0; h < L::HEADS; ++h) {
                const float4 of_q = query_at(h, c, 4 * i);
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
        if (soft_cap != 0.f)
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u)
#pragma unroll
                for (int h = 0; h < L::HEADS; ++h)
                    logit[u][h] = soft_capped(logit[u][h], soft_cap);
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
        for (int i = 0; i < L::VECTOR / 4; ++i) {
            const float4 of_v = widen_four<typename C::Kv>(v.word, i);
#pragma unroll
            for (int h = 0; h < L::HEADS; ++h) {
                float* to = &acc[h][c * L::VECTOR + 4 * i];
                to[0] = fmaf(weight[h], of_v.x, to[0]);
                to[1] = fmaf(weight[h], of_v.y, to[1]);
                to[2] = fmaf(weight[h], of_v.z, to[2]);
                to[3] = fmaf(weight[h], of_v.w, to[3]);
            }
        }
    }

    // Takes in the warp's part of a tile of `count` tokens: K rows at `k`, V rows behind them.
    __device__ __forceinline__ void tile(const char* k, int count, int token_warp, int lane) {
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
                    dot(load_shared(k + r * L::ROW_BYTES + c * L::LANES * C::VECTOR_BYTES + column,
                                          static_cast<Chunk*>(nullptr)),
                              c, logit[u]);
            }
            weigh(logit, valid);
#pragma unroll
            for (int u = 0; u < C::UNROLL; ++u)
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c)
                    accumulate(
                        load_shared(k + L::TILE_BYTES + (row + u * L::ROWS_PER_WARP) * L::ROW_BYTES +
                                        c * L::LANES * C::VECTOR_BYTES + column,
                                    static_cast<Chunk*>(nullptr)),
                        c, logit[u]);
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
        float2* ml = reinterpret_cast<float2*>(states + L::TOKEN_WARPS * L::COLUMNS * L::STATE);
        const int first_head = token_warp * L::COLUMNS + head_warp * L::HEADS;
#pragma unroll
        for (int h = 0; h < L::HEADS; ++h) {
            if (!exists<C>(head_warp, h)) continue;
            if (lane < L::LANES)
#pragma unroll
                for (int c = 0; c < L::CHUNKS; ++c)
#pragma unroll
                    for (int e = 0; e < L::VECTOR; e += 4) {
                        const float* from = &acc[h][c * L::VECTOR + e];
                        float* to = states + (first_head + h) * L::STATE +
                                    (c * L::LANES + lane) * L::VECTOR + e;
                        *reinterpret_cast<float4*>(to) =
                            make_float4(from[0], from[1], from[2], from[3]);
                    }
            if (lane == 0) ml[first_head + h] = make_float2(m[h], l[h]);
        }
    }
};

// The tokens of a piece, straight into registers, 32 addresses at a time.
template <class C>
__device__ __forceinline__ void attend_direct(const DecodeArguments& a, const Piece& piece,
                                              LaneState<C>& state, int token_warp, int lane) {
    using L = Layout<C>;
    using Chunk = typename L::Chunk;
    const int first = piece.begin + token_warp * 32;
    TokenCursor<C> cursor(a, piece, piece.tile, first);
    for (int base = first; base < piece.end; base += L::TOKEN_WARPS * 32) {
        const long long offset = cursor.offset(base + lane);
        const long long mine = base + lane < piece.end ? offset : -1;
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

}  // namespace spanforge
