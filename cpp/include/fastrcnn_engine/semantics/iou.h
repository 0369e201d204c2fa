// Overlap of boxes, when one suppresses another, and which comes first.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "fastrcnn_engine/host_device.h"
#include "fastrcnn_engine/semantics/box_codec.h"

namespace fastrcnn_engine::semantics {

// Formulas of V take numbers or, where the compiler has them, vectors of numbers lane by lane: V{} is zero in
// both. Those of T take numbers.

// `side` is 1 where both corners are pixels of the box (VOC: width x2 - x1 + 1), 0 otherwise.
template <typename V>
FRCNN_HD V area(const Box<V>& box, V side) {
  return (box.x2 - box.x1 + side) * (box.y2 - box.y1 + side);
}

// `none` is 0. It is an argument because of a 0 that it can see GCC does not make a maximum.
template <typename V>
FRCNN_HD V intersection(const Box<V>& a, const Box<V>& b, V side, V none = V{}) {
  const V left = a.x1 > b.x1 ? a.x1 : b.x1, right = a.x2 < b.x2 ? a.x2 : b.x2;
  const V top = a.y1 > b.y1 ? a.y1 : b.y1, bottom = a.y2 < b.y2 ? a.y2 : b.y2;
  const V w = right - left + side, h = bottom - top + side;
  return (w > none ? w : none) * (h > none ? h : none);
}

// Intersection over union. Two boxes without area give 0 / 0 = NaN, which exceeds no threshold.
template <typename V>
FRCNN_HD V iou_of_areas(V inter, V area_a, V area_b) {
  return inter / (area_a + area_b - inter);
}

template <typename T>
FRCNN_HD T iou(const Box<T>& a, const Box<T>& b, T side) {
  return iou_of_areas(intersection(a, b, side), area(a, side), area(b, side));
}

// The threshold is float32 on every backend and for every type of box.
template <typename T>
FRCNN_HD bool suppresses(const Box<T>& kept, const Box<T>& other, float threshold, T side) {
  return iou(kept, other, side) > static_cast<T>(threshold);
}

// Three conditions that must hold where iou > threshold >= 0, and that cost less. They need no
// margin for rounding, because rounding never turns an order round: of a <= b it makes a' <= b'.

// fl(inter / union) > t, t being a number of the type, so inter / union > t, inter > t * union >= 0,
// and inter >= fl(t * union). No division.
template <typename V>
FRCNN_HD V least_intersection(V inter, V area_a, V area_b, V threshold) {
  return threshold * (area_a + area_b - inter);
}
template <typename V>
FRCNN_HD auto may_exceed(V inter, V area_a, V area_b, V threshold) {
  return (inter > V{}) & (inter >= least_intersection(inter, area_a, area_b, threshold));
}

// The sides of an intersection are no longer than those of either box, as computed, so where it is
// more than 0, both areas are at least as much. An infinite area makes the union infinite or NaN.
template <typename T>
FRCNN_HD bool may_overlap(T area) {
  return area > T(0) && area <= std::numeric_limits<T>::max();
}

// Union is at least the larger area, to within a few roundings, and inter at most the smaller: what
// overlaps a box of area `a` has an area in [low, high]. A thousandth is ample for the roundings.
template <typename T>
struct AreaRange {
  T low, high;
};
template <typename T>
FRCNN_HD AreaRange<T> overlapping_areas(T area, T threshold) {
  return {area * threshold * T(0.999), area / threshold * T(1.001)};
}

// Rising keys are falling scores, equal keys equal scores, for sorting by digits; of equal ones the
// lower index comes first. Not for NaN.
template <typename T>
using RankKey = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
template <typename T>
FRCNN_HD RankKey<T> rank_key(T score) {
  using Key = RankKey<T>;
  const T positive_zero = score + T(0);  // -0 + 0 = +0
  Key bits;
  memcpy(&bits, &positive_zero, sizeof(bits));
  const Key sign = Key(1) << (8 * sizeof(Key) - 1);
  return bits & sign ? bits : ~(bits | sign);
}

}  // namespace fastrcnn_engine::semantics
