// The box loss and its gradient: makes views of arrays and calls the engine, which checks all shapes but
// those of labels and weights, as it gets pointers to them.
#include "fastrcnn_engine/smooth_l1.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "dispatch.h"
#include "operators.h"

namespace fastrcnn_engine::bindings {

namespace {

// The operands of both directions; labels and weights may be None.
struct Operands {
  Operands(py::handle deltas_, py::handle targets_, py::handle labels_, py::handle weights_,
           uintptr_t stream)
      : deltas(deltas_, "deltas", Access::read, stream),
        targets(targets_, "targets", Access::read, stream) {
    if (!labels_.is_none()) labels.emplace(labels_, "labels", Access::read, stream);
    if (!weights_.is_none()) weights.emplace(weights_, "weights", Access::read, stream);
  }

  template <typename T>
  SmoothL1<T> call(double beta, std::optional<double> normalizer) const {
    SmoothL1<T> call;
    call.deltas = deltas.view<const T, 2>();
    call.targets = targets.view<const T, 2>();
    const int64_t rows = call.targets.shape[0], width = call.targets.shape[1];
    if (labels) call.labels = labels->vector<const int64_t>(rows);
    if (weights) {
      const View<const T, 2> w = weights->view<const T, 2>();
      if (w.shape[0] != rows || w.shape[1] != width)
        fail("weights must have the shape of targets (", rows, ", ", width, "), got ",
             weights->shape_text());
      call.weights = w.data;
    }
    call.beta = beta;
    call.normalizer = normalizer.value_or(static_cast<double>(std::max<int64_t>(rows, 1)));
    return call;
  }

  const Array& labels_or_deltas() const { return labels ? *labels : deltas; }
  const Array& weights_or_deltas() const { return weights ? *weights : deltas; }

  Array deltas, targets;
  std::optional<Array> labels, weights;
};

void forward(py::handle deltas, py::handle targets, py::handle labels, py::handle weights,
             double beta, std::optional<double> normalizer, py::handle loss, uintptr_t stream) {
  const Operands in(deltas, targets, labels, weights, stream);
  const Array value(loss, "loss", Access::write, stream);
  for_float(in.deltas, [&]<typename T>() {
    const SmoothL1<T> call = in.call<T>(beta, normalizer);
    T* out = value.scalar<T>();
    on_device(
        {&in.deltas, &in.targets, &in.labels_or_deltas(), &in.weights_or_deltas(), &value}, stream,
        [&] { cpu::smooth_l1_forward(call, out); },
        [&](auto s) { cuda::smooth_l1_forward(call, out, s); });
  });
}

void backward(py::handle deltas, py::handle targets, py::handle labels, py::handle weights,
              double beta, std::optional<double> normalizer, py::handle grad_loss,
              py::handle grad_deltas, uintptr_t stream) {
  const Operands in(deltas, targets, labels, weights, stream);
  const Array upstream(grad_loss, "grad_loss", Access::read, stream);
  const Array result(grad_deltas, "grad_deltas", Access::write, stream);
  for_float(in.deltas, [&]<typename T>() {
    const SmoothL1<T> call = in.call<T>(beta, normalizer);
    const T* gradient = upstream.scalar<const T>();
    const View<T, 2> out = result.view<T, 2>();
    on_device(
        {&in.deltas, &in.targets, &in.labels_or_deltas(), &in.weights_or_deltas(), &upstream,
         &result},
        stream, [&] { cpu::smooth_l1_backward(call, gradient, out); },
        [&](auto s) { cuda::smooth_l1_backward(call, gradient, out, s); });
  });
}

}  // namespace

void bind_smooth_l1(py::module_& module) {
  module.def("smooth_l1_forward", &forward);
  module.def("smooth_l1_backward", &backward);
}

}  // namespace fastrcnn_engine::bindings
