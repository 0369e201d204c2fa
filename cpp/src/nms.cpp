// Overlaps and NMS: the checks of both backends, and the CPU's loops. Class ids, which may be any numbers,
// become 0, 1, 2 and so on here; what a box is compared with is left to GreedySuppression.
#include "fastrcnn_engine/nms.h"

#include <algorithm>
#include <vector>

#include "checks.h"
#include "fastrcnn_engine/semantics/box_rows.h"
#include "fastrcnn_engine/semantics/iou.h"
#include "greedy_suppression.h"
#include "score_order.h"

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
  require_iou_threshold(call.iou_threshold, "iou_threshold");
  require_memory(call.keep, "keep");
}

template void check(const BoxIou<float>&);
template void check(const BoxIou<double>&);
template void check(const Nms<float>&);
template void check(const Nms<double>&);

namespace cpu {
namespace {

using semantics::Box;
using semantics::box_at;

// Numbers 0 .. count - 1 for classes named by any numbers.
class ClassNumbers {
 public:
  // `ids` (B,), or null: one class.
  ClassNumbers(const int64_t* ids, int64_t boxes) : ids_(boxes > 0 ? ids : nullptr) {
    if (ids_ == nullptr) return;
    const auto [lowest, highest] = std::minmax_element(ids, ids + boxes);
    first_ = static_cast<uint64_t>(*lowest);
    const uint64_t range = static_cast<uint64_t>(*highest) - first_;
    if (range < 2 * static_cast<uint64_t>(boxes)) {
      count_ = static_cast<int64_t>(range) + 1;
      return;
    }
    sorted_.assign(ids, ids + boxes);
    std::sort(sorted_.begin(), sorted_.end());
    sorted_.erase(std::unique(sorted_.begin(), sorted_.end()), sorted_.end());
    count_ = static_cast<int64_t>(sorted_.size());
  }

  int64_t count() const { return count_; }
  int64_t of(int64_t box) const {
    if (ids_ == nullptr) return 0;
    if (sorted_.empty()) return static_cast<int64_t>(static_cast<uint64_t>(ids_[box]) - first_);
    return std::lower_bound(sorted_.begin(), sorted_.end(), ids_[box]) - sorted_.begin();
  }

 private:
  const int64_t* ids_;
  int64_t count_ = 1;
  uint64_t first_ = 0;           // the lowest id, where the ids are close together
  std::vector<int64_t> sorted_;  // where they are not
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
  const int64_t boxes = call.boxes.shape[0];
  std::vector<Ranked<T>> order;
  order.reserve(boxes);
  for (int64_t i = 0; i < boxes; ++i)
    if (const T score = call.scores.data[i]; score == score)
      order.push_back({semantics::rank_key(score), i});
  sort_by_score(order);

  const ClassNumbers classes(call.class_ids, boxes);
  GreedySuppression<T> suppression(classes.count(), call.iou_threshold, call.inclusive);
  const int64_t most = call.keep.shape[0];
  // Copied first: after each branch misprediction, the next box is what the machine would wait for.
  std::vector<Box<T>> sorted(order.size());
  std::transform(order.begin(), order.end(), sorted.begin(),
                 [&](const Ranked<T>& next) { return box_at(call.boxes.data, next.index); });
  int64_t kept = 0;
  for (size_t i = 0; i < order.size() && kept < most; ++i)
    if (suppression.keep(sorted[i], classes.of(order[i].index)))
      call.keep.data[kept++] = order[i].index;
  std::fill(call.keep.data + kept, call.keep.data + most, -1);
  return kept;
}

template void box_iou(const BoxIou<float>&);
template void box_iou(const BoxIou<double>&);
template int64_t nms(const Nms<float>&);
template int64_t nms(const Nms<double>&);

}  // namespace cpu
}  // namespace fastrcnn_engine
