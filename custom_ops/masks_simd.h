// The hot loops of masks.cc.

namespace kerasdet {
namespace KERASDET_ISA {

// Adds two weighted lines of values; `count` is a multiple of the vector width.
inline void Blend(const float* a, float weight_a, const float* b, float weight_b, int64_t count, float* result) {
  for (int64_t i = 0; i < count; i += Wide::kWidth) {
    const auto first = Wide::Set(weight_a) * Wide::Load(a + i);
    Wide::Store(result + i, Wide::Fma(Wide::Set(weight_b), Wide::Load(b + i), first));
  }
}

// Adds two weighted lines, and sets a bit for each sum that belongs to the object; `count` is a multiple of 64.
inline void BlendToBits(const float* a, float weight_a, const float* b, float weight_b, int64_t count, float threshold,
                        bool or_equal, uint64_t* bits) {
  const auto limit = Wide::Set(threshold);
  for (int64_t word = 0; word < count / 64; ++word) {
    uint64_t found = 0;
    for (int64_t i = 0; i < 64; i += Wide::kWidth) {
      const auto first = Wide::Set(weight_a) * Wide::Load(a + 64 * word + i);
      const auto value = Wide::Fma(Wide::Set(weight_b), Wide::Load(b + 64 * word + i), first);
      found |= uint64_t{or_equal ? Wide::GreaterEqual(value, limit) : Wide::Greater(value, limit)} << i;
    }
    bits[word] = found;
  }
}

// Decides for each pixel of a row whether it belongs to the object.
inline void BlendRow(const float* cells, const int32_t* first, const float* weight_a, const float* weight_b,
                     int64_t count, float threshold, bool or_equal, unsigned char* row) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = Narrow::Fma(weight_b[i], cells[first[i] + 1], weight_a[i] * cells[first[i]]);
    row[i] = or_equal ? value >= threshold : value > threshold;
  }
}

}  // namespace KERASDET_ISA
}  // namespace kerasdet
