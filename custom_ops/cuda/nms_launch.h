// Launch parameters of the kernels in nms.cu.
#pragma once

#include <cstdint>

namespace kerasdet {

struct NmsLaunch {
  static constexpr int kThreads = 1024;
  static constexpr int kMostSortedAtOnce = 4096;  // boxes of an image; more boxes use the radix sort
  static constexpr int kTile = 4096;              // boxes of an image that a block sorts by one digit
  static constexpr int kTileThreads = 256;        // also the number of values of a digit
  static constexpr int kWord = 64;                // boxes per word of the mask
  static constexpr int kMostWords = 512;

  const float* boxes;        // (images, count, 4)
  const float* scores;       // (images, count)
  const int32_t* class_ids;  // (images, count) or null
  int32_t* indices;          // (images, most)
  int32_t* counts;           // (images,)
  // Scratch memory. After sorting, index 0 of keys and order is in descending order of score.
  uint32_t* keys[2];  // (images, count): better scores have smaller keys
  int32_t* order[2];  // (images, count): indices of boxes
  int32_t* starts;    // (images, values of a digit, tiles): counts, then start positions
  int32_t* found;     // (images,): number of boxes above the score threshold; starts at zero
  unsigned long long* mask;  // (images, window, words): the later boxes that each box overlaps
  int64_t count;
  int32_t most, tiles, window, words, shift;
  int32_t from;  // index of the keys and order that a sorting step reads; the last step writes index 0
  float iou_threshold, score_threshold;
};

}  // namespace kerasdet
