// Allocates and finishes sums that many threads add to. See `Sums` in device.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../kernel.h"
#include "driver.h"
#include "sums_launch.h"
#include "types.h"

namespace kerasdet {

// Finds the largest absolute value among finite values; its bits stay in the GPU's memory.
class LargestValue {
 public:
  explicit LargestValue(const Context& context) : memory_(context.Scratch(sizeof(uint32_t))) {}

  uint32_t* bits() const { return memory_.data<uint32_t>(); }

  void Set(const Stream& stream, float value) const { stream.Fill(bits(), ToBits(value), 1); }
  template <class T>
  void Find(const Stream& stream, const T* values, int64_t count) const {
    stream.Fill(bits(), 0, 1);
    const LargestLaunch launch{values, count, TypeOf(values), bits()};
    const int64_t blocks = BlocksOf(count, LargestLaunch::kThreads);
    stream.Run("largest", LargestLaunch::kThreads, launch, std::min(blocks, LargestLaunch::kBlocks));
  }

 private:
  const Tensor memory_;
};

// `count` sums that start at zero; `Finish` writes them to `result`.
template <class T>
class SumsOf {
 public:
  SumsOf(const Context& context, const Stream& stream, T* result, int64_t count, bool deterministic)
      : result_(result),
        count_(count),
        scratch_(context.Scratch(kInPlace ? 0 : count * sizeof(float))),
        units_(context.Scratch(deterministic ? count * sizeof(unsigned long long) : 0)),
        deterministic_(deterministic) {
    stream.Fill(floats(), 0, count);
    if (deterministic) stream.Fill(units(), 0, 2 * count);
  }

  float* floats() const { return kInPlace ? reinterpret_cast<float*>(result_) : scratch_.data<float>(); }
  // Null if results may depend on the order of additions.
  unsigned long long* units() const { return deterministic_ ? units_.data<unsigned long long>() : nullptr; }

  // Converts the sums to type T. Each term is a product of two factors; `largest` and `other_largest` hold the bits of the
  // largest absolute values of the factors.
  void Finish(const Stream& stream, const uint32_t* largest, const uint32_t* other_largest, int log2_terms) const {
    if (kInPlace && !deterministic_) return;
    const FinishLaunch launch{floats(), units(), result_, count_, TypeOf(result_), largest, other_largest, log2_terms};
    stream.Run("finish", FinishLaunch::kThreads, launch, BlocksOf(count_, FinishLaunch::kThreads));
  }

 private:
  static constexpr bool kInPlace = sizeof(T) == sizeof(float);

  T* result_;
  int64_t count_;
  Tensor scratch_, units_;
  bool deterministic_;
};

// Returns the exponent of the smallest power of two that is at least `count`.
inline int Log2Above(int64_t count) {
  int exponent = 0;
  while (int64_t{1} << exponent < count) ++exponent;
  return exponent;
}

}  // namespace kerasdet
