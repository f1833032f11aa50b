// From the states of warps and blocks to outputs, merged in a fixed order.
#pragma once

#include "piece.cuh"
#include "softmax.cuh"

namespace spanforge {

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

// Partial states that a thread loads before it merges them.
constexpr int LOADED_AHEAD = 8;

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
        // Several are under way together: one after the other each would wait for memory.
        for (int next = first; next <= last; next += LOADED_AHEAD) {
            float2 ml[LOADED_AHEAD];
            float4 acc[LOADED_AHEAD];
#pragma unroll
            for (int j = 0; j < LOADED_AHEAD; ++j) {
                const int block = min(next + j, last);  // no branch comes between the loads
                const int slot = partial_slot(block, block == first);
                // Written by other blocks of the same launch where the last arriver merges, so these
                // loads may not go through the read-only path or a stale L1 line.
                ml[j] = __ldcg(a.partial_ml + slot * C::GROUP + h);
                acc[j] = __ldcg(reinterpret_cast<const float4*>(a.partial_acc) +
                                static_cast<long long>(slot) * (C::GROUP * C::HEAD_DIM / 4) + i);
            }
#pragma unroll
            for (int j = 0; j < LOADED_AHEAD; ++j)
                if (next + j <= last) merge_into(sum, ml[j].x, ml[j].y, acc[j]);
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
        shared + L::TOKEN_WARPS * C::GROUP * L::STATE * 4);
    const long long first_head =
        (static_cast<long long>(piece.row) * a.kv_heads + piece.head) * C::GROUP;
    const int slot = partial_slot(blockIdx.x, piece.first);
    for (int i = threadIdx.x; i < C::GROUP * C::HEAD_DIM / 4; i += L::THREADS) {
        const int h = i / (C::HEAD_DIM / 4);
        const int at = h * (L::STATE / 4) + i % (C::HEAD_DIM / 4);
        Quad sum = {ml[h].x, ml[h].y, states[at]};
#pragma unroll
        for (int w = 1; w < L::TOKEN_WARPS; ++w) {
            const float2 other = ml[w * C::GROUP + h];
            merge_into(sum, other.x, other.y, states[w * (C::GROUP * L::STATE / 4) + at]);
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

}  // namespace spanforge
