// The hot loops of deform_conv.cc, over the channels of one sample.

namespace kerasdet {
namespace KERASDET_ISA {

template <class Lane>
inline typename Lane::V Interpolate(const Corners& corners, int64_t c) {
  auto value = Lane::Set(corners.weight[0]) * Lane::Load(corners.cell[0] + c);
  for (int k = 1; k < 4; ++k) {
    value = Lane::Fma(Lane::Set(corners.weight[k]), Lane::Load(corners.cell[k] + c), value);
  }
  return value;
}

// Writes the channels begin..end of a sample.
inline void Sample(const Corners& corners, int64_t begin, int64_t end, float* sample) {
  int64_t c = begin;
  for (; c + Wide::kWidth <= end; c += Wide::kWidth) Wide::Store(sample + c - begin, Interpolate<Wide>(corners, c));
  for (; c < end; ++c) sample[c - begin] = Interpolate<Narrow>(corners, c);
}

// Writes the channels begin..end of a sample, and adds the dot product of each corner with the gradient to `dots`.
inline void SampleAndDot(const Corners& corners, const float* gradient, int64_t begin, int64_t end, float* sample,
                         float* dots) {
  Wide::V sums[4] = {Wide::Zero(), Wide::Zero(), Wide::Zero(), Wide::Zero()};
  int64_t c = begin;
  for (; c + Wide::kWidth <= end; c += Wide::kWidth) {
    const auto upstream = Wide::Load(gradient + c - begin);
    for (int k = 0; k < 4; ++k) sums[k] = Wide::Fma(upstream, Wide::Load(corners.cell[k] + c), sums[k]);
    Wide::Store(sample + c - begin, Interpolate<Wide>(corners, c));
  }
  for (int k = 0; k < 4; ++k) dots[k] += Wide::Sum(sums[k]);
  for (; c < end; ++c) {
    for (int k = 0; k < 4; ++k) dots[k] += gradient[c - begin] * corners.cell[k][c];
    sample[c - begin] = Interpolate<Narrow>(corners, c);
  }
}

// Adds `weight * gradient` to `count` channels of a cell.
inline void AddScaled(float weight, const float* gradient, int64_t count, float* cell) {
  int64_t c = 0;
  for (; c + Wide::kWidth <= count; c += Wide::kWidth) {
    Wide::Store(cell + c, Wide::Fma(Wide::Set(weight), Wide::Load(gradient + c), Wide::Load(cell + c)));
  }
  for (; c < count; ++c) cell[c] = Narrow::Fma(weight, gradient[c], cell[c]);
}

}  // namespace KERASDET_ISA
}  // namespace kerasdet
