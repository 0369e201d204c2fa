// The steps of non-maximum suppression that nms and detections share. Defined in nms.cu.
#pragma once

#include <cstdint>

#include "fastrcnn_engine/stream.h"

namespace fastrcnn_engine::cuda {

template <typename T>
struct ScoredBoxes {
  const T* boxes;            // (B, 4)
  const T* scores;           // (B,) NaN: never kept
  const int64_t* class_ids;  // (B,) or null: one class
  int64_t count;             // B
};

// Writes the indices of the kept boxes to `keep` by falling score, then rising index, the first
// `capacity` of them, and how many are kept in all to `kept`. Queued on the stream, whose device
// must be current.
template <typename T>
void queue_nms(const ScoredBoxes<T>& list, float iou_threshold, bool inclusive, int64_t* keep,
               int64_t capacity, int64_t* kept, const Stream& stream);

}  // namespace fastrcnn_engine::cuda
