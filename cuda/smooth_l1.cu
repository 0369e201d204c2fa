// One block sums the loss, in the order the contract fixes; one thread per element of the gradient.
#include "fastrcnn_engine/smooth_l1.h"

#include "fastrcnn_engine/semantics/smooth_l1.h"
#include "launch.cuh"

namespace fastrcnn_engine::cuda {
namespace {

template <typename T>
__device__ int64_t label_at(const SmoothL1<T>& call, int64_t r) {
  return call.labels == nullptr ? 0 : call.labels[r];
}

// First of the D columns of deltas that a row with this label uses, -1 where it counts nothing.
template <typename T>
__device__ int64_t first_column(const SmoothL1<T>& call, int64_t label) {
  if (call.labels == nullptr) return 0;
  const int64_t width = call.targets.shape[1];
  return label > 0 && label < call.deltas.shape[1] / width ? label * width : -1;
}

template <typename T>
__device__ T weight_at(const SmoothL1<T>& call, int64_t r, int64_t d) {
  return call.weights == nullptr ? T(1) : call.weights[r * call.targets.shape[1] + d];
}

// deltas - targets of row `r`, component `d`.
template <typename T>
__device__ T difference_at(const SmoothL1<T>& call, int64_t r, int64_t column, int64_t d) {
  return call.deltas.data[r * call.deltas.shape[1] + column + d] -
         call.targets.data[r * call.targets.shape[1] + d];
}

constexpr int kTogether = 4;  // components of a row: those of a box

static_assert(kThreads == semantics::kLossLanes, "the number of lanes is part of the result");

template <typename T>
__global__ void forward_kernel(SmoothL1<T> call, T* loss) {
  __shared__ double lanes[kThreads];
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t rows = call.targets.shape[0], width = call.targets.shape[1];
  const T beta = static_cast<T>(call.beta);
  double sum = 0;
  int64_t next = lane < rows ? label_at(call, lane) : 0;
  for (int64_t r = lane; r < rows; r += kThreads) {
    const int64_t column = first_column(call, next);
    next = r + kThreads < rows ? label_at(call, r + kThreads) : 0;  // on its way meanwhile
    if (column < 0) continue;
    double row = 0;
    for (int64_t first = 0; first < width; first += kTogether) {
      T differences[kTogether], weights[kTogether];  // all on their way before the first is needed
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const bool is_there = first + i < width;
        differences[i] = is_there ? difference_at(call, r, column, first + i) : T(0);
        weights[i] = is_there ? weight_at(call, r, first + i) : T(0);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (first + i < width)
          row += static_cast<double>(weights[i] * semantics::smooth_l1(differences[i], beta));
    }
    sum += row;
  }
  lanes[lane] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) lanes[lane] += lanes[lane + half];
  }
  if (lane == 0) *loss = static_cast<T>(lanes[0] / call.normalizer);
}

template <typename T>
__global__ void backward_kernel(SmoothL1<T> call, const T* grad_loss, T* grad_deltas) {
  const int64_t columns = call.deltas.shape[1], count = call.deltas.size();
  const T beta = static_cast<T>(call.beta);
  const T scale = *grad_loss / static_cast<T>(call.normalizer);
  for (int64_t i = first_element(); i < count; i += element_stride()) {
    const int64_t r = i / columns, column = first_column(call, label_at(call, r)), d = i % columns - column;
    T gradient = 0;
    if (column >= 0 && d >= 0 && d < call.targets.shape[1]) {
      const T slope = semantics::smooth_l1_slope(difference_at(call, r, column, d), beta);
      gradient = weight_at(call, r, d) * slope * scale;
    }
    grad_deltas[i] = gradient;
  }
}

}  // namespace

template <typename T>
void smooth_l1_forward(const SmoothL1<T>& call, T* loss, const Stream& stream) {
  check(call, loss);
  const DeviceGuard guard(stream);
  // No rows is no reason to return: the loss is then 0 and has to be written.
  launch_blocks("smooth_l1_forward", forward_kernel<T>, 1, stream, call, loss);
}

template <typename T>
void smooth_l1_backward(const SmoothL1<T>& call, const T* grad_loss, View<T, 2> grad_deltas,
                        const Stream& stream) {
  check(call, grad_loss, grad_deltas);
  if (grad_deltas.size() == 0) return;
  const DeviceGuard guard(stream);
  launch_threads("smooth_l1_backward", backward_kernel<T>, grad_deltas.size(), stream, call,
                 grad_loss, grad_deltas.data);
}

template void smooth_l1_forward(const SmoothL1<float>&, float*, const Stream&);
template void smooth_l1_forward(const SmoothL1<double>&, double*, const Stream&);
template void smooth_l1_backward(const SmoothL1<float>&, const float*, View<float, 2>,
                                 const Stream&);
template void smooth_l1_backward(const SmoothL1<double>&, const double*, View<double, 2>,
                                 const Stream&);

}  // namespace fastrcnn_engine::cuda
