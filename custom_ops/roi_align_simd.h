// The hot loops of roi_align.cc: sums of weighted cells into a bin, and of a bin's gradient into cells.

namespace kerasdet {
namespace KERASDET_ISA {

#if defined(KERASDET_AVX512)
constexpr int kVectorsAtOnce = 16;
#else
constexpr int kVectorsAtOnce = 8;
#endif
constexpr int64_t kBlock = kVectorsAtOnce * Wide::kWidth;

// Sums the taps of one bin for `kVectors` vectors of channels. With `kStream`, writing bypasses the caches.
template <class Lane, int kVectors, bool kStream, class T>
inline void SumTaps(const T* map, const Tap* taps, int64_t count, T* bin) {
  typename Lane::V sums[kVectors];
  for (auto& sum : sums) sum = Lane::Zero();
  for (int64_t i = 0; i < count; ++i) {
    const T* cell = map + taps[i].cell;
    const auto weight = Lane::Set(taps[i].weight);
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) sums[k] = Lane::Fma(weight, Lane::Load(cell + k * Lane::kWidth), sums[k]);
  }
#pragma GCC unroll 16
  for (int k = 0; k < kVectors; ++k) {
    if constexpr (kStream) {
      Lane::Stream(bin + k * Lane::kWidth, sums[k]);
    } else {
      Lane::Store(bin + k * Lane::kWidth, sums[k]);
    }
  }
}

template <bool kStream, class T>
inline void SumBins(const Plan& plan, const T* const* maps, int64_t channels, int64_t first, int64_t last, Tap* taps,
                    T* pooled) {
  for (int64_t i = first; i < last; ++i) {
    const Bin& bin = plan.bins()[i];
    const T* map = maps[plan.level(bin)];
    const int64_t count = plan.Taps(bin, channels, taps);
    T* result = pooled + plan.Place(bin) * channels;
    int64_t c = 0;
    for (; c + kBlock <= channels; c += kBlock) {
      SumTaps<Wide, kVectorsAtOnce, kStream>(map + c, taps, count, result + c);
    }
    for (; c + Wide::kWidth <= channels; c += Wide::kWidth) {
      SumTaps<Wide, 1, kStream>(map + c, taps, count, result + c);
    }
    for (; c < channels; ++c) SumTaps<Narrow, 1, kStream>(map + c, taps, count, result + c);
  }
  if (kStream) FinishStreams();
}

template <class Lane, int kVectors, class T>
inline void SpreadTaps(const T* bin, const Tap* taps, int64_t count, float* map) {
  typename Lane::V gradient[kVectors];
#pragma GCC unroll 16
  for (int k = 0; k < kVectors; ++k) gradient[k] = Lane::Load(bin + k * Lane::kWidth);
  for (int64_t i = 0; i < count; ++i) {
    float* cell = map + taps[i].cell;
    const auto weight = Lane::Set(taps[i].weight);
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) {
      float* place = cell + k * Lane::kWidth;
      Lane::Store(place, Lane::Fma(weight, gradient[k], Lane::Load(place)));
    }
  }
}

// Adds the gradient of all bins to the channels begin..end of the maps.
template <class T>
inline void SpreadBins(const Plan& plan, const T* upstream, int64_t channels, int64_t begin, int64_t end,
                       Tap* taps, float* const* maps) {
  for (const Bin& bin : plan.bins()) {
    float* map = maps[plan.level(bin)];
    const int64_t count = plan.Taps(bin, channels, taps);
    const T* gradient = upstream + plan.Place(bin) * channels;
    int64_t c = begin;
    for (; c + kBlock <= end; c += kBlock) {
      SpreadTaps<Wide, kVectorsAtOnce>(gradient + c, taps, count, map + c);
    }
    for (; c + Wide::kWidth <= end; c += Wide::kWidth) {
      SpreadTaps<Wide, 1>(gradient + c, taps, count, map + c);
    }
    for (; c < end; ++c) SpreadTaps<Narrow, 1>(gradient + c, taps, count, map + c);
  }
}

}  // namespace KERASDET_ISA
}  // namespace kerasdet
