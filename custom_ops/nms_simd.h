// The hot loop of nms.cc: compares one box with the boxes kept so far.

namespace kerasdet {
namespace KERASDET_ISA {

// Returns whether a box overlaps any box in a chain of blocks by more than the threshold.
//
// shared / (area + other area - shared) > threshold is equivalent to shared > share * (area + other area), with share =
// threshold / (1 + threshold). The second form needs no division but is inexact. It is therefore used with a slightly
// smaller share as a filter, and the exact form decides about boxes that pass.
inline bool Overlaps(const KeptBlock* blocks, int32_t block, const Box& box, float threshold, float share) {
  using V = Wide::V;
  const V y1 = Wide::Set(box.y1), x1 = Wide::Set(box.x1), y2 = Wide::Set(box.y2), x2 = Wide::Set(box.x2);
  const V area = Wide::Set(box.area), share_of_area = Wide::Set(share * box.area), zero = Wide::Zero();
  for (; block >= 0; block = blocks[block].next) {
    const KeptBlock& kept = blocks[block];
    for (int i = 0; i < KeptBlock::kSize; i += Wide::kWidth) {
      const V height = Wide::Min(y2, Wide::Load(kept.y2 + i)) - Wide::Max(y1, Wide::Load(kept.y1 + i));
      const V width = Wide::Min(x2, Wide::Load(kept.x2 + i)) - Wide::Max(x1, Wide::Load(kept.x1 + i));
      const V shared = Wide::Max(height, zero) * width;  // not positive if nothing is shared
      if (__builtin_expect(Wide::Greater(shared, share_of_area + Wide::Load(kept.share_of_area + i)) != 0, 0)) {
        const V together = area + Wide::Load(kept.area + i) - shared;
        if (Wide::Greater(shared / together, Wide::Set(threshold)) != 0) return true;
      }
    }
  }
  return false;
}

// Visits boxes, sorted by descending score, until `most` are kept. Adds these boxes to `kept` and their indices to `places`.
inline void Suppress(const Box* boxes, const int32_t* classes, int64_t count, float threshold, int64_t most,
                     KeptBoxes* kept, std::vector<int32_t>* places) {
  const float share = threshold / (1 + threshold) * (1 - 1e-6f);
  for (int64_t i = 0; i < count && static_cast<int64_t>(places->size()) < most; ++i) {
    const int32_t owner = classes == nullptr ? 0 : classes[i];
    if (Overlaps(kept->blocks(), kept->first(owner), boxes[i], threshold, share)) continue;
    kept->Add(owner, boxes[i], share);
    places->push_back(static_cast<int32_t>(i));
  }
}

}  // namespace KERASDET_ISA
}  // namespace kerasdet
