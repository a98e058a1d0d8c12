// Deformable convolution: samples the features at all taps into a matrix, the columns, and computes the gradients of this
// step.
//
// TensorFlow multiplies the columns with the kernel. In the gradient of the input, each thread owns a range of channels,
// so sums do not depend on the order of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "deform_conv_inputs.h"
#include "kernel.h"
#include "ops.h"

namespace kerasdet {
namespace {

// The four cells around a sample; cells outside the map are zero.
struct Corners {
  const float* cell[4];
  float weight[4];
};

}  // namespace
}  // namespace kerasdet

#define KERASDET_SIMD_FILE "deform_conv_simd.h"
#include "simd_each.h"

namespace kerasdet {
namespace {

// The position of a sample.
struct Point {
  int64_t y, x;  // upper left of the four cells around it
  float dy, dx;  // distance from the centre of that cell
  bool inside[4];

  float Weight(int corner) const { return (corner & 2 ? dy : 1 - dy) * (corner & 1 ? dx : 1 - dx); }
};

// Channels that share an offset and a group of the convolution.
struct Segment {
  int64_t begin, end, deformable_group, group;
};

// One call: the inputs and their memory layout.
class Call {
 public:
  Call(const Geometry& geometry, const Context& context)
      : geometry_(geometry),
        inputs_(geometry, context),
        zeros_(channels(), 0.0f) {
    const int64_t of_group = channels() / geometry.groups(), of_deformable = channels() / geometry.deformable_groups();
    for (int64_t begin = 0, end; begin < channels(); begin = end) {
      const int64_t group = begin / of_group, deformable = begin / of_deformable;
      end = std::min((group + 1) * of_group, (deformable + 1) * of_deformable);
      segments_.push_back({begin, end, deformable, group});
    }
  }

  const Tensor& x() const { return inputs_.x; }
  const Tensor& offsets() const { return inputs_.offsets; }
  const Tensor& mask() const { return inputs_.mask; }
  int64_t channels() const { return inputs_.channels(); }
  int64_t group_channels() const { return channels() / geometry_.groups(); }
  int64_t positions() const { return inputs_.positions(); }
  const std::vector<Segment>& segments() const { return segments_; }

  // Returns the index of an offset (a pair) or of a factor of the mask.
  int64_t Number(int64_t position, int64_t deformable_group, int64_t tap) const {
    return (position * geometry_.deformable_groups() + deformable_group) * geometry_.taps() + tap;
  }

  float Factor(int64_t number) const { return geometry_.masked() ? mask().data<float>()[number] : 1.0f; }

  Point At(int64_t position, int64_t number, int64_t tap) const {
    const int64_t out_width = offsets().dim(2), row = position / out_width % offsets().dim(1), column = position % out_width;
    const float* offset = offsets().data<float>() + 2 * number;
    const int64_t top = row * geometry_.stride() - geometry_.padding() + tap / geometry_.kernel_width() * geometry_.dilation();
    const int64_t left =
        column * geometry_.stride() - geometry_.padding() + tap % geometry_.kernel_width() * geometry_.dilation();
    const float y = static_cast<float>(top) + offset[0], x = static_cast<float>(left) + offset[1];
    const float y_below = std::floor(y), x_below = std::floor(x);
    Point point{};
    // Samples outside the map, and those with a NaN position, read nothing.
    if (!(y_below >= -1 && y_below < static_cast<float>(height()) && x_below >= -1 &&
          x_below < static_cast<float>(width()))) {
      return point;
    }
    point.y = static_cast<int64_t>(y_below);
    point.x = static_cast<int64_t>(x_below);
    point.dy = y - y_below;
    point.dx = x - x_below;
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t cell_y = point.y + (corner >> 1), cell_x = point.x + (corner & 1);
      point.inside[corner] = cell_y >= 0 && cell_y < height() && cell_x >= 0 && cell_x < width();
    }
    return point;
  }

  // Returns the offset of the first channel of a corner inside the map.
  int64_t Cell(int64_t position, const Point& point, int corner) const {
    const int64_t image = position / (offsets().dim(1) * offsets().dim(2));
    return ((image * height() + point.y + (corner >> 1)) * width() + point.x + (corner & 1)) * channels();
  }

  Corners CornersOf(int64_t position, const Point& point, float factor) const {
    Corners corners;
    for (int corner = 0; corner < 4; ++corner) {
      const bool inside = point.inside[corner];
      corners.cell[corner] = inside ? x().data<float>() + Cell(position, point, corner) : zeros_.data();
      corners.weight[corner] = inside ? point.Weight(corner) * factor : 0.0f;
    }
    return corners;
  }

  // Returns the offset of a segment of a sample in the columns (groups, positions, taps, channels of a group).
  int64_t Column(int64_t position, int64_t tap, const Segment& segment) const {
    const int64_t row = (segment.group * positions() + position) * geometry_.taps() + tap;
    return row * group_channels() + segment.begin - segment.group * group_channels();
  }

 private:
  int64_t height() const { return x().dim(1); }
  int64_t width() const { return x().dim(2); }

  const Geometry& geometry_;
  const DeformConvInputs inputs_;
  const std::vector<float> zeros_;
  std::vector<Segment> segments_;
};

constexpr int64_t kPositionsOfPart = 64;

class DeformColumns {
 public:
  explicit DeformColumns(const Construction& attrs) : geometry_(attrs) {}

  void Compute(const Context& context) const {
    const Call call(geometry_, context);
    const int64_t taps = geometry_.taps(), width = taps * call.group_channels();
    const Tensor columns = context.Output(0, TF_FLOAT, {geometry_.groups(), call.positions(), width});
    context.threads().For(call.positions(), kPositionsOfPart, [&](int64_t begin, int64_t end) {
      for (int64_t position = begin; position < end; ++position) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          Corners corners{};
          int64_t owner = -1;
          for (const Segment& segment : call.segments()) {
            if (owner != segment.deformable_group) {
              owner = segment.deformable_group;
              const int64_t number = call.Number(position, owner, tap);
              corners = call.CornersOf(position, call.At(position, number, tap), call.Factor(number));
            }
            float* sample = columns.data<float>() + call.Column(position, tap, segment);
            KERASDET_DISPATCH(Sample(corners, segment.begin, segment.end, sample));
          }
        }
      }
    });
  }

 private:
  const Geometry geometry_;
};

class DeformColumnsGrad {
 public:
  explicit DeformColumnsGrad(const Construction& attrs) : geometry_(attrs) {}

  void Compute(const Context& context) const {
    const Call call(geometry_, context);
    const int64_t taps = geometry_.taps(), width = taps * call.group_channels();
    const Tensor upstream = context.Input(3, "grad", {geometry_.groups(), call.positions(), width});
    const Tensor& x = call.x();
    const Tensor dx = context.Output(0, TF_FLOAT, {x.dim(0), x.dim(1), x.dim(2), x.dim(3)});
    const Tensor& offsets = call.offsets();
    const Tensor doffsets =
        context.Output(1, TF_FLOAT, {offsets.dim(0), offsets.dim(1), offsets.dim(2), offsets.dim(3)});
    const Tensor& mask = call.mask();
    const Tensor dmask = context.Output(2, TF_FLOAT, {mask.dim(0), mask.dim(1), mask.dim(2), mask.dim(3)});
    const Tensor columns = context.Output(3, TF_FLOAT, {geometry_.groups(), call.positions(), width});
    if (call.channels() == 0) {
      for (const Tensor* gradient : {&doffsets, &dmask}) {
        std::fill_n(gradient->data<float>(), call.positions() * gradient->dim(3), 0.0f);
      }
      return;
    }
    const ThreadPool threads = context.threads();
    threads.For(call.positions(), kPositionsOfPart, [&](int64_t begin, int64_t end) {
      for (int64_t position = begin; position < end; ++position) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          ToOffsets(call, position, tap, upstream.data<float>(), columns.data<float>(), doffsets.data<float>(),
                    dmask.data<float>());
        }
      }
    });
    // A thread gets at least a cache line of channels, so that no two threads write to the same line.
    const int64_t lines = (call.channels() + 15) / 16, slices = std::min<int64_t>(threads.num_threads(), lines);
    const int64_t in_image = offsets.dim(1) * offsets.dim(2), image_size = x.dim(1) * x.dim(2) * x.dim(3);
    if (image_size == 0) return;
    std::memset(dx.data<float>(), 0, x.dim(0) * image_size * sizeof(float));
    threads.For(x.dim(0) * slices, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t image = task / slices, slice = task % slices;
        const int64_t begin = lines * slice / slices * 16, end = lines * (slice + 1) / slices * 16;
        for (int64_t position = image * in_image; position < (image + 1) * in_image; ++position) {
          for (int64_t tap = 0; tap < taps; ++tap) {
            ToInput(call, position, tap, begin, end, upstream.data<float>(), dx.data<float>());
          }
        }
      }
    });
  }

 private:
  // Computes the gradients of one tap's offsets and mask factors, and its columns.
  void ToOffsets(const Call& call, int64_t position, int64_t tap, const float* upstream, float* columns,
                 float* doffsets, float* dmask) const {
    for (size_t i = 0; i < call.segments().size();) {
      const int64_t owner = call.segments()[i].deformable_group, number = call.Number(position, owner, tap);
      const Point point = call.At(position, number, tap);
      const float factor = call.Factor(number);
      const Corners corners = call.CornersOf(position, point, factor);
      float dots[4] = {0, 0, 0, 0};
      for (; i < call.segments().size() && call.segments()[i].deformable_group == owner; ++i) {
        const Segment& segment = call.segments()[i];
        const int64_t place = call.Column(position, tap, segment);
        KERASDET_DISPATCH(
            SampleAndDot(corners, upstream + place, segment.begin, segment.end, columns + place, dots));
      }
      float to_y = 0, to_x = 0, to_factor = 0;
      for (int corner = 0; corner < 4; ++corner) {
        if (!point.inside[corner]) continue;
        to_y += (corner & 2 ? 1.0f : -1.0f) * (corner & 1 ? point.dx : 1 - point.dx) * dots[corner];
        to_x += (corner & 1 ? 1.0f : -1.0f) * (corner & 2 ? point.dy : 1 - point.dy) * dots[corner];
        to_factor += point.Weight(corner) * dots[corner];
      }
      doffsets[2 * number] = to_y * factor;
      doffsets[2 * number + 1] = to_x * factor;
      if (geometry_.masked()) dmask[number] = to_factor;
    }
  }

  // Adds the gradient of one tap to the channels begin..end of the input.
  void ToInput(const Call& call, int64_t position, int64_t tap, int64_t begin, int64_t end, const float* upstream,
               float* dx) const {
    for (const Segment& segment : call.segments()) {
      const int64_t low = std::max(begin, segment.begin), high = std::min(end, segment.end);
      if (low >= high) continue;
      const int64_t number = call.Number(position, segment.deformable_group, tap);
      const Point point = call.At(position, number, tap);
      const float* gradient = upstream + call.Column(position, tap, segment) + low - segment.begin;
      for (int corner = 0; corner < 4; ++corner) {
        if (!point.inside[corner]) continue;
        const float weight = point.Weight(corner) * call.Factor(number);
        float* cell = dx + call.Cell(position, point, corner) + low;
        KERASDET_DISPATCH(AddScaled(weight, gradient, high - low, cell));
      }
    }
  }

  const Geometry geometry_;
};

}  // namespace

void RegisterDeformConv() {
  const auto attrs = {"kernel_height: int", "kernel_width: int", "stride: int",            "padding: int",
                      "dilation: int",      "groups: int",       "deformable_groups: int", "masked: bool"};
  RegisterOp("Kerasdet>DeformColumns", {"x: float", "offsets: float", "mask: float"}, {"columns: float"}, attrs);
  RegisterOp("Kerasdet>DeformColumnsGrad", {"x: float", "offsets: float", "mask: float", "grad: float"},
             {"to_x: float", "to_offsets: float", "to_mask: float", "columns: float"}, attrs);
  RegisterKernel<DeformColumns>("Kerasdet>DeformColumns", "CPU");
  RegisterKernel<DeformColumnsGrad>("Kerasdet>DeformColumnsGrad", "CPU");
}

}  // namespace kerasdet
