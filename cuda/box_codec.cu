// One thread per box.
#include "fastrcnn_engine/box_codec.h"

#include "fastrcnn_engine/semantics/box_rows.h"
#include "launch.cuh"

namespace fastrcnn_engine::cuda {
namespace {

using semantics::box_at;
using semantics::delta_at;
using semantics::put_box;
using semantics::put_delta;

template <typename T>
__global__ void encode_kernel(EncodeBoxes<T> call) {
  const int64_t count = call.proposals.shape[0];
  for (int64_t r = first_element(); r < count; r += element_stride()) {
    const auto proposal = box_at(call.proposals.data, r), target = box_at(call.targets.data, r);
    put_delta(call.deltas.data, r, semantics::encode(proposal, target));
  }
}

template <typename T>
__global__ void decode_kernel(DecodeBoxes<T> call) {
  const int64_t classes = call.deltas.shape[1] / 4, count = call.deltas.shape[0] * classes;
  const T max_log_ratio = static_cast<T>(call.max_log_ratio);
  for (int64_t i = first_element(); i < count; i += element_stride()) {
    const auto proposal = box_at(call.proposals.data, i / classes);
    put_box(call.boxes.data, i,
            semantics::decode(proposal, delta_at(call.deltas.data, i), max_log_ratio));
  }
}

template <typename T>
__global__ void clip_kernel(ClipBoxes<T> call) {
  const int64_t count = call.boxes.shape[0];
  const T x_limit = semantics::clip_limit(static_cast<T>(call.width), call.inclusive);
  const T y_limit = semantics::clip_limit(static_cast<T>(call.height), call.inclusive);
  for (int64_t r = first_element(); r < count; r += element_stride())
    put_box(call.clipped.data, r, semantics::clip(box_at(call.boxes.data, r), x_limit, y_limit));
}

}  // namespace

template <typename T>
void encode_boxes(const EncodeBoxes<T>& call, const Stream& stream) {
  check(call);
  if (call.deltas.size() == 0) return;
  const DeviceGuard guard(stream);
  launch_threads("encode_boxes", encode_kernel<T>, call.proposals.shape[0], stream, call);
}

template <typename T>
void decode_boxes(const DecodeBoxes<T>& call, const Stream& stream) {
  check(call);
  if (call.boxes.size() == 0) return;
  const DeviceGuard guard(stream);
  launch_threads("decode_boxes", decode_kernel<T>, call.boxes.size() / 4, stream, call);
}

template <typename T>
void clip_boxes(const ClipBoxes<T>& call, const Stream& stream) {
  check(call);
  if (call.clipped.size() == 0) return;
  const DeviceGuard guard(stream);
  launch_threads("clip_boxes", clip_kernel<T>, call.boxes.shape[0], stream, call);
}

template void encode_boxes(const EncodeBoxes<float>&, const Stream&);
template void encode_boxes(const EncodeBoxes<double>&, const Stream&);
template void decode_boxes(const DecodeBoxes<float>&, const Stream&);
template void decode_boxes(const DecodeBoxes<double>&, const Stream&);
template void clip_boxes(const ClipBoxes<float>&, const Stream&);
template void clip_boxes(const ClipBoxes<double>&, const Stream&);

}  // namespace fastrcnn_engine::cuda
