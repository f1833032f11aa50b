// Counts in shared memory, then in global memory; a maximum by compare-and-swap behind them.
extern "C" __global__ void k(const int* x, int* y, int n)
{
    __shared__ int counts[16];
    if (threadIdx.x < 16) counts[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        atomicAdd(&counts[x[i] & 15], 1);
        int old = y[16], seen;
        do {
            seen = old;
            old = atomicCAS(&y[16], seen, max(seen, x[i]));
        } while (old != seen);
    }
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&y[threadIdx.x], counts[threadIdx.x]);
}
