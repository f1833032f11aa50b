// C = A B^T of 16 x 32 and 8 x 32 signed bytes on the tensor cores.
extern "C" __global__ void k(const int* x, int* y, int n)
{
    int group = threadIdx.x / 4, t = threadIdx.x % 4;
    const int *a = x, *b = x + 16 * 8;
    int c[4] = {0, 0, 0, 0};
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[group * 8 + t]), "r"(a[(group + 8) * 8 + t]), "r"(a[group * 8 + t + 4]),
          "r"(a[(group + 8) * 8 + t + 4]), "r"(b[group * 8 + t]), "r"(b[group * 8 + t + 4]));
    for (int i = 0; i < 4; i++) y[(group + 8 * (i / 2)) * 8 + 2 * t + i % 2] = c[i];
}
