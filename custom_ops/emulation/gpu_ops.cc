// The ops of GPUs alone, for a library in which an emulated one runs them.

#include "../ops.h"

__attribute__((constructor)) static void RegisterAll() {
  kerasdet::RegisterNmsOnGpu();
  kerasdet::RegisterRoiAlignOnGpu();
  kerasdet::RegisterDeformConvOnGpu();
}
