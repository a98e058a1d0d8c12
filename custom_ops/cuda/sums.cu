// Kernels for sums that do not depend on the order of additions: they find the largest value, which determines the unit, and
// convert the sums to floats. See `Sums` in device.h.

#include "device.h"
#include "sums_launch.h"

namespace kerasdet {

KERASDET_KERNEL(largest, LargestLaunch, LargestLaunch::kThreads) {
  uint32_t largest = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < launch.count; i += step) {
    const float value = Read(launch.values, launch.type, i);
    if (IsFinite(value)) largest = max(largest, ToBits(fabsf(value)));
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = max(largest, __shfl_xor_sync(kAllLanes, largest, distance));
  }
  if (threadIdx.x % 32 == 0) atomicMax(launch.largest, largest);
}

KERASDET_KERNEL(finish, FinishLaunch, FinishLaunch::kThreads) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= launch.count) return;
  float value = launch.floats[i];
  if (launch.units != nullptr) {
    const float root = ldexpf(1.0f, -ExponentOfRoot(*launch.largest, *launch.other_largest, launch.log2_terms));
    value += static_cast<float>(static_cast<long long>(launch.units[i])) * root * root;
    if (!(value == value)) value = FromBits(0x7fc00000u);  // the sign of a NaN depends on the order of a sum
  }
  Write(launch.result, launch.type, i, value);
}

}  // namespace kerasdet
