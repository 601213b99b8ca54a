// A libcuda.so.1 without a GPU. A few functions answer as a Hopper would; build.sh generates the rest, which return 0.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

long n_driver_launch = 0;  // kernels that Triton compiled; read by counters.py

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = 0; return 0; }
static int attribute_value(int attribute) {
  switch (attribute) {
    case 1: case 2: case 3: return 1024;        // threads of a block
    case 4: return 64;
    case 5: return 2147483647;                  // blocks of a grid
    case 6: case 7: return 65535;
    case 8: return 49152;                       // shared memory of a block
    case 10: return 32;                         // warp
    case 12: case 82: return 65536;             // registers
    case 13: return 1980000;                    // kHz
    case 16: return 132;                        // multiprocessors
    case 36: return 2619000;
    case 37: return 5120;
    case 38: return 52428800;                   // L2
    case 39: return 2048;
    case 75: return 9;                          // compute capability 9.0
    case 76: return 0;
    case 81: return 233472;
    case 97: return 232448;                     // shared memory of a block, opted in
    case 102: case 120: return 1;               // virtual memory management
    default: return 0;
  }
}
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute_value(attribute); return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)1; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)1; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 0; return 0; }
int cuPointerGetAttribute(void *value, int attribute, unsigned long long pointer) {
  *(unsigned long long *)value = pointer; return 0;
}
int cuOccupancyMaxActiveClusters(int *count, void *function, void *config) { *count = 1; return 0; }
int cuLaunchKernelEx(void) { n_driver_launch++; return 0; }
int cuLaunchKernel(void) { n_driver_launch++; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "none"; return 0; }
int cuGetErrorName(int error, const char **text) { *text = "none"; return 0; }

// virtual memory, for the allocator's expandable segments; runtime.c counts the bytes
typedef struct { size_t size; } Handle;
int cuMemGetAllocationGranularity(size_t *size, const void *properties, int option) { *size = 2097152; return 0; }
int cuMemAddressReserve(void **pointer, size_t size, size_t alignment, void *address, unsigned long long flags) {
  *pointer = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *pointer == MAP_FAILED ? 2 : 0;
}
int cuMemAddressFree(void *pointer, size_t size) { munmap(pointer, size); return 0; }
int cuMemCreate(void **handle, size_t size, const void *properties, unsigned long long flags) {
  int (*take)(size_t) = dlsym(RTLD_DEFAULT, "stub_take");
  if (!take || !take(size)) return 2;  // out of memory
  Handle *created = malloc(sizeof(Handle));
  created->size = size;
  *handle = created;
  return 0;
}
int cuMemRelease(void *handle) {
  void (*give)(size_t) = dlsym(RTLD_DEFAULT, "stub_give");
  if (give) give(((Handle *)handle)->size);
  free(handle);
  return 0;
}
int cuMemMap(void *pointer, size_t size, size_t offset, void *handle, unsigned long long flags) { return 0; }
int cuMemSetAccess(void *pointer, size_t size, const void *access, size_t count) { return 0; }
int cuMemUnmap(void *pointer, size_t size) { madvise(pointer, size, MADV_DONTNEED); return 0; }

static int zero(void) { return 0; }
static void *find(const char *name) {
  static void *library;
  if (!library) library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  void *function = library ? dlsym(library, name) : 0;
  return function ? function : (void *)zero;
}
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, void *result) {
  *function = find(name); return 0;
}
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
  *function = find(name); return 0;
}
