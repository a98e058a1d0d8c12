// Launch parameters of the kernels in roi_align.cu.
#pragma once

#include <cstdint>

namespace kerasdet {

struct RoiAlignLaunch {
  static constexpr int kThreads = 128;  // per block; a warp handles one bin
  static constexpr int kMostLevels = 12;

  struct Level {
    const void* features;        // (images, height, width, channels); null in the gradient
    float* floats;               // gradient of `features`, in its shape
    unsigned long long* units;   // gradient of `features` in units (see `Sums`) if results must be deterministic, else null
    int32_t height, width;
    float scale;
  };

  Level levels[kMostLevels];
  const float* boxes;        // (images, per_image, 4)
  void* pooled;              // (images, per_image, output_height, output_width, channels)
  const uint32_t* largest;   // bits of the largest absolute value of `pooled`
  int32_t type;            // data type of features and `pooled`
  int32_t num_bins, per_image, channels, num_levels, lowest_level;
  int32_t output_height, output_width, sampling_ratio, aligned, log2_terms;
  float canonical_size, canonical_level, level_epsilon;
};

}  // namespace kerasdet
