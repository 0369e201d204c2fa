#include "greedy_suppression.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "fastrcnn_engine/semantics/iou.h"

namespace fastrcnn_engine::cpu {
namespace {

using semantics::Box;

// The exponent of an area and the first `fine` bits of its fraction: 2^fine steps to every doubling.
template <typename T>
uint32_t area_step(T area, int fine) {
  using Bits = semantics::RankKey<T>;
  constexpr int fraction = std::numeric_limits<T>::digits - 1;
  return static_cast<uint32_t>(std::bit_cast<Bits>(area) >> (fraction - fine));
}

// Below this many boxes of a class one list is faster than several.
constexpr int64_t kManyBoxes = 1024;

}  // namespace

template <typename T>
GreedySuppression<T>::GreedySuppression(int64_t classes, int64_t boxes, float threshold,
                                        bool inclusive)
    : kernels_(FRCNN_CHOSEN(nms_kernels<T>)),
      rule_{static_cast<T>(threshold), inclusive ? T(1) : T(0)} {
  // Areas that overlap by more than the threshold differ by less than its inverse: the higher it is,
  // the finer the lists that are worth their number.
  fine_ = threshold >= 0.7f ? 2 : threshold >= 0.5f ? 1 : 0;
  lists_ = boxes / std::max<int64_t>(classes, 1) < kManyBoxes ? 1 : 16 << fine_;
  newest_.assign(classes * lists_, -1);
}

template <typename T>
bool GreedySuppression<T>::keep(const Box<T>& box, int64_t class_number) {
  const T area = semantics::area(box, rule_.side);
  if (!semantics::may_overlap(area)) return true;
  const int64_t list = class_number * lists_;
  const uint32_t mask = lists_ - 1;
  const KeptLists<T> kept{tiles_.data(), next_.data(), newest_.data() + list};
  uint32_t first = 0, last = mask;
  if (lists_ > 1) {
    const auto range = semantics::overlapping_areas(area, rule_.threshold);
    first = area_step(range.low, fine_), last = area_step(range.high, fine_);
    if (!(last - first < lists_)) first = 0, last = mask;
  }
  if (kernels_.suppressed(kept, first, last, mask, box, area, rule_)) return false;
  add(box, area, list + (area_step(area, fine_) & mask));
  return true;
}

template <typename T>
void GreedySuppression<T>::add(const Box<T>& box, T area, int64_t list) {
  int32_t t = newest_[list];
  if (t < 0 || taken_[t] == kTileBoxes) {
    next_.push_back(t);
    taken_.push_back(0);
    t = newest_[list] = static_cast<int32_t>(tiles_.size());
    KeptTile<T>& tile = tiles_.emplace_back();
    constexpr T far = std::numeric_limits<T>::infinity();
    std::fill_n(tile.x1, kTileBoxes, far);
    std::fill_n(tile.x2, kTileBoxes, -far);
  }
  KeptTile<T>& tile = tiles_[t];
  const int place = taken_[t]++;
  tile.x1[place] = box.x1, tile.y1[place] = box.y1;
  tile.x2[place] = box.x2, tile.y2[place] = box.y2;
  tile.area[place] = area;
}

template class GreedySuppression<float>;
template class GreedySuppression<double>;

}  // namespace fastrcnn_engine::cpu
