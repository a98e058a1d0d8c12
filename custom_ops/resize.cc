// Resizes RGB images in the fixed-point arithmetic of Pillow or OpenCV, or computes only a window of the resized image.
//
// The horizontal pass comes first, as in both libraries. Weights are computed with the same operations and in the same
// precision as in kerasdet/ops/resize.py, so results are equal.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernel.h"
#include "ops.h"

#define KERASDET_SIMD_FILE "resize_simd.h"
#include "simd_each.h"

namespace kerasdet {
namespace {

constexpr int32_t kPrecision = 22;  // fractional bits of Pillow's weights
constexpr int64_t kRows = 32;       // rows per task of a thread
constexpr int64_t kPadding = 64;    // bytes that the hot loops may read and write past the end of a row

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Source positions and weights of the output positions from `start` to `stop` along one axis, as in Pillow.
struct PillowTaps {
  int64_t taps = 0;
  std::vector<int32_t> first, count, weights;  // `taps` weights for each position

  PillowTaps(int64_t size, int64_t length, int64_t start, int64_t stop) {
    const double scale = static_cast<double>(length) / static_cast<double>(size), support = std::max(scale, 1.0);
    for (int64_t i = start; i < stop; ++i) {
      const double center = (static_cast<double>(i) + 0.5) * scale;
      const int64_t low = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
      first.push_back(static_cast<int32_t>(low));
      count.push_back(static_cast<int32_t>(std::min(static_cast<int64_t>(center + support + 0.5), length) - low));
      taps = std::max<int64_t>(taps, count.back());
    }
    weights.assign(taps * (stop - start), 0);
    std::vector<double> exact(taps);
    for (int64_t i = start; i < stop; ++i) {
      const double center = (static_cast<double>(i) + 0.5) * scale;
      double total = 0;
      for (int64_t t = 0; t < count[i - start]; ++t) {
        const double distance = (static_cast<double>(first[i - start] + t) - center + 0.5) * (1 / support);
        exact[t] = std::max(1 - std::fabs(distance), 0.0);
        total += exact[t];
      }
      for (int64_t t = 0; t < count[i - start]; ++t) {
        weights[(i - start) * taps + t] = static_cast<int32_t>(exact[t] / total * (1 << kPrecision) + 0.5);
      }
    }
  }

  int64_t begin() const { return *std::min_element(first.begin(), first.end()); }
  int64_t end() const {
    int64_t last = 0;
    for (size_t i = 0; i < first.size(); ++i) last = std::max<int64_t>(last, first[i] + count[i]);
    return last;
  }
};

// The two source positions of each output position, and their weights in 1/2048, as in OpenCV.
struct OpenCvTaps {
  std::vector<int32_t> first, second, weights;

  OpenCvTaps(int64_t size, int64_t length, int64_t start, int64_t stop, bool clamp) {
    const double scale = 1 / (static_cast<double>(size) / static_cast<double>(length));
    const int64_t most = length - 1;
    for (int64_t i = start; i < stop; ++i) {
      const float center = static_cast<float>((static_cast<double>(i) + 0.5) * scale - 0.5);
      int64_t low = static_cast<int64_t>(std::floor(center));
      float fraction = center - static_cast<float>(low);
      if (clamp) {
        if (low < 0 || low >= most) fraction = 0;
        low = std::min(std::max<int64_t>(low, 0), most);
      }
      weights.push_back(static_cast<int32_t>(std::nearbyint((1 - fraction) * 2048)));
      weights.push_back(static_cast<int32_t>(std::nearbyint(fraction * 2048)));
      first.push_back(static_cast<int32_t>(std::min(std::max<int64_t>(low, 0), most)));
      second.push_back(static_cast<int32_t>(std::min(std::max<int64_t>(low + 1, 0), most)));
    }
  }
};

struct Job {
  const uint8_t* image;
  int64_t height, width;            // of the image
  int64_t new_height, new_width;    // of the resized image
  int64_t top, left, bottom, right;  // window of the resized image
  uint8_t* result;

  int64_t rows() const { return bottom - top; }
  int64_t columns() const { return right - left; }
  const uint8_t* row(int64_t y) const { return image + y * width * 3; }
};

void ResizeAsPillow(const Job& job, const ThreadPool& threads) {
  const PillowTaps y(job.new_height, job.height, job.top, job.bottom);
  const PillowTaps x(job.new_width, job.width, job.left, job.right);
  const int64_t begin = y.begin(), stride = RoundUp(job.columns() * 3, 16) + kPadding;
  const Buffer<uint8_t> rows((y.end() - begin) * stride);
  threads.For(y.end() - begin, kRows, [&](int64_t from, int64_t to) {
    const int64_t padding = 3 * x.taps + kPadding;
    const Buffer<uint8_t> copy(job.width * 3 + padding);
    std::memset(copy.data() + job.width * 3, 0, padding);
    for (int64_t i = from; i < to; ++i) {
      std::memcpy(copy.data(), job.row(begin + i), job.width * 3);
      uint8_t* row = rows.data() + i * stride;
      KERASDET_DISPATCH(SumPixels(copy.data(), x.first.data(), x.weights.data(), x.taps, job.columns(), kPrecision, row));
      std::memset(row + job.columns() * 3, 0, stride - job.columns() * 3);
    }
  });
  const int64_t size = job.columns() * 3;
  threads.For(job.rows(), kRows, [&](int64_t from, int64_t to) {
    const Buffer<uint8_t> line(stride);
    for (int64_t i = from; i < to; ++i) {
      const uint8_t* first = rows.data() + (y.first[i] - begin) * stride;
      KERASDET_DISPATCH(SumRows(first, stride, y.count[i], y.weights.data() + i * y.taps, RoundUp(size, 16), kPrecision,
                                line.data()));
      std::memcpy(job.result + i * size, line.data(), size);
    }
  });
}

// If the new size is exactly half the old one, OpenCV computes means of 2x2 pixels.
void HalveAsOpenCv(const Job& job, const ThreadPool& threads) {
  threads.For(job.rows(), kRows, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const uint8_t *upper = job.row(2 * (job.top + i)) + 6 * job.left, *lower = upper + job.width * 3;
      uint8_t* result = job.result + i * job.columns() * 3;
      for (int64_t j = 0; j < job.columns(); ++j) {
        for (int64_t c = 0; c < 3; ++c) {
          const int64_t at = 6 * j + c;
          result[3 * j + c] = static_cast<uint8_t>((upper[at] + upper[at + 3] + lower[at] + lower[at + 3] + 2) >> 2);
        }
      }
    }
  });
}

void ResizeAsOpenCv(const Job& job, const ThreadPool& threads) {
  if (job.height == 2 * job.new_height && job.width == 2 * job.new_width) return HalveAsOpenCv(job, threads);
  const OpenCvTaps y(job.new_height, job.height, job.top, job.bottom, false);
  const OpenCvTaps x(job.new_width, job.width, job.left, job.right, true);
  const int64_t begin = *std::min_element(y.first.begin(), y.first.end());
  const int64_t end = *std::max_element(y.second.begin(), y.second.end()) + 1;
  const int64_t size = job.columns() * 3, stride = RoundUp(size, 16) + 16;
  const Buffer<int32_t> rows((end - begin) * stride);
  threads.For(end - begin, kRows, [&](int64_t from, int64_t to) {
    const Buffer<uint8_t> copy(job.width * 3 + kPadding);
    std::memset(copy.data() + job.width * 3, 0, kPadding);
    for (int64_t i = from; i < to; ++i) {
      std::memcpy(copy.data(), job.row(begin + i), job.width * 3);
      int32_t* row = rows.data() + i * stride;
      KERASDET_DISPATCH(BlendPixels(copy.data(), x.first.data(), x.second.data(), x.weights.data(), job.columns(), row));
      std::fill(row + size, row + stride, 0);
    }
  });
  threads.For(job.rows(), kRows, [&](int64_t from, int64_t to) {
    const Buffer<uint8_t> line(stride);
    for (int64_t i = from; i < to; ++i) {
      const int32_t *upper = rows.data() + (y.first[i] - begin) * stride,
                    *lower = rows.data() + (y.second[i] - begin) * stride;
      KERASDET_DISPATCH(BlendRows(upper, lower, y.weights.data() + 2 * i, RoundUp(size, 16), line.data()));
      std::memcpy(job.result + i * size, line.data(), size);
    }
  });
}

class Resize {
 public:
  explicit Resize(const Construction& attrs) : opencv_(attrs.Bool("opencv")) {}

  void Compute(const Context& context) const {
    const Tensor image = context.Input(0, "image", {-1, -1, 3});
    const Tensor size = context.Input(1, "size", {2}), window = context.Input(2, "window", {4});
    const int32_t *sides = size.data<int32_t>(), *edges = window.data<int32_t>();
    Job job = {image.data<uint8_t>(), image.dim(0), image.dim(1), sides[0], sides[1],
               edges[0],              edges[1],     edges[2],     edges[3], nullptr};
    const int64_t most = 1 << 24;
    if (std::max({job.height, job.width, job.new_height, job.new_width}) > most || job.new_height < 1 ||
        job.new_width < 1 || job.height < 1 || job.width < 1) {
      throw InvalidArgument("Cannot resize an image of %lldx%lld to %lldx%lld.", static_cast<long long>(job.height),
                            static_cast<long long>(job.width), static_cast<long long>(job.new_height),
                            static_cast<long long>(job.new_width));
    }
    if (job.top < 0 || job.left < 0 || job.bottom > job.new_height || job.right > job.new_width ||
        job.top > job.bottom || job.left > job.right) {
      throw InvalidArgument("The window (%d, %d, %d, %d) is not inside the resized image of %lldx%lld.", edges[0], edges[1],
                            edges[2], edges[3], static_cast<long long>(job.new_height),
                            static_cast<long long>(job.new_width));
    }
    const Tensor result = context.Output(0, TF_UINT8, {job.rows(), job.columns(), 3});
    job.result = result.data<uint8_t>();
    if (job.rows() == 0 || job.columns() == 0) return;
    if (opencv_) {
      ResizeAsOpenCv(job, context.threads());
    } else {
      ResizeAsPillow(job, context.threads());
    }
  }

 private:
  bool opencv_;
};

}  // namespace

void RegisterResize() {
  RegisterOp("Kerasdet>Resize", {"image: uint8", "size: int32", "window: int32"}, {"resized: uint8"}, {"opencv: bool"});
  RegisterKernel<Resize>("Kerasdet>Resize", "CPU");
}

}  // namespace kerasdet
