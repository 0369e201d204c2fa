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
        value[l] = semantics::beats(candidate, best) ? candidate : best;
        if constexpr (WithArgmax) {
          const int32_t greater = -static_cast<int32_t>(semantics::beats(candidate, best));
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

// Writes the bins of one RoI, [bins][Lanes], to `count` channels of the map in the order of its memory:
// a channel's plane is one run, where a store per bin and channel would touch 32 lines over and over.
template <int Lanes, typename T>
void write_channels(const T* staged, const MapView<T>& map, int64_t row, int64_t channel, int count) {
  T* to = map.data + map.offset(row, channel, 0);
  const int64_t bins = map.cells();
  if (map.layout == Layout::nchw) {
    for (int l = 0; l < count; ++l)
      for (int64_t bin = 0; bin < bins; ++bin) to[l * bins + bin] = staged[bin * Lanes + l];
  } else {
    for (int64_t bin = 0; bin < bins; ++bin)
      for (int l = 0; l < count; ++l) to[bin * map.c + l] = staged[bin * Lanes + l];
  }
}

// Pools all RoIs of one image for `count` channels starting at `channel`.
template <int Lanes, bool WithArgmax, typename T>
void pool_channels(const RoiPoolForward<T>& call, const std::vector<PooledRoi>& rois,
                   const T* cells, int64_t cell_stride, int64_t channel, int count) {
  const int64_t bins = call.output.cells();
  std::vector<T> values(bins * Lanes);
  std::vector<int32_t> indices(WithArgmax ? bins * Lanes : 0);
  for (const PooledRoi& roi : rois) {
    T* value = values.data();
    int32_t* index = indices.data();
    for (const BinRange& y : roi.ys) {
      for (const BinRange& x : roi.xs) {
        pool_bin<Lanes, WithArgmax>(cells, cell_stride, call.features.w, y, x, value, index);
        value += Lanes;
        if constexpr (WithArgmax) index += Lanes;
      }
    }
    write_channels<Lanes>(values.data(), call.output, roi.row, channel, count);
    if constexpr (WithArgmax)
      write_channels<Lanes>(indices.data(), call.argmax, roi.row, channel, count);
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
  const int64_t rows = call.rois.shape[0];
  std::vector<int64_t> images(rows);
  for (int64_t r = 0; r < rows; ++r) {
    images[r] = semantics::roi_image(call.rois.data[5 * r], grad_input.n);
    require(images[r] >= 0, "boxes[", r, "]: batch index must be in [0, ", grad_input.n, "), got ",
            call.rois.data[5 * r]);
  }
  std::fill_n(grad_input.data, grad_input.size(), T(0));
  if (call.grad_output.size() == 0 || grad_input.size() == 0) return;

  const int64_t channels = grad_input.c, bins = call.grad_output.cells(), cells = grad_input.cells();
  const auto in_map = [cells](int64_t cell) { return cell >= 0 && cell < cells; };

  // Per address the order is (RoI, bin) in both layouts; the loops over channels lie where memory is
  // read in its own order.
  if (grad_input.layout == Layout::nchw) {
    constexpr int64_t block = 16;  // planes that stay in the cache while every RoI goes over them
    for (int64_t first = 0; first < channels; first += block) {
      const int64_t last = std::min(first + block, channels);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = first; c < last; ++c) {
          const T* from = call.grad_output.data + (r * channels + c) * bins;
          const int32_t* argmax = call.argmax.data + (r * channels + c) * bins;
          T* plane = grad_input.data + (images[r] * channels + c) * cells;
          for (int64_t bin = 0; bin < bins; ++bin)
            if (in_map(argmax[bin])) plane[argmax[bin]] += from[bin];
        }
      }
    }
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      T* image = grad_input.data + images[r] * cells * channels;
      for (int64_t bin = 0; bin < bins; ++bin) {
        const T* from = call.grad_output.data + (r * bins + bin) * channels;
        const int32_t* argmax = call.argmax.data + (r * bins + bin) * channels;
        for (int64_t c = 0; c < channels; ++c)
          if (in_map(argmax[c])) image[argmax[c] * channels + c] += from[c];
      }
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
