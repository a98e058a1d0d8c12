// Launches ROIAlign on GPUs. The kernels are in roi_align.cu.

#include <cstdint>
#include <limits>
#include <vector>

#include "../half.h"
#include "../kernel.h"
#include "../ops.h"
#include "../roi_align_options.h"
#include "roi_align_launch.h"
#include "sums.h"
#include "types.h"

namespace kerasdet {
namespace {

constexpr int64_t kMostBins = std::numeric_limits<int32_t>::max() - 1024;

constexpr const char* kByFour[] = {"roi_align_float", "roi_align_half", "roi_align_bfloat16"};

class Options {
 public:
  explicit Options(const Construction& attrs) : options_(RoiOptionsOf(attrs)) {
    if (num_levels() > RoiAlignLaunch::kMostLevels) {
      throw InvalidArgument("On a GPU a pyramid has at most %d levels.", RoiAlignLaunch::kMostLevels);
    }
  }

  int num_levels() const { return static_cast<int>(options_.scales.size()); }
  int64_t output_height() const { return options_.output_height; }
  int64_t output_width() const { return options_.output_width; }

  // Fills in all parameters except pointers and sizes of the levels.
  template <class T>
  RoiAlignLaunch Launch(const Tensor& boxes, int64_t channels, T* pooled) const {
    const int64_t bins = CheckedSize({boxes.dim(0), boxes.dim(1), output_height(), output_width()}, "The result");
    if (bins > kMostBins || channels > kMostBins) throw InvalidArgument("The result is too large.");
    RoiAlignLaunch launch{};
    launch.boxes = boxes.data<float>();
    launch.pooled = pooled;
    launch.type = TypeOf(pooled);
    launch.num_bins = static_cast<int32_t>(bins);
    launch.per_image = static_cast<int32_t>(boxes.dim(1));
    launch.channels = static_cast<int32_t>(channels);
    launch.num_levels = num_levels();
    launch.lowest_level = static_cast<int32_t>(options_.lowest_level);
    launch.output_height = static_cast<int32_t>(output_height());
    launch.output_width = static_cast<int32_t>(output_width());
    launch.sampling_ratio = static_cast<int32_t>(options_.sampling_ratio);
    launch.aligned = options_.aligned;
    launch.log2_terms = Log2Above(bins);
    launch.canonical_size = options_.canonical_size;
    launch.canonical_level = options_.canonical_level;
    launch.level_epsilon = options_.level_epsilon;
    for (int level = 0; level < num_levels(); ++level) launch.levels[level].scale = options_.scales[level];
    return launch;
  }

 private:
  const RoiOptions options_;
};

void SetSize(int64_t height, int64_t width, RoiAlignLaunch::Level* level) {
  const Map map = CheckedMap(height, width);
  if (map.height * map.width > kMostBins) throw InvalidArgument("A map is too large.");
  level->height = static_cast<int32_t>(map.height);
  level->width = static_cast<int32_t>(map.width);
}

template <class T>
bool IsAligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0;
}

void RunOnBins(const Stream& stream, const char* kernel, const RoiAlignLaunch& launch) {
  if (launch.channels == 0) return;
  stream.Run(kernel, RoiAlignLaunch::kThreads, launch, BlocksOf(launch.num_bins, RoiAlignLaunch::kThreads / 32));
}

template <class T, TF_DataType kType>
class RoiAlign {
 public:
  explicit RoiAlign(const Construction& attrs) : options_(attrs) {}

  void Compute(const Context& context) const {
    const int num_levels = options_.num_levels();
    if (context.num_inputs() != num_levels + 1) throw InvalidArgument("Each level needs a spatial scale.");
    const Tensor boxes = context.Input(num_levels, "boxes", {-1, -1, 4});
    const int64_t batch = boxes.dim(0), channels = context.Input(0, "features", {batch, -1, -1, -1}).dim(3);
    const Tensor pooled = context.Output(
        0, kType, {batch, boxes.dim(1), options_.output_height(), options_.output_width(), channels});
    RoiAlignLaunch launch = options_.Launch(boxes, channels, pooled.data<T>());
    bool by_four = channels % 4 == 0 && IsAligned<T>(launch.pooled);
    for (int level = 0; level < num_levels; ++level) {
      const Tensor features = context.Input(level, "features", {batch, -1, -1, channels});
      launch.levels[level].features = features.data<T>();
      SetSize(features.dim(1), features.dim(2), &launch.levels[level]);
      by_four = by_four && IsAligned<T>(features.data<T>());
    }
    RunOnBins(context.stream(), by_four ? kByFour[launch.type] : "roi_align_any", launch);
  }

 private:
  const Options options_;
};

template <class T, TF_DataType kType>
class RoiAlignGrad {
 public:
  explicit RoiAlignGrad(const Construction& attrs) : options_(attrs) {}

  void Compute(const Context& context) const {
    const int num_levels = options_.num_levels();
    if (context.num_inputs() != num_levels + 2) throw InvalidArgument("Each level needs a spatial scale.");
    const Tensor boxes = context.Input(num_levels, "boxes", {-1, -1, 4});
    const int64_t batch = boxes.dim(0);
    const Tensor upstream = context.Input(
        num_levels + 1, "grad", {batch, boxes.dim(1), options_.output_height(), options_.output_width(), -1});
    const int64_t channels = upstream.dim(4);
    RoiAlignLaunch launch = options_.Launch(boxes, channels, upstream.data<T>());
    const Stream stream = context.stream();
    const bool deterministic = IsDeterminismRequired();
    const LargestValue largest(context), one(context);
    if (deterministic) {
      largest.Find(stream, upstream.data<T>(), launch.num_bins * channels);
      one.Set(stream, 1.0f);
      launch.largest = largest.bits();
    }
    std::vector<SumsOf<T>> sums;
    for (int level = 0; level < num_levels; ++level) {
      const Tensor shape = context.Input(level, "shapes", {4});  // in host memory
      const int32_t* dims = shape.data<int32_t>();
      if (dims[0] != batch || dims[3] != channels) throw InvalidArgument("The shapes and the gradient do not agree.");
      SetSize(dims[1], dims[2], &launch.levels[level]);
      const Tensor gradient = context.Output(level, kType, {batch, dims[1], dims[2], channels});
      sums.emplace_back(context, stream, gradient.data<T>(), batch * dims[1] * dims[2] * channels, deterministic);
      launch.levels[level].floats = sums.back().floats();
      launch.levels[level].units = sums.back().units();
    }
    RunOnBins(stream, "roi_align_grad", launch);
    for (const SumsOf<T>& of_level : sums) of_level.Finish(stream, largest.bits(), one.bits(), launch.log2_terms);
  }

 private:
  const Options options_;
};

template <class T, TF_DataType kType>
void RegisterType() {
  RegisterKernel<RoiAlign<T, kType>>("Kerasdet>RoiAlign", "GPU", "T", kType);
  RegisterKernel<RoiAlignGrad<T, kType>>("Kerasdet>RoiAlignGrad", "GPU", "T", kType, {"shapes"});
}

}  // namespace

void RegisterRoiAlignOnGpu() {
  RegisterType<float, TF_FLOAT>();
  RegisterType<Half, TF_HALF>();
  RegisterType<BFloat16, TF_BFLOAT16>();
}

}  // namespace kerasdet
