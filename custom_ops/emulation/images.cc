// Holds names in place of compiled kernels, because the emulated GPU runs the sources.

#include <cstdint>

struct Image {
  int64_t is_ptx, architecture;
  const void* data;
};
extern "C" __attribute__((visibility("hidden"))) const Image kerasdet_cuda_images[] = {
    {0, 70, "sm_70"}, {0, 80, "sm_80"}, {0, 86, "sm_86"}, {0, 90, "sm_90"}, {1, 70, "compute_70"}, {0, 0, nullptr}};
