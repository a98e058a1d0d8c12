// Launch parameters of the kernels in sums.cu.
#pragma once

#include <cstdint>

namespace kerasdet {

struct LargestLaunch {
  static constexpr int kThreads = 256;
  static constexpr int64_t kBlocks = 1024;

  const void* values;
  int64_t count;
  int32_t type;
  uint32_t* largest;  // bits of the largest finite absolute value; starts at zero
};

struct FinishLaunch {
  static constexpr int kThreads = 256;

  const float* floats;
  const unsigned long long* units;  // null if results may depend on the order
  void* result;
  int64_t count;
  int32_t type;  // type of `result`
  const uint32_t* largest;  // bits of the largest absolute value of the terms' first factor
  const uint32_t* other_largest;  // bits of the largest absolute value of the terms' second factor
  int32_t log2_terms;
};

}  // namespace kerasdet
