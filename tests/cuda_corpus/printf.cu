extern "C" __global__ void k(const int* x, int* y, int n)
{
    y[threadIdx.x] = threadIdx.x < 2 ? printf("%d %6.2f|%-4s|%#x %g\n", x[threadIdx.x], 1.5 * threadIdx.x, "ab", 255, 1e-5) : 0;
}
