// Reads a picture and fits it into the input of a file of `kerasdet export --size H W --input uint8`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
  int height, width;
  std::vector<uint8_t> pixels;  // RGB, row by row
};

// Reads a binary PPM file of 8 bits (P6), as `convert image.jpg image.ppm` writes it.
inline Image read_ppm(const std::string& path) {
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

// Interpolates a channel bilinearly at (y, x); (0, 0) is the centre of the first pixel.
inline double sample(const Image& image, double y, double x, int channel) {
  y = std::clamp(y, 0.0, image.height - 1.0), x = std::clamp(x, 0.0, image.width - 1.0);
  const int y0 = int(y), x0 = int(x);
  const int y1 = std::min(y0 + 1, image.height - 1), x1 = std::min(x0 + 1, image.width - 1);
  const auto at = [&](int row, int column) { return image.pixels[(size_t(row) * image.width + column) * 3 + channel]; };
  const double above = at(y0, x0) * (1 - (x - x0)) + at(y0, x1) * (x - x0);
  const double below = at(y1, x0) * (1 - (x - x0)) + at(y1, x1) * (x - x0);
  return above * (1 - (y - y0)) + below * (y - y0);
}

struct Scale {
  double y, x;
};

// Resizes the image and writes it to the top left of the input; returns the scale of the image. `rule` is the entry "input"
// of the file's metadata: "... stretched to ...", or, for an image that keeps its aspect ratio, "... filled at the bottom
// or right with (R, G, B)."
inline Scale fit(const Image& image, int height, int width, const std::string& rule, uint8_t* pixels) {
  Scale scale{double(height) / image.height, double(width) / image.width};
  double rgb[3] = {};
  int h = height, w = width;
  if (rule.find("stretched to") == std::string::npos) {
    const auto start = rule.rfind('(');
    if (start == std::string::npos || std::sscanf(&rule[start], "(%lf, %lf, %lf", &rgb[0], &rgb[1], &rgb[2]) != 3)
      throw std::runtime_error("the model's entry \"input\" names no filling: export it with --size H W");
    scale.y = scale.x = std::min(scale.y, scale.x);
    h = std::max(int(std::lround(image.height * scale.y)), 1), w = std::max(int(std::lround(image.width * scale.x)), 1);
  }
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c) {
        const bool inside = y < h && x < w;
        const double value = inside ? sample(image, (y + 0.5) / scale.y - 0.5, (x + 0.5) / scale.x - 0.5, c) : rgb[c];
        *pixels++ = uint8_t(value + 0.5);
      }
  return scale;
}

// Prints class, score, y1, x1, y2, x2 in pixels of the image for each object that reaches into the image.
inline void print(const Image& image, int height, int width, Scale scale, int found, const float* boxes, const float* classes,
                  const float* scores) {
  const double sides[] = {height / scale.y, width / scale.x}, ends[] = {double(image.height), double(image.width)};
  for (int i = 0; i < found; ++i) {
    double box[4];
    for (int side = 0; side < 4; ++side) box[side] = std::clamp(boxes[4 * i + side] * sides[side % 2], 0.0, ends[side % 2]);
    if (box[0] < box[2] && box[1] < box[3])
      std::printf("%d %.6f %.3f %.3f %.3f %.3f\n", int(classes[i]), scores[i], box[0], box[1], box[2], box[3]);
  }
}
