// Registers the ops and their kernels. The file of the same name defines each op.
#pragma once

namespace kerasdet {

void RegisterNms();
void RegisterRoiAlign();
void RegisterDeformConv();
void RegisterMasks();
void RegisterResize();
void RegisterCropMasks();

// Registers the GPU kernels. Call these functions only if there are a driver and compiled kernels (see library.cc).
void RegisterNmsOnGpu();
void RegisterRoiAlignOnGpu();
void RegisterDeformConvOnGpu();

}  // namespace kerasdet
