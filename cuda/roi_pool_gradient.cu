// The gradient of RoI max pooling.
//
// A warp owns a plane: its lanes are bins, and it takes the RoIs of its image one after the other. Lanes
// whose bins share a cell take turns, the lower bin first. So every cell is added to in ascending order of
// (RoI, bin), which is the CPU's order, without an atomic.
//
// A block is `Channels` warps. Of channels-last results it loads the channels of a bin together, as they lie
// together, and hands each warp its own.
#include "fastrcnn_engine/roi_pool.h"

#include <type_traits>

#include "fastrcnn_engine/semantics/roi_bins.h"
#include "half.cuh"
#include "launch.cuh"

namespace fastrcnn_engine::cuda {
namespace {

// So many rows of rois are looked at at once, for those of the image: their numbers, from `first` on, are
// listed in shared memory, and after them how many they are.
constexpr int kRowsListed = 512;
constexpr int64_t kListBytes = (kRowsListed + 4) * sizeof(int);

// By one warp.
template <typename T, typename Index>
__device__ void list_rows(const RoiPoolBackward<T, Index>& call, int64_t image, int64_t first, int* list) {
  const int lane = lane_of();
  int count = 0;
#pragma unroll 4
  for (int i = lane; i - lane < kRowsListed; i += kWarp) {
    const int64_t row = first + i;
    const bool mine = row < call.rois.shape[0] &&
                      semantics::roi_image(call.rois.data[5 * row], call.grad_input.n) == image;
    const unsigned found = __ballot_sync(kAllLanes, mine);
    if (mine) list[count + __popc(found & lanes_before(lane))] = i;
    count += __popc(found);
  }
  list[kRowsListed] = count;
}

// The gradients that a warp takes together, in registers: those that come next are on their way while
// these are added. As they were loaded: whatever looked at them here would wait for them.
constexpr int kStepsAhead = 8;

template <typename T, typename Index>
struct Steps {
  T gradient[kStepsAhead];
  Index cell[kStepsAhead];  // no cell of the map: nothing to add
};

// Walks through the listed RoIs, 32 bins a step. All threads of a block walk together, and they are
// (bin, channel).
template <typename T, typename Index, int Channels>
struct StepWalk {
  const RoiPoolBackward<T, Index>& call;
  const int* const list;
  const int count;
  const int64_t bins, mine;  // mine: of a step's bins; `bins` where this thread has no channel
  const int64_t begin, row_size, step_size;  // begin: of this thread in the row that the list counts from
  int place = 0;                             // in the list
  int64_t bin = 0, from = 0;                 // the step's first; where this thread's is

  __device__ StepWalk(const RoiPoolBackward<T, Index>& call, int64_t channel, int64_t first_row,
                      const int* list)
      : call(call),
        list(list),
        count(list[kRowsListed]),
        bins(call.grad_output.cells()),
        mine(channel < call.grad_input.c ? threadIdx.x / Channels : bins),
        begin(call.grad_output.offset(first_row, channel, threadIdx.x / Channels)),
        row_size(call.grad_output.offset(1, 0, 0)),
        step_size(call.grad_output.offset(0, 0, kWarp)) {
    begin_row();
  }
  __device__ bool is_over() const { return place >= count; }
  __device__ void begin_row() {
    bin = 0;
    if (!is_over()) from = begin + list[place] * row_size;
  }

  __device__ void load(Steps<T, Index>& steps) {
#pragma unroll
    for (int i = 0; i < kStepsAhead; ++i) {
      steps.cell[i] = static_cast<Index>(-1);
      steps.gradient[i] = T{};
      if (is_over()) continue;
      if (bin + mine < bins) {
        steps.cell[i] = call.argmax.data[from];
        steps.gradient[i] = call.grad_output.data[from];
      }
      bin += kWarp, from += step_size;
      if (bin >= bins) ++place, begin_row();
    }
  }
};

// Steps of a block in shared memory, on their way from the threads that loaded them to the warps that add.
// Rows of bins are a little longer than a warp, so that neighbouring channels lie in other banks.
template <typename T, typename Index, int Channels>
struct Exchange {
  template <typename N>
  using Rows = N[kStepsAhead][Channels][kWarp + 16 / sizeof(N)];
  Rows<T> gradient;
  Rows<Index> cell;

  // To a thread that is (bin, channel), the steps of (channel, bin).
  __device__ void turn(Steps<T, Index>& steps) {
    const int channel = static_cast<int>(threadIdx.x) % Channels;
    const int bin = static_cast<int>(threadIdx.x) / Channels;
    __syncthreads();  // the steps before these are done with
#pragma unroll
    for (int i = 0; i < kStepsAhead; ++i) {
      gradient[i][channel][bin] = steps.gradient[i];
      cell[i][channel][bin] = steps.cell[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kStepsAhead; ++i) {
      steps.gradient[i] = gradient[i][warp_of()][lane_of()];
      steps.cell[i] = cell[i][warp_of()][lane_of()];
    }
  }
};

// Where a block adds up: cell * cell_stride + channel * channel_stride.
template <typename W>
struct Sums {
  W* data;
  int64_t cell_stride, channel_stride;

  __device__ W& at(int64_t cell, int64_t channel) const {
    return data[cell * cell_stride + channel * channel_stride];
  }
};

template <typename T, typename Index>
__device__ void add(const Steps<T, Index>& steps, unsigned cells, const Sums<Wide<T>>& sums) {
  const int lane = lane_of();
  // One test for both ends of the map: -1, and 65535 of uint16, are large without a sign.
  const auto cell = [&](int i) { return static_cast<unsigned>(static_cast<int>(steps.cell[i])); };
  int turns[kStepsAhead];  // -1: nothing to add
#pragma unroll
  for (int i = 0; i < kStepsAhead; ++i) {
    const bool adds = cell(i) < cells;
    // Lanes of one cell; a lane with none is alone.
    const unsigned sharing = __match_any_sync(kAllLanes, adds ? cell(i) : ~static_cast<unsigned>(lane));
    turns[i] = adds ? __popc(sharing & lanes_before(lane)) : -1;
  }
#pragma unroll
  for (int i = 0; i < kStepsAhead; ++i)
    for (int now = 0; __ballot_sync(kAllLanes, turns[i] >= now) != 0; ++now) {
      if (turns[i] == now) sums.at(cell(i), warp_of()) += widened(steps.gradient[i]);
      __syncwarp();
    }
}

// Sums are in shared memory (known when this is compiled, or loads would have to ask), or, where it is too
// small, in `spare`, of the size of grad_input.
template <typename T, typename Index, int Channels, bool InShared>
__global__ __launch_bounds__(Channels * kWarp, 1) void scatter_kernel(RoiPoolBackward<T, Index> call,
                                                                      Wide<T>* spare) {
  using W = Wide<T>;
  const MapView<T>& result = call.grad_input;
  const int64_t cells = result.cells(), groups = ceil_div(result.c, Channels);
  const auto numbered = static_cast<unsigned>(cells < 0x7fffffff ? cells : 0x7fffffff);  // by int32, at most
  const int channel = static_cast<int>(threadIdx.x) % Channels;
  int* const list = reinterpret_cast<int*>(dynamic_shared);
  auto* const exchange = reinterpret_cast<Exchange<T, Index, Channels>*>(list + kListBytes / sizeof(int));
  for (int64_t group = blockIdx.x; group < groups * result.n; group += gridDim.x) {
    const int64_t image = group / groups, first = group % groups * Channels;
    Sums<W> sums;
    if constexpr (InShared)
      sums = {reinterpret_cast<W*>(exchange + (Channels > 1)), 1, cells};
    else
      sums = {spare + result.offset(image, first, 0), result.cell_stride(), result.channel_stride()};
    for (int64_t cell = lane_of(); cell < cells; cell += kWarp) sums.at(cell, warp_of()) = 0;

    for (int64_t row = 0; row < call.rois.shape[0]; row += kRowsListed) {
      __syncthreads();  // the list before this one is done with
      if (warp_of() == 0) list_rows(call, image, row, list);
      __syncthreads();
      StepWalk<T, Index, Channels> walk(call, first + channel, row, list);
      Steps<T, Index> now, next;
      walk.load(now);
      for (bool last = walk.count == 0; !last; now = next) {
        last = walk.is_over();
        walk.load(next);
        if constexpr (Channels > 1) exchange->turn(now);
        add(now, numbered, sums);
      }
    }

    __syncthreads();
    T* const out = result.data + result.offset(image, first, 0);
    if (first + channel < result.c)
      for (int64_t cell = threadIdx.x / Channels; cell < cells; cell += kWarp)
        out[cell * result.cell_stride() + channel * result.channel_stride()] =
            narrowed<T>(sums.at(cell, channel));
    __syncthreads();  // the next group's zeros come after
  }
}

// ---- launches -----------------------------------------------------------------------------------------

// Bytes of shared memory where `Channels` planes are summed there.
template <int Channels, typename T, typename Index>
int64_t scatter_bytes(const RoiPoolBackward<T, Index>& call) {
  const int64_t sums = call.grad_input.cells() * Channels * static_cast<int64_t>(sizeof(Wide<T>));
  return kListBytes + (Channels > 1 ? sizeof(Exchange<T, Index, Channels>) : 0) + sums;
}

template <int Channels, bool InShared, typename T, typename Index>
void launch_scatter(const RoiPoolBackward<T, Index>& call, Wide<T>* spare, const Stream& stream) {
  const int64_t groups = ceil_div(call.grad_input.c, Channels) * call.grad_input.n;
  const int64_t shared_bytes = InShared ? scatter_bytes<Channels>(call) : kListBytes;
  launch_blocks("roi_pool_backward", scatter_kernel<T, Index, Channels, InShared>, groups,
                {Channels * kWarp, shared_bytes}, stream, call, spare);
}

}  // namespace

template <typename T, typename Index>
void roi_pool_backward(const RoiPoolBackward<T, Index>& call, const Stream& stream) {
  check(call);
  if (call.grad_input.size() == 0) return;
  const DeviceGuard guard(stream);
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
  constexpr int together = 8;  // channels of channels-last maps that are read together
  if (call.grad_input.layout == Layout::nhwc && scatter_bytes<together>(call) <= limit) {
    launch_scatter<together, true>(call, nullptr, stream);
  } else if (scatter_bytes<1>(call) <= limit) {
    launch_scatter<1, true>(call, nullptr, stream);
  } else if constexpr (std::is_same_v<T, Wide<T>>) {
    launch_scatter<1, false>(call, call.grad_input.data, stream);
  } else {
    const TemporaryBuffer<Wide<T>> spare(call.grad_input.size(), stream);
    launch_scatter<1, false>(call, spare.data(), stream);
  }
}

#define FRCNN_INSTANTIATE(T, Index) \
  template void roi_pool_backward(const RoiPoolBackward<T, Index>&, const Stream&);
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)
#undef FRCNN_INSTANTIATE

}  // namespace fastrcnn_engine::cuda
