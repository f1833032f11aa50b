// One 32 x 32 tile. PAD 0 reads a column of the tile from one bank, PAD 1 from all of them.
extern "C" __global__ void k(const float* x, float* y, int n)
{
    __shared__ float tile[32][32 + PAD];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * n + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * n + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
