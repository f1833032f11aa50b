// The instructions by which the kernels reach memory, one function each.
#pragma once

#include "element.cuh"

namespace spanforge {

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Loads of read-only global memory that leave L1 alone: K and V are used once per block.
// `L2_PREFETCH` (0, 64, 128 or 256) is the naturally aligned run of bytes that L2 fetches with it.
template <int L2_PREFETCH>
__device__ __forceinline__ Packed<16> load_streaming(const void* pointer, Packed<16>*) {
    Packed<16> r;
#define SPANFORGE_LOAD(QUALIFIER)                                                    \
    asm volatile("ld.global.nc.L1::no_allocate" QUALIFIER ".v4.u32 {%0,%1,%2,%3}, [%4];" \
                 : "=r"(r.word[0]), "=r"(r.word[1]), "=r"(r.word[2]), "=r"(r.word[3]) \
                 : "l"(pointer))
    if constexpr (L2_PREFETCH == 64) SPANFORGE_LOAD(".L2::64B");
    else if constexpr (L2_PREFETCH == 128) SPANFORGE_LOAD(".L2::128B");
    else if constexpr (L2_PREFETCH == 256) SPANFORGE_LOAD(".L2::256B");
    else SPANFORGE_LOAD("");
#undef SPANFORGE_LOAD
    return r;
}

template <int L2_PREFETCH>
__device__ __forceinline__ Packed<8> load_streaming(const void* pointer, Packed<8>*) {
    Packed<8> r;
#define SPANFORGE_LOAD(QUALIFIER)                                              \
    asm volatile("ld.global.nc.L1::no_allocate" QUALIFIER ".v2.u32 {%0,%1}, [%2];" \
                 : "=r"(r.word[0]), "=r"(r.word[1])                            \
                 : "l"(pointer))
    if constexpr (L2_PREFETCH == 64) SPANFORGE_LOAD(".L2::64B");
    else if constexpr (L2_PREFETCH == 128) SPANFORGE_LOAD(".L2::128B");
    else if constexpr (L2_PREFETCH == 256) SPANFORGE_LOAD(".L2::256B");
    else SPANFORGE_LOAD("");
#undef SPANFORGE_LOAD
    return r;
}

__device__ __forceinline__ Packed<16> load_shared(const void* pointer, Packed<16>*) {
    const uint4 u = *static_cast<const uint4*>(pointer);
    return {u.x, u.y, u.z, u.w};
}

__device__ __forceinline__ Packed<8> load_shared(const void* pointer, Packed<8>*) {
    const uint2 u = *static_cast<const uint2*>(pointer);
    return {u.x, u.y};
}

// Four 8x8 matrices of 16-bit elements from shared memory; the lanes of each eighth give the addresses
// of the rows of one. A lane gets two neighbours of row `lane / 4` of each.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// The same, but of column `lane / 4` of each.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// An 8x8 matrix of 16-bit elements, two neighbours of row `lane / 4` in each lane, transposed.
__device__ __forceinline__ unsigned transposed(unsigned pair) {
    unsigned r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
    return r;
}

// Copies 16 bytes from global to shared memory in the background; where `wanted` is false nothing
// is read and the 16 bytes become zero.
template <int L2_PREFETCH>
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool wanted) {
    const int bytes = wanted ? 16 : 0;
#define SPANFORGE_COPY(QUALIFIER)                                              \
    asm volatile("cp.async.cg.shared.global" QUALIFIER " [%0], [%1], 16, %2;" \
                 ::"r"(to), "l"(from), "r"(bytes) : "memory")
    if constexpr (L2_PREFETCH == 64) SPANFORGE_COPY(".L2::64B");
    else if constexpr (L2_PREFETCH == 128) SPANFORGE_COPY(".L2::128B");
    else if constexpr (L2_PREFETCH == 256) SPANFORGE_COPY(".L2::256B");
    else SPANFORGE_COPY("");
#undef SPANFORGE_COPY
}

__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `PENDING` of this thread's latest groups are still under way.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace spanforge
