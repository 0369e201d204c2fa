// Prints a number for the bits of each operator's results, on inputs that are the same everywhere.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "fastrcnn_engine/nms.h"
#include "fastrcnn_engine/roi_pool.h"
#include "fastrcnn_engine/semantics/half.h"
#include "fastrcnn_engine/smooth_l1.h"

using namespace fastrcnn_engine;

namespace {

// Exact in float32, so that no rounding is the machine's own.
struct Numbers {
  std::mt19937 bits;
  float between(int low, int high) { return low + (high - low) * static_cast<float>(bits() >> 16) / 65536; }
};

template <typename T>
void print(const std::string& what, const std::vector<T>& numbers) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  const auto* byte = reinterpret_cast<const unsigned char*>(numbers.data());
  for (size_t i = 0; i < numbers.size() * sizeof(T); ++i) hash = (hash ^ byte[i]) * 1099511628211u;
  std::printf("%s: %016llx\n", what.c_str(), static_cast<unsigned long long>(hash));
}

template <typename T>
T from_float(float x) {
  if constexpr (sizeof(T) == 2) {
    const auto bits = semantics::narrow<float, uint32_t>(T{}, x);
    T narrow;
    const auto low = static_cast<uint16_t>(bits);
    std::memcpy(&narrow, &low, sizeof(narrow));
    return narrow;
  } else {
    return x;
  }
}

template <typename T, typename Index>
void pool(const std::string& type, int64_t r, Layout layout, bool relu) {
  constexpr int64_t n = 2, c = 70, h = 38, w = 50, p = 7;
  Numbers numbers{std::mt19937(7)};
  std::vector<T> features, output(r * c * p * p), gradient(n * c * h * w);
  std::vector<Index> argmax(output.size());
  std::vector<float> rois;
  for (int64_t i = 0; i < n * c * h * w; ++i)
    features.push_back(from_float<T>(numbers.between(relu ? 0 : -4, 4)));
  for (int64_t i = 0; i < r; ++i) {
    const float x = numbers.between(-50, 700), y = numbers.between(-50, 500);
    const float width = numbers.between(-20, 400), height = numbers.between(-20, 300);
    rois.insert(rois.end(), {static_cast<float>(i % n), x, y, x + width, y + height});
  }
  const std::string call = "roi_pool, " + type + ", " + std::to_string(r) + " RoIs" +
                           (layout == Layout::nchw ? "" : ", channels-last");
  RoiPoolForward<T, Index> forward;
  forward.features = {features.data(), n, c, h, w, layout};
  forward.rois = {rois.data(), {r, 5}};
  forward.spatial_scale = 1 / 16.0f;
  forward.output = {output.data(), r, c, p, p, layout};
  cpu::roi_pool_forward(forward);
  print(call, output);
  forward.argmax = {argmax.data(), r, c, p, p, layout};
  cpu::roi_pool_forward(forward);
  print(call + ", with argmax", output);
  print(call + ", argmax", argmax);
  RoiPoolBackward<T, Index> backward;
  backward.grad_output = {output.data(), r, c, p, p, layout};
  backward.argmax = {argmax.data(), r, c, p, p, layout};
  backward.rois = forward.rois;
  backward.grad_input = {gradient.data(), n, c, h, w, layout};
  cpu::roi_pool_backward(backward);
  print(call + ", gradient", gradient);
}

void suppress(int64_t count, float threshold) {
  Numbers numbers{std::mt19937(3)};
  std::vector<float> boxes, scores;
  for (int64_t i = 0; i < count; ++i) {
    const float x = numbers.between(0, 900), y = numbers.between(0, 900);
    boxes.insert(boxes.end(), {x, y, x + numbers.between(20, 150), y + numbers.between(20, 150)});
    scores.push_back(numbers.between(0, 1));
  }
  std::vector<int64_t> keep(count);
  Nms<float> call;
  call.boxes = {boxes.data(), {count, 4}};
  call.scores = {scores.data(), {count}};
  call.iou_threshold = threshold;
  call.keep = {keep.data(), {count}};
  cpu::nms(call);
  print("nms, " + std::to_string(count) + " boxes", keep);
}

void box_loss(int64_t rows) {
  Numbers numbers{std::mt19937(5)};
  std::vector<float> deltas, targets, gradient(rows * 84), loss(1);
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < rows * 84; ++i) deltas.push_back(numbers.between(-3, 3));
  for (int64_t i = 0; i < rows * 4; ++i) targets.push_back(numbers.between(-3, 3));
  for (int64_t i = 0; i < rows; ++i) labels.push_back(numbers.bits() % 21);
  SmoothL1<float> call;
  call.deltas = {deltas.data(), {rows, 84}};
  call.targets = {targets.data(), {rows, 4}};
  call.labels = labels.data();
  call.normalizer = static_cast<double>(rows);
  cpu::smooth_l1_forward(call, loss.data());
  print("smooth_l1", loss);
  const float upstream = 1;
  cpu::smooth_l1_backward(call, &upstream, View<float, 2>{gradient.data(), {rows, 84}});
  print("smooth_l1, gradient", gradient);
}

}  // namespace

int main() {
  for (const Layout layout : {Layout::nchw, Layout::nhwc})
    for (const int64_t r : {5, 64, 300}) {
      pool<float, int32_t>("float32", r, layout, true);
      pool<double, int32_t>("float64", r, layout, false);
      pool<float16, uint16_t>("float16", r, layout, false);
      pool<bfloat16, int32_t>("bfloat16", r, layout, true);
    }
  suppress(3000, 0.5f);
  suppress(300, 0.3f);
  box_loss(500);
}
