// What the kernels of sums.cu are launched with.
#pragma once

#include <cstdint>

namespace kerasdet {

struct LargestLaunch {
  static constexpr int kThreads = 256;
  static constexpr int64_t kBlocks = 1024;

  const void* values;
  int64_t count;
  int32_t type;
  uint32_t* largest;  // bits of the largest absolute value, of those that are finite; zero before
};

struct FinishLaunch {
  static constexpr int kThreads = 256;

  const float* floats;
  const unsigned long long* units;  // or null
  void* result;
  int64_t count;
  int32_t type;  // of the result
  const uint32_t* largest;  // of the factors of the terms
  const uint32_t* other_largest;
  int32_t log2_terms;
};

}  // namespace kerasdet
