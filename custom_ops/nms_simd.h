// The hot loop of nms.cc: one box against the boxes kept so far.

namespace kerasdet {
namespace KERASDET_ISA {

// Whether a box overlaps one of those in a chain of blocks by more than the threshold.
inline bool Overlaps(const KeptBlock* blocks, int32_t block, const Box& box, float threshold) {
  using V = Wide::V;
  const V y1 = Wide::Set(box.y1), x1 = Wide::Set(box.x1), y2 = Wide::Set(box.y2), x2 = Wide::Set(box.x2);
  const V area = Wide::Set(box.area), zero = Wide::Zero();
  // Without a division the comparison is inexact, so it lets a little too much pass; what passes is divided.
  const V limit = Wide::Set(threshold * (1 - 1e-6f));
  for (; block >= 0; block = blocks[block].next) {
    const KeptBlock& kept = blocks[block];
    for (int i = 0; i < KeptBlock::kSize; i += Wide::kWidth) {
      const V height = Wide::Min(y2, Wide::Load(kept.y2 + i)) - Wide::Max(y1, Wide::Load(kept.y1 + i));
      const V width = Wide::Min(x2, Wide::Load(kept.x2 + i)) - Wide::Max(x1, Wide::Load(kept.x1 + i));
      const V shared = Wide::Max(height, zero) * Wide::Max(width, zero);
      const V together = area + Wide::Load(kept.area + i) - shared;
      if (__builtin_expect(Wide::Greater(shared, limit * together) != 0, 0)) {
        if (Wide::Greater(shared / together, Wide::Set(threshold)) != 0) return true;
      }
    }
  }
  return false;
}

// Boxes as they come, by descending score: appends the places of those that stay to `kept` until there are `most`.
inline void Suppress(const Box* boxes, const int32_t* classes, int64_t count, float threshold, int64_t most,
                     KeptBoxes* kept, std::vector<int32_t>* places) {
  for (int64_t i = 0; i < count && static_cast<int64_t>(places->size()) < most; ++i) {
    const int32_t owner = classes == nullptr ? 0 : classes[i];
    if (Overlaps(kept->blocks(), kept->first(owner), boxes[i], threshold)) continue;
    kept->Add(owner, boxes[i]);
    places->push_back(static_cast<int32_t>(i));
  }
}

}  // namespace KERASDET_ISA
}  // namespace kerasdet
