// Softmax that is computed as its terms arrive, in base 2.
//
// A partial state is (m, l, acc): the largest logit so far, the sum of 2^(logit - m), and the sum
// of 2^(logit - m) * v. An empty state is (-inf, 0, 0), and IEEE arithmetic alone makes it neutral:
// no finite number stands in for minus infinity, since every finite number is a possible logit.
#pragma once

namespace spanforge {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Tensor cores multiply weights of 16 bits. Under the largest logit they are up to 2^HEADROOM, so that f16
// has those of 2^-36 of the largest and more. A logit that exceeds it by up to GROWTH does not replace it,
// and nothing has to be rescaled: f16 ends at 2^16.
constexpr float HEADROOM = 12.f;
constexpr float GROWTH = 3.f;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_approximate(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_approximate(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A logit that goes to `cap` and minus `cap` (not 0) as it grows: cap * tanh(logit / cap). Of the
// logit times log2(e), and so is what comes out. 1 - 2 / (e^2x + 1) has an error that is small beside
// 1, which is all that a difference of logits sees of it.
__device__ __forceinline__ float soft_capped(float logit, float cap) {
    const float most = cap * LOG2_E;
    return most - 2.f * most * reciprocal_approximate(exp2_approximate(logit * (2.f / cap)) + 1.f);
}

// What is subtracted from logits whose largest is `m`: `m` itself, but 0 while every logit is
// -inf, so that 2^(-inf - 0) is 0 where 2^(-inf - -inf) would be NaN.
__device__ __forceinline__ float subtrahend(float m) { return m == minus_infinity() ? 0.f : m; }

// 1/l, and 0 for an empty state, whose accumulator is +0: the output of an empty row is +0.
__device__ __forceinline__ float normaliser(float l) { return l == 0.f ? 0.f : 1.f / l; }

// Natural logarithm of the sum of exponentials; -inf for an empty state.
__device__ __forceinline__ float natural_lse(float m, float l) {
    return l == 0.f ? minus_infinity() : (m + log2_approximate(l)) * LN_2;
}

}  // namespace spanforge
