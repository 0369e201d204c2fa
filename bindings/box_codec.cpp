// encode_boxes, decode_boxes, clip_boxes: makes views of arrays and calls the engine, which checks shapes.
#include "fastrcnn_engine/box_codec.h"

#include "dispatch.h"
#include "operators.h"

namespace fastrcnn_engine::bindings {

namespace {

void encode(py::handle reference_boxes, py::handle proposals, py::handle out, uintptr_t stream) {
  const Array targets(reference_boxes, "reference_boxes", Access::read, stream);
  const Array from(proposals, "proposals", Access::read, stream);
  const Array deltas(out, "out", Access::write, stream);
  for_float(from, [&]<typename T>() {
    EncodeBoxes<T> call;
    call.proposals = from.view<const T, 2>();
    call.targets = targets.view<const T, 2>();
    call.deltas = deltas.view<T, 2>();
    on_device(
        {&from, &targets, &deltas}, stream, [&] { cpu::encode_boxes(call); },
        [&](auto s) { cuda::encode_boxes(call, s); });
  });
}

void decode(py::handle deltas, py::handle boxes, double max_log_ratio, py::handle out,
            uintptr_t stream) {
  const Array shifts(deltas, "deltas", Access::read, stream);
  const Array from(boxes, "boxes", Access::read, stream);
  const Array result(out, "out", Access::write, stream);
  for_float(shifts, [&]<typename T>() {
    DecodeBoxes<T> call;
    call.proposals = from.view<const T, 2>();
    call.deltas = shifts.view<const T, 2>();
    call.max_log_ratio = max_log_ratio;
    call.boxes = result.view<T, 2>();
    on_device(
        {&shifts, &from, &result}, stream, [&] { cpu::decode_boxes(call); },
        [&](auto s) { cuda::decode_boxes(call, s); });
  });
}

void clip(py::handle boxes, double height, double width, bool inclusive, py::handle out,
          uintptr_t stream) {
  const Array from(boxes, "boxes", Access::read, stream);
  const Array result(out, "out", Access::write, stream);
  for_float(from, [&]<typename T>() {
    ClipBoxes<T> call;
    call.boxes = from.view<const T, 2>();
    call.height = height;
    call.width = width;
    call.inclusive = inclusive;
    call.clipped = result.view<T, 2>();
    on_device(
        {&from, &result}, stream, [&] { cpu::clip_boxes(call); },
        [&](auto s) { cuda::clip_boxes(call, s); });
  });
}

}  // namespace

void bind_box_codec(py::module_& module) {
  module.attr("MAX_LOG_RATIO") = kMaxLogRatio;
  module.def("encode_boxes", &encode);
  module.def("decode_boxes", &decode);
  module.def("clip_boxes", &clip);
}

}  // namespace fastrcnn_engine::bindings
