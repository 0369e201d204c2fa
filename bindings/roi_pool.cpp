// RoI pooling, its gradient and the number of threads: makes views of arrays and calls the engine. Checks
// only what the engine cannot see: whether arrays share memory, and a scale that float32 cannot hold.
#include "fastrcnn_engine/roi_pool.h"

#include <cmath>
#include <optional>

#include "dispatch.h"
#include "fastrcnn_engine/threads.h"
#include "operators.h"

namespace fastrcnn_engine::bindings {

namespace {

// Calls run.operator()<T, Index>() with the types of the features and of their argmax, if there is one.
template <typename Run>
void for_features(const Array& features, const Array* argmax, Run run) {
  const DLDataType dtype = features.dtype();
  const auto with = [&]<typename T>() {
    const DLDataType index = argmax != nullptr ? argmax->dtype() : DLDataType{dlpack::kInt, 32, 1};
    if (index.code == dlpack::kInt && index.bits == 32 && index.lanes == 1)
      run.template operator()<T, int32_t>();
    else if (index.code == dlpack::kUInt && index.bits == 16 && index.lanes == 1)
      run.template operator()<T, uint16_t>();
    else
      fail(argmax->name(), " must be int32 or uint16, got ", dtype_name(index));
  };
  if (dtype.bits == 16 && dtype.lanes == 1 && dtype.code == dlpack::kFloat)
    with.template operator()<float16>();
  else if (dtype.bits == 16 && dtype.lanes == 1 && dtype.code == dlpack::kBfloat)
    with.template operator()<bfloat16>();
  else
    for_float(features, with, "float16, bfloat16, float32 or float64");
}

// What is written must not be read or written as something else in the same call.
void require_apart(const Array& written, std::initializer_list<const Array*> others) {
  for (const Array* other : others)
    if (written.overlaps(*other))
      fail(written.name(), " must not share memory with ", other->name());
}

void forward(py::handle input, py::handle boxes, double spatial_scale, py::handle out,
             py::handle argmax_out, uintptr_t stream, int threads) {
  const Array features(input, "input", Access::read, stream);
  const Array rois(boxes, "boxes", Access::read, stream);
  const Array output(out, "out", Access::write, stream);
  std::optional<Array> argmax;
  if (!argmax_out.is_none()) argmax.emplace(argmax_out, "argmax_out", Access::write, stream);
  const Array& last = argmax ? *argmax : output;
  const Layout layout = common_layout({&features, &output, &last});

  for_features(features, argmax ? &*argmax : nullptr, [&]<typename T, typename Index>() {
    RoiPoolForward<T, Index> call;
    call.features = features.map<const T>(layout);
    call.rois = rois.view<const float, 2>();
    call.spatial_scale = static_cast<float>(spatial_scale);
    require(call.spatial_scale > 0 && std::isfinite(call.spatial_scale),
            "spatial_scale must be a positive number in float32, got ", spatial_scale);
    call.output = output.map<T>(layout);
    if (argmax) call.argmax = argmax->map<Index>(layout);
    call.threads = threads;
    require_apart(output, {&features, &rois});
    if (argmax) require_apart(*argmax, {&features, &rois, &output});
    on_device(
        {&features, &rois, &output, &last}, stream, [&] { cpu::roi_pool_forward(call); },
        [&](auto s) { cuda::roi_pool_forward(call, s); });
  });
}

void backward(py::handle grad_output, py::handle argmax, py::handle boxes, double spatial_scale,
              py::handle grad_input, uintptr_t stream, int threads, py::handle new_bytes) {
  const Array gradient(grad_output, "grad_output", Access::read, stream);
  const Array indices(argmax, "argmax", Access::read, stream);
  const Array rois(boxes, "boxes", Access::read, stream);
  const Array result(grad_input, "grad_input", Access::write, stream);
  const Layout layout = common_layout({&gradient, &indices, &result});

  for_features(gradient, &indices, [&]<typename T, typename Index>() {
    RoiPoolBackward<T, Index> call;
    call.grad_output = gradient.map<const T>(layout);
    call.argmax = indices.map<const Index>(layout);
    call.rois = rois.view<const float, 2>();
    call.grad_input = result.map<T>(layout);
    call.threads = threads;
    call.spatial_scale = static_cast<float>(spatial_scale);
    require(spatial_scale >= 0 && std::isfinite(call.spatial_scale),
            "spatial_scale must be a positive number in float32, or 0 where it is not known, got ",
            spatial_scale);
    on_device(
        {&gradient, &indices, &rois, &result}, stream, [&] { cpu::roi_pool_backward(call); },
        [&](auto s) { cuda::roi_pool_backward(call, s); }, new_bytes);
  });
}

}  // namespace

void bind_roi_pool(py::module_& module) {
  module.def("roi_pool_forward", &forward);
  module.def("roi_pool_backward", &backward);
  module.def("num_threads", &num_threads);
  module.def("set_num_threads", &set_num_threads);
}

}  // namespace fastrcnn_engine::bindings
