// The largest of n values and the first place that has it: each thread its share, then warps by
// shuffles, then the first warp over what the others left in shared memory.
struct Best { float value; int at; };

__device__ Best better(Best a, Best b) {
    return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

__device__ Best best_of_warp(Best best) {
    for (int distance = 16; distance > 0; distance >>= 1) {
        Best other;
        other.value = __shfl_down_sync(0xffffffff, best.value, distance);
        other.at = __shfl_down_sync(0xffffffff, best.at, distance);
        best = better(best, other);
    }
    return best;
}

extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ Best warps[32];
    Best best = {-__int_as_float(0x7f800000), n};
    for (int i = threadIdx.x; i < n; i += blockDim.x) best = better(best, Best{x[i], i});
    best = best_of_warp(best);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    best = threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : warps[0];
    best = best_of_warp(best);
    if (threadIdx.x == 0) {
        y[0] = best.value;
        y[1] = __int_as_float(best.at);
    }
}
