// As much of TensorFlow as the ops ask for, so that they run without it: under sanitizers, on an emulated GPU, or on a
// real one beside another framework.
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

// Runs a registered kernel; returns its error, empty where there was none.
std::string Run(const std::string& op, const std::string& device, TF_DataType type,
                const std::map<std::string, Attribute>& attributes, const std::vector<Value>& inputs,
                std::vector<Value>* outputs);

// What kernels hear of determinism.
extern bool deterministic;

}  // namespace fake

// For Python (see without_tensorflow.py): a kernel is made once and called with tensors that lie somewhere.
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

// Null where there is no such kernel. `error` has room for 512 characters.
void* fake_make(const char* op, const char* device, int64_t type, const FakeAttribute* attributes, int64_t count,
                char* error);

// Returns whether it went well. `scratch` gives memory that lasts until the call is over, the next one's on the GPU; where
// it is null, it is the host's.
bool fake_call(void* kernel, const FakeTensor* inputs, int64_t num_inputs, const FakeTensor* outputs,
               int64_t num_outputs, void* (*scratch)(int64_t bytes), void* stream, char* error);

void fake_set_determinism(bool deterministic);
}
