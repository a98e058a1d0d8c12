// As much of TensorFlow as the ops ask for, so that they run without it under sanitizers.
#pragma once

#include <cstdint>
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
std::string Run(const std::string& op, TF_DataType type, const std::map<std::string, Attribute>& attributes,
                const std::vector<Value>& inputs, std::vector<Value>* outputs);

}  // namespace fake
