// Computes the crops of masks to their boxes from run lengths: the covered fraction of each cell of a square grid.
//
// kerasdet.geometry.masks.crops_from_runs does the same arithmetic in the same order, so both round equally.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernel.h"
#include "ops.h"

namespace kerasdet {
namespace {

// The runs of all objects, one after the other. A position is the number of pixels before it, over all objects.
class Runs {
 public:
  Runs(const Tensor& runs, const Tensor& num_runs) {
    const int32_t* length = runs.data<int32_t>();
    double end = 0, covered = 0;
    int64_t next = 0;
    for (int64_t i = 0; i < num_runs.dim(0); ++i) {
      for (int64_t j = 0; j < num_runs.data<int32_t>()[i]; ++j, ++next) {
        if (next >= runs.dim(0)) throw InvalidArgument("num_runs counts more runs than there are.");
        end += length[next];
        covered += j % 2 ? length[next] : 0;
        ends_.push_back(end);
        covered_.push_back(covered);
        inside_.push_back(j % 2 ? 1.0 : 0.0);
      }
    }
  }

  bool empty() const { return ends_.empty(); }

  // Writes the number of covered pixels between neighbouring positions origin + edges[i], which are in ascending order.
  void Count(double origin, const std::vector<double>& edges, double* counts) const {
    const double first = origin + edges[0];
    size_t run = std::upper_bound(ends_.begin(), ends_.end(), first) - ends_.begin();
    double before = 0;
    for (size_t i = 0; i < edges.size(); ++i) {
      const double position = origin + edges[i];
      while (run < ends_.size() && ends_[run] <= position) ++run;
      const size_t at = std::min(run, ends_.size() - 1);
      const double now = covered_[at] - inside_[at] * (ends_[at] - position);
      if (i > 0) counts[i - 1] = now - before;
      before = now;
    }
  }

 private:
  std::vector<double> ends_, covered_, inside_;
};

// The borders of the cells of a box along one axis.
std::vector<double> Edges(double low, double high, int64_t size) {
  const double step = 1.0 / static_cast<double>(size);
  std::vector<double> edges;
  for (int64_t i = 0; i <= size; ++i) {
    edges.push_back(low + (high - low) * (i == size ? 1.0 : step * static_cast<double>(i)));
  }
  return edges;
}

class CropMasks {
 public:
  explicit CropMasks(const Construction& attrs) : size_(attrs.Int("size")) {}

  void Compute(const Context& context) const {
    if (size_ < 1 || size_ > 4096) throw InvalidArgument("size is %lld: expected 1..4096.", static_cast<long long>(size_));
    const Tensor lengths = context.Input(0, "runs", {-1}), num_runs = context.Input(1, "num_runs", {-1});
    const Tensor boxes = context.Input(2, "boxes", {num_runs.dim(0), 4});
    const Tensor image_size = context.Input(3, "image_size", {2});
    const Tensor result = context.Output(0, TF_UINT8, {num_runs.dim(0), size_, size_});
    const Runs runs(lengths, num_runs);
    const double height = image_size.data<int32_t>()[0], width = image_size.data<int32_t>()[1];
    std::vector<double> sum(size_, 0.0);  // covered length of each cell, summed over all columns so far
    int64_t columns = 0;
    for (int64_t i = 0; i < num_runs.dim(0); ++i) {
      const float* box = boxes.data<float>() + 4 * i;
      if (!(box[0] >= 0 && box[1] >= 0 && box[2] <= height && box[3] <= width && box[0] <= box[2] && box[1] <= box[3])) {
        throw InvalidArgument("Box %lld is not inside its image of %gx%g.", static_cast<long long>(i), height, width);
      }
      if (runs.empty()) throw InvalidArgument("runs is empty, but there are boxes: pass the runs of each object.");
      Crop(runs, i, box, height, width, &columns, &sum, result.data<uint8_t>() + i * size_ * size_);
    }
  }

 private:
  void Crop(const Runs& runs, int64_t object, const float* box, double height, double width, int64_t* columns,
            std::vector<double>* sum, uint8_t* crop) const {
    const std::vector<double> y = Edges(box[0], box[2], size_), x = Edges(box[1], box[3], size_);
    const double first = std::floor(static_cast<double>(box[1]));
    const auto number = static_cast<int64_t>(std::ceil(static_cast<double>(box[3])) - first);
    // Each pixel column of the box is a row of `covered`, the covered length of each cell along y, and of `before`, the sum
    // of these lengths over the earlier columns.
    std::vector<double> covered((number + 1) * size_, 0.0), before((number + 1) * size_);
    for (int64_t j = 0; j < number; ++j) {
      const double origin = (static_cast<double>(object) * width + (static_cast<double>(j) + first)) * height;
      runs.Count(origin, y, covered.data() + j * size_);
      for (int64_t k = 0; k < size_; ++k) {
        before[j * size_ + k] = (*sum)[k];
        (*sum)[k] += covered[j * size_ + k];
      }
    }
    std::copy(sum->begin(), sum->end(), before.begin() + number * size_);

    // Along x, the covered area grows linearly between whole columns.
    const double start = static_cast<double>(*columns);
    const double extent_y = static_cast<double>(box[2]) - box[0], extent_x = static_cast<double>(box[3]) - box[1];
    const double cell = extent_y * extent_x / (static_cast<double>(size_) * static_cast<double>(size_));
    std::vector<double> left(size_), right(size_);
    for (int64_t i = 0; i <= size_; ++i) {
      const double edge = x[i] + (start - first);
      const int64_t row = std::min(std::max<int64_t>(static_cast<int64_t>(edge) - *columns, 0), number);
      const double part = edge - static_cast<double>(row + *columns);
      for (int64_t k = 0; k < size_; ++k) right[k] = before[row * size_ + k] + part * covered[row * size_ + k];
      for (int64_t k = 0; i > 0 && k < size_; ++k) {
        const double share = cell == 0 ? 0.0 : (right[k] - left[k]) / cell;
        const double value = std::nearbyint(std::min(std::max(share, 0.0), 1.0) * 255.0);
        crop[k * size_ + i - 1] = static_cast<uint8_t>(value);
      }
      std::swap(left, right);
    }
    *columns += number;
  }

  int64_t size_;
};

}  // namespace

void RegisterCropMasks() {
  RegisterOp("Kerasdet>CropMasks", {"runs: int32", "num_runs: int32", "boxes: float", "image_size: int32"},
             {"crops: uint8"}, {"size: int"});
  RegisterKernel<CropMasks>("Kerasdet>CropMasks", "CPU");
}

}  // namespace kerasdet
