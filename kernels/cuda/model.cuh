// The parts of a decoder step between its products of matrices: one block per row everywhere.
//
// Activations that go into a product are 16-bit elements, two to a word; what layers add to is f32.
// Sizes are even, head dimensions multiples of four, and the host has checked them.
#pragma once

#include "element.cuh"
#include "softmax.cuh"

namespace spanforge {

constexpr int MODEL_THREADS = 256;

// The sum over the block, in every thread.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float parts[MODEL_THREADS / 32];
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.f;
    for (int warp = 0; warp < MODEL_THREADS / 32; ++warp) sum += parts[warp];
    return sum;
}

// Rows of a table `[tokens, size]` as f32.
template <class Element>
__device__ void embed(const unsigned* table, const int* tokens, float* x, int size) {
    const unsigned* from = table + (long long)tokens[blockIdx.x] * (size / 2);
    float* to = x + (long long)blockIdx.x * size;
    for (int word = threadIdx.x; word < size / 2; word += MODEL_THREADS) {
        float low, high;
        Element::widen(from[word], low, high);
        to[2 * word] = low;
        to[2 * word + 1] = high;
    }
}

// Row `rows[i]` of x over the root of its mean square, times the gain, as row i.
template <class Element>
__device__ void rms_norm(
    const float* x, const int* rows, const float* gain, unsigned* y, int size, float eps
) {
    const float* from = x + (long long)rows[blockIdx.x] * size;
    float square = 0.f;
    for (int at = threadIdx.x; at < size; at += MODEL_THREADS) square += from[at] * from[at];
    float factor = 1.f / sqrtf(block_sum(square) / size + eps);
    unsigned* to = y + (long long)blockIdx.x * (size / 2);
    for (int word = threadIdx.x; word < size / 2; word += MODEL_THREADS) {
        float low = from[2 * word] * factor * gain[2 * word];
        float high = from[2 * word + 1] * factor * gain[2 * word + 1];
        to[word] = Element::narrow(low, high);
    }
}

// Rounds two floats to elements, and writes them as pair `at`.
template <class Element>
__device__ void put(void* to, long long at, float2 pair) {
    if constexpr (Element::BYTES == 2) ((unsigned*)to)[at] = Element::narrow(pair.x, pair.y);
    else ((unsigned short*)to)[at] = Element::narrow(pair.x, pair.y);
}

// From rows of queries, keys and values: turns the pairs (i, i + head_dim / 2) of queries and keys by
// the row's angles `[head_dim / 2]` (cosine, sine), and keeps keys and values in the cache, where the
// row's token begins at element `places[row]` of either and head h `h * head_stride` further.
template <class Element, class Kv>
__device__ void rotate_and_keep(
    const unsigned* qkv, const float2* turns, const long long* places, unsigned* q, void* k, void* v,
    int query_heads, int kv_heads, int head_dim, long long head_stride
) {
    const int row = blockIdx.x, half = head_dim / 4, words = head_dim / 2;
    const unsigned* from = qkv + (long long)row * (query_heads + 2 * kv_heads) * words;
    const float2* turn = turns + (long long)row * words;
    const long long place = places[row] / 2;
    for (int at = threadIdx.x; at < (query_heads + kv_heads) * half; at += MODEL_THREADS) {
        const int head = at / half, word = at % half;
        float a0, a1, b0, b1;
        Element::widen(from[head * words + word], a0, a1);
        Element::widen(from[head * words + half + word], b0, b1);
        const float2 t0 = turn[2 * word], t1 = turn[2 * word + 1];
        const float2 a = make_float2(a0 * t0.x - b0 * t0.y, a1 * t1.x - b1 * t1.y);
        const float2 b = make_float2(b0 * t0.x + a0 * t0.y, b1 * t1.x + a1 * t1.y);
        if (head < query_heads) {
            const long long to = ((long long)row * query_heads + head) * words + word;
            put<Element>(q, to, a);
            put<Element>(q, to + half, b);
        } else {
            const long long to = place + (head - query_heads) * (head_stride / 2) + word;
            put<Kv>(k, to, a);
            put<Kv>(k, to + half, b);
        }
    }
    from += (query_heads + kv_heads) * words;
    for (int at = threadIdx.x; at < kv_heads * words; at += MODEL_THREADS) {
        float2 pair;
        Element::widen(from[at], pair.x, pair.y);
        put<Kv>(v, place + at / words * (head_stride / 2) + at % words, pair);
    }
}

// silu(gate) * up of rows of gates and ups.
template <class Element>
__device__ void swiglu(const unsigned* gate_up, unsigned* y, int size) {
    const int words = size / 2;
    const unsigned* gate = gate_up + (long long)blockIdx.x * size;
    for (int word = threadIdx.x; word < words; word += MODEL_THREADS) {
        float g0, g1, u0, u1;
        Element::widen(gate[word], g0, g1);
        Element::widen(gate[words + word], u0, u1);
        float s0 = g0 / (1.f + exp2_approximate(-g0 * LOG2_E));
        float s1 = g1 / (1.f + exp2_approximate(-g1 * LOG2_E));
        y[(long long)blockIdx.x * words + word] = Element::narrow(s0 * u0, s1 * u1);
    }
}

}  // namespace spanforge
