// Registers only the GPU ops, for the library that runs them on an emulated GPU.

#include "../ops.h"

__attribute__((constructor)) static void RegisterAll() {
  kerasdet::RegisterNmsOnGpu();
  kerasdet::RegisterRoiAlignOnGpu();
  kerasdet::RegisterDeformConvOnGpu();
}
