// Detects objects with OpenVINO's C++ API: detect model.xml IMAGE.ppm. The model must be exported with --size H W --input uint8.
// Each line of the output is: class, score, y1, x1, y2, x2 in pixels of the image.
// README.md beside this file says how to build it with the headers and libraries of `pip install openvino`.

#include <iostream>

#include <openvino/openvino.hpp>

#include "../../onnx/examples/picture.h"

int main(int count, char** arguments) try {
  if (count != 3) throw std::runtime_error("usage: detect MODEL IMAGE.ppm");
  ov::Core core;
  const auto model = core.read_model(arguments[1]);
  const auto input = model->input("image");
  if (input.get_partial_shape().is_dynamic() || input.get_element_type() != ov::element::u8)
    throw std::runtime_error("export the model with --size H W --input uint8");
  auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
  auto request = compiled.create_infer_request();
  auto tensor = request.get_tensor("image");
  const int height = int(tensor.get_shape()[1]), width = int(tensor.get_shape()[2]);
  const auto rule = model->get_rt_info<std::string>("kerasdet", "input");
  const Image image = read_ppm(arguments[2]);
  const Scale scale = fit(image, height, width, rule, tensor.data<uint8_t>());
  request.infer();
  const auto values = [&](const char* name) { return request.get_tensor(name).data<float>(); };
  print(image, height, width, scale, int(values("num_detections")[0]), values("detection_boxes"),
        values("detection_classes"), values("detection_scores"));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
