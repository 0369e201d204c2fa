// Smooth L1 (paper equation 3, with the transition point `beta` of later work; the paper's is 1).
#pragma once

#include "fastrcnn_engine/host_device.h"

namespace fastrcnn_engine::semantics {

// 0.5 d^2 / beta for |d| < beta, |d| - beta / 2 beyond; beta 0 is plain L1. NaN stays NaN.
template <typename T>
FRCNN_HD T smooth_l1(T d, T beta) {
  const T magnitude = d < T(0) ? -d : d;
  const T square = T(0.5) * d * d / beta, line = magnitude - T(0.5) * beta;
  return magnitude < beta ? square : line;
}

// The order of the loss's sum, which is part of the result: so many lanes take the rows in turn, and are then folded
// in halves. That is what one CUDA block does.
constexpr int kLossLanes = 256;

// d/dd of the above: d / beta, or the sign. At d = 0 it is 0, NaN stays NaN.
template <typename T>
FRCNN_HD T smooth_l1_slope(T d, T beta) {
  const T magnitude = d < T(0) ? -d : d;
  const T inner = d / beta, outer = d > T(0) ? T(1) : (d < T(0) ? T(-1) : d);
  return magnitude < beta ? inner : outer;
}

}  // namespace fastrcnn_engine::semantics
