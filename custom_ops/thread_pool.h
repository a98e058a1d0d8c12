// Runs loops on TensorFlow's intra-op threads.
#pragma once

#include <cstdint>
#include <functional>

struct TF_OpKernelContext;

namespace kerasdet {

// The threads that TensorFlow gives a CPU kernel, or newly started threads if TensorFlow's are not accessible.
class ThreadPool {
 public:
  explicit ThreadPool(TF_OpKernelContext* context);

  int num_threads() const { return num_threads_; }

  // Calls body(begin, end) for parts of 0..count of at most `chunk` each. The result must not depend on the thread that
  // runs a part. Rethrows std::bad_alloc; `body` must throw nothing else.
  void For(int64_t count, int64_t chunk, const std::function<void(int64_t, int64_t)>& body) const;

 private:
  void* pool_ = nullptr;
  int num_threads_ = 1;
};

}  // namespace kerasdet
