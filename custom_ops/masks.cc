// Pastes predicted masks (S, S) into their boxes, as bitmaps of the image or directly as COCO's run-length encoding.
//
// A mask is interpolated along y for all its columns, then along x pixel by pixel. kerasdet.geometry.masks uses the same
// order, so both round equally. The two conventions differ in where a pixel samples the mask, and in whether a value at
// the threshold belongs to the object.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernel.h"
#include "ops.h"

#define KERASDET_SIMD_FILE "masks_simd.h"
#include "simd_each.h"

namespace kerasdet {
namespace {

constexpr float kFar = 1 << 28;  // pixels; boxes with coordinates beyond it have an empty mask

// The pixels of a box along one axis, and for each pixel the two cells of the mask between which it is interpolated.
struct Axis {
  int64_t start = 0, stop = 0;
  std::vector<int32_t> first;  // index of the first of the two cells; cell 0 is a zero before the mask
  std::vector<float> weight, next_weight;

  void Find(float low, float high, int64_t limit, int64_t num_cells, bool torchvision) {
    first.clear();
    weight.clear();
    next_weight.clear();
    start = stop = 0;
    if (!(std::fabs(low) < kFar && std::fabs(high) < kFar) || num_cells == 0) return;
    const float cells = static_cast<float>(num_cells), end = static_cast<float>(limit);
    const float margin = (high - low) / cells + 2;  // pixels further outside are zero
    start = static_cast<int64_t>(std::min(std::max(std::floor(low - margin), 0.0f), end));
    stop = static_cast<int64_t>(std::min(std::max(std::ceil(high + margin), static_cast<float>(start)), end));
    const float centre = (low + high) / 2, half = (high - low) / 2 * ((cells + 2) / cells);
    const float whole_low = std::trunc(centre - half);
    const float length = std::max(std::trunc(centre + half) - whole_low + 1, 1.0f);
    for (int64_t i = start; i < stop; ++i) {
      const float pixel = static_cast<float>(i);
      float place;
      if (!torchvision) {
        place = (pixel + 0.5f - low) / (high - low) * cells - 0.5f;
      } else if (pixel >= whole_low && pixel < whole_low + length) {
        place = (pixel - whole_low + 0.5f) * ((cells + 2) / length) - 0.5f;
        place = std::min(std::max(place, 0.0f), cells + 1) - 1;
      } else {
        place = -1;
      }
      const float below = std::floor(place);
      if (!(below >= -1 && below < cells)) {
        first.push_back(0);
        weight.push_back(0);
        next_weight.push_back(0);
        continue;
      }
      first.push_back(static_cast<int32_t>(below) + 1);
      weight.push_back(1 - (place - below));
      next_weight.push_back(1 - (below + 1 - place));
    }
  }

  int64_t size() const { return stop - start; }
};

// Attributes and inputs of both ops.
class Masks {
 public:
  Masks(const Context& context, bool torchvision, float threshold)
      : probs_(context.Input(0, "mask_probs", {-1, -1, -1})),
        boxes_(context.Input(1, "boxes", {probs_.dim(0), 4})),
        torchvision_(torchvision),
        threshold_(threshold) {
    const Tensor size = context.Input(2, "image_size", {2});
    height_ = size.data<int32_t>()[0];
    width_ = size.data<int32_t>()[1];
    if (height_ < 0 || width_ < 0 || height_ > 1 << 24 || width_ > 1 << 24 || height_ * width_ > 0xffffffffLL) {
      throw InvalidArgument("An image of %lldx%lld is too large to have masks.", static_cast<long long>(height_),
                            static_cast<long long>(width_));
    }
    if (probs_.dim(1) != probs_.dim(2)) throw InvalidArgument("mask_probs are not square.");
  }

  int64_t count() const { return probs_.dim(0); }
  int64_t cells() const { return probs_.dim(1); }
  int64_t height() const { return height_; }
  int64_t width() const { return width_; }
  float threshold() const { return threshold_; }
  bool or_equal() const { return !torchvision_; }
  const float* probs(int64_t mask) const { return probs_.data<float>() + mask * cells() * cells(); }

  void Find(int64_t mask, Axis* y, Axis* x) const {
    const float* box = boxes_.data<float>() + 4 * mask;
    y->Find(box[0], box[2], height_, cells(), torchvision_);
    x->Find(box[1], box[3], width_, cells(), torchvision_);
  }

 private:
  const Tensor probs_, boxes_;
  const bool torchvision_;
  const float threshold_;
  int64_t height_, width_;
};

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// One mask in its box.
class Placed {
 public:
  void Find(const Masks& masks, int64_t number) {
    masks.Find(number, &y, &x);
    const int64_t cells = masks.cells();
    padded_ = RoundUp(cells + 2, 16);
    cells_.assign((cells + 2) * padded_, 0.0f);  // the mask with zeros around it
    for (int64_t i = 0; i < cells; ++i) {
      std::copy_n(masks.probs(number) + i * cells, cells, cells_.data() + (i + 1) * padded_ + 1);
    }
    line_.resize(padded_);
  }

  // Returns a pixel row of the box, interpolated along y; its values are cells of the mask along x.
  const float* Row(int64_t i) {
    const float* a = cells_.data() + y.first[i] * padded_;
    KERASDET_DISPATCH(Blend(a, y.weight[i], a + padded_, y.next_weight[i], padded_, line_.data()));
    return line_.data();
  }

  Axis y, x;

 private:
  int64_t padded_ = 0;
  std::vector<float> cells_, line_;
};

// Draws a mask into an image of zeros.
void Paint(const Masks& masks, Placed* placed, unsigned char* image) {
  const Axis& x = placed->x;
  for (int64_t i = 0; i < placed->y.size() && x.size() > 0; ++i) {
    unsigned char* row = image + (placed->y.start + i) * masks.width() + x.start;
    const float* cells = placed->Row(i);
    KERASDET_DISPATCH(BlendRow(cells, x.first.data(), x.weight.data(), x.next_weight.data(), x.size(),
                               masks.threshold(), masks.or_equal(), row));
  }
}

// Encodes masks one at a time, and reuses its memory.
class Encoder {
 public:
  std::vector<uint8_t> Encode(const Masks& masks, Placed* placed) {
    const Axis &y = placed->y, &x = placed->x;
    const int64_t height = masks.height(), rows = RoundUp(y.size(), 64);
    FindColumns(masks.cells(), rows, placed);
    counts_.clear();
    last_ = 0;
    inside_ = false;
    bits_.resize(rows / 64);
    for (int64_t i = 0; i < x.size() && rows > 0; ++i) {
      const float* a = columns_.data() + x.first[i] * rows;
      KERASDET_DISPATCH(BlendToBits(a, x.weight[i], a + rows, x.next_weight[i], rows, masks.threshold(),
                                    masks.or_equal(), bits_.data()));
      const int64_t begin = (x.start + i) * height;
      if (y.start > 0) Become(false, begin);
      for (int64_t word = 0; word < rows / 64; ++word) {
        const int64_t left = y.size() - 64 * word;
        const uint64_t valid = left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
        const uint64_t found = bits_[word] & valid;
        // Marks the bits that differ from the bit before them.
        for (uint64_t changes = (found ^ (found << 1 | uint64_t{inside_})) & valid; changes != 0;
             changes &= changes - 1) {
          Become(!inside_, begin + y.start + 64 * word + __builtin_ctzll(changes));
        }
      }
      if (y.stop < height) Become(false, begin + y.stop);
    }
    if (x.stop < masks.width()) Become(false, x.stop * height);
    counts_.push_back(height * masks.width() - last_);
    return Compressed();
  }

 private:
  // Interpolates the mask and the zeros around it along y, column by column; each column has the height of the box.
  void FindColumns(int64_t cells, int64_t rows, Placed* placed) {
    columns_.assign((cells + 2) * rows, 0.0f);
    for (int64_t i = 0; i < placed->y.size(); ++i) {
      const float* row = placed->Row(i);
      for (int64_t j = 1; j <= cells; ++j) columns_[j * rows + i] = row[j];
    }
  }

  // Begins a run inside or outside the mask at a pixel, unless such a run is already open. Pixels are counted down the
  // columns.
  void Become(bool inside, int64_t pixel) {
    if (inside == inside_) return;
    counts_.push_back(pixel - last_);
    last_ = pixel;
    inside_ = inside;
  }

  // A character minus "0" has six bits: five bits of a number, the lowest first, and one bit that is set if more
  // characters follow. From the fourth run on, the number is the difference from the run two places before.
  std::vector<uint8_t> Compressed() const {
    std::vector<uint8_t> code;
    for (size_t i = 0; i < counts_.size(); ++i) {
      int64_t rest = i > 2 ? counts_[i] - counts_[i - 2] : counts_[i];
      for (bool more = true; more;) {
        int64_t character = rest & 0x1f;
        rest >>= 5;
        more = character & 0x10 ? rest != -1 : rest != 0;
        code.push_back(static_cast<uint8_t>((more ? character | 0x20 : character) + 48));
      }
    }
    return code;
  }

  std::vector<float> columns_;
  std::vector<uint64_t> bits_;
  std::vector<int64_t> counts_;
  int64_t last_ = 0;
  bool inside_ = false;
};

class PasteMasks {
 public:
  explicit PasteMasks(const Construction& attrs)
      : torchvision_(attrs.Bool("torchvision")), threshold_(attrs.Float("threshold")) {}

  void Compute(const Context& context) const {
    const Masks masks(context, torchvision_, threshold_);
    const Tensor images = context.Output(0, TF_BOOL, {masks.count(), masks.height(), masks.width()});
    const int64_t size = masks.height() * masks.width();
    context.threads().For(masks.count(), 1, [&](int64_t begin, int64_t end) {
      Placed placed;
      for (int64_t number = begin; number < end; ++number) {
        unsigned char* image = images.data<unsigned char>() + number * size;
        std::memset(image, 0, size);
        placed.Find(masks, number);
        Paint(masks, &placed, image);
      }
    });
  }

 private:
  bool torchvision_;
  float threshold_;
};

class EncodeMasks {
 public:
  explicit EncodeMasks(const Construction& attrs)
      : torchvision_(attrs.Bool("torchvision")), threshold_(attrs.Float("threshold")) {}

  void Compute(const Context& context) const {
    const Masks masks(context, torchvision_, threshold_);
    std::vector<std::vector<uint8_t>> codes(masks.count());
    context.threads().For(masks.count(), 1, [&](int64_t begin, int64_t end) {
      Placed placed;
      Encoder encoder;
      for (int64_t number = begin; number < end; ++number) {
        placed.Find(masks, number);
        codes[number] = encoder.Encode(masks, &placed);
      }
    });
    int64_t total = 0;
    for (const auto& code : codes) total += static_cast<int64_t>(code.size());
    const Tensor characters = context.Output(0, TF_UINT8, {total});
    const Tensor lengths = context.Output(1, TF_INT32, {masks.count()});
    uint8_t* next = characters.data<uint8_t>();
    for (int64_t number = 0; number < masks.count(); ++number) {
      next = std::copy(codes[number].begin(), codes[number].end(), next);
      lengths.data<int32_t>()[number] = static_cast<int32_t>(codes[number].size());
    }
  }

 private:
  bool torchvision_;
  float threshold_;
};

}  // namespace

void RegisterMasks() {
  const auto inputs = {"mask_probs: float", "boxes: float", "image_size: int32"};
  const auto attrs = {"torchvision: bool", "threshold: float"};
  RegisterOp("Kerasdet>PasteMasks", inputs, {"masks: bool"}, attrs);
  RegisterOp("Kerasdet>EncodeMasks", inputs, {"characters: uint8", "lengths: int32"}, attrs);
  RegisterKernel<PasteMasks>("Kerasdet>PasteMasks", "CPU");
  RegisterKernel<EncodeMasks>("Kerasdet>EncodeMasks", "CPU");
}

}  // namespace kerasdet
