// Box coding and clipping: the checks of both backends, and the CPU's loops over rows. The formulas are in
// semantics/, none is here.
#include "fastrcnn_engine/box_codec.h"

#include "checks.h"
#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/semantics/box_codec.h"
#include "fastrcnn_engine/semantics/box_rows.h"

namespace fastrcnn_engine {

template <typename T>
void check(const EncodeBoxes<T>& call) {
  require_boxes(call.proposals, "proposals");
  require_boxes(call.targets, "reference_boxes");
  require_rows(call.targets, "reference_boxes", call.proposals.shape[0], "proposals");
  require_shape(call.deltas, "deltas", call.proposals.shape[0], 4);
}

template <typename T>
void check(const DecodeBoxes<T>& call) {
  require_boxes(call.proposals, "boxes");
  require_rows(call.deltas, "deltas", call.proposals.shape[0], "boxes");
  require(call.deltas.shape[1] % 4 == 0, "deltas must be (R, 4 * classes), got (",
          call.deltas.shape[0], ", ", call.deltas.shape[1], ")");
  require(call.max_log_ratio > 0, "max_log_ratio must be positive, got ", call.max_log_ratio);
  require_shape(call.boxes, "output", call.deltas.shape[0], call.deltas.shape[1]);
}

template <typename T>
void check(const ClipBoxes<T>& call) {
  require_boxes(call.boxes, "boxes");
  require_image(call.height, call.width, call.inclusive, "size");
  require_shape(call.clipped, "output", call.boxes.shape[0], 4);
}

template void check(const EncodeBoxes<float>&);
template void check(const EncodeBoxes<double>&);
template void check(const DecodeBoxes<float>&);
template void check(const DecodeBoxes<double>&);
template void check(const ClipBoxes<float>&);
template void check(const ClipBoxes<double>&);

namespace cpu {
namespace {

using semantics::box_at;
using semantics::delta_at;
using semantics::put_box;
using semantics::put_delta;

template <typename T>
semantics::Box<T> encodable_box(const View<const T, 2>& boxes, const char* name, int64_t row) {
  const auto box = box_at(boxes.data, row);
  require(semantics::encodable(box), name, "[", row,
          "] must be finite with x2 > x1 and y2 > y1, got (", box.x1, ", ", box.y1, ", ", box.x2,
          ", ", box.y2, ")");
  return box;
}

}  // namespace

template <typename T>
void encode_boxes(const EncodeBoxes<T>& call) {
  check(call);
  for (int64_t r = 0; r < call.proposals.shape[0]; ++r) {
    const auto proposal = encodable_box(call.proposals, "proposals", r);
    const auto target = encodable_box(call.targets, "reference_boxes", r);
    put_delta(call.deltas.data, r, semantics::encode(proposal, target));
  }
}

template <typename T>
void decode_boxes(const DecodeBoxes<T>& call) {
  check(call);
  const int64_t classes = call.deltas.shape[1] / 4;
  const T max_log_ratio = static_cast<T>(call.max_log_ratio);
  for (int64_t r = 0; r < call.proposals.shape[0]; ++r) {
    const auto proposal = box_at(call.proposals.data, r);
    for (int64_t k = r * classes; k < (r + 1) * classes; ++k)
      put_box(call.boxes.data, k,
              semantics::decode(proposal, delta_at(call.deltas.data, k), max_log_ratio));
  }
}

template <typename T>
void clip_boxes(const ClipBoxes<T>& call) {
  check(call);
  const T x_limit = semantics::clip_limit(static_cast<T>(call.width), call.inclusive);
  const T y_limit = semantics::clip_limit(static_cast<T>(call.height), call.inclusive);
  for (int64_t r = 0; r < call.boxes.shape[0]; ++r)
    put_box(call.clipped.data, r, semantics::clip(box_at(call.boxes.data, r), x_limit, y_limit));
}

template void encode_boxes(const EncodeBoxes<float>&);
template void encode_boxes(const EncodeBoxes<double>&);
template void decode_boxes(const DecodeBoxes<float>&);
template void decode_boxes(const DecodeBoxes<double>&);
template void clip_boxes(const ClipBoxes<float>&);
template void clip_boxes(const ClipBoxes<double>&);

}  // namespace cpu
}  // namespace fastrcnn_engine
