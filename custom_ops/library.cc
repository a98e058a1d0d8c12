// Runs when TensorFlow loads the library.

#include <cstdio>
#include <exception>

#include "cuda/driver.h"
#include "cuda/gpu_device.h"
#include "ops.h"

__attribute__((constructor)) static void RegisterAll() {
  try {
    kerasdet::RegisterNms();
    kerasdet::RegisterRoiAlign();
    kerasdet::RegisterDeformConv();
    kerasdet::RegisterMasks();
    kerasdet::RegisterResize();
    kerasdet::RegisterCropMasks();
    if (kerasdet::HasDriver() && kerasdet::HasStreams()) {
      kerasdet::RegisterNmsOnGpu();
      kerasdet::RegisterRoiAlignOnGpu();
      kerasdet::RegisterDeformConvOnGpu();
    }
  } catch (const std::exception& error) {
    // Python sees that the op is missing and uses stock ops.
    std::fprintf(stderr, "kerasdet: an op was not registered: %s\n", error.what());
  }
}
