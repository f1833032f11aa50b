// Elements of the KV cache: 16-bit floats, loaded as packed words and widened to f32.
//
// No header of the toolkit is needed: the conversions are single PTX instructions, and leaving
// cuda_fp16.h out halves the time NVRTC takes for a small file.
#pragma once

namespace spanforge {

struct F16 {
    // Widens the two elements packed in one word, the lower half first.
    static __device__ __forceinline__ void widen(unsigned packed, float& low, float& high) {
        asm("{\n .reg .b16 a, b;\n mov.b32 {a, b}, %2;\n cvt.f32.f16 %0, a;\n cvt.f32.f16 %1, b;\n}"
            : "=f"(low), "=f"(high)
            : "r"(packed));
    }
    // Rounds two floats to nearest even and packs them, `low` in the lower half.
    static __device__ __forceinline__ unsigned narrow(float low, float high) {
        unsigned packed;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }
    // sum += a b for a of 16 rows and 16 columns and b of 16 rows and 8 columns, spread over a warp
    // as mma.m16n8k16 has them.
    static __device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4],
                                                        unsigned b_low, unsigned b_high) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
    }
};

struct Bf16 {
    static __device__ __forceinline__ void widen(unsigned packed, float& low, float& high) {
        low = __uint_as_float(packed << 16);
        high = __uint_as_float(packed & 0xffff0000u);
    }
    static __device__ __forceinline__ unsigned narrow(float low, float high) {
        unsigned packed;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }
    static __device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4],
                                                        unsigned b_low, unsigned b_high) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
    }
};

// A run of consecutive elements that one instruction loads: 8 or 16 bytes.
template <int BYTES>
struct Packed;
template <>
struct Packed<8> {
    unsigned word[2];
};
template <>
struct Packed<16> {
    unsigned word[4];
};

}  // namespace spanforge
