// The hot loops of resize.cc.

namespace kerasdet {
namespace KERASDET_ISA {

typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef uint8_t Bytes4 __attribute__((vector_size(4)));
typedef int32_t Ints16 __attribute__((vector_size(64)));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));

// Loads the three values of a pixel, and a fourth that is not used.
inline Ints4 LoadPixel(const uint8_t* p) {
  Bytes4 bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return __builtin_convertvector(bytes, Ints4);
}

inline void StoreBytes(uint8_t* p, Ints4 values) {
  const Bytes4 bytes = __builtin_convertvector(values, Bytes4);
  std::memcpy(p, &bytes, sizeof(bytes));
}

inline Ints16 LoadBytes(const uint8_t* p) {
  Bytes16 bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return __builtin_convertvector(bytes, Ints16);
}

inline Ints16 LoadInts(const int32_t* p) {
  Ints16 values;
  std::memcpy(&values, p, sizeof(values));
  return values;
}

inline void StoreBytes(uint8_t* p, Ints16 values) {
  const Bytes16 bytes = __builtin_convertvector(values, Bytes16);
  std::memcpy(p, &bytes, sizeof(bytes));
}

// Sums the weighted pixels of a row for each output pixel; both rows have room for 4 bytes more.
inline void SumPixels(const uint8_t* row, const int32_t* first, const int32_t* count, const int32_t* weights,
                      int64_t taps, int64_t width, int32_t precision, uint8_t* result) {
  const int32_t half = 1 << (precision - 1);
  for (int64_t x = 0; x < width; ++x) {
    Ints4 sum = {half, half, half, half};
    const uint8_t* pixel = row + 3 * first[x];
    for (int32_t t = 0; t < count[x]; ++t) sum += LoadPixel(pixel + 3 * t) * weights[x * taps + t];
    StoreBytes(result + 3 * x, sum >> precision);
  }
}

// Sums weighted rows; `size` is a multiple of 16. The result has room for `size` bytes.
inline void SumRows(const uint8_t* rows, int64_t stride, int32_t count, const int32_t* weights, int64_t size,
                    int32_t precision, uint8_t* result) {
  const int32_t half = 1 << (precision - 1);
  for (int64_t i = 0; i < size; i += 16) {
    Ints16 sum = Ints16{} + half;
    for (int32_t t = 0; t < count; ++t) sum += LoadBytes(rows + t * stride + i) * weights[t];
    StoreBytes(result + i, sum >> precision);
  }
}

// Blends two pixels of a row for each output pixel, in 1/2048; `result` has room for an int more.
inline void BlendPixels(const uint8_t* row, const int32_t* first, const int32_t* second, const int32_t* weights,
                        int64_t width, int32_t* result) {
  for (int64_t x = 0; x < width; ++x) {
    const Ints4 sum = LoadPixel(row + 3 * first[x]) * weights[2 * x] + LoadPixel(row + 3 * second[x]) * weights[2 * x + 1];
    std::memcpy(result + 3 * x, &sum, sizeof(sum));
  }
}

// Blends two rows of OpenCV's intermediate values; `size` is a multiple of 16.
inline void BlendRows(const int32_t* upper, const int32_t* lower, const int32_t* weights, int64_t size,
                      uint8_t* result) {
  for (int64_t i = 0; i < size; i += 16) {
    const Ints16 first = (LoadInts(upper + i) >> 4) * weights[0] >> 16;
    const Ints16 second = (LoadInts(lower + i) >> 4) * weights[1] >> 16;
    Ints16 sum = (first + second + 2) >> 2;
    sum = sum > 255 ? Ints16{} + 255 : sum;
    StoreBytes(result + i, sum < 0 ? Ints16{} : sum);
  }
}

}  // namespace KERASDET_ISA
}  // namespace kerasdet
