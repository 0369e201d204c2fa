// Suppression as nms and detections share it, in five steps, each a launch; of long lists the third and the
// fourth are several, one a window. A block has the boxes of one class and gathers them. All blocks find the
// place of every box among those of its class, by counting how many come before it. All blocks compare every
// two boxes of a class, a bit a pair. A block has the bits of a class and finds which boxes are kept. At last
// a warp has a kept box, and counts the kept ones of all classes before it.
//
// What comes first is decided by (score, index) alone. Atomics choose where lists lie and in which order one
// is gathered, so no result depends on who was faster.
//
// A `Source` says which boxes there are, and takes the result:
//   int64_t rows;                            // to be looked at for each class
//   int64_t classes();
//   int64_t class_id(int64_t number);        // of the class with that number, 0 .. classes() - 1
//   int64_t index(int64_t row, int64_t id);  // of the box of that row; of equal scores the lower comes first
//   int64_t class_of(int64_t index, int64_t id);  // of the box; `id` where every class has it
//   T score(int64_t index);
//   bool wants(T score);                     // whether a box of it counts. Not where it is NaN
//   Box<T> box(int64_t index);
//   bool can_be_kept(const Box<T>&);         // what cannot suppresses nothing
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

constexpr int kClassThreads = 512, kClassWarps = kClassThreads / kWarp;

template <typename T>
struct alignas(2 * sizeof(semantics::RankKey<T>)) Ranked {
  semantics::RankKey<T> key, index;

  // Comes after every box.
  __device__ static Ranked last() {
    constexpr auto most = static_cast<semantics::RankKey<T>>(-1);
    return {most, most};
  }
};

template <typename T>
__device__ bool comes_before(const Ranked<T>& a, const Ranked<T>& b) {
  if constexpr (sizeof(T) == 4)  // one comparison of 64 bits
    return (uint64_t{a.key} << 32 | a.index) < (uint64_t{b.key} << 32 | b.index);
  else
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

// A box while it suppresses others. `kAtOnce` of them are compared with a box together, and where there are
// not 32, lists are filled up with some that suppress nothing.
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

FRCNN_HD int groups_of(int count) { return (count + kWarp - 1) / kWarp; }

// The boxes of one class, in groups of 32. They are suppressed window by window, of several groups.
struct ClassList {
  int64_t begin, first_group, first_tile;  // among those of all classes
  int count;
  int kept;  // in the windows so far; they lie in front
};

template <typename T>
struct Lists {
  Ranked<T>* gathered;  // in any order
  Ranked<T>* ranked;    // best first
  StoredBox<T>* boxes;  // as ranked
  uint8_t* dead;        // whether the box cannot be kept, or what earlier windows have kept suppresses it
  int* owners;          // of each group: the number of its class
  ClassList* classes;   // by number
  unsigned* tiles;      // see tile_of
  int64_t *taken, *groups, *tiles_taken;
  int* longest;  // groups of the longest list
  int window;    // groups

  __device__ int groups_in_window(int count, int first) const {
    const int left = groups_of(count) - first;
    return left < window ? left : window;
  }
  // Bits of a window: a group of boxes, a row, with the boxes of a group that is not behind it, a column. The
  // bits of a box are a lane's. Tiles lie row by row, and are used again by the next window.
  __device__ unsigned* tile_of(const ClassList& list, int row, int column) const {
    return tiles + (list.first_tile + static_cast<int64_t>(row) * (row + 1) / 2 + column) * kWarp;
  }
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
// only counted. In a trial on an H200, in which a thread had each row's class and score before it asked for
// those of the next, 80 classes x 300 boxes took 22 us.
template <typename T, typename Source>
__device__ void gather(const Source& source, int64_t id, Ranked<T>* ranked, int capacity, int* count) {
  constexpr int together = 8;  // rows of a thread
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();  // for what the memory held before, too
  for (int64_t first = 0; first < source.rows; first += together * kClassThreads) {
    const auto index_of = [&](int i) {
      return source.index(first + i * kClassThreads + threadIdx.x, id);
    };
    // The loads of a loop are under way together, as nothing in it waits for one.
    int64_t ids[together];
    T scores[together];
#pragma unroll
    for (int i = 0; i < together; ++i) {
      const bool is_row = first + i * kClassThreads + threadIdx.x < source.rows;
      ids[i] = is_row ? source.class_of(index_of(i), id) : ~id;
    }
#pragma unroll
    for (int i = 0; i < together; ++i)
      scores[i] = ids[i] == id ? source.score(index_of(i)) : static_cast<T>(NAN);
#pragma unroll
    for (int i = 0; i < together; ++i) {
      if (first + i * kClassThreads >= source.rows) break;
      const bool wanted = source.wants(scores[i]);
      const int place = next_place(wanted, count);
      if (wanted && place < capacity)
        ranked[place] = {semantics::rank_key(scores[i]), static_cast<semantics::RankKey<T>>(index_of(i))};
    }
  }
  __syncthreads();
}

// What the threads of a block tell each other, at the front of shared memory.
struct alignas(16) GatherState {
  ClassList list;
  int gathered;
};

// Shared memory takes the list if it fits: where it goes is known only when it has been counted. The cases
// are apart so that the compiler knows which memory it writes.
template <typename T, typename Source>
__global__ __launch_bounds__(kClassThreads, 1) void gather_kernel(Source source, int64_t shared_bytes,
                                                                  Lists<T> lists) {
  GatherState& state = *reinterpret_cast<GatherState*>(dynamic_shared);
  Ranked<T>* const shared = reinterpret_cast<Ranked<T>*>(&state + 1);
  const int64_t free_bytes = shared_bytes - static_cast<int64_t>(sizeof(state));
  const int capacity = static_cast<int>(free_bytes / static_cast<int64_t>(sizeof(Ranked<T>)));
  const int64_t classes = source.classes();
  for (int64_t number = blockIdx.x; number < classes; number += gridDim.x) {
    const int64_t id = source.class_id(number);
    gather(source, id, shared, capacity, &state.gathered);
    const int count = state.gathered, groups = groups_of(count);
    if (threadIdx.x == 0) {
      const int64_t rows = lists.groups_in_window(count, 0);
      state.list = {reserve(lists.taken, count), reserve(lists.groups, groups),
                    reserve(lists.tiles_taken, rows * (rows + 1) / 2), count, 0};
      lists.classes[number] = state.list;
      atomicMax(lists.longest, groups);
    }
    __syncthreads();
    Ranked<T>* const gathered = lists.gathered + state.list.begin;
    int* const owners = lists.owners + state.list.first_group;
    for (int i = static_cast<int>(threadIdx.x); i < groups; i += kClassThreads)
      owners[i] = static_cast<int>(number);
    if (count <= capacity) {
      for (int i = static_cast<int>(threadIdx.x); i < count; i += kClassThreads) gathered[i] = shared[i];
    } else {
      gather(source, id, gathered, count, &state.gathered);
    }
  }
}

// ---- rank ---------------------------------------------------------------------------------------------

template <typename T>
struct alignas(16) RankState {
  Ranked<T> others[kClassWarps][kWarp];  // with which a warp compares
  int before[kClassWarps][kWarp];        // boxes of the group, counted by a warp
};

// A block has a group, and each of its warps counts for 32 boxes of the class after the other which of them
// come before those of the group. That takes 4 instructions a pair, where comparing boxes takes 26 for half
// as many: so there is no need for fewer comparisons, as sorting has.
template <typename T, typename Source>
__global__ __launch_bounds__(kClassThreads, 2) void rank_kernel(Source source, Lists<T> lists) {
  RankState<T>& state = *reinterpret_cast<RankState<T>*>(dynamic_shared);
  const int warp = warp_of(), lane = lane_of();
  Ranked<T>* const others = state.others[warp];
  const int64_t groups = *lists.groups;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const ClassList list = lists.classes[lists.owners[group]];
    const Ranked<T>* const gathered = lists.gathered + list.begin;
    const auto at = [&](int i) { return i < list.count ? gathered[i] : Ranked<T>::last(); };
    const int own = static_cast<int>(group - list.first_group) * kWarp + lane;
    const Ranked<T> mine = at(own);
    Ranked<T> next = at(warp * kWarp + lane);
    int before = 0;
    for (int first = warp * kWarp; first < list.count; first += kClassThreads) {
      others[lane] = next;
      next = at(first + kClassThreads + lane);
      __syncwarp();
#pragma unroll 8
      for (int i = 0; i < kWarp; ++i) before += comes_before(others[i], mine);
      __syncwarp();
    }
    state.before[warp][lane] = before;
    __syncthreads();
    if (warp == 0 && own < list.count) {
      int64_t place = list.begin;
#pragma unroll
      for (int i = 0; i < kClassWarps; ++i) place += state.before[i][lane];
      lists.ranked[place] = mine;
      const Box<T> box = source.box(static_cast<int64_t>(mine.index));
      static_cast<Box<T>&>(lists.boxes[place]) = box;
      lists.dead[place] = !source.can_be_kept(box);
    }
    __syncthreads();
  }
}

// ---- compare ------------------------------------------------------------------------------------------

// Bit i: whether the i-th of 32 others suppresses the box if kept. A division only where it may matter.
template <typename T>
__device__ unsigned suppressors_of(const Box<T>& box, const SuppressionRule<T>& rule,
                                   const Suppressor<T>* others) {
  const T area = semantics::area(box, rule.side), threshold = static_cast<T>(rule.threshold);
  unsigned maybe = 0, suppressors = 0;
  for (int first = 0; first < kWarp; first += kAtOnce) {
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

// Blocks that share a row, so that 2000 boxes of one class, whose longest row has 63 columns, keep all
// multiprocessors busy: a warp then has one tile.
constexpr int kShares = 4;

// The boxes of a group are compared with the kept ones of earlier windows and with those before them in this
// one. A warp has 32 of these at a time. Long rows come first, or some blocks would begin theirs last.
template <typename T>
__global__ __launch_bounds__(kClassThreads, 2) void compare_kernel(SuppressionRule<T> rule, Lists<T> lists,
                                                                   int first) {
  Suppressor<T>* const columns = reinterpret_cast<Suppressor<T>*>(dynamic_shared) + warp_of() * kWarp;
  const int lane = lane_of();
  if (first >= *lists.longest) return;
  const int64_t groups = *lists.groups, shares = groups * kShares;
  for (int64_t share = blockIdx.x; share < shares; share += gridDim.x) {
    // The first parts of all rows, then the second ones: a short row has no other than the first.
    const int64_t group = groups - 1 - share % groups;
    const int part = static_cast<int>(share / groups);
    const ClassList list = lists.classes[lists.owners[group]];
    const int row = static_cast<int>(group - list.first_group) - first;
    if (row < 0 || row >= lists.window || list.kept >= rule.enough) continue;
    const StoredBox<T>* const boxes = lists.boxes + list.begin;
    const int place = (first + row) * kWarp + lane, earlier = groups_of(list.kept);
    const StoredBox<T> box = place < list.count ? boxes[place] : StoredBox<T>{};
    bool dead = false;
    for (int i = part * kClassWarps + warp_of(); i <= earlier + row; i += kShares * kClassWarps) {
      const bool is_earlier = i < earlier;
      const int column = i - earlier;
      const int other = (is_earlier ? i : first + column) * kWarp + lane;
      if (other < (is_earlier ? list.kept : list.count)) {
        const StoredBox<T> whole = boxes[other];  // not by its parts
        columns[lane].set(whole, rule.side);
      } else {
        columns[lane].fill_up();
      }
      __syncwarp();
      const unsigned suppressors = suppressors_of<T>(box, rule, columns);
      if (is_earlier)
        dead |= suppressors != 0;
      else
        lists.tile_of(list, row, column)[lane] =
            suppressors & (column < row ? kAllLanes : lanes_before(lane));
      __syncwarp();
    }
    // Volatile, as several warps may say so at the same time.
    if (dead && place < list.count) const_cast<volatile uint8_t*>(lists.dead)[list.begin + place] = 1;
  }
}

// ---- keep ---------------------------------------------------------------------------------------------
// A class is taken by turns of 16 groups, one a warp, one box a lane.

// What is known of the boxes of a turn, a bit each. An open box may be kept or not.
struct alignas(16) Turn {
  unsigned open[kClassWarps], kept[kClassWarps];
};

struct alignas(16) KeepState {
  Turn turns[2];  // written by a round while the other is read
  int64_t begin;  // of what the block has reserved

  // Which boxes of each group are kept: behind this, for all groups and what is missing to whole turns.
  __device__ unsigned* kept() { return reinterpret_cast<unsigned*>(this + 1); }
  static int64_t bytes(int64_t groups) {
    return static_cast<int64_t>(sizeof(KeepState)) + (groups + kClassWarps) * 4;
  }
};

// Of a group: finds which open boxes are kept, and no longer open. A box is kept as soon as every one before
// it that would suppress it has turned out not to be. Those that wait for other groups stay open.
__device__ inline unsigned keep_of_group(unsigned& open, bool waits, unsigned suppressors) {
  unsigned kept = 0;
  for (unsigned found = kAllLanes; found != 0;) {
    const bool is_open = open >> lane_of() & 1;
    found = __ballot_sync(kAllLanes, is_open && !waits && (suppressors & open) == 0);
    kept |= found;
    open &= ~found & ~__ballot_sync(kAllLanes, (suppressors & found) != 0);
  }
  return kept;
}

// Of a turn: returns what is known when no box is open. `others` are a box's bits with the groups of the turn
// before its own, `own` those with its own. All warps look at what was known after the round before, and a
// round leaves no box of the first group open that has any. So there are at most 16; usually a few, as few
// boxes wait for one that waits for one.
__device__ inline const Turn& keep_of_turn(bool is_open, const unsigned (&others)[kClassWarps], unsigned own,
                                           KeepState& state) {
  const int warp = warp_of();
  unsigned open = __ballot_sync(kAllLanes, is_open), kept = 0;
  for (int round = 0;; ++round) {
    Turn& known = state.turns[round % 2];
    if (lane_of() == 0) known.open[warp] = open, known.kept[warp] = kept;
    if (__syncthreads_and(open == 0)) return known;
    if (open == 0) continue;
    const Turn whole = known;  // not by its parts
    unsigned suppressed = 0, waits = 0;
#pragma unroll
    for (int i = 0; i < kClassWarps; ++i)
      suppressed |= others[i] & whole.kept[i], waits |= others[i] & whole.open[i];
    open &= ~__ballot_sync(kAllLanes, suppressed != 0);
    kept |= keep_of_group(open, waits != 0, own);
  }
}

// A box's bits within its turn, with the groups before its own and with that.
struct TurnBits {
  unsigned others[kClassWarps] = {}, own = 0;
  unsigned dead = 1;
};

template <typename T>
__device__ TurnBits bits_of_turn(const Lists<T>& lists, const ClassList& list, int first, int turn) {
  TurnBits found;
  const int row = turn + warp_of(), place = (first + row) * kWarp + lane_of();
  if (row >= lists.groups_in_window(list.count, first) || place >= list.count) return found;
  const unsigned* const bits = lists.tile_of(list, row, turn) + lane_of();
#pragma unroll
  for (int i = 0; i < kClassWarps; ++i)
    if (i < warp_of()) found.others[i] = bits[i * kWarp];
  found.own = bits[warp_of() * kWarp];
  found.dead = lists.dead[list.begin + place];
  return found;
}

// Moves the kept of a window behind those of earlier ones, and returns how many they are now.
template <typename T>
__device__ int keep_of_window(const Lists<T>& lists, const ClassList& list, const SuppressionRule<T>& rule,
                              int first, KeepState& state) {
  StoredBox<T>* const boxes = lists.boxes + list.begin;
  Ranked<T>* const ranked = lists.ranked + list.begin;
  const int warp = warp_of(), lane = lane_of(), groups = lists.groups_in_window(list.count, first);
  constexpr int together = 2 * kClassWarps;  // loads under way
  int kept = list.kept;
  if (kept >= rule.enough) return kept;  // no places at all: nothing has been compared
  TurnBits next = bits_of_turn(lists, list, first, 0);
  for (int turn = 0; turn < groups && kept < rule.enough; turn += kClassWarps) {
    const TurnBits bits = next;
    next = bits_of_turn(lists, list, first, turn + kClassWarps);  // while this one is decided
    const int row = turn + warp, place = (first + row) * kWarp + lane;
    bool is_open = bits.dead == 0;
    StoredBox<T> box{};
    Ranked<T> its_rank{};
    if (is_open) {
      box = boxes[place], its_rank = ranked[place];
      const unsigned* const earlier = lists.tile_of(list, row, 0) + lane;
      for (int i = 0; i < turn && is_open; i += together) {
        // Of two turns, or of the last one.
        unsigned found[together] = {}, suppressors = 0;
#pragma unroll
        for (int j = 0; j < kClassWarps; ++j) found[j] = earlier[(i + j) * kWarp];
        if (i + kClassWarps < turn) {
#pragma unroll
          for (int j = kClassWarps; j < together; ++j) found[j] = earlier[(i + j) * kWarp];
        }
#pragma unroll
        for (int j = 0; j < together; ++j) suppressors |= found[j] & state.kept()[i + j];
        is_open = suppressors == 0;
      }
    }
    const Turn& known = keep_of_turn(is_open, bits.others, bits.own, state);
    int before = kept;
    for (int i = 0; i < kClassWarps; ++i) {
      const int count = __popc(known.kept[i]);
      kept += count;
      if (i < warp) before += count;
    }
    const unsigned kept_of_group = known.kept[warp];
    if (lane == 0) state.kept()[row] = kept_of_group;
    if (kept_of_group >> lane & 1) {
      // Never behind the place it comes from, and all have read what was there.
      const int rank = before + __popc(kept_of_group & lanes_before(lane));
      boxes[rank] = box, ranked[rank] = its_rank;
    }
    __syncthreads();
  }
  return kept;
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
  __syncthreads();
}

// One window of every class, a block each.
template <typename T, typename Source>
__global__ __launch_bounds__(kClassThreads, 1) void keep_kernel(Source source, SuppressionRule<T> rule,
                                                                Lists<T> lists, int first,
                                                                KeptBoxes<T> kept) {
  KeepState& state = *reinterpret_cast<KeepState*>(dynamic_shared);
  if (first > 0 && first >= *lists.longest) return;
  const int64_t classes = source.classes();
  for (int64_t number = blockIdx.x; number < classes; number += gridDim.x) {
    const ClassList list = lists.classes[number];
    const int left = groups_of(list.count) - first;
    if (first > 0 && (left <= 0 || list.kept >= rule.enough)) continue;  // handed over before
    const int count = keep_of_window(lists, list, rule, first, state);
    if (left <= lists.window || count >= rule.enough)
      hand_over(lists.ranked + list.begin, count, number, kept, state.begin);
    else
      __syncthreads();  // all have read the list
    if (threadIdx.x == 0) lists.classes[number].kept = count;
  }
}

// ---- write --------------------------------------------------------------------------------------------
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

// A warp per kept box, a lane per class; and a thread per place that stays empty, or of the only class.
template <typename T, typename Source>
__global__ void write_kernel(Source source, KeptBoxes<T> kept, int64_t enough, int64_t* count) {
  const int64_t classes = source.classes(), total = *kept.total;
  const int64_t written = total < enough ? total : enough;
  if (first_element() == 0) *count = written;
  for (int64_t place = written + first_element(); place < source.places; place += element_stride())
    source.write_nothing(place);
  if (classes == 1) {  // its run is the result
    for (int64_t i = first_element(); i < written; i += element_stride())
      source.write(i, static_cast<int64_t>(kept.boxes[i].index));
    return;
  }
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
inline void require_count(const int64_t* count) {
  require(count != nullptr, "count must point to memory of one number, got null");
}

// How long lists can be, all together.
struct ListSizes {
  int64_t groups, window, tiles;

  ListSizes(int64_t rows, int64_t candidates, int64_t most_classes, int64_t processors) {
    // The last group of a class may be filled in part.
    groups = candidates / kWarp + std::min(most_classes, candidates);
    // A window is two launches, and for all that the host knows every class might need all of them. So of
    // several classes they are large, 16 896 boxes on an H100, as long as the bits take no more than 64 MiB.
    // One class has windows of 4608 there: boxes of later ones are compared with the kept alone, and its one
    // block has fewer bits to read.
    constexpr int64_t most_tiles = int64_t{1} << 19;
    window = (most_classes == 1 ? 1 : 4) * processors;
    window = std::min(window, 2 * most_tiles * kWarp / std::max<int64_t>(candidates, 1));
    window = std::max<int64_t>(ceil_div(window, kClassWarps), 1) * kClassWarps;  // whole turns
    window = std::min(window, std::max<int64_t>(ceil_div(rows, kWarp), 1));
    // A row has one tile and, of the rows before it in the window, which are full, one each.
    tiles = groups + ceil_div(candidates * window, 2 * kWarp);
  }
};

// Suppresses within each class and writes the kept of all of them by falling score, then rising index, the
// first rule.enough. How many those are it writes to `count` in device memory, or, where that is null, waits
// for and returns. `candidates` is the most boxes that all classes have together, `most_classes` the most
// classes. The stream's device must be current.
template <typename T, typename Source>
int64_t suppress_and_write(const Source& source, const SuppressionRule<T>& rule, int64_t candidates,
                           int64_t most_classes, int64_t* count, const Stream& stream) {
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount, stream);
  constexpr int64_t state_bytes = sizeof(GatherState), box_bytes = sizeof(Ranked<T>);
  const int64_t gather_bytes = std::min(limit, state_bytes + source.rows * box_bytes);
  const ListSizes sizes(source.rows, candidates, most_classes, processors);

  const bool waits = count == nullptr;
  int64_t* counters = nullptr;
  Lists<T> lists;
  KeptBoxes<T> kept;
  const DividedBuffer memory(stream, [&](Parts& parts) {
    counters = parts.take<int64_t>(6);
    lists = {parts.take<Ranked<T>>(candidates),
             parts.take<Ranked<T>>(candidates),
             parts.take<StoredBox<T>>(candidates),
             parts.take<uint8_t>(candidates),
             parts.take<int>(sizes.groups),
             parts.take<ClassList>(most_classes),
             parts.take<unsigned>(sizes.tiles * kWarp),
             counters,
             counters + 1,
             counters + 2,
             reinterpret_cast<int*>(counters + 4),
             static_cast<int>(sizes.window)};
    kept = {parts.take<Ranked<T>>(candidates), parts.take<typename KeptBoxes<T>::Run>(most_classes),
            counters + 3};
  });
  if (waits) count = counters + 5;
  fill_bytes(counters, 0, 5, stream);

  // Enough for the classes of usual data, and few enough for those without a class not to matter. Of the rest
  // about as many as run at a time.
  const int64_t class_blocks = std::min<int64_t>(most_classes, 256);
  constexpr int64_t write_blocks = 2048, columns_bytes = kClassThreads * sizeof(Suppressor<T>);
  launch_blocks("boxes of the classes", gather_kernel<T, Source>, class_blocks, {kClassThreads, gather_bytes},
                stream, source, gather_bytes, lists);
  launch_blocks("order of the boxes", rank_kernel<T, Source>, std::min(sizes.groups, 4 * processors),
                {kClassThreads, sizeof(RankState<T>)}, stream, source, lists);
  for (int64_t first = 0; first * kWarp < source.rows; first += sizes.window) {
    launch_blocks("comparison of boxes", compare_kernel<T>,
                  std::min(sizes.groups * kShares, 2 * processors), {kClassThreads, columns_bytes}, stream,
                  rule, lists, static_cast<int>(first));
    launch_blocks("suppression", keep_kernel<T, Source>, class_blocks,
                  {kClassThreads, KeepState::bytes(sizes.window)}, stream, source, rule, lists,
                  static_cast<int>(first), kept);
  }
  constexpr int64_t warps = kThreads / kWarp;
  launch_blocks("places of the kept", write_kernel<T, Source>,
                std::clamp<int64_t>(ceil_div(candidates, warps), 1, write_blocks), stream, source, kept,
                rule.enough, count);
  return waits ? fetch(count, stream) : 0;
}

}  // namespace fastrcnn_engine::cuda
