#include "fastrcnn_engine/roi_pool.h"

#include <optional>

#include "dispatch.h"
#include "operators.h"

namespace fastrcnn_engine::bindings {

namespace {

void forward(py::handle input, py::handle boxes, double spatial_scale, py::handle out,
             py::handle argmax_out, uintptr_t stream) {
  const Array features(input, "input", Access::read, stream);
  const Array rois(boxes, "boxes", Access::read, stream);
  const Array output(out, "out", Access::write, stream);
  std::optional<Array> argmax;
  if (!argmax_out.is_none()) argmax.emplace(argmax_out, "argmax_out", Access::write, stream);
  const Array& last = argmax ? *argmax : output;
  const Layout layout = common_layout({&features, &output, &last});

  for_float(features, [&]<typename T>() {
    RoiPoolForward<T> call;
    call.features = features.map<const T>(layout);
    call.rois = rois.view<const float, 2>();
    call.spatial_scale = static_cast<float>(spatial_scale);
    call.output = output.map<T>(layout);
    if (argmax) call.argmax = argmax->map<int32_t>(layout);
    on_device(
        {&features, &rois, &output, &last}, stream, [&] { cpu::roi_pool_forward(call); },
        [&](auto s) { cuda::roi_pool_forward(call, s); });
  });
}

void backward(py::handle grad_output, py::handle argmax, py::handle boxes, py::handle grad_input,
              uintptr_t stream) {
  const Array gradient(grad_output, "grad_output", Access::read, stream);
  const Array indices(argmax, "argmax", Access::read, stream);
  const Array rois(boxes, "boxes", Access::read, stream);
  const Array result(grad_input, "grad_input", Access::write, stream);
  const Layout layout = common_layout({&gradient, &indices, &result});

  for_float(gradient, [&]<typename T>() {
    RoiPoolBackward<T> call;
    call.grad_output = gradient.map<const T>(layout);
    call.argmax = indices.map<const int32_t>(layout);
    call.rois = rois.view<const float, 2>();
    call.grad_input = result.map<T>(layout);
    on_device(
        {&gradient, &indices, &rois, &result}, stream, [&] { cpu::roi_pool_backward(call); },
        [&](auto s) { cuda::roi_pool_backward(call, s); });
  });
}

}  // namespace

void bind_roi_pool(py::module_& module) {
  module.def("roi_pool_forward", &forward);
  module.def("roi_pool_backward", &backward);
}

}  // namespace fastrcnn_engine::bindings
