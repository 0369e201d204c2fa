// The hot loops of RoI pooling: a block of channels is packed, RoIs are pooled from it. roi_pool.cpp decides
// which RoIs and which window. Uses plain pointers, lanes.h and semantics/ only: docs/cpu-kernels.md.
#include "roi_pool_kernels.h"

#include <limits>

#include "lanes.h"

namespace fastrcnn_engine::cpu::FRCNN_SET {
namespace {

using semantics::BinRange;
using semantics::Wide;

// Channels packed together: as many as there are registers for the maxima of a bin.
constexpr int kVectors = 4;
template <typename L>
constexpr int64_t kBlock = kVectors * kLanes<L>;

// ---- lanes: what features of type T are compared as ---------------------------------------------------
// float and double as they are. 16-bit features as int16_t, twice as many at once, by their keys; where a
// key does not say all, as float.

template <typename L>
constexpr bool kIsKey = std::is_same_v<L, int16_t>;

// Takes lanes as they were loaded for what they are compared as, and returns those in which they cannot.
template <typename T, typename L>
FRCNN_INLINE Vector<IndexOf<L>> make_comparable(Vector<L>& v) {
  if constexpr (kIsKey<L>) {
    const Vector<IndexOf<L>> lacking = semantics::lacks_key(T{}, v);
    v = semantics::order_key(v);
    return lacking;
  } else {
    return v != v;
  }
}

// ---- pack: a window of the map as [cell][kBlock] ------------------------------------------------------

template <typename L>
struct PackedMap {
  const L* origin;    // cell (0, 0) of the map, whether it is in the window or not
  int64_t row;        // elements from one row to the next
  int64_t map_width;  // what argmax counts rows by
  bool incomparable;  // some number of it
  const L* quads;     // as origin: the maximum of 2 x 2 cells, by the first of them; null: not made
};

// `cells` neighbouring cells of `count` planes, by squares. Returns whether some are incomparable.
template <typename L, typename T>
bool pack_planes(const T* planes, int64_t plane, int64_t count, int64_t cells, L* packed) {
  constexpr int64_t square = kSquare<L>, lanes = kLanes<L>;
  T few[kBlock<L> * square];
  if (cells < square) {  // a copy to read whole squares from
    std::memset(few, 0, sizeof(few));
    for (int64_t c = 0; c < count; ++c)
      std::memcpy(few + c * square, planes + c * plane, cells * sizeof(T));
    planes = few, plane = square;
  }
  const int64_t run = cells < square ? cells : square;
  Vector<IndexOf<L>> incomparable{};
  for (int64_t c = 0; c < kBlock<L>; c += lanes) {
    // Lanes beyond the last channel repeat it.
    const auto place = [=](int64_t lane) {
      return planes + (c + lane < count ? c + lane : count - 1) * plane;
    };
    for (int64_t next = 0; next < cells; next += square) {
      const int64_t cell = next + run <= cells ? next : cells - run;  // some of them again
      if (next * sizeof(T) % kLine == 0)  // too many planes at once for the hardware prefetcher
        for (int lane = 0; lane < lanes; ++lane)
          __builtin_prefetch(place(lane) + cell + 3 * kLine / sizeof(T));
      Vector<L> rows[square];
      load_transposed<L, lanes>([&](int lane) { return place(lane) + cell; }, rows);
#pragma GCC unroll 8
      for (int r = 0; r < square; ++r) {  // by constants alone, or the rows would lie in memory
        incomparable |= make_comparable<T, L>(rows[r]);
        if (r < run) store(packed + (cell + r) * kBlock<L> + c, rows[r]);
      }
    }
  }
  return any_lane(incomparable);
}

// The same of channels-last cells.
template <typename L, typename T>
bool pack_cells(const T* from, int64_t channels, int64_t count, int64_t cells, L* packed) {
  constexpr int lanes = kLanes<L>;
  T few[kBlock<L>] = {};
  Vector<IndexOf<L>> incomparable{};
  for (int64_t cell = 0; cell < cells; ++cell, from += channels, packed += kBlock<L>) {
    prefetch(from + 8 * channels, kBlock<L> * sizeof(T));
    const T* whole = from;
    if (count < kBlock<L>) std::memcpy(few, from, count * sizeof(T)), whole = few;
    for (int64_t c = 0; c < kBlock<L>; c += lanes) {
      Vector<L> values = load_lanes<L, lanes>(whole + c);
      incomparable |= make_comparable<T, L>(values);
      store(packed + c, values);
    }
  }
  return any_lane(incomparable);
}

template <typename L, typename T>
PackedMap<L> pack(const MapView<const T>& map, int64_t image, int64_t channel, int64_t count,
                  const Window& window, L* packed) {
  const bool whole_rows = window.width == map.w;  // one run in memory
  const int64_t runs = whole_rows ? 1 : window.height;
  const int64_t run = whole_rows ? window.cells() : window.width;
  bool incomparable = false;
  for (int64_t y = 0; y < runs && run > 0; ++y) {
    const T* from = map.data + map.offset(image, channel, (window.y + y) * map.w + window.x);
    L* const to = packed + y * run * kBlock<L>;
    incomparable |= map.layout == Layout::nchw ? pack_planes(from, map.cells(), count, run, to)
                                               : pack_cells(from, map.c, count, run, to);
  }
  const int64_t row = window.width * kBlock<L>;
  return {packed - window.y * row - window.x * kBlock<L>, row, map.w, incomparable, nullptr};
}

// ---- quads: maxima of 2 x 2 cells, laid out as the cells --------------------------------------------------

// In this mode of the machine small numbers count as zeros, of either sign.
FRCNN_INLINE bool denormals_are_zeros() {
  const volatile float smallest = std::numeric_limits<float>::denorm_min();
  return !(smallest > 0);
}

// Returns whether they will do: among zeros of both signs the first in a bin is the maximum, and they do not
// know which that is.
template <typename L>
bool make_quads(const L* packed, const Window& window, L* quads) {
  constexpr int64_t lanes = kLanes<L>, block = kBlock<L>;
  if (!kIsKey<L> && denormals_are_zeros()) return false;
  const int64_t row = window.width * block;
  for (int64_t y = 0; y < window.height; ++y) {
    // The last row has none below it: only its zeros are looked at.
    const int64_t below = y + 1 < window.height ? row : 0;
    const L* cell = packed + y * row;
    L* quad = quads + y * row - block;
    Vector<IndexOf<L>> minus_zeros{};
    Vector<L> left[kVectors];
    for (int64_t x = 0; x < window.width; ++x, cell += block, quad += block) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const Vector<L> upper = in_register(load(cell + v * lanes));
        if constexpr (!kIsKey<L>)  // only the sign is set
          minus_zeros |= (Vector<IndexOf<L>>)upper == std::numeric_limits<IndexOf<L>>::min();
        const Vector<L> pair = larger<L, lanes>(load(cell + below + v * lanes), upper);
        if (x > 0) store(quad + v * lanes, larger<L, lanes>(pair, left[v]));
        left[v] = pair;
      }
    }
    if (any_lane(minus_zeros)) return false;
  }
  return true;
}

// ---- pool ---------------------------------------------------------------------------------------------

template <typename T>
FRCNN_INLINE void put(T* to, const Vector<T>& v, bool past_caches) {
  if (past_caches)
    stream(to, v);
  else
    store(to, v);
}

// Where the maxima of bins go, and the cells they are in: kBlock numbers of each, `step` apart.
template <typename L>
struct Pooled {
  L* maxima;
  IndexOf<L>* cells;
  int64_t step;
  bool past_caches;  // then aligned to vectors
};

// Pools `count` bins of a RoI, `pw` in a row, from bin `first_bin` on.
template <bool WithArgmax, bool MayBeNan, typename L>
void pool_bins(const PooledRoi& roi, int64_t pw, int64_t first_bin, int64_t count,
               const PackedMap<L>& map, const Pooled<L>& pooled) {
  using Index = IndexOf<L>;
  constexpr int64_t block = kBlock<L>, lanes = kLanes<L>;
  const int64_t row = map.row, step = pooled.step;
  const bool past_caches = pooled.past_caches;
  L* maxima = pooled.maxima;
  Index* cells = pooled.cells;
  const BinRange *y = roi.ys + first_bin / pw, *x = roi.xs + first_bin % pw;
  const BinRange* const row_end = roi.xs + pw;
  for (; count > 0; --count) {
    const int64_t top = y->begin, left = x->begin, columns = x->end - left;
    int64_t rows = y->end - top;
    if (++x == row_end) x = roi.xs, ++y;
    // Plain arrays: GCC keeps them in registers.
    Vector<L> best[kVectors];
    Vector<Index> where[kVectors];
    if (rows <= 0 || columns <= 0) {
      for (int v = 0; v < kVectors; ++v) {
        best[v] = splat<lanes>(L(0));
        where[v] = splat<lanes>(Index(-1));
      }
    } else {
      const L* const first = map.origin + top * row + left * block;
      const int64_t width = columns * block;
      Vector<Index> here;
      if constexpr (WithArgmax) here = splat<lanes>(static_cast<Index>(top * map.map_width + left));
      [[maybe_unused]] Vector<L> lowest;
      if constexpr (MayBeNan) lowest = splat<lanes>(-std::numeric_limits<L>::infinity());
      for (int v = 0; v < kVectors; ++v) {
        best[v] = load(first + v * lanes);
        if constexpr (MayBeNan)  // any number takes its place
          best[v] = semantics::beats(best[v], lowest) ? best[v] : lowest;
        if constexpr (WithArgmax) where[v] = here;
      }
      const L* cell = first + block;
      const L* end = first + width;
      for (;;) {
        for (; cell < end; cell += block) {
          if constexpr (WithArgmax) here += 1;
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            const Vector<L> value = in_register(load(cell + v * lanes));
            if constexpr (WithArgmax)
              where[v] = semantics::beats(value, best[v]) ? here : where[v];
            best[v] = larger<L, lanes>(value, best[v]);  // the one that beats the other
          }
        }
        if (--rows == 0) break;
        end += row;
        cell = end - width;
        if constexpr (WithArgmax) here += static_cast<Index>(map.map_width - columns);
      }
      if constexpr (MayBeNan)  // where nothing was greater than -inf the first cell stands for the bin
        for (int v = 0; v < kVectors; ++v)
          best[v] = best[v] == lowest ? load(first + v * lanes) : best[v];
    }
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kIsKey<L>) best[v] = semantics::order_key(best[v]);
      put(maxima + v * lanes, best[v], past_caches);
      if constexpr (WithArgmax) put(cells + v * lanes, where[v], past_caches);
    }
    maxima += step;
    if constexpr (WithArgmax) cells += step;
  }
}

// The same from quads: an odd row or column of a bin is in two of them. Bins of one row or column are read by
// cells, in the same loop: which of two loops a bin takes would be mispredicted too often.
template <typename L>
void pool_quads(const PooledRoi& roi, int64_t pw, int64_t first_bin, int64_t count,
                const PackedMap<L>& map, const Pooled<L>& pooled) {
  constexpr int64_t block = kBlock<L>, lanes = kLanes<L>;
  const int64_t row = map.row, step = pooled.step;
  const bool past_caches = pooled.past_caches;
  L* maxima = pooled.maxima;
  const BinRange *y = roi.ys + first_bin / pw, *x = roi.xs + first_bin % pw;
  const BinRange* const row_end = roi.xs + pw;
  for (; count > 0; --count, maxima += step) {
    const int64_t top = y->begin, left = x->begin;
    const int64_t rows = y->end - top, columns = x->end - left;
    if (++x == row_end) x = roi.xs, ++y;
    Vector<L> best[kVectors];
    if (rows <= 0 || columns <= 0) {
      for (int v = 0; v < kVectors; ++v) best[v] = splat<lanes>(L(0));
    } else {
      const bool by_quads = (rows > 1) & (columns > 1);
      const int64_t side = by_quads ? 2 : 1;
      const int64_t next = side * block, next_row = side * row, width = (columns - side) * block;
      const L* from = (by_quads ? map.quads : map.origin) + top * row + left * block;
      const L* last = from + width;                     // of a row
      const L* const end = last + (rows - side) * row;  // of the bin
      for (int v = 0; v < kVectors; ++v) best[v] = load(from + v * lanes);
      const auto take = [&](const L* values) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          best[v] = larger<L, lanes>(load(values + v * lanes), best[v]);
      };
      for (from += next;;) {
        for (; from < last; from += next) take(from);
        take(last);
        if (last == end) break;
        last = last + next_row < end ? last + next_row : end;
        from = last - width;
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kIsKey<L>) best[v] = semantics::order_key(best[v]);
      put(maxima + v * lanes, best[v], past_caches);
    }
  }
}

// ---- put the bins where the result has them -----------------------------------------------------------

// Turns `Lanes` consecutive bins of every channel, [bin][kBlock], into runs of the tile, which is
// [channel][bins] like the result.
template <int Lanes, typename L>
FRCNN_INLINE void put_runs(const L* by_bin, int64_t bins, L* tile) {
  constexpr int square = kSquare<L>;
  for (int64_t c = 0; c < kBlock<L>; c += square) {
    Vector<L, Lanes> rows[square];
    load_transposed<L, Lanes>([&](int lane) { return by_bin + lane * kBlock<L> + c; }, rows);
#pragma GCC unroll 8
    for (int r = 0; r < square; ++r)
      std::memcpy(tile + (c + r) * bins, &rows[r], sizeof(rows[r]));
  }
}

// The same of up to kLanes bins; what is beyond `count` goes on into the next channel.
template <typename L>
void put_bins(const L* by_bin, int64_t count, int64_t bins, L* tile) {
  constexpr int64_t square = kSquare<L>;
  if (count > kLanes<L> / 2) return put_runs<kLanes<L>>(by_bin, bins, tile);
  for (int64_t b = (count - 1) / square * square; b >= 0; b -= square)
    put_runs<square>(by_bin + b * kBlock<L>, bins, tile + b);
}

// Memory for one call of pool_block. Each part begins on a cache line.
template <typename L>
struct BlockScratch {
  L* packed;               // the window
  L* quads;                // of the window
  L* maxima;               // kLanes bins, [bin][kBlock]
  L* tile;                 // the RoI, [channel][bins]
  IndexOf<L>* cells;       // as maxima
  IndexOf<L>* cells_tile;  // as tile
  int64_t bytes;

  BlockScratch(void* memory, int64_t window_cells, int64_t bins, bool with_quads)
      : next_(reinterpret_cast<uintptr_t>(memory)) {
    const uintptr_t begin = next_;
    take(packed, window_cells * kBlock<L>);
    take(quads, with_quads ? window_cells * kBlock<L> : 0);
    take(maxima, kLanes<L> * kBlock<L>);
    take(tile, kBlock<L> * bins + kRunSpare<L>);  // the last channel's run goes on too
    take(cells, kLanes<L> * kBlock<L>);
    take(cells_tile, kBlock<L> * bins + kRunSpare<L>);
    bytes = static_cast<int64_t>(next_ - begin);
  }

 private:
  template <typename T>
  void take(T*& part, int64_t count) {
    part = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + kLine - 1) / kLine * kLine;
  }
  uintptr_t next_;
};

template <typename L, typename T, typename Index>
void pool_roi(const RoiPoolForward<T, Index>& call, int64_t channel, int64_t count,
              const PooledRoi& roi, const PackedMap<L>& map, bool past_caches,
              const BlockScratch<L>& scratch) {
  constexpr int64_t block = kBlock<L>, group = kLanes<L>;
  const int64_t bins = call.output.cells();
  const bool planes = call.output.layout == Layout::nchw, with_argmax = call.argmax.data != nullptr;
  auto pool = with_argmax ? pool_bins<true, false, L> : pool_bins<false, false, L>;
  if (map.quads != nullptr) pool = pool_quads<L>;
  if constexpr (!kIsKey<L>)
    if (map.incomparable) pool = with_argmax ? pool_bins<true, true, L> : pool_bins<false, true, L>;

  T* const output = call.output.data + call.output.offset(roi.row, channel, 0);
  Index* const argmax =
      with_argmax ? call.argmax.data + call.argmax.offset(roi.row, channel, 0) : nullptr;
  if (!planes && count == block && sizeof(T) == sizeof(L) &&
      (!with_argmax || sizeof(Index) == sizeof(IndexOf<L>))) {
    // The lanes are the result, as they come.
    const auto aligned = [](const auto* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; };
    const int64_t step = call.output.c;
    const bool stream = past_caches && aligned(output) && aligned(output + step) && aligned(argmax);
    return pool(roi, call.output.w, 0, bins, map,
                {reinterpret_cast<L*>(output), reinterpret_cast<IndexOf<L>*>(argmax), step, stream});
  }
  // From the last bins to the first: what a run writes beyond its channel's last bin lies in the next
  // channel, whose first bins come later.
  for (int64_t first = (bins - 1) / group * group; first >= 0; first -= group) {
    const int64_t taken = bins - first < group ? bins - first : group;
    pool(roi, call.output.w, first, taken, map, {scratch.maxima, scratch.cells, block, false});
    if (planes) {
      put_bins(scratch.maxima, taken, bins, scratch.tile + first);
      if (with_argmax) put_bins(scratch.cells, taken, bins, scratch.cells_tile + first);
      if (!past_caches) {  // as much of the result as this run is of the tile
        const int64_t part = count * taken, at = count * first;
        prefetch_to_write(output + at, part * sizeof(T));
        if (with_argmax) prefetch_to_write(argmax + at, part * sizeof(Index));
      }
    } else {
      for (int64_t b = 0; b < taken; ++b) {
        const int64_t at = (first + b) * call.output.c;
        put_run(output + at, scratch.maxima + b * block, count, past_caches);
        if (with_argmax) put_run(argmax + at, scratch.cells + b * block, count, past_caches);
      }
    }
  }
  if (planes) {
    put_run(output, scratch.tile, count * bins, past_caches);
    if (with_argmax) put_run(argmax, scratch.cells_tile, count * bins, past_caches);
  }
}

// Channels [channel, channel + kBlock<L>) of a group. False where keys cannot say all there is to say.
template <typename L, typename T, typename Index>
bool pool_lanes(const RoiPoolForward<T, Index>& call, const RoiGroup& group, int64_t channel,
                bool past_caches, void* memory) {
  const Window& window = group.window;
  const int64_t left = call.features.c - channel, channels = left < kBlock<L> ? left : kBlock<L>;
  const BlockScratch<L> scratch(memory, window.cells(), call.output.cells(), group.with_quads);
  auto map = pack(call.features, group.image, channel, channels, window, scratch.packed);
  if (kIsKey<L> && map.incomparable) return false;
  if (group.with_quads && !map.incomparable && make_quads(scratch.packed, window, scratch.quads))
    map.quads = map.origin + (scratch.quads - scratch.packed);
  for (int64_t r = 0; r < group.count; ++r)
    pool_roi(call, channel, channels, group.rois[r], map, past_caches, scratch);
  if (past_caches) end_streaming();
  return true;
}

template <typename T>
using ComparedAs = std::conditional_t<sizeof(T) == 2, int16_t, T>;

template <typename T, typename Index>
void pool_block(const RoiPoolForward<T, Index>& call, const RoiGroup& group, int64_t channel,
                bool past_caches, void* scratch) {
  const auto pool = [&]<typename L>(int64_t first) {
    return pool_lanes<L>(call, group, first, past_caches, scratch);
  };
  if constexpr (kIsKey<ComparedAs<T>>) {
    // 16 bits can number every cell, and none.
    const bool numbered = call.argmax.data == nullptr || call.features.cells() <= 0xffff;
    if (numbered && pool.template operator()<int16_t>(channel)) return;
    for (int64_t half : {int64_t{0}, kBlock<float>})
      if (channel + half < call.features.c) pool.template operator()<float>(channel + half);
  } else {
    pool.template operator()<T>(channel);
  }
}

template <typename T>
int64_t block_scratch(int64_t window_cells, int64_t bins, bool with_quads) {
  const int64_t first = BlockScratch<ComparedAs<T>>(nullptr, window_cells, bins, with_quads).bytes;
  const int64_t second = BlockScratch<Wide<T>>(nullptr, window_cells, bins, with_quads).bytes;
  return first > second ? first : second;
}

}  // namespace

template <typename T, typename Index>
RoiPoolKernels<T, Index> roi_pool_kernels() {
  return {kBlock<ComparedAs<T>>, pool_block<T, Index>, block_scratch<T>};
}

#define FRCNN_INSTANTIATE(T, Index) template RoiPoolKernels<T, Index> roi_pool_kernels();
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)

}  // namespace fastrcnn_engine::cpu::FRCNN_SET
