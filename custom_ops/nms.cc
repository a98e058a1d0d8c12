// Greedy non-maximum suppression of every image of a batch, over all boxes or per class.
//
// Boxes are visited by descending score (the first box first if scores are equal), and compared with the kept boxes of
// their class. Usually few boxes are needed, so they are not all sorted: a histogram of scores finds the best ones.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernel.h"
#include "nms_options.h"
#include "ops.h"

namespace kerasdet {
namespace {

struct Box {
  float y1, x1, y2, x2, area;
};

// Kept boxes of one class, padded with empty boxes.
struct KeptBlock {
  static constexpr int kSize = 16;
  float y1[kSize], x1[kSize], y2[kSize], x2[kSize], area[kSize], share_of_area[kSize];
  int32_t next;  // block of the class, or -1
};

// Kept boxes by class, each class a chain of blocks.
class KeptBoxes {
 public:
  explicit KeptBoxes(int64_t num_classes) : chains_(num_classes, Chain{-1, -1, KeptBlock::kSize}) {}

  const KeptBlock* blocks() const { return blocks_.data(); }
  int32_t first(int32_t owner) const { return chains_[owner].first; }

  void Add(int32_t owner, const Box& box, float share) {
    Chain& chain = chains_[owner];
    if (chain.used == KeptBlock::kSize) {
      const int32_t added = static_cast<int32_t>(blocks_.size());
      blocks_.push_back(KeptBlock{});
      blocks_[added].next = -1;
      (chain.first < 0 ? chain.first : blocks_[chain.last].next) = added;
      chain.last = added;
      chain.used = 0;
    }
    KeptBlock& block = blocks_[chain.last];
    const int place = chain.used++;
    block.y1[place] = box.y1;
    block.x1[place] = box.x1;
    block.y2[place] = box.y2;
    block.x2[place] = box.x2;
    block.area[place] = box.area;
    block.share_of_area[place] = share * box.area;
  }

 private:
  struct Chain {
    int32_t first, last;
    int used;  // number of boxes in the last block
  };
  std::vector<Chain> chains_;
  std::vector<KeptBlock> blocks_;
};

}  // namespace
}  // namespace kerasdet

#define KERASDET_SIMD_FILE "nms_simd.h"
#include "simd_each.h"

namespace kerasdet {
namespace {

// A box and its sort key; better scores have smaller keys.
struct Candidate {
  uint32_t key;
  int32_t index;
};

uint32_t KeyOf(float score) {
  const uint32_t bits = ToBits(score + 0.0f);  // -0 and 0 are equal
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

// Sorts by key; equal keys keep their order.
void Sort(std::vector<Candidate>* candidates, std::vector<Candidate>* scratch) {
  constexpr int kBits = 11, kDigits = 3, kValues = 1 << kBits;
  const size_t size = candidates->size();
  if (size < 256) {
    std::stable_sort(candidates->begin(), candidates->end(),
                     [](const Candidate& a, const Candidate& b) { return a.key < b.key; });
    return;
  }
  static_assert(kBits * kDigits >= 32, "the digits cover a key");
  std::vector<uint32_t> starts(kDigits * kValues, 0);
  for (const Candidate& candidate : *candidates) {
    for (int digit = 0; digit < kDigits; ++digit) {
      ++starts[digit * kValues + (candidate.key >> (digit * kBits) & (kValues - 1))];
    }
  }
  scratch->resize(size);
  for (int digit = 0; digit < kDigits; ++digit) {
    uint32_t* start = starts.data() + digit * kValues;
    uint32_t total = 0;
    for (int value = 0; value < kValues; ++value) {
      const uint32_t count = start[value];
      start[value] = total;
      total += count;
    }
    for (const Candidate& candidate : *candidates) {
      (*scratch)[start[candidate.key >> (digit * kBits) & (kValues - 1)]++] = candidate;
    }
    candidates->swap(*scratch);
  }
}

// Maps the class ids of an image to numbers from 0.
class ClassNumbers {
 public:
  ClassNumbers(const int32_t* ids, int64_t count) : ids_(ids) {
    if (ids == nullptr || count == 0) return;
    const auto [low, high] = std::minmax_element(ids, ids + count);
    low_ = *low;
    const int64_t range = int64_t{*high} - low_ + 1;
    if (range <= 4 * count + 65536) {
      number_ = range;
      return;
    }
    sorted_.assign(ids, ids + count);
    std::sort(sorted_.begin(), sorted_.end());
    sorted_.erase(std::unique(sorted_.begin(), sorted_.end()), sorted_.end());
    number_ = static_cast<int64_t>(sorted_.size());
  }

  int64_t number() const { return number_; }
  int32_t Of(int32_t index) const {
    if (sorted_.empty()) return static_cast<int32_t>(int64_t{ids_[index]} - low_);
    return static_cast<int32_t>(std::lower_bound(sorted_.begin(), sorted_.end(), ids_[index]) - sorted_.begin());
  }

 private:
  const int32_t* ids_;
  int64_t low_ = 0, number_ = 1;
  std::vector<int32_t> sorted_;
};

// Returns the box with its corners in order; a non-finite box becomes an empty one, which overlaps nothing.
Box MakeBox(const float* corners) {
  for (int i = 0; i < 4; ++i) {
    if (!std::isfinite(corners[i])) return Box{0, 0, 0, 0, 0};
  }
  Box box;
  box.y1 = std::min(corners[0], corners[2]);
  box.x1 = std::min(corners[1], corners[3]);
  box.y2 = std::max(corners[0], corners[2]);
  box.x2 = std::max(corners[1], corners[3]);
  box.area = (box.y2 - box.y1) * (box.x2 - box.x1);
  return box;
}

class ImageNms {
 public:
  ImageNms(const float* boxes, const float* scores, const int32_t* class_ids, int64_t count)
      : boxes_(boxes), scores_(scores), class_ids_(class_ids), count_(count) {}

  // Writes up to `most` indices and returns their number.
  int32_t Run(float iou_threshold, float score_threshold, int64_t most, int32_t* result) {
    if (most == 0 || count_ == 0) return 0;
    const ClassNumbers classes(class_ids_, count_);
    KeptBoxes kept(classes.number());
    int32_t num_results = 0;
    const auto suppress = [&] {
      Sort(&candidates_, &scratch_);
      const int64_t size = static_cast<int64_t>(candidates_.size());
      sorted_boxes_.resize(size);
      sorted_classes_.resize(class_ids_ == nullptr ? 0 : size);
      for (int64_t i = 0; i < size; ++i) {
        sorted_boxes_[i] = MakeBox(boxes_ + 4 * int64_t{candidates_[i].index});
        if (class_ids_ != nullptr) sorted_classes_[i] = classes.Of(candidates_[i].index);
      }
      places_.clear();
      KERASDET_DISPATCH(Suppress(sorted_boxes_.data(), class_ids_ == nullptr ? nullptr : sorted_classes_.data(), size,
                                 iou_threshold, most - num_results, &kept, &places_));
      for (const int32_t place : places_) result[num_results++] = candidates_[place].index;
    };

    int64_t wanted = std::max<int64_t>(4 * most, 4096);
    if (count_ <= 2 * wanted) {
      Collect(score_threshold, 0, std::numeric_limits<uint32_t>::max());
      suppress();
      return num_results;
    }
    constexpr int kShift = 16;
    std::vector<int32_t> histogram(1 << kShift, 0);
    for (int64_t i = 0; i < count_; ++i) {
      if (scores_[i] > score_threshold) ++histogram[KeyOf(scores_[i]) >> kShift];
    }
    for (uint32_t begin = 0, end = 0; begin < histogram.size() && num_results < most; begin = end, wanted *= 4) {
      for (int64_t found = 0; end < histogram.size() && found < wanted; ++end) found += histogram[end];
      Collect(score_threshold, begin << kShift, ((end - 1) << kShift) | 0xffffu);
      suppress();
    }
    return num_results;
  }

 private:
  // Collects the boxes above the threshold with keys in [low, high]. A NaN score is never above the threshold.
  void Collect(float score_threshold, uint32_t low, uint32_t high) {
    candidates_.clear();
    for (int64_t i = 0; i < count_; ++i) {
      if (!(scores_[i] > score_threshold)) continue;
      const uint32_t key = KeyOf(scores_[i]);
      if (key - low <= high - low) candidates_.push_back({key, static_cast<int32_t>(i)});
    }
  }

  const float* const boxes_;
  const float* const scores_;
  const int32_t* const class_ids_;
  const int64_t count_;
  std::vector<Candidate> candidates_, scratch_;
  std::vector<Box> sorted_boxes_;
  std::vector<int32_t> sorted_classes_, places_;
};

class Nms {
 public:
  explicit Nms(const Construction& attrs) : options_(attrs) {}

  void Compute(const Context& context) const {
    const NmsCall call(options_, context);
    const int64_t batch = call.batch(), count = call.count(), most = options_.max_detections;
    context.threads().For(batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        int32_t* result = call.indices.data<int32_t>() + image * most;
        const int32_t* ids = options_.by_class ? call.class_ids.data<int32_t>() + image * count : nullptr;
        ImageNms nms(call.boxes.data<float>() + image * count * 4, call.scores.data<float>() + image * count, ids, count);
        const int32_t kept = nms.Run(options_.iou_threshold, options_.score_threshold, most, result);
        std::fill(result + kept, result + most, -1);
        call.counts.data<int32_t>()[image] = kept;
      }
    });
  }

 private:
  const NmsOptions options_;
};

}  // namespace

void RegisterNms() {
  RegisterOp("Kerasdet>Nms", {"boxes: float", "scores: float", "class_ids: int32"}, {"indices: int32", "counts: int32"},
             {"max_detections: int", "iou_threshold: float", "score_threshold: float", "by_class: bool"});
  RegisterKernel<Nms>("Kerasdet>Nms", "CPU");
}

}  // namespace kerasdet
