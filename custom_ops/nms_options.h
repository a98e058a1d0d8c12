// Attributes, inputs and outputs of the non-maximum suppression kernels, on any device.
#pragma once

#include <limits>

#include "kernel.h"

namespace kerasdet {

struct NmsOptions {
  const int64_t max_detections;
  const float iou_threshold, score_threshold;
  const bool by_class;

  explicit NmsOptions(const Construction& attrs)
      : max_detections(attrs.Int("max_detections")),
        iou_threshold(attrs.Float("iou_threshold")),
        score_threshold(attrs.Float("score_threshold")),
        by_class(attrs.Bool("by_class")) {
    if (max_detections < 0) throw InvalidArgument("max_detections is negative.");
    if (!(iou_threshold >= 0 && iou_threshold <= 1)) throw InvalidArgument("iou_threshold must be in 0..1.");
  }
};

// The inputs of a call and its outputs. The constructor checks the shapes of the inputs.
struct NmsCall {
  const Tensor boxes, scores, class_ids, indices, counts;

  NmsCall(const NmsOptions& options, const Context& context)
      : boxes(context.Input(0, "boxes", {-1, -1, 4})),
        scores(context.Input(1, "scores", {batch(), count()})),
        class_ids(context.Input(2, "class_ids", {options.by_class ? batch() : -1, options.by_class ? count() : -1})),
        indices(context.Output(0, TF_INT32, {batch(), options.max_detections})),
        counts(context.Output(1, TF_INT32, {batch()})) {
    if (count() > std::numeric_limits<int32_t>::max()) {
      throw InvalidArgument("There are more boxes than an int32 index can name.");
    }
  }

  int64_t batch() const { return boxes.dim(0); }
  int64_t count() const { return boxes.dim(1); }
};

}  // namespace kerasdet
