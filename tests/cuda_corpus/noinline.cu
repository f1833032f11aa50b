// Structures through calls, arrays indexed at run time, a switch with a jump table.
struct Five { float v[5]; };
__device__ __noinline__ Five fill(float x) { Five f; for (int i = 0; i < 5; i++) f.v[i] = x + i; return f; }
__device__ __noinline__ float some(Five f, int n) { float s = 0; for (int i = 0; i < n; i++) s += f.v[i]; return s; }
extern "C" __global__ void k(const int* x, float* y, int n)
{
    int v = x[threadIdx.x];
    float r = some(fill(v), v % 6);
    switch (v % 7) {
    case 0: r += 1; break;
    case 1: r *= 2;
    case 2: r -= 3; break;
    case 3: r = -r; break;
    case 4: for (int i = 0; i < v; i++) { if (i == 9) break; if (i & 1) continue; r += i; } break;
    case 5: r = v; break;
    default: r = 0;
    }
    y[threadIdx.x] = r;
}
