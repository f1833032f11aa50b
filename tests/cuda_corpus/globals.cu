// Variables of the module with initial values, pointers to others among them, and a structure.
struct Entry { int a; const int* p; double d; };
__device__ int numbers[3] = {5, 6, 7};
__device__ int* second = numbers + 1;
__constant__ float scale[2] = {0.5f, 2};
__device__ Entry entry = {9, numbers + 2, 2.5};
extern "C" __global__ void k(const int* x, float* y, int n)
{
    y[threadIdx.x] = *second * scale[threadIdx.x & 1] + entry.a + *entry.p + entry.d + x[threadIdx.x];
}
