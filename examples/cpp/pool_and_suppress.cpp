// RoI pooling and non-maximum suppression from plain C++: no Python, no torch.
//
//   cmake -S . -B build -DFRCNN_CUDA=OFF && cmake --build build && cmake --install build --prefix engine
//   cmake -S examples/cpp -B build/example -DCMAKE_PREFIX_PATH=$PWD/engine
//   cmake --build build/example && build/example/pool_and_suppress

#include <fastrcnn_engine/build_info.h>
#include <fastrcnn_engine/error.h>
#include <fastrcnn_engine/nms.h>
#include <fastrcnn_engine/roi_pool.h>

#include <cstdint>
#include <iostream>
#include <numeric>
#include <vector>

namespace fr = fastrcnn_engine;

int main() {
  std::cout << "fastrcnn_engine " << fr::build_info().version << ", "
            << fr::build_info().instruction_sets << '\n';

  // One image, two channels, a map of 8 x 8 cells at a sixteenth of the image.
  std::vector<float> features(1 * 2 * 8 * 8);
  std::iota(features.begin(), features.end(), 0.0f);
  std::vector<float> rois = {0, 0, 0, 112, 112,  //
                             0, 32, 48, 79, 95};
  std::vector<float> pooled(2 * 2 * 2 * 2);
  std::vector<int32_t> argmax(pooled.size());

  fr::RoiPoolForward<float> pool;
  pool.features = {features.data(), 1, 2, 8, 8};
  pool.rois = {rois.data(), {2, 5}};
  pool.spatial_scale = 1.0f / 16;
  pool.output = {pooled.data(), 2, 2, 2, 2};
  pool.argmax = {argmax.data(), 2, 2, 2, 2};
  fr::cpu::roi_pool_forward(pool);
  std::cout << "pooled:";
  for (const float value : pooled) std::cout << ' ' << value;
  std::cout << '\n';

  // Three boxes, the first two nearly the same.
  std::vector<float> boxes = {10, 10, 60, 60, 12, 11, 61, 59, 80, 80, 120, 110};
  std::vector<float> scores = {0.8f, 0.9f, 0.7f};
  std::vector<int64_t> keep(scores.size());

  fr::Nms<float> nms;
  nms.boxes = {boxes.data(), {3, 4}};
  nms.scores = {scores.data(), {3}};
  nms.iou_threshold = 0.3f;
  nms.keep = {keep.data(), {3}};
  const int64_t kept = fr::cpu::nms(nms);
  std::cout << "kept:";
  for (int64_t i = 0; i < kept; ++i) std::cout << ' ' << keep[i];
  std::cout << '\n';

  // What does not fit is refused with a message, not a crash.
  rois[5] = 3;
  try {
    fr::cpu::roi_pool_forward(pool);
  } catch (const fr::InvalidArgument& error) {
    std::cout << "refused: " << error.what() << '\n';
  }
}
