// ROIAlign of boxes on a pyramid, and its gradient. Each warp handles one bin, and its threads share the channels.
//
// The samples of a bin lie on a grid, so a bin is a weighted sum over cells; the weight of a cell is the weight of its row
// times the weight of its column. Each thread computes the weights of one row and one column, and the warp visits the
// cells with nonzero weights. A cell is read once, even if many samples touch it.

#include "device.h"
#include "roi_align_launch.h"

namespace kerasdet {

// A bin along one axis: its samples, and the lines of the map (rows or columns) that they touch.
struct BinAxis {
  float begin, size;
  int samples, limit, first_line, last_line;
};

inline float PositionOf(float begin, float size, int samples, int sample) {
  return begin + (static_cast<float>(sample) + 0.5f) * size / static_cast<float>(samples);
}

// Returns the mean bilinear weight that the samples of a bin give a line.
KERASDET_SHARED_CODE float WeightOf(float begin, float size, int samples, int limit, int line) {
  float weight = 0;
#pragma unroll 1
  for (int i = 0; i < samples; ++i) {
    float position = PositionOf(begin, size, samples, i);
    if (!(position >= -1 && position <= static_cast<float>(limit))) continue;
    position = fminf(fmaxf(position, 0.0f), static_cast<float>(limit - 1));
    const float lower = floorf(position);
    const int index = min(static_cast<int>(lower), limit - 1);
    if (index == line) weight += 1 - position + lower;
    if (index + 1 == line) weight += position - lower;
  }
  return weight / static_cast<float>(samples);
}

inline float WeightOf(const BinAxis& axis, int line) {
  return line > axis.last_line ? 0.0f : WeightOf(axis.begin, axis.size, axis.samples, axis.limit, line);
}

inline float Finite(float x) { return IsFinite(x) ? x : 0.0f; }

// Like kerasdet/ops/levels.py, rounds the logarithm once: the error of log2f could move boxes to another level.
inline int LevelOf(const RoiAlignLaunch& launch, const float* box) {
  if (launch.num_levels == 1) return 0;
  const float ratio = sqrtf((box[2] - box[0]) * (box[3] - box[1])) / launch.canonical_size + 1e-8f;
  if (!(ratio > 0)) return 0;
  if (!IsFinite(ratio)) return launch.num_levels - 1;
  const float power = rintf(log2f(ratio));
  const float rest = log1pf(ldexpf(ratio, -static_cast<int>(power)) - 1);
  const float level = floorf(launch.canonical_level + (power + rest * 1.44269504f) + launch.level_epsilon);
  const float above = level - static_cast<float>(launch.lowest_level);
  return static_cast<int>(fminf(fmaxf(above, 0.0f), static_cast<float>(launch.num_levels - 1)));
}

KERASDET_SHARED_CODE BinAxis AxisOf(const RoiAlignLaunch& launch, float scale, float low, float high, int bin, int bins, int limit) {
  const float offset = launch.aligned ? 0.5f : 0.0f;
  const float start = Finite(low) * scale - offset;
  float size = Finite(high) * scale - offset - start;
  if (!launch.aligned) size = fmaxf(size, 1.0f);
  BinAxis axis{0, size / static_cast<float>(bins), launch.sampling_ratio, limit, 0, -1};
  axis.begin = start + static_cast<float>(bin) * axis.size;
  if (launch.sampling_ratio == 0) {
    // The number of samples is the size of the bin in lines, rounded up, but at most the number of lines of the map.
    const float samples = ceilf(size / static_cast<float>(bins));
    axis.samples = samples > 0 ? static_cast<int>(fminf(samples, static_cast<float>(limit))) : 0;
  }
  if (axis.samples == 0 || limit == 0) return axis;
  const float one = PositionOf(axis.begin, axis.size, axis.samples, 0),
              other = PositionOf(axis.begin, axis.size, axis.samples, axis.samples - 1),
              last = static_cast<float>(limit - 1);
  axis.first_line = min(static_cast<int>(fminf(fmaxf(fminf(one, other), 0.0f), last)), limit - 1);
  axis.last_line = min(static_cast<int>(fminf(fmaxf(fmaxf(one, other), 0.0f), last)) + 1, limit - 1);
  return axis;
}

// The bin that this warp handles.
struct Bin {
  int level, width;
  int64_t image_begin;  // offset of the image in the level's maps
  BinAxis rows, columns;

  explicit Bin(const RoiAlignLaunch& launch, int32_t number) {
    const int bins = launch.output_height * launch.output_width, region = number / bins, place = number - region * bins;
    const float* box = launch.boxes + 4 * int64_t{region};
    level = LevelOf(launch, box);
    const RoiAlignLaunch::Level& map = launch.levels[level];
    width = map.width;
    image_begin = int64_t{region / launch.per_image} * map.height * map.width * launch.channels;
    rows = AxisOf(launch, map.scale, box[0], box[2], place / launch.output_width, launch.output_height, map.height);
    columns = AxisOf(launch, map.scale, box[1], box[3], place % launch.output_width, launch.output_width, map.width);
  }
};

// Calls body(cell, weight) for each cell with a nonzero weight in the bin. All threads of the warp make the same calls.
template <class Body>
inline void ForCells(const Bin& bin, const Body& body) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int top = bin.rows.first_line; top <= bin.rows.last_line; top += 32) {
    const float row_weight = WeightOf(bin.rows, top + lane);
    const unsigned rows = __ballot_sync(kAllLanes, row_weight != 0);
#pragma unroll 1
    for (int left = bin.columns.first_line; left <= bin.columns.last_line; left += 32) {
      const float column_weight = WeightOf(bin.columns, left + lane);
      const unsigned columns = __ballot_sync(kAllLanes, column_weight != 0);
#pragma unroll 1
      for (unsigned rows_left = rows; rows_left != 0; rows_left &= rows_left - 1) {
        const int row = __ffs(rows_left) - 1;
        const float weight = __shfl_sync(kAllLanes, row_weight, row);
        const int first = (top + row) * bin.width + left;
#pragma unroll 1
        for (unsigned columns_left = columns; columns_left != 0; columns_left &= columns_left - 1) {
          const int column = __ffs(columns_left) - 1;
          body(first + column, weight * __shfl_sync(kAllLanes, column_weight, column));
        }
      }
    }
  }
}

// Memory access of a thread: four channels at once, or one channel of a type that is known only at run time.
template <class T>
struct ByFour {
  static constexpr int kWidth = 4;
  using Vector = Channels<T, kWidth>;

  static Channels<float, kWidth> Load(const void* values, int, int64_t place) {
    const Vector vector = *reinterpret_cast<const Vector*>(static_cast<const T*>(values) + place);
    Channels<float, kWidth> result;
    for (int i = 0; i < kWidth; ++i) result.values[i] = Widen(vector.values[i]);
    return result;
  }
  static void Store(void* values, int, int64_t place, const float (&sums)[kWidth]) {
    Vector vector;
    for (int i = 0; i < kWidth; ++i) vector.values[i] = Rounded<T>(sums[i]);
    *reinterpret_cast<Vector*>(static_cast<T*>(values) + place) = vector;
  }
};
struct ByOne {
  static constexpr int kWidth = 1;

  static Channels<float, 1> Load(const void* values, int type, int64_t place) { return {{Read(values, type, place)}}; }
  static void Store(void* values, int type, int64_t place, const float (&sums)[1]) {
    Write(values, type, place, sums[0]);
  }
};

template <class Access>
inline void Pool(const RoiAlignLaunch& launch) {
  constexpr int kAtOnce = 2, kWidth = Access::kWidth, kStep = 32 * kWidth;
  const int number = static_cast<int>(blockIdx.x * (RoiAlignLaunch::kThreads / 32) + threadIdx.x / 32);
  if (number >= launch.num_bins) return;
  const Bin bin(launch, number);
  const void* features = launch.levels[bin.level].features;
  const int64_t begin = static_cast<int64_t>(number) * launch.channels;
  for (int first = threadIdx.x % 32 * kWidth; first < (launch.channels + kStep - 1) / kStep * kStep;
       first += kAtOnce * kStep) {
    int channels[kAtOnce];  // missing channels read channel 0 and are not written
    for (int k = 0; k < kAtOnce; ++k) channels[k] = first + k * kStep < launch.channels ? first + k * kStep : 0;
    float sums[kAtOnce][kWidth] = {};
    ForCells(bin, [&](int cell, float weight) {
      const int64_t place = bin.image_begin + static_cast<int64_t>(cell) * launch.channels;
      Channels<float, kWidth> read[kAtOnce];
      for (int k = 0; k < kAtOnce; ++k) read[k] = Access::Load(features, launch.type, place + channels[k]);
      for (int k = 0; k < kAtOnce; ++k) {
        for (int i = 0; i < kWidth; ++i) sums[k][i] = fmaf(weight, read[k].values[i], sums[k][i]);
      }
    });
    for (int k = 0; k < kAtOnce && first + k * kStep < launch.channels; ++k) {
      Access::Store(launch.pooled, launch.type, begin + channels[k], sums[k]);
    }
  }
}

KERASDET_KERNEL(roi_align_float, RoiAlignLaunch, RoiAlignLaunch::kThreads) { Pool<ByFour<float>>(launch); }
KERASDET_KERNEL(roi_align_half, RoiAlignLaunch, RoiAlignLaunch::kThreads) { Pool<ByFour<Half>>(launch); }
KERASDET_KERNEL(roi_align_bfloat16, RoiAlignLaunch, RoiAlignLaunch::kThreads) { Pool<ByFour<BFloat16>>(launch); }
KERASDET_KERNEL(roi_align_any, RoiAlignLaunch, RoiAlignLaunch::kThreads) { Pool<ByOne>(launch); }

// Neighbouring threads add to neighbouring channels, so the memory system merges their accesses.
KERASDET_KERNEL(roi_align_grad, RoiAlignLaunch, RoiAlignLaunch::kThreads) {
  constexpr int kAtOnce = 4;
  const int number = static_cast<int>(blockIdx.x * (RoiAlignLaunch::kThreads / 32) + threadIdx.x / 32);
  if (number >= launch.num_bins) return;
  const Bin bin(launch, number);
  const RoiAlignLaunch::Level& level = launch.levels[bin.level];
  Sums sums{level.floats + bin.image_begin, nullptr, 0};
  if (level.units != nullptr) {
    sums.units = level.units + bin.image_begin;
    sums.root_of_units = ldexpf(1.0f, ExponentOfRoot(*launch.largest, ToBits(1.0f), launch.log2_terms));
  }
  const int64_t begin = static_cast<int64_t>(number) * launch.channels;
  for (int first = threadIdx.x % 32; first < (launch.channels + 31) / 32 * 32; first += 32 * kAtOnce) {
    float values[kAtOnce];
    for (int k = 0; k < kAtOnce; ++k) {
      const int channel = first + 32 * k;
      values[k] = channel < launch.channels ? Read(launch.pooled, launch.type, begin + channel) : 0;
    }
    ForCells(bin, [&](int cell, float weight) {
      const int64_t place = static_cast<int64_t>(cell) * launch.channels + first;
      for (int k = 0; k < kAtOnce; ++k) {
        if (first + 32 * k < launch.channels) Add(sums, place + 32 * k, weight * values[k]);
      }
    });
  }
}

}  // namespace kerasdet
