// Overlap of boxes, when one suppresses another, and which comes first.
#pragma once

#include <cstdint>

#include "fastrcnn_engine/host_device.h"
#include "fastrcnn_engine/semantics/box_codec.h"

namespace fastrcnn_engine::semantics {

// `side` is 1 where both corners are pixels of the box (VOC: width x2 - x1 + 1), 0 otherwise.
template <typename T>
FRCNN_HD T area(const Box<T>& box, T side) {
  return (box.x2 - box.x1 + side) * (box.y2 - box.y1 + side);
}

// Intersection over union. Two boxes without area give 0 / 0 = NaN, which exceeds no threshold.
template <typename T>
FRCNN_HD T iou(const Box<T>& a, const Box<T>& b, T side) {
  const T left = a.x1 > b.x1 ? a.x1 : b.x1, right = a.x2 < b.x2 ? a.x2 : b.x2;
  const T top = a.y1 > b.y1 ? a.y1 : b.y1, bottom = a.y2 < b.y2 ? a.y2 : b.y2;
  const T w = right - left + side, h = bottom - top + side;
  const T inter = (w > T(0) ? w : T(0)) * (h > T(0) ? h : T(0));
  return inter / (area(a, side) + area(b, side) - inter);
}

// The threshold is float32 on every backend and for every type of box.
template <typename T>
FRCNN_HD bool suppresses(const Box<T>& kept, const Box<T>& other, float threshold, T side) {
  return iou(kept, other, side) > static_cast<T>(threshold);
}

// Falling score, then rising index; NaN scores last.
template <typename T>
FRCNN_HD bool ranks_before(T score_a, int64_t index_a, T score_b, int64_t index_b) {
  const bool nan_a = score_a != score_a, nan_b = score_b != score_b;
  if (nan_a != nan_b) return nan_b;
  if (!nan_a && score_a != score_b) return score_a > score_b;
  return index_a < index_b;
}

}  // namespace fastrcnn_engine::semantics
