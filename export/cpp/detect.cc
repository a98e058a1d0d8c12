// Detects objects in image files with a SavedModel of `kerasdet export`, without Python.
//
//   detect SAVED_MODEL IMAGE...
//
// For each image it prints one line with the image's name and number of detections, then one line per detection: class,
// score, and ymin, xmin, ymax, xmax as fractions of the image. If an image cannot be read or decoded, the program names
// it on standard error, continues with the other images and exits with status 1. If the model does not load, the exit
// status is 2.

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/platform/tstring.h"

namespace {

bool ReadFile(const char* path, std::string* content) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return false;
  content->assign(std::istreambuf_iterator<char>(file), {});
  return !file.bad();
}

void Print(const char* name, const tensorflow::Tensor& boxes, const tensorflow::Tensor& scores,
           const tensorflow::Tensor& classes, int count) {
  const auto box = boxes.tensor<float, 3>();
  std::printf("%s %d\n", name, count);
  for (int i = 0; i < count; ++i) {
    std::printf("%d %.7f %.7f %.7f %.7f %.7f\n", static_cast<int>(classes.matrix<float>()(0, i)),
                scores.matrix<float>()(0, i), box(0, i, 0), box(0, i, 1), box(0, i, 2), box(0, i, 3));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s SAVED_MODEL IMAGE...\n", argv[0]);
    return 2;
  }
  tensorflow::SavedModelBundle bundle;
  const auto loaded = tensorflow::LoadSavedModel({}, {}, argv[1], {"serve"}, &bundle);
  if (!loaded.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[1], loaded.ToString().c_str());
    return 2;
  }
  const auto& signature = bundle.GetSignatures().at("encoded");
  const std::string input = signature.inputs().at("image_bytes").name();
  std::vector<std::string> outputs;
  for (const char* name : {"detection_boxes", "detection_scores", "detection_classes", "num_detections"}) {
    outputs.push_back(signature.outputs().at(name).name());
  }
  int status = 0;
  for (int i = 2; i < argc; ++i) {
    std::string content;
    if (!ReadFile(argv[i], &content)) {
      std::fprintf(stderr, "%s: cannot be read\n", argv[i]);
      status = 1;
      continue;
    }
    tensorflow::Tensor image(tensorflow::DT_STRING, {1});
    image.vec<tensorflow::tstring>()(0) = content;
    std::vector<tensorflow::Tensor> found;
    const auto ran = bundle.GetSession()->Run({{input, image}}, outputs, {}, &found);
    if (!ran.ok()) {
      std::fprintf(stderr, "%s: %s\n", argv[i], std::string(ran.message()).c_str());
      status = 1;
      continue;
    }
    Print(argv[i], found[0], found[1], found[2], static_cast<int>(found[3].vec<float>()(0)));
  }
  return status;
}
