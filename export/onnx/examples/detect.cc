// Detects objects with ONNX Runtime's C++ API: detect MODEL.onnx IMAGE.ppm. The model must be exported with --size H W --input uint8.
// Each line of the output is: class, score, y1, x1, y2, x2 in pixels of the image. README.md beside this file says how to build it.

#include <iostream>

#include <onnxruntime_cxx_api.h>

#include "picture.h"

int main(int count, char** arguments) try {
  if (count != 3) throw std::runtime_error("usage: detect MODEL.onnx IMAGE.ppm");
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "detect");
  Ort::Session session(env, arguments[1], Ort::SessionOptions());
  const auto type = session.GetInputTypeInfo(0);
  const auto input = type.GetTensorTypeAndShapeInfo();
  const auto shape = input.GetShape();
  if (shape.at(1) < 0 || input.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
    throw std::runtime_error("export the model with --size H W --input uint8");
  Ort::AllocatorWithDefaultOptions allocator;
  const auto rule = session.GetModelMetadata().LookupCustomMetadataMapAllocated("input", allocator);
  if (!rule) throw std::runtime_error("the model has no entry \"input\": export it with kerasdet export --format onnx");
  const int height = int(shape[1]), width = int(shape[2]);
  const Image image = read_ppm(arguments[2]);
  std::vector<uint8_t> pixels(size_t(3) * height * width);
  const Scale scale = fit(image, height, width, rule.get(), pixels.data());
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto tensor = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const char* inputs[] = {"image"};
  const char* outputs[] = {"detection_boxes", "detection_classes", "detection_scores", "num_detections"};
  const auto found = session.Run(Ort::RunOptions(), inputs, &tensor, 1, outputs, 4);
  const auto values = [&](int index) { return found[index].GetTensorData<float>(); };
  print(image, height, width, scale, int(values(3)[0]), values(0), values(1), values(2));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
