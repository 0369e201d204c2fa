// The hot loops of suppression: one box against lists of kept ones, scores against a threshold. Knows no
// classes. Uses plain pointers, lanes.h and semantics/ only: docs/cpu-kernels.md.
#include "nms_kernels.h"

#include "fastrcnn_engine/semantics/iou.h"
#include "lanes.h"

namespace fastrcnn_engine::cpu::FRCNN_SET {
namespace {

using semantics::Box;

// One box against the kept ones, four vectors of them, at least a tile, without a branch in between (of a list
// of one tile, that tile): a branch misprediction costs as much as comparing with two or three vectors.
template <typename T>
class Comparison {
 public:
  FRCNN_INLINE Comparison(const Box<T>& box, T area, const SuppressionRule<T>& rule)
      : box_{splat<kLanes<T>>(box.x1), splat<kLanes<T>>(box.y1), splat<kLanes<T>>(box.x2),
             splat<kLanes<T>>(box.y2)},
        area_(splat<kLanes<T>>(area)),
        threshold_(splat<kLanes<T>>(rule.threshold)),
        side_(splat<kLanes<T>>(rule.side)) {}

  FRCNN_INLINE bool suppressed_by(const KeptTile<T>* tiles, const KeptList& list) const {
    constexpr int boxes = 4 * kLanes<T>, step = boxes < kTileBoxes ? 1 : boxes / kTileBoxes;
    static_assert(kTileStep % step == 0 && kTileBoxes % kLanes<T> == 0);
    const KeptTile<T>* const first = tiles + list.first;
    if (list.tiles < step) return list.count > 0 && suppressed_by<1>(first);
    for (int64_t tile = 0; tile * kTileBoxes < list.count; tile += step)
      if (suppressed_by<step>(first + tile)) return true;
    return false;
  }

 private:
  using V = Vector<T>;

  // About 16 operations and 20 bytes a pair, all from the first caches: arithmetic is the floor. So the
  // `inter > 0` of may_exceed is left out: it spares divisions only where the threshold is 0.
  template <int Tiles>
  FRCNN_INLINE bool suppressed_by(const KeptTile<T>* tiles) const {
    Holds<T> maybe{};
    for_each_vector<Tiles>(tiles, [&](const V& inter, const V& area) {
      maybe |= at_least<T>(inter, semantics::least_intersection(inter, area, area_, threshold_));
    });
    if (lane_bits<T>(maybe) == 0) return false;
    Holds<T> exceeds{};
    for_each_vector<Tiles>(tiles, [&](const V& inter, const V& area) {
      exceeds |= above<T>(semantics::iou_of_areas(inter, area, area_), threshold_);
    });
    return lane_bits<T>(exceeds) != 0;
  }

  // Calls visit(intersection, area) for the boxes of so many tiles.
  template <int Tiles, typename Visit>
  FRCNN_INLINE void for_each_vector(const KeptTile<T>* tiles, const Visit& visit) const {
#pragma GCC unroll 16
    for (int at = 0; at < Tiles * kTileBoxes; at += kLanes<T>) {
      const KeptTile<T>& tile = tiles[at / kTileBoxes];
      const int place = at % kTileBoxes;
      const Box<V> kept{load(tile.x1 + place), load(tile.y1 + place), load(tile.x2 + place),
                        load(tile.y2 + place)};
      visit(semantics::intersection(kept, box_, side_, none_), load(tile.area + place));
    }
  }

  Box<V> box_;
  V area_, threshold_, side_, none_ = in_register(V{});  // none_: see intersection
};

template <typename T>
[[gnu::aligned(64)]] bool suppressed(const KeptLists<T>& kept, uint32_t first, uint32_t last,
                                     const Box<T>& box, T area, const SuppressionRule<T>& rule) {
  const Comparison<T> comparison(box, area, rule);
  for (uint32_t list = first;; ++list) {
    if (comparison.suppressed_by(kept.tiles, kept.lists[list & kept.mask])) return true;
    if (list == last) return false;
  }
}

template <typename T>
int32_t positions_above(const T* scores, int32_t count, T threshold, int32_t* positions) {
  int32_t found = 0, i = 0;
  const Vector<T> bar = splat<kLanes<T>>(threshold);
  for (; i + kLanes<T> <= count; i += kLanes<T>)
    for (unsigned bits = lane_bits<T>(above<T>(load(scores + i), bar)); bits != 0; bits &= bits - 1)
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
