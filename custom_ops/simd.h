// Vector types of one instruction set, in a namespace of its name. Only simd_each.h includes this file.
//
// `Wide` works on full vectors. `Narrow` has the functions that loops need for the remaining single values.

namespace kerasdet {
namespace KERASDET_ISA {

#if defined(KERASDET_AVX512)

struct Wide {
  using V = __m512;
  static constexpr int kWidth = 16;
  static V Zero() { return _mm512_setzero_ps(); }
  static V Set(float x) { return _mm512_set1_ps(x); }
  static V Load(const float* p) { return _mm512_loadu_ps(p); }
  static V Load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static V Load(const BFloat16* p) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
  static void Store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static void Store(Half* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void Stream(float* p, V v) { _mm512_stream_ps(p, v); }
  static V Fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V Min(V a, V b) { return _mm512_min_ps(a, b); }
  static V Max(V a, V b) { return _mm512_max_ps(a, b); }
  static uint32_t Greater(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static uint32_t GreaterEqual(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static float Sum(V v) { return _mm512_reduce_add_ps(v); }

#elif defined(KERASDET_AVX2)

struct Wide {
  using V = __m256;
  static constexpr int kWidth = 8;
  static V Zero() { return _mm256_setzero_ps(); }
  static V Set(float x) { return _mm256_set1_ps(x); }
  static V Load(const float* p) { return _mm256_loadu_ps(p); }
  static V Load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static V Load(const BFloat16* p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
  static void Store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static void Store(Half* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void Stream(float* p, V v) { _mm256_stream_ps(p, v); }
  static V Fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V Min(V a, V b) { return _mm256_min_ps(a, b); }
  static V Max(V a, V b) { return _mm256_max_ps(a, b); }
  static uint32_t Greater(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
  static uint32_t GreaterEqual(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
  static float Sum(V v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }

#else

struct Wide {
  typedef float V __attribute__((vector_size(16)));
  static constexpr int kWidth = 4;
  static V Zero() { return V{}; }
  static V Set(float x) { return V{x, x, x, x}; }
  template <class T>
  static V Load(const T* p) {
    return V{ToFloat(p[0]), ToFloat(p[1]), ToFloat(p[2]), ToFloat(p[3])};
  }
  static void Store(float* p, V v) { std::memcpy(p, &v, sizeof(v)); }
  static void Store(Half* p, V v) {
    for (int i = 0; i < kWidth; ++i) FromFloat(v[i], p + i);
  }
  static V Fma(V a, V b, V c) { return a * b + c; }
  static V Min(V a, V b) { return a < b ? a : b; }
  static V Max(V a, V b) { return a > b ? a : b; }
  static uint32_t Greater(V a, V b) {
    uint32_t mask = 0;
    for (int i = 0; i < kWidth; ++i) mask |= uint32_t{a[i] > b[i]} << i;
    return mask;
  }
  static uint32_t GreaterEqual(V a, V b) {
    uint32_t mask = 0;
    for (int i = 0; i < kWidth; ++i) mask |= uint32_t{a[i] >= b[i]} << i;
    return mask;
  }
  static float Sum(V v) { return v[0] + v[1] + (v[2] + v[3]); }

#endif

  template <class T>
  static void Stream(T* p, V v) {
    Store(p, v);
  }
  static void Store(BFloat16* p, V v) {
    float values[kWidth];
    Store(values, v);
    for (int i = 0; i < kWidth; ++i) FromFloat(values[i], p + i);
  }
};

struct Narrow {
  using V = float;
  static constexpr int kWidth = 1;
  static V Zero() { return 0; }
  static V Set(float x) { return x; }
  template <class T>
  static V Load(const T* p) {
    return ToFloat(*p);
  }
  template <class T>
  static void Store(T* p, V v) {
    FromFloat(v, p);
  }
  template <class T>
  static void Stream(T* p, V v) {
    Store(p, v);
  }
  static V Fma(V a, V b, V c) {
#if defined(KERASDET_AVX2)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
  }
  static float Sum(V v) { return v; }
};

inline void FinishStreams() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

}  // namespace KERASDET_ISA
}  // namespace kerasdet
