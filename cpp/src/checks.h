// Checks the operators share; messages carry the argument's name.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>

#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/tensor.h"

namespace fastrcnn_engine {

// An array without elements needs no memory. A product beyond 64 bits is no large array, but a shape that
// nobody set.
inline void require_memory(const void* data, std::span<const int64_t> shape, int64_t element_bytes,
                           const char* name) {
  bool negative = false, empty = false, overflows = false;
  int64_t bytes = element_bytes;
  for (const int64_t size : shape) {
    negative |= size < 0;
    empty |= size == 0;
    overflows |= __builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes);
  }
  if (!negative && !overflows && (data != nullptr || empty)) return;
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "(" : ", ") + std::to_string(size);
  text += shape.size() == 1 ? ",)" : ")";
  require(!negative, name, " must be given memory and its shape, no size below 0, got shape ", text);
  require(!overflows, name, " must be given its shape, got ", text, ", of more bytes than there can be");
  fail(name, " must point to memory of its shape ", text, ", got null");
}

// Every array of every call comes by these two, before its size is asked for.
template <typename T, int Rank>
void require_memory(const View<T, Rank>& view, const char* name) {
  require_memory(view.data, view.shape, sizeof(T), name);
}

template <typename T>
void require_memory(const MapView<T>& map, const char* name) {
  require_memory(map.data, std::array{map.n, map.c, map.h, map.w}, sizeof(T), name);
}

// `number`: one, in the backend's memory.
inline void require_number(const void* number, const char* name) {
  require(number != nullptr, name, " must point to memory of one number, got null");
}

// Each of these calls require_memory as well.
template <typename T>
void require_boxes(const View<T, 2>& boxes, const char* name) {
  require(boxes.shape[1] == 4, name, " must be (R, 4) rows of [x1, y1, x2, y2], got (",
          boxes.shape[0], ", ", boxes.shape[1], ")");
  require_memory(boxes, name);
}

template <typename T, int Rank>
void require_rows(const View<T, Rank>& view, const char* name, int64_t rows, const char* like) {
  require(view.shape[0] == rows, name, " must have as many rows as ", like, " (", rows, "), got ",
          view.shape[0]);
  require_memory(view, name);
}

template <typename T>
void require_shape(const View<T, 2>& view, const char* name, int64_t rows, int64_t columns) {
  require(view.shape[0] == rows && view.shape[1] == columns, name, " must be (", rows, ", ", columns,
          "), got (", view.shape[0], ", ", view.shape[1], ")");
  require_memory(view, name);
}

inline void require_image(double height, double width, bool inclusive, const char* name) {
  require(height > 0 && width > 0 && std::isfinite(height) && std::isfinite(width),
          name, " must be (height, width), both positive, got (", height, ", ", width, ")");
  require(!inclusive || (height >= 1 && width >= 1),
          name, " must be at least (1, 1) where boxes are inclusive, got (", height, ", ", width, ")");
}

inline void require_iou_threshold(float threshold, const char* name) {
  require(threshold >= 0 && threshold <= 1, name, " must be in [0, 1], got ", threshold);
}

}  // namespace fastrcnn_engine
