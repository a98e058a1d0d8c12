// Runs the compiled kernels through the driver's library, libcuda.so.1, which need not be there.
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

// Whether the library has kernels in it and the machine a driver.
bool HasDriver();

// Work for the GPU whose context is current, in order.
class Stream {
 public:
  explicit Stream(void* stream) : stream_(stream) {}

  // Sets `count` words of the GPU's memory.
  void Fill(void* memory, uint32_t word, int64_t count) const;

  // Runs a kernel, as many blocks along each axis as are given; none is well.
  template <class Launch>
  void Run(const char* kernel, int threads, const Launch& launch, int64_t blocks, int64_t rows = 1,
           int64_t images = 1) const {
    RunAny(kernel, threads, &launch, blocks, rows, images);
  }

 private:
  void RunAny(const char* kernel, int threads, const void* launch, int64_t blocks, int64_t rows, int64_t images) const;

  void* stream_;
};

// How many blocks of `size` hold `count`.
inline int64_t BlocksOf(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace kerasdet
