// Stands in for libcuda.so.1: its GPU uses host memory and runs the kernels of cuda/ as C++ (see cuda_language.h).
//
// The threads of a block run on one thread of the host. Their order changes from block to block, which reveals missing
// synchronization. The process aborts if a thread exits while others of its warp wait for it.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda_language.h"

#if !defined(__x86_64__)
#error "The emulation switches stacks of x86-64."
#endif

// Saves the registers and the stack pointer to *from, and resumes the stack `to`.
asm(R"(
  .text
  .local emulation_switch
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" void emulation_switch(void** from, void* to);

namespace emulation {
namespace {

constexpr size_t kStackSize = 128 << 10, kMostThreads = 1024;

using Run = void (*)(const void* launch);

std::map<std::string, Run>& Kernels() {
  static std::map<std::string, Run> kernels;
  return kernels;
}

// Releases all waiting threads when `size` threads have arrived.
struct Barrier {
  int size = 0, arrived = 0;
  unsigned opened = 0;
};

struct Thread {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackSize]};
  void* pointer = nullptr;
  bool finished = true;
  unsigned exchanges = 0;
};

struct Warp {
  Barrier barrier;
  int left = 0;
  uint64_t values[2][32];  // two buffers, so that no thread overwrites values that others still read
};

Thread threads[kMostThreads];
Warp warps[kMostThreads / 32];
Barrier block;
void *of_host, *nowhere;  // stack pointer of the host; stack pointer of a finished thread, which is never resumed
Run running;
const void* launched;
unsigned current, num_threads, num_left, step = 1;

void SwitchToNext(void** from) {
  if (num_left == 0) return emulation_switch(from, of_host);
  do {
    current = (current + step) % num_threads;
  } while (threads[current].finished);
  thread_index = {current, 0, 0};
  if (from != &threads[current].pointer) emulation_switch(from, threads[current].pointer);
}

void WaitFor(Barrier* barrier) {
  const unsigned before = barrier->opened;
  if (++barrier->arrived == barrier->size) {
    barrier->arrived = 0;
    ++barrier->opened;
  }
  while (barrier->opened == before) SwitchToNext(&threads[current].pointer);
}

void FailOfLeft() {
  std::fprintf(stderr, "A thread of a warp exited while others wait for it. All 32 threads must synchronize.\n");
  std::abort();
}

void RunThread() {
  running(launched);
  threads[current].finished = true;
  --num_left;
  --warps[current / 32].left;
  if (warps[current / 32].barrier.arrived > 0) FailOfLeft();
  if (--block.size > 0 && block.arrived == block.size) {  // a block does not wait for threads that have exited
    block.arrived = 0;
    ++block.opened;
  }
  SwitchToNext(&nowhere);
}

void RunBlock() {
  num_left = num_threads = block_size.x;
  block = Barrier{static_cast<int>(num_threads), 0, 0};
  for (unsigned i = 0; i < num_threads / 32; ++i) warps[i] = Warp{Barrier{32, 0, 0}, 32, {}};
  for (unsigned i = 0; i < num_threads; ++i) {
    threads[i].finished = false;
    threads[i].exchanges = 0;
    const auto top = (reinterpret_cast<uintptr_t>(threads[i].stack.get()) + kStackSize) / 16 * 16;
    void** pointer = reinterpret_cast<void**>(top) - 2;
    *pointer = reinterpret_cast<void*>(RunThread);
    threads[i].pointer = pointer - 6;  // initial registers of the thread
    std::memset(threads[i].pointer, 0, 6 * sizeof(void*));
  }
  step = (step + 2) % 64;  // odd, so that every thread gets a turn
  current = num_threads - 1;
  SwitchToNext(&of_host);
}

}  // namespace

Kernel::Kernel(const char* name, void (*run)(const void*)) { Kernels()[name] = run; }

void WaitForBlock() { WaitFor(&block); }

const uint64_t* Exchange(uint64_t value) {
  Warp& warp = warps[current / 32];
  if (warp.left < 32) FailOfLeft();
  uint64_t* values = warp.values[threads[current].exchanges++ % 2];
  values[current % 32] = value;
  WaitFor(&warp.barrier);
  return values;
}

}  // namespace emulation

#include "../cuda/kernels.cu"

extern "C" {

// Tests set the GPU's architecture and context, and read the image that was loaded last.
int emulated_architecture = 90;
const void* emulated_context = &emulated_architecture;
const void* emulated_image = nullptr;

int cuGetErrorString(int code, const char** text) {
  *text = code == 500 ? "named symbol not found" : "invalid argument";
  return 0;
}
int cuCtxGetCurrent(const void** context) {
  *context = emulated_context;
  return 0;
}
int cuCtxGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? emulated_architecture / 10 : emulated_architecture % 10;
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  emulated_image = image;
  *module = &emulated_image;
  return 0;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  const auto found = emulation::Kernels().find(name);
  if (found == emulation::Kernels().end()) return 500;
  *function = reinterpret_cast<void*>(found->second);
  return 0;
}
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned, void*, void** parameters, void**) {
  const bool fits = grid_x >= 1 && grid_x <= 0x7fffffffu && grid_y >= 1 && grid_y <= 65535 && grid_z >= 1 &&
                    grid_z <= 65535 && block_x % 32 == 0 && block_x <= 1024 && block_y == 1 && block_z == 1;
  if (!fits) return 1;
  emulation::running = reinterpret_cast<emulation::Run>(function);
  emulation::launched = parameters[0];
  emulation::grid_size = {grid_x, grid_y, grid_z};
  emulation::block_size = {block_x, 1, 1};
  emulation::Index& index = emulation::block_index;
  for (index.z = 0; index.z < grid_z; ++index.z) {
    for (index.y = 0; index.y < grid_y; ++index.y) {
      for (index.x = 0; index.x < grid_x; ++index.x) emulation::RunBlock();
    }
  }
  return 0;
}
int cuMemsetD32Async(uint64_t memory, unsigned word, size_t count, void*) {
  for (size_t i = 0; i < count; ++i) reinterpret_cast<unsigned*>(memory)[i] = word;
  return 0;
}

}  // extern "C"
