// Where the kept boxes of a class are stored, and which of them a new box is compared with. nms_kernels.cpp
// compares. Boxes arrive best first; scores are unknown here.
#include "greedy_suppression.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "fastrcnn_engine/semantics/iou.h"

namespace fastrcnn_engine::cpu {
namespace {

using semantics::Box;

// The lists of a class that has several: two to a doubling of the area, and after 16 doublings again.
constexpr uint32_t kLists = 32;

// Exponent and first bit of the fraction.
template <typename T>
uint32_t area_step(T area) {
  using Bits = semantics::RankKey<T>;  // an integer as wide
  return static_cast<uint32_t>(std::bit_cast<Bits>(area) >> (std::numeric_limits<T>::digits - 2));
}

}  // namespace

template <typename T>
GreedySuppression<T>::GreedySuppression(int64_t classes, float threshold, bool inclusive)
    : kernels_(FRCNN_CHOSEN(nms_kernels<T>)),
      rule_{static_cast<T>(threshold), inclusive ? T(1) : T(0)},
      // Areas that overlap by more than the threshold differ by less than its inverse: the lower it is, the
      // more of several lists must be looked through, each with a misprediction where it ends. Measured.
      most_in_one_list_(threshold >= 0.5f ? 512 : 2048),
      classes_(classes),
      lists_(classes) {
  for (int64_t i = 0; i < classes; ++i) classes_[i] = {i, 0};
}

template <typename T>
bool GreedySuppression<T>::keep(const Box<T>& box, int64_t class_number) {
  const T area = semantics::area(box, rule_.side);
  if (!semantics::may_overlap(area)) return true;
  ClassLists& mine = classes_[class_number];
  uint32_t first = 0, last = mine.mask;
  if (mine.mask > 0) {
    const auto range = semantics::overlapping_areas(area, rule_.threshold);
    const uint32_t low = area_step(range.low), high = area_step(range.high);
    if (high - low <= mine.mask) first = low, last = high;
  }
  const KeptLists<T> kept{tiles_.data(), lists_.data() + mine.first, mine.mask};
  if (kernels_.suppressed(kept, first, last, box, area, rule_)) return false;
  add(box, area, mine);
  if (mine.mask == 0 && lists_[mine.first].count == most_in_one_list_) split(mine);
  return true;
}

template <typename T>
void GreedySuppression<T>::add(const Box<T>& box, T area, const ClassLists& of) {
  KeptList& list = lists_[of.first + (area_step(area) & of.mask)];
  if (list.count == list.tiles * kTileBoxes) {  // a place kTileStep times as large, so a multiple of it
    const auto first = static_cast<int64_t>(tiles_.size());
    const int64_t tiles = std::max<int64_t>(1, list.tiles * kTileStep);
    tiles_.resize(first + tiles);
    std::copy_n(tiles_.begin() + list.first, list.tiles, tiles_.begin() + first);
    for (int64_t i = first + list.tiles; i < first + tiles; ++i)  // begin beyond every box, so overlap none
      std::fill_n(tiles_[i].x1, kTileBoxes, std::numeric_limits<T>::infinity());
    list.first = first, list.tiles = tiles;
  }
  KeptTile<T>& tile = tiles_[list.first + list.count / kTileBoxes];
  const int64_t place = list.count++ % kTileBoxes;
  tile.x1[place] = box.x1, tile.y1[place] = box.y1;
  tile.x2[place] = box.x2, tile.y2[place] = box.y2;
  tile.area[place] = area;
}

template <typename T>
void GreedySuppression<T>::split(ClassLists& of) {
  const KeptList whole = lists_[of.first];
  of = {static_cast<int64_t>(lists_.size()), kLists - 1};
  lists_.resize(lists_.size() + kLists);
  for (int64_t i = 0; i < whole.count; ++i) {
    const KeptTile<T>& tile = tiles_[whole.first + i / kTileBoxes];
    const int64_t place = i % kTileBoxes;
    // Copies: adding may move the tile.
    const Box<T> box{tile.x1[place], tile.y1[place], tile.x2[place], tile.y2[place]};
    add(box, tile.area[place], of);
  }
}

template class GreedySuppression<float>;
template class GreedySuppression<double>;

}  // namespace fastrcnn_engine::cpu
