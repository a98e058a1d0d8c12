// The hot loops of resize.cc.

namespace kerasdet {
namespace KERASDET_ISA {

typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef int32_t Ints8 __attribute__((vector_size(32)));

// Load the three values of a pixel and an unused fourth value, and store all four as bytes.
#if defined(KERASDET_AVX2)
inline Ints4 LoadPixel(const uint8_t* p) {
  int32_t bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return (Ints4)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes));
}
inline void StoreBytes(uint8_t* p, Ints4 values) {
  const __m128i words = _mm_packus_epi32((__m128i)values, (__m128i)values);
  const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
  std::memcpy(p, &bytes, sizeof(bytes));
}
#else
inline Ints4 LoadPixel(const uint8_t* p) { return Ints4{p[0], p[1], p[2], p[3]}; }
inline void StoreBytes(uint8_t* p, Ints4 values) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(values[i]);
}
#endif

// Load and store eight values as bytes.
#if defined(KERASDET_AVX2)
inline Ints8 LoadBytes(const uint8_t* p) {
  return (Ints8)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline void StoreBytes(uint8_t* p, Ints8 values) {
  const __m128i low = _mm256_castsi256_si128((__m256i)values), high = _mm256_extracti128_si256((__m256i)values, 1);
  const __m128i words = _mm_packus_epi32(low, high);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
#else
inline Ints8 LoadBytes(const uint8_t* p) { return Ints8{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]}; }
inline void StoreBytes(uint8_t* p, Ints8 values) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<uint8_t>(values[i]);
}
#endif

inline Ints8 LoadInts(const int32_t* p) {
  Ints8 values;
  std::memcpy(&values, p, sizeof(values));
  return values;
}

// Sums `kTaps` weighted pixels of a row (`taps` if kTaps is 0) for each output pixel. Weights past the last pixel are 0.
template <int kTaps>
inline void SumPixels(const uint8_t* row, const int32_t* first, const int32_t* weights, int64_t taps, int64_t width,
                      int32_t precision, uint8_t* result) {
  const int32_t half = 1 << (precision - 1);
  const int64_t count = kTaps > 0 ? kTaps : taps;
  int64_t x = 0;
#if defined(KERASDET_AVX2)
  for (; x + 2 <= width; x += 2) {
    __m256i sum = _mm256_set1_epi32(half);
    const uint8_t *one = row + 3 * first[x], *other = row + 3 * first[x + 1];
    const int32_t* weight = weights + x * taps;
    for (int64_t t = 0; t < count; ++t) {
      int32_t a, b;
      std::memcpy(&a, one + 3 * t, sizeof(a));
      std::memcpy(&b, other + 3 * t, sizeof(b));
      const __m256i pixels = _mm256_cvtepu8_epi32(_mm_unpacklo_epi32(_mm_cvtsi32_si128(a), _mm_cvtsi32_si128(b)));
      const __m256i factors = _mm256_set_m128i(_mm_set1_epi32(weight[taps + t]), _mm_set1_epi32(weight[t]));
      sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(pixels, factors));
    }
    sum = _mm256_srai_epi32(sum, precision);
    StoreBytes(result + 3 * x, (Ints4)_mm256_castsi256_si128(sum));
    StoreBytes(result + 3 * x + 3, (Ints4)_mm256_extracti128_si256(sum, 1));
  }
#endif
  for (; x < width; ++x) {
    Ints4 sum = {half, half, half, half};
    const uint8_t* pixel = row + 3 * first[x];
    for (int64_t t = 0; t < count; ++t) sum += LoadPixel(pixel + 3 * t) * weights[x * taps + t];
    StoreBytes(result + 3 * x, sum >> precision);
  }
}

// Sums the weighted pixels of a row for each output pixel. The row must have room for `taps` more pixels, and the result
// for four more bytes.
inline void SumPixels(const uint8_t* row, const int32_t* first, const int32_t* weights, int64_t taps, int64_t width,
                      int32_t precision, uint8_t* result) {
  const auto sum = taps == 2 ? SumPixels<2> : taps == 3 ? SumPixels<3> : SumPixels<0>;
  sum(row, first, weights, taps, width, precision, result);
}

template <int kTaps>
inline void SumRows(const uint8_t* rows, int64_t stride, int64_t count, const int32_t* weights, int64_t size,
                    int32_t precision, uint8_t* result) {
  const int32_t half = 1 << (precision - 1);
  const int64_t taps = kTaps > 0 ? kTaps : count;
  for (int64_t i = 0; i < size; i += 8) {
    Ints8 sum = Ints8{} + half;
    for (int64_t t = 0; t < taps; ++t) sum += LoadBytes(rows + t * stride + i) * weights[t];
    StoreBytes(result + i, sum >> precision);
  }
}

// Sums weighted rows; `size` is a multiple of 8. The result must have room for `size` bytes.
inline void SumRows(const uint8_t* rows, int64_t stride, int64_t count, const int32_t* weights, int64_t size,
                    int32_t precision, uint8_t* result) {
  const auto sum = count == 2 ? SumRows<2> : count == 3 ? SumRows<3> : SumRows<0>;
  sum(rows, stride, count, weights, size, precision, result);
}

// Blends two pixels of a row for each output pixel, with weights in 1/2048; `result` must have room for one more int.
inline void BlendPixels(const uint8_t* row, const int32_t* first, const int32_t* second, const int32_t* weights,
                        int64_t width, int32_t* result) {
  for (int64_t x = 0; x < width; ++x) {
    const Ints4 sum = LoadPixel(row + 3 * first[x]) * weights[2 * x] + LoadPixel(row + 3 * second[x]) * weights[2 * x + 1];
    std::memcpy(result + 3 * x, &sum, sizeof(sum));
  }
}

// Blends two rows of OpenCV's intermediate values; `size` is a multiple of 8.
inline void BlendRows(const int32_t* upper, const int32_t* lower, const int32_t* weights, int64_t size,
                      uint8_t* result) {
  for (int64_t i = 0; i < size; i += 8) {
    const Ints8 first = (LoadInts(upper + i) >> 4) * weights[0] >> 16;
    const Ints8 second = (LoadInts(lower + i) >> 4) * weights[1] >> 16;
    Ints8 sum = (first + second + 2) >> 2;
    sum = sum > 255 ? Ints8{} + 255 : sum;
    StoreBytes(result + i, sum < 0 ? Ints8{} : sum);
  }
}

}  // namespace KERASDET_ISA
}  // namespace kerasdet
