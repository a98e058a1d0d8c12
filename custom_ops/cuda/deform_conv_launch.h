// What the kernels of deform_conv.cu are launched with.
#pragma once

#include <cstdint>

namespace kerasdet {

struct DeformConvLaunch {
  static constexpr int kThreads = 128;  // a warp takes a sample, in the gradient one of a deformable group

  const float* x;        // (images, height, width, channels)
  const float* offsets;  // (positions, deformable_groups, taps, 2)
  const float* mask;     // (positions, deformable_groups, taps) or null
  const float* gradient;  // of `columns`
  float* columns;        // (groups, positions, taps, channels / groups)
  float* to_x;           // sums
  unsigned long long* to_x_units;  // and these, where sums must not depend on their order
  float* to_offsets;
  float* to_mask;
  const uint32_t* largest;  // bits of the largest absolute value of `gradient`
  const uint32_t* largest_factor;  // and of `mask`
  int32_t positions, out_height, out_width, height, width, channels;
  int32_t kernel_width, taps, stride, padding, dilation, groups, deformable_groups, log2_terms;
};

}  // namespace kerasdet
