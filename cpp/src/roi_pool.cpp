// RoI max pooling and its gradient on the CPU, up to the hot loops: the checks of both backends, RoIs by
// image, what is packed together, memory, threads. Only roi_pool*_kernels.cpp read features and gradients.
#include "fastrcnn_engine/roi_pool.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "checks.h"
#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/semantics/roi_bins.h"
#include "memory.h"
#include "parallel.h"
#include "roi_pool_kernels.h"

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
  require_memory(rois, "boxes");
}

// Every cell has a number of its own; 65535 of uint16 stands for -1.
template <typename Index>
void require_numbered_cells(int64_t h, int64_t w) {
  constexpr bool is_signed = std::numeric_limits<Index>::is_signed;
  const int64_t most = std::numeric_limits<Index>::max();
  require(h * w <= most, "argmax is ", is_signed ? "int32" : "uint16", ": a map of ", h, " x ", w,
          " cells is too large for it");
}

void require_threads(int threads) {
  require(threads >= 0, "threads must be at least 0, got ", threads);
}

}  // namespace

template <typename T, typename Index>
void check(const RoiPoolForward<T, Index>& call) {
  require_rois(call.rois);
  require(call.output.h > 0 && call.output.w > 0, "output_size must be positive, got (",
          call.output.h, ", ", call.output.w, ")");
  require(call.spatial_scale > 0 && std::isfinite(call.spatial_scale),
          "spatial_scale must be a positive number, got ", call.spatial_scale);
  require(call.output.n == call.rois.shape[0] && call.output.c == call.features.c,
          "output must be (R, C, PH, PW) with R = ", call.rois.shape[0],
          " and C = ", call.features.c, ", got (", call.output.n, ", ", call.output.c, ", ",
          call.output.h, ", ", call.output.w, ")");
  require_memory(call.features, "input");
  require_memory(call.output, "output");
  require(call.output.layout == call.features.layout || call.output.size() == 0,
          "output must have the memory layout of input (both NCHW or both channels-last)");
  require_threads(call.threads);
  if (call.argmax.data != nullptr) {
    require_same_map(call.output, "output", call.argmax, "argmax");
    require_numbered_cells<Index>(call.features.h, call.features.w);
  }
}

template <typename T, typename Index>
void check(const RoiPoolBackward<T, Index>& call) {
  require_rois(call.rois);
  require_same_map(call.grad_output, "grad_output", call.argmax, "argmax");
  require(call.grad_output.n == call.rois.shape[0] && call.grad_output.c == call.grad_input.c,
          "grad_output must be (R, C, PH, PW) with R = ", call.rois.shape[0],
          " and C = ", call.grad_input.c, ", got (", call.grad_output.n, ", ", call.grad_output.c,
          ", ", call.grad_output.h, ", ", call.grad_output.w, ")");
  require_memory(call.grad_output, "grad_output");
  require_memory(call.argmax, "argmax");
  require_memory(call.grad_input, "grad_input");
  require(call.grad_output.layout == call.grad_input.layout || call.grad_output.size() == 0,
          "grad_output must have the memory layout of grad_input");
  require(call.spatial_scale >= 0 && std::isfinite(call.spatial_scale),
          "spatial_scale must be a positive number, or 0 where it is not known, got ", call.spatial_scale);
  require_threads(call.threads);
  require_numbered_cells<Index>(call.grad_input.h, call.grad_input.w);
}

namespace cpu {
namespace {

using semantics::BinRange;

// RoIs by image: rows of image i are rows[begin[i]] to rows[begin[i + 1]], ascending.
struct RowsByImage {
  std::vector<int64_t> begin;
  std::vector<int64_t> rows;
};

// InvalidArgument, naming the row, for a RoI whose image does not exist.
RowsByImage rows_by_image(const View<const float, 2>& rois, int64_t images) {
  const int64_t count = rois.shape[0];
  std::vector<int64_t> image_of(count);
  RowsByImage sorted{std::vector<int64_t>(images + 1), std::vector<int64_t>(count)};
  for (int64_t r = 0; r < count; ++r) {
    image_of[r] = semantics::roi_image(rois.data[5 * r], images);
    require(image_of[r] >= 0, "boxes[", r, "]: batch index must be in [0, ", images, "), got ",
            rois.data[5 * r]);
    ++sorted.begin[image_of[r] + 1];
  }
  std::partial_sum(sorted.begin.begin(), sorted.begin.end(), sorted.begin.begin());
  std::vector<int64_t> next(sorted.begin.begin(), sorted.begin.end() - 1);
  for (int64_t r = 0; r < count; ++r) sorted.rows[next[image_of[r]]++] = r;
  return sorted;
}

// Every RoI located on its map, image by image.
struct PooledRois {
  std::vector<BinRange> edges;
  std::vector<PooledRoi> rois;
  std::vector<int64_t> image_of;
  std::vector<Window> windows;  // a RoI's own
  std::vector<int64_t> spared;  // cells of one channel that a RoI need not read where there are quads
  int64_t cells_read = 0;       // of one channel, by all RoIs

  int64_t size() const { return static_cast<int64_t>(rois.size()); }
};

// From the first cell of any bin to the last.
BinRange hull(const BinRange* ranges, int64_t count) {
  BinRange all{0, 0};
  for (int64_t p = 0; p < count; ++p) {
    if (ranges[p].end <= ranges[p].begin) continue;
    if (all.end == 0) all = ranges[p];
    all = {std::min(all.begin, ranges[p].begin), std::max(all.end, ranges[p].end)};
  }
  return all;
}

// What the bins along one side of a RoI read. Sums without branches, which would be mispredicted.
struct Lengths {
  int64_t cells = 0;     // all
  int64_t in_quads = 0;  // of those of more than one cell, and the quads that cover these
  int64_t quads = 0;

  Lengths(const BinRange* ranges, int64_t count) {
    for (int64_t p = 0; p < count; ++p) {
      const int64_t length = std::max<int64_t>(ranges[p].end - ranges[p].begin, 0);
      cells += length;
      in_quads += length > 1 ? length : 0;
      quads += length > 1 ? (length + 1) / 2 : 0;
    }
  }
};

template <typename A, typename B>
PooledRois locate(const RowsByImage& by_image, const View<const float, 2>& rois, float spatial_scale,
                  const MapView<A>& features, const MapView<B>& pooled) {
  const int64_t ph = pooled.h, pw = pooled.w;
  PooledRois located;
  located.edges.resize(by_image.rows.size() * (ph + pw));
  BinRange* edges = located.edges.data();
  for (int64_t image = 0; image < features.n; ++image) {
    for (int64_t i = by_image.begin[image]; i < by_image.begin[image + 1]; ++i) {
      const int64_t row = by_image.rows[i];
      const float* roi = rois.data + 5 * row;
      const auto y = semantics::roi_span(roi[2], roi[4], spatial_scale, ph);
      const auto x = semantics::roi_span(roi[1], roi[3], spatial_scale, pw);
      BinRange* const ys = edges;
      BinRange* const xs = edges += ph;
      edges += pw;
      for (int64_t p = 0; p < ph; ++p) ys[p] = semantics::bin_range(y, p, features.h);
      for (int64_t p = 0; p < pw; ++p) xs[p] = semantics::bin_range(x, p, features.w);
      const BinRange rows = hull(ys, ph), columns = hull(xs, pw);
      located.image_of.push_back(image);
      located.windows.push_back(
          {rows.begin, columns.begin, rows.end - rows.begin, columns.end - columns.begin});
      const Lengths vertical(ys, ph), horizontal(xs, pw);
      located.rois.push_back({row, ys, xs, vertical.cells * horizontal.cells});
      located.cells_read += vertical.cells * horizontal.cells;
      located.spared.push_back(vertical.in_quads * horizontal.in_quads -
                               vertical.quads * horizontal.quads);
    }
  }
  return located;
}

// Making a cell's quad costs as much as reading so many cells of bins, most of it because cells and quads
// together do not fit the L2 cache; if not even the last one, taken for 16 MiB, as much as 20. Measured.
#ifndef FRCNN_QUAD_COST  // smaller in a test
#define FRCNN_QUAD_COST 8
#endif
constexpr int64_t kQuadCost = FRCNN_QUAD_COST, kLastCache = int64_t{16} << 20;

int64_t quad_cost(int64_t packed_bytes) {
  return packed_bytes > kLastCache ? 5 * kQuadCost / 2 : kQuadCost;
}

// Packing costs by the cell. RoIs of an image share one window of whole rows, or have a window each,
// whichever holds fewer cells: many RoIs must not pack the same cells again and again, and few small
// ones must not pack a whole map. At most `most` RoIs share one. A packed cell has `cell_bytes`.
std::vector<RoiGroup> grouped(const PooledRois& located, int64_t map_width, int64_t most,
                              int64_t cell_bytes, bool may_have_quads) {
  std::vector<RoiGroup> groups;
  for (int64_t first = 0, last; first < located.size(); first = last) {
    const int64_t image = located.image_of[first];
    int64_t own_cells = 0, spared = 0, begin = std::numeric_limits<int64_t>::max(), end = 0;
    const int64_t limit = std::min(first + most, located.size());
    for (last = first; last < limit && located.image_of[last] == image; ++last) {
      const Window& window = located.windows[last];
      own_cells += window.cells();
      spared += located.spared[last];
      if (window.cells() == 0) continue;
      begin = std::min(begin, window.y);
      end = std::max(end, window.y + window.height);
    }
    const Window shared{std::min(begin, end), 0, std::max<int64_t>(end - begin, 0), map_width};
    if (shared.cells() <= own_cells) {
      const bool pays = spared > quad_cost(shared.cells() * cell_bytes) * shared.cells();
      groups.push_back({image, &located.rois[first], last - first, shared, may_have_quads && pays});
    } else {
      for (int64_t i = first; i < last; ++i)
        groups.push_back({image, &located.rois[i], 1, located.windows[i], false});
    }
  }
  return groups;
}

// A result larger than this is written past the caches. Else its every line would be read before it is
// written, and would push out the packed map. Below, the next layer finds it there.
#ifndef FRCNN_PAST_CACHES  // smaller in a test
#define FRCNN_PAST_CACHES (int64_t{8} << 20)
#endif
constexpr int64_t kPastCaches = FRCNN_PAST_CACHES;

int64_t ceil_div(int64_t total, int64_t part) { return (total + part - 1) / part; }

// By lanes each block of channels of a row is read by itself, at which memory is slow: gradient and argmax of
// more bytes than this were slower so. Measured.
constexpr int64_t kMostByLanes = int64_t{64} << 20;

// How a gradient is shared out: items of work have so many channels of one image.
struct GradientPlan {
  int64_t channels;
  bool by_lanes = false;    // channels-last, where a RoI's bins are not too large
  PooledRois located = {};  // in that case
};

template <typename T, typename Index>
GradientPlan plan_gradient(const RoiPoolBackward<T, Index>& call, const RowsByImage& by_image,
                           bool lanes_pay, double microseconds) {
  using Wide = semantics::Wide<T>;
  const int64_t images = call.grad_input.n, cells = call.grad_input.cells();
  // Fewer channels than follow where a thread would have none.
  const int64_t parts = ceil_div(
      worthwhile_threads(images * call.grad_input.c, microseconds, call.threads), images);
  const int64_t share = ceil_div(call.grad_input.c, parts);
  if (call.grad_input.layout == Layout::nchw) {
    // As many planes as make their runs of the gradient long enough to read ahead, fewer of large ones, of
    // which 16 are more than 2 MiB and do not stay in the L2 cache (and took 1.15 times as long).
    const int64_t together = cells * sizeof(Wide) <= 128 << 10 ? 16 : 8;
    return {std::min(share, together)};
  }
  const int64_t whole_lines = ceil_div(share, 16) * 16;  // of floats
  // By lanes it costs a pass over the map, worth it where there are many bins to a cell.
  const int64_t bins = call.rois.shape[0] * call.grad_output.cells();
  const int64_t bytes = call.grad_output.size() * static_cast<int64_t>(sizeof(T) + sizeof(Index));
  if (lanes_pay && call.spatial_scale > 0 && whole_lines >= kGradientBlock<Wide> &&
      2 * bins >= images * cells && bytes <= kMostByLanes) {
    PooledRois located =
        locate(by_image, call.rois, call.spatial_scale, call.grad_input, call.grad_output);
    if (located.cells_read <= kMostCellsByLanes * bins)
      return {kGradientBlock<Wide>, true, std::move(located)};
  }
  return {whole_lines};
}

}  // namespace

template <typename T, typename Index>
void roi_pool_forward(const RoiPoolForward<T, Index>& call) {
  check(call);
  // Also names a bad row when there are no channels.
  const RowsByImage by_image = rows_by_image(call.rois, call.features.n);
  if (call.output.size() == 0) return;
  const PooledRois located =
      locate(by_image, call.rois, call.spatial_scale, call.features, call.output);
  const RoiPoolKernels<T, Index> kernels = FRCNN_CHOSEN(roi_pool_kernels<T, Index>);
  const auto bytes = static_cast<int64_t>(call.output.size() *
                                          (sizeof(T) + (call.argmax.data ? sizeof(Index) : 0)));
  const bool past_caches = bytes > kPastCaches;
  if (past_caches) {
    advise_huge_pages(call.output.data, call.output.size() * sizeof(T));
    if (call.argmax.data) advise_huge_pages(call.argmax.data, call.argmax.size() * sizeof(Index));
  }
  // On one core, roughly: a vector of cells in half a nanosecond, a byte of the result in a tenth.
  const double microseconds =
      (located.cells_read * static_cast<double>(call.features.c) / 16 * 0.5 + bytes * 0.1) / 1000;

  // Two items for every thread or more; but RoIs that share a window share the cost of packing it.
  constexpr int64_t kFewest = 32;
  const int64_t blocks = ceil_div(call.features.c, kernels.block), rois = located.size();
  const int most_threads = worthwhile_threads(rois * blocks, microseconds, call.threads);
  const int64_t parts = most_threads > 1 ? ceil_div(2 * most_threads, blocks) : 1;
  const std::vector<RoiGroup> groups =
      grouped(located, call.features.w, std::max(ceil_div(rois, parts), kFewest),
              kernels.block * static_cast<int64_t>(sizeof(T)), call.argmax.data == nullptr);
  int64_t largest = 0;
  bool with_quads = false;
  for (const RoiGroup& group : groups) {
    largest = std::max(largest, group.window.cells());
    with_quads |= group.with_quads;
  }
  const auto items = static_cast<int64_t>(groups.size()) * blocks;
  const int threads = static_cast<int>(std::min<int64_t>(most_threads, items));
  const Scratch scratch(kernels.block_scratch(largest, call.output.cells(), with_quads), threads);
  parallel_for(items, threads, [&](int thread, int64_t item) {
    kernels.pool_block(call, groups[item / blocks], item % blocks * kernels.block, past_caches,
                       scratch.of(thread));
  });
}

template <typename T, typename Index>
void roi_pool_backward(const RoiPoolBackward<T, Index>& call) {
  check(call);
  const RowsByImage by_image = rows_by_image(call.rois, call.grad_input.n);
  if (call.grad_input.size() == 0) return;
  const RoiPoolGradientKernels<T, Index> kernels =
      FRCNN_CHOSEN(roi_pool_gradient_kernels<T, Index>);
  const double microseconds = call.grad_output.size() * 0.001;  // on one core, roughly: a nanosecond each
  const GradientPlan plan = plan_gradient(call, by_image, kernels.lanes_pay, microseconds);
  const int64_t blocks = ceil_div(call.grad_input.c, plan.channels);
  const int64_t items = call.grad_input.n * blocks;
  const int threads = worthwhile_threads(items, microseconds, call.threads);
  const Scratch scratch(plan.channels * call.grad_input.cells() * sizeof(semantics::Wide<T>), threads);
  parallel_for(items, threads, [&](int thread, int64_t item) {
    const int64_t image = item / blocks, channel = item % blocks * plan.channels;
    const int64_t last = std::min(channel + plan.channels, call.grad_input.c);
    const int64_t begin = by_image.begin[image], count = by_image.begin[image + 1] - begin;
    const int64_t* const rows = by_image.rows.data() + begin;
    auto* const sums = static_cast<semantics::Wide<T>*>(scratch.of(thread));
    if (call.grad_input.layout == Layout::nchw)
      kernels.scatter_planes(call, image, channel, last, rows, count, sums);
    else
      kernels.scatter_cells(call, image, channel, last, rows,
                            plan.by_lanes ? plan.located.rois.data() + begin : nullptr, count, sums);
  });
}

#define FRCNN_INSTANTIATE(T, Index)                              \
  template void roi_pool_forward(const RoiPoolForward<T, Index>&); \
  template void roi_pool_backward(const RoiPoolBackward<T, Index>&);
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)
#undef FRCNN_INSTANTIATE

}  // namespace cpu

// The CUDA backend checks with these too.
#define FRCNN_INSTANTIATE(T, Index)                   \
  template void check(const RoiPoolForward<T, Index>&); \
  template void check(const RoiPoolBackward<T, Index>&);
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)
#undef FRCNN_INSTANTIATE

}  // namespace fastrcnn_engine
