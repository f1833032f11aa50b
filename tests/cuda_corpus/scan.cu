// Inclusive prefix sums of one block, double-buffered in dynamic shared memory.
extern "C" __global__ void k(const int* x, int* y, int n)
{
    extern __shared__ int buffers[];
    int i = threadIdx.x, from = 0;
    buffers[i] = x[i];
    __syncthreads();
    for (int by = 1; by < n; by *= 2) {
        int value = buffers[from * n + i] + (i >= by ? buffers[from * n + i - by] : 0);
        from = 1 - from;
        buffers[from * n + i] = value;
        __syncthreads();
    }
    y[i] = buffers[from * n + i];
}
