// 128 bits by 64: NVRTC divides with `addc` after `subc.cc`.
extern "C" __global__ void k(const unsigned long long* x, unsigned long long* y, int n)
{
    int i = threadIdx.x;
    unsigned __int128 dividend = (unsigned __int128)x[i] << 64 | (x[i] ^ 99);
    unsigned __int128 quotient = dividend / (x[i] % 1000 + 1);
    y[2 * i] = quotient;
    y[2 * i + 1] = quotient >> 64;
}
