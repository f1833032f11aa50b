// The instructions of Hopper (sm_90a) that the kernels use, one function each: barriers in shared memory,
// products of warpgroups.
#pragma once

#include "memory.cuh"

namespace spanforge {

// A barrier of 8 bytes in shared memory. So many arrivals end a phase and begin the next.
__device__ __forceinline__ void init_barrier(unsigned barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Arrives, after all that this thread did before.
__device__ __forceinline__ void arrive(unsigned barrier) {
    asm volatile("{\n .reg .b64 state;\n mbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(barrier)
                 : "memory");
}

// Waits until the phase of that parity is over. Phases are numbered from 0, and of a fresh barrier one of
// parity 1 counts as over.
__device__ __forceinline__ void wait_for_phase(unsigned barrier, int parity) {
    unsigned over;
    do {
        asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
                     " selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(over)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (over == 0);
}

// Barrier `id` of the block's 16, for so many of its threads.
__device__ __forceinline__ void barrier_of(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// What this thread wrote to shared memory, and what it knows others to have written, is seen by products of
// warpgroups that begin after whom it tells.
__device__ __forceinline__ void show_to_products() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Registers of each thread of a warpgroup from here on.
template <int REGISTERS>
__device__ __forceinline__ void give_registers_back() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// A matrix of rows of 128 bytes in shared memory, whose 16-byte chunks are exchanged by row
// (`Layout::exchanged`), eight rows after the other. Its rows are columns of a product, or its terms.
__device__ __forceinline__ unsigned long long panel_at(unsigned address) {
    constexpr unsigned long long EIGHT_ROWS = 1024 / 16, EXCHANGED = 1;
    return (address >> 4 & 0x3fffu) | 1ull << 16 | EIGHT_ROWS << 32 | EXCHANGED << 62;
}

// The part of it so many bytes further on.
__device__ __forceinline__ unsigned long long further(unsigned long long panel, unsigned bytes) {
    return panel + (bytes >> 4);
}

// Products run beside the program from here to `wait_for_products`, which has to keep away from their
// registers meanwhile: `settled` is called for those that were written before, and for those that are
// read after.
__device__ __forceinline__ void begin_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

#define SPANFORGE_SUMS(d) \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), \
    "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
    "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), \
    "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
    "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define SPANFORGE_SUM_LIST \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

__device__ __forceinline__ void settled(float (&d)[32]) {
    asm volatile("" : SPANFORGE_SUMS(d)::"memory");
}
__device__ __forceinline__ void settled(unsigned (&a)[4]) {
    asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory");
}

// sum += a b for a of 64 rows and 16 columns, spread over a warpgroup's registers as mma.m16n8k16 has
// them over each warp's, or in a panel, and b of 16 rows and 64 columns in a panel: its rows are b's
// columns, or (TERMS) b's rows.
template <class Element, bool TERMS>
__device__ __forceinline__ void multiply_add(float (&d)[32], const unsigned (&a)[4],
                                             unsigned long long b) {
#define SPANFORGE_MULTIPLY(TYPE)                                                                \
    asm volatile("{\n .reg .pred add;\n setp.ne.b32 add, %37, 0;\n"                            \
                 " wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "               \
                 SPANFORGE_SUM_LIST ", {%32,%33,%34,%35}, %36, add, 1, 1, %38;\n}"              \
                 : SPANFORGE_SUMS(d)                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"(TERMS ? 1 : 0))
    if constexpr (Element::IS_F16) SPANFORGE_MULTIPLY("f16");
    else SPANFORGE_MULTIPLY("bf16");
#undef SPANFORGE_MULTIPLY
}
template <class Element, bool TERMS>
__device__ __forceinline__ void multiply_add(float (&d)[32], unsigned long long a,
                                             unsigned long long b) {
#define SPANFORGE_MULTIPLY(TYPE)                                                                \
    asm volatile("{\n .reg .pred add;\n setp.ne.b32 add, %34, 0;\n"                            \
                 " wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "               \
                 SPANFORGE_SUM_LIST ", %32, %33, add, 1, 1, 0, %35;\n}"                         \
                 : SPANFORGE_SUMS(d)                                                            \
                 : "l"(a), "l"(b), "r"(1), "n"(TERMS ? 1 : 0))
    if constexpr (Element::IS_F16) SPANFORGE_MULTIPLY("f16");
    else SPANFORGE_MULTIPLY("bf16");
#undef SPANFORGE_MULTIPLY
}

#undef SPANFORGE_SUM_LIST
#undef SPANFORGE_SUMS

}  // namespace spanforge
