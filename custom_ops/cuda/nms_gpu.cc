// Launches non-maximum suppression on GPUs. The kernels are in nms.cu.

#include <algorithm>
#include <cstdint>

#include "../kernel.h"
#include "../nms_options.h"
#include "../ops.h"
#include "nms_launch.h"

namespace kerasdet {
namespace {

constexpr int kDigits = 256;
constexpr int64_t kMostImages = 65535, kMostMaskBytes = 256 << 20;

// Returns how many of the best boxes of an image get a mask. They usually suffice; later boxes use a slower path.
int64_t WindowOf(int64_t batch, int64_t count, int64_t most) {
  int64_t window = std::clamp<int64_t>(4 * most, 4096, NmsLaunch::kMostWords * NmsLaunch::kWord);
  while (window > 1024 && batch * window * window / 8 > kMostMaskBytes) window /= 2;
  return std::min(window, count);
}

class Nms {
 public:
  explicit Nms(const Construction& attrs) : options_(attrs) {}

  void Compute(const Context& context) const {
    const NmsCall call(options_, context);
    const int64_t batch = call.batch(), count = call.count(), most = options_.max_detections;
    if (batch > kMostImages) {
      throw InvalidArgument("NMS on a GPU takes at most %d images.", static_cast<int>(kMostImages));
    }
    const Stream stream = context.stream();
    if (batch == 0 || count == 0 || most == 0) {
      stream.Fill(call.indices.data<int32_t>(), 0xffffffffu, batch * most);
      return stream.Fill(call.counts.data<int32_t>(), 0, batch);
    }
    NmsLaunch launch{};
    launch.boxes = call.boxes.data<float>();
    launch.scores = call.scores.data<float>();
    launch.class_ids = options_.by_class ? call.class_ids.data<int32_t>() : nullptr;
    launch.indices = call.indices.data<int32_t>();
    launch.counts = call.counts.data<int32_t>();
    launch.count = count;
    launch.most = static_cast<int32_t>(most);
    launch.tiles = static_cast<int32_t>(BlocksOf(count, NmsLaunch::kTile));
    launch.window = static_cast<int32_t>(WindowOf(batch, count, most));
    launch.words = static_cast<int32_t>(BlocksOf(launch.window, NmsLaunch::kWord));
    launch.iou_threshold = options_.iou_threshold;
    launch.score_threshold = options_.score_threshold;

    const int64_t values = batch * count;
    const Tensor mask = context.Scratch(batch * launch.window * launch.words * sizeof(unsigned long long));
    const Tensor found = context.Scratch(batch * sizeof(int32_t)), order = context.Scratch(values * sizeof(int32_t));
    launch.mask = mask.data<unsigned long long>();
    launch.found = found.data<int32_t>();
    launch.order[0] = order.data<int32_t>();
    if (count <= NmsLaunch::kMostSortedAtOnce) {
      stream.Run("nms_sort_few", NmsLaunch::kThreads, launch, batch);
    } else {
      Sort(context, stream, batch, &launch);
    }
    stream.Run("nms_mask", NmsLaunch::kWord, launch, launch.words, launch.words, batch);
    stream.Run("nms_keep", NmsLaunch::kThreads, launch, batch);
  }

 private:
  // Each digit's step reads one order and writes the other. The number of digits is even: the result is in the first.
  static void Sort(const Context& context, const Stream& stream, int64_t batch, NmsLaunch* launch) {
    const int64_t values = batch * launch->count;
    const Tensor keys = context.Scratch(values * sizeof(uint32_t)), other_keys = context.Scratch(values * sizeof(uint32_t));
    const Tensor order = context.Scratch(values * sizeof(int32_t));
    const Tensor starts = context.Scratch(batch * kDigits * launch->tiles * sizeof(int32_t));
    launch->keys[0] = keys.data<uint32_t>();
    launch->keys[1] = other_keys.data<uint32_t>();
    launch->order[1] = order.data<int32_t>();
    launch->starts = starts.data<int32_t>();
    stream.Fill(launch->found, 0, batch);
    stream.Run("nms_keys", NmsLaunch::kTileThreads, *launch, launch->tiles, batch);
    for (int digit = 0; digit < 4; ++digit) {
      launch->shift = 8 * digit;
      launch->from = digit % 2;
      stream.Run("nms_count_digits", NmsLaunch::kTileThreads, *launch, launch->tiles, batch);
      stream.Run("nms_start_digits", NmsLaunch::kThreads, *launch, batch);
      stream.Run("nms_move", NmsLaunch::kTileThreads, *launch, launch->tiles, batch);
    }
  }

  const NmsOptions options_;
};

}  // namespace

void RegisterNmsOnGpu() { RegisterKernel<Nms>("Kerasdet>Nms", "GPU"); }

}  // namespace kerasdet
