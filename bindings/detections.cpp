// detect_boxes: makes views of arrays and calls the engine, which checks shapes. Python allocates the
// results.
#include "fastrcnn_engine/detections.h"

#include <pybind11/stl.h>

#include <optional>

#include "dispatch.h"
#include "operators.h"

namespace fastrcnn_engine::bindings {

namespace {

// Results go into the four arrays of capacity max_detections. Returns how many were found, or writes it to
// `count` and waits for nothing.
std::optional<int64_t> detect(py::handle boxes, py::handle scores, py::handle deltas, double height, double width,
               double max_log_ratio, double score_threshold, double nms_threshold, bool inclusive,
               py::handle out_boxes, py::handle out_scores, py::handle out_labels,
               py::handle out_rows, py::handle count, uintptr_t stream, py::handle new_bytes) {
  const Array proposals(boxes, "boxes", Access::read, stream);
  const Array probabilities(scores, "scores", Access::read, stream);
  std::optional<Array> shifts;
  if (!deltas.is_none()) shifts.emplace(deltas, "deltas", Access::read, stream);
  const Array kept_boxes(out_boxes, "output boxes", Access::write, stream);
  const Array kept_scores(out_scores, "output scores", Access::write, stream);
  const Array kept_labels(out_labels, "output labels", Access::write, stream);
  const Array kept_rows(out_rows, "output rows", Access::write, stream);
  std::optional<Array> counter;
  if (!count.is_none()) counter.emplace(count, "count", Access::write, stream);

  return for_float(proposals, [&]<typename T>() {
    DetectBoxes<T> call;
    call.proposals = proposals.view<const T, 2>();
    call.scores = probabilities.view<const T, 2>();
    if (shifts) call.deltas = shifts->view<const T, 2>();
    // Without elements there may be no memory, and the engine takes null for no deltas: so that it looks at
    // their shape, any address, which it never reads from.
    static constexpr T no_elements{};
    if (shifts && call.deltas.data == nullptr) call.deltas.data = &no_elements;
    call.image_height = height;
    call.image_width = width;
    call.max_log_ratio = max_log_ratio;
    call.score_threshold = score_threshold;
    call.nms_threshold = static_cast<float>(nms_threshold);
    call.inclusive = inclusive;
    call.boxes = kept_boxes.view<T, 2>();
    call.box_scores = kept_scores.view<T, 1>();
    call.labels = kept_labels.view<int64_t, 1>();
    call.proposal_rows = kept_rows.view<int64_t, 1>();
    int64_t* const number = counter ? counter->scalar<int64_t>() : nullptr;
    return on_device(
        {&proposals, &probabilities, shifts ? &*shifts : &proposals, &kept_boxes, &kept_scores,
         &kept_labels, &kept_rows, counter ? &*counter : &kept_rows},
        stream,
        [&] {
          return counted(number, [&] { return cpu::detect_boxes(call); },
                         [&] { *number = cpu::detect_boxes(call); });
        },
        [&](auto s) {
          return counted(number, [&] { return cuda::detect_boxes(call, s); },
                         [&] { cuda::detect_boxes(call, number, s); });
        },
        new_bytes);
  });
}

}  // namespace

void bind_detections(py::module_& module) { module.def("detect_boxes", &detect); }

}  // namespace fastrcnn_engine::bindings
