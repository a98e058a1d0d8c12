// Greedy non-maximum suppression of every image of a batch, over all boxes or per class.
//
// Boxes are sorted by descending score (the first box first if scores are equal). The best boxes form the window: a bit
// mask stores which later boxes each of them overlaps. One block per image then reads these bits word by word. If the
// window yields too few detections, which is rare, the same block continues with the boxes after the window. No data
// returns to the host.

#include "device.h"
#include "nms_launch.h"

namespace kerasdet {

struct Box {
  float y1, x1, y2, x2, area;
  int32_t class_id;
};

// Returns the box with its corners in order; a non-finite box becomes an empty one, which overlaps nothing.
inline Box BoxAt(const NmsLaunch& launch, int64_t image, int32_t index) {
  const int64_t number = image * launch.count + index;
  const float* corners = launch.boxes + 4 * number;
  Box box{0, 0, 0, 0, 0, launch.class_ids == nullptr ? 0 : launch.class_ids[number]};
  for (int i = 0; i < 4; ++i) {
    if (!IsFinite(corners[i])) return box;
  }
  box.y1 = fminf(corners[0], corners[2]);
  box.x1 = fminf(corners[1], corners[3]);
  box.y2 = fmaxf(corners[0], corners[2]);
  box.x2 = fmaxf(corners[1], corners[3]);
  box.area = (box.y2 - box.y1) * (box.x2 - box.x1);
  return box;
}

inline bool Overlap(const Box& kept, const Box& box, float threshold) {
  if (kept.class_id != box.class_id) return false;
  const float height = fminf(box.y2, kept.y2) - fmaxf(box.y1, kept.y1);
  const float width = fminf(box.x2, kept.x2) - fmaxf(box.x1, kept.x1);
  const float shared = fmaxf(height, 0.0f) * fmaxf(width, 0.0f), together = box.area + kept.area - shared;
  // The first comparison avoids a division but is inexact. It is a filter with a slightly lower threshold, and the second
  // comparison decides about boxes that pass.
  return shared > threshold * (1 - 1e-6f) * together && shared / together > threshold;
}

// Returns the sort key of a score. Better scores have smaller keys. Scores that are NaN or not above the threshold have the
// largest key.
inline uint32_t KeyOf(float score, float threshold) {
  if (!(score > threshold)) return 0xffffffffu;
  const uint32_t bits = ToBits(score + 0.0f);  // -0 and 0 are equal
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

// Sorts up to kMostSortedAtOnce boxes per image, with one block per image.
KERASDET_KERNEL(nms_sort_few, NmsLaunch, NmsLaunch::kThreads) {
  __shared__ unsigned long long items[NmsLaunch::kMostSortedAtOnce];  // high 32 bits: key, low 32 bits: index
  __shared__ int found;
  const int64_t image = blockIdx.x;
  const int count = static_cast<int>(launch.count), thread = threadIdx.x;
  int size = 2;
  while (size < count) size *= 2;
  if (thread == 0) found = 0;
  __syncthreads();
  for (int i = thread; i < size; i += NmsLaunch::kThreads) {
    items[i] = ~0ull;
    if (i >= count) continue;
    const uint32_t key = KeyOf(launch.scores[image * count + i], launch.score_threshold);
    items[i] = static_cast<unsigned long long>(key) << 32 | static_cast<uint32_t>(i);
    if (key != 0xffffffffu) atomicAdd(&found, 1);
  }
  __syncthreads();
  // A bitonic sort: https://doi.org/10.1145/1468075.1468121
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int pair = thread; pair < size / 2; pair += NmsLaunch::kThreads) {
        const int low = 2 * pair - (pair & (distance - 1)), high = low + distance;
        const unsigned long long one = items[low], other = items[high];
        if ((one > other) == ((low & run) == 0)) {
          items[low] = other;
          items[high] = one;
        }
      }
      __syncthreads();
    }
  }
  for (int i = thread; i < count; i += NmsLaunch::kThreads) {
    launch.order[0][image * count + i] = static_cast<int32_t>(items[i] & 0xffffffffu);
  }
  if (thread == 0) launch.found[image] = found;
}

// Larger numbers of boxes use a radix sort: three kernels per digit of the key, the lowest digit first. Each block
// handles one tile of an image's boxes.
KERASDET_KERNEL(nms_keys, NmsLaunch, NmsLaunch::kTileThreads) {
  const int64_t image = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * NmsLaunch::kTile;
  const int64_t last = min(launch.count, first + NmsLaunch::kTile);
  int found = 0;
  for (int64_t i = first + threadIdx.x; i < last; i += NmsLaunch::kTileThreads) {
    const uint32_t key = KeyOf(launch.scores[image * launch.count + i], launch.score_threshold);
    launch.keys[0][image * launch.count + i] = key;
    launch.order[0][image * launch.count + i] = static_cast<int32_t>(i);
    if (key != 0xffffffffu) ++found;
  }
  if (found > 0) atomicAdd(launch.found + image, found);
}

KERASDET_KERNEL(nms_count_digits, NmsLaunch, NmsLaunch::kTileThreads) {
  __shared__ int counts[NmsLaunch::kTileThreads];
  const int64_t image = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * NmsLaunch::kTile;
  const int64_t last = min(launch.count, first + NmsLaunch::kTile);
  counts[threadIdx.x] = 0;
  __syncthreads();
  for (int64_t i = first + threadIdx.x; i < last; i += NmsLaunch::kTileThreads) {
    atomicAdd(counts + (launch.keys[launch.from][image * launch.count + i] >> launch.shift & 0xff), 1);
  }
  __syncthreads();
  launch.starts[(image * NmsLaunch::kTileThreads + threadIdx.x) * launch.tiles + blockIdx.x] = counts[threadIdx.x];
}

// Turns the counts of (digit, tile) into start positions. One block per image; each warp handles some digits.
KERASDET_KERNEL(nms_start_digits, NmsLaunch, NmsLaunch::kThreads) {
  constexpr int kDigits = NmsLaunch::kTileThreads, kWarps = NmsLaunch::kThreads / 32;
  __shared__ int totals[kDigits];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t* starts = launch.starts + static_cast<int64_t>(blockIdx.x) * kDigits * launch.tiles;
#pragma unroll 1
  for (int digit = warp; digit < kDigits; digit += kWarps) {
    int total = 0;
#pragma unroll 1
    for (int tile = lane; tile < launch.tiles; tile += 32) total += starts[static_cast<int64_t>(digit) * launch.tiles + tile];
    for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(kAllLanes, total, distance);
    if (lane == 0) totals[digit] = total;
  }
  __syncthreads();
#pragma unroll 1
  for (int digit = warp; digit < kDigits; digit += kWarps) {
    int start = 0;
#pragma unroll 1
    for (int lower = lane; lower < digit; lower += 32) start += totals[lower];
    for (int distance = 16; distance > 0; distance /= 2) start += __shfl_xor_sync(kAllLanes, start, distance);
#pragma unroll 1
    for (int first = 0; first < launch.tiles; first += 32) {
      int32_t* place = starts + static_cast<int64_t>(digit) * launch.tiles + first + lane;
      const int count = first + lane < launch.tiles ? *place : 0;
      int sum = count;  // over this lane and the lower ones
      for (int distance = 1; distance < 32; distance *= 2) {
        const int lower = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane >= distance) sum += lower;
      }
      if (first + lane < launch.tiles) *place = start + sum - count;
      start += __shfl_sync(kAllLanes, sum, 31);
    }
  }
}

// Moves keys and indices to their places and keeps the order of equal digits. Each warp handles one row of the tile.
KERASDET_KERNEL(nms_move, NmsLaunch, NmsLaunch::kTileThreads) {
  constexpr int kWarps = NmsLaunch::kTileThreads / 32, kRow = NmsLaunch::kTile / kWarps, kDigits = 256;
  __shared__ int starts[kWarps][kDigits];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t image = blockIdx.y, begin = image * launch.count;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * NmsLaunch::kTile + warp * kRow;
  const uint32_t* keys = launch.keys[launch.from] + begin;
  const auto digit_of = [&](int64_t i) {
    return i < launch.count ? static_cast<int>(keys[i] >> launch.shift & 0xff) : kDigits;
  };
  for (int i = 0; i < kWarps; ++i) starts[i][threadIdx.x] = 0;
  __syncthreads();
  for (int64_t i = first + lane; i < first + kRow; i += 32) {
    const int digit = digit_of(i);
    if (digit < kDigits) atomicAdd(&starts[warp][digit], 1);
  }
  __syncthreads();
  int start = launch.starts[(image * kDigits + threadIdx.x) * launch.tiles + blockIdx.x];
  for (int i = 0; i < kWarps; ++i) {
    const int count = starts[i][threadIdx.x];
    starts[i][threadIdx.x] = start;
    start += count;
  }
  __syncthreads();
  for (int64_t i = first + lane; i < first + kRow; i += 32) {
    const int digit = digit_of(i);
    const unsigned equal = __match_any_sync(kAllLanes, digit);
    const int rank = __popc(equal & ((1u << lane) - 1));
    if (digit < kDigits) {
      const int64_t place = begin + starts[warp][digit] + rank;
      launch.keys[1 - launch.from][place] = keys[i];
      launch.order[1 - launch.from][place] = launch.order[launch.from][begin + i];
    }
    __syncwarp();
    if (digit < kDigits && rank == 0) starts[warp][digit] += __popc(equal);
    __syncwarp();
  }
}

// Sets the bits of boxes that an earlier box overlaps. Each block compares one word of boxes with itself or a later word.
KERASDET_KERNEL(nms_mask, NmsLaunch, NmsLaunch::kWord) {
  __shared__ Box others[NmsLaunch::kWord];
  const int word = blockIdx.x, row = blockIdx.y, thread = threadIdx.x;
  const int64_t image = blockIdx.z;
  const int found = min(launch.found[image], launch.window);
  if (word < row || word * NmsLaunch::kWord >= found) return;
  const int32_t* order = launch.order[0] + image * launch.count;
  const int other = word * NmsLaunch::kWord + thread, place = row * NmsLaunch::kWord + thread;
  if (other < found) others[thread] = BoxAt(launch, image, order[other]);
  __syncthreads();
  if (place >= found) return;
  const Box box = BoxAt(launch, image, order[place]);
  const int end = min(NmsLaunch::kWord, found - word * NmsLaunch::kWord);
  unsigned long long bits = 0;
  for (int i = word == row ? thread + 1 : 0; i < end; ++i) {
    if (Overlap(box, others[i], launch.iou_threshold)) bits |= 1ull << i;
  }
  launch.mask[(image * launch.window + place) * launch.words + word] = bits;
}

// Selects the boxes that are kept, with one block per image.
KERASDET_KERNEL(nms_keep, NmsLaunch, NmsLaunch::kThreads) {
  constexpr int kWord = NmsLaunch::kWord;
  __shared__ unsigned long long gone[NmsLaunch::kMostWords], of_word[kWord], kept_of_word;
  __shared__ Box some[kWord];
  __shared__ int best;
  const int thread = threadIdx.x;
  const int64_t image = blockIdx.x;
  const int found = launch.found[image], in_window = min(found, launch.window);
  const int32_t* order = launch.order[0] + image * launch.count;
  const unsigned long long* mask = launch.mask + image * launch.window * launch.words;
  int32_t* indices = launch.indices + image * launch.most;
  int kept = 0;  // the same in all threads

  for (int i = thread; i < launch.words; i += NmsLaunch::kThreads) gone[i] = 0;
  for (int word = 0; word * kWord < in_window && kept < launch.most; ++word) {
    const int first = word * kWord, size = min(kWord, in_window - first);
    if (thread < size) of_word[thread] = mask[static_cast<int64_t>(first + thread) * launch.words + word];
    __syncthreads();
    if (thread == 0) {
      unsigned long long out = gone[word], stays = 0;
      int room = launch.most - kept;
#pragma unroll 1
      for (int i = 0; i < size; ++i) {
        if ((out >> i & 1) != 0 || room == 0) continue;
        stays |= 1ull << i;
        out |= of_word[i];
        --room;
      }
      kept_of_word = stays;
    }
    __syncthreads();
    const unsigned long long stays = kept_of_word;
    if (thread < size && (stays >> thread & 1) != 0) {
      indices[kept + __popcll(stays & ((1ull << thread) - 1))] = order[first + thread];
    }
    kept += __popcll(stays);
    const int later = launch.words - word - 1;
#pragma unroll 4
    for (int i = thread; i < size * later; i += NmsLaunch::kThreads) {
      const int row = i / later, other = word + 1 + i - row * later;
      if ((stays >> row & 1) == 0 || other * kWord >= in_window) continue;
      const unsigned long long bits = mask[static_cast<int64_t>(first + row) * launch.words + other];
      if (bits != 0) atomicOr(gone + other, bits);
    }
    __syncthreads();
  }

  // After the window, each thread holds one box. The block compares these with all kept boxes, then repeatedly keeps
  // the best remaining box and compares it with the others.
  for (int first = in_window; first < found && kept < launch.most; first += NmsLaunch::kThreads) {
    bool stays = first + thread < found;
    const Box box = BoxAt(launch, image, order[stays ? first + thread : 0]);
    for (int begin = 0; begin < kept; begin += kWord) {
      const int size = min(kWord, kept - begin);
      if (thread < size) some[thread] = BoxAt(launch, image, indices[begin + thread]);
      __syncthreads();
#pragma unroll 1
      for (int i = 0; i < size && stays; ++i) stays = !Overlap(some[i], box, launch.iou_threshold);
      __syncthreads();
    }
    while (kept < launch.most) {
      if (thread == 0) best = NmsLaunch::kThreads;
      __syncthreads();
      if (stays) atomicMin(&best, thread);
      __syncthreads();
      if (best == NmsLaunch::kThreads) break;
      if (best == thread) {
        some[0] = box;
        indices[kept] = order[first + thread];
        stays = false;
      }
      ++kept;
      __syncthreads();
      stays = stays && !Overlap(some[0], box, launch.iou_threshold);
    }
    __syncthreads();
  }

  for (int i = kept + thread; i < launch.most; i += NmsLaunch::kThreads) indices[i] = -1;
  if (thread == 0) launch.counts[image] = kept;
}

}  // namespace kerasdet
