// The plan: who computes what, worked out on the device from the spans alone.
//
// Rows are laid end to end by their selected tokens, once per KV head (heads outermost), and this
// line of `kv_heads * selected tokens` is cut into equal shares, one per block. A block finds its
// rows and spans by searching two prefix sums:
//   row_tokens[r]   selected tokens before row r            (rows + 1 entries)
//   span_tokens[s]  selected tokens before span s           (spans + 1 entries)
// Nothing else is stored, nothing goes through the host, and every size is known before the launch.
#pragma once

namespace spanforge {

constexpr int PLAN_THREADS = 256;

// Prefix sums over the lengths of canonical spans, by one block.
__device__ __forceinline__ void plan_spans(const int* __restrict__ span_ptr,
                                           const int2* __restrict__ spans, int* row_tokens,
                                           int* span_tokens, int rows) {
    __shared__ int warp_sums[PLAN_THREADS / 32];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int count = span_ptr[rows];
    int carry = 0;
    for (int base = 0; base < count; base += PLAN_THREADS) {
        const int index = base + static_cast<int>(threadIdx.x);
        const int length = index < count ? spans[index].y - spans[index].x : 0;
        int sum = length;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int below = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += below;
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
        if (index < count) span_tokens[index] = before + sum - length;
        carry += total;
        __syncthreads();  // every sum is read before the next round overwrites it
    }
    if (threadIdx.x == 0) span_tokens[count] = carry;
    __syncthreads();  // span_tokens is complete, for this block, before rows are read from it
    for (int row = threadIdx.x; row <= rows; row += PLAN_THREADS)
        row_tokens[row] = span_tokens[span_ptr[row]];
}

// How the line of work is cut.
struct Shares {
    int tokens;       // selected tokens of all rows
    long long work;   // tokens * kv_heads
    long long share;  // tokens per block

    __device__ __forceinline__ Shares(const int* row_tokens, int rows, int kv_heads, int blocks,
                                      int smallest_share)
        : tokens(row_tokens[rows]), work(static_cast<long long>(row_tokens[rows]) * kv_heads) {
        share = (work + blocks - 1) / blocks;
        if (share < smallest_share) share = smallest_share;
    }
};

// A row that several blocks share leaves one partial state per block, in a slot that follows from
// the block alone: slot 2b + 1 for the row that begins in block b and goes on, slot 2b for one that
// goes on from the block before. A block has at most one of each.
__device__ __forceinline__ int partial_slot(int block, bool begins_here) {
    return 2 * block + (begins_here ? 1 : 0);
}

// The last index i in [low, high) with prefix[i] <= value, given prefix[low] <= value.
__device__ __forceinline__ int last_at_most(const int* __restrict__ prefix, int low, int high,
                                            int value) {
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (prefix[middle] <= value) low = middle;
        else high = middle;
    }
    return low;
}

}  // namespace spanforge
