// Non-owning views. Sizes are 64 bits everywhere: a feature map may hold more than 2^31 elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fastrcnn_engine/host_device.h"

namespace fastrcnn_engine {

// Dense row-major array. data may be null when it holds no element, or where a contract says that
// null stands for "not given".
template <typename T, int Rank>
struct View {
  T* data = nullptr;
  int64_t shape[size_t{Rank}] = {};

  FRCNN_HD int64_t size() const {
    int64_t n = 1;
    for (int d = 0; d < Rank; ++d) n *= shape[d];
    return n;
  }
};

enum class Layout {
  nchw,  // planes, the default of torch
  nhwc,  // torch's channels_last
};

// A batch of maps with logical shape (N, C, H, W), dense in one of two layouts. RoI-pooled results
// (R, C, PH, PW) are maps as well.
template <typename T>
struct MapView {
  T* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
  Layout layout = Layout::nchw;

  FRCNN_HD int64_t size() const { return n * c * h * w; }
  FRCNN_HD int64_t cells() const { return h * w; }
  // Elements from one channel to the next of the same cell, and from one cell to the next.
  FRCNN_HD int64_t channel_stride() const { return layout == Layout::nchw ? h * w : 1; }
  FRCNN_HD int64_t cell_stride() const { return layout == Layout::nchw ? 1 : c; }
  FRCNN_HD int64_t offset(int64_t image, int64_t channel, int64_t cell) const {
    return image * c * h * w + channel * channel_stride() + cell * cell_stride();
  }
};

}  // namespace fastrcnn_engine
