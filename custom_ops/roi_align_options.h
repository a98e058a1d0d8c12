// Attributes of the ROIAlign kernels, on any device.
#pragma once

#include "kernel.h"
#include "roi_align_plan.h"

namespace kerasdet {

inline RoiOptions RoiOptionsOf(const Construction& attrs) {
  const RoiOptions options{attrs.Floats("spatial_scales"), attrs.Int("output_height"),    attrs.Int("output_width"),
                           attrs.Int("sampling_ratio"),    attrs.Int("lowest_level"),     attrs.Bool("aligned"),
                           attrs.Float("canonical_size"),  attrs.Float("canonical_level"), attrs.Float("level_epsilon")};
  const int64_t height = options.output_height, width = options.output_width;
  if (height < 1 || width < 1 || height > 4096 || width > 4096) throw InvalidArgument("output_size must be in 1..4096.");
  if (options.sampling_ratio < 0 || options.sampling_ratio > 4096) {
    throw InvalidArgument("sampling_ratio must be in 0..4096.");
  }
  return options;
}

inline Map CheckedMap(int64_t height, int64_t width) {
  if (height < 0 || width < 0 || height > (1 << 30) || width > (1 << 30)) throw InvalidArgument("A map is too large.");
  return {height, width};
}

}  // namespace kerasdet
