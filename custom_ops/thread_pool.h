// Loops over TensorFlow's intra-op threads.
#pragma once

#include <cstdint>
#include <functional>

struct TF_OpKernelContext;

namespace kerasdet {

// The threads that TensorFlow gives a CPU kernel, or own ones where it cannot be asked.
class ThreadPool {
 public:
  explicit ThreadPool(TF_OpKernelContext* context);

  int num_threads() const { return num_threads_; }

  // Calls body(begin, end) for parts of 0..count of at most `chunk` each. Which thread gets which part is left to
  // chance, so a body must not depend on that. Rethrows std::bad_alloc; a body must throw nothing else.
  void For(int64_t count, int64_t chunk, const std::function<void(int64_t, int64_t)>& body) const;

 private:
  void* pool_ = nullptr;
  int num_threads_ = 1;
};

}  // namespace kerasdet
