// Runs the compiled kernels through the CUDA driver's library, libcuda.so.1, if the machine has one.
#pragma once

#include <cstdint>
#include <exception>

namespace kerasdet {

class DriverError : public std::exception {
 public:
  DriverError(const char* what, int code);
  const char* what() const noexcept override { return text_; }

 private:
  char text_[192];
};

// Returns whether this library contains GPU kernels and the machine has a driver.
bool HasDriver();

// Queues work, in order, on the GPU whose context is current.
class Stream {
 public:
  explicit Stream(void* stream) : stream_(stream) {}

  // Sets `count` words of the GPU's memory to `word`.
  void Fill(void* memory, uint32_t word, int64_t count) const;

  // Runs a kernel on a grid of (blocks, rows, images) blocks. Does nothing if one of these is 0.
  template <class Launch>
  void Run(const char* kernel, int threads, const Launch& launch, int64_t blocks, int64_t rows = 1,
           int64_t images = 1) const {
    RunAny(kernel, threads, &launch, blocks, rows, images);
  }

 private:
  void RunAny(const char* kernel, int threads, const void* launch, int64_t blocks, int64_t rows, int64_t images) const;

  void* stream_;
};

// Returns the number of blocks of `size` items that hold `count` items.
inline int64_t BlocksOf(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace kerasdet
