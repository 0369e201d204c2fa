// Box regression targets and their inverse (R-CNN's parametrisation, paper section 2.3), and clipping.
#pragma once

#include "fastrcnn_engine/stream.h"
#include "fastrcnn_engine/tensor.h"

namespace fastrcnn_engine {

template <typename T>
struct EncodeBoxes {
  View<const T, 2> proposals;  // (R, 4): x1, y1, x2, y2
  View<const T, 2> targets;    // (R, 4): the box each proposal should become
  View<T, 2> deltas;           // (R, 4): dx, dy, dw, dh
};

// log(1000 / 16), as everybody has it: a box of 16 pixels becomes no wider than 1000.
constexpr double kMaxLogRatio = 4.135166556742356;

template <typename T>
struct DecodeBoxes {
  View<const T, 2> proposals;  // (R, 4)
  View<const T, 2> deltas;     // (R, 4 * classes)
  double max_log_ratio = kMaxLogRatio;  // dw and dh are held at this; > 0
  View<T, 2> boxes;            // (R, 4 * classes)
};

template <typename T>
struct ClipBoxes {
  View<const T, 2> boxes;  // (R, 4)
  double height = 0, width = 0;  // > 0; inclusive: >= 1
  bool inclusive = false;  // corners are pixels: clip to [0, width - 1] instead of [0, width]
  View<T, 2> clipped;      // (R, 4), may be boxes itself
};

template <typename T>
void check(const EncodeBoxes<T>& call);
template <typename T>
void check(const DecodeBoxes<T>& call);
template <typename T>
void check(const ClipBoxes<T>& call);

namespace cpu {
// Also InvalidArgument, naming the row, for a box that is not finite or has no area.
template <typename T>
void encode_boxes(const EncodeBoxes<T>& call);
template <typename T>
void decode_boxes(const DecodeBoxes<T>& call);
template <typename T>
void clip_boxes(const ClipBoxes<T>& call);
}  // namespace cpu

namespace cuda {
// A box without area may encode to infinities or NaN.
template <typename T>
void encode_boxes(const EncodeBoxes<T>& call, const Stream& stream);
template <typename T>
void decode_boxes(const DecodeBoxes<T>& call, const Stream& stream);
template <typename T>
void clip_boxes(const ClipBoxes<T>& call, const Stream& stream);
}  // namespace cuda

}  // namespace fastrcnn_engine
