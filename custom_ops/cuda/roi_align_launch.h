// What the kernels of roi_align.cu are launched with.
#pragma once

#include <cstdint>

namespace kerasdet {

struct RoiAlignLaunch {
  static constexpr int kThreads = 128;  // a warp takes a bin
  static constexpr int kMostLevels = 12;

  struct Level {
    const void* features;        // (images, height, width, channels), or in the gradient
    float* floats;               // sums of that shape
    unsigned long long* units;   // and these, where sums must not depend on their order
    int32_t height, width;
    float scale;
  };

  Level levels[kMostLevels];
  const float* boxes;        // (images, per_image, 4)
  void* pooled;              // (images, per_image, output_height, output_width, channels)
  const uint32_t* largest;   // bits of the largest absolute value of `pooled`
  int32_t type;            // of features and `pooled`
  int32_t num_bins, per_image, channels, num_levels, lowest_level;
  int32_t output_height, output_width, sampling_ratio, aligned, log2_terms;
  float canonical_size, canonical_level, level_epsilon;
};

}  // namespace kerasdet
