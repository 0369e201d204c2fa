// From the network's outputs to the detections of one image, in one call (paper section 3):
// decode -> clip -> threshold -> non-maximum suppression per class -> the best overall.
#pragma once

#include <cstdint>

#include "fastrcnn_engine/box_codec.h"
#include "fastrcnn_engine/stream.h"
#include "fastrcnn_engine/tensor.h"

namespace fastrcnn_engine {

// Column 0 is background and never detected. A candidate is a (proposal, class) pair with
// score > T(score_threshold) (NaN fails) and a decoded box without NaN.
template <typename T>
struct DetectBoxes {
  View<const T, 2> proposals;  // (R, 4) in image pixels
  View<const T, 2> scores;     // (R, K + 1) class probabilities
  View<const T, 2> deltas;     // (R, 4 * (K + 1)) un-normalised, or (R, 4) for all classes (class-agnostic);
                               // null data: proposals as they are
  double image_height = 0, image_width = 0;  // as in ClipBoxes
  double max_log_ratio = kMaxLogRatio;  // as in DecodeBoxes
  double score_threshold = 0;
  float nms_threshold = 0;
  bool inclusive = false;      // corners are pixels: +1 in overlaps, clip to width - 1

  // Results by falling score, then rising (proposal, class); capacity M is the most to return. Where there
  // are fewer, the rest is filled up: boxes, scores and labels with 0, rows with -1.
  View<T, 2> boxes{nullptr, {-1, 4}};  // (M, 4); left as it is: refused
  View<T, 1> box_scores;           // (M,)
  View<int64_t, 1> labels;         // (M,) 1 .. K
  View<int64_t, 1> proposal_rows;  // (M,) which proposal it came from

  bool is_class_agnostic() const { return deltas.shape[1] == 4; }
};

template <typename T>
void check(const DetectBoxes<T>& call);

// Both return how many detections were written.
namespace cpu {
template <typename T>
int64_t detect_boxes(const DetectBoxes<T>& call);
}  // namespace cpu

namespace cuda {
// Waits for the stream: the number of detections is needed on the host.
template <typename T>
int64_t detect_boxes(const DetectBoxes<T>& call, const Stream& stream);
// Does not wait: the number goes to `count`, in device memory. May be captured in a CUDA graph.
template <typename T>
void detect_boxes(const DetectBoxes<T>& call, int64_t* count, const Stream& stream);
}  // namespace cuda

}  // namespace fastrcnn_engine
