// Runs every op on random shapes, attributes and values, including extreme ones, and checks invariants:
//
//   fuzz SEED CASES
//
// It is built with sanitizers, which check memory accesses and arithmetic. Each case runs twice and must give bit-identical
// results. Ops with GPU kernels also run on an emulated GPU, whose results must agree with the CPU's.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "../emulation/tensorflow.h"
#include "../half.h"

namespace {

using fake::Attribute;
using fake::Value;

std::mt19937_64 generator;

int64_t Int(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
float Real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }
bool Chance(int one_in) { return Int(1, one_in) == 1; }

Attribute Number(int64_t value) { return {value, 0, {}}; }
Attribute RealNumber(float value) { return {0, value, {}}; }

size_t Width(TF_DataType type) { return type == TF_HALF || type == TF_BFLOAT16 ? 2 : 4; }

int64_t Size(const std::vector<int64_t>& shape) {
  int64_t size = 1;
  for (const int64_t dim : shape) size *= dim;
  return size;
}

template <class Make>
Value Filled(const std::vector<int64_t>& shape, const Make& make) {
  Value value{TF_FLOAT, shape, std::vector<unsigned char>(Size(shape) * 4)};
  for (int64_t i = 0; i < Size(shape); ++i) {
    const auto number = make();
    static_assert(sizeof(number) == 4);
    std::memcpy(value.bytes.data() + 4 * i, &number, 4);
  }
  return value;
}

// Returns random bits, or the bits of small numbers.
Value Noise(TF_DataType type, const std::vector<int64_t>& shape, bool tame) {
  Value value{type, shape, std::vector<unsigned char>(Size(shape) * Width(type))};
  for (auto& byte : value.bytes) byte = static_cast<unsigned char>(Int(0, 255));
  for (size_t i = 0; tame && i < value.bytes.size(); i += Width(type)) {
    const float number = Real(-4, 4);
    kerasdet::Half half;
    kerasdet::BFloat16 bfloat16;
    kerasdet::FromFloat(number, &half);
    kerasdet::FromFloat(number, &bfloat16);
    const void* source = type == TF_FLOAT ? static_cast<const void*>(&number) : type == TF_HALF ? &half.bits : &bfloat16.bits;
    std::memcpy(value.bytes.data() + i, source, Width(type));
  }
  return value;
}

float Wild(float usual) {
  if (!Chance(40)) return usual;
  const float wild[] = {std::nanf(""), INFINITY, -INFINITY, 1e30f, -1e30f, 3e38f, 1e-40f, 0.0f, -0.0f, 2147483648.0f};
  return wild[Int(0, 9)];
}

std::vector<int64_t> Shape(std::vector<int64_t> shape) {
  int64_t& dim = shape[Int(0, static_cast<int64_t>(shape.size()) - 1)];
  if (Chance(50)) dim += dim > 0 && Chance(2) ? -1 : 1;
  if (Chance(100)) shape.pop_back();
  return shape;
}

Value Boxes(std::vector<int64_t> shape, float extent) {
  return Filled(Shape(shape), [&] { return Wild(Real(-0.3f * extent, 1.3f * extent)); });
}

void Require(bool holds, const char* what, const char* op = "") {
  if (holds) return;
  std::fprintf(stderr, "%s %s\n", op, what);
  std::abort();
}

// Returns whether values agree up to rounding.
bool IsClose(const Value& one, const Value& other) {
  if (one.type == TF_INT32) return one.bytes == other.bytes;
  const auto at = [](const Value& value, int64_t i) {
    const unsigned char* place = value.bytes.data() + i * static_cast<int64_t>(Width(value.type));
    uint32_t bits = 0;
    std::memcpy(&bits, place, Width(value.type));
    const auto narrow = static_cast<uint16_t>(bits);
    return value.type == TF_FLOAT  ? kerasdet::FromBits(bits)
           : value.type == TF_HALF ? kerasdet::ToFloat(kerasdet::Half{narrow})
                                   : kerasdet::ToFloat(kerasdet::BFloat16{narrow});
  };
  const float relative = one.type == TF_FLOAT ? 1e-4f : 1e-2f;
  for (int64_t i = 0; i < Size(one.shape); ++i) {
    const float a = at(one, i), b = at(other, i);
    if (!(std::fabs(a - b) <= 1e-4f + relative * std::fabs(a)) && !(std::isnan(a) && std::isnan(b))) return false;
  }
  return true;
}

// Runs an op twice; returns whether it accepted the inputs.
bool RunTwice(const char* op, const char* device, TF_DataType type, const std::map<std::string, Attribute>& attributes,
              const std::vector<Value>& inputs, std::vector<Value>* outputs, std::string* error) {
  std::vector<Value> again;
  *error = fake::Run(op, device, type, attributes, inputs, outputs);
  Require(fake::Run(op, device, type, attributes, inputs, &again) == *error, "The errors differ.", op);
  if (!error->empty()) return false;
  for (size_t i = 0; i < again.size(); ++i) Require(again[i].bytes == (*outputs)[i].bytes, "The results differ.", op);
  return true;
}

// Runs an op on the CPU and the GPU. If `tame` is false, sums can lose all precision and the results may differ.
bool RunOnBoth(const char* op, TF_DataType type, const std::map<std::string, Attribute>& attributes,
               const std::vector<Value>& inputs, bool tame, std::vector<Value>* outputs) {
  std::vector<Value> of_gpu;
  std::string error, error_of_gpu;
  const bool runs = RunTwice(op, "CPU", type, attributes, inputs, outputs, &error);
  fake::deterministic = true;
  const bool runs_on_gpu = RunTwice(op, "GPU", type, attributes, inputs, &of_gpu, &error_of_gpu);
  fake::deterministic = false;
  Require(fake::Run(op, "GPU", type, attributes, inputs, &of_gpu) == error_of_gpu, "The errors differ.", op);
  Require(runs || !runs_on_gpu, "The GPU accepts inputs that the CPU rejects.", op);
  if (!runs || !runs_on_gpu || !tame) return runs;
  for (size_t i = 0; i < outputs->size(); ++i) Require(IsClose((*outputs)[i], of_gpu[i]), "The devices differ.", op);
  return true;
}

void FuzzNms() {
  const int64_t batch = Int(0, 3), count = Chance(20) ? Int(5000, 30000) : Int(0, 200), most = Int(-1, 60);
  const bool by_class = Chance(2);
  const int classes = static_cast<int>(Chance(10) ? 1 << 30 : Int(1, 5));
  const std::vector<Value> inputs = {
      Boxes({batch, count, 4}, 50),
      Filled(Shape({batch, count}), [] { return Wild(static_cast<float>(Int(0, 50)) / 50); }),
      Filled(Shape({batch, by_class ? count : 0}), [&] { return static_cast<int32_t>(Int(-classes, classes)); }),
  };
  std::vector<Value> outputs;
  const std::map<std::string, Attribute> attributes = {{"max_detections", Number(most)},
                                                       {"iou_threshold", RealNumber(Wild(Real(0, 1)))},
                                                       {"score_threshold", RealNumber(Wild(Real(-1, 1)))},
                                                       {"by_class", Number(by_class)}};
  if (!RunOnBoth("Kerasdet>Nms", TF_FLOAT, attributes, inputs, true, &outputs)) return;
  const auto* indices = reinterpret_cast<const int32_t*>(outputs[0].bytes.data());
  const auto* counts = reinterpret_cast<const int32_t*>(outputs[1].bytes.data());
  for (int64_t i = 0; i < batch; ++i) {
    for (int64_t j = 0; j < most; ++j) {
      const int32_t index = indices[i * most + j];
      Require(j < counts[i] ? index >= 0 && index < count : index == -1, "An index is out of range.");
    }
  }
}

void FuzzRoiAlign() {
  const TF_DataType types[] = {TF_FLOAT, TF_HALF, TF_BFLOAT16};
  const TF_DataType type = types[Int(0, 2)];
  const int64_t levels = Int(1, 4), batch = Int(0, 2), boxes = Int(0, 9), channels = Chance(4) ? Int(60, 300) : Int(0, 20);
  const int64_t height = Int(0, 8), width = Int(1, 8);
  const bool tame = Chance(2);
  std::map<std::string, Attribute> attributes = {
      {"output_height", Number(height)},          {"output_width", Number(width)},
      {"sampling_ratio", Number(Int(-1, 4))},     {"aligned", Number(Int(0, 1))},
      {"lowest_level", Number(Int(0, 3))},        {"canonical_size", RealNumber(Wild(Real(1, 40)))},
      {"canonical_level", RealNumber(Real(0, 5))}, {"level_epsilon", RealNumber(0)},
  };
  std::vector<Value> inputs, shapes, outputs;
  for (int64_t level = 0; level < levels; ++level) {
    attributes["spatial_scales"].reals.push_back(Wild(Real(0, 1)));
    const std::vector<int64_t> shape = {batch, Int(0, 20), Int(0, 20), channels};
    inputs.push_back(Noise(type, Shape(shape), tame));
    const int wild = Chance(200) ? static_cast<int>(Int(-5, std::numeric_limits<int32_t>::max())) : -1;
    size_t next = 0;
    shapes.push_back(Filled({4}, [&] {
      const int64_t dim = shape[next++];
      return static_cast<int32_t>(wild >= 0 && next == 2 ? wild : dim);
    }));
  }
  inputs.push_back(Boxes({batch, boxes, 4}, 40));
  RunOnBoth("Kerasdet>RoiAlign", type, attributes, inputs, tame, &outputs);
  shapes.push_back(inputs.back());
  shapes.push_back(Noise(type, Shape({batch, boxes, height, width, channels}), tame));
  RunOnBoth("Kerasdet>RoiAlignGrad", type, attributes, shapes, tame, &outputs);
}

void FuzzDeformConv() {
  const int64_t groups = Int(1, 3), deformable = Int(1, 3), channels = groups * deformable * Int(0, 12) + Int(0, 20) / 20;
  const int64_t taps_y = Int(0, 3) + Chance(2), taps_x = Int(1, 3), taps = taps_y * taps_x;
  const int64_t batch = Int(0, 2), height = Int(0, 6), width = Int(0, 6);
  const bool masked = Chance(2), tame = Chance(2);
  const std::map<std::string, Attribute> attributes = {
      {"kernel_height", Number(taps_y)}, {"kernel_width", Number(taps_x)}, {"stride", Number(Int(1, 3))},
      {"padding", Number(Int(0, 3))},    {"dilation", Number(Int(1, 3))},  {"groups", Number(groups)},
      {"masked", Number(masked)},        {"deformable_groups", Number(deformable)}};
  const auto real = [&] { return tame ? Real(-4, 4) : Wild(Real(-4, 4)); };
  std::vector<Value> outputs, inputs = {
      Filled(Shape({batch, Int(0, 8), Int(0, 8), channels}), real),
      Filled(Shape({batch, height, width, deformable * taps * 2}), [] { return Wild(Real(-4, 4)); }),
      Filled(Shape({batch, height, width, masked ? deformable * taps : 0}), real)};
  RunOnBoth("Kerasdet>DeformColumns", TF_FLOAT, attributes, inputs, tame, &outputs);
  inputs.push_back(Filled(Shape({groups, batch * height * width, taps * (channels / groups)}), real));
  RunOnBoth("Kerasdet>DeformColumnsGrad", TF_FLOAT, attributes, inputs, tame, &outputs);
}

void FuzzMasks() {
  const int64_t count = Int(0, 4), cells = Int(0, 30);
  std::vector<int64_t> size = {Int(0, 200), Int(0, 200)};
  if (Chance(50)) size[Int(0, 1)] = Int(-5, std::numeric_limits<int32_t>::max());
  const int64_t height = size[0], width = size[1];
  size_t next = 0;
  const std::vector<Value> inputs = {Filled(Shape({count, cells, cells}), [] { return Wild(Real(0, 1)); }),
                                     Boxes({count, 4}, 200),
                                     Filled({2}, [&] { return static_cast<int32_t>(size[next++]); })};
  const std::map<std::string, Attribute> attributes = {{"torchvision", Number(Int(0, 1))},
                                                       {"threshold", RealNumber(Wild(Real(0.01f, 0.99f)))}};
  std::vector<Value> pasted, coded;
  std::string error;
  const bool done = RunTwice("Kerasdet>PasteMasks", "CPU", TF_FLOAT, attributes, inputs, &pasted, &error);
  if (!RunTwice("Kerasdet>EncodeMasks", "CPU", TF_FLOAT, attributes, inputs, &coded, &error) || !done) return;
  // Decoding must return the bitmap.
  const int64_t number_of_codes = coded[1].shape[0];
  const unsigned char* character = coded[0].bytes.data();
  const auto* lengths = reinterpret_cast<const int32_t*>(coded[1].bytes.data());
  for (int64_t number = 0; number < number_of_codes; ++number) {
    const unsigned char* end = character + lengths[number];
    const unsigned char* bitmap = pasted[0].bytes.data() + number * height * width;
    std::vector<int64_t> runs;
    int64_t pixel = 0;
    while (character < end) {
      int64_t value = 0;
      for (int shift = 0;; shift += 5) {
        const int64_t bits = *character++ - 48;
        value |= (bits & 31) << shift;
        if (bits & 32) continue;
        if (bits & 16) value -= int64_t{1} << (shift + 5);
        break;
      }
      runs.push_back(runs.size() > 2 ? value + runs[runs.size() - 2] : value);
      Require(runs.back() >= 0 && pixel + runs.back() <= height * width, "A run is too long.");
      for (const int64_t stop = pixel + runs.back(); pixel < stop; ++pixel) {
        Require(bitmap[pixel % height * width + pixel / height] == (runs.size() - 1) % 2, "The code is not the mask.");
      }
    }
    Require(pixel == height * width, "The code is too short.");
  }
}

void FuzzResize() {
  Value image{TF_UINT8, Shape({Int(0, 40), Int(0, 40), 3}), {}};
  image.bytes.resize(Size(image.shape));
  for (auto& byte : image.bytes) byte = static_cast<unsigned char>(Int(0, 255));
  const int64_t height = Int(0, 60), width = Int(0, 60);
  const int64_t top = Int(0, height), left = Int(0, width);
  std::vector<int64_t> numbers = {height, width, top, left, Int(top, height), Int(left, width)};
  if (Chance(50)) numbers[Int(0, 5)] = Int(-5, std::numeric_limits<int32_t>::max());
  size_t next = 0;
  const auto number = [&] { return static_cast<int32_t>(numbers[next++]); };
  std::vector<Value> inputs = {image};
  inputs.push_back(Filled({2}, number));
  inputs.push_back(Filled({4}, number));
  std::vector<Value> outputs;
  std::string error;
  RunTwice("Kerasdet>Resize", "CPU", TF_FLOAT, {{"opencv", Number(Int(0, 1))}}, inputs, &outputs, &error);
}

void FuzzCropMasks() {
  const int64_t count = Int(0, 4), height = Int(1, 30), width = Int(1, 30);
  std::vector<int32_t> lengths, numbers;
  for (int64_t i = 0; i < count; ++i) {
    int64_t left = height * width;
    numbers.push_back(0);
    while (left > 0 || numbers.back() == 0) {
      const int64_t run = std::min(left, Int(0, 90));
      lengths.push_back(static_cast<int32_t>(Chance(300) ? Int(-9, std::numeric_limits<int32_t>::max()) : run));
      left -= run;
      ++numbers.back();
    }
    if (Chance(50)) numbers.back() += static_cast<int32_t>(Int(-9, 9));
  }
  size_t length = 0, number = 0, corner = 0, side = 0;
  float box[4] = {};
  const std::vector<Value> inputs = {
      Filled({static_cast<int64_t>(lengths.size())}, [&] { return lengths[length++]; }),
      Filled({count}, [&] { return numbers[number++]; }),
      Filled(Shape({count, 4}), [&] {
        const size_t i = corner++ % 4;
        const auto limit = static_cast<float>(i % 2 ? width : height);
        box[i] = i < 2 ? Real(0, limit) : Chance(4) ? limit : Real(box[i - 2], limit);
        return Wild(Chance(3) ? std::floor(box[i]) : box[i]);
      }),
      Filled({2}, [&] { return static_cast<int32_t>(side++ ? width : height); })};
  std::vector<Value> outputs;
  std::string error;
  RunTwice("Kerasdet>CropMasks", "CPU", TF_FLOAT, {{"size", Number(Int(0, 20))}}, inputs, &outputs, &error);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t seed = argc > 1 ? std::atoll(argv[1]) : 0, cases = argc > 2 ? std::atoll(argv[2]) : 1000;
  for (int64_t i = 0; i < cases; ++i) {
    generator.seed(seed + i);
    FuzzNms();
    FuzzRoiAlign();
    FuzzDeformConv();
    FuzzMasks();
    FuzzResize();
    FuzzCropMasks();
  }
  std::printf("%lld cases of each op, from seed %lld\n", static_cast<long long>(cases), static_cast<long long>(seed));
}
