// Code that every op shares: registration, and C++ types for inputs, outputs and errors.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include <new>
#include <vector>

#include "cuda/driver.h"
#include "cuda/gpu_device.h"
#include "tf_c_api.h"
#include "thread_pool.h"

namespace kerasdet {

// A user's mistake, which Python gets as tf.errors.InvalidArgumentError. (std::string would need a newer libstdc++ or
// glibc.)
class InvalidArgument : public std::exception {
 public:
  __attribute__((format(printf, 2, 3))) explicit InvalidArgument(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text_, sizeof(text_), format, arguments);
    va_end(arguments);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[256];
};

class Status {
 public:
  Status() : status_(TF_NewStatus()) {}
  ~Status() { TF_DeleteStatus(status_); }
  Status(const Status&) = delete;
  Status& operator=(const Status&) = delete;

  operator TF_Status*() { return status_; }
  void Check() const {
    if (TF_GetCode(status_) != TF_OK) throw InvalidArgument("%s", TF_Message(status_));
  }

 private:
  TF_Status* status_;
};

// An input or output tensor.
class Tensor {
 public:
  explicit Tensor(TF_Tensor* tensor) : tensor_(tensor) {}
  ~Tensor() {
    if (tensor_ != nullptr) TF_DeleteTensor(tensor_);
  }
  Tensor(Tensor&& other) noexcept : tensor_(other.tensor_) { other.tensor_ = nullptr; }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  int rank() const { return TF_NumDims(tensor_); }
  int64_t dim(int index) const { return TF_Dim(tensor_, index); }
  std::vector<int64_t> shape() const {
    std::vector<int64_t> shape;
    for (int i = 0; i < rank(); ++i) shape.push_back(dim(i));
    return shape;
  }
  template <class T>
  T* data() const {
    return static_cast<T*>(TF_TensorData(tensor_));
  }

 private:
  TF_Tensor* tensor_;
};

// Gives a kernel its attributes when TensorFlow creates it.
class Construction {
 public:
  explicit Construction(TF_OpKernelConstruction* construction) : construction_(construction) {}

  int64_t Int(const char* name) const {
    int64_t value = 0;
    Status status;
    TF_OpKernelConstruction_GetAttrInt64(construction_, name, &value, status);
    status.Check();
    return value;
  }
  float Float(const char* name) const {
    float value = 0;
    Status status;
    TF_OpKernelConstruction_GetAttrFloat(construction_, name, &value, status);
    status.Check();
    return value;
  }
  bool Bool(const char* name) const {
    unsigned char value = 0;
    Status status;
    TF_OpKernelConstruction_GetAttrBool(construction_, name, &value, status);
    status.Check();
    return value != 0;
  }
  std::vector<float> Floats(const char* name) const {
    int32_t size = 0, total = 0;
    Status status;
    TF_OpKernelConstruction_GetAttrSize(construction_, name, &size, &total, status);
    status.Check();
    std::vector<float> values(size);
    TF_OpKernelConstruction_GetAttrFloatList(construction_, name, values.data(), size, status);
    status.Check();
    return values;
  }

 private:
  TF_OpKernelConstruction* construction_;
};

// Uninitialised scratch memory. (The overflow check of new[] would need a newer libstdc++.)
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<T*>(::operator new(size * sizeof(T)))) {}
  ~Buffer() { ::operator delete(data_); }
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }

 private:
  T* data_;
};

// Returns the number of values of a shape; throws if a dimension is negative or there are more than 2**48 values.
inline int64_t CheckedSize(std::initializer_list<int64_t> shape, const char* what) {
  int64_t size = 1;
  for (const int64_t dim : shape) {
    if (dim < 0) throw InvalidArgument("%s has a negative dimension.", what);
    if (__builtin_mul_overflow(size, dim, &size) || size > (int64_t{1} << 48)) {
      throw InvalidArgument("%s is too large.", what);
    }
  }
  return size;
}

// One call of a kernel.
class Context {
 public:
  explicit Context(TF_OpKernelContext* context) : context_(context) {}

  int num_inputs() const { return TF_NumInputs(context_); }

  // Returns an input after checking its shape; -1 in `shape` allows any length.
  Tensor Input(int index, const char* name, std::initializer_list<int64_t> shape) const {
    TF_Tensor* raw = nullptr;
    Status status;
    TF_GetInput(context_, index, &raw, status);
    status.Check();
    Tensor tensor(raw);
    bool fits = tensor.rank() == static_cast<int>(shape.size());
    for (size_t i = 0; fits && i < shape.size(); ++i) {
      fits = shape.begin()[i] < 0 || shape.begin()[i] == tensor.dim(static_cast<int>(i));
    }
    if (!fits) {
      char found[96], expected[96];
      Print(tensor.shape(), found);
      Print(shape, expected);
      throw InvalidArgument("%s has the shape %s, expected %s.", name, found, expected);
    }
    return tensor;
  }

  Tensor Output(int index, TF_DataType type, std::initializer_list<int64_t> shape) const {
    const size_t bytes = CheckedSize(shape, "The result") * Width(type);
    Status status;
    TF_Tensor* raw =
        TF_AllocateOutput(context_, index, type, shape.begin(), static_cast<int>(shape.size()), bytes, status);
    if (raw == nullptr || TF_GetCode(status) != TF_OK) throw std::bad_alloc();
    return Tensor(raw);
  }

  // Allocates uninitialised memory on the kernel's device.
  Tensor Scratch(int64_t bytes) const {
    Status status;
    TF_Tensor* raw = TF_AllocateTemp(context_, TF_UINT8, &bytes, 1, nullptr, status);
    if (raw == nullptr || TF_GetCode(status) != TF_OK) throw std::bad_alloc();
    return Tensor(raw);
  }

  ThreadPool threads() const { return ThreadPool(context_); }
  Stream stream() const { return Stream(StreamOf(context_)); }

 private:
  static size_t Width(TF_DataType type) {
    switch (type) {
      case TF_FLOAT:
      case TF_INT32:
        return 4;
      case TF_HALF:
      case TF_BFLOAT16:
        return 2;
      default:
        return 1;
    }
  }
  template <size_t kSize>
  static void Print(const std::vector<int64_t>& shape, char (&text)[kSize]) {
    size_t used = std::snprintf(text, kSize, "(");
    for (size_t i = 0; i < shape.size() && used < kSize; ++i) {
      const char* comma = i == 0 ? "" : ", ";
      used += shape[i] < 0 ? std::snprintf(text + used, kSize - used, "%s?", comma)
                           : std::snprintf(text + used, kSize - used, "%s%lld", comma, static_cast<long long>(shape[i]));
    }
    if (used < kSize) std::snprintf(text + used, kSize - used, ")");
  }

  TF_OpKernelContext* context_;
};

// Runs `body`; converts an exception to a status and passes it to `fail(status)`.
template <class Body, class Fail>
void Guarded(const Body& body, const Fail& fail) {
  const auto report = [&](TF_Code code, const char* message) {
    Status status;
    TF_SetStatus(status, code, message);
    fail(status);
  };
  try {
    body();
  } catch (const std::bad_alloc&) {
    report(TF_RESOURCE_EXHAUSTED, "Out of memory.");
  } catch (const InvalidArgument& error) {
    report(TF_INVALID_ARGUMENT, error.what());
  } catch (const std::exception& error) {
    report(TF_INTERNAL, error.what());
  }
}

// Registers an op with unknown output shapes. The Python functions that call the op set static shapes.
inline void RegisterOp(const char* name, std::initializer_list<const char*> inputs,
                       std::initializer_list<const char*> outputs, std::initializer_list<const char*> attrs) {
  TF_OpDefinitionBuilder* builder = TF_NewOpDefinitionBuilder(name);
  for (const char* attr : attrs) TF_OpDefinitionBuilderAddAttr(builder, attr);
  for (const char* input : inputs) TF_OpDefinitionBuilderAddInput(builder, input);
  for (const char* output : outputs) TF_OpDefinitionBuilderAddOutput(builder, output);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, TF_ShapeInferenceContextSetUnknownShape);
  Status status;
  TF_RegisterOpDefinition(builder, status);
  status.Check();
}

// Registers `Kernel`, a class with Kernel(const Construction&) and void Compute(const Context&) const.
template <class Kernel>
void RegisterKernel(const char* op, const char* device, const char* type_attr = nullptr, TF_DataType type = TF_FLOAT,
                    std::initializer_list<const char*> host_memory = {}) {
  const auto create = [](TF_OpKernelConstruction* construction) -> void* {
    void* kernel = nullptr;
    Guarded([&] { kernel = new Kernel(Construction(construction)); },
            [&](TF_Status* status) { TF_OpKernelConstruction_Failure(construction, status); });
    return kernel;
  };
  const auto compute = [](void* kernel, TF_OpKernelContext* context) {
    Guarded([&] { static_cast<const Kernel*>(kernel)->Compute(Context(context)); },
            [&](TF_Status* status) { TF_OpKernelContext_Failure(context, status); });
  };
  const auto destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  TF_KernelBuilder* builder = TF_NewKernelBuilder(op, device, create, compute, destroy);
  Status status;
  if (type_attr != nullptr) TF_KernelBuilder_TypeConstraint(builder, type_attr, type, status);
  for (const char* argument : host_memory) TF_KernelBuilder_HostMemory(builder, argument);
  TF_RegisterKernelBuilder(op, builder, status);
  status.Check();
}

}  // namespace kerasdet
