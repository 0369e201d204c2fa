// What the box operators share: checks of shapes with the argument's name, and rows as boxes.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/semantics/box_codec.h"
#include "fastrcnn_engine/tensor.h"

namespace fastrcnn_engine {

template <typename T>
void require_boxes(const View<T, 2>& boxes, const char* name) {
  require(boxes.shape[1] == 4, name, " must be (R, 4) rows of [x1, y1, x2, y2], got (",
          boxes.shape[0], ", ", boxes.shape[1], ")");
}

template <typename T, int Rank>
void require_rows(const View<T, Rank>& view, const char* name, int64_t rows, const char* like) {
  require(view.shape[0] == rows, name, " must have as many rows as ", like, " (", rows, "), got ",
          view.shape[0]);
}

template <typename T>
void require_shape(const View<T, 2>& view, const char* name, int64_t rows, int64_t columns) {
  require(view.shape[0] == rows && view.shape[1] == columns, name, " must be (", rows, ", ", columns,
          "), got (", view.shape[0], ", ", view.shape[1], ")");
}

inline void require_image(double height, double width) {
  require(height > 0 && width > 0 && std::isfinite(height) && std::isfinite(width),
          "the image size must be (height, width), both positive, got (", height, ", ", width, ")");
}

inline void require_iou_threshold(double threshold, const char* name) {
  require(threshold >= 0 && threshold <= 1, name, " must be in [0, 1], got ", threshold);
}

template <typename T>
semantics::Box<T> box_at(const T* boxes, int64_t row) {
  const T* box = boxes + 4 * row;
  return {box[0], box[1], box[2], box[3]};
}

template <typename T>
semantics::Delta<T> delta_at(const T* deltas, int64_t row) {
  const T* delta = deltas + 4 * row;
  return {delta[0], delta[1], delta[2], delta[3]};
}

template <typename T>
void put_box(T* boxes, int64_t row, const semantics::Box<T>& box) {
  T* out = boxes + 4 * row;
  out[0] = box.x1, out[1] = box.y1, out[2] = box.x2, out[3] = box.y2;
}

}  // namespace fastrcnn_engine
