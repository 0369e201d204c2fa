// One thread per candidate, then the steps of nms, then one thread per detection.
#include "fastrcnn_engine/detections.h"

#include <algorithm>
#include <cmath>

#include "fastrcnn_engine/semantics/box_rows.h"
#include "fastrcnn_engine/semantics/candidate.h"
#include "launch.cuh"
#include "nms_steps.cuh"

namespace fastrcnn_engine::cuda {
namespace {

using semantics::box_at;
using semantics::delta_at;
using semantics::put_box;

// Candidate i is proposal i / K with class i % K + 1, so rising i is rising (proposal, class).
template <typename T>
struct Candidates {
  T* boxes;            // (R * K, 4)
  T* scores;           // (R * K,) NaN: not a candidate
  int64_t* class_ids;  // (R * K,)
  int64_t count;       // R * K
};

template <typename T>
__global__ void candidates_kernel(DetectBoxes<T> call, Candidates<T> candidates) {
  const int64_t columns = call.scores.shape[1], classes = columns - 1;
  const T max_log_ratio = static_cast<T>(call.max_log_ratio);
  const T score_threshold = static_cast<T>(call.score_threshold);
  const T x_limit = semantics::clip_limit(static_cast<T>(call.image_width), call.inclusive);
  const T y_limit = semantics::clip_limit(static_cast<T>(call.image_height), call.inclusive);
  for (int64_t i = first_element(); i < candidates.count; i += element_stride()) {
    const int64_t row = i / classes, class_id = i % classes + 1, at = row * columns + class_id;
    auto box = box_at(call.proposals.data, row);
    if (call.deltas.data != nullptr)
      box = semantics::decode(box, delta_at(call.deltas.data, at), max_log_ratio);
    box = semantics::clip(box, x_limit, y_limit);
    const T score = call.scores.data[at];
    const bool wanted = semantics::is_candidate(score, score_threshold, box);
    put_box(candidates.boxes, i, box);
    candidates.scores[i] = wanted ? score : static_cast<T>(NAN);
    candidates.class_ids[i] = class_id;
  }
}

template <typename T>
__global__ void results_kernel(DetectBoxes<T> call, Candidates<T> candidates, const int64_t* keep,
                               const int64_t* kept) {
  const int64_t classes = call.scores.shape[1] - 1, capacity = call.boxes.shape[0];
  const int64_t count = *kept < capacity ? *kept : capacity;
  for (int64_t m = first_element(); m < count; m += element_stride()) {
    const int64_t i = keep[m];
    put_box(call.boxes.data, m, box_at(candidates.boxes, i));
    call.box_scores.data[m] = candidates.scores[i];
    call.labels.data[m] = candidates.class_ids[i];
    call.proposal_rows.data[m] = i / classes;
  }
}

}  // namespace

template <typename T>
int64_t detect_boxes(const DetectBoxes<T>& call, const Stream& stream) {
  check(call);
  const int64_t count = call.proposals.shape[0] * (call.scores.shape[1] - 1);
  const int64_t capacity = std::min(count, call.boxes.shape[0]);
  if (capacity <= 0) return 0;
  const DeviceGuard guard(stream);
  const TemporaryBuffer<T> boxes(4 * count, stream), scores(count, stream);
  const TemporaryBuffer<int64_t> class_ids(count, stream), keep(capacity, stream), kept(1, stream);
  const Candidates<T> candidates{boxes.data(), scores.data(), class_ids.data(), count};

  launch_threads("detection candidates", candidates_kernel<T>, count, stream, call, candidates);
  const ScoredBoxes<T> list{boxes.data(), scores.data(), class_ids.data(), count};
  queue_nms(list, call.nms_threshold, call.inclusive, keep.data(), capacity, kept.data(), stream);
  launch_threads("detection results", results_kernel<T>, capacity, stream, call, candidates,
                 keep.data(), kept.data());
  return std::min(fetch(kept.data(), stream), capacity);
}

template int64_t detect_boxes(const DetectBoxes<float>&, const Stream&);
template int64_t detect_boxes(const DetectBoxes<double>&, const Stream&);

}  // namespace fastrcnn_engine::cuda
