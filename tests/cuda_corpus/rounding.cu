// Directed f64 arithmetic brackets the exact result.
extern "C" __global__ void k(const double* x, double* y, int n)
{
    int i = threadIdx.x;
    double a = x[i], b = x[n - 1 - i];
    y[i] = __dmul_rd(a, b);
    y[n + i] = __dmul_ru(a, b);
    y[2 * n + i] = __ddiv_rz(a, b);
    y[3 * n + i] = __dsqrt_ru(a);
}
