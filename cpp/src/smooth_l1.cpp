#include "fastrcnn_engine/smooth_l1.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/semantics/smooth_l1.h"

namespace fastrcnn_engine {

template <typename T>
void check(const SmoothL1<T>& call) {
  const int64_t rows = call.targets.shape[0], width = call.targets.shape[1];
  require(width > 0, "targets must be (R, D) with D > 0, got (", rows, ", ", width, ")");
  require(call.deltas.shape[0] == rows, "deltas and targets must have the same number of rows, got ",
          call.deltas.shape[0], " and ", rows);
  if (call.labels == nullptr && rows > 0)  // no rows, no memory: labels may then be null too
    require(call.deltas.shape[1] == width, "without labels deltas must be (R, ", width, "), got (",
            call.deltas.shape[0], ", ", call.deltas.shape[1], ")");
  else
    require(call.deltas.shape[1] > 0 && call.deltas.shape[1] % width == 0,
            "deltas must be (R, ", width, " * classes), got (", call.deltas.shape[0], ", ",
            call.deltas.shape[1], ")");
  require(call.beta >= 0 && std::isfinite(call.beta), "beta must be a number >= 0, got ",
          call.beta);
  require(call.normalizer > 0 && std::isfinite(call.normalizer),
          "normalizer must be a positive number, got ", call.normalizer);
}

template void check(const SmoothL1<float>&);
template void check(const SmoothL1<double>&);

namespace cpu {
namespace {

// First of the D columns of deltas that row `r` uses, -1 for background.
template <typename T>
int64_t first_column(const SmoothL1<T>& call, int64_t r) {
  if (call.labels == nullptr) return 0;
  const int64_t width = call.targets.shape[1], classes = call.deltas.shape[1] / width;
  const int64_t label = call.labels[r];
  require(label >= 0 && label < classes, "labels[", r, "] must be in [0, ", classes, "), got ",
          label);
  return label == 0 ? -1 : label * width;
}

}  // namespace

template <typename T>
void smooth_l1_forward(const SmoothL1<T>& call, T* loss) {
  check(call);
  const int64_t rows = call.targets.shape[0], width = call.targets.shape[1];
  const T beta = static_cast<T>(call.beta);
  // The order of the sum is part of the contract: 256 lanes take the rows in turn and are then folded
  // in halves, which is what one CUDA block does.
  std::array<double, 256> lanes{};
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t column = first_column(call, r);
    if (column < 0) continue;
    const T* delta = call.deltas.data + r * call.deltas.shape[1] + column;
    const T* target = call.targets.data + r * width;
    double row = 0;
    for (int64_t d = 0; d < width; ++d) {
      const T weight = call.weights == nullptr ? T(1) : call.weights[r * width + d];
      row += static_cast<double>(weight * semantics::smooth_l1(delta[d] - target[d], beta));
    }
    lanes[r % lanes.size()] += row;
  }
  for (size_t half = lanes.size() / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  *loss = static_cast<T>(lanes[0] / call.normalizer);
}

template <typename T>
void smooth_l1_backward(const SmoothL1<T>& call, const T* grad_loss, View<T, 2> grad_deltas) {
  check(call);
  require(grad_deltas.shape[0] == call.deltas.shape[0] &&
              grad_deltas.shape[1] == call.deltas.shape[1],
          "grad_deltas must have the shape of deltas");
  const int64_t rows = call.targets.shape[0], width = call.targets.shape[1];
  const T beta = static_cast<T>(call.beta);
  const T scale = *grad_loss / static_cast<T>(call.normalizer);
  std::fill_n(grad_deltas.data, grad_deltas.size(), T(0));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t column = first_column(call, r);
    if (column < 0) continue;
    const int64_t at = r * call.deltas.shape[1] + column;
    for (int64_t d = 0; d < width; ++d) {
      const T weight = call.weights == nullptr ? T(1) : call.weights[r * width + d];
      const T difference = call.deltas.data[at + d] - call.targets.data[r * width + d];
      grad_deltas.data[at + d] = weight * semantics::smooth_l1_slope(difference, beta) * scale;
    }
  }
}

template void smooth_l1_forward(const SmoothL1<float>&, float*);
template void smooth_l1_forward(const SmoothL1<double>&, double*);
template void smooth_l1_backward(const SmoothL1<float>&, const float*, View<float, 2>);
template void smooth_l1_backward(const SmoothL1<double>&, const double*, View<double, 2>);

}  // namespace cpu
}  // namespace fastrcnn_engine
