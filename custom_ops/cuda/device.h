// What the kernels share. NVRTC compiles them for GPUs; for tests they are compiled as C++ (see emulation/).
#pragma once

#include "../half.h"
#include "types.h"

#if defined(__CUDACC_RTC__)
#define KERASDET_KERNEL(name, Launch, threads) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Launch launch)
#define KERASDET_SHARED_CODE __noinline__  // called from several places, and seldom
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

// A value of a type that is known at run time alone.
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

// Channels that a thread takes at once: read and written in one access of the memory.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Channels {
  T values[kWidth];
};

// Sums that many threads add to. To add floats in any order is fast, and comes out a little different each time. Sums of
// integers do not, so where that matters, values are added as multiples of a small unit, fine enough that float32 has no
// more digits for the larger sums; those that are not finite, which have no multiple, are added as floats all the same.
struct Sums {
  float* floats;
  unsigned long long* units;  // null where the order may matter
  float root_of_units;        // of how many units one is
};

inline void Add(const Sums& sums, int64_t place, float value) {
  if (sums.units == nullptr || !IsFinite(value)) {
    atomicAdd(sums.floats + place, value);
  } else {
    atomicAdd(sums.units + place, static_cast<unsigned long long>(llrintf(value * sums.root_of_units * sums.root_of_units)));
  }
}

// The root of how many units one is, as a power of two, where up to 2**log2_terms products of two values are summed and
// must not overflow. Given are the bits of the largest absolute values.
inline int ExponentOfRoot(uint32_t largest, uint32_t other_largest, int log2_terms) {
  const int above = static_cast<int>(largest >> 23) - 126, other_above = static_cast<int>(other_largest >> 23) - 126;
  return max(-126, min(126, (61 - log2_terms - above - other_above) >> 1));
}

}  // namespace kerasdet
