// Box regression as in R-CNN and Fast R-CNN: a box is its centre and size, a delta shifts the centre
// by a share of the proposal's size and scales the size by an exponential. Widths are x2 - x1, as in
// the original Fast R-CNN, so zero deltas give the box back.
#pragma once

#include <cmath>

#include "fastrcnn_engine/host_device.h"

namespace fastrcnn_engine::semantics {

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

template <typename T>
struct Delta {
  T dx, dy, dw, dh;
};

// A box whose centre and logarithm exist: positive sides, finite corners, without which no side is finite.
template <typename T>
FRCNN_HD bool encodable(const Box<T>& box) {
  const T w = box.x2 - box.x1, h = box.y2 - box.y1;
  return w > T(0) && h > T(0) && std::isfinite(w) && std::isfinite(h);
}

template <typename T>
FRCNN_HD Delta<T> encode(const Box<T>& proposal, const Box<T>& target) {
  const T pw = proposal.x2 - proposal.x1, ph = proposal.y2 - proposal.y1;
  const T tw = target.x2 - target.x1, th = target.y2 - target.y1;
  const T px = proposal.x1 + T(0.5) * pw, py = proposal.y1 + T(0.5) * ph;
  const T tx = target.x1 + T(0.5) * tw, ty = target.y1 + T(0.5) * th;
  return {(tx - px) / pw, (ty - py) / ph, std::log(tw / pw), std::log(th / ph)};
}

// dw and dh are held at `max_log_ratio` first: exp of an untrained network's output overflows.
template <typename T>
FRCNN_HD Box<T> decode(const Box<T>& proposal, const Delta<T>& delta, T max_log_ratio) {
  const T pw = proposal.x2 - proposal.x1, ph = proposal.y2 - proposal.y1;
  const T dw = delta.dw > max_log_ratio ? max_log_ratio : delta.dw;
  const T dh = delta.dh > max_log_ratio ? max_log_ratio : delta.dh;
  const T x = delta.dx * pw + (proposal.x1 + T(0.5) * pw);
  const T y = delta.dy * ph + (proposal.y1 + T(0.5) * ph);
  const T w = std::exp(dw) * pw, h = std::exp(dh) * ph;
  return {x - T(0.5) * w, y - T(0.5) * h, x + T(0.5) * w, y + T(0.5) * h};
}

// All four sides into [0, limit]; NaN stays NaN.
template <typename T>
FRCNN_HD Box<T> clip(const Box<T>& box, T x_limit, T y_limit) {
  const auto hold = [](T v, T limit) { return v < T(0) ? T(0) : (v > limit ? limit : v); };
  return {hold(box.x1, x_limit), hold(box.y1, y_limit), hold(box.x2, x_limit),
          hold(box.y2, y_limit)};
}

// The largest coordinate inside an image of `extent` pixels: its edge, or its last pixel where boxes
// name the pixels they hold (inclusive, VOC).
template <typename T>
FRCNN_HD T clip_limit(T extent, bool inclusive) {
  return inclusive ? extent - T(1) : extent;
}

}  // namespace fastrcnn_engine::semantics
