// When a proposal and a class make a detection that suppression then looks at.
#pragma once

#include "fastrcnn_engine/host_device.h"
#include "fastrcnn_engine/semantics/box_codec.h"

namespace fastrcnn_engine::semantics {

// The score must be greater than the threshold (NaN is not), and the box must not hold a NaN.
template <typename T>
FRCNN_HD bool is_candidate(T score, T score_threshold, const Box<T>& box) {
  const bool box_is_whole =
      box.x1 == box.x1 && box.y1 == box.y1 && box.x2 == box.x2 && box.y2 == box.y2;
  return score > score_threshold && box_is_whole;
}

}  // namespace fastrcnn_engine::semantics
