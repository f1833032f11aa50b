// Layer norm of rows of n: x holds the weights, the biases, and then the rows. A block per row:
// both moments by shuffles within warps and shared memory between them.
__device__ float block_sum(float value, float* partial) {
    for (int distance = 16; distance > 0; distance >>= 1)
        value += __shfl_xor_sync(0xffffffff, value, distance);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    value = lane < blockDim.x / 32 ? partial[lane] : 0.f;
    for (int distance = 16; distance > 0; distance >>= 1)
        value += __shfl_xor_sync(0xffffffff, value, distance);
    __syncthreads();  // before the next sum overwrites the partial ones
    return value;
}

extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float partial[32];
    const float* row = x + (2 + blockIdx.x) * n;
    float sum = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += row[i];
    float mean = block_sum(sum, partial) / n;
    float squares = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float away = row[i] - mean;
        squares += away * away;
    }
    float scale = rsqrtf(block_sum(squares, partial) / n + 1e-5f);
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        y[blockIdx.x * n + i] = (row[i] - mean) * scale * x[i] + x[n + i];
}
