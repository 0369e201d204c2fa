// One call of a hot operator inside `measured`, whose instructions callgrind counts.
//
//   count_instructions NAME
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "fastrcnn_engine/nms.h"
#include "fastrcnn_engine/roi_pool.h"
#include "fastrcnn_engine/threads.h"

using namespace fastrcnn_engine;

extern "C" [[gnu::noinline]] void measured(const std::function<void()>& call) { call(); }

int main(int, char** arguments) {
  set_num_threads(1);
  constexpr int64_t c = 64, h = 38, w = 63, r = 64, many = 300, p = 7, boxes = 2000;
  std::mt19937 bits(7);
  const auto uniform = [&bits](float low, float high) {
    return low + (high - low) * (static_cast<float>(bits() >> 8) / (1 << 24));
  };
  std::vector<float> features(c * h * w), rois, output(many * c * p * p), corners, scores;
  for (float& x : features) x = uniform(-1, 1);
  for (int64_t i = 0; i < many; ++i) {
    const float x = uniform(0, 700), y = uniform(0, 400);
    rois.insert(rois.end(), {0, x, y, x + uniform(20, 300), y + uniform(20, 200)});
  }
  for (int64_t i = 0; i < boxes; ++i) {
    const float x = uniform(0, 900), y = uniform(0, 900);
    corners.insert(corners.end(), {x, y, x + uniform(50, 100), y + uniform(50, 100)});
    scores.push_back(uniform(0, 1));
  }
  std::vector<int32_t> argmax(output.size());
  std::vector<int64_t> keep(boxes);

  std::map<std::string, std::function<void()>> calls;
  for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
    const std::string suffix = layout == Layout::nchw ? "" : ", channels-last";
    RoiPoolForward<float> forward;
    forward.features = {features.data(), 1, c, h, w, layout};
    forward.spatial_scale = 1 / 16.0f;
    forward.rois = {rois.data(), {many, 5}};
    forward.output = {output.data(), many, c, p, p, layout};
    calls["values of many" + suffix] = [=] { cpu::roi_pool_forward(forward); };
    forward.rois = {rois.data(), {r, 5}};
    forward.output = {output.data(), r, c, p, p, layout};
    calls["values" + suffix] = [=] { cpu::roi_pool_forward(forward); };
    forward.argmax = {argmax.data(), r, c, p, p, layout};
    calls["argmax" + suffix] = [=] { cpu::roi_pool_forward(forward); };
    RoiPoolBackward<float> backward;
    backward.grad_output = {output.data(), r, c, p, p, layout};
    backward.argmax = {argmax.data(), r, c, p, p, layout};
    backward.rois = forward.rois;
    backward.grad_input = {features.data(), 1, c, h, w, layout};
    calls["gradient" + suffix] = [=] {
      cpu::roi_pool_backward(backward);
    };
  }
  calls["nms"] = [&] {
    Nms<float> call;
    call.boxes = {corners.data(), {boxes, 4}};
    call.scores = {scores.data(), {boxes}};
    call.iou_threshold = 0.3f;
    call.keep = {keep.data(), {boxes}};
    cpu::nms(call);
  };
  const std::string name = arguments[1];
  if (name.starts_with("gradient")) calls["argmax" + name.substr(8)]();
  measured(calls.at(name));
}
