// Threads beyond n leave before the barriers, which GPUs since Volta let the others pass.
extern "C" __global__ void k(const float* x, float* sums, int n)
{
    __shared__ float tile[64];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0;
    for (int first = 0; first < n; first += 64) {
        if (first + threadIdx.x < n) tile[threadIdx.x] = x[first + threadIdx.x];
        __syncthreads();
        for (int j = 0; j < 64 && first + j < n; j++) sum += tile[j];
        __syncthreads();
    }
    sums[i] = sum;
}
