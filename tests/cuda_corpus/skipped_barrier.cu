// Half of the block goes around the barrier and reads what the other half has not written.
extern "C" __global__ void k(const float* x, float* y, int n)
{
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < 32) __syncthreads();
    y[threadIdx.x] = tile[n - 1 - threadIdx.x];
}
