// The ops, each in a file of its name. A kernel for another device is registered beside these.
#pragma once

namespace kerasdet {

void RegisterNms();
void RegisterRoiAlign();
void RegisterDeformConv();
void RegisterMasks();

// On GPUs, where there are a driver and compiled kernels.
void RegisterNmsOnGpu();
void RegisterRoiAlignOnGpu();
void RegisterDeformConvOnGpu();

}  // namespace kerasdet
