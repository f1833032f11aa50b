extern "C" __global__ void k(const unsigned* x, unsigned* y, int n)
{
    int i = threadIdx.x;
    unsigned a = x[i], b = x[n - 1 - i];
    y[i] = __vadd2(a, b);
    y[n + i] = __vsadu4(a, b);
    y[2 * n + i] = __vimin_s16x2_relu(a, b);
    y[3 * n + i] = __dp4a(a, b, 7u);
}
