// box_iou and nms: makes views of arrays and calls the engine, which checks shapes. Python allocates the
// results.
#include "fastrcnn_engine/nms.h"

#include <pybind11/stl.h>

#include <optional>

#include "dispatch.h"
#include "operators.h"

namespace fastrcnn_engine::bindings {

namespace {

void iou(py::handle boxes1, py::handle boxes2, bool inclusive, py::handle out, uintptr_t stream) {
  const Array first(boxes1, "boxes1", Access::read, stream);
  const Array second(boxes2, "boxes2", Access::read, stream);
  const Array result(out, "out", Access::write, stream);
  for_float(first, [&]<typename T>() {
    BoxIou<T> call;
    call.boxes1 = first.view<const T, 2>();
    call.boxes2 = second.view<const T, 2>();
    call.inclusive = inclusive;
    call.iou = result.view<T, 2>();
    on_device(
        {&first, &second, &result}, stream, [&] { cpu::box_iou(call); },
        [&](auto s) { cuda::box_iou(call, s); });
  });
}

// Returns how many were kept, or writes it to `count` and waits for nothing.
std::optional<int64_t> suppress(py::handle boxes, py::handle scores, py::handle idxs,
                                double iou_threshold, bool inclusive, py::handle keep, py::handle count,
                                uintptr_t stream, py::handle new_bytes) {
  const Array corners(boxes, "boxes", Access::read, stream);
  const Array ranks(scores, "scores", Access::read, stream);
  std::optional<Array> classes;
  if (!idxs.is_none()) classes.emplace(idxs, "idxs", Access::read, stream);
  const Array kept(keep, "keep", Access::write, stream);
  std::optional<Array> counter;
  if (!count.is_none()) counter.emplace(count, "count", Access::write, stream);
  return for_float(corners, [&]<typename T>() {
    Nms<T> call;
    call.boxes = corners.view<const T, 2>();
    call.scores = ranks.view<const T, 1>();
    if (classes) call.class_ids = classes->vector<const int64_t>(call.boxes.shape[0]);
    call.iou_threshold = static_cast<float>(iou_threshold);
    call.inclusive = inclusive;
    call.keep = kept.view<int64_t, 1>();
    int64_t* const number = counter ? counter->scalar<int64_t>() : nullptr;
    return on_device(
        {&corners, &ranks, classes ? &*classes : &corners, &kept, counter ? &*counter : &kept}, stream,
        [&] {
          return counted(number, [&] { return cpu::nms(call); }, [&] { *number = cpu::nms(call); });
        },
        [&](auto s) {
          return counted(number, [&] { return cuda::nms(call, s); }, [&] { cuda::nms(call, number, s); });
        },
        new_bytes);
  });
}

}  // namespace

void bind_nms(py::module_& module) {
  module.def("box_iou", &iou);
  module.def("nms", &suppress);
}

}  // namespace fastrcnn_engine::bindings
