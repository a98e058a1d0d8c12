#include "fake_tensorflow.h"

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
  std::string op;
  TF_DataType type = TF_FLOAT;
  void* (*create)(TF_OpKernelConstruction*);
  void (*compute)(void*, TF_OpKernelContext*);
  void (*destroy)(void*);
};
struct TF_OpKernelConstruction {
  const std::map<std::string, fake::Attribute>* attributes;
  std::string error;
};
struct TF_OpKernelContext {
  const std::vector<fake::Value>* inputs;
  std::map<int, std::unique_ptr<TF_Tensor>> outputs;
  std::map<int, std::unique_ptr<unsigned char[]>> memory;  // of its exact size, so that a step too far is seen
  std::map<int, size_t> sizes;
  std::string error;
};

namespace {

std::vector<TF_KernelBuilder>& Kernels() {
  static std::vector<TF_KernelBuilder> kernels;
  return kernels;
}

constexpr size_t kMostBytes = size_t{1} << 28;

}  // namespace

extern "C" {

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

TF_KernelBuilder* TF_NewKernelBuilder(const char* op, const char*, void* (*create)(TF_OpKernelConstruction*),
                                      void (*compute)(void*, TF_OpKernelContext*), void (*destroy)(void*)) {
  auto* builder = new TF_KernelBuilder;
  builder->op = op;
  builder->create = create;
  builder->compute = compute;
  builder->destroy = destroy;
  return builder;
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
  *value = c->attributes->at(name).number;
}
void TF_OpKernelConstruction_GetAttrFloat(TF_OpKernelConstruction* c, const char* name, float* value, TF_Status*) {
  *value = c->attributes->at(name).real;
}
void TF_OpKernelConstruction_GetAttrBool(TF_OpKernelConstruction* c, const char* name, unsigned char* value,
                                         TF_Status*) {
  *value = c->attributes->at(name).number != 0;
}
void TF_OpKernelConstruction_GetAttrSize(TF_OpKernelConstruction* c, const char* name, int32_t* size, int32_t* total,
                                         TF_Status*) {
  *size = static_cast<int32_t>(c->attributes->at(name).reals.size());
  *total = -1;
}
void TF_OpKernelConstruction_GetAttrFloatList(TF_OpKernelConstruction* c, const char* name, float* values, int most,
                                              TF_Status*) {
  std::memcpy(values, c->attributes->at(name).reals.data(), most * sizeof(float));
}
void TF_OpKernelConstruction_Failure(TF_OpKernelConstruction* c, TF_Status* status) { c->error = status->message; }

int TF_NumInputs(TF_OpKernelContext* context) { return static_cast<int>(context->inputs->size()); }
void TF_GetInput(TF_OpKernelContext* context, int index, TF_Tensor** tensor, TF_Status*) {
  const fake::Value& value = context->inputs->at(index);
  *tensor = new TF_Tensor{value.type, value.shape, const_cast<unsigned char*>(value.bytes.data())};
}
TF_Tensor* TF_AllocateOutput(TF_OpKernelContext* context, int index, TF_DataType type, const int64_t* dims,
                             int num_dims, size_t bytes, TF_Status* status) {
  if (bytes > kMostBytes) {
    TF_SetStatus(status, TF_RESOURCE_EXHAUSTED, "too large");
    return nullptr;
  }
  context->memory[index] = std::make_unique<unsigned char[]>(bytes);
  context->sizes[index] = bytes;
  std::memset(context->memory[index].get(), 0xff, bytes);  // NaN where nothing is written
  const std::vector<int64_t> shape(dims, dims + num_dims);
  context->outputs[index] = std::make_unique<TF_Tensor>(TF_Tensor{type, shape, context->memory[index].get()});
  return new TF_Tensor(*context->outputs[index]);
}
void TF_OpKernelContext_Failure(TF_OpKernelContext* context, TF_Status* status) { context->error = status->message; }

}  // extern "C"

namespace fake {

std::string Run(const std::string& op, TF_DataType type, const std::map<std::string, Attribute>& attributes,
                const std::vector<Value>& inputs, std::vector<Value>* outputs) {
  for (const TF_KernelBuilder& kernel : Kernels()) {
    if (kernel.op != op || kernel.type != type) continue;
    TF_OpKernelConstruction construction{&attributes, ""};
    void* made = kernel.create(&construction);
    if (!construction.error.empty()) return construction.error;
    TF_OpKernelContext context{&inputs, {}, {}, {}, ""};
    kernel.compute(made, &context);
    kernel.destroy(made);
    outputs->clear();
    for (const auto& [index, tensor] : context.outputs) {
      const unsigned char* bytes = context.memory[index].get();
      outputs->push_back({tensor->type, tensor->shape, {bytes, bytes + context.sizes[index]}});
    }
    return context.error;
  }
  std::abort();  // there is no such kernel
}

}  // namespace fake
