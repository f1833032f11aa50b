// y = the transpose of x, in tiles of 32 by 32 words that tensor copies bring and take away, their
// 16-byte chunks permuted (128B swizzle). A block works down a column of `n` tiles. Thread 0 fetches
// a tile ahead into one of two buffers, each with an mbarrier that says that it is full; the barrier
// of the block says that a buffer has been read. What leaves the tensors at an edge is not copied.
#include "tma.cuh"

// The word in column `column` of a row of 128 bytes.
__device__ int swizzled(int row, int column) {
    return 32 * row + ((column / 4 ^ row % 8) * 4 + column % 4);
}

extern "C" __global__ void transpose(const __grid_constant__ TensorMap x,
                                     const __grid_constant__ TensorMap y, int n) {
    __shared__ __align__(1024) int in[2][32 * 32];
    __shared__ __align__(1024) int out[32 * 32];
    __shared__ __align__(8) unsigned long long full[2];
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < 2; stage++) init(shared_address(&full[stage]), 1);
        fence_async();
    }
    __syncthreads();
    auto fetch = [&](int tile) {
        unsigned bar = shared_address(&full[tile % 2]);
        expect(bar, sizeof in[0]);
        load(shared_address(in[tile % 2]), &x, 32 * blockIdx.x, 32 * tile, bar);
    };
    if (threadIdx.x == 0) fetch(0);
    for (int tile = 0; tile < n; tile++) {
        // The buffer of the next tile was read before the last barrier of the round before.
        if (threadIdx.x == 0 && tile + 1 < n) fetch(tile + 1);
        wait(shared_address(&full[tile % 2]), tile / 2 % 2);
        // The copy away of the last round has read `out`.
        if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        __syncthreads();
        for (int i = threadIdx.x; i < 32 * 32; i += blockDim.x)
            out[swizzled(i / 32, i % 32)] = in[tile % 2][swizzled(i % 32, i / 32)];
        fence_async();
        __syncthreads();
        if (threadIdx.x == 0) store(&y, 32 * tile, 32 * blockIdx.x, shared_address(out));
    }
    if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
