// One thread per output in the forward pass, one thread per plane in the backward pass.
#include "fastrcnn_engine/roi_pool.h"

#include <cmath>

#include "fastrcnn_engine/semantics/roi_bins.h"
#include "launch.cuh"

namespace fastrcnn_engine::cuda {
namespace {

using semantics::BinRange;

struct Element {
  int64_t row, channel, cell;
};

// Which element of the map lies at `offset`. Neighbouring threads write neighbouring addresses.
template <typename T>
__device__ Element element_at(const MapView<T>& map, int64_t offset) {
  const int64_t cells = map.cells();
  if (map.layout == Layout::nchw)
    return {offset / cells / map.c, offset / cells % map.c, offset % cells};
  return {offset / map.c / cells, offset % map.c, offset / map.c % cells};
}

template <typename T>
struct Maximum {
  T value;
  int64_t cell;  // -1: there is none
};

template <typename T>
__device__ Maximum<T> pool_bin(const MapView<const T>& features, int64_t image, int64_t channel,
                               BinRange y, BinRange x) {
  if (y.end <= y.begin || x.end <= x.begin) return {T(0), -1};
  const T* plane = features.data + features.offset(image, channel, 0);
  const int64_t stride = features.cell_stride();
  Maximum<T> best{static_cast<T>(-INFINITY), -1};
  for (int64_t row = y.begin; row < y.end; ++row) {
    for (int64_t cell = row * features.w + x.begin; cell < row * features.w + x.end; ++cell) {
      const T value = plane[cell * stride];
      if (semantics::beats(value, best.value)) best = {value, cell};
    }
  }
  if (best.cell >= 0) return best;
  // Nothing was greater than -inf: the first cell stands for the bin.
  const int64_t first = y.begin * features.w + x.begin;
  return {plane[first * stride], first};
}

template <typename T>
__global__ void forward_kernel(RoiPoolForward<T> call) {
  const int64_t count = call.output.size();
  for (int64_t i = first_element(); i < count; i += element_stride()) {
    const Element out = element_at(call.output, i);
    const float* roi = call.rois.data + 5 * out.row;
    const int64_t image = semantics::roi_image(roi[0], call.features.n);
    Maximum<T> best{T(0), -1};
    if (image >= 0) {
      const auto y_span = semantics::roi_span(roi[2], roi[4], call.spatial_scale, call.output.h);
      const auto x_span = semantics::roi_span(roi[1], roi[3], call.spatial_scale, call.output.w);
      const auto y = semantics::bin_range(y_span, out.cell / call.output.w, call.features.h);
      const auto x = semantics::bin_range(x_span, out.cell % call.output.w, call.features.w);
      best = pool_bin(call.features, image, out.channel, y, x);
    }
    call.output.data[i] = best.value;
    if (call.argmax.data != nullptr) call.argmax.data[i] = static_cast<int32_t>(best.cell);
  }
}

// A thread owns its plane, so additions need no atomics and come in the contract's order.
template <typename T>
__global__ void backward_kernel(RoiPoolBackward<T> call) {
  const MapView<T>& grad_input = call.grad_input;
  const int64_t planes = grad_input.n * grad_input.c, cells = grad_input.cells();
  const int64_t rows = call.rois.shape[0], bins = call.grad_output.cells();
  for (int64_t plane = first_element(); plane < planes; plane += element_stride()) {
    const int64_t image = plane / grad_input.c, channel = plane % grad_input.c;
    for (int64_t r = 0; r < rows; ++r) {
      if (semantics::roi_image(call.rois.data[5 * r], grad_input.n) != image) continue;
      for (int64_t bin = 0; bin < bins; ++bin) {
        const int64_t from = call.grad_output.offset(r, channel, bin);
        const int64_t cell = call.argmax.data[from];
        if (cell < 0 || cell >= cells) continue;
        grad_input.data[grad_input.offset(image, channel, cell)] += call.grad_output.data[from];
      }
    }
  }
}

}  // namespace

template <typename T>
void roi_pool_forward(const RoiPoolForward<T>& call, const Stream& stream) {
  check(call);
  if (call.output.size() == 0) return;
  const DeviceGuard guard(stream);
  launch_threads("roi_pool_forward", forward_kernel<T>, call.output.size(), stream, call);
}

template <typename T>
void roi_pool_backward(const RoiPoolBackward<T>& call, const Stream& stream) {
  check(call);
  if (call.grad_input.size() == 0) return;
  const DeviceGuard guard(stream);
  fill_bytes(call.grad_input.data, 0, call.grad_input.size(), stream);
  if (call.grad_output.size() == 0) return;
  launch_threads("roi_pool_backward", backward_kernel<T>, call.grad_input.n * call.grad_input.c,
                 stream, call);
}

template void roi_pool_forward(const RoiPoolForward<float>&, const Stream&);
template void roi_pool_forward(const RoiPoolForward<double>&, const Stream&);
template void roi_pool_backward(const RoiPoolBackward<float>&, const Stream&);
template void roi_pool_backward(const RoiPoolBackward<double>&, const Stream&);

}  // namespace fastrcnn_engine::cuda
