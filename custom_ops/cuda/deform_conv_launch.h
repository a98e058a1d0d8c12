// Launch parameters of the kernels in deform_conv.cu.
#pragma once

#include <cstdint>

namespace kerasdet {

struct DeformConvLaunch {
  static constexpr int kThreads = 128;  // per block. A warp handles one sample; in the gradient, of one deformable group

  const float* x;        // (images, height, width, channels)
  const float* offsets;  // (positions, deformable_groups, taps, 2)
  const float* mask;     // (positions, deformable_groups, taps) or null
  const float* gradient;  // gradient of the loss with respect to `columns`
  float* columns;        // (groups, positions, taps, channels / groups)
  float* to_x;           // gradient of `x`
  unsigned long long* to_x_units;  // gradient of `x` in units (see `Sums`) if results must be deterministic, else null
  float* to_offsets;
  float* to_mask;
  const uint32_t* largest;  // bits of the largest absolute value of `gradient`
  const uint32_t* largest_factor;  // bits of the largest absolute value of `mask`
  int32_t positions, out_height, out_width, height, width, channels;
  int32_t kernel_width, taps, stride, padding, dilation, groups, deformable_groups, log2_terms;
};

}  // namespace kerasdet
