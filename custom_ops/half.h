// The 16-bit floating point types. Kernels store them and compute in float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace kerasdet {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t ToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float ToFloat(float value) { return value; }
inline float ToFloat(BFloat16 value) { return FromBits(uint32_t{value.bits} << 16); }
inline float ToFloat(Half value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16, rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) return FromBits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinite or NaN
  if (rest >= 0x400u) return FromBits(sign | ((rest << 13) + 0x38000000u));
  const float value_of_rest = static_cast<float>(rest) * 0x1p-24f;  // subnormal
  return FromBits(sign | ToBits(value_of_rest));
}

// Rounds to the nearest value, ties to even.
inline void FromFloat(float value, float* result) { *result = value; }
inline void FromFloat(float value, BFloat16* result) {
  const uint32_t bits = ToBits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    result->bits = static_cast<uint16_t>(bits >> 16 | 0x40u);
  } else {
    result->bits = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
}
inline void FromFloat(float value, Half* result) {
  const uint32_t bits = ToBits(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (rest >= 0x477ff000u) {
    half = 0x7c00u;  // infinity, or a value that rounds to infinity
  } else if (rest >= 0x38800000u) {
    const uint32_t shifted = rest - 0x38000000u;
    half = (shifted + 0xfffu + (shifted >> 13 & 1u)) >> 13;
  } else {
    // Adding 0.5 rounds, and moves the bits of a subnormal half to the end of the float.
    half = ToBits(FromBits(rest) + 0.5f) - 0x3f000000u;
  }
  result->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace kerasdet
