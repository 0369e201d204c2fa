// Rows of four numbers in memory as boxes and deltas.
#pragma once

#include <cstdint>

#include "fastrcnn_engine/host_device.h"
#include "fastrcnn_engine/semantics/box_codec.h"

namespace fastrcnn_engine::semantics {

template <typename T>
FRCNN_HD Box<T> box_at(const T* boxes, int64_t row) {
  const T* box = boxes + 4 * row;
  return {box[0], box[1], box[2], box[3]};
}

template <typename T>
FRCNN_HD Delta<T> delta_at(const T* deltas, int64_t row) {
  const T* delta = deltas + 4 * row;
  return {delta[0], delta[1], delta[2], delta[3]};
}

template <typename T>
FRCNN_HD void put_box(T* boxes, int64_t row, const Box<T>& box) {
  T* out = boxes + 4 * row;
  out[0] = box.x1, out[1] = box.y1, out[2] = box.x2, out[3] = box.y2;
}

template <typename T>
FRCNN_HD void put_delta(T* deltas, int64_t row, const Delta<T>& delta) {
  T* out = deltas + 4 * row;
  out[0] = delta.dx, out[1] = delta.dy, out[2] = delta.dw, out[3] = delta.dh;
}

}  // namespace fastrcnn_engine::semantics
