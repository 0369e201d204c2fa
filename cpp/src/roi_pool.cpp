#include "fastrcnn_engine/roi_pool.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/semantics/roi_bins.h"

namespace fastrcnn_engine {

namespace {

template <typename A, typename B>
void require_same_map(const MapView<A>& a, const char* name_a, const MapView<B>& b,
                      const char* name_b) {
  require(a.n == b.n && a.c == b.c && a.h == b.h && a.w == b.w, name_b, " must have the shape of ",
          name_a, " (", a.n, ", ", a.c, ", ", a.h, ", ", a.w, "), got (", b.n, ", ", b.c, ", ", b.h,
          ", ", b.w, ")");
  require(a.layout == b.layout, name_b, " must have the memory layout of ", name_a,
          " (both NCHW or both channels-last)");
}

void require_rois(const View<const float, 2>& rois) {
  require(rois.shape[1] == 5, "boxes must be (R, 5) rows of [batch index, x1, y1, x2, y2], got (",
          rois.shape[0], ", ", rois.shape[1], ")");
}

void require_int32_cells(int64_t h, int64_t w) {
  require(h * w <= std::numeric_limits<int32_t>::max(), "argmax is int32: a map of ", h, " x ", w,
          " cells is too large for it");
}

}  // namespace

template <typename T>
void check(const RoiPoolForward<T>& call) {
  require_rois(call.rois);
  require(call.output.h > 0 && call.output.w > 0, "output_size must be positive, got (",
          call.output.h, ", ", call.output.w, ")");
  require(call.spatial_scale > 0 && std::isfinite(call.spatial_scale),
          "spatial_scale must be a positive number, got ", call.spatial_scale);
  require(call.output.n == call.rois.shape[0] && call.output.c == call.features.c,
          "output must be (R, C, PH, PW) with R = ", call.rois.shape[0],
          " and C = ", call.features.c, ", got (", call.output.n, ", ", call.output.c, ", ",
          call.output.h, ", ", call.output.w, ")");
  require(call.output.layout == call.features.layout || call.output.size() == 0,
          "output must have the memory layout of input (both NCHW or both channels-last)");
  if (call.argmax.data != nullptr) {
    require_same_map(call.output, "output", call.argmax, "argmax");
    require_int32_cells(call.features.h, call.features.w);
  }
}

template <typename T>
void check(const RoiPoolBackward<T>& call) {
  require_rois(call.rois);
  require_same_map(call.grad_output, "grad_output", call.argmax, "argmax");
  require(call.grad_output.n == call.rois.shape[0] && call.grad_output.c == call.grad_input.c,
          "grad_output must be (R, C, PH, PW) with R = ", call.rois.shape[0],
          " and C = ", call.grad_input.c, ", got (", call.grad_output.n, ", ", call.grad_output.c,
          ", ", call.grad_output.h, ", ", call.grad_output.w, ")");
  require(call.grad_output.layout == call.grad_input.layout || call.grad_output.size() == 0,
          "grad_output must have the memory layout of grad_input");
  require_int32_cells(call.grad_input.h, call.grad_input.w);
}

namespace cpu {
namespace {

using semantics::BinRange;

// One RoI on the map: its bins' edges, computed once and used by every channel.
struct PooledRoi {
  int64_t row;                // of `rois`
  std::vector<BinRange> ys;   // PH
  std::vector<BinRange> xs;   // PW
  int64_t cells_read;
};

// The RoIs of every image, in ascending row order.
template <typename T>
std::vector<std::vector<PooledRoi>> locate(const RoiPoolForward<T>& call) {
  std::vector<std::vector<PooledRoi>> by_image(call.features.n);
  for (int64_t r = 0; r < call.rois.shape[0]; ++r) {
    const float* roi = call.rois.data + 5 * r;
    const int64_t image = semantics::roi_image(roi[0], call.features.n);
    require(image >= 0, "boxes[", r, "]: batch index must be in [0, ", call.features.n, "), got ",
            roi[0]);
    const auto y = semantics::roi_span(roi[2], roi[4], call.spatial_scale, call.output.h);
    const auto x = semantics::roi_span(roi[1], roi[3], call.spatial_scale, call.output.w);
    PooledRoi& pooled = by_image[image].emplace_back();
    pooled.row = r;
    int64_t rows = 0, columns = 0;
    for (int64_t p = 0; p < call.output.h; ++p) {
      const BinRange& range =
          pooled.ys.emplace_back(semantics::bin_range(y, p, call.features.h));
      rows += std::max<int64_t>(range.end - range.begin, 0);
    }
    for (int64_t p = 0; p < call.output.w; ++p) {
      const BinRange& range =
          pooled.xs.emplace_back(semantics::bin_range(x, p, call.features.w));
      columns += std::max<int64_t>(range.end - range.begin, 0);
    }
    pooled.cells_read = rows * columns;
  }
  return by_image;
}

// The maximum over one bin for `Lanes` channels side by side: cell (y, x) of lane l is
// cells[(y * width + x) * cell_stride + l]. The lanes are what the compiler vectorises.
template <int Lanes, bool WithArgmax, typename T>
void pool_bin(const T* __restrict cells, int64_t cell_stride, int64_t width, BinRange y, BinRange x,
              T* __restrict value, int32_t* __restrict index) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  if (y.end <= y.begin || x.end <= x.begin) {
    std::fill_n(value, Lanes, T(0));
    if constexpr (WithArgmax) std::fill_n(index, Lanes, -1);
    return;
  }
  std::fill_n(value, Lanes, lowest);
  if constexpr (WithArgmax) std::fill_n(index, Lanes, -1);
  for (int64_t row = y.begin; row < y.end; ++row) {
    for (int64_t cell = row * width + x.begin; cell < row * width + x.end; ++cell) {
      const T* __restrict candidates = cells + cell * cell_stride;
      const auto here = static_cast<int32_t>(cell);
      for (int l = 0; l < Lanes; ++l) {
        // Selects without a branch, the second by mask: what the compiler turns into vector code.
        const T candidate = candidates[l], best = value[l];
        value[l] = candidate > best ? candidate : best;  // false for NaN
        if constexpr (WithArgmax) {
          const int32_t greater = -static_cast<int32_t>(candidate > best);
          index[l] ^= (index[l] ^ here) & greater;
        }
      }
    }
  }
  // Nothing was greater than -inf: the first cell stands for the bin.
  const int64_t first = y.begin * width + x.begin;
  for (int l = 0; l < Lanes; ++l) {
    if (value[l] != lowest) continue;
    value[l] = cells[first * cell_stride + l];
    if constexpr (WithArgmax) index[l] = static_cast<int32_t>(first);
  }
}

constexpr int kLanes = 32;

// Copies channels [channel, channel + count) of one image to [H * W][kLanes].
template <typename T>
void pack_lanes(const MapView<const T>& features, int64_t image, int64_t channel, int count,
                T* packed) {
  for (int l = 0; l < count; ++l) {
    const T* from = features.data + features.offset(image, channel + l, 0);
    const int64_t stride = features.cell_stride();
    for (int64_t cell = 0; cell < features.cells(); ++cell)
      packed[cell * kLanes + l] = from[cell * stride];
  }
}

// Pools all RoIs of one image for `count` channels starting at `channel`.
template <int Lanes, bool WithArgmax, typename T>
void pool_channels(const RoiPoolForward<T>& call, const std::vector<PooledRoi>& rois,
                   const T* cells, int64_t cell_stride, int64_t channel, int count) {
  T value[Lanes];
  int32_t index[Lanes];
  const int64_t channel_stride = call.output.channel_stride();
  for (const PooledRoi& roi : rois) {
    int64_t bin = 0;
    for (const BinRange& y : roi.ys) {
      for (const BinRange& x : roi.xs) {
        pool_bin<Lanes, WithArgmax>(cells, cell_stride, call.features.w, y, x, value, index);
        const int64_t to = call.output.offset(roi.row, channel, bin++);
        for (int l = 0; l < count; ++l) call.output.data[to + l * channel_stride] = value[l];
        if constexpr (WithArgmax)
          for (int l = 0; l < count; ++l) call.argmax.data[to + l * channel_stride] = index[l];
      }
    }
  }
}

template <bool WithArgmax, typename T>
void pool_image(const RoiPoolForward<T>& call, int64_t image, const std::vector<PooledRoi>& rois) {
  const MapView<const T>& features = call.features;
  // Packing a block of channels costs one pass over the map, and pays when the RoIs read more cells
  // than that. Maps whose packed block would leave the cache are read in place.
  constexpr int64_t packed_limit = int64_t{16} << 20;  // bytes
  int64_t cells_read = 0;
  for (const PooledRoi& roi : rois) cells_read += roi.cells_read;
  const bool pack = cells_read > features.cells() &&
                    features.cells() * kLanes * static_cast<int64_t>(sizeof(T)) <= packed_limit;
  std::vector<T> packed(pack ? features.cells() * kLanes : 0);

  for (int64_t channel = 0; channel < features.c; channel += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, features.c - channel));
    const T* in_place = features.data + features.offset(image, channel, 0);
    if (features.layout == Layout::nhwc && count == kLanes) {
      pool_channels<kLanes, WithArgmax>(call, rois, in_place, features.c, channel, count);
    } else if (pack) {
      pack_lanes(features, image, channel, count, packed.data());
      pool_channels<kLanes, WithArgmax>(call, rois, packed.data(), kLanes, channel, count);
    } else {
      for (int l = 0; l < count; ++l)
        pool_channels<1, WithArgmax>(call, rois, in_place + l * features.channel_stride(),
                                     features.cell_stride(), channel + l, 1);
    }
  }
}

}  // namespace

template <typename T>
void roi_pool_forward(const RoiPoolForward<T>& call) {
  check(call);
  const auto by_image = locate(call);  // also names a bad row when there are no channels
  if (call.output.size() == 0) return;
  for (int64_t image = 0; image < call.features.n; ++image) {
    if (by_image[image].empty()) continue;
    if (call.argmax.data != nullptr)
      pool_image<true>(call, image, by_image[image]);
    else
      pool_image<false>(call, image, by_image[image]);
  }
}

template <typename T>
void roi_pool_backward(const RoiPoolBackward<T>& call) {
  check(call);
  const MapView<T>& grad_input = call.grad_input;
  std::fill_n(grad_input.data, grad_input.size(), T(0));
  if (call.grad_output.size() == 0 || grad_input.size() == 0) return;

  const int64_t bins = call.grad_output.cells(), cells = grad_input.cells();
  // Per address the order is (RoI, bin) in both layouts; only the loop over channels moves, so that
  // memory is read in its own order.
  const auto add = [&](int64_t r, int64_t image, int64_t channel, int64_t bin) {
    const int64_t from = call.grad_output.offset(r, channel, bin);
    const int64_t cell = call.argmax.data[from];
    if (cell < 0 || cell >= cells) return;
    grad_input.data[grad_input.offset(image, channel, cell)] += call.grad_output.data[from];
  };
  for (int64_t r = 0; r < call.rois.shape[0]; ++r) {
    const int64_t image = semantics::roi_image(call.rois.data[5 * r], grad_input.n);
    require(image >= 0, "boxes[", r, "]: batch index must be in [0, ", grad_input.n, "), got ",
            call.rois.data[5 * r]);
    if (grad_input.layout == Layout::nchw) {
      for (int64_t c = 0; c < grad_input.c; ++c)
        for (int64_t bin = 0; bin < bins; ++bin) add(r, image, c, bin);
    } else {
      for (int64_t bin = 0; bin < bins; ++bin)
        for (int64_t c = 0; c < grad_input.c; ++c) add(r, image, c, bin);
    }
  }
}

template void roi_pool_forward(const RoiPoolForward<float>&);
template void roi_pool_forward(const RoiPoolForward<double>&);
template void roi_pool_backward(const RoiPoolBackward<float>&);
template void roi_pool_backward(const RoiPoolBackward<double>&);

}  // namespace cpu

template void check(const RoiPoolForward<float>&);
template void check(const RoiPoolForward<double>&);
template void check(const RoiPoolBackward<float>&);
template void check(const RoiPoolBackward<double>&);

}  // namespace fastrcnn_engine
