#include "nms_kernels.h"

#include "fastrcnn_engine/semantics/iou.h"
#include "lanes.h"

namespace fastrcnn_engine::cpu::FRCNN_SET {
namespace {

using semantics::Box;

template <typename T>
FRCNN_INLINE Box<Vector<T>> boxes_at(const KeptTile<T>& tile, int place) {
  return {load(tile.x1 + place), load(tile.y1 + place), load(tile.x2 + place),
          load(tile.y2 + place)};
}

// About 16 operations and 20 bytes a pair, all from the first caches: arithmetic is the floor.
template <typename T>
[[gnu::aligned(64)]] bool suppressed(const KeptLists<T>& lists, uint32_t first, uint32_t last, uint32_t mask,
                const Box<T>& box, T area, const Suppression<T>& rule) {
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  const Box<V> other{splat<lanes>(box.x1), splat<lanes>(box.y1), splat<lanes>(box.x2),
                     splat<lanes>(box.y2)};
  const V other_area = splat<lanes>(area), threshold = splat<lanes>(rule.threshold);
  const V side = splat<lanes>(rule.side);
  for (uint32_t list = first;; ++list) {
    for (int32_t t = lists.newest[list & mask]; t >= 0; t = lists.next[t]) {
      const KeptTile<T>& tile = lists.tiles[t];
      Vector<IndexOf<T>> maybe{};
      for (int at = 0; at < kTileBoxes; at += kLanes<T>) {
        const V inter = semantics::intersection(boxes_at(tile, at), other, side);
        maybe |= semantics::may_exceed(inter, load(tile.area + at), other_area, threshold);
      }
      if (lane_bits<T>(maybe) == 0) continue;
      Vector<IndexOf<T>> exceeds{};
      for (int at = 0; at < kTileBoxes; at += kLanes<T>) {
        const V inter = semantics::intersection(boxes_at(tile, at), other, side);
        exceeds |= semantics::iou_of_areas(inter, load(tile.area + at), other_area) > threshold;
      }
      if (lane_bits<T>(exceeds) != 0) return true;
    }
    if (list == last) return false;
  }
}

template <typename T>
int32_t positions_above(const T* scores, int32_t count, T threshold, int32_t* positions) {
  int32_t found = 0, i = 0;
  const Vector<T> bar = splat<kLanes<T>>(threshold);
  for (; i + kLanes<T> <= count; i += kLanes<T>)
    for (unsigned bits = lane_bits<T>(load(scores + i) > bar); bits != 0; bits &= bits - 1)
      positions[found++] = i + __builtin_ctz(bits);
  for (; i < count; ++i)
    if (scores[i] > threshold) positions[found++] = i;
  return found;
}

}  // namespace

template <typename T>
NmsKernels<T> nms_kernels() {
  return {suppressed<T>, positions_above<T>};
}

template NmsKernels<float> nms_kernels();
template NmsKernels<double> nms_kernels();

}  // namespace fastrcnn_engine::cpu::FRCNN_SET
