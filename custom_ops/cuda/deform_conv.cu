// Deformable convolution: samples the features at all taps into a matrix, the columns, and computes the gradients of this
// step.
//
// TensorFlow multiplies the columns with the kernel. Each warp handles one sample, and its threads share the channels.

#include "deform_conv_launch.h"
#include "device.h"

namespace kerasdet {

// The four cells around a sample and their weights; cells outside the map have inside = false.
struct Sample {
  float dy, dx, factor;
  bool inside[4];
  int64_t cells[4];  // offsets of their first channels

  Sample(const DeformConvLaunch& launch, int position, int tap, int64_t number)
      : dy(0), dx(0), factor(launch.mask == nullptr ? 1.0f : launch.mask[number]), inside{}, cells{} {
    const int row = position / launch.out_width, image = row / launch.out_height, tap_row = tap / launch.kernel_width;
    const int out_y = row - image * launch.out_height, out_x = position - row * launch.out_width;
    const int tap_column = tap - tap_row * launch.kernel_width;
    const int64_t top = static_cast<int64_t>(out_y) * launch.stride - launch.padding +
                        static_cast<int64_t>(tap_row) * launch.dilation;
    const int64_t left = static_cast<int64_t>(out_x) * launch.stride - launch.padding +
                         static_cast<int64_t>(tap_column) * launch.dilation;
    const float y = static_cast<float>(top) + launch.offsets[2 * number];
    const float x = static_cast<float>(left) + launch.offsets[2 * number + 1];
    const float y_below = floorf(y), x_below = floorf(x);
    // Samples outside the map, and those with a NaN position, read nothing.
    if (!(y_below >= -1 && y_below < static_cast<float>(launch.height) && x_below >= -1 &&
          x_below < static_cast<float>(launch.width))) {
      return;
    }
    dy = y - y_below;
    dx = x - x_below;
    for (int corner = 0; corner < 4; ++corner) {
      const int cell_y = static_cast<int>(y_below) + (corner >> 1), cell_x = static_cast<int>(x_below) + (corner & 1);
      inside[corner] = cell_y >= 0 && cell_y < launch.height && cell_x >= 0 && cell_x < launch.width;
      const int64_t line = static_cast<int64_t>(image) * launch.height + cell_y;
      cells[corner] = (line * launch.width + cell_x) * launch.channels;
    }
  }

  float Weight(int corner) const { return (corner & 2 ? dy : 1 - dy) * (corner & 1 ? dx : 1 - dx); }
};

// Returns the offset of a sample's channel in the columns.
inline int64_t ColumnOf(const DeformConvLaunch& launch, int position, int tap, int channel) {
  const int of_group = launch.channels / launch.groups, group = launch.groups == 1 ? 0 : channel / of_group;
  const int64_t row = static_cast<int64_t>(group) * launch.positions + position;
  return (row * launch.taps + tap) * of_group + channel - group * of_group;
}

template <int kWidth>
inline void ToColumns(const DeformConvLaunch& launch) {
  const int number = static_cast<int>(blockIdx.x * (DeformConvLaunch::kThreads / 32) + threadIdx.x / 32);
  const int position = number / launch.taps, tap = number - position * launch.taps;
  if (position >= launch.positions) return;
  const int of_deformable = launch.channels / launch.deformable_groups;
  for (int channel = threadIdx.x % 32 * kWidth; channel < launch.channels; channel += 32 * kWidth) {
    const int group = launch.deformable_groups == 1 ? 0 : channel / of_deformable;
    const int owner = position * launch.deformable_groups + group;
    const Sample sample(launch, position, tap, static_cast<int64_t>(owner) * launch.taps + tap);
    float sums[kWidth] = {};
    for (int corner = 0; corner < 4; ++corner) {
      if (!sample.inside[corner]) continue;
      const auto cell = *reinterpret_cast<const Channels<float, kWidth>*>(launch.x + sample.cells[corner] + channel);
      const float weight = sample.Weight(corner) * sample.factor;
      for (int i = 0; i < kWidth; ++i) sums[i] = fmaf(weight, cell.values[i], sums[i]);
    }
    Channels<float, kWidth> column;
    for (int i = 0; i < kWidth; ++i) column.values[i] = sums[i];
    *reinterpret_cast<Channels<float, kWidth>*>(launch.columns + ColumnOf(launch, position, tap, channel)) = column;
  }
}

inline float SumOfWarp(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

KERASDET_KERNEL(deform_columns_4, DeformConvLaunch, DeformConvLaunch::kThreads) { ToColumns<4>(launch); }
KERASDET_KERNEL(deform_columns_1, DeformConvLaunch, DeformConvLaunch::kThreads) { ToColumns<1>(launch); }

// Computes the gradients and columns of one sample of one deformable group. Neighbouring threads add to neighbouring
// channels, so the memory system merges their accesses.
KERASDET_KERNEL(deform_columns_grad, DeformConvLaunch, DeformConvLaunch::kThreads) {
  const int number = static_cast<int>(blockIdx.x * (DeformConvLaunch::kThreads / 32) + threadIdx.x / 32);
  const int owner = number / launch.taps, tap = number - owner * launch.taps;
  if (owner >= launch.positions * launch.deformable_groups) return;
  const int position = owner / launch.deformable_groups, group = owner - position * launch.deformable_groups;
  const Sample sample(launch, position, tap, number);
  Sums to_x{launch.to_x, launch.to_x_units, 0};
  if (to_x.units != nullptr) {
    to_x.root_of_units = ldexpf(1.0f, ExponentOfRoot(*launch.largest, *launch.largest_factor, launch.log2_terms));
  }
  const int of_deformable = launch.channels / launch.deformable_groups, first = group * of_deformable;
  float dots[4] = {};
  for (int channel = first + threadIdx.x % 32; channel < first + of_deformable; channel += 32) {
    const int64_t column = ColumnOf(launch, position, tap, channel);
    const float gradient = launch.gradient[column];
    float value = 0;
    for (int corner = 0; corner < 4; ++corner) {
      if (!sample.inside[corner]) continue;
      const float cell = launch.x[sample.cells[corner] + channel], weight = sample.Weight(corner) * sample.factor;
      value = fmaf(weight, cell, value);
      dots[corner] = fmaf(gradient, cell, dots[corner]);
      Add(to_x, sample.cells[corner] + channel, weight * gradient);
    }
    launch.columns[column] = value;
  }
  float to_y = 0, to_x_offset = 0, to_factor = 0;
  for (int corner = 0; corner < 4; ++corner) {
    const float dot = SumOfWarp(dots[corner]);
    if (!sample.inside[corner]) continue;
    to_y += (corner & 2 ? 1.0f : -1.0f) * (corner & 1 ? sample.dx : 1 - sample.dx) * dot;
    to_x_offset += (corner & 1 ? 1.0f : -1.0f) * (corner & 2 ? sample.dy : 1 - sample.dy) * dot;
    to_factor += sample.Weight(corner) * dot;
  }
  if (threadIdx.x % 32 != 0) return;
  launch.to_offsets[2 * int64_t{number}] = to_y * sample.factor;
  launch.to_offsets[2 * int64_t{number} + 1] = to_x_offset * sample.factor;
  if (launch.mask != nullptr) launch.to_mask[number] = to_factor;
}

}  // namespace kerasdet
