// When a proposal and a class make a detection that suppression then looks at, and how one is written down.
#pragma once

#include <cstdint>

#include "fastrcnn_engine/host_device.h"
#include "fastrcnn_engine/semantics/box_rows.h"

namespace fastrcnn_engine::semantics {

// The box of a candidate holds no NaN. (And its score is greater than the threshold, which a NaN is not.)
template <typename T>
FRCNN_HD bool is_whole(const Box<T>& box) {
  return box.x1 == box.x1 && box.y1 == box.y1 && box.x2 == box.x2 && box.y2 == box.y2;
}

// The result at `place` of a DetectBoxes<T>.
template <typename Call, typename T>
FRCNN_HD void put_detection(const Call& call, int64_t place, const Box<T>& box, T score, int64_t label,
                            int64_t proposal) {
  put_box(call.boxes.data, place, box);
  call.box_scores.data[place] = score;
  call.labels.data[place] = label;
  call.proposal_rows.data[place] = proposal;
}

template <typename T, typename Call>
FRCNN_HD void put_no_detection(const Call& call, int64_t place) {
  put_detection(call, place, Box<T>{}, T(0), 0, -1);
}

}  // namespace fastrcnn_engine::semantics
