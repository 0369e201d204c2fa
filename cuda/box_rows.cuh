// Rows of four numbers in device memory as boxes and deltas.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastrcnn_engine/semantics/box_codec.h"

namespace fastrcnn_engine::cuda {

template <typename T>
__device__ semantics::Box<T> box_at(const T* boxes, int64_t row) {
  const T* box = boxes + 4 * row;
  return {box[0], box[1], box[2], box[3]};
}

template <typename T>
__device__ semantics::Delta<T> delta_at(const T* deltas, int64_t row) {
  const T* delta = deltas + 4 * row;
  return {delta[0], delta[1], delta[2], delta[3]};
}

template <typename T>
__device__ void put_box(T* boxes, int64_t row, const semantics::Box<T>& box) {
  T* out = boxes + 4 * row;
  out[0] = box.x1, out[1] = box.y1, out[2] = box.x2, out[3] = box.y2;
}

}  // namespace fastrcnn_engine::cuda
