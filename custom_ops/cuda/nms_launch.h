// What the kernels of nms.cu are launched with.
#pragma once

#include <cstdint>

namespace kerasdet {

struct NmsLaunch {
  static constexpr int kThreads = 1024;
  static constexpr int kMostSortedAtOnce = 4096;  // boxes of an image: more are sorted digit by digit
  static constexpr int kTile = 4096;              // boxes of an image that a block sorts by a digit
  static constexpr int kTileThreads = 256;        // and as many values of a digit
  static constexpr int kWord = 64;                // boxes that a word of the mask is about
  static constexpr int kMostWords = 512;

  const float* boxes;        // (images, count, 4)
  const float* scores;       // (images, count)
  const int32_t* class_ids;  // (images, count) or null
  int32_t* indices;          // (images, most)
  int32_t* counts;           // (images,)
  // What follows is scratch. By descending score:
  uint32_t* keys[2];  // (images, count), the smaller the better
  int32_t* order[2];  // (images, count): indices
  int32_t* starts;    // (images, values of a digit, tiles): how many are in a tile, then where they begin
  int32_t* found;     // (images,): how many boxes are above the score threshold; zero before
  unsigned long long* mask;  // (images, window, words): whom each of the first boxes overlaps
  int64_t count;
  int32_t most, tiles, window, words, shift;
  int32_t from;  // which of the keys and orders a step of sorting reads; the end is in the first
  float iou_threshold, score_threshold;
};

}  // namespace kerasdet
