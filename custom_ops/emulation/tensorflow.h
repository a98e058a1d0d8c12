// Implements the part of TensorFlow that the ops use. They then run without TensorFlow: under sanitizers, on an
// emulated GPU, or on a real GPU beside another framework.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../tf_c_api.h"

namespace fake {

struct Attribute {
  int64_t number = 0;
  float real = 0;
  std::vector<float> reals;
};

struct Value {
  TF_DataType type;
  std::vector<int64_t> shape;
  std::vector<unsigned char> bytes;
};

// Runs a registered kernel; returns its error message, or an empty string.
std::string Run(const std::string& op, const std::string& device, TF_DataType type,
                const std::map<std::string, Attribute>& attributes, const std::vector<Value>& inputs,
                std::vector<Value>* outputs);

// Whether kernels must give deterministic results.
extern bool deterministic;

}  // namespace fake

// The interface for Python (see without_tensorflow.py): it creates a kernel once and calls it with any tensors.
extern "C" {

struct FakeAttribute {
  const char* name;
  int64_t number;
  float real;
  const float* reals;
  int64_t num_reals;
};

struct FakeTensor {
  int64_t type, rank, shape[8];
  void* data;
};

// Returns null if no such kernel is registered. `error` has room for 512 characters.
void* fake_make(const char* op, const char* device, int64_t type, const FakeAttribute* attributes, int64_t count,
                char* error);

// Returns whether the call succeeded. `scratch` allocates scratch memory, which must last until the next call's work on
// the GPU begins. If `scratch` is null, scratch memory is the host's and lasts until the call returns.
bool fake_call(void* kernel, const FakeTensor* inputs, int64_t num_inputs, const FakeTensor* outputs,
               int64_t num_outputs, void* (*scratch)(int64_t bytes), void* stream, char* error);

void fake_set_determinism(bool deterministic);
}
