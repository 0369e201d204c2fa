// The steps of nms on boxes that are made from the network's outputs wherever one is needed: making a box
// again costs less than writing down every (proposal, class), of which few are above the threshold.
#include "fastrcnn_engine/detections.h"

#include <algorithm>

#include "fastrcnn_engine/semantics/box_rows.h"
#include "fastrcnn_engine/semantics/candidate.h"
#include "launch.cuh"
#include "nms_steps.cuh"

namespace fastrcnn_engine::cuda {
namespace {

using semantics::box_at;
using semantics::delta_at;

// A box's index is its place in the scores, which rises with (proposal, class).
template <typename T>
struct Candidates {
  DetectBoxes<T> call;
  T max_log_ratio, score_threshold, x_limit, y_limit;
  int64_t rows, columns, places;
  bool moves;  // by deltas. A kernel that compares their pointer loads them by generic loads on sm_100
  bool is_class_agnostic;

  explicit Candidates(const DetectBoxes<T>& call)
      : call(call),
        max_log_ratio(static_cast<T>(call.max_log_ratio)),
        score_threshold(static_cast<T>(call.score_threshold)),
        x_limit(semantics::clip_limit(static_cast<T>(call.image_width), call.inclusive)),
        y_limit(semantics::clip_limit(static_cast<T>(call.image_height), call.inclusive)),
        rows(call.scores.shape[0]),
        columns(call.scores.shape[1]),
        places(call.boxes.shape[0]),
        moves(call.deltas.data != nullptr),
        is_class_agnostic(call.is_class_agnostic()) {}

  __device__ int64_t classes() const { return columns - 1; }
  __device__ int64_t class_id(int64_t number) const { return number + 1; }  // its column
  __device__ int64_t index(int64_t row, int64_t column) const { return row * columns + column; }
  __device__ int64_t class_of(int64_t, int64_t id) const { return id; }
  __device__ bool wants(T score) const { return score > score_threshold; }
  __device__ bool can_be_kept(const Box<T>& box) const { return semantics::is_whole(box); }
  __device__ T score(int64_t index) const { return call.scores.data[index]; }
  __device__ Box<T> box(int64_t index) const {
    const int64_t row = index / columns;
    auto box = box_at(call.proposals.data, row);
    if (moves)
      box = semantics::decode(box, delta_at(call.deltas.data, is_class_agnostic ? row : index), max_log_ratio);
    return semantics::clip(box, x_limit, y_limit);
  }
  __device__ void write(int64_t place, int64_t index) const {
    semantics::put_detection(call, place, box(index), score(index), index % columns, index / columns);
  }
  __device__ void write_nothing(int64_t place) const { semantics::put_no_detection<T>(call, place); }
};

template <typename T>
int64_t suppress_candidates(const DetectBoxes<T>& call, int64_t* count, const Stream& stream) {
  const Candidates<T> candidates(call);
  const int64_t classes = candidates.columns - 1, pairs = candidates.rows * classes;
  require_countable(pairs);
  const DeviceGuard guard(stream);
  const SuppressionRule<T> rule{call.nms_threshold, static_cast<T>(call.inclusive ? 1 : 0),
                                std::min(pairs, candidates.places)};
  return suppress_and_write(candidates, rule, pairs, classes, count, stream);
}

}  // namespace

template <typename T>
void detect_boxes(const DetectBoxes<T>& call, int64_t* count, const Stream& stream) {
  check(call);
  require_count(count);
  suppress_candidates(call, count, stream);
}

template <typename T>
int64_t detect_boxes(const DetectBoxes<T>& call, const Stream& stream) {
  check(call);
  return suppress_candidates(call, nullptr, stream);
}

template void detect_boxes(const DetectBoxes<float>&, int64_t*, const Stream&);
template void detect_boxes(const DetectBoxes<double>&, int64_t*, const Stream&);
template int64_t detect_boxes(const DetectBoxes<float>&, const Stream&);
template int64_t detect_boxes(const DetectBoxes<double>&, const Stream&);

}  // namespace fastrcnn_engine::cuda
