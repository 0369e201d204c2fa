#include "fastrcnn_engine/nms.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "fastrcnn_engine/semantics/box_rows.h"
#include "fastrcnn_engine/semantics/iou.h"
#include "views.h"

namespace fastrcnn_engine {

template <typename T>
void check(const BoxIou<T>& call) {
  require_boxes(call.boxes1, "boxes1");
  require_boxes(call.boxes2, "boxes2");
  require_shape(call.iou, "output", call.boxes1.shape[0], call.boxes2.shape[0]);
}

template <typename T>
void check(const Nms<T>& call) {
  require_boxes(call.boxes, "boxes");
  require_rows(call.scores, "scores", call.boxes.shape[0], "boxes");
  require_rows(call.keep, "keep", call.boxes.shape[0], "boxes");
  require_iou_threshold(call.iou_threshold, "iou_threshold");
}

template void check(const BoxIou<float>&);
template void check(const BoxIou<double>&);
template void check(const Nms<float>&);
template void check(const Nms<double>&);

namespace cpu {
namespace {

using semantics::box_at;

using semantics::Box;

// The boxes kept so far, one array per coordinate so that the compiler compares several at once.
template <typename T>
class KeptBoxes {
 public:
  void clear() { x1_.clear(), y1_.clear(), x2_.clear(), y2_.clear(); }
  void add(const Box<T>& box) {
    x1_.push_back(box.x1), y1_.push_back(box.y1), x2_.push_back(box.x2), y2_.push_back(box.y2);
  }
  bool suppress(const Box<T>& box, float threshold, T side) const {
    constexpr size_t block = 16;  // compared without a branch, then asked once
    const size_t n = x1_.size();
    for (size_t begin = 0; begin < n; begin += block) {
      const size_t end = std::min(n, begin + block);
      int hits = 0;
      for (size_t i = begin; i < end; ++i)
        hits += semantics::suppresses(Box<T>{x1_[i], y1_[i], x2_[i], y2_[i]}, box, threshold, side);
      if (hits > 0) return true;
    }
    return false;
  }

 private:
  std::vector<T> x1_, y1_, x2_, y2_;
};

}  // namespace

template <typename T>
void box_iou(const BoxIou<T>& call) {
  check(call);
  const T side = call.inclusive ? T(1) : T(0);
  const int64_t columns = call.boxes2.shape[0];
  for (int64_t a = 0; a < call.boxes1.shape[0]; ++a) {
    const Box<T> box = box_at(call.boxes1.data, a);
    for (int64_t b = 0; b < columns; ++b)
      call.iou.data[a * columns + b] = semantics::iou(box, box_at(call.boxes2.data, b), side);
  }
}

template <typename T>
int64_t nms(const Nms<T>& call) {
  check(call);
  const T* scores = call.scores.data;
  const auto before = [scores](int64_t a, int64_t b) {
    return semantics::ranks_before(scores[a], a, scores[b], b);
  };
  const auto class_of = [&call](int64_t i) {
    return call.class_ids == nullptr ? int64_t{0} : call.class_ids[i];
  };

  // Visited class by class; only boxes of the class at hand are compared.
  std::vector<int64_t> order(call.boxes.shape[0]);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const int64_t class_a = class_of(a), class_b = class_of(b);
    return class_a != class_b ? class_a < class_b : before(a, b);
  });

  const T side = call.inclusive ? T(1) : T(0);
  KeptBoxes<T> kept_boxes;
  int64_t kept = 0;
  for (size_t position = 0; position < order.size(); ++position) {
    const int64_t i = order[position];
    if (position > 0 && class_of(i) != class_of(order[position - 1])) kept_boxes.clear();
    const Box<T> box = box_at(call.boxes.data, i);
    if (scores[i] != scores[i] || kept_boxes.suppress(box, call.iou_threshold, side)) continue;
    kept_boxes.add(box);
    call.keep.data[kept++] = i;
  }
  if (call.class_ids != nullptr) std::sort(call.keep.data, call.keep.data + kept, before);
  return kept;
}

template void box_iou(const BoxIou<float>&);
template void box_iou(const BoxIou<double>&);
template int64_t nms(const Nms<float>&);
template int64_t nms(const Nms<double>&);

}  // namespace cpu
}  // namespace fastrcnn_engine
