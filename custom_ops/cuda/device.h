// Code that all kernels share. NVRTC compiles it for GPUs; tests compile it as C++ (see emulation/).
#pragma once

#include "../half.h"
#include "types.h"

#if defined(__CUDACC_RTC__)
#define KERASDET_KERNEL(name, Launch, threads) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Launch launch)
#define KERASDET_SHARED_CODE __noinline__  // rarely called, from several places
#else
#include "../emulation/cuda_language.h"
#endif

namespace kerasdet {

constexpr unsigned kAllLanes = 0xffffffffu;

inline bool IsFinite(float value) { return (ToBits(value) & 0x7f800000u) != 0x7f800000u; }

inline float Widen(float value) { return value; }
inline float Widen(BFloat16 value) { return ToFloat(value); }
inline float Widen(Half value) {
#if defined(__CUDACC_RTC__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  return ToFloat(value);
#endif
}

template <class T>
inline T Rounded(float value) {
  T result;
  FromFloat(value, &result);
  return result;
}
#if defined(__CUDACC_RTC__)
template <>
inline Half Rounded<Half>(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
#endif

// Reads or writes a value of a type that is known only at run time.
inline float Read(const void* values, int type, int64_t place) {
  if (type == kHalf) return Widen(static_cast<const Half*>(values)[place]);
  if (type == kBFloat16) return Widen(static_cast<const BFloat16*>(values)[place]);
  return static_cast<const float*>(values)[place];
}
inline void Write(void* values, int type, int64_t place, float value) {
  if (type == kHalf) {
    static_cast<Half*>(values)[place] = Rounded<Half>(value);
  } else if (type == kBFloat16) {
    static_cast<BFloat16*>(values)[place] = Rounded<BFloat16>(value);
  } else {
    static_cast<float*>(values)[place] = value;
  }
}

// Channels that a thread reads or writes in one memory access.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Channels {
  T values[kWidth];
};

// Sums that many threads add to.
//
// Adding floats in any order is fast, but each run rounds differently. Integer sums are the same in every order. For
// deterministic results, values are therefore added as multiples of a unit that is finer than float32's rounding of the
// larger sums. Non-finite values have no multiple and are still added as floats.
struct Sums {
  float* floats;
  unsigned long long* units;  // null if results may depend on the order of additions
  float root_of_units;        // square root of the number of units in 1.0
};

inline void Add(const Sums& sums, int64_t place, float value) {
  if (sums.units == nullptr || !IsFinite(value)) {
    atomicAdd(sums.floats + place, value);
  } else {
    atomicAdd(sums.units + place, static_cast<unsigned long long>(llrintf(value * sums.root_of_units * sums.root_of_units)));
  }
}

// Returns log2 of `root_of_units` such that a sum of up to 2**log2_terms products of two factors cannot overflow.
// `largest` and `other_largest` are the bits of the largest absolute values of the factors.
inline int ExponentOfRoot(uint32_t largest, uint32_t other_largest, int log2_terms) {
  const int above = static_cast<int>(largest >> 23) - 126, other_above = static_cast<int>(other_largest >> 23) - 126;
  return max(-126, min(126, (61 - log2_terms - above - other_above) >> 1));
}

}  // namespace kerasdet
