// Checks the box operators share; messages carry the argument's name.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastrcnn_engine/error.h"
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

inline void require_image(double height, double width, bool inclusive) {
  require(height > 0 && width > 0 && std::isfinite(height) && std::isfinite(width),
          "the image size must be (height, width), both positive, got (", height, ", ", width, ")");
  require(!inclusive || (height >= 1 && width >= 1),
          "the image size must be at least (1, 1) where boxes are inclusive, got (", height, ", ", width, ")");
}

inline void require_iou_threshold(float threshold, const char* name) {
  require(threshold >= 0 && threshold <= 1, name, " must be in [0, 1], got ", threshold);
}

}  // namespace fastrcnn_engine
