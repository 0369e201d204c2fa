// The detection step: the checks of both backends, and the CPU's sequence of steps. The steps themselves are
// shared: semantics/ decodes and clips, GreedySuppression suppresses.
#include "fastrcnn_engine/detections.h"

#include <algorithm>
#include <vector>

#include "checks.h"
#include "fastrcnn_engine/semantics/box_rows.h"
#include "fastrcnn_engine/semantics/candidate.h"
#include "greedy_suppression.h"
#include "nms_kernels.h"
#include "score_order.h"

namespace fastrcnn_engine {

template <typename T>
void check(const DetectBoxes<T>& call) {
  require_boxes(call.proposals, "boxes");
  require_rows(call.scores, "scores", call.proposals.shape[0], "boxes");
  require(call.scores.shape[1] >= 1, "scores must be (R, K + 1) with the background in column 0, got (",
          call.scores.shape[0], ", ", call.scores.shape[1], ")");
  if (call.deltas.data != nullptr) {
    const auto [rows, columns] = call.deltas.shape;
    const int64_t wanted_rows = call.proposals.shape[0], wanted = 4 * call.scores.shape[1];
    require(rows == wanted_rows && (columns == wanted || call.is_class_agnostic()), "deltas must be (",
            wanted_rows, ", ", wanted, "), or (", wanted_rows, ", 4) for all classes, got (", rows, ", ",
            columns, ")");
    require(call.max_log_ratio > 0, "max_log_ratio must be positive, got ", call.max_log_ratio);
  }
  require_image(call.image_height, call.image_width, call.inclusive, "image_size");
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

namespace {

using semantics::box_at;
using semantics::delta_at;

// Every (proposal, class) whose score exceeds the threshold, best first; `index` is the place in
// the scores, which rises with (proposal, class).
template <typename T>
std::vector<Ranked<T>> ranked_candidates(const View<const T, 2>& scores, T threshold) {
  constexpr int64_t chunk = 4096;
  int32_t positions[chunk];
  const auto kernels = FRCNN_CHOSEN(nms_kernels<T>);
  const int64_t columns = scores.shape[1], count = scores.size();
  std::vector<Ranked<T>> candidates;
  int64_t background = 0;  // the last place of column 0 at or before the one at hand
  for (int64_t first = 0; first < count; first += chunk) {
    const auto here = static_cast<int32_t>(std::min(chunk, count - first));
    const int32_t found = kernels.positions_above(scores.data + first, here, threshold, positions);
    for (int32_t i = 0; i < found; ++i) {
      const int64_t at = first + positions[i];
      while (at >= background + columns) background += columns;
      if (at != background) candidates.push_back({semantics::rank_key(scores.data[at]), at});
    }
  }
  sort_by_score(candidates);
  return candidates;
}

}  // namespace

// Boxes are made when their turn comes, so those after the last detection never are.
template <typename T>
int64_t detect_boxes(const DetectBoxes<T>& call) {
  check(call);
  const int64_t columns = call.scores.shape[1], most = call.boxes.shape[0];
  const T max_log_ratio = static_cast<T>(call.max_log_ratio);
  const T x_limit = semantics::clip_limit(static_cast<T>(call.image_width), call.inclusive);
  const T y_limit = semantics::clip_limit(static_cast<T>(call.image_height), call.inclusive);

  const auto candidates = ranked_candidates(call.scores, static_cast<T>(call.score_threshold));
  GreedySuppression<T> suppression(columns, call.nms_threshold, call.inclusive);
  int64_t kept = 0;
  for (auto next = candidates.begin(); next != candidates.end() && kept < most; ++next) {
    const int64_t row = next->index / columns, label = next->index % columns;
    auto box = box_at(call.proposals.data, row);
    if (call.deltas.data != nullptr)
      box = semantics::decode(box, delta_at(call.deltas.data, call.is_class_agnostic() ? row : next->index),
                              max_log_ratio);
    box = semantics::clip(box, x_limit, y_limit);
    if (!semantics::is_whole(box) || !suppression.keep(box, label)) continue;
    semantics::put_detection(call, kept++, box, call.scores.data[next->index], label, row);
  }
  for (int64_t place = kept; place < most; ++place) semantics::put_no_detection<T>(call, place);
  return kept;
}

template int64_t detect_boxes(const DetectBoxes<float>&);
template int64_t detect_boxes(const DetectBoxes<double>&);

}  // namespace cpu
}  // namespace fastrcnn_engine
