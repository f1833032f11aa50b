// Values that only some threads set, moved about by all of them: what NVRTC makes of it reads
// registers that nothing has written. With LEAK, such a value leaves the kernel.
#include <cuda_fp16.h>

struct Maybe {
    bool set;
    float4 value;
};

__device__ Maybe find(const float* x, int i, int n) {
    Maybe out;
    out.set = i < n;
    if (out.set) out.value = make_float4(x[i], x[i] + 1, x[i] + 2, x[i] + 3);
    return out;
}

struct Pair {
    float value;
    int set;
};

__device__ __noinline__ Pair odd(int x) {
    Pair out;
    out.set = x & 1;
    if (out.set) out.value = 2.f * x;
    return out;
}

__device__ __noinline__ float value_or_minus_one(Pair pair) { return pair.set ? pair.value : -1.f; }

extern "C" __global__ void k(const float* x, float* y, int n) {
    const int t = threadIdx.x;
    float out = value_or_minus_one(odd(t));
    // Set, and used in a loop, under one condition.
    const bool on = t < n - 7;
    float v;
    if (on) v = x[t];
    for (int i = 0; i < n / 8; ++i)
        if (on) out += v * i;
    // Set on the first trip.
    float most;
    for (int i = 0; i < n; i += 3)
        if (i == 0 || x[i] > most) most = x[i];
    if (n > 0) out += most;
    // One half of two.
    __half2 h;
    h.x = __float2half(float(t));
    if (t & 1) h.y = h.x;
    h = __hadd2(h, h);
    out += __half2float(h.x);
    if (t & 1) out += __half2float(h.y);
    // A selected structure, one of which may not be set.
    const Maybe a = find(x, t, n - 3), b = find(x, t + 1, n - 3);
    const Maybe c = (t & 2) ? a : b;
    if (c.set) out += c.value.x + c.value.w;
    // Stored and shuffled by threads whose value nobody looks at.
    __shared__ float s[32];
    float u;
    if (t < 16) u = x[t];
    s[t] = u;
    __syncthreads();
    if (t < 16) out += s[15 - t];
    const float from = __shfl_up_sync(~0u, u, 1);
    if (t > 0 && t < 17) out += from;
    // A condition that is only looked at where it is set.
    bool high;
    if (on) high = x[t] > 3.f;
    out += on && high ? 1.f : 0.f;
    out += __popc(__ballot_sync(~0u, on && high));
#ifdef LEAK
    out += u;
#endif
    y[t] = out;
}
