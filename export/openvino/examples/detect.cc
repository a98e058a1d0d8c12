// Detects objects by OpenVINO's C++ API: detect model.xml IMAGE.ppm. The model must be exported with --size H W --input uint8.
// Each line of the output is: class, score, y1, x1, y2, x2 in pixels of the image.
// README.md beside this file says how to build it with the headers and libraries of `pip install openvino`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

struct Image {
  int height, width;
  std::vector<uint8_t> pixels;  // RGB, row by row
};

// Reads a binary PPM file of 8 bits (P6), as `convert image.jpg image.ppm` writes it.
Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  Image image;
  int largest = 0;
  if (!(file >> kind >> image.width >> image.height >> largest) || kind != "P6" || largest != 255)
    throw std::runtime_error(path + " is not a binary PPM image of 8 bits");
  file.get();
  image.pixels.resize(size_t(3) * image.height * image.width);
  if (!file.read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size()))
    throw std::runtime_error(path + " is cut short");
  return image;
}

// Value of a channel between pixels, bilinear, pixel centres at 0.5.
double sample(const Image& image, double y, double x, int channel) {
  y = std::clamp(y, 0.0, image.height - 1.0), x = std::clamp(x, 0.0, image.width - 1.0);
  const int y0 = int(y), x0 = int(x);
  const int y1 = std::min(y0 + 1, image.height - 1), x1 = std::min(x0 + 1, image.width - 1);
  const auto at = [&](int row, int column) { return image.pixels[(size_t(row) * image.width + column) * 3 + channel]; };
  const double above = at(y0, x0) * (1 - (x - x0)) + at(y0, x1) * (x - x0);
  const double below = at(y1, x0) * (1 - (x - x0)) + at(y1, x1) * (x - x0);
  return above * (1 - (y - y0)) + below * (y - y0);
}

// Reads the colour of the part of the input that the image does not fill: "... filled at the bottom or right with (R, G, B)."
std::vector<double> filling(const std::string& rule) {
  std::vector<double> rgb(3);
  const auto start = rule.rfind('(');
  if (start == std::string::npos || std::sscanf(&rule[start], "(%lf, %lf, %lf", &rgb[0], &rgb[1], &rgb[2]) != 3)
    throw std::runtime_error("the model's entry \"input\" names no filling: export it with --size H W");
  return rgb;
}

// Fits the image into the input at its aspect ratio, top left; returns its scale.
double letterbox(const Image& image, int height, int width, const std::vector<double>& filling, uint8_t* pixels) {
  const double scale = std::min(double(height) / image.height, double(width) / image.width);
  const int h = std::max(int(std::lround(image.height * scale)), 1);
  const int w = std::max(int(std::lround(image.width * scale)), 1);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c)
        *pixels++ = y < h && x < w
                        ? uint8_t(sample(image, (y + 0.5) / scale - 0.5, (x + 0.5) / scale - 0.5, c) + 0.5)
                        : uint8_t(filling[c] + 0.5);
  return scale;
}

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
  const auto colour = filling(model->get_rt_info<std::string>("kerasdet", "input"));
  const double scale = letterbox(read_ppm(arguments[2]), height, width, colour, tensor.data<uint8_t>());
  request.infer();
  const float* boxes = request.get_tensor("detection_boxes").data<float>();
  const float* classes = request.get_tensor("detection_classes").data<float>();
  const float* scores = request.get_tensor("detection_scores").data<float>();
  const int found = int(request.get_tensor("num_detections").data<float>()[0]);
  const double sides[] = {height / scale, width / scale};
  for (int i = 0; i < found; ++i) {
    std::printf("%d %.6f", int(classes[i]), scores[i]);
    for (int side = 0; side < 4; ++side) std::printf(" %.3f", boxes[4 * i + side] * sides[side % 2]);
    std::printf("\n");
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
