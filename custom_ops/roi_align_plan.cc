#include "roi_align_plan.h"

#include <algorithm>
#include <cmath>

namespace kerasdet {
namespace {

constexpr int64_t kTileBytes = 16 << 10;  // a tile of about this size stays in the smallest cache
constexpr int64_t kTilesAcross = 1024;    // largest number of tiles along a side of a map
constexpr int64_t kRegionsOfPart = 64;    // regions per task of a thread

// Spreads the bits of a 16-bit number to the even positions.
uint32_t Spaced(uint32_t x) {
  x = (x | x << 8) & 0x00ff00ffu;
  x = (x | x << 4) & 0x0f0f0f0fu;
  x = (x | x << 2) & 0x33333333u;
  return (x | x << 1) & 0x55555555u;
}

float Finite(float x) { return std::isfinite(x) ? x : 0.0f; }

// As in kerasdet/ops/levels.py, the logarithm is exact and the rest is float32. (log2 of doubles would need a newer glibc.)
int LevelOf(const RoiOptions& options, const float* box) {
  const float ratio = std::sqrt((box[2] - box[0]) * (box[3] - box[1])) / options.canonical_size + 1e-8f;
  const float log2 = static_cast<float>(std::log(static_cast<long double>(ratio)) / std::log(2.0L));
  const float level = std::floor(options.canonical_level + log2 + options.level_epsilon);
  if (std::isnan(level)) return 0;
  const float above = level - static_cast<float>(options.lowest_level);
  return static_cast<int>(std::min(std::max(above, 0.0f), static_cast<float>(options.scales.size() - 1)));
}

// Returns the number of samples per bin: the size of a bin in lines, rounded up, but at most the number of lines of the map.
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
  const int64_t first = std::max<int64_t>(begins_.back(), size - 3);  // samples are in order: only recent lines can be equal
  for (int64_t i = size - 1; i >= first; --i) {
    if (lines_[i].index == index) {
      lines_[i].weight += weight;
      return;
    }
  }
  lines_.push_back({index, weight});
}

Plan::Plan(const RoiOptions& options, const std::vector<Map>& maps, const float* boxes, int64_t count,
           int64_t cell_bytes, const ThreadPool& threads)
    : height_(options.output_height), width_(options.output_width), regions_(count) {
  const double cells = std::sqrt(static_cast<double>(kTileBytes) / static_cast<double>(cell_bytes));
  std::vector<int32_t> tiles;  // cells along a side
  std::vector<int64_t> first_tile;
  int64_t num_tiles = 1;  // tile 0 is for bins without a sample
  for (const Map& map : maps) {
    const int64_t length = std::max(map.height, map.width);
    const int64_t tile = std::max(static_cast<int64_t>(std::clamp(cells, 4.0, 64.0)), length / kTilesAcross + 1);
    int64_t side = 1;
    while (side <= length / tile) side *= 2;
    tiles.push_back(static_cast<int32_t>(tile));
    first_tile.push_back(num_tiles);
    num_tiles += side * side;
  }
  const int64_t bins_of_region = height_ * width_;
  std::vector<uint32_t> tile_of_bin(count * bins_of_region, 0);
  threads.For(count, kRegionsOfPart, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
      Region& region = regions_[number];
      FindLines(options, maps, boxes + 4 * number, &region);
      const int32_t tile = tiles[region.level];
      uint32_t* place = tile_of_bin.data() + number * bins_of_region;
      for (int row = 0; row < height_; ++row) {
        for (int column = 0; column < width_; ++column, ++place) {
          if (region.rows.begin(row) == region.rows.end(row)) continue;
          if (region.columns.begin(column) == region.columns.end(column)) continue;
          const uint32_t y = region.rows.begin(row)->index / tile, x = region.columns.begin(column)->index / tile;
          *place = static_cast<uint32_t>(first_tile[region.level]) + (Spaced(y) << 1 | Spaced(x));
        }
      }
    }
  });
  for (const Region& region : regions_) {
    most_taps_ = std::max(most_taps_, region.rows.most() * region.columns.most());
  }
  std::vector<int32_t> begins(num_tiles + 1, 0);
  for (const uint32_t place : tile_of_bin) ++begins[place + 1];
  for (int64_t i = 0; i < num_tiles; ++i) begins[i + 1] += begins[i];
  bins_.resize(tile_of_bin.size());
  const uint32_t* place = tile_of_bin.data();
  for (int32_t number = 0; number < count; ++number) {
    for (int16_t row = 0; row < height_; ++row) {
      for (int16_t column = 0; column < width_; ++column) bins_[begins[*place++]++] = {number, row, column};
    }
  }
}

void Plan::FindLines(const RoiOptions& options, const std::vector<Map>& maps, const float* box, Region* region) {
  region->level = LevelOf(options, box);
  const Map& map = maps[region->level];
  region->map_width = map.width;
  const int64_t bins[2] = {options.output_height, options.output_width}, limits[2] = {map.height, map.width};
  Lines* lines[2] = {&region->rows, &region->columns};
  for (int axis = 0; axis < 2; ++axis) {
    const float scale = options.scales[region->level], offset = options.aligned ? 0.5f : 0.0f;
    const float low = Finite(box[axis]) * scale - offset, high = Finite(box[axis + 2]) * scale - offset;
    const float size = options.aligned ? high - low : std::max(high - low, 1.0f);
    lines[axis]->Find(low, size, bins[axis], SamplesOf(options, size, bins[axis], limits[axis]), limits[axis]);
  }
}

}  // namespace kerasdet
