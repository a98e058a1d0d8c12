// ROIAlign of boxes on a pyramid of feature maps, and its gradient.
//
// In the gradient, each thread owns a range of channels, so sums do not depend on the order of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "half.h"
#include "kernel.h"
#include "ops.h"
#include "roi_align_options.h"
#include "roi_align_plan.h"

#define KERASDET_SIMD_FILE "roi_align_simd.h"
#include "simd_each.h"

namespace kerasdet {
namespace {

constexpr int64_t kStreamFrom = 4 << 20;       // results of at least this many bytes bypass the caches
constexpr int64_t kBinsAtOnce = 1 << 20;       // bins per plan, which bounds its memory
constexpr int64_t kBinsOfPart = 1024;          // bins per task of a thread
constexpr int64_t kValuesOfPart = 256 << 10;   // values per task of a thread

// Plans all boxes (batch, per_image, 4), some boxes of one image at a time, and calls body(plan, image, index of the first
// box) for each plan.
template <class Body>
void ForPlans(const RoiOptions& options, const std::vector<Map>& maps, const float* boxes, int64_t batch,
              int64_t per_image, int64_t cell_bytes, const ThreadPool& threads, const Body& body) {
  const int64_t most = std::max<int64_t>(kBinsAtOnce / (options.output_height * options.output_width), 1);
  for (int64_t image = 0; image < batch; ++image) {
    for (int64_t first = 0; first < per_image; first += most) {
      const int64_t number = image * per_image + first;
      const int64_t count = std::min(most, per_image - first);
      body(Plan(options, maps, boxes + 4 * number, count, cell_bytes, threads), image, number);
    }
  }
}

template <class T, TF_DataType kType>
class RoiAlign {
 public:
  explicit RoiAlign(const Construction& attrs) : options_(RoiOptionsOf(attrs)) {}

  void Compute(const Context& context) const {
    const int num_levels = static_cast<int>(options_.scales.size());
    if (context.num_inputs() != num_levels + 1) throw InvalidArgument("Each level needs a spatial scale.");
    const Tensor boxes = context.Input(num_levels, "boxes", {-1, -1, 4});
    const int64_t batch = boxes.dim(0), per_image = boxes.dim(1);
    std::vector<Tensor> features;
    std::vector<Map> maps;
    int64_t channels = -1;
    for (int level = 0; level < num_levels; ++level) {
      features.push_back(context.Input(level, "features", {batch, -1, -1, channels}));
      maps.push_back(CheckedMap(features.back().dim(1), features.back().dim(2)));
      channels = features.back().dim(3);
    }
    const int64_t height = options_.output_height, width = options_.output_width;
    const Tensor pooled = context.Output(0, kType, {batch, per_image, height, width, channels});
    const int64_t size = height * width * channels;
    if (batch * per_image * size == 0) return;
    const bool stream = batch * per_image * size * static_cast<int64_t>(sizeof(T)) >= kStreamFrom &&
                        reinterpret_cast<uintptr_t>(pooled.data<T>()) % 64 == 0 && channels % 16 == 0;
    const ThreadPool threads = context.threads();
    const auto pool = [&](const Plan& plan, int64_t image, int64_t number) {
      std::vector<const T*> of_image;
      for (int level = 0; level < num_levels; ++level) {
        of_image.push_back(features[level].template data<T>() +
                           image * maps[level].height * maps[level].width * channels);
      }
      T* result = pooled.data<T>() + number * size;
      threads.For(plan.bins().size(), kBinsOfPart, [&](int64_t begin, int64_t end) {
        const Buffer<Tap> taps(plan.most_taps());
        if (stream) {
          KERASDET_DISPATCH(SumBins<true>(plan, of_image.data(), channels, begin, end, taps.data(), result));
        } else {
          KERASDET_DISPATCH(SumBins<false>(plan, of_image.data(), channels, begin, end, taps.data(), result));
        }
      });
    };
    ForPlans(options_, maps, boxes.data<float>(), batch, per_image, channels * sizeof(T), threads, pool);
  }

 private:
  const RoiOptions options_;
};

template <class T, TF_DataType kType>
class RoiAlignGrad {
 public:
  explicit RoiAlignGrad(const Construction& attrs) : options_(RoiOptionsOf(attrs)) {}

  void Compute(const Context& context) const {
    const int num_levels = static_cast<int>(options_.scales.size());
    if (context.num_inputs() != num_levels + 2) throw InvalidArgument("Each level needs a spatial scale.");
    const Tensor boxes = context.Input(num_levels, "boxes", {-1, -1, 4});
    const int64_t batch = boxes.dim(0), per_image = boxes.dim(1);
    const int64_t height = options_.output_height, width = options_.output_width;
    const Tensor upstream = context.Input(num_levels + 1, "grad", {batch, per_image, height, width, -1});
    const int64_t channels = upstream.dim(4);
    const ThreadPool threads = context.threads();
    std::vector<Map> maps;
    std::vector<Tensor> gradients;
    std::vector<Buffer<float>> in_float32;
    std::vector<float*> sums;
    for (int level = 0; level < num_levels; ++level) {
      const Tensor shape = context.Input(level, "shapes", {4});
      const int32_t* dims = shape.data<int32_t>();
      if (dims[0] != batch || dims[3] != channels) throw InvalidArgument("The shapes and the gradient do not agree.");
      maps.push_back(CheckedMap(dims[1], dims[2]));
      gradients.push_back(context.Output(level, kType, {batch, dims[1], dims[2], channels}));
      const int64_t values = batch * dims[1] * dims[2] * channels;
      if (kType == TF_FLOAT) {
        sums.push_back(gradients.back().template data<float>());
      } else {
        in_float32.emplace_back(values);
        sums.push_back(in_float32.back().data());
      }
      threads.For(values, kValuesOfPart, [to = sums.back()](int64_t begin, int64_t end) {
        std::memset(to + begin, 0, (end - begin) * sizeof(float));
      });
    }
    if (per_image * channels > 0) Spread(boxes, upstream.data<T>(), batch, per_image, channels, maps, sums, threads);
    for (size_t level = 0; level < in_float32.size(); ++level) {
      const int64_t values = batch * maps[level].height * maps[level].width * channels;
      threads.For(values, kValuesOfPart, [&](int64_t begin, int64_t end) {
        T* result = gradients[level].template data<T>();
        for (int64_t i = begin; i < end; ++i) FromFloat(sums[level][i], result + i);
      });
    }
  }

 private:
  void Spread(const Tensor& boxes, const T* upstream, int64_t batch, int64_t per_image, int64_t channels,
              const std::vector<Map>& maps, const std::vector<float*>& sums, const ThreadPool& threads) const {
    // A thread gets at least a cache line of channels, so that no two threads write to the same line.
    const int64_t lines = (channels + 15) / 16, slices = std::min<int64_t>(threads.num_threads(), lines);
    const auto spread = [&](const Plan& plan, int64_t image, int64_t number) {
      std::vector<float*> of_image;
      for (size_t level = 0; level < maps.size(); ++level) {
        of_image.push_back(sums[level] + image * maps[level].height * maps[level].width * channels);
      }
      const T* gradient = upstream + number * options_.output_height * options_.output_width * channels;
      threads.For(slices, 1, [&](int64_t first, int64_t last) {
        const int64_t begin = lines * first / slices * 16, end = std::min(channels, lines * last / slices * 16);
        const Buffer<Tap> taps(plan.most_taps());
        KERASDET_DISPATCH(SpreadBins(plan, gradient, channels, begin, end, taps.data(), of_image.data()));
      });
    };
    ForPlans(options_, maps, boxes.data<float>(), batch, per_image, channels * sizeof(float), threads, spread);
  }

  const RoiOptions options_;
};

template <class T, TF_DataType kType>
void RegisterType() {
  RegisterKernel<RoiAlign<T, kType>>("Kerasdet>RoiAlign", "CPU", "T", kType);
  RegisterKernel<RoiAlignGrad<T, kType>>("Kerasdet>RoiAlignGrad", "CPU", "T", kType);
}

}  // namespace

void RegisterRoiAlign() {
  const auto attrs = {"num_levels: int >= 1",   "T: {float, half, bfloat16}", "spatial_scales: list(float)",
                      "output_height: int",     "output_width: int",          "sampling_ratio: int",
                      "aligned: bool",          "lowest_level: int",          "canonical_size: float",
                      "canonical_level: float", "level_epsilon: float"};
  RegisterOp("Kerasdet>RoiAlign", {"features: num_levels * T", "boxes: float"}, {"pooled: T"}, attrs);
  RegisterOp("Kerasdet>RoiAlignGrad", {"shapes: num_levels * int32", "boxes: float", "grad: T"},
             {"gradients: num_levels * T"}, attrs);
  RegisterType<float, TF_FLOAT>();
  RegisterType<Half, TF_HALF>();
  RegisterType<BFloat16, TF_BFLOAT16>();
}

}  // namespace kerasdet
