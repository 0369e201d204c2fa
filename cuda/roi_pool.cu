// Forward: a slab of channels lies in shared memory and every RoI is pooled from there; what does not
// fit, and few RoIs, directly from the map. Backward: a warp owns planes and adds to them in order.
#include "fastrcnn_engine/roi_pool.h"

#include <cuda_fp16.h>

#include <cmath>
#include <limits>
#include <type_traits>

#include "fastrcnn_engine/semantics/half.h"
#include "fastrcnn_engine/semantics/roi_bins.h"
#include "launch.cuh"

namespace fastrcnn_engine::cuda {
namespace {

using semantics::BinRange;
using semantics::RoiSpan;
using semantics::Wide;

// What semantics::widen says, in one instruction where there is one.
template <typename T>
__device__ Wide<T> widened(const T& value) {
  if constexpr (std::is_same_v<T, float16>)
    return __half2float(__ushort_as_half(value.bits));
  else
    return semantics::widen(value);
}

template <typename T>
__device__ T narrowed(const Wide<T>& value) {
  if constexpr (std::is_same_v<T, Wide<T>>)
    return value;
  else
    return semantics::narrow<T>(value);
}

// Where one RoI lies on its map.
struct RoiPlace {
  int64_t image;  // -1: there is no such image
  RoiSpan y, x;
};

template <typename T, typename Index>
__device__ RoiPlace place_of(const RoiPoolForward<T, Index>& call, int64_t row) {
  const float* roi = call.rois.data + 5 * row;
  return {semantics::roi_image(roi[0], call.features.n),
          semantics::roi_span(roi[2], roi[4], call.spatial_scale, call.output.h),
          semantics::roi_span(roi[1], roi[3], call.spatial_scale, call.output.w)};
}

// The maximum of a bin so far, and its cell. It begins with the bin's first cell: where nothing is greater
// than -inf that one stands for the bin.
template <typename T>
struct Maximum {
  Wide<T> value;
  int64_t cell;

  __device__ Maximum(const T& first, int64_t cell) : value(widened(first)), cell(cell) {
    if (!semantics::beats(value, lowest())) value = lowest();  // NaN too
  }
  __device__ void meet(const T& candidate, int64_t at) {
    const Wide<T> wide = widened(candidate);
    if (semantics::beats(wide, value)) value = wide, cell = at;
  }
  __device__ T result(const T& first) const {
    return value == lowest() ? first : narrowed<T>(value);
  }
  __device__ static Wide<T> lowest() { return static_cast<Wide<T>>(-INFINITY); }
};

// ---- forward, directly from the map: a thread per output ------------------------------------------------

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

template <typename T, typename Index>
__global__ void pool_directly_kernel(RoiPoolForward<T, Index> call) {
  const MapView<const T>& map = call.features;
  const int64_t count = call.output.size(), stride = map.cell_stride();
  for (int64_t i = first_element(); i < count; i += element_stride()) {
    const Element out = element_at(call.output, i);
    const RoiPlace roi = place_of(call, out.row);
    const BinRange y = semantics::bin_range(roi.y, out.cell / call.output.w, map.h);
    const BinRange x = semantics::bin_range(roi.x, out.cell % call.output.w, map.w);
    T value{};
    int64_t cell = -1;
    if (roi.image >= 0 && y.begin < y.end && x.begin < x.end) {
      const T* plane = map.data + map.offset(roi.image, out.channel, 0);
      const int64_t first = y.begin * map.w + x.begin;
      Maximum<T> best(plane[first * stride], first);
      for (int64_t row = y.begin; row < y.end; ++row)
        for (int64_t at = row * map.w + x.begin; at < row * map.w + x.end; ++at)
          best.meet(plane[at * stride], at);
      value = best.result(plane[first * stride]);
      cell = best.cell;
    }
    call.output.data[i] = value;
    if (call.argmax.data != nullptr) call.argmax.data[i] = static_cast<Index>(cell);
  }
}

// ---- forward, from a slab in shared memory --------------------------------------------------------------
// A slab is `Quads` times 16 bytes of channels of every cell of one image: [cell][channels]. The lanes of a
// warp are (bin, quad): neighbouring lanes read the quads of one cell, and a RoI's bins take turns.

constexpr int kSlabThreads = 512;

template <typename T>
constexpr int kQuad = 16 / sizeof(T);  // channels

template <typename T>
struct alignas(16) Quad {
  T channels[kQuad<T>];
};

// Copies `count` channels from `channel` on to the slab, and 0 for those that a last slab lacks.
template <typename T, int Quads>
__device__ void fill_slab(const MapView<const T>& map, int64_t image, int64_t channel, Quad<T>* slab) {
  const int quad = static_cast<int>(threadIdx.x) % Quads, cells = static_cast<int>(map.cells());
  const int64_t first = channel + quad * kQuad<T>, channels = map.c - first;
  const T* from = map.data + map.offset(image, first, 0);
  const int64_t channel_stride = map.channel_stride(), cell_stride = map.cell_stride();
  const bool whole_quads = map.layout == Layout::nhwc && map.c % kQuad<T> == 0 &&
                           reinterpret_cast<uintptr_t>(map.data) % sizeof(Quad<T>) == 0;
#pragma unroll 4  // loads under way together
  for (int cell = static_cast<int>(threadIdx.x) / Quads; cell < cells; cell += kSlabThreads / Quads) {
    Quad<T> values{};
    if (whole_quads && channels > 0) {
      values = *reinterpret_cast<const Quad<T>*>(from + cell * cell_stride);
    } else {
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c)
        if (c < channels) values.channels[c] = from[c * channel_stride + cell * cell_stride];
    }
    slab[cell * Quads + quad] = values;
  }
}

// One bin of one RoI for the channels of one quad, `channel` and on.
template <typename T, typename Index, bool WithArgmax, int Quads>
__device__ void pool_quad(const RoiPoolForward<T, Index>& call, int64_t row, int64_t channel, int bin,
                          BinRange y, BinRange x, const Quad<T>* slab) {
  const int width = static_cast<int>(call.features.w);
  const int top = static_cast<int>(y.begin), bottom = static_cast<int>(y.end);
  const int left = static_cast<int>(x.begin), right = static_cast<int>(x.end);
  const bool empty = top >= bottom || left >= right;
  const int first = empty ? 0 : top * width + left;
  Wide<T> best[kQuad<T>];
  int where[kQuad<T>];
  const Quad<T> corner = slab[first * Quads];
#pragma unroll
  for (int c = 0; c < kQuad<T>; ++c) {
    best[c] = widened(corner.channels[c]);
    if (!semantics::beats(best[c], Maximum<T>::lowest())) best[c] = Maximum<T>::lowest();
    where[c] = empty ? -1 : first;
  }
  for (int line = top; line < bottom; ++line) {
    const int end = line * width + right;
    for (int cell = line * width + left; cell < end; ++cell) {
      const Quad<T> values = slab[cell * Quads];
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c) {
        const Wide<T> value = widened(values.channels[c]);
        const bool better = semantics::beats(value, best[c]);
        best[c] = better ? value : best[c];
        if constexpr (WithArgmax) where[c] = better ? cell : where[c];
      }
    }
  }
  const int64_t channels = call.output.c - channel;
  const int64_t at = call.output.offset(row, channel, bin), stride = call.output.channel_stride();
#pragma unroll
  for (int c = 0; c < kQuad<T>; ++c) {
    if (c >= channels) break;
    const T value = best[c] == Maximum<T>::lowest() ? corner.channels[c] : narrowed<T>(best[c]);
    call.output.data[at + c * stride] = empty ? T{} : value;
    if constexpr (WithArgmax) call.argmax.data[at + c * stride] = static_cast<Index>(where[c]);
  }
}

// A block is (slab, image, share): every `shares`-th group of RoIs is pooled by this one.
template <typename T, typename Index, bool WithArgmax, int Quads>
__global__ __launch_bounds__(kSlabThreads, 1) void pool_slabs_kernel(
    RoiPoolForward<T, Index> call, int64_t shares) {
  constexpr int slab_channels = Quads * kQuad<T>, together = kWarp / Quads;
  Quad<T>* const slab = reinterpret_cast<Quad<T>*>(dynamic_shared);
  const int64_t slabs = (call.features.c + slab_channels - 1) / slab_channels;
  const int64_t images = call.features.n, rois = call.rois.shape[0];
  const int pw = static_cast<int>(call.output.w), bins = static_cast<int>(call.output.cells());
  const int quad = lane_of() % Quads, first_bin = lane_of() / Quads;
  const Quad<T>* const mine = slab + quad;
  for (int64_t block = blockIdx.x; block < slabs * images * shares; block += gridDim.x) {
    const int64_t image = block / slabs % images, share = block / slabs / images;
    const int64_t first = block % slabs * slab_channels, channel = first + quad * kQuad<T>;
    __syncthreads();  // the slab before this one is done with
    fill_slab<T, Quads>(call.features, image, first, slab);
    __syncthreads();
    constexpr int warps = kSlabThreads / kWarp;
    for (int64_t row = share * warps + warp_of(); row < rois; row += shares * warps) {
      const RoiPlace roi = place_of(call, row);
      // Rows of no image are empty ones of the first.
      if (roi.image != image && !(roi.image < 0 && image == 0)) continue;
      if (channel >= call.features.c) continue;
      int bin_y = first_bin / pw, bin_x = first_bin % pw;
      for (int bin = first_bin; bin < bins; bin += together) {
        BinRange y = semantics::bin_range(roi.y, bin_y, call.features.h);
        const BinRange x = semantics::bin_range(roi.x, bin_x, call.features.w);
        if (roi.image < 0) y.end = y.begin;
        pool_quad<T, Index, WithArgmax, Quads>(call, row, channel, bin, y, x, mine);
        bin_x += together % pw, bin_y += together / pw;
        if (bin_x >= pw) bin_x -= pw, ++bin_y;
      }
    }
  }
}

// ---- backward -----------------------------------------------------------------------------------------
// A warp owns `Channels` planes: its lanes are (bin, channel), and it takes the RoIs of its image one after
// the other. Lanes whose bins share a cell take turns, the lower bin first. So every cell is added to in
// ascending order of (RoI, bin), which is the CPU's order, without an atomic.

// The gradients that a warp takes together, in registers: those that come next are on their way while
// these are added.
constexpr int kStepsAhead = 8;

template <typename T>
struct Steps {
  Wide<T> gradient[kStepsAhead];
  unsigned cell[kStepsAhead];  // no cell of the map: nothing to add
  int count;
};

// Walks through the RoIs of one image, 32 / Channels bins a step. All lanes of a warp walk together.
template <typename T, typename Index, int Channels>
class StepWalk {
 public:
  __device__ StepWalk(const RoiPoolBackward<T, Index>& call, int64_t image, int64_t channel)
      : call_(call), image_(image), channel_(channel + lane_of() % Channels) {}

  __device__ void load(Steps<T>& steps) {
    const int64_t bins = call_.grad_output.cells(), cells = call_.grad_input.cells();
    steps.count = 0;
#pragma unroll
    for (int i = 0; i < kStepsAhead; ++i) {
      steps.cell[i] = ~0u;
      steps.gradient[i] = 0;
      if (bin_ >= bins && !next_row()) continue;
      const int64_t bin = bin_ + lane_of() / Channels;
      bin_ += kWarp / Channels;
      ++steps.count;
      if (bin >= bins || channel_ >= call_.grad_input.c) continue;
      const int64_t from = call_.grad_output.offset(row_, channel_, bin);
      const auto cell = static_cast<int64_t>(call_.argmax.data[from]);
      if (cell >= 0 && cell < cells) {
        steps.cell[i] = static_cast<unsigned>(cell);
        steps.gradient[i] = widened(call_.grad_output.data[from]);
      }
    }
  }

 private:
  // Rows are looked at by 32, one a lane.
  __device__ bool next_row() {
    const int64_t rows = call_.rois.shape[0];
    while (found_ == 0) {
      if (looked_at_ >= rows) return false;
      const int64_t row = looked_at_ + lane_of();
      const bool mine = row < rows && semantics::roi_image(call_.rois.data[5 * row],
                                                           call_.grad_input.n) == image_;
      found_ = __ballot_sync(kAllLanes, mine);
      looked_at_ += kWarp;
    }
    row_ = looked_at_ - kWarp + __ffs(static_cast<int>(found_)) - 1;
    found_ &= found_ - 1;
    bin_ = 0;
    return true;
  }

  const RoiPoolBackward<T, Index>& call_;
  const int64_t image_, channel_;
  int64_t looked_at_ = 0, row_ = 0;
  int64_t bin_ = INT64_MAX;
  unsigned found_ = 0;
};

// Where a warp adds up: cell * cell_stride + channel * channel_stride.
template <typename W>
struct Sums {
  W* data;
  int64_t cell_stride, channel_stride;

  __device__ W& at(int64_t cell, int64_t channel) const {
    return data[cell * cell_stride + channel * channel_stride];
  }
};

template <typename T, int Channels>
__device__ void add(const Steps<T>& steps, const Sums<Wide<T>>& sums) {
  const int lane = lane_of(), channel = lane % Channels;
  const unsigned lower_lanes = (1u << lane) - 1;
#pragma unroll
  for (int i = 0; i < kStepsAhead; ++i) {
    if (i >= steps.count) break;
    const bool adds = steps.cell[i] != ~0u;
    // Lanes of one address; a lane with none is alone.
    const unsigned address = adds ? steps.cell[i] * Channels + channel : ~static_cast<unsigned>(lane);
    const unsigned sharing = __match_any_sync(kAllLanes, address);
    const int turn = __popc(sharing & lower_lanes);
    for (int now = 0; __ballot_sync(kAllLanes, adds && turn >= now) != 0; ++now) {
      if (adds && turn == now) sums.at(steps.cell[i], channel) += steps.gradient[i];
      __syncwarp();
    }
  }
}

// A block is one warp. Sums are in shared memory (known when this is compiled, or loads would have to ask),
// or, where it is too small, in `spare`, of the size of grad_input.
template <typename T, typename Index, int Channels, bool InShared>
__global__ __launch_bounds__(kWarp, 1) void scatter_kernel(RoiPoolBackward<T, Index> call,
                                                           Wide<T>* spare) {
  using W = Wide<T>;
  const MapView<T>& result = call.grad_input;
  const int64_t cells = result.cells(), groups = (result.c + Channels - 1) / Channels;
  const int channel = lane_of() % Channels;
  for (int64_t group = blockIdx.x; group < groups * result.n; group += gridDim.x) {
    const int64_t image = group / groups, first = group % groups * Channels;
    Sums<W> sums;
    if constexpr (InShared)
      sums = {reinterpret_cast<W*>(dynamic_shared), Channels, 1};
    else
      sums = {spare + result.offset(image, first, 0), result.cell_stride(), result.channel_stride()};
    const bool has_channel = first + channel < result.c;
    for (int64_t cell = lane_of() / Channels; cell < cells; cell += kWarp / Channels)
      if (has_channel) sums.at(cell, channel) = 0;
    __syncwarp();

    StepWalk<T, Index, Channels> walk(call, image, first);
    Steps<T> now, next;
    walk.load(now);
    while (now.count > 0) {
      walk.load(next);
      add<T, Channels>(now, sums);
      now = next;
    }

    T* const out = result.data + result.offset(image, first, 0);
    for (int64_t cell = lane_of() / Channels; cell < cells; cell += kWarp / Channels)
      if (has_channel)
        out[cell * result.cell_stride() + channel * result.channel_stride()] =
            narrowed<T>(sums.at(cell, channel));
    __syncwarp();  // the next group's zeros come after
  }
}

// ---- launches -----------------------------------------------------------------------------------------

int64_t ceil_div(int64_t total, int64_t part) { return (total + part - 1) / part; }

template <int Quads, typename T, typename Index>
void launch_slabs(const RoiPoolForward<T, Index>& call, const Stream& stream) {
  const int64_t blocks = ceil_div(call.features.c, Quads * kQuad<T>) * call.features.n;
  // As many shares as keep every multiprocessor busy: each costs another copy of the slab.
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount, stream);
  const int64_t most = ceil_div(call.rois.shape[0], kSlabThreads / kWarp);
  const int64_t shares = std::clamp<int64_t>(processors / blocks, 1, most);
  const BlockShape shape{kSlabThreads, call.features.cells() * Quads * 16};
  const auto launch = [&](auto kernel) {
    launch_blocks("roi_pool_forward", kernel, blocks * shares, shape, stream, call, shares);
  };
  if (call.argmax.data != nullptr)
    launch(pool_slabs_kernel<T, Index, true, Quads>);
  else if constexpr (std::is_same_v<Index, int32_t>)
    launch(pool_slabs_kernel<T, Index, false, Quads>);
}

template <int Channels, typename T, typename Index>
void launch_scatter(const RoiPoolBackward<T, Index>& call, int64_t shared_limit, const Stream& stream) {
  using W = Wide<T>;
  const MapView<T>& result = call.grad_input;
  const int64_t groups = ceil_div(result.c, Channels) * result.n;
  const int64_t bytes = result.cells() * Channels * static_cast<int64_t>(sizeof(W));
  const auto launch = [&](auto kernel, int64_t shared, W* spare) {
    launch_blocks("roi_pool_backward", kernel, groups, {kWarp, shared}, stream, call, spare);
  };
  if (bytes <= shared_limit) {
    launch(scatter_kernel<T, Index, Channels, true>, bytes, nullptr);
  } else if constexpr (Channels == 1) {
    const auto in_spare = scatter_kernel<T, Index, 1, false>;
    if constexpr (std::is_same_v<T, W>) {
      launch(in_spare, 0, result.data);
    } else {
      const TemporaryBuffer<W> spare(result.size(), stream);
      launch(in_spare, 0, spare.data());
    }
  }
}

}  // namespace

template <typename T, typename Index>
void roi_pool_forward(const RoiPoolForward<T, Index>& call, const Stream& stream) {
  if constexpr (!std::is_same_v<Index, int32_t>)  // one kernel for those without
    if (call.argmax.data == nullptr)
      return roi_pool_forward(
          RoiPoolForward<T>{call.features, call.rois, call.spatial_scale, call.output, {}}, stream);
  check(call);
  if (call.output.size() == 0) return;
  const DeviceGuard guard(stream);
  // A slab is worth its copy where the RoIs read the map several times over. Predicted, not measured.
  constexpr int64_t kFewRois = 32;
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
  const int64_t cells = call.features.cells(), images = call.features.n;
  const bool slabs = call.rois.shape[0] >= kFewRois * images && images > 0 && cells > 0 &&
                     call.output.cells() <= std::numeric_limits<int>::max() / 2;
  if (slabs && cells * 64 <= limit)
    launch_slabs<4>(call, stream);
  else if (slabs && cells * 16 <= limit)
    launch_slabs<1>(call, stream);
  else
    launch_threads("roi_pool_forward", pool_directly_kernel<T, Index>, call.output.size(), stream, call);
}

template <typename T, typename Index>
void roi_pool_backward(const RoiPoolBackward<T, Index>& call, const Stream& stream) {
  check(call);
  if (call.grad_input.size() == 0) return;
  const DeviceGuard guard(stream);
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
  // Channels-last: as many channels as are read together, where their planes fit.
  constexpr int together = 8;
  const int64_t bytes = call.grad_input.cells() * together * static_cast<int64_t>(sizeof(Wide<T>));
  if (call.grad_input.layout == Layout::nhwc && bytes <= limit)
    launch_scatter<together>(call, limit, stream);
  else
    launch_scatter<1>(call, limit, stream);
}

#define FRCNN_INSTANTIATE(T, Index)                                              \
  template void roi_pool_forward(const RoiPoolForward<T, Index>&, const Stream&); \
  template void roi_pool_backward(const RoiPoolBackward<T, Index>&, const Stream&);
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)
#undef FRCNN_INSTANTIATE

}  // namespace fastrcnn_engine::cuda
