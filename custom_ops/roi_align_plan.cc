#include "roi_align_plan.h"

#include <algorithm>
#include <cmath>

namespace kerasdet {
namespace {

constexpr int64_t kTileBytes = 256 << 10;  // about this much of a map stays in a cache

float Finite(float x) { return std::isfinite(x) ? x : 0.0f; }

// As in Python: the logarithm is precise, the rest in float32. (That of doubles would ask for a newer glibc.)
int LevelOf(const RoiOptions& options, const float* box) {
  const float ratio = std::sqrt((box[2] - box[0]) * (box[3] - box[1])) / options.canonical_size + 1e-8f;
  const float log2 = static_cast<float>(std::log(static_cast<long double>(ratio)) / std::log(2.0L));
  const float level = std::floor(options.canonical_level + log2 + options.level_epsilon);
  if (std::isnan(level)) return 0;
  const float above = level - static_cast<float>(options.lowest_level);
  return static_cast<int>(std::min(std::max(above, 0.0f), static_cast<float>(options.scales.size() - 1)));
}

// As many as a bin has lines, rounded up; more than the map has lines would lie beside it.
int64_t SamplesOf(const RoiOptions& options, float size, int64_t bins, int64_t limit) {
  if (limit == 0) return 0;
  if (options.sampling_ratio > 0) return options.sampling_ratio;
  const float samples = std::ceil(size / static_cast<float>(bins));
  return samples > 0 ? static_cast<int64_t>(std::min(samples, static_cast<float>(limit))) : 0;
}

}  // namespace

void Lines::Find(float start, float size, int64_t bins, int64_t samples, int64_t limit) {
  begins_.assign(1, 0);
  const float bin_size = size / static_cast<float>(bins), num_samples = static_cast<float>(samples);
  const int32_t last = static_cast<int32_t>(limit - 1);
  for (int64_t bin = 0; bin < bins; ++bin) {
    const float begin = start + static_cast<float>(bin) * bin_size;
    for (int64_t i = 0; i < samples; ++i) {
      float position = begin + (static_cast<float>(i) + 0.5f) * bin_size / num_samples;
      if (!(position >= -1 && position <= static_cast<float>(limit))) continue;
      position = std::min(std::max(position, 0.0f), static_cast<float>(last));
      const float lower = std::floor(position);
      const int32_t index = std::min(static_cast<int32_t>(lower), last);
      Add(index, (1 - position + lower) / num_samples);
      Add(std::min(index + 1, last), (position - lower) / num_samples);
    }
    most_ = std::max(most_, static_cast<int64_t>(lines_.size()) - begins_.back());
    begins_.push_back(static_cast<int32_t>(lines_.size()));
  }
}

void Lines::Add(int32_t index, float weight) {
  if (weight == 0) return;
  const int64_t size = static_cast<int64_t>(lines_.size());
  const int64_t first = std::max<int64_t>(begins_.back(), size - 3);  // positions are in order
  for (int64_t i = size - 1; i >= first; --i) {
    if (lines_[i].index == index) {
      lines_[i].weight += weight;
      return;
    }
  }
  lines_.push_back({index, weight});
}

Plan::Plan(const RoiOptions& options, const std::vector<Map>& maps, const float* boxes, int64_t count,
           int64_t cell_bytes)
    : height_(options.output_height), width_(options.output_width), regions_(count) {
  const int32_t tile = static_cast<int32_t>(
      std::clamp(std::sqrt(static_cast<double>(kTileBytes) / static_cast<double>(cell_bytes)), 4.0, 64.0));
  std::vector<int64_t> first_tile, tiles_across;
  int64_t num_tiles = 1;  // tile 0 is for bins without a sample
  for (const Map& map : maps) {
    first_tile.push_back(num_tiles);
    tiles_across.push_back(map.width / tile + 1);
    num_tiles += (map.height / tile + 1) * tiles_across.back();
  }
  std::vector<int32_t> tile_of_bin;
  tile_of_bin.reserve(count * height_ * width_);
  for (int64_t number = 0; number < count; ++number) {
    const float* box = boxes + 4 * number;
    Region& region = regions_[number];
    region.level = LevelOf(options, box);
    const Map& map = maps[region.level];
    region.map_width = map.width;
    const int64_t bins[2] = {height_, width_}, limits[2] = {map.height, map.width};
    Lines* lines[2] = {&region.rows, &region.columns};
    for (int axis = 0; axis < 2; ++axis) {
      const float scale = options.scales[region.level], offset = options.aligned ? 0.5f : 0.0f;
      const float low = Finite(box[axis]) * scale - offset, high = Finite(box[axis + 2]) * scale - offset;
      const float size = options.aligned ? high - low : std::max(high - low, 1.0f);
      lines[axis]->Find(low, size, bins[axis], SamplesOf(options, size, bins[axis], limits[axis]), limits[axis]);
    }
    most_taps_ = std::max(most_taps_, region.rows.most() * region.columns.most());
    for (int row = 0; row < height_; ++row) {
      for (int column = 0; column < width_; ++column) {
        int64_t place = 0;
        if (region.rows.begin(row) != region.rows.end(row) &&
            region.columns.begin(column) != region.columns.end(column)) {
          const int64_t y = region.rows.begin(row)->index / tile, x = region.columns.begin(column)->index / tile;
          const int64_t across = tiles_across[region.level];
          place = first_tile[region.level] + y * across + (y % 2 == 0 ? x : across - 1 - x);  // to and fro
        }
        tile_of_bin.push_back(static_cast<int32_t>(place));
      }
    }
  }
  std::vector<int32_t> begins(num_tiles + 1, 0);
  for (const int32_t place : tile_of_bin) ++begins[place + 1];
  for (int64_t i = 0; i < num_tiles; ++i) begins[i + 1] += begins[i];
  bins_.resize(tile_of_bin.size());
  const int32_t* place = tile_of_bin.data();
  for (int32_t number = 0; number < count; ++number) {
    for (int16_t row = 0; row < height_; ++row) {
      for (int16_t column = 0; column < width_; ++column) bins_[begins[*place++]++] = {number, row, column};
    }
  }
}

}  // namespace kerasdet
