// The gradient of RoI max pooling.
//
// The lanes of a warp are bins of a plane, and they take the RoIs of its image one after the other. Of
// lanes whose bins share a cell, the first adds for all. So every cell is added to in ascending order of
// (RoI, bin), which is the CPU's order, and no sum is atomic.
//
// It takes two warps a plane: while one adds, the other prepares what it adds next. A block is two teams of
// `Channels` warps. Of channels-last results a team loads the channels of a bin together, as they lie
// together, and hands each warp its own.
#include "fastrcnn_engine/roi_pool.h"

#include <limits>
#include <type_traits>

#include "fastrcnn_engine/semantics/roi_bins.h"
#include "half.cuh"
#include "launch.cuh"

namespace fastrcnn_engine::cuda {
namespace {

// So many rows of rois are looked at at once, for those of the image.
constexpr int kRowsListed = 256;

// Where a RoI's numbers of the group's first channel begin.
template <typename T, typename Index>
struct Row {
  const T* gradient;
  const Index* argmax;
};

// In shared memory, 4 KB of it.
template <typename T, typename Index>
struct RowList {
  Row<T, Index> row[kRowsListed];
  alignas(16) int count;
};
template <typename T, typename Index>
constexpr int64_t kListBytes = sizeof(RowList<T, Index>);

// By one warp.
template <typename T, typename Index>
__device__ void list_rows(const RoiPoolBackward<T, Index>& call, int64_t image, int64_t channel,
                          int64_t first, RowList<T, Index>& list) {
  constexpr int times = kRowsListed / kWarp;
  const int lane = lane_of();
  // All loads before the first of them is asked for its image.
  float images[times];
#pragma unroll
  for (int i = 0; i < times; ++i) {
    const int64_t row = first + i * kWarp + lane;
    images[i] = row < call.rois.shape[0] ? call.rois.data[5 * row] : -1.0f;
  }
  int count = 0;
#pragma unroll
  for (int i = 0; i < times; ++i) {
    const int64_t row = first + i * kWarp + lane;
    const bool mine = semantics::roi_image(images[i], call.grad_input.n) == image;
    const unsigned found = __ballot_sync(kAllLanes, mine);
    const int64_t begin = call.grad_output.offset(row, channel, 0);
    if (mine)
      list.row[count + __popc(found & lanes_before(lane))] = {call.grad_output.data + begin,
                                                              call.argmax.data + begin};
    count += __popc(found);
  }
  if (lane == 0) list.count = count;
}

constexpr int kTeams = 2;

template <int Channels>
__device__ int team_of() {
  // By a shuffle the compiler knows that it is the same in all lanes, which then stay together.
  return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / (Channels * kWarp), 0);
}
template <int Channels>
__device__ int thread_of_team() {
  return static_cast<int>(threadIdx.x) % (Channels * kWarp);
}

// A batch: the bins that a warp takes together, one a lane and step, as they were loaded. Whatever looked at
// them would wait for them. As many as are added while the next ones are on their way, and fewer where
// numbers take two registers each.
template <typename T>
constexpr int kSteps = sizeof(T) > 4 ? 4 : 8;

template <typename T>
struct Steps {
  T gradient[kSteps<T>];
  int cell[kSteps<T>];
};

struct Distance {
  int rois;
  unsigned numbers;
};

// Walks through the bins of the listed RoIs, one RoI right after the other. A team walks together: its
// threads are (bin, channel), and every other batch is its own.
template <typename T, typename Index, int Channels>
struct StepWalk {
  static constexpr int kBatch = kSteps<T> * kWarp;
  const RowList<T, Index>& list;
  const int last;       // RoI of the list
  const unsigned size;  // how far apart a channel's first bin and the one after its last would lie
  const Distance step, batch;  // what each goes on
  int place;                   // of this thread's next bin: its RoI's in the list,
  unsigned number;             // and its own in the RoI

  // Of `channel`, counted from the group's first.
  __device__ StepWalk(const MapView<const T>& grad, int channel, const RowList<T, Index>& list)
      : list(list),
        last(list.count - 1),
        size(static_cast<unsigned>(grad.cells() * grad.cell_stride())),
        step(distance(grad, kWarp)),
        batch(distance(grad, kBatch)) {
    const Distance first =
        distance(grad, team_of<Channels>() * kBatch + thread_of_team<Channels>() / Channels);
    place = first.rois, number = first.numbers + channel;
  }
  __device__ static Distance distance(const MapView<const T>& grad, unsigned by) {
    const auto bins = static_cast<unsigned>(grad.cells());
    return {static_cast<int>(by / bins), by % bins * static_cast<unsigned>(grad.cell_stride())};
  }
  __device__ void go_on(const Distance& by) {
    // By a sign and not by a condition, which takes more instructions.
    const int beyond = static_cast<int>(number + by.numbers - size);
    const int is_same = beyond >> 31;  // all bits: in the same RoI still
    place += by.rois + 1 + is_same;
    number = static_cast<unsigned>(beyond + (static_cast<int>(size) & is_same));
  }
  // Beyond the last bin it is some bin of the last RoI: a load without a condition.
  __device__ void load(Steps<T>& steps) {
#pragma unroll
    for (int i = 0; i < kSteps<T>; ++i) {
      const Row<T, Index> row = list.row[place < last ? place : last];
      // The compiler cannot see it of addresses that it reads, and would load generically.
      __builtin_assume(__isGlobal(row.gradient) && __isGlobal(row.argmax));
      steps.gradient[i] = row.gradient[number];
      steps.cell[i] = static_cast<int>(row.argmax[number]);
      go_on(step);
    }
    go_on(batch);  // the other team's
  }
};

// A batch in shared memory, on its way from the threads that loaded it to the warps that add it. Rows of
// bins are a little longer than a warp, so that neighbouring channels lie in other banks.
template <typename T, typename Index, int Channels>
struct Exchange {
  template <typename N>
  using Rows = N[kSteps<T>][Channels][kWarp + 128 / Channels / sizeof(N)];
  Rows<T> gradient;
  Rows<Index> cell;

  // From threads that are (bin, channel)
  __device__ void put(const Steps<T>& steps) {
    const int channel = thread_of_team<Channels>() % Channels, bin = thread_of_team<Channels>() / Channels;
#pragma unroll
    for (int i = 0; i < kSteps<T>; ++i) {
      gradient[i][channel][bin] = steps.gradient[i];
      cell[i][channel][bin] = static_cast<Index>(steps.cell[i]);
    }
  }
  // to threads that are (channel, bin).
  __device__ void take(Steps<T>& steps) const {
    const int channel = thread_of_team<Channels>() / kWarp;
#pragma unroll
    for (int i = 0; i < kSteps<T>; ++i) {
      steps.gradient[i] = gradient[i][channel][lane_of()];
      steps.cell[i] = cell[i][channel][lane_of()];
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

constexpr unsigned kNoCell = 0xffffffff;

// In shared memory a word for each cell of a plane, and one for lanes without a cell: there the lanes of a
// warp find which of them share one. The two warps of a plane use the same words, as they take turns.
struct CellWords {
  unsigned* first;
  bool are_there;  // or there is no room for them

  FRCNN_HD static int64_t count(int64_t cells) { return cells + 1; }

  // The lanes that share this one's cell, step by step. The instruction that was made for it, `match`, is
  // expected to take the longer the more cells there are among the lanes.
  template <int Count>
  __device__ void find_sharing(const unsigned (&cell)[Count], unsigned cells,
                               unsigned (&sharing)[Count]) const {
    if (!are_there) {
#pragma unroll
      for (int i = 0; i < Count; ++i) sharing[i] = __match_any_sync(kAllLanes, cell[i]);
      return;
    }
    const unsigned mine = 1u << lane_of();
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      // Without a condition, for which there would be a branch around the atomic.
      unsigned* const word = first + (cell[i] < cells ? cell[i] : cells);
      *const_cast<volatile unsigned*>(word) = 0;  // by all who share it
      __syncwarp();
      atomicOr(word, mine);  // the same bits in the end whoever comes first, as they would not be of a sum
      __syncwarp();
      sharing[i] = *word;
      __syncwarp();  // the next step's zeros may come there
    }
  }
};

// What a warp adds of a batch. Of the lanes that share a cell, the first adds for all, in their order. What
// the next three have it fetches before any sum is needed, so that a step waits for nothing but its sums;
// mostly no cell has more than four bins.
template <typename W>
struct Additions {
  static constexpr int kFetched = 3;
  W gradient[kSteps<W>]{}, fetched[kSteps<W>][kFetched]{};
  unsigned cell[kSteps<W>];   // of a lane that does not add, none
  int next[kSteps<W>]{};      // the lane of the cell's next bin, or this one
  int others[kSteps<W>]{};    // how many more there are that are not fetched
  bool is_more[kSteps<W>]{};  // whether any lane has some

  // Nothing.
  __device__ Additions() {
#pragma unroll
    for (int i = 0; i < kSteps<W>; ++i) cell[i] = kNoCell;
  }

  // `left`: how many bins there are, from the first step's first.
  template <typename T>
  __device__ void prepare(const Steps<T>& steps, int left, unsigned cells, const CellWords& words) {
    const int lane = lane_of();
#pragma unroll
    for (int i = 0; i < kSteps<T>; ++i) {
      gradient[i] = widened(steps.gradient[i]);
      // Without a sign, what is before the map is beyond it: -1, and 65535 of uint16, which are no cell.
      cell[i] = steps.cell[i];
    }
    if (left < kSteps<T> * kWarp) {
#pragma unroll
      for (int i = 0; i < kSteps<T>; ++i)
        if (i * kWarp + lane >= left) cell[i] = kNoCell;
    }
    unsigned sharing[kSteps<T>];
    words.find_sharing(cell, cells, sharing);
#pragma unroll
    for (int i = 0; i < kSteps<T>; ++i) {
      const unsigned after = sharing[i] & lanes_after(lane);
      next[i] = after != 0 ? __popc(~after & (after - 1)) : lane;
      const W one = fetch(i, gradient[i]);
      fetched[i][0] = after != 0 ? one : W(-0.0);  // which changes no sum
#pragma unroll
      for (int k = 1; k < kFetched; ++k) fetched[i][k] = fetch(i, fetched[i][k - 1]);
      if ((sharing[i] & lanes_before(lane)) != 0 || cell[i] >= cells) cell[i] = kNoCell;
      others[i] = __popc(sharing[i]) - 1 - kFetched;
      is_more[i] = __ballot_sync(kAllLanes, cell[i] != kNoCell && others[i] > 0) != 0;
    }
  }

  // What the cell's next lane has. What that one has fetched is what comes after its own: so a lane needs to
  // know no lane but the next.
  __device__ W fetch(int i, W theirs) const { return __shfl_sync(kAllLanes, theirs, next[i]); }

  __device__ void add(const Sums<W>& sums, int channel) const {
#pragma unroll
    for (int i = 0; i < kSteps<W>; ++i) {
      const bool adds = cell[i] != kNoCell;
      W sum = adds ? sums.at(cell[i], channel) : W(0);
      sum += gradient[i];
#pragma unroll
      for (int k = 0; k < kFetched; ++k) sum += fetched[i][k];
      if (is_more[i]) {
        W theirs = fetched[i][kFetched - 1];
        int rest = others[i];
        do {
          theirs = fetch(i, theirs);
          sum += theirs;
        } while (__ballot_sync(kAllLanes, adds && --rest > 0) != 0);
      }
      if (adds) sums.at(cell[i], channel) = sum;
      __syncwarp();
    }
  }
};

// Sums are in shared memory (known when this is compiled, or loads would have to ask), or, where it is too
// small, in `spare`, of the size of grad_input. `with_words`: behind the sums there are CellWords. Two blocks
// of many warps shall have registers.
template <typename T, typename Index, int Channels, bool InShared>
__global__ __launch_bounds__(kTeams * Channels * kWarp, Channels > 1 ? 2 : 1) void scatter_kernel(
    RoiPoolBackward<T, Index> call, Wide<T>* spare, bool with_words) {
  using W = Wide<T>;
  using Walk = StepWalk<T, Index, Channels>;
  const MapView<T>& result = call.grad_input;
  const int64_t cells = result.cells(), groups = ceil_div(result.c, Channels);
  const auto numbered = static_cast<unsigned>(cells);  // each has a number, says check()
  const int team = team_of<Channels>();
  // Of the group's channels the one that this warp adds to, and the one that this thread loads and writes.
  const int added = thread_of_team<Channels>() / kWarp;
  const int moved = static_cast<int>(threadIdx.x) % Channels;
  auto& list = *reinterpret_cast<RowList<T, Index>*>(dynamic_shared);
  auto* const exchange = reinterpret_cast<Exchange<T, Index, Channels>*>(&list + 1);
  for (int64_t group = blockIdx.x; group < groups * result.n; group += gridDim.x) {
    const int64_t image = group / groups, first = group % groups * Channels;
    Sums<W> sums;
    CellWords words{nullptr, false};
    if constexpr (InShared) {
      W* const begin = reinterpret_cast<W*>(exchange + (Channels > 1));
      sums = {begin, 1, cells};
      words = {reinterpret_cast<unsigned*>(begin + Channels * cells) + added * CellWords::count(cells),
               with_words};
    } else {
      sums = {spare + result.offset(image, first, 0), result.cell_stride(), result.channel_stride()};
    }
    for (int64_t cell = team * kWarp + lane_of(); cell < cells; cell += kTeams * kWarp)
      sums.at(cell, added) = 0;

    for (int64_t row = 0; row < call.rois.shape[0]; row += kRowsListed) {
      __syncthreads();  // the list before this one is done with
      if (warp_of() == 0) list_rows(call, image, first, row, list);
      __syncthreads();
      const int64_t bins = list.count * call.grad_output.cells();
      if (bins == 0) continue;
      // Where there is no such channel, the last one is read for sums that nobody asks for.
      const int64_t channels = result.c - first;
      Walk walk(call.grad_output, static_cast<int>(moved < channels ? moved : channels - 1), list);
      Steps<T> steps;
      Additions<W> additions;
      walk.load(steps);
      // The teams take turns at preparing; what a team has prepared it adds in the next turn.
      for (int64_t begin = 0, turn = 0; begin < bins + Walk::kBatch; begin += Walk::kBatch, turn ^= 1) {
        const bool prepares = turn == team;
        if constexpr (Channels > 1) {
          if (prepares) exchange->put(steps);
          __syncthreads();
          if (prepares) exchange->take(steps);
        }
        if (prepares) {
          const int64_t left = bins - begin;
          additions.prepare(steps, left < Walk::kBatch ? static_cast<int>(left) : Walk::kBatch, numbered,
                            words);
          walk.load(steps);  // on their way while this team adds
        } else {
          additions.add(sums, added);  // at first nothing
        }
        __syncthreads();
      }
    }

    __syncthreads();
    T* const out = result.data + result.offset(image, first, 0);
    if (first + moved < result.c)
      for (int64_t cell = threadIdx.x / Channels; cell < cells; cell += kTeams * kWarp)
        out[cell * result.cell_stride() + moved * result.channel_stride()] =
            narrowed<T>(sums.at(cell, moved));
    __syncthreads();  // the next group's zeros come after
  }
}

// ---- launches -----------------------------------------------------------------------------------------

// Bytes of shared memory where `Channels` planes are summed there.
template <int Channels, typename T, typename Index>
int64_t scatter_bytes(const RoiPoolBackward<T, Index>& call) {
  const int64_t sums = call.grad_input.cells() * Channels * static_cast<int64_t>(sizeof(Wide<T>));
  return kListBytes<T, Index> + (Channels > 1 ? sizeof(Exchange<T, Index, Channels>) : 0) + sums;
}

// `limit`: bytes of shared memory that a block may have. Words go where there is room, though fewer planes
// then share a multiprocessor, half as many at the least: a step is expected to take less than half the time.
template <int Channels, bool InShared, typename T, typename Index>
void launch_scatter(const RoiPoolBackward<T, Index>& call, Wide<T>* spare, int64_t limit,
                    const Stream& stream) {
  const int64_t groups = ceil_div(call.grad_input.c, Channels) * call.grad_input.n;
  int64_t shared_bytes = InShared ? scatter_bytes<Channels>(call) : kListBytes<T, Index>;
  const int64_t words =
      CellWords::count(call.grad_input.cells()) * Channels * static_cast<int64_t>(sizeof(unsigned));
  const bool with_words = InShared && shared_bytes + words <= limit;
  if (with_words) shared_bytes += words;
  launch_blocks("roi_pool_backward", scatter_kernel<T, Index, Channels, InShared>, groups,
                {kTeams * Channels * kWarp, shared_bytes}, stream, call, spare, with_words);
}

}  // namespace

template <typename T, typename Index>
void roi_pool_backward(const RoiPoolBackward<T, Index>& call, const Stream& stream) {
  check(call);
  const MapView<const T>& grad = call.grad_output;
  require(grad.c * grad.cells() <= std::numeric_limits<int32_t>::max(),
          "grad_output must have fewer than 2^31 numbers a RoI on a GPU, got (", grad.n, ", ", grad.c, ", ",
          grad.h, ", ", grad.w, ")");
  if (call.grad_input.size() == 0) return;
  const DeviceGuard guard(stream);
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
  // Channels of channels-last maps that are read together: with 8, a whole sector, the 512 channels of one
  // image would be blocks for half of the multiprocessors.
  constexpr int together = 4;
  if (call.grad_input.layout == Layout::nhwc && scatter_bytes<together>(call) <= limit) {
    launch_scatter<together, true>(call, nullptr, limit, stream);
  } else if (scatter_bytes<1>(call) <= limit) {
    launch_scatter<1, true>(call, nullptr, limit, stream);
  } else if constexpr (std::is_same_v<T, Wide<T>>) {
    launch_scatter<1, false>(call, call.grad_input.data, limit, stream);
  } else {
    const TemporaryBuffer<Wide<T>> spare(call.grad_input.size(), stream);
    launch_scatter<1, false>(call, spare.data(), limit, stream);
  }
}

#define FRCNN_INSTANTIATE(T, Index) \
  template void roi_pool_backward(const RoiPoolBackward<T, Index>&, const Stream&);
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)
#undef FRCNN_INSTANTIATE

}  // namespace fastrcnn_engine::cuda
