extern "C" __global__ void k(const int* x, int* y, int n)
{
    __shared__ int s[256];
    int i = threadIdx.x;
    s[i] = x[i];
    __syncthreads();
    for (int run = 2; run <= n; run *= 2)
        for (int by = run / 2; by; by /= 2) {
            int other = i ^ by;
            if (other > i && (s[i] > s[other]) == ((i & run) == 0)) {
                int t = s[i];
                s[i] = s[other];
                s[other] = t;
            }
            __syncthreads();
        }
    y[i] = s[i];
}
