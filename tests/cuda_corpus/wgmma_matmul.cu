// C = A B^T of f16 with sums in f32: A is 128 * gridDim.y rows and B 64 * gridDim.x rows of
// 64 * steps halves. A block makes a tile of 128 by 64. Its last warp fetches tiles of A and B into
// STAGES buffers; two warpgroups, of 64 rows each, multiply them. `full` says that a stage has come
// (one arrival and the bytes), `empty` that all eight warps have done with it. One product of a
// warpgroup is under way while the next begins, so a stage is given back a step late.
#include "tma.cuh"

#ifndef STAGES
#define STAGES 3
#endif

// A tile of 64 halves in rows of 128 bytes, swizzled: eight rows are 1024 bytes.
__device__ __forceinline__ unsigned long long descriptor(unsigned address) {
    return (unsigned long long)(address >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#define EACH(d) \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),         \
    "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),     \
    "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),  \
    "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),  \
    "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])

// d = A B^T, or more, if `add`.
__device__ __forceinline__ void multiply(float (&d)[32], unsigned a, unsigned b, int add) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, "
                 "%7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
                 "%23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, add, 1, 1, 0, 0;\n}"
                 : EACH(d) : "l"(descriptor(a)), "l"(descriptor(b)), "r"(add));
}

extern "C" __global__ void __launch_bounds__(288)
matmul(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c,
       int columns, int steps) {
    extern __shared__ __align__(1024) unsigned char tiles[];
    __shared__ __align__(8) unsigned long long full[STAGES], empty[STAGES];
    const unsigned a_bytes = 128 * 64 * 2, b_bytes = 64 * 64 * 2;
    unsigned base = shared_address(tiles);
    auto stage_at = [&](int step) { return base + (a_bytes + b_bytes) * (step % STAGES); };
    auto full_at = [&](int step) { return shared_address(&full[step % STAGES]); };
    auto empty_at = [&](int step) { return shared_address(&empty[step % STAGES]); };
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init(full_at(stage), 1);
            init(empty_at(stage), 8);
        }
        fence_async();
    }
    __syncthreads();
    if (warp == 8) {
        if (lane != 0) return;
        for (int step = 0; step < steps; step++) {
            // A fresh mbarrier counts as having ended the phase before its first.
            wait(empty_at(step), step / STAGES % 2 ^ 1);
            expect(full_at(step), a_bytes + b_bytes);
            load(stage_at(step), &a, 64 * step, 128 * blockIdx.y, full_at(step));
            load(stage_at(step) + a_bytes, &b, 64 * step, 64 * blockIdx.x, full_at(step));
        }
        return;
    }
    float d[32];
#pragma unroll
    for (int i = 0; i < 32; i++) d[i] = 0.f;
    for (int step = 0; step < steps; step++) {
        wait(full_at(step), step / STAGES % 2);
        // Nothing that touches the accumulators may be moved behind the fence.
        asm volatile("" : EACH(d) :: "memory");
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        unsigned rows = stage_at(step) + a_bytes / 2 * (warp / 4);
#pragma unroll
        for (int k = 0; k < 4; k++)
            multiply(d, rows + 32 * k, stage_at(step) + a_bytes + 32 * k, 1);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (step > 0 && lane == 0) arrive(empty_at(step - 1));
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    asm volatile("" : EACH(d) :: "memory");
    int row = 128 * blockIdx.y + 16 * warp + lane / 4;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        int column = 64 * blockIdx.x + 8 * n + lane % 4 * 2;
        float2* to = (float2*)(c + (size_t)row * columns + column);
        to[0] = make_float2(d[4 * n], d[4 * n + 1]);
        to[4 * columns] = make_float2(d[4 * n + 2], d[4 * n + 3]);
    }
}
