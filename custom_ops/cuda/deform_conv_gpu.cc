// Launches deformable convolution on GPUs. The kernels are in deform_conv.cu.

#include <cstdint>
#include <limits>

#include "../deform_conv_inputs.h"
#include "../kernel.h"
#include "../ops.h"
#include "deform_conv_launch.h"
#include "sums.h"

namespace kerasdet {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1024;
constexpr int kWarps = DeformConvLaunch::kThreads / 32;

// Fills in all parameters except the outputs.
DeformConvLaunch LaunchOf(const Geometry& geometry, const DeformConvInputs& inputs) {
  const int64_t samples = inputs.positions() * geometry.taps() * geometry.deformable_groups();
  if (samples > kMost || inputs.x.dim(1) * inputs.x.dim(2) > kMost || inputs.channels() > kMost) {
    throw InvalidArgument("The input or its offsets are too large.");
  }
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  DeformConvLaunch launch{};
  launch.x = inputs.x.data<float>();
  launch.offsets = inputs.offsets.data<float>();
  launch.mask = geometry.masked() ? inputs.mask.data<float>() : nullptr;
  launch.positions = narrow(inputs.positions());
  launch.out_height = narrow(inputs.offsets.dim(1));
  launch.out_width = narrow(inputs.offsets.dim(2));
  launch.height = narrow(inputs.x.dim(1));
  launch.width = narrow(inputs.x.dim(2));
  launch.channels = narrow(inputs.channels());
  launch.kernel_width = narrow(geometry.kernel_width());
  launch.taps = narrow(geometry.taps());
  launch.stride = narrow(geometry.stride());
  launch.padding = narrow(geometry.padding());
  launch.dilation = narrow(geometry.dilation());
  launch.groups = narrow(geometry.groups());
  launch.deformable_groups = narrow(geometry.deformable_groups());
  launch.log2_terms = Log2Above(inputs.offsets.dim(1) * inputs.offsets.dim(2) * geometry.taps());
  return launch;
}

class DeformColumns {
 public:
  explicit DeformColumns(const Construction& attrs) : geometry_(attrs) {}

  void Compute(const Context& context) const {
    const DeformConvInputs inputs(geometry_, context);
    DeformConvLaunch launch = LaunchOf(geometry_, inputs);
    const int64_t of_group = inputs.channels() / geometry_.groups();
    const Tensor columns =
        context.Output(0, TF_FLOAT, {geometry_.groups(), inputs.positions(), geometry_.taps() * of_group});
    launch.columns = columns.data<float>();
    const bool aligned = (reinterpret_cast<uintptr_t>(launch.x) | reinterpret_cast<uintptr_t>(launch.columns)) % 16 == 0;
    const bool by_four = aligned && of_group % 4 == 0 && inputs.channels() / geometry_.deformable_groups() % 4 == 0;
    if (launch.channels == 0) return;
    context.stream().Run(by_four ? "deform_columns_4" : "deform_columns_1", DeformConvLaunch::kThreads, launch,
                         BlocksOf(inputs.positions() * geometry_.taps(), kWarps));
  }

 private:
  const Geometry geometry_;
};

class DeformColumnsGrad {
 public:
  explicit DeformColumnsGrad(const Construction& attrs) : geometry_(attrs) {}

  void Compute(const Context& context) const {
    const DeformConvInputs inputs(geometry_, context);
    DeformConvLaunch launch = LaunchOf(geometry_, inputs);
    const int64_t positions = inputs.positions(), width = geometry_.taps() * (inputs.channels() / geometry_.groups());
    const Tensor upstream = context.Input(3, "grad", {geometry_.groups(), positions, width});
    const Tensor to_x = Like(context, 0, inputs.x), to_offsets = Like(context, 1, inputs.offsets);
    const Tensor to_mask = Like(context, 2, inputs.mask);
    const Tensor columns = context.Output(3, TF_FLOAT, {geometry_.groups(), positions, width});
    const Stream stream = context.stream();
    const bool deterministic = IsDeterminismRequired();
    const LargestValue largest(context), largest_factor(context);
    if (deterministic) {
      largest.Find(stream, upstream.data<float>(), geometry_.groups() * positions * width);
      if (geometry_.masked()) {
        largest_factor.Find(stream, launch.mask, positions * geometry_.deformable_groups() * geometry_.taps());
      } else {
        largest_factor.Set(stream, 1.0f);
      }
    }
    const int64_t values = inputs.x.dim(0) * inputs.x.dim(1) * inputs.x.dim(2) * inputs.x.dim(3);
    const SumsOf<float> sums(context, stream, to_x.data<float>(), values, deterministic);
    launch.gradient = upstream.data<float>();
    launch.columns = columns.data<float>();
    launch.to_x = sums.floats();
    launch.to_x_units = sums.units();
    launch.to_offsets = to_offsets.data<float>();
    launch.to_mask = to_mask.data<float>();
    launch.largest = largest.bits();
    launch.largest_factor = largest_factor.bits();
    stream.Run("deform_columns_grad", DeformConvLaunch::kThreads, launch,
               BlocksOf(positions * geometry_.deformable_groups() * geometry_.taps(), kWarps));
    sums.Finish(stream, largest.bits(), largest_factor.bits(), launch.log2_terms);
  }

 private:
  static Tensor Like(const Context& context, int output, const Tensor& input) {
    return context.Output(output, TF_FLOAT, {input.dim(0), input.dim(1), input.dim(2), input.dim(3)});
  }

  const Geometry geometry_;
};

}  // namespace

void RegisterDeformConvOnGpu() {
  RegisterKernel<DeformColumns>("Kerasdet>DeformColumns", "GPU");
  RegisterKernel<DeformColumnsGrad>("Kerasdet>DeformColumnsGrad", "GPU");
}

}  // namespace kerasdet
