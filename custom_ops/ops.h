// Registers the ops, each defined in a file of its name, and their kernels.
#pragma once

namespace kerasdet {

void RegisterNms();
void RegisterRoiAlign();
void RegisterDeformConv();
void RegisterMasks();
void RegisterResize();
void RegisterCropMasks();

// Registers the GPU kernels if there are a driver and compiled kernels.
void RegisterNmsOnGpu();
void RegisterRoiAlignOnGpu();
void RegisterDeformConvOnGpu();

}  // namespace kerasdet
