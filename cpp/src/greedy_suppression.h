// Greedy suppression, one box after the other, best first: what nms and detections share.
#pragma once

#include <cstdint>
#include <vector>

#include "fastrcnn_engine/semantics/box_codec.h"
#include "nms_kernels.h"

namespace fastrcnn_engine::cpu {

// The kept boxes of a class lie in one list or several, by area: only boxes of about the same area
// overlap by much.
template <typename T>
class GreedySuppression {
 public:
  // Classes are numbered 0 .. classes - 1. At most about `boxes` will come.
  GreedySuppression(int64_t classes, int64_t boxes, float threshold, bool inclusive);

  // False where a kept box of the same class overlaps this one by more than the threshold.
  // Otherwise this one is kept.
  bool keep(const semantics::Box<T>& box, int64_t class_number);

 private:
  void add(const semantics::Box<T>& box, T area, int64_t list);

  NmsKernels<T> kernels_;
  Suppression<T> rule_;
  int fine_;                      // lists to a doubling of the area, as a power of two
  uint32_t lists_;                // of a class, a power of two
  std::vector<int32_t> newest_;   // (classes, lists): tile, or -1
  std::vector<int32_t> next_;     // of each tile
  std::vector<int32_t> taken_;    // places, of each tile
  std::vector<KeptTile<T>> tiles_;
};

}  // namespace fastrcnn_engine::cpu
