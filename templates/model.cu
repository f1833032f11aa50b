// The parts of a decoder step between its products of matrices, for one element type.
#include "model.cuh"

using Element = spanforge::${ element }$;
using Kv = spanforge::${ kv_element }$;

extern "C" __global__ void spanforge_embed(
    const unsigned* table, const int* tokens, float* x, int size
) {
    spanforge::embed<Element>(table, tokens, x, size);
}

extern "C" __global__ void spanforge_rms_norm(
    const float* x, const int* rows, const float* gain, unsigned* y, int size, float eps
) {
    spanforge::rms_norm<Element>(x, rows, gain, y, size, eps);
}

extern "C" __global__ void spanforge_rotate_and_keep(
    const unsigned* qkv, const float2* turns, const long long* places, unsigned* q, void* k, void* v,
    int query_heads, int kv_heads, int head_dim, long long head_stride
) {
    spanforge::rotate_and_keep<Element, Kv>(
        qkv, turns, places, q, k, v, query_heads, kv_heads, head_dim, head_stride
    );
}

extern "C" __global__ void spanforge_swiglu(const unsigned* gate_up, unsigned* y, int size) {
    spanforge::swiglu<Element>(gate_up, y, size);
}
