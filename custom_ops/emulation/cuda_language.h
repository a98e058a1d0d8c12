// Defines CUDA's language for a C++ compiler, so that the kernels run without a GPU and under sanitizers.
//
// The threads of a block take turns on their own stacks: each runs until it waits for others. See emulation/cuda.cc.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../half.h"

namespace emulation {

struct Index {
  unsigned x, y, z;
};
inline Index thread_index, block_index, block_size, grid_size;

void WaitForBlock();

// Shares a value with the warp and returns the values of its 32 threads.
const uint64_t* Exchange(uint64_t value);

// Registers a kernel by name; `run` takes the address of its launch parameters.
struct Kernel {
  Kernel(const char* name, void (*run)(const void* launch));
};

template <class T>
T AtomicUpdate(T* place, T value) {
  const T before = *place;
  *place = value;
  return before;
}

template <class T>
uint64_t Bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  return bits;
}
template <class T>
T FromBits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace emulation

#define KERASDET_KERNEL(name, Launch, threads)                                                                \
  static void name(const Launch& launch);                                                                     \
  static const emulation::Kernel name##_kernel(#name, [](const void* p) { name(*static_cast<const Launch*>(p)); }); \
  static void name(const Launch& launch)
#define KERASDET_SHARED_CODE inline
#define __shared__ static
#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size

using std::max;
using std::min;

inline void __syncthreads() { emulation::WaitForBlock(); }
inline void __syncwarp() { emulation::Exchange(0); }

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulation::FromBits<T>(emulation::Exchange(emulation::Bits(value))[lane & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned all, T value, int distance) {
  return __shfl_sync(all, value, static_cast<int>(threadIdx.x) ^ distance);
}
template <class T>
T __shfl_up_sync(unsigned all, T value, int distance) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return __shfl_sync(all, value, lane < distance ? lane : lane - distance);
}
inline unsigned __match_any_sync(unsigned, int value) {
  const uint64_t* values = emulation::Exchange(emulation::Bits(value));
  unsigned equal = 0;
  for (int lane = 0; lane < 32; ++lane) equal |= static_cast<unsigned>(values[lane] == emulation::Bits(value)) << lane;
  return equal;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const uint64_t* values = emulation::Exchange(value);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(values[lane]) << lane;
  return votes;
}

inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }

template <class T>
T atomicAdd(T* place, T value) {
  return emulation::AtomicUpdate(place, static_cast<T>(*place + value));
}
template <class T>
T atomicMin(T* place, T value) {
  return emulation::AtomicUpdate(place, min(*place, value));
}
template <class T>
T atomicMax(T* place, T value) {
  return emulation::AtomicUpdate(place, max(*place, value));
}
template <class T>
T atomicOr(T* place, T value) {
  return emulation::AtomicUpdate(place, *place | value);
}
