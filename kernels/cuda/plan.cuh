// The plan: who computes what, worked out on the device from the spans alone.
//
// Sets of spans are laid end to end by their selected tokens, once per KV head that they serve (heads
// outermost), and this line is cut into equal shares, one per block. Behind each set the line has some
// places without a token: to begin with a set takes time too, in which nothing is read. A block finds its
// first set, and the spans of each, by searching two prefix sums:
//   set_tokens[s]   selected tokens before set s                                   (sets + 1 entries)
//   set_tokens[sets + 1]  tokens that were appended to the last span of each set since, 0 here
//   span_tokens[i]  selected tokens before span i; those of its set, of query tiles (spans + 1 entries)
// Nothing else is stored, nothing goes through the host, and every size is known before the launch.
// There is a set for each row, or for each query tile of several rows (`overlay.cuh`), or for each KV
// head of those.
#pragma once

#include "layout.cuh"

namespace spanforge {

constexpr int PLAN_THREADS = 256;

// Spans that a thread loads at a time, where there are as many: one after the other each load would wait
// for memory.
constexpr int PLAN_SPANS = 4;

// For each `index` of [0, count) the sum of the lengths of spans before it is stored; returns the sum of
// all, to every thread of the block.
template <class Span, class Store>
__device__ __forceinline__ int prefix_sums(int count, Span span_of, Store store) {
    __shared__ int warp_sums[PLAN_THREADS / 32];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    int carry = 0;
    for (int base = 0, each = 0; base < count; base += PLAN_THREADS * each) {
        each = min(PLAN_SPANS, (count - base + PLAN_THREADS - 1) / PLAN_THREADS);
        // A warp has a run of `each` times 32.
        const int first = base + warp * 32 * each + lane;
        int2 span[PLAN_SPANS];
#pragma unroll
        for (int j = 0; j < PLAN_SPANS; ++j) span[j] = span_of(min(first + 32 * j, count - 1));
        int length[PLAN_SPANS], sums[PLAN_SPANS], sum = 0;
#pragma unroll
        for (int j = 0; j < PLAN_SPANS; ++j) {
            const int index = j < each ? first + 32 * j : count;
            length[j] = index < count ? span[j].y - span[j].x : 0;
            sums[j] = length[j];
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const int below = __shfl_up_sync(~0u, sums[j], step);
                if (lane >= step) sums[j] += below;
            }
            sums[j] += sum;
            sum = __shfl_sync(~0u, sums[j], 31);
        }
        if (lane == 31) warp_sums[warp] = sum;
        __syncthreads();  // every warp's sum is written before any is read
        int before = carry;
        int total = 0;
#pragma unroll
        for (int w = 0; w < PLAN_THREADS / 32; ++w) {
            if (w < warp) before += warp_sums[w];
            total += warp_sums[w];
        }
#pragma unroll
        for (int j = 0; j < PLAN_SPANS; ++j) {
            const int index = j < each ? first + 32 * j : count;
            if (index < count) store(index, before + sums[j] - length[j]);
        }
        carry += total;
        __syncthreads();  // every sum is read before the next round overwrites it
    }
    return carry;
}

// The plan of rows, by one block.
__device__ __forceinline__ void plan_rows(const int* __restrict__ span_ptr,
                                          const int2* __restrict__ spans, int* set_tokens,
                                          int* span_tokens, int sets) {
    const int count = span_ptr[sets];
    const int total = prefix_sums(
        count, [&](int span) { return spans[span]; },
        [&](int span, int before) { span_tokens[span] = before; });
    if (threadIdx.x == 0) span_tokens[count] = total;
    __syncthreads();  // span_tokens is complete, for this block, before sets are read from it
    for (int set = threadIdx.x; set <= sets; set += PLAN_THREADS)
        set_tokens[set] = span_tokens[span_ptr[set]];
    if (threadIdx.x == 0) set_tokens[sets + 1] = 0;
}

// The plan of query tiles, by one block: what of it is counted within sets is there already.
__device__ __forceinline__ void plan_tiles(const int* __restrict__ span_ptr, int* set_tokens, int sets) {
    const int total = prefix_sums(
        sets, [&](int set) { return make_int2(0, span_ptr[4 * set + 2]); },
        [&](int set, int before) { set_tokens[set] = before; });
    if (threadIdx.x == 0) {
        set_tokens[sets] = total;
        set_tokens[sets + 1] = 0;
    }
}

// How the line of work is cut.
template <class C>
struct Shares {
    // Tokens, to the last span of every set since the plan was made; then none is empty. None to query
    // tiles, whose kernels have no register for it.
    int appended;
    int places;       // of all sets
    long long work;   // places, times the KV heads that each set serves
    long long share;  // places per block

    __device__ __forceinline__ Shares(const int* set_tokens, int sets, int heads_per_set, int blocks,
                                      int smallest_share)
        : appended(C::QUERY_ROWS > 1 ? 0 : set_tokens[sets + 1]), places(begin_of(set_tokens, sets)),
          work(static_cast<long long>(places) * heads_per_set) {
        share = (work + blocks - 1) / blocks;
        if (share < smallest_share) share = smallest_share;
    }

    // Where the tokens of a set begin and end on the line.
    __device__ __forceinline__ int begin_of(const int* set_tokens, int set) const {
        return set_tokens[set] + set * (appended + C::BEGINNING);
    }
    __device__ __forceinline__ int end_of(const int* set_tokens, int set) const {
        return begin_of(set_tokens, set + 1) - C::BEGINNING;
    }
};

// A set that several blocks share leaves one partial state per block, in a slot that follows from
// the block alone: slot 2b + 1 for the set that begins in block b and goes on, slot 2b for one that
// goes on from the block before. A block has at most one of each.
__device__ __forceinline__ int partial_slot(int block, bool begins_here) {
    return 2 * block + (begins_here ? 1 : 0);
}

// The last index i in [low, high) with prefix[i] + i * each <= value, given that low is one, or one that is
// less than WITHIN before it. A whole warp searches: each round looks at 32 places, so that few loads wait for
// each other.
template <int WITHIN = 1>
__device__ __forceinline__ int last_at_most(const int* __restrict__ prefix, int low, int high,
                                            int value, int each = 0) {
    const int lane = threadIdx.x % 32;
    while (high - low > WITHIN) {
        const int step = (high - low + 31) / 32;
        const int place = low + lane * step;
        const bool at_most = place < high && prefix[place] + place * each <= value;
        low += step * (__popc(__ballot_sync(~0u, at_most)) - 1);
        high = min(high, low + step);
    }
    return low;
}

}  // namespace spanforge
