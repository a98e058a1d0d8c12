// Attributes and inputs of the deformable convolution kernels, on any device.
#pragma once

#include "kernel.h"

namespace kerasdet {

class Geometry {
 public:
  explicit Geometry(const Construction& attrs)
      : kernel_height_(attrs.Int("kernel_height")),
        kernel_width_(attrs.Int("kernel_width")),
        stride_(attrs.Int("stride")),
        padding_(attrs.Int("padding")),
        dilation_(attrs.Int("dilation")),
        groups_(attrs.Int("groups")),
        deformable_groups_(attrs.Int("deformable_groups")),
        masked_(attrs.Bool("masked")) {
    for (const int64_t value : {kernel_height_, kernel_width_, stride_, dilation_, groups_, deformable_groups_}) {
      if (value < 1 || value > 1 << 20) throw InvalidArgument("An attribute of the convolution is not in 1..2**20.");
    }
    if (padding_ < 0 || padding_ > 1 << 20) throw InvalidArgument("The padding is not in 0..2**20.");
    CheckedSize({kernel_height_, kernel_width_, deformable_groups_, 2}, "The kernel");
  }

  int64_t taps() const { return kernel_height_ * kernel_width_; }
  int64_t kernel_width() const { return kernel_width_; }
  int64_t stride() const { return stride_; }
  int64_t padding() const { return padding_; }
  int64_t dilation() const { return dilation_; }
  int64_t groups() const { return groups_; }
  int64_t deformable_groups() const { return deformable_groups_; }
  bool masked() const { return masked_; }

 private:
  int64_t kernel_height_, kernel_width_, stride_, padding_, dilation_, groups_, deformable_groups_;
  bool masked_;
};

// The inputs of a call. The constructor checks their shapes.
struct DeformConvInputs {
  const Tensor x, offsets, mask;

  DeformConvInputs(const Geometry& geometry, const Context& context)
      : x(context.Input(0, "x", {-1, -1, -1, -1})),
        offsets(context.Input(1, "offsets", {x.dim(0), -1, -1, 2 * geometry.deformable_groups() * geometry.taps()})),
        mask(context.Input(2, "mask",
                           {x.dim(0), offsets.dim(1), offsets.dim(2),
                            geometry.masked() ? geometry.deformable_groups() * geometry.taps() : -1})) {
    if (channels() % geometry.groups() != 0 || channels() % geometry.deformable_groups() != 0) {
      throw InvalidArgument("The groups do not divide the channels.");
    }
    CheckedSize({positions(), geometry.taps(), channels()}, "The matrix of samples");
  }

  int64_t channels() const { return x.dim(3); }
  int64_t positions() const { return offsets.dim(0) * offsets.dim(1) * offsets.dim(2); }
};

}  // namespace kerasdet
