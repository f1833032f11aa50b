// Elements: 16-bit floats, and 8-bit ones that a KV cache may have instead, loaded as packed words.
//
// No header of the toolkit is needed: the conversions are single PTX instructions, and leaving
// cuda_fp16.h out halves the time NVRTC takes for a small file.
#pragma once

namespace spanforge {

struct F16 {
    static constexpr int BYTES = 2;
    static constexpr bool IS_F16 = true;

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
    static constexpr int BYTES = 2;
    static constexpr bool IS_F16 = false;

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

// e4m3 of the OCP 8-bit formats: a sign, 4 bits of exponent, 3 of mantissa. There is no infinity; NaN is
// where all bits but the sign are set. f16 and bf16 have all its values.
struct E4m3 {
    static constexpr int BYTES = 1;

    // Four elements as f16: those numbered 0 and 2, and those numbered 1 and 3.
    static __device__ __forceinline__ void halves(unsigned four, unsigned& even, unsigned& odd) {
#if __CUDA_ARCH__ >= 890
        asm("{\n .reg .b16 a, b;\n mov.b32 {a, b}, %2;\n cvt.rn.f16x2.e4m3x2 %0, a;\n"
            " cvt.rn.f16x2.e4m3x2 %1, b;\n}"
            : "=r"(even), "=r"(odd)
            : "r"(__byte_perm(four, 0, 0x3120)));
#else
        even = from_upper_bytes(four << 8);
        odd = from_upper_bytes(four);
        const unsigned nan = ((four & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
        if (nan != 0) {
            even |= (nan >> 7 & 0x00010001u) * 0x7fffu;
            odd |= (nan >> 15 & 0x00010001u) * 0x7fffu;
        }
#endif
    }

    // Rounds two floats to nearest even and packs them, `low` in the lower byte. What is larger than 448
    // becomes 448, infinity too.
    static __device__ __forceinline__ unsigned short narrow(float low, float high) {
#if __CUDA_ARCH__ >= 890
        unsigned short packed;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
        return packed;
#else
        return nearest(low) | nearest(high) << 8;
#endif
    }

    static __device__ __forceinline__ unsigned nearest(float value) {
        const unsigned sign = __float_as_uint(value) >> 24 & 0x80u;
        const float size = fabsf(value);
        if (!(size == size)) return 0x7fu;
        if (size >= 464.f) return sign | 0x7eu;  // halfway from 448 to what would be 480
        // Below 2^-6 elements are multiples of 2^-9.
        if (size < 0.015625f) return sign | __float2uint_rn(size * 512.f);
        const unsigned bits = __float_as_uint(size);
        const unsigned rounded = bits + 0x7ffffu + (bits >> 20 & 1u);
        return sign | ((rounded >> 20) - (120u << 3));  // the difference of the biases of exponents
    }

    // The upper byte of each half as f16. With its exponent where f16 has one, a number is too small by
    // the difference of the biases.
    static __device__ __forceinline__ unsigned from_upper_bytes(unsigned pair) {
        const unsigned small = (pair & 0x80008000u) | (pair >> 1 & 0x3f803f80u);
        unsigned r;
        asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(small), "r"(0x5c005c00u));  // 2^8
        return r;
    }
};

// Elements 4 `i` to 4 `i` + 3 of a run, in f32.
template <class Kv>
__device__ __forceinline__ float4 widen_four(const unsigned* words, int i) {
    float4 r;
    if constexpr (Kv::BYTES == 1) {
        unsigned even, odd;
        Kv::halves(words[i], even, odd);
        F16::widen(even, r.x, r.z);
        F16::widen(odd, r.y, r.w);
    } else {
        Kv::widen(words[2 * i], r.x, r.y);
        Kv::widen(words[2 * i + 1], r.z, r.w);
    }
    return r;
}

// Powers of two by which a head's query in bf16 is multiplied to become f16, and what is computed with it
// to be that again: the largest element, whose bits without the sign are `largest`, is brought just below
// what f16 holds. Its other elements then have all their bits unless they are 2^-31 of it and smaller. The
// power is bounded, so that both are numbers of f32.
struct ToF16 {
    float to, back;

    __device__ __forceinline__ explicit ToF16(unsigned largest) {
        const int power = min(141 - static_cast<int>(largest >> 7), 100);
        to = __int_as_float((127 + power) << 23);
        back = __int_as_float((127 - power) << 23);
    }

    __device__ __forceinline__ unsigned convert(unsigned pair) const {
        float low, high;
        Bf16::widen(pair, low, high);
        return F16::narrow(low * to, high * to);
    }
};

// The larger one of the elements of a pair and `most`, as bits without the sign.
__device__ __forceinline__ unsigned largest_of(unsigned most, unsigned pair) {
    return max(most, max(pair & 0x7fffu, pair >> 16 & 0x7fffu));
}

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
