// Suppression as nms and detections share it. A block has the boxes of one class: it gathers, sorts and
// suppresses them. Long lists it only sorts; all blocks of the next kernel compare their boxes. At last a
// warp has a kept box, and counts the kept ones of all classes before it.
//
// What comes first is decided by (score, index) alone. Atomics choose where lists lie, in which order a list
// is gathered and which block ends it, so no result depends on who was faster.
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
constexpr int kClassThreads = 512, kClassWarps = kClassThreads / kWarp;

// Boxes of a list that one block suppresses, in less shared memory than every GPU has. With every box
// kept, 512 cost it 24 us after sorting, 1000 would cost 76 and 2000 would 270; as long lists 8, 12 and 23.
// Predicted, not measured.
constexpr int kMostOfBlock = 512;

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

// A box while it suppresses others. `kAtOnce` of them are compared with a box together, so lists are filled
// up with some that suppress nothing.
constexpr int kAtOnce = 4;
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
  int64_t begin;  // of what the block has reserved
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

// Bit i: whether the i-th of up to 32 others suppresses the box if kept. A division only where it may matter.
template <typename T>
__device__ unsigned suppressors_of(const Box<T>& box, const SuppressionRule<T>& rule,
                                   const Suppressor<T>* others, int count) {
  const T area = semantics::area(box, rule.side), threshold = static_cast<T>(rule.threshold);
  unsigned maybe = 0, suppressors = 0;
  for (int first = 0; first < count; first += kAtOnce) {
    unsigned some = 0;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const Suppressor<T>& other = others[first + i];
      if (semantics::may_exceed(semantics::intersection<T>(other, box, rule.side), other.area, area,
                                threshold))
        some |= 1u << i;
    }
    maybe |= some << first;
  }
  for (; maybe != 0; maybe &= maybe - 1) {
    const int i = __ffs(static_cast<int>(maybe)) - 1;
    if (semantics::suppresses<T>(others[i], box, rule.threshold, rule.side)) suppressors |= 1u << i;
  }
  return suppressors;
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
      if (!list.dead[i] && suppressors_of<T>(list.boxes[i], rule, state.kept, state.kept_count) != 0)
        list.dead[i] = 1;
    compare_pairs(list, rule, next, state.suppressors);
    kept_before += state.kept_count;
    __syncthreads();
  }
  return kept_before;
}

// ---- long lists ---------------------------------------------------------------------------------------
// Suppressed window by window, all lists at a time, each window in a launch. Of every two boxes of a window a
// bit says whether the first suppresses the second if kept. All blocks make the bits, and then one block for
// each list reads them. What earlier windows have kept suppresses without bits.

FRCNN_HD int groups_of(int count) { return (count + kWarp - 1) / kWarp; }

struct LongList {
  int64_t number;  // of its class
  int64_t first_tile;
  int count;
  int kept;      // in the windows so far; they lie in front
  int compared;  // groups of this window
};

// All long lists, each of whole groups of 32 boxes.
template <typename T>
struct LongLists {
  Ranked<T>* ranked;
  StoredBox<T>* boxes;
  uint8_t* dead;
  int* begins;      // of each group: the first of its list
  LongList* lists;  // by first group
  unsigned* tiles;  // see Window
  int64_t *groups, *tiles_taken;
  int window;  // groups

  __device__ int groups_in_window(int count, int first) const {
    const int left = groups_of(count) - first;
    return left < window ? left : window;
  }
  // Returns the list's first group.
  __device__ int64_t begin_list(int64_t number, int count) const {
    const int64_t rows = groups_in_window(count, 0), begin = reserve(groups, groups_of(count));
    lists[begin] = {number, reserve(tiles_taken, rows * (rows + 1) / 2), count, 0, 0};
    return begin;
  }
  __device__ ClassList<T> list(int64_t begin, int count) const {
    return {boxes + begin * kWarp, dead + begin * kWarp, count};
  }
};

template <typename T>
struct Window {
  ClassList<T> list;
  Ranked<T>* ranked;
  unsigned* tiles;
  int first, groups;

  // A group of boxes, a row, with the boxes of a group that is not behind it, a column: the bits of a box
  // are a lane's. Tiles lie row by row.
  __device__ unsigned* tile(int row, int column) const {
    return tiles + (static_cast<int64_t>(row) * (row + 1) / 2 + column) * kWarp;
  }
};

template <typename T>
struct alignas(16) WindowState {
  Suppressor<T> columns[kClassWarps][kWarp];  // with which a warp compares
  int ends_window;
  int64_t begin;  // see hand_over

  // Which boxes of each group are kept: behind this, for all groups and what is missing to whole turns.
  __device__ unsigned* kept() { return reinterpret_cast<unsigned*>(this + 1); }
  static int64_t bytes(int64_t groups) {
    return static_cast<int64_t>(sizeof(WindowState)) + (groups + kClassWarps) * 4;
  }
};

// Compares the boxes of a group with the `kept` ones of earlier windows and with those before them in this
// one. A warp has 32 of these at a time.
template <typename T>
__device__ void compare_group(const Window<T>& window, const SuppressionRule<T>& rule, int row, int kept,
                              WindowState<T>& state) {
  const ClassList<T>& list = window.list;
  const int lane = lane_of(), place = (window.first + row) * kWarp + lane, earlier = groups_of(kept);
  const StoredBox<T> box = place < list.count ? list.boxes[place] : StoredBox<T>{};
  Suppressor<T>* const columns = state.columns[warp_of()];
  bool dead = false;
  for (int i = warp_of(); i <= earlier + row; i += kClassWarps) {
    const bool is_earlier = i < earlier;
    const int column = i - earlier;
    const int other = (is_earlier ? i : window.first + column) * kWarp + lane;
    if (other < (is_earlier ? kept : list.count)) {
      const StoredBox<T> whole = list.boxes[other];  // not by its parts
      columns[lane].set(whole, rule.side);
    } else {
      columns[lane].fill_up();
    }
    __syncwarp();
    const unsigned suppressors = suppressors_of<T>(box, rule, columns, kWarp);
    if (is_earlier)
      dead |= suppressors != 0;
    else
      window.tile(row, column)[lane] = column < row ? suppressors : suppressors & lanes_before(lane);
    __syncwarp();
  }
  if (dead && place < list.count) list.dead[place] = 1;
}

// Moves the kept of a window behind the `kept` of earlier ones, and returns how many they are now. By turns
// of 16 groups, one a warp: all of them find what the groups of earlier turns suppress, and then one after
// the other which of its boxes are kept.
template <typename T>
__device__ int keep_of_window(const Window<T>& window, const SuppressionRule<T>& rule, int kept,
                              WindowState<T>& state) {
  const ClassList<T>& list = window.list;
  const int warp = warp_of(), lane = lane_of();
  unsigned* const kept_boxes = state.kept();
  for (int turn = 0; turn < window.groups && kept < rule.enough; turn += kClassWarps) {
    const int row = turn + warp, place = (window.first + row) * kWarp + lane;
    unsigned suppressors[kClassWarps] = {};
    unsigned suppressed = 1;
    StoredBox<T> box{};
    Ranked<T> ranked{};
    if (row < window.groups && place < list.count) {
      const unsigned* const bits = window.tile(row, 0) + lane;
      suppressed = list.dead[place], box = list.boxes[place], ranked = window.ranked[place];
#pragma unroll
      for (int i = 0; i < kClassWarps; ++i)
        if (turn + i <= row) suppressors[i] = bits[(turn + i) * kWarp];
#pragma unroll 8
      for (int i = 0; i < turn; ++i) suppressed |= bits[i * kWarp] & kept_boxes[i];
    }
#pragma unroll
    for (int i = 0; i < kClassWarps; ++i) {
      if (warp == i) {
        const unsigned open = __ballot_sync(kAllLanes, suppressed == 0);
        const unsigned kept_of_group = kept_of(open, suppressors[i]);
        if (lane == 0) kept_boxes[turn + i] = kept_of_group;
      }
      __syncthreads();
      suppressed |= suppressors[i] & kept_boxes[turn + i];
    }
    int before = kept;
    for (int i = 0; i < kClassWarps; ++i) {
      const int count = __popc(kept_boxes[turn + i]);
      kept += count;
      if (i < warp) before += count;
    }
    if (kept_boxes[row] >> lane & 1) {
      // Never behind the place it comes from, and all have read what was there.
      const int rank = before + __popc(kept_boxes[row] & lanes_before(lane));
      list.boxes[rank] = box, window.ranked[rank] = ranked;
    }
  }
  return kept;
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

// Appends what a class keeps. `begin` is shared memory.
template <typename T>
__device__ void hand_over(const Ranked<T>* ranked, int count, int64_t number, const KeptBoxes<T>& kept,
                          int64_t& begin) {
  if (threadIdx.x == 0) {
    begin = reserve(kept.total, count);
    kept.runs[number] = {begin, begin + count};
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kClassThreads)
    kept.boxes[begin + i] = ranked[i];
}

// Shared memory takes all of a short list; of a long one, what is sorted if that fits. The cases are apart so
// that the compiler knows which memory it reads.
template <typename T, typename Source>
__global__ __launch_bounds__(kClassThreads, 1) void suppress_kernel(
    Source source, SuppressionRule<T> rule, int64_t shared_bytes, LongLists<T> longs,
    KeptBoxes<T> kept) {
  BlockState<T>& state = *reinterpret_cast<BlockState<T>*>(dynamic_shared);
  char* const shared = reinterpret_cast<char*>(dynamic_shared) + sizeof(state);
  Ranked<T>* const ranked = reinterpret_cast<Ranked<T>*>(shared);
  const int64_t free_bytes = shared_bytes - static_cast<int64_t>(sizeof(state));
  const int capacity = static_cast<int>(free_bytes / static_cast<int64_t>(sizeof(Ranked<T>)));
  const int64_t classes = source.classes();
  for (int64_t number = blockIdx.x; number < classes; number += gridDim.x) {
    const int64_t id = source.class_id(number);
    gather(source, id, ranked, capacity, &state.gathered);
    const int count = state.gathered;
    if (count <= capacity) sort(ranked, count);
    if (count <= kMostOfBlock) {
      const ListLayout<T> layout(count);
      const ClassList<T> list{reinterpret_cast<StoredBox<T>*>(shared + layout.boxes),
                              reinterpret_cast<uint8_t*>(shared + layout.dead), count};
      fetch_boxes(source, list, ranked);
      __syncthreads();
      hand_over(ranked, suppress(list, rule, ranked, state), number, kept, state.begin);
      continue;
    }
    if (threadIdx.x == 0) state.begin = longs.begin_list(number, count);
    __syncthreads();
    const int64_t begin = state.begin;
    const ClassList<T> list = longs.list(begin, count);
    Ranked<T>* const list_ranked = longs.ranked + begin * kWarp;
    if (count <= capacity) {
      for (int i = static_cast<int>(threadIdx.x); i < count; i += kClassThreads)
        list_ranked[i] = ranked[i];  // and the same thread fetches this box
    } else {
      gather(source, id, list_ranked, count, &state.gathered);
      sort(list_ranked, count);
    }
    fetch_boxes(source, list, list_ranked);
    for (int i = static_cast<int>(threadIdx.x); i < groups_of(count); i += kClassThreads)
      longs.begins[begin + i] = static_cast<int>(begin);
  }
}

// One window of every long list. A block compares a group at a time, and the block that is the last to be
// done with a group of a list finds which boxes of its window are kept.
//
// Nobody waits for another block. Until all groups of a list have been counted, nobody writes what comparing
// them reads: the boxes, and how many of them earlier windows have kept. Then the list is left to the block
// that counted last. It sees what the others have written: in every block a barrier, a fence and then the
// count by one thread; and in this one after the count a fence and a barrier.
//
// Two blocks a multiprocessor: one compares while the other, at the end of a list, mostly waits.
template <typename T>
__global__ __launch_bounds__(kClassThreads, 2) void window_kernel(SuppressionRule<T> rule,
                                                                  LongLists<T> longs, int first,
                                                                  KeptBoxes<T> kept) {
  WindowState<T>& state = *reinterpret_cast<WindowState<T>*>(dynamic_shared);
  const int64_t groups = *longs.groups;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t begin = longs.begins[group];
    LongList& list = longs.lists[begin];
    const int row = static_cast<int>(group - begin) - first;
    if (row < 0 || row >= longs.window || list.kept >= rule.enough) continue;
    const Window<T> window{longs.list(begin, list.count), longs.ranked + begin * kWarp,
                           longs.tiles + list.first_tile * kWarp, first,
                           longs.groups_in_window(list.count, first)};
    compare_group(window, rule, row, list.kept, state);
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      state.ends_window = atomicAdd(&list.compared, 1) + 1 == window.groups;
      if (state.ends_window) __threadfence();
    }
    __syncthreads();
    if (!state.ends_window) continue;
    const int count = keep_of_window(window, rule, list.kept, state);
    if (threadIdx.x == 0) list.kept = count, list.compared = 0;
    if (count >= rule.enough || first + window.groups == groups_of(list.count))
      hand_over(window.ranked, count, list.number, kept, state.begin);
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

// Numbers of boxes in kernels are ints. How many are kept goes to `count`.
inline void require_countable(int64_t boxes, const int64_t* count) {
  constexpr int64_t most = std::numeric_limits<int>::max() - kClassThreads;
  require(boxes <= most, "a GPU suppresses no more than ", most, " boxes, got ", boxes);
  require(count != nullptr, "count must point to memory of one number, got null");
}

// How long lists can be, all together.
struct LongSizes {
  int64_t groups = 0, window = 0, tiles = 0;

  LongSizes(int64_t rows, int64_t candidates, int64_t most_classes, const Stream& stream) {
    const int64_t lists = std::min(most_classes, candidates / (kMostOfBlock + 1));
    if (rows <= kMostOfBlock || lists == 0) return;
    groups = (candidates + (kWarp - 1) * lists) / kWarp;  // the last of each may be filled in part
    // Large, as each is a launch: several groups for every multiprocessor. But the bits take no more than
    // 64 MiB, unless a window of one turn does.
    const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount, stream);
    constexpr int64_t most_tiles = int64_t{1} << 19;
    window = std::max<int64_t>(std::min(2 * most_tiles / groups - 1, 4 * processors), kClassWarps);
    window = std::min(window, ceil_div(rows, kWarp));
    tiles = std::min(groups, lists * window) * (window + 1) / 2;
  }
};

// Suppresses within each class and writes the kept of all of them by falling score, then rising index, the
// first rule.enough, and how many those are to `count` in device memory. `candidates` is the most boxes that
// all classes have together, `most_classes` the most classes. The stream's device must be current.
template <typename T, typename Source>
void suppress_and_write(const Source& source, const SuppressionRule<T>& rule, int64_t candidates,
                        int64_t most_classes, int64_t* count, const Stream& stream) {
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
  constexpr int64_t state_bytes = sizeof(BlockState<T>);
  const int64_t list_bytes = ListLayout<T>(std::min<int64_t>(source.rows, kMostOfBlock)).end;
  const int64_t sort_bytes = source.rows * static_cast<int64_t>(sizeof(Ranked<T>));
  const int64_t shared_bytes =
      state_bytes + std::max(list_bytes, std::min(sort_bytes, limit - state_bytes));
  const LongSizes sizes(source.rows, candidates, most_classes, stream);

  int64_t* counters = nullptr;
  LongLists<T> longs;
  KeptBoxes<T> kept;
  const DividedBuffer memory(stream, [&](Parts& parts) {
    counters = parts.take<int64_t>(3);
    kept = {parts.take<Ranked<T>>(candidates), parts.take<typename KeptBoxes<T>::Run>(most_classes),
            counters};
    const int64_t boxes = sizes.groups * kWarp;
    longs = {parts.take<Ranked<T>>(boxes),
             parts.take<StoredBox<T>>(boxes),
             parts.take<uint8_t>(boxes),
             parts.take<int>(sizes.groups),
             parts.take<LongList>(sizes.groups),
             parts.take<unsigned>(sizes.tiles * kWarp),
             counters + 1,
             counters + 2,
             static_cast<int>(sizes.window)};
  });
  fill_bytes(counters, 0, 3, stream);

  // Enough for the classes of usual data, and few enough for those without a class not to matter.
  constexpr int64_t class_blocks = 256, window_blocks = 512, write_blocks = 512;
  launch_blocks("suppression", suppress_kernel<T, Source>, std::min(most_classes, class_blocks),
                {kClassThreads, shared_bytes}, stream, source, rule, shared_bytes, longs, kept);
  if (sizes.groups > 0)
    for (int64_t first = 0; first * kWarp < source.rows; first += sizes.window)
      launch_blocks("suppression of long lists", window_kernel<T>, std::min(sizes.groups, window_blocks),
                    {kClassThreads, WindowState<T>::bytes(sizes.window)}, stream, rule, longs,
                    static_cast<int>(first), kept);
  constexpr int64_t warps = kThreads / kWarp;
  launch_blocks("places of the kept", write_kernel<T, Source>,
                std::clamp<int64_t>(ceil_div(candidates, warps), 1, write_blocks), stream, source, kept,
                rule.enough, count);
}

// What `queue(count)` has counted, waited for.
template <typename Queue>
int64_t fetch_counted(const Queue& queue, const Stream& stream) {
  const DeviceGuard guard(stream);
  const TemporaryBuffer<int64_t> count(1, stream);
  queue(count.data());
  return fetch(count.data(), stream);
}

}  // namespace fastrcnn_engine::cuda
