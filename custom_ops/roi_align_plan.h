// Plans ROIAlign: the cells and weights that each bin sums, and the order of the bins.
//
// The samples of a bin lie on a grid, so a bin is a weighted sum over the cells of some rows and some columns; samples
// that share a cell share a tap. Bins of all boxes are ordered by the small tile of the map that they lie on, and tiles
// by a Z-order curve. Neighbouring bins are therefore computed soon after one another, which suits all levels of caches.
#pragma once

#include <cstdint>
#include <vector>

#include "thread_pool.h"

namespace kerasdet {

struct Map {
  int64_t height, width;
};

// Properties that all boxes of a call share.
struct RoiOptions {
  std::vector<float> scales;  // cells per pixel of each level
  int64_t output_height, output_width, sampling_ratio, lowest_level;
  bool aligned;
  float canonical_size, canonical_level, level_epsilon;
};

struct Tap {
  int64_t cell;  // offset of its first channel in its map
  float weight;
};

struct Bin {
  int32_t region;
  int16_t row, column;
};

// Holds the rows (or columns) that the samples of each bin touch along one axis.
class Lines {
 public:
  struct Line {
    int32_t index;
    float weight;
  };

  const Line* begin(int bin) const { return lines_.data() + begins_[bin]; }
  const Line* end(int bin) const { return lines_.data() + begins_[bin + 1]; }
  int64_t most() const { return most_; }

  // Plans a region that begins at `start` and has `bins` bins of `samples` samples on a map of `limit` lines.
  void Find(float start, float size, int64_t bins, int64_t samples, int64_t limit);

 private:
  void Add(int32_t index, float weight);

  std::vector<Line> lines_;
  std::vector<int32_t> begins_;
  int64_t most_ = 0;
};

// The plan for some boxes of one image.
class Plan {
 public:
  // Boxes (count, 4); `cell_bytes` is the size of a cell of the maps.
  Plan(const RoiOptions& options, const std::vector<Map>& maps, const float* boxes, int64_t count, int64_t cell_bytes,
       const ThreadPool& threads);

  const std::vector<Bin>& bins() const { return bins_; }
  int64_t most_taps() const { return most_taps_; }
  int level(const Bin& bin) const { return regions_[bin.region].level; }

  // Returns the index of a bin among the bins of all boxes.
  int64_t Place(const Bin& bin) const { return (bin.region * height_ + bin.row) * width_ + bin.column; }

  // Writes the taps of a bin and returns their number.
  int64_t Taps(const Bin& bin, int64_t channels, Tap* taps) const {
    const Region& region = regions_[bin.region];
    int64_t count = 0;
    for (const auto* row = region.rows.begin(bin.row); row != region.rows.end(bin.row); ++row) {
      const int64_t first = row->index * region.map_width;
      for (const auto* column = region.columns.begin(bin.column); column != region.columns.end(bin.column); ++column) {
        taps[count++] = {(first + column->index) * channels, row->weight * column->weight};
      }
    }
    return count;
  }

 private:
  struct Region {
    Lines rows, columns;
    int64_t map_width;
    int level;
  };

  static void FindLines(const RoiOptions& options, const std::vector<Map>& maps, const float* box, Region* region);

  int64_t height_, width_, most_taps_ = 0;
  std::vector<Region> regions_;
  std::vector<Bin> bins_;
};

}  // namespace kerasdet
