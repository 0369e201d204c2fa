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
template <typename T, typename Cell>
struct Maximum {
  Wide<T> value;
  Cell cell;

  __device__ void begin(const T& first, Cell at) {
    value = widened(first), cell = at;
    if (!semantics::beats(value, lowest())) value = lowest();  // NaN too
  }
  __device__ void meet(const T& candidate, Cell at) {
    const Wide<T> wide = widened(candidate);
    const bool better = semantics::beats(wide, value);
    value = better ? wide : value, cell = better ? at : cell;
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
      Maximum<T, int64_t> best;
      best.begin(plane[first * stride], first);
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

// What a lane loads or stores at once, 16 bytes of it an instruction.
template <typename N, int Count>
struct alignas(Count * sizeof(N) < 16 ? Count * sizeof(N) : 16) Vector {
  N numbers[Count];
};

template <typename T>
using Quad = Vector<T, kQuad<T>>;

// Whether the channels of a quad lie together, and where vectors may.
template <typename T, typename N>
__device__ bool has_whole_quads(const MapView<N>& map) {
  return map.layout == Layout::nhwc && map.c % kQuad<T> == 0 &&
         reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

constexpr int kTogether = 4;  // loads under way together

// Calls load(cell) for kTogether cells of this thread and puts them in the slab, until all are there.
template <typename T, int Quads, typename Load>
__device__ void fill_cells(int cells, Quad<T>* slab, const Load& load) {
  constexpr int step = kSlabThreads / Quads;
  int cell = static_cast<int>(threadIdx.x) / Quads;
  for (; cell + (kTogether - 1) * step < cells; cell += kTogether * step) {
    Quad<T> values[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) values[i] = load(cell + i * step);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) slab[(cell + i * step) * Quads] = values[i];
  }
  for (; cell < cells; cell += step) slab[cell * Quads] = load(cell);
}

// The slab from `channel` on; 0 for channels that a last slab lacks. `slab` is where this lane's quads lie.
template <typename T, int Quads>
__device__ void fill_slab(const MapView<const T>& map, int64_t image, int64_t channel, bool whole_quads,
                          Quad<T>* slab) {
  const int cells = static_cast<int>(map.cells());
  const int64_t channels = map.c - channel;
  const T* from = map.data + map.offset(image, channel, 0);
  const int64_t channel_stride = map.channel_stride(), cell_stride = map.cell_stride();
  if (whole_quads && channels > 0)
    fill_cells<T, Quads>(cells, slab, [&](int cell) {
      return *reinterpret_cast<const Quad<T>*>(from + cell * cell_stride);
    });
  else
    fill_cells<T, Quads>(cells, slab, [&](int cell) {
      Quad<T> values{};
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c)
        if (c < channels) values.numbers[c] = from[c * channel_stride + cell * cell_stride];
      return values;
    });
}

// Stores numbers of the channels from `channel` on, at `at` and a channel's stride apart.
template <typename N, int Count>
__device__ void put(const Vector<N, Count>& values, const MapView<N>& map, int64_t at, int64_t channel,
                    bool whole_quads) {
  if (whole_quads) {
    *reinterpret_cast<Vector<N, Count>*>(map.data + at) = values;
    return;
  }
  const int64_t stride = map.channel_stride();
#pragma unroll
  for (int c = 0; c < Count; ++c)
    if (channel + c < map.c) map.data[at + c * stride] = values.numbers[c];
}

// One bin of one RoI for the channels of one quad, `channel` and on.
template <typename T, typename Index, bool WithArgmax, int Quads>
__device__ void pool_quad(const RoiPoolForward<T, Index>& call, int64_t row, int64_t channel, int bin,
                          BinRange y, BinRange x, bool whole_quads, const Quad<T>* slab) {
  const int width = static_cast<int>(call.features.w);
  const int top = static_cast<int>(y.begin), bottom = static_cast<int>(y.end);
  const int left = static_cast<int>(x.begin), right = static_cast<int>(x.end);
  const bool empty = top >= bottom || left >= right;
  const int first = empty ? 0 : top * width + left;
  Maximum<T, int> best[kQuad<T>];
  const Quad<T> corner = slab[first * Quads];
#pragma unroll
  for (int c = 0; c < kQuad<T>; ++c) best[c].begin(corner.numbers[c], empty ? -1 : first);
  for (int line = top; line < bottom; ++line) {
    const int end = line * width + right;
    for (int cell = line * width + left; cell < end; ++cell) {
      const Quad<T> values = slab[cell * Quads];
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c) best[c].meet(values.numbers[c], cell);
    }
  }
  Quad<T> values;
  Vector<Index, kQuad<T>> cells;
#pragma unroll
  for (int c = 0; c < kQuad<T>; ++c) {
    values.numbers[c] = empty ? T{} : best[c].result(corner.numbers[c]);
    cells.numbers[c] = static_cast<Index>(best[c].cell);
  }
  const int64_t at = call.output.offset(row, channel, bin);
  put(values, call.output, at, channel, whole_quads);
  if constexpr (WithArgmax) put(cells, call.argmax, at, channel, whole_quads);
}

// A block is (slab, image, share): every `shares`-th group of RoIs is pooled by this one.
template <typename T, typename Index, bool WithArgmax, int Quads>
__global__ __launch_bounds__(kSlabThreads, 1) void pool_slabs_kernel(
    RoiPoolForward<T, Index> call, int64_t shares) {
  constexpr int slab_channels = Quads * kQuad<T>, together = kWarp / Quads;
  Quad<T>* const slab = reinterpret_cast<Quad<T>*>(dynamic_shared);
  const int64_t slabs = ceil_div(call.features.c, slab_channels);
  const int64_t images = call.features.n, rois = call.rois.shape[0];
  const int pw = static_cast<int>(call.output.w), bins = static_cast<int>(call.output.cells());
  const int quad = lane_of() % Quads, first_bin = lane_of() / Quads;
  Quad<T>* const mine = slab + quad;  // the quads that this lane fills are those it reads
  const bool read_whole = has_whole_quads<T>(call.features);
  const bool write_whole = has_whole_quads<T>(call.output) &&
                           (!WithArgmax || has_whole_quads<T>(call.argmax));
  for (int64_t block = blockIdx.x; block < slabs * images * shares; block += gridDim.x) {
    const int64_t image = block / slabs % images, share = block / slabs / images;
    const int64_t first = block % slabs * slab_channels, channel = first + quad * kQuad<T>;
    __syncthreads();  // the slab before this one is done with
    fill_slab<T, Quads>(call.features, image, channel, read_whole, mine);
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
        pool_quad<T, Index, WithArgmax, Quads>(call, row, channel, bin, y, x, write_whole, mine);
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

// So many rows of rois are looked at at once, for those of the image: their numbers, from `first` on, are
// listed in shared memory.
constexpr int kRowsListed = 512;
constexpr int64_t kListBytes = kRowsListed * sizeof(int);

template <typename T, typename Index>
__device__ int list_rows(const RoiPoolBackward<T, Index>& call, int64_t image, int64_t first, int* list) {
  const int lane = lane_of();
  int count = 0;
  __syncwarp();  // the list before this one is done with
#pragma unroll 4
  for (int i = lane; i - lane < kRowsListed; i += kWarp) {
    const int64_t row = first + i;
    const bool mine = row < call.rois.shape[0] &&
                      semantics::roi_image(call.rois.data[5 * row], call.grad_input.n) == image;
    const unsigned found = __ballot_sync(kAllLanes, mine);
    if (mine) list[count + __popc(found & lanes_before(lane))] = i;
    count += __popc(found);
  }
  __syncwarp();
  return count;
}

// The gradients that a warp takes together, in registers: those that come next are on their way while
// these are added. As they were loaded: whatever looked at them here would wait for them.
constexpr int kStepsAhead = 8;

template <typename T, typename Index>
struct Steps {
  T gradient[kStepsAhead];
  Index cell[kStepsAhead];  // no cell of the map: nothing to add
};

// Walks through the listed RoIs, 32 / Channels bins a step. All lanes of a warp walk together.
template <typename T, typename Index, int Channels>
struct StepWalk {
  const RoiPoolBackward<T, Index>& call;
  const int64_t channel;  // of this lane
  const int64_t first_row;
  const int* const list;
  const int count;
  int place = 0;    // in the list
  int64_t bin = 0;  // the step's first

  __device__ bool is_over() const { return place >= count; }

  __device__ void load(Steps<T, Index>& steps) {
    const int64_t bins = call.grad_output.cells();
#pragma unroll
    for (int i = 0; i < kStepsAhead; ++i) {
      steps.cell[i] = static_cast<Index>(-1);
      steps.gradient[i] = T{};
      if (is_over()) continue;
      const int64_t row = first_row + list[place], mine = bin + lane_of() / Channels;
      bin += kWarp / Channels;
      if (bin >= bins) bin = 0, ++place;
      if (mine >= bins || channel >= call.grad_input.c) continue;
      const int64_t from = call.grad_output.offset(row, channel, mine);
      steps.cell[i] = call.argmax.data[from];
      steps.gradient[i] = call.grad_output.data[from];
    }
  }
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

template <typename T, typename Index, int Channels>
__device__ void add(const Steps<T, Index>& steps, int64_t cells, const Sums<Wide<T>>& sums) {
  const int lane = lane_of(), channel = lane % Channels;
#pragma unroll
  for (int i = 0; i < kStepsAhead; ++i) {
    // One test for both ends of the map: -1, and 65535 of uint16, are large without a sign.
    const auto cell = static_cast<unsigned>(static_cast<int>(steps.cell[i]));
    const bool adds = cell < cells;
    // Lanes of one address; a lane with none is alone.
    const unsigned address = adds ? cell * Channels + channel : ~static_cast<unsigned>(lane);
    const unsigned sharing = __match_any_sync(kAllLanes, address);
    const int turn = __popc(sharing & lanes_before(lane));
    for (int now = 0; __ballot_sync(kAllLanes, adds && turn >= now) != 0; ++now) {
      if (adds && turn == now) sums.at(cell, channel) += widened(steps.gradient[i]);
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
  const int64_t cells = result.cells(), groups = ceil_div(result.c, Channels);
  const int channel = lane_of() % Channels;
  for (int64_t group = blockIdx.x; group < groups * result.n; group += gridDim.x) {
    const int64_t image = group / groups, first = group % groups * Channels;
    Sums<W> sums;
    int* const list = reinterpret_cast<int*>(dynamic_shared);
    if constexpr (InShared)
      sums = {reinterpret_cast<W*>(list + kRowsListed), Channels, 1};
    else
      sums = {spare + result.offset(image, first, 0), result.cell_stride(), result.channel_stride()};
    const bool has_channel = first + channel < result.c;
    for (int64_t cell = lane_of() / Channels; cell < cells; cell += kWarp / Channels)
      if (has_channel) sums.at(cell, channel) = 0;
    __syncwarp();

    for (int64_t row = 0; row < call.rois.shape[0]; row += kRowsListed) {
      const int count = list_rows(call, image, row, list);
      StepWalk<T, Index, Channels> walk{call, first + channel, row, list, count};
      Steps<T, Index> now, next;
      walk.load(now);
      for (bool last = count == 0; !last; now = next) {
        last = walk.is_over();
        walk.load(next);
        add<T, Index, Channels>(now, cells, sums);
      }
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

// Bytes that the sums of a warp take.
template <typename T, typename Index>
int64_t sums_bytes(const RoiPoolBackward<T, Index>& call, int64_t channels) {
  return call.grad_input.cells() * channels * static_cast<int64_t>(sizeof(Wide<T>));
}

template <int Channels, bool InShared, typename T, typename Index>
void launch_scatter(const RoiPoolBackward<T, Index>& call, Wide<T>* spare, const Stream& stream) {
  const int64_t groups = ceil_div(call.grad_input.c, Channels) * call.grad_input.n;
  const int64_t shared_bytes = kListBytes + (InShared ? sums_bytes(call, Channels) : 0);
  launch_blocks("roi_pool_backward", scatter_kernel<T, Index, Channels, InShared>, groups,
                {kWarp, shared_bytes}, stream, call, spare);
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
  const auto fits = [&](int64_t channels) { return sums_bytes(call, channels) + kListBytes <= limit; };
  constexpr int together = 8;  // channels of channels-last maps that are read together
  if (call.grad_input.layout == Layout::nhwc && fits(together)) {
    launch_scatter<together, true>(call, nullptr, stream);
  } else if (fits(1)) {
    launch_scatter<1, true>(call, nullptr, stream);
  } else if constexpr (std::is_same_v<T, Wide<T>>) {
    launch_scatter<1, false>(call, call.grad_input.data, stream);
  } else {
    const TemporaryBuffer<Wide<T>> spare(call.grad_input.size(), stream);
    launch_scatter<1, false>(call, spare.data(), stream);
  }
}

#define FRCNN_INSTANTIATE(T, Index)                                              \
  template void roi_pool_forward(const RoiPoolForward<T, Index>&, const Stream&); \
  template void roi_pool_backward(const RoiPoolBackward<T, Index>&, const Stream&);
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)
#undef FRCNN_INSTANTIATE

}  // namespace fastrcnn_engine::cuda
