#include "fastrcnn_engine/detections.h"

#include <algorithm>
#include <vector>

#include "fastrcnn_engine/nms.h"
#include "fastrcnn_engine/semantics/box_rows.h"
#include "fastrcnn_engine/semantics/candidate.h"
#include "views.h"

namespace fastrcnn_engine {

template <typename T>
void check(const DetectBoxes<T>& call) {
  require_boxes(call.proposals, "boxes");
  require_rows(call.scores, "scores", call.proposals.shape[0], "boxes");
  require(call.scores.shape[1] >= 1, "scores must be (R, K + 1) with the background in column 0, got (",
          call.scores.shape[0], ", ", call.scores.shape[1], ")");
  if (call.deltas.data != nullptr) {
    require_shape(call.deltas, "deltas", call.proposals.shape[0], 4 * call.scores.shape[1]);
    require(call.max_log_ratio > 0, "max_log_ratio must be positive, got ", call.max_log_ratio);
  }
  require_image(call.image_height, call.image_width);
  require(call.score_threshold == call.score_threshold, "score_threshold must be a number, got nan");
  require_iou_threshold(call.nms_threshold, "nms_threshold");
  const int64_t capacity = call.boxes.shape[0];
  require_shape(call.boxes, "output boxes", capacity, 4);
  require_rows(call.box_scores, "output scores", capacity, "output boxes");
  require_rows(call.labels, "output labels", capacity, "output boxes");
  require_rows(call.proposal_rows, "output rows", capacity, "output boxes");
}

template void check(const DetectBoxes<float>&);
template void check(const DetectBoxes<double>&);

namespace cpu {

using semantics::box_at;
using semantics::delta_at;
using semantics::put_box;

template <typename T>
int64_t detect_boxes(const DetectBoxes<T>& call) {
  check(call);
  const int64_t columns = call.scores.shape[1];
  const T score_threshold = static_cast<T>(call.score_threshold);
  const T max_log_ratio = static_cast<T>(call.max_log_ratio);
  const T x_limit = semantics::clip_limit(static_cast<T>(call.image_width), call.inclusive);
  const T y_limit = semantics::clip_limit(static_cast<T>(call.image_height), call.inclusive);

  std::vector<T> boxes, scores;
  std::vector<int64_t> labels, rows;
  for (int64_t r = 0; r < call.proposals.shape[0]; ++r) {
    const auto proposal = box_at(call.proposals.data, r);
    for (int64_t k = 1; k < columns; ++k) {
      const T score = call.scores.data[r * columns + k];
      if (!(score > score_threshold)) continue;  // most go here, before any arithmetic
      auto box = proposal;
      if (call.deltas.data != nullptr)
        box = semantics::decode(proposal, delta_at(call.deltas.data, r * columns + k),
                                max_log_ratio);
      box = semantics::clip(box, x_limit, y_limit);
      if (!semantics::is_candidate(score, score_threshold, box)) continue;
      boxes.insert(boxes.end(), {box.x1, box.y1, box.x2, box.y2});
      scores.push_back(score);
      labels.push_back(k);
      rows.push_back(r);
    }
  }

  const auto candidates = static_cast<int64_t>(scores.size());
  std::vector<int64_t> keep(candidates);
  Nms<T> suppression;
  suppression.boxes = {boxes.data(), {candidates, 4}};
  suppression.scores = {scores.data(), {candidates}};
  suppression.class_ids = labels.data();
  suppression.iou_threshold = call.nms_threshold;
  suppression.inclusive = call.inclusive;
  suppression.keep = {keep.data(), {candidates}};
  const int64_t kept = std::min(nms(suppression), call.boxes.shape[0]);

  for (int64_t m = 0; m < kept; ++m) {
    put_box(call.boxes.data, m, box_at(boxes.data(), keep[m]));
    call.box_scores.data[m] = scores[keep[m]];
    call.labels.data[m] = labels[keep[m]];
    call.proposal_rows.data[m] = rows[keep[m]];
  }
  return kept;
}

template int64_t detect_boxes(const DetectBoxes<float>&);
template int64_t detect_boxes(const DetectBoxes<double>&);

}  // namespace cpu
}  // namespace fastrcnn_engine
