#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>

#include <cstdio>
#include <vector>

#if defined(__x86_64__) && defined(__GLIBC__)
// Binds to the symbol versions that every glibc has, not to those of glibc 2.34.
__asm__(".symver dlopen, dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#endif

// compile.py writes this table. A row of zeros ends it.
struct Image {
  int64_t is_ptx, architecture;  // 86 for 8.6
  const void* data;
};
extern "C" __attribute__((visibility("hidden"))) const Image kerasdet_cuda_images[];

namespace kerasdet {
namespace {

// The driver functions that this library uses. Their interfaces have not changed since CUDA 4.
struct Driver {
  int (*cuGetErrorString)(int, const char**);
  int (*cuCtxGetCurrent)(void** context);
  int (*cuCtxGetDevice)(int* device);
  int (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  int (*cuModuleLoadData)(void** module, const void* image);
  int (*cuModuleGetFunction)(void** function, void* module, const char* name);
  int (*cuLaunchKernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                        void** extra);
  int (*cuMemsetD32Async)(uint64_t memory, unsigned word, size_t count, void* stream);
};

template <class Function>
bool Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

// Returns null if the machine has no driver.
const Driver* OpenDriver() {
  static Driver driver;
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  const bool complete = library != nullptr && Find(library, "cuGetErrorString", &driver.cuGetErrorString) &&
                        Find(library, "cuCtxGetCurrent", &driver.cuCtxGetCurrent) &&
                        Find(library, "cuCtxGetDevice", &driver.cuCtxGetDevice) &&
                        Find(library, "cuDeviceGetAttribute", &driver.cuDeviceGetAttribute) &&
                        Find(library, "cuModuleLoadData", &driver.cuModuleLoadData) &&
                        Find(library, "cuModuleGetFunction", &driver.cuModuleGetFunction) &&
                        Find(library, "cuLaunchKernel", &driver.cuLaunchKernel) &&
                        Find(library, "cuMemsetD32Async", &driver.cuMemsetD32Async);
  return complete ? &driver : nullptr;
}

const Driver* TheDriver() {
  static const Driver* const driver = OpenDriver();
  return driver;
}

void Check(int code, const char* what) {
  if (code != 0) throw DriverError(what, code);
}

// Returns the newest machine code that runs on a GPU, or the PTX if there is none. A GPU also runs machine code for older
// GPUs of its generation.
const Image& ImageFor(int major, int minor) {
  const Image* best = nullptr;
  for (const Image* image = kerasdet_cuda_images; image->data != nullptr; ++image) {
    const bool runs = image->architecture / 10 == major && image->architecture % 10 <= minor;
    if (image->is_ptx != 0 ? best == nullptr : runs) best = image;
  }
  return *best;
}

void* LoadModule() {
  constexpr int kMajor = 75, kMinor = 76;  // attributes of the compute capability
  int device = 0, major = 0, minor = 0;
  Check(TheDriver()->cuCtxGetDevice(&device), "finding the GPU");
  Check(TheDriver()->cuDeviceGetAttribute(&major, kMajor, device), "reading the GPU's compute capability");
  Check(TheDriver()->cuDeviceGetAttribute(&minor, kMinor, device), "reading the GPU's compute capability");
  void* module = nullptr;
  Check(TheDriver()->cuModuleLoadData(&module, ImageFor(major, minor).data), "loading the kernels");
  return module;
}

// Returns the kernels of the current context and loads them once per context.
void* ModuleOfContext() {
  struct Loaded {
    void *context, *module;
  };
  static std::vector<Loaded>* const all = new std::vector<Loaded>;
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  struct Lock {
    Lock() { pthread_mutex_lock(&mutex); }
    ~Lock() { pthread_mutex_unlock(&mutex); }
  } const lock;
  void* context = nullptr;
  Check(TheDriver()->cuCtxGetCurrent(&context), "finding the context");
  for (const Loaded& loaded : *all) {
    if (loaded.context == context) return loaded.module;
  }
  all->push_back({context, LoadModule()});
  return all->back().module;
}

}  // namespace

DriverError::DriverError(const char* what, int code) {
  const char* reason = nullptr;
  if (TheDriver()->cuGetErrorString(code, &reason) != 0 || reason == nullptr) reason = "unknown error";
  std::snprintf(text_, sizeof(text_), "CUDA error (%s): %s (%d).", what, reason, code);
}

bool HasDriver() { return kerasdet_cuda_images[0].data != nullptr && TheDriver() != nullptr; }

void Stream::Fill(void* memory, uint32_t word, int64_t count) const {
  if (count == 0) return;
  Check(TheDriver()->cuMemsetD32Async(reinterpret_cast<uint64_t>(memory), word, static_cast<size_t>(count), stream_),
        "setting memory");
}

void Stream::RunAny(const char* kernel, int threads, const void* launch, int64_t blocks, int64_t rows,
                    int64_t images) const {
  if (blocks == 0 || rows == 0 || images == 0) return;
  void* function = nullptr;
  Check(TheDriver()->cuModuleGetFunction(&function, ModuleOfContext(), kernel), kernel);
  void* parameters[] = {const_cast<void*>(launch)};
  Check(TheDriver()->cuLaunchKernel(function, static_cast<unsigned>(blocks), static_cast<unsigned>(rows),
                                    static_cast<unsigned>(images), static_cast<unsigned>(threads), 1, 1, 0, stream_,
                                    parameters, nullptr),
        kernel);
}

}  // namespace kerasdet
