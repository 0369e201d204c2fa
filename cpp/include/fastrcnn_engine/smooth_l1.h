// The box loss of the multi-task loss (paper equations 1 to 3), class-specific without ever building
// the 4(K+1) wide targets.
#pragma once

#include <cstdint>

#include "fastrcnn_engine/stream.h"
#include "fastrcnn_engine/tensor.h"

namespace fastrcnn_engine {

// loss = 1 / normalizer * sum over rows r and d of
//        weights[r, d] * smooth_l1(deltas[r, D * labels[r] + d] - targets[r, d])
// Rows of label 0 (background) count nothing. Without labels, deltas has D columns and every row
// counts. The sum runs in float64 in a fixed order, the same on every backend
// (semantics::kLossLanes).
template <typename T>
struct SmoothL1 {
  View<const T, 2> deltas;          // (R, D * classes)
  View<const T, 2> targets;         // (R, D)
  const int64_t* labels = nullptr;  // (R,) or null
  const T* weights = nullptr;       // (R, D) or null: 1
  double beta = 1.0;                // >= 0; where the loss turns from square to line
  double normalizer = 1.0;          // > 0, 1 / T(it) finite; the paper divides by the number of RoIs
};

template <typename T>
void check(const SmoothL1<T>& call, const T* loss);
template <typename T>
void check(const SmoothL1<T>& call, const T* grad_loss, const View<T, 2>& grad_deltas);

// `loss` and `grad_loss` are one number each, in the backend's memory; grad_deltas (R, D * classes)
// is overwritten, and is other memory than the deltas.
namespace cpu {
// Also InvalidArgument, naming the row, for a label outside [0, classes).
template <typename T>
void smooth_l1_forward(const SmoothL1<T>& call, T* loss);
template <typename T>
void smooth_l1_backward(const SmoothL1<T>& call, const T* grad_loss, View<T, 2> grad_deltas);
}  // namespace cpu

namespace cuda {
// A row whose label is outside [0, classes) counts nothing.
template <typename T>
void smooth_l1_forward(const SmoothL1<T>& call, T* loss, const Stream& stream);
template <typename T>
void smooth_l1_backward(const SmoothL1<T>& call, const T* grad_loss, View<T, 2> grad_deltas,
                        const Stream& stream);
}  // namespace cuda

}  // namespace fastrcnn_engine
