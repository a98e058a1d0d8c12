#include "tensorflow.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

struct TF_Status {
  TF_Code code = TF_OK;
  std::string message;
};
struct TF_Tensor {
  TF_DataType type;
  std::vector<int64_t> shape;
  void* data;
};
struct TF_OpDefinitionBuilder {};
struct TF_KernelBuilder {
  std::string op, device;
  TF_DataType type = TF_FLOAT;
  void* (*create)(TF_OpKernelConstruction*);
  void (*compute)(void*, TF_OpKernelContext*);
  void (*destroy)(void*);
};
struct TF_OpKernelConstruction {
  std::map<std::string, fake::Attribute> attributes;
  std::string error;
};
// One call of a kernel.
struct TF_OpKernelContext {
  std::vector<TF_Tensor> inputs;
  std::function<void*(int index, const TF_Tensor& tensor, size_t bytes)> allocate;  // returns null if it cannot
  std::function<void*(size_t bytes)> scratch;
  void* stream;
  std::string error;
};

namespace {

std::vector<TF_KernelBuilder>& Kernels() {
  static std::vector<TF_KernelBuilder> kernels;
  return kernels;
}

const TF_KernelBuilder* Find(const std::string& op, const std::string& device, TF_DataType type) {
  for (const TF_KernelBuilder& kernel : Kernels()) {
    if (kernel.op == op && kernel.device == device && kernel.type == type) return &kernel;
  }
  return nullptr;
}

struct Made {
  const TF_KernelBuilder* builder;
  void* kernel;
};

constexpr size_t kMostBytes = size_t{1} << 28;

// Allocates exactly `bytes`, so that sanitizers see accesses past the end. NaN marks values that an op did not write.
using Memory = std::unique_ptr<unsigned char[]>;
Memory Filled(size_t bytes) {
  Memory memory = std::make_unique<unsigned char[]>(bytes);
  std::memset(memory.get(), 0xff, bytes);
  return memory;
}

// Imitates the classes that hold TensorFlow's stream (see cuda/gpu_device.cc).
struct Stream {
  void* const* functions;
  void* stream;
};
void* const& StreamIn(const Stream* stream) { return stream->stream; }
void* const kStreamFunctions[] = {nullptr, nullptr, reinterpret_cast<void*>(StreamIn)};
struct GpuDevice {
  const Stream* stream;
};

}  // namespace

bool fake::deterministic = false;

extern "C" {

const void* _ZNK10tensorflow15OpKernelContext12eigen_deviceIN5Eigen9GpuDeviceEEERKT_v(const void* context) {
  static thread_local Stream stream;
  static thread_local GpuDevice device;
  stream = {kStreamFunctions, static_cast<const TF_OpKernelContext*>(context)->stream};
  device.stream = &stream;
  return &device;
}
bool _ZN3tsl21OpDeterminismRequiredEv() { return fake::deterministic; }

TF_Status* TF_NewStatus() { return new TF_Status; }
void TF_DeleteStatus(TF_Status* status) { delete status; }
void TF_SetStatus(TF_Status* status, TF_Code code, const char* message) {
  status->code = code;
  status->message = message;
}
TF_Code TF_GetCode(const TF_Status* status) { return status->code; }
const char* TF_Message(const TF_Status* status) { return status->message.c_str(); }

void TF_DeleteTensor(TF_Tensor* tensor) { delete tensor; }
TF_DataType TF_TensorType(const TF_Tensor* tensor) { return tensor->type; }
int TF_NumDims(const TF_Tensor* tensor) { return static_cast<int>(tensor->shape.size()); }
int64_t TF_Dim(const TF_Tensor* tensor, int index) { return tensor->shape.at(index); }
void* TF_TensorData(const TF_Tensor* tensor) { return tensor->data; }

TF_OpDefinitionBuilder* TF_NewOpDefinitionBuilder(const char*) { return new TF_OpDefinitionBuilder; }
void TF_OpDefinitionBuilderAddAttr(TF_OpDefinitionBuilder*, const char*) {}
void TF_OpDefinitionBuilderAddInput(TF_OpDefinitionBuilder*, const char*) {}
void TF_OpDefinitionBuilderAddOutput(TF_OpDefinitionBuilder*, const char*) {}
void TF_OpDefinitionBuilderSetShapeInferenceFunction(TF_OpDefinitionBuilder*,
                                                     void (*)(TF_ShapeInferenceContext*, TF_Status*)) {}
void TF_RegisterOpDefinition(TF_OpDefinitionBuilder* builder, TF_Status*) { delete builder; }
void TF_ShapeInferenceContextSetUnknownShape(TF_ShapeInferenceContext*, TF_Status*) {}

TF_KernelBuilder* TF_NewKernelBuilder(const char* op, const char* device, void* (*create)(TF_OpKernelConstruction*),
                                      void (*compute)(void*, TF_OpKernelContext*), void (*destroy)(void*)) {
  return new TF_KernelBuilder{op, device, TF_FLOAT, create, compute, destroy};
}
void TF_KernelBuilder_TypeConstraint(TF_KernelBuilder* builder, const char*, TF_DataType type, TF_Status*) {
  builder->type = type;
}
void TF_KernelBuilder_HostMemory(TF_KernelBuilder*, const char*) {}
void TF_RegisterKernelBuilder(const char*, TF_KernelBuilder* builder, TF_Status*) {
  Kernels().push_back(*builder);
  delete builder;
}

void TF_OpKernelConstruction_GetAttrInt64(TF_OpKernelConstruction* c, const char* name, int64_t* value, TF_Status*) {
  *value = c->attributes.at(name).number;
}
void TF_OpKernelConstruction_GetAttrFloat(TF_OpKernelConstruction* c, const char* name, float* value, TF_Status*) {
  *value = c->attributes.at(name).real;
}
void TF_OpKernelConstruction_GetAttrBool(TF_OpKernelConstruction* c, const char* name, unsigned char* value,
                                         TF_Status*) {
  *value = c->attributes.at(name).number != 0;
}
void TF_OpKernelConstruction_GetAttrSize(TF_OpKernelConstruction* c, const char* name, int32_t* size, int32_t* total,
                                         TF_Status*) {
  *size = static_cast<int32_t>(c->attributes.at(name).reals.size());
  *total = -1;
}
void TF_OpKernelConstruction_GetAttrFloatList(TF_OpKernelConstruction* c, const char* name, float* values, int most,
                                              TF_Status*) {
  std::memcpy(values, c->attributes.at(name).reals.data(), most * sizeof(float));
}
void TF_OpKernelConstruction_Failure(TF_OpKernelConstruction* c, TF_Status* status) { c->error = status->message; }

int TF_NumInputs(TF_OpKernelContext* context) { return static_cast<int>(context->inputs.size()); }
void TF_GetInput(TF_OpKernelContext* context, int index, TF_Tensor** tensor, TF_Status*) {
  *tensor = new TF_Tensor(context->inputs.at(index));
}
TF_Tensor* TF_AllocateOutput(TF_OpKernelContext* context, int index, TF_DataType type, const int64_t* dims,
                             int num_dims, size_t bytes, TF_Status* status) {
  TF_Tensor tensor{type, {dims, dims + num_dims}, nullptr};
  tensor.data = context->allocate(index, tensor, bytes);
  if (tensor.data != nullptr) return new TF_Tensor(tensor);
  TF_SetStatus(status, TF_RESOURCE_EXHAUSTED, "too large");
  return nullptr;
}
TF_Tensor* TF_AllocateTemp(TF_OpKernelContext* context, TF_DataType type, const int64_t* dims, int num_dims,
                           TF_AllocatorAttributes*, TF_Status* status) {
  TF_Tensor tensor{type, {dims, dims + num_dims}, context->scratch(dims[0])};
  if (tensor.data != nullptr) return new TF_Tensor(tensor);
  TF_SetStatus(status, TF_RESOURCE_EXHAUSTED, "too large");
  return nullptr;
}
void TF_OpKernelContext_Failure(TF_OpKernelContext* context, TF_Status* status) { context->error = status->message; }

}  // extern "C"

namespace fake {

std::string Run(const std::string& op, const std::string& device, TF_DataType type,
                const std::map<std::string, Attribute>& attributes, const std::vector<Value>& inputs,
                std::vector<Value>* outputs) {
  const TF_KernelBuilder* builder = Find(op, device, type);
  if (builder == nullptr) std::abort();
  TF_OpKernelConstruction construction{attributes, ""};
  void* kernel = builder->create(&construction);
  if (!construction.error.empty()) return construction.error;
  std::map<int, TF_Tensor> tensors;
  std::map<int, Memory> memory;
  std::map<int, size_t> sizes;
  std::vector<Memory> scratch;
  TF_OpKernelContext context{};
  for (const Value& input : inputs) {
    context.inputs.push_back({input.type, input.shape, const_cast<unsigned char*>(input.bytes.data())});
  }
  context.allocate = [&](int index, const TF_Tensor& tensor, size_t bytes) -> void* {
    if (bytes > kMostBytes) return nullptr;
    memory[index] = Filled(bytes);
    sizes[index] = bytes;
    tensors[index] = tensor;
    return memory[index].get();
  };
  context.scratch = [&](size_t bytes) -> void* {
    if (bytes > kMostBytes) return nullptr;
    scratch.push_back(Filled(bytes));
    return scratch.back().get();
  };
  builder->compute(kernel, &context);
  builder->destroy(kernel);
  outputs->clear();
  for (const auto& [index, tensor] : tensors) {
    const unsigned char* bytes = memory[index].get();
    outputs->push_back({tensor.type, tensor.shape, {bytes, bytes + sizes[index]}});
  }
  return context.error;
}

}  // namespace fake

extern "C" {

__attribute__((visibility("default"))) void* fake_make(const char* op, const char* device, int64_t type,
                                                       const FakeAttribute* attributes, int64_t count, char* error) {
  const TF_KernelBuilder* builder = Find(op, device, static_cast<TF_DataType>(type));
  if (builder == nullptr) {
    std::snprintf(error, 512, "There is no kernel of %s for a %s: the library %s.", op, device,
                  std::strcmp(device, "GPU") == 0 ? "finds no libcuda.so.1, or was built without NVRTC" : "lacks it");
    return nullptr;
  }
  TF_OpKernelConstruction construction;
  for (int64_t i = 0; i < count; ++i) {
    const FakeAttribute& given = attributes[i];
    construction.attributes[given.name] = {given.number, given.real, {given.reals, given.reals + given.num_reals}};
  }
  void* kernel = builder->create(&construction);
  std::snprintf(error, 512, "%s", construction.error.c_str());
  return construction.error.empty() ? new Made{builder, kernel} : nullptr;
}

__attribute__((visibility("default"))) bool fake_call(void* kernel, const FakeTensor* inputs, int64_t num_inputs,
                                                      const FakeTensor* outputs, int64_t num_outputs,
                                                      void* (*scratch)(int64_t), void* stream, char* error) {
  std::vector<Memory> host;
  TF_OpKernelContext context{};
  for (int64_t i = 0; i < num_inputs; ++i) {
    const FakeTensor& input = inputs[i];
    context.inputs.push_back(
        {static_cast<TF_DataType>(input.type), {input.shape, input.shape + input.rank}, input.data});
  }
  context.allocate = [&](int index, const TF_Tensor& tensor, size_t) -> void* {
    if (index >= num_outputs) return nullptr;
    const FakeTensor& output = outputs[index];
    const bool fits = tensor.type == output.type && static_cast<int64_t>(tensor.shape.size()) == output.rank &&
                      std::memcmp(tensor.shape.data(), output.shape, output.rank * sizeof(int64_t)) == 0;
    return fits ? output.data : nullptr;
  };
  context.scratch = [&](size_t bytes) -> void* {
    if (scratch != nullptr) return scratch(static_cast<int64_t>(bytes));
    host.push_back(Filled(bytes));
    return host.back().get();
  };
  context.stream = stream;
  const auto* made = static_cast<const Made*>(kernel);
  made->builder->compute(made->kernel, &context);
  std::snprintf(error, 512, "%s", context.error.c_str());
  return context.error.empty();
}

__attribute__((visibility("default"))) void fake_set_determinism(bool deterministic) {
  fake::deterministic = deterministic;
}

}  // extern "C"
