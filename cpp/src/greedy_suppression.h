// Greedy suppression, one box after the other, best first: what nms and detections share.
#pragma once

#include <cstdint>
#include <vector>

#include "fastrcnn_engine/semantics/box_codec.h"
#include "nms_kernels.h"

namespace fastrcnn_engine::cpu {

// The kept boxes of a class lie in one list and, when it gets long, in several by area: only boxes of about
// the same area overlap by much.
template <typename T>
class GreedySuppression {
 public:
  // Classes are numbered 0 .. classes - 1.
  GreedySuppression(int64_t classes, float threshold, bool inclusive);

  // False where a kept box of the same class overlaps this one by more than the threshold.
  // Otherwise this one is kept.
  bool keep(const semantics::Box<T>& box, int64_t class_number);

 private:
  struct ClassLists {
    int64_t first;  // of lists_
    uint32_t mask;  // how many there are, a power of two, less one
  };

  void add(const semantics::Box<T>& box, T area, const ClassLists& of);
  void split(ClassLists& of);

  NmsKernels<T> kernels_;
  SuppressionRule<T> rule_;
  int64_t most_in_one_list_;
  std::vector<ClassLists> classes_;
  std::vector<KeptList> lists_;
  std::vector<KeptTile<T>> tiles_;
};

}  // namespace fastrcnn_engine::cpu
