// Suppression as nms and detections share it, in two kernels. A block has the boxes of one class: it gathers,
// sorts and suppresses them. Then a warp has a kept box, and counts the kept ones of all classes before it.
//
// What comes first is decided by (score, index) alone. Atomics choose where lists lie and in which order a
// list is gathered, so no result depends on who was faster.
//
// A `Source` says which boxes there are, and takes the result:
//   int64_t rows;                            // to be looked at for each class
//   int64_t classes();
//   int64_t class_id(int64_t number);        // of the class with that number, 0 .. classes() - 1
//   int64_t index(int64_t row, int64_t id);  // of the box of that row; of equal scores the lower comes first
//   bool wants(int64_t index, int64_t id);   // whether the class has this box. Not where its score is NaN
//   T score(int64_t index);
//   Box<T> box(int64_t index);
//   int64_t places;                          // of the result
//   void write(int64_t place, int64_t index);
//   void write_nothing(int64_t place);
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/host_device.h"
#include "fastrcnn_engine/semantics/iou.h"
#include "launch.cuh"

namespace fastrcnn_engine::cuda {

using semantics::Box;

// Twice as many wait longer for each other, and a list of the usual few hundred boxes has no use for them.
// Predicted, not measured.
constexpr int kClassThreads = 512;

template <typename T>
struct alignas(2 * sizeof(semantics::RankKey<T>)) Ranked {
  semantics::RankKey<T> key, index;
};

template <typename T>
__device__ bool comes_before(const Ranked<T>& a, const Ranked<T>& b) {
  return a.key < b.key || (a.key == b.key && a.index < b.index);
}

// Loaded by 16 bytes.
template <typename T>
struct alignas(16) StoredBox : Box<T> {};

template <typename T>
struct SuppressionRule {
  float threshold;
  T side;
  int64_t enough;  // kept boxes, of one class or of all: there are no places for more
};

// A kept box while it suppresses others. `kKeptAtOnce` of them are compared with a box together, so lists
// are filled up with some that suppress nothing.
constexpr int kKeptAtOnce = 4;
template <typename T>
struct alignas(16) Suppressor : Box<T> {
  T area;

  __device__ void fill_up() { this->x1 = area = static_cast<T>(NAN); }
  __device__ void set(const Box<T>& box, T side) {
    static_cast<Box<T>&>(*this) = box;
    area = semantics::area(box, side);
  }
};

// The boxes of one class, best first.
template <typename T>
struct ClassList {
  StoredBox<T>* boxes;
  uint8_t* dead;  // whether a kept box suppresses it
  int count;
};

// What the threads of a block tell each other, at the front of shared memory.
template <typename T>
struct alignas(16) BlockState {
  Suppressor<T> kept[kWarp];  // of 32 boxes
  int kept_count;
  unsigned suppressors[kWarp];  // of the next 32: see compare_pairs
  int gathered;
  int64_t spare_begin, kept_begin;
};

// For lists that do not fit in shared memory: room for all boxes of all classes.
template <typename T>
struct SpareLists {
  Ranked<T>* ranked;
  StoredBox<T>* boxes;
  uint8_t* dead;
  int64_t* taken;  // boxes of it
};

// The kept boxes: one list, in which each class has a run, best first.
template <typename T>
struct KeptBoxes {
  struct Run {
    int64_t begin, end;
  };
  Ranked<T>* boxes;
  Run* runs;  // by number of class
  int64_t* total;
};

__device__ inline int64_t reserve(int64_t* taken, int64_t count) {
  return static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(taken),
                                        static_cast<unsigned long long>(count)));
}

// ---- gather -------------------------------------------------------------------------------------------

// The next place of a list of `count` for each lane that wants one.
__device__ inline int next_place(bool wants, int* count) {
  const unsigned wanting = __ballot_sync(kAllLanes, wants);
  if (wanting == 0) return 0;
  int first = 0;
  if (lane_of() == 0) first = atomicAdd(count, __popc(wanting));
  return __shfl_sync(kAllLanes, first, 0) + __popc(wanting & lanes_before(lane_of()));
}

// Writes the boxes of a class, in any order, and how many there are to `count`. Those beyond `capacity` are
// only counted.
template <typename T, typename Source>
__device__ void gather(const Source& source, int64_t id, Ranked<T>* ranked, int capacity, int* count) {
  constexpr int together = 4;  // rows of a thread whose loads are under way together
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();  // for what the memory held before, too
  for (int64_t first = 0; first < source.rows; first += together * kClassThreads) {
    bool wanted[together];
#pragma unroll
    for (int i = 0; i < together; ++i) {
      const int64_t row = first + i * kClassThreads + threadIdx.x;
      wanted[i] = row < source.rows && source.wants(source.index(row, id), id);
    }
#pragma unroll
    for (int i = 0; i < together; ++i) {
      const int64_t row = first + i * kClassThreads + threadIdx.x;
      if (row - threadIdx.x >= source.rows) break;
      const int place = next_place(wanted[i], count);
      if (!wanted[i] || place >= capacity) continue;
      const int64_t index = source.index(row, id);
      ranked[place] = {semantics::rank_key(source.score(index)),
                       static_cast<semantics::RankKey<T>>(index)};
    }
  }
  __syncthreads();
}

// ---- sort ---------------------------------------------------------------------------------------------

// Bitonic: sorted halves of 2, 4, 8 ... are merged, the second one mirrored first. Every exchange puts what
// comes first at the lower place, so the places from `count` on are as if they held what comes last.
template <typename T>
__device__ void sort(Ranked<T>* list, int count) {
  const unsigned end = static_cast<unsigned>(count);
  for (unsigned half = 1; half < end; half *= 2)
    for (unsigned stride = half; stride > 0; stride /= 2) {
      const unsigned across = stride == half ? 2 * half - 1 : stride;
      for (unsigned low = threadIdx.x; low < end; low += kClassThreads) {
        const unsigned high = low ^ across;
        if (high < low || high >= end) continue;
        const Ranked<T> a = list[low], b = list[high];
        if (comes_before(b, a)) list[low] = b, list[high] = a;
      }
      // A warp's 32 places are nobody else's while the exchanges stay within them: this one and the next.
      const bool within_warp = across < kWarp && (stride > 1 || 4 * half <= kWarp);
      if (within_warp)
        __syncwarp();
      else
        __syncthreads();
    }
  __syncthreads();
}

// ---- suppress -----------------------------------------------------------------------------------------
// A class is taken by 32 boxes, one a lane. A warp finds which of them are kept. These suppress all that come
// after, and meanwhile all pairs of the next 32 are compared. So 32 boxes cost two barriers.

// suppressors[i]: those of the 32 boxes from `first` on that come before the i-th and suppress it if kept.
template <typename T>
__device__ void compare_pairs(const ClassList<T>& list, const SuppressionRule<T>& rule, int first,
                              unsigned* suppressors) {
  const int place = first + lane_of();
  for (int i = warp_of(); i < kWarp && first + i < list.count; i += kClassThreads / kWarp) {
    const bool overlaps =
        lane_of() < i && semantics::suppresses<T>(list.boxes[place], list.boxes[first + i],
                                                  rule.threshold, rule.side);
    const unsigned overlapping = __ballot_sync(kAllLanes, overlaps);
    if (lane_of() == 0) suppressors[i] = overlapping;
  }
}

// Which of the lanes' boxes are kept; `open` are those that no earlier box suppresses. A box is kept as soon
// as every one before it that would suppress it has turned out not to be: in every turn the first open one.
__device__ inline unsigned kept_of(unsigned open, unsigned suppressors) {
  unsigned kept = 0;
  while (open != 0) {
    const bool is_open = open >> lane_of() & 1;
    kept |= __ballot_sync(kAllLanes, is_open && (suppressors & open) == 0);
    open &= ~kept & ~__ballot_sync(kAllLanes, (suppressors & kept) != 0);
  }
  return kept;
}

// One warp: finds the kept of 32 boxes, and moves them to `ranked` + kept_before and to state.kept.
template <typename T>
__device__ void keep(const ClassList<T>& list, const SuppressionRule<T>& rule, int first,
                     Ranked<T>* ranked, int kept_before, BlockState<T>& state) {
  const int lane = lane_of(), place = first + lane;
  const bool open = place < list.count && !list.dead[place];
  const unsigned kept = kept_of(__ballot_sync(kAllLanes, open), open ? state.suppressors[lane] : 0);
  const int count = __popc(kept);
  const Ranked<T> mine = open ? ranked[place] : Ranked<T>{};
  __syncwarp();  // before another lane overwrites it
  if (kept >> lane & 1) {
    const int rank = __popc(kept & lanes_before(lane));
    ranked[kept_before + rank] = mine;
    state.kept[rank].set(list.boxes[place], rule.side);
  }
  if (lane >= count) state.kept[lane].fill_up();
  if (lane == 0) state.kept_count = count;
}

// Whether one of `count` kept boxes suppresses this one. A division only where it may matter.
template <typename T>
__device__ bool is_suppressed(const SuppressionRule<T>& rule, const Suppressor<T>* kept, int count,
                              const Box<T>& box) {
  const T area = semantics::area(box, rule.side), threshold = static_cast<T>(rule.threshold);
  for (int first = 0; first < count; first += kKeptAtOnce) {
    bool maybe = false;
#pragma unroll
    for (int i = first; i < first + kKeptAtOnce; ++i)
      maybe |= semantics::may_exceed(semantics::intersection<T>(kept[i], box, rule.side), kept[i].area,
                                     area, threshold);
    if (!maybe) continue;
    for (int i = first; i < first + kKeptAtOnce; ++i)
      if (semantics::suppresses<T>(kept[i], box, rule.threshold, rule.side)) return true;
  }
  return false;
}

// Moves the kept to the front of `ranked`, which is sorted, and returns how many they are.
template <typename T>
__device__ int suppress(const ClassList<T>& list, const SuppressionRule<T>& rule, Ranked<T>* ranked,
                        BlockState<T>& state) {
  int kept_before = 0;
  compare_pairs(list, rule, 0, state.suppressors);
  __syncthreads();
  for (int first = 0; first < list.count && kept_before < rule.enough; first += kWarp) {
    if (warp_of() == 0) keep(list, rule, first, ranked, kept_before, state);
    __syncthreads();
    const int next = first + kWarp;
    for (int i = next + static_cast<int>(threadIdx.x); i < list.count; i += kClassThreads)
      if (!list.dead[i] && is_suppressed<T>(rule, state.kept, state.kept_count, list.boxes[i]))
        list.dead[i] = 1;
    compare_pairs(list, rule, next, state.suppressors);
    kept_before += state.kept_count;
    __syncthreads();
  }
  return kept_before;
}

// ---- kernels ------------------------------------------------------------------------------------------

// Where the parts of a list lie in shared memory: ranked, boxes, dead.
template <typename T>
struct ListLayout {
  int64_t boxes, dead, end;

  FRCNN_HD explicit ListLayout(int64_t count) {
    constexpr int64_t line = sizeof(uint4);
    boxes = (count * static_cast<int64_t>(sizeof(Ranked<T>)) + line - 1) / line * line;
    dead = boxes + count * static_cast<int64_t>(sizeof(StoredBox<T>));
    end = dead + count;
  }
};

template <typename T, typename Source>
__device__ void fetch_boxes(const Source& source, const ClassList<T>& list, const Ranked<T>* ranked) {
  for (int i = static_cast<int>(threadIdx.x); i < list.count; i += kClassThreads) {
    static_cast<Box<T>&>(list.boxes[i]) = source.box(static_cast<int64_t>(ranked[i].index));
    list.dead[i] = 0;
  }
}

// The whole way of a class whose boxes have been gathered in `ranked`.
template <typename T, typename Source>
__device__ void suppress_gathered(const Source& source, const SuppressionRule<T>& rule,
                                  const ClassList<T>& list, Ranked<T>* ranked, BlockState<T>& state,
                                  const KeptBoxes<T>& kept, int64_t number) {
  sort(ranked, list.count);
  fetch_boxes(source, list, ranked);
  __syncthreads();
  const int count = suppress(list, rule, ranked, state);
  if (threadIdx.x == 0) {
    state.kept_begin = reserve(kept.total, count);
    kept.runs[number] = {state.kept_begin, state.kept_begin + count};
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kClassThreads)
    kept.boxes[state.kept_begin + i] = ranked[i];
}

// Shared memory takes the list if all of it fits, else what is sorted if that fits. The three cases are apart
// so that the compiler knows which memory it reads.
template <typename T, typename Source>
__global__ __launch_bounds__(kClassThreads, 1) void suppress_kernel(
    Source source, SuppressionRule<T> rule, int64_t shared_bytes, SpareLists<T> spare,
    KeptBoxes<T> kept) {
  BlockState<T>& state = *reinterpret_cast<BlockState<T>*>(dynamic_shared);
  char* const shared = reinterpret_cast<char*>(dynamic_shared) + sizeof(state);
  Ranked<T>* const shared_ranked = reinterpret_cast<Ranked<T>*>(shared);
  const int64_t free_bytes = shared_bytes - static_cast<int64_t>(sizeof(state));
  const int capacity = static_cast<int>(free_bytes / static_cast<int64_t>(sizeof(Ranked<T>)));
  const int64_t classes = source.classes();
  for (int64_t number = blockIdx.x; number < classes; number += gridDim.x) {
    const int64_t id = source.class_id(number);
    gather(source, id, shared_ranked, capacity, &state.gathered);
    const int count = state.gathered;
    const ListLayout<T> layout(count);
    if (layout.end <= free_bytes) {
      const ClassList<T> list{reinterpret_cast<StoredBox<T>*>(shared + layout.boxes),
                              reinterpret_cast<uint8_t*>(shared + layout.dead), count};
      suppress_gathered(source, rule, list, shared_ranked, state, kept, number);
      continue;
    }
    if (threadIdx.x == 0) state.spare_begin = reserve(spare.taken, count);
    __syncthreads();
    const int64_t begin = state.spare_begin;
    const ClassList<T> list{spare.boxes + begin, spare.dead + begin, count};
    if (count <= capacity) {
      suppress_gathered(source, rule, list, shared_ranked, state, kept, number);
    } else {
      gather(source, id, spare.ranked + begin, count, &state.gathered);
      suppress_gathered(source, rule, list, spare.ranked + begin, state, kept, number);
    }
  }
}

// How many of a run come before `box`.
template <typename T>
__device__ int64_t count_before(const KeptBoxes<T>& kept, int64_t number, const Ranked<T>& box) {
  const typename KeptBoxes<T>::Run run = kept.runs[number];
  int64_t begin = run.begin, end = run.end;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (comes_before(kept.boxes[middle], box))
      begin = middle + 1;
    else
      end = middle;
  }
  return begin - run.begin;
}

// A warp per kept box, a lane per class; and a thread per place that stays empty.
template <typename T, typename Source>
__global__ void write_kernel(Source source, KeptBoxes<T> kept, int64_t enough, int64_t* count) {
  const int64_t classes = source.classes(), total = *kept.total;
  const int64_t written = total < enough ? total : enough;
  if (first_element() == 0) *count = written;
  for (int64_t place = written + first_element(); place < source.places; place += element_stride())
    source.write_nothing(place);
  for (int64_t i = first_element() / kWarp; i < total; i += element_stride() / kWarp) {
    const Ranked<T> box = kept.boxes[i];
    int64_t before = 0;
    for (int64_t number = lane_of(); number < classes; number += kWarp)
      before += count_before(kept, number, box);
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      before += __shfl_sync(kAllLanes, before, lane_of() ^ distance);
    if (lane_of() == 0 && before < enough) source.write(before, static_cast<int64_t>(box.index));
  }
}

// Numbers of boxes in kernels are ints.
inline void require_countable(int64_t boxes) {
  constexpr int64_t most = std::numeric_limits<int>::max() - kClassThreads;
  require(boxes <= most, "a GPU suppresses no more than ", most, " boxes, got ", boxes);
}

// Suppresses within each class and writes the kept of all of them by falling score, then rising index, the
// first rule.enough, and how many those are to `count` in device memory. `candidates` is the most boxes that
// all classes have together, `most_classes` the most classes. The stream's device must be current.
template <typename T, typename Source>
void suppress_and_write(const Source& source, const SuppressionRule<T>& rule, int64_t candidates,
                        int64_t most_classes, int64_t* count, const Stream& stream) {
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
  const int64_t wanted = static_cast<int64_t>(sizeof(BlockState<T>)) + ListLayout<T>(source.rows).end;
  const int64_t shared_bytes = std::min(wanted, limit), spares = wanted > limit ? candidates : 0;

  int64_t* counters = nullptr;
  SpareLists<T> spare;
  KeptBoxes<T> kept;
  const DividedBuffer memory(stream, [&](Parts& parts) {
    counters = parts.take<int64_t>(2);
    spare = {parts.take<Ranked<T>>(spares), parts.take<StoredBox<T>>(spares),
             parts.take<uint8_t>(spares), counters};
    kept = {parts.take<Ranked<T>>(candidates), parts.take<typename KeptBoxes<T>::Run>(most_classes),
            counters + 1};
  });
  fill_bytes(counters, 0, 2, stream);

  // Enough for the classes of usual data, and few enough for those without a class not to matter.
  constexpr int64_t class_blocks = 256, write_blocks = 512;
  launch_blocks("suppression", suppress_kernel<T, Source>, std::min(most_classes, class_blocks),
                {kClassThreads, shared_bytes}, stream, source, rule, shared_bytes, spare, kept);
  constexpr int64_t warps = kThreads / kWarp;
  launch_blocks("places of the kept", write_kernel<T, Source>,
                std::clamp<int64_t>(ceil_div(candidates, warps), 1, write_blocks), stream, source, kept,
                rule.enough, count);
}

// What `queue(count)` has counted, waited for.
template <typename Queue>
int64_t counted(const Queue& queue, const Stream& stream) {
  const DeviceGuard guard(stream);
  const TemporaryBuffer<int64_t> count(1, stream);
  queue(count.data());
  return fetch(count.data(), stream);
}

}  // namespace fastrcnn_engine::cuda
