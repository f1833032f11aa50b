/* A stand-in for libcuda.so.1 that notes what it is asked, so that the calls of spanforge.driver can be
   tested without a GPU. A launch is written down with its arguments as the driver would copy them. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static char calls[1 << 16];
static size_t used;
static int depth;

#define NOTE(...) (used += (size_t)snprintf(calls + used, sizeof calls - used, __VA_ARGS__))

/* Kernels by number, which is also their handle; sizes of their parameters as in kernels/src/abi.rs. */
static const char *names[] = {"spanforge_overlay", "spanforge_plan", "spanforge_decode", "spanforge_merge",
                              "spanforge_merge_outputs"};
static const int pointers[] = {7, 4, 19, 7, 4}, integers[] = {2, 1, 11, 5, 1};

const char *stub_calls(void) { return calls; }
int stub_depth(void) { return depth; }

int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, (size_t)size, "Stub %d", device);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 16: *value = 3; return 0;
    case 75: *value = 9; return 0;
    case 76: *value = 0; return 0;
    case 97: *value = 232448; return 0;
    default: return 1;
    }
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)((uintptr_t)0x7fff00000000 + (uintptr_t)device);
    return 0;
}
int cuCtxPushCurrent_v2(void *context) {
    depth += context == (void *)((uintptr_t)0x7fff00000000 + 41);
    return 0;
}
int cuCtxPopCurrent_v2(void **context) { *context = NULL; --depth; return 0; }
int cuModuleLoadData(void **module, const void *image) {
    if (depth != 1 || strcmp(image, "code") != 0) return 200;
    NOTE("load\n");
    *module = (void *)0x1000;
    return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    for (uintptr_t i = 0; i < 5; ++i)
        if (module == (void *)0x1000 && strcmp(name, names[i]) == 0) {
            *function = (void *)(0x7fff10000000 + i);
            return 0;
        }
    return 500;
}
static int kernel_of(void *function) { return (int)((uintptr_t)function - 0x7fff10000000); }
int cuFuncGetParamInfo(void *function, size_t index, size_t *offset, size_t *size) {
    const int kernel = kernel_of(function);
    if (index >= (size_t)(pointers[kernel] + integers[kernel])) return 1;
    *offset = 0;
    *size = index < (size_t)pointers[kernel] ? 8 : 4;
    return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    NOTE("attribute %s %d %d\n", names[kernel_of(function)], attribute, value);
    return 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
    const int kernel = kernel_of(function);
    if (depth != 1 || extra != NULL || bx > 1024) return 1;
    NOTE("launch %s %u,%u,%u %u,%u,%u %u %zx", names[kernel], gx, gy, gz, bx, by, bz, shared,
         (size_t)stream);
    for (int i = 0; i < pointers[kernel]; ++i) NOTE(" %llx", *(unsigned long long *)arguments[i]);
    for (int i = pointers[kernel]; i < pointers[kernel] + integers[kernel]; ++i)
        NOTE(" %d", *(int *)arguments[i]);
    NOTE("\n");
    return 0;
}
int cuGetErrorName(int code, const char **text) { *text = code == 200 ? "BAD_IMAGE" : "OTHER"; return 0; }
int cuGetErrorString(int code, const char **text) {
    *text = code == 200 ? "the image is invalid" : "something else";
    return 0;
}
