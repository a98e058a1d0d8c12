// Finds TensorFlow's thread pool, to which the C API gives no access. An exported function of OpKernelContext returns it;
// the layout of its classes is the same in TensorFlow 2.15 to 2.21, and only this file depends on it. If the function is
// missing, or if its result is implausible, loops run on threads that this file starts. Remove this workaround when the C
// API gives access to the pool.

#include "thread_pool.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <new>

#if defined(__x86_64__) && defined(__GLIBC__)
// Binds to the symbol version that every glibc has, not to the one of glibc 2.34.
__asm__(".symver pthread_create, pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_detach, pthread_detach@GLIBC_2.2.5");
#endif

// tensorflow::OpKernelContext::eigen_device<Eigen::ThreadPoolDevice>() const
extern "C" __attribute__((weak)) const void*
_ZNK10tensorflow15OpKernelContext12eigen_deviceIN5Eigen16ThreadPoolDeviceEEERKT_v(const void*);

namespace kerasdet {
namespace {

// The start of Eigen::ThreadPoolInterface. Its first virtual function is void Schedule(std::function<void()>). A C++
// class would not work: the compiler sees that nothing derives from it and breaks the virtual call.
struct EigenThreadPool {
  struct Functions {
    void (*schedule)(EigenThreadPool*, std::function<void()>);
  };
  const Functions* functions;
};

// The first members of Eigen::ThreadPoolDevice.
struct EigenThreadPoolDevice {
  EigenThreadPool* pool;
  int num_threads;
};

constexpr int kMaxThreads = 4096;

// A loop whose parts several threads take. A thread may start after all parts are done, so the last thread that releases
// the loop deletes it. (std::shared_ptr would need glibc 2.32.)
class Loop {
 public:
  Loop(int64_t count, int64_t chunk, int64_t most_threads, const std::function<void(int64_t, int64_t)>* body)
      : count_(count),
        chunk_(chunk),
        num_parts_((count + chunk - 1) / chunk),
        num_threads_(std::min(most_threads, num_parts_)),
        body_(body),
        num_holders_(num_threads_) {
    pthread_mutex_init(&mutex_, nullptr);
    pthread_cond_init(&finished_, nullptr);
  }
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Takes parts until none is left.
  void Work() {
    int64_t done = 0;
    for (int64_t part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < num_parts_; ++done) {
      try {
        (*body_)(part * chunk_, std::min(count_, (part + 1) * chunk_));
      } catch (const std::bad_alloc&) {
        out_of_memory_.store(true);
      }
    }
    if (done == 0) return;
    pthread_mutex_lock(&mutex_);
    num_done_ += done;
    if (num_done_ == num_parts_) pthread_cond_signal(&finished_);
    pthread_mutex_unlock(&mutex_);
  }

  // Waits until all parts are done, and returns whether memory ran out.
  bool Wait() {
    pthread_mutex_lock(&mutex_);
    while (num_done_ < num_parts_) pthread_cond_wait(&finished_, &mutex_);
    pthread_mutex_unlock(&mutex_);
    return out_of_memory_.load();
  }

  void LetGo() {
    if (num_holders_.fetch_sub(1) == 1) delete this;
  }

  int64_t num_threads() const { return num_threads_; }

 private:
  ~Loop() {
    pthread_cond_destroy(&finished_);
    pthread_mutex_destroy(&mutex_);
  }

  const int64_t count_, chunk_, num_parts_, num_threads_;
  const std::function<void(int64_t, int64_t)>* const body_;
  std::atomic<int64_t> num_holders_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> out_of_memory_{false};
  int64_t num_done_ = 0;
  pthread_mutex_t mutex_;
  pthread_cond_t finished_;
};

void WorkAndLetGo(Loop* loop) {
  loop->Work();
  loop->LetGo();
}

void StartThread(Loop* loop) {
  const auto work = [](void* argument) -> void* {
    WorkAndLetGo(static_cast<Loop*>(argument));
    return nullptr;
  };
  pthread_t thread;
  if (pthread_create(&thread, nullptr, work, loop) == 0) {
    pthread_detach(thread);
  } else {
    loop->LetGo();  // the other threads do its parts
  }
}

}  // namespace

ThreadPool::ThreadPool(TF_OpKernelContext* context) {
  const auto device_of = _ZNK10tensorflow15OpKernelContext12eigen_deviceIN5Eigen16ThreadPoolDeviceEEERKT_v;
  if (device_of != nullptr) {
    const auto* device = static_cast<const EigenThreadPoolDevice*>(device_of(context));
    if (device != nullptr && device->pool != nullptr && device->num_threads >= 1 && device->num_threads <= kMaxThreads) {
      pool_ = device->pool;
      num_threads_ = device->num_threads;
      return;
    }
  }
  num_threads_ = static_cast<int>(std::clamp(sysconf(_SC_NPROCESSORS_ONLN), 1L, 64L));
}

void ThreadPool::For(int64_t count, int64_t chunk, const std::function<void(int64_t, int64_t)>& body) const {
  if (count <= 0) return;
  chunk = std::max<int64_t>(chunk, 1);
  if (num_threads_ == 1 || count <= chunk) return body(0, count);
  Loop* const loop = new Loop(count, chunk, num_threads_, &body);
  for (int64_t i = 1; i < loop->num_threads(); ++i) {
    if (pool_ != nullptr) {
      auto* pool = static_cast<EigenThreadPool*>(pool_);
      pool->functions->schedule(pool, [loop] { WorkAndLetGo(loop); });
    } else {
      StartThread(loop);
    }
  }
  loop->Work();
  const bool out_of_memory = loop->Wait();
  loop->LetGo();
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace kerasdet
