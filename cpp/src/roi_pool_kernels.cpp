#include "roi_pool_kernels.h"

#include <limits>

#include "lanes.h"

namespace fastrcnn_engine::cpu::FRCNN_SET {
namespace {

using semantics::BinRange;
using semantics::Wide;

// Channels of an NCHW map packed together: 300 KiB of a 38 x 63 map for 32 floats, the L2 cache's share.
// With wider vectors as many as pool_bin keeps in registers: a bin's setting up then pays for more.
template <typename W>
constexpr int64_t kBlock = 4 * kLanes<W> > 32 ? 4 * kLanes<W> : 32;

// ---- one bin ------------------------------------------------------------------------------------------

// Cells of one map in memory, vectors of channels in each.
template <typename T>
struct Cells {
  const T* origin;    // cell (0, 0) of the map, whether it is there or not
  int64_t cell, row;  // elements from one to the next
  int64_t map_width;  // what argmax counts rows by
};

// The maxima of one bin for `Vectors` vectors of channels, and where they are.
template <typename W, int Lanes, int Vectors>
struct Maxima {
  Vector<W, Lanes> best[Vectors];
  Vector<IndexOf<W>, Lanes> where[Vectors];
};

template <bool WithArgmax, int Lanes, int Vectors, typename T>
FRCNN_INLINE Maxima<Wide<T>, Lanes, Vectors> pool_bin(const Cells<T>& cells, const BinRange& y,
                                                      const BinRange& x) {
  using W = Wide<T>;
  using Index = IndexOf<W>;
  // Plain arrays and one way out: GCC then keeps them in registers.
  Vector<W, Lanes> best[Vectors];
  Vector<Index, Lanes> where[Vectors];
  if (y.end <= y.begin || x.end <= x.begin) {
    for (int v = 0; v < Vectors; ++v) {
      best[v] = splat<Lanes>(W(0));
      where[v] = splat<Lanes>(Index(-1));
    }
  } else {
    const Vector<W, Lanes> lowest = splat<Lanes>(-std::numeric_limits<W>::infinity());
    const T* const first = cells.origin + y.begin * cells.row + x.begin * cells.cell;
    const int64_t width = x.end - x.begin;
    Vector<Index, Lanes> here =
        splat<Lanes>(static_cast<Index>(y.begin * cells.map_width + x.begin));
    for (int v = 0; v < Vectors; ++v) {
      const Vector<W, Lanes> value = load_wide<Lanes>(first + v * Lanes);
      best[v] = semantics::beats(value, lowest) ? value : lowest;  // a NaN does not
      where[v] = here;
    }
    const T* cell = first + cells.cell;
    const T* end = first + width * cells.cell;
    for (int64_t rows = y.end - y.begin;;) {
      for (; cell < end; cell += cells.cell) {
        if constexpr (WithArgmax) here += 1;
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
          const Vector<W, Lanes> value = load_wide<Lanes>(cell + v * Lanes);
          const auto greater = semantics::beats(value, best[v]);
          best[v] = greater ? value : best[v];
          if constexpr (WithArgmax) where[v] = greater ? here : where[v];
        }
      }
      if (--rows == 0) break;
      end += cells.row;
      cell = end - width * cells.cell;
      if constexpr (WithArgmax) here += static_cast<Index>(cells.map_width - width);
    }
    // Where nothing was greater than -inf the first cell stands for the bin.
    for (int v = 0; v < Vectors; ++v)
      best[v] = best[v] == lowest ? load_wide<Lanes>(first + v * Lanes) : best[v];
  }
  Maxima<W, Lanes, Vectors> bin;
  for (int v = 0; v < Vectors; ++v) bin.best[v] = best[v], bin.where[v] = where[v];
  return bin;
}

// ---- NCHW: pack, pool, bring back ---------------------------------------------------------------------

// [cell][kBlock] <- `cells` neighbouring cells of `count` planes: as many channels as cells make a
// square. Lanes beyond the last channel repeat it.
template <typename T>
void pack_run(const T* planes, int64_t plane, int64_t count, int64_t cells, Wide<T>* packed) {
  using W = Wide<T>;
  constexpr int square = kSquare<W>, lanes = kLanes<W>;
  const auto channel = [=](int64_t c) { return planes + (c < count ? c : count - 1) * plane; };
  if (cells < square) {
    for (int64_t cell = 0; cell < cells; ++cell)
      for (int64_t c = 0; c < kBlock<W>; ++c)
        packed[cell * kBlock<W> + c] = semantics::widen(channel(c)[cell]);
    return;
  }
  for (int64_t c = 0; c < kBlock<W>; c += lanes) {
    for (int64_t next = 0; next < cells; next += square) {
      const int64_t cell = next + square <= cells ? next : cells - square;  // some of them again
      Vector<W> rows[square];
      for (int r = 0; r < square; ++r) {
        for (int s = 0; s < lanes / square; ++s) {
          const auto part = load_wide<square>(channel(c + s * square + r) + cell);
          std::memcpy(reinterpret_cast<char*>(&rows[r]) + 16 * s, &part, 16);
        }
      }
      transpose_squares<W>(rows);
      for (int r = 0; r < square; ++r) store(packed + (cell + r) * kBlock<W> + c, rows[r]);
    }
  }
}

template <typename T>
Cells<Wide<T>> pack(const MapView<const T>& map, int64_t image, int64_t channel, int64_t count,
                    const Window& window, Wide<T>* packed) {
  constexpr int64_t block = kBlock<Wide<T>>;
  const bool whole_rows = window.width == map.w;  // one run in memory
  const int64_t runs = whole_rows ? 1 : window.height;
  const int64_t run = whole_rows ? window.cells() : window.width;
  for (int64_t y = 0; y < runs; ++y)
    pack_run(map.data + map.offset(image, channel, (window.y + y) * map.w + window.x), map.cells(),
             count, run, packed + y * run * block);
  const int64_t row = window.width * block;
  return {packed - window.y * row - window.x * block, block, row, map.w};
}

// Turns `square` consecutive bins of every channel, [square][kBlock], into runs of the tile, which is
// [channel][bins] like the result.
template <typename W>
FRCNN_INLINE void put_square(const W* bins_by_channel, int64_t bins, W* tile) {
  constexpr int square = kSquare<W>, lanes = kLanes<W>;
  for (int64_t c = 0; c < kBlock<W>; c += lanes) {
    Vector<W> rows[square];
    for (int r = 0; r < square; ++r) rows[r] = load(bins_by_channel + r * kBlock<W> + c);
    transpose_squares<W>(rows);
    for (int s = 0; s < lanes / square; ++s)
      for (int r = 0; r < square; ++r)
        std::memcpy(tile + (c + s * square + r) * bins,
                    reinterpret_cast<const char*>(&rows[r]) + 16 * s, 16);
  }
}

// Copies a tile to the result, in the result's type.
template <typename T, typename W>
FRCNN_INLINE void put_tile(T* to, const W* tile, int64_t size, bool past_caches) {
  constexpr int64_t step = kVectorBytes / sizeof(T);
  const bool aligned = reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0;
  int64_t i = 0;
  if constexpr (std::is_same_v<T, W>) {
    if (past_caches && aligned)
      for (; i + step <= size; i += step) stream(to + i, tile + i);
    std::memcpy(to + i, tile + i, (size - i) * sizeof(T));
  } else {
    for (; i + step <= size; i += step) {
      alignas(kVectorBytes) T part[step];
      for (int64_t j = 0; j < step; j += kLanes<W>)
        store_narrow<W, kLanes<W>>(part + j, load(tile + i + j));
      if (past_caches && aligned)
        stream(to + i, part);
      else
        std::memcpy(to + i, part, sizeof(part));
    }
    for (; i < size; ++i) {
      if constexpr (std::is_integral_v<T>)
        to[i] = static_cast<T>(tile[i]);
      else
        to[i] = semantics::narrow<T>(tile[i]);
    }
  }
}

// Memory for one call of pool_planes. Each part begins on a cache line.
template <typename W>
struct PlaneScratch {
  W* packed;
  W* tile;
  IndexOf<W>* index_tile;
  int64_t bytes;

  PlaneScratch(void* memory, int64_t window_cells, int64_t bins) {
    // A square may reach beyond the bins of the last channel.
    const int64_t tile_bytes = round_up((kBlock<W> * bins + kSquare<W>) * sizeof(W));
    char* at = static_cast<char*>(memory);
    packed = reinterpret_cast<W*>(at);
    tile = reinterpret_cast<W*>(at += round_up(window_cells * kBlock<W> * sizeof(W)));
    index_tile = reinterpret_cast<IndexOf<W>*>(at += tile_bytes);
    bytes = at + tile_bytes - static_cast<char*>(memory);
  }

 private:
  static int64_t round_up(int64_t size) { return (size + kLine - 1) / kLine * kLine; }
};

template <bool WithArgmax, typename T, typename Index>
void pool_packed(const RoiPoolForward<T, Index>& call, int64_t channel, int64_t count,
                 const PooledRoi& roi, const Cells<Wide<T>>& cells, bool past_caches,
                 const PlaneScratch<Wide<T>>& scratch) {
  using W = Wide<T>;
  using WideIndex = IndexOf<W>;
  constexpr int square = kSquare<W>, lanes = kLanes<W>;
  constexpr int vectors = 4;  // what registers hold
  const int64_t bins = call.output.cells();
  T* const output = call.output.data + call.output.offset(roi.row, channel, 0);
  Index* const argmax =
      WithArgmax ? call.argmax.data + call.argmax.offset(roi.row, channel, 0) : nullptr;
  alignas(64) W values[square * kBlock<W>] = {};
  alignas(64) WideIndex indices[square * kBlock<W>] = {};

  // From the last square to the first: what the last one writes beyond its channel's bins lies in the
  // next channel, whose first square comes later.
  int64_t y = call.output.h - 1, x = call.output.w - 1;
  for (int64_t first = (bins - 1) / square * square, bin = bins - 1; first >= 0; first -= square) {
    for (; bin >= first; --bin) {
      for (int64_t c = 0; c < kBlock<W>; c += vectors * lanes) {
        const Cells<W> part{cells.origin + c, cells.cell, cells.row, cells.map_width};
        const auto pooled = pool_bin<WithArgmax, lanes, vectors>(part, roi.ys[y], roi.xs[x]);
        for (int v = 0; v < vectors; ++v) {
          const int64_t at = (bin - first) * kBlock<W> + c + v * lanes;
          store(values + at, pooled.best[v]);
          if constexpr (WithArgmax) store(indices + at, pooled.where[v]);
        }
      }
      if (--x < 0) x = call.output.w - 1, --y;
    }
    put_square(values, bins, scratch.tile + first);
    if constexpr (WithArgmax) put_square(indices, bins, scratch.index_tile + first);
    if (!past_caches) {  // as much of the result as this square is of the tile
      const int64_t part = count * square, at = count * first;
      prefetch_to_write(output + at, part * sizeof(T));
      if constexpr (WithArgmax) prefetch_to_write(argmax + at, part * sizeof(Index));
    }
  }
  put_tile(output, scratch.tile, count * bins, past_caches);
  if constexpr (WithArgmax) put_tile(argmax, scratch.index_tile, count * bins, past_caches);
}

template <typename T, typename Index>
void pool_planes(const RoiPoolForward<T, Index>& call, int64_t image, int64_t channel,
                 const PooledRoi* rois, int64_t count, const Window& window, bool past_caches,
                 void* memory) {
  constexpr int64_t block = kBlock<Wide<T>>;
  const int64_t left = call.features.c - channel, channels = left < block ? left : block;
  const PlaneScratch<Wide<T>> scratch(memory, window.cells(), call.output.cells());
  const auto cells = pack(call.features, image, channel, channels, window, scratch.packed);
  for (int64_t r = 0; r < count; ++r) {
    if (call.argmax.data != nullptr)
      pool_packed<true>(call, channel, channels, rois[r], cells, past_caches, scratch);
    else
      pool_packed<false>(call, channel, channels, rois[r], cells, past_caches, scratch);
  }
  if (past_caches) end_streaming();
}

template <typename T>
int64_t pool_scratch(int64_t window_cells, int64_t bins) {
  return PlaneScratch<Wide<T>>(nullptr, window_cells, bins).bytes;
}

// ---- channels-last: the lanes are there ---------------------------------------------------------------

template <typename W, int Lanes, int Vectors, typename T>
FRCNN_INLINE void put_vectors(T* to, const Vector<W, Lanes> (&from)[Vectors], bool past_caches) {
  constexpr int64_t bytes = Vectors * Lanes * sizeof(T);
  alignas(kLine) T part[Vectors * Lanes];
  for (int v = 0; v < Vectors; ++v) store_narrow<W, Lanes>(part + v * Lanes, from[v]);
  if (bytes % kVectorBytes == 0 && past_caches &&
      reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0) {
    for (int64_t i = 0; i < bytes; i += kVectorBytes)
      stream(reinterpret_cast<char*>(to) + i, reinterpret_cast<const char*>(part) + i);
  } else {
    std::memcpy(to, part, bytes);
  }
}

// `Vectors` vectors of channels from `channel` on, every bin: the RoI's cells stay in the L1 cache.
template <bool WithArgmax, int Lanes, int Vectors, typename T, typename Index>
void pool_strip(const RoiPoolForward<T, Index>& call, int64_t image, const PooledRoi& roi,
                int64_t channel, bool past_caches) {
  using W = Wide<T>;
  const int64_t channels = call.features.c;
  const Cells<T> cells{call.features.data + call.features.offset(image, channel, 0), channels,
                       channels * call.features.w, call.features.w};
  T* output = call.output.data + call.output.offset(roi.row, channel, 0);
  Index* argmax = WithArgmax ? call.argmax.data + call.argmax.offset(roi.row, channel, 0) : nullptr;
  for (int64_t y = 0; y < call.output.h; ++y) {
    for (int64_t x = 0; x < call.output.w; ++x) {
      const auto pooled = pool_bin<WithArgmax, Lanes, Vectors>(cells, roi.ys[y], roi.xs[x]);
      put_vectors<W, Lanes>(output, pooled.best, past_caches);
      output += channels;
      if constexpr (WithArgmax) {
        put_vectors<IndexOf<W>, Lanes>(argmax, pooled.where, past_caches);
        argmax += channels;
      }
    }
  }
}

template <bool WithArgmax, typename T, typename Index>
void pool_row(const RoiPoolForward<T, Index>& call, int64_t image, const PooledRoi& roi,
              bool past_caches) {
  constexpr int64_t lanes = kLanes<Wide<T>>, strip = 4 * lanes;
  const int64_t channels = call.features.c;
  int64_t c = 0;
  for (; c + strip <= channels; c += strip)
    pool_strip<WithArgmax, lanes, 4>(call, image, roi, c, past_caches);
  for (; c + lanes <= channels; c += lanes)
    pool_strip<WithArgmax, lanes, 1>(call, image, roi, c, past_caches);
  if (c == channels) return;
  if (channels >= lanes) {  // the last full vector, some of whose channels are pooled again
    pool_strip<WithArgmax, lanes, 1>(call, image, roi, channels - lanes, false);
  } else {
    for (; c < channels; ++c) pool_strip<WithArgmax, 1, 1>(call, image, roi, c, false);
  }
}

template <typename T, typename Index>
void pool_cells(const RoiPoolForward<T, Index>& call, int64_t image, const PooledRoi& roi,
                bool past_caches) {
  if (call.argmax.data != nullptr)
    pool_row<true>(call, image, roi, past_caches);
  else
    pool_row<false>(call, image, roi, past_caches);
  if (past_caches) end_streaming();
}

// ---- gradient -----------------------------------------------------------------------------------------

// One test for both ends of the map: -1, and 65535 of uint16, are large without a sign.
template <typename Index>
FRCNN_INLINE bool in_map(Index cell, int64_t cells) {
  return static_cast<uint64_t>(static_cast<std::make_unsigned_t<Index>>(cell)) <
         static_cast<uint64_t>(cells);
}

// Adds one RoI's gradients of `Planes` channels. Bin by bin, and channel by channel within a bin: two
// bins of one channel often share a cell, and the second addition would wait for the first. `ahead`
// elements on is the next RoI's run, too far away for the machine to guess.
template <int Planes, typename T, typename Index, typename W>
FRCNN_INLINE void scatter_bins(const T* grad, const Index* argmax, int64_t bins, int64_t cells,
                               int64_t ahead, W* sums) {
  for (int64_t bin = 0; bin < bins; ++bin) {
    __builtin_prefetch(grad + ahead + bin * Planes);
    __builtin_prefetch(argmax + ahead + bin * Planes);
#pragma GCC unroll 4
    for (int64_t p = 0; p < Planes; ++p) {
      const Index cell = argmax[p * bins + bin];
      if (in_map(cell, cells)) sums[p * cells + cell] += semantics::widen(grad[p * bins + bin]);
    }
  }
}

template <typename T, typename Index>
void scatter_planes(const RoiPoolBackward<T, Index>& call, int64_t image, int64_t channel,
                    int64_t last, const int64_t* rows, int64_t count, Wide<T>* sums) {
  using W = Wide<T>;
  constexpr int together = 4;
  const int64_t cells = call.grad_input.cells(), bins = call.grad_output.cells();
  const int64_t channels = last - channel;
  T* const result = call.grad_input.data + call.grad_input.offset(image, channel, 0);
  if constexpr (std::is_same_v<T, W>) sums = result;
  for (int64_t i = 0; i < channels * cells; ++i) sums[i] = W(0);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t here = call.grad_output.offset(rows[r], channel, 0);
    const int64_t next = call.grad_output.offset(rows[r + 1 < count ? r + 1 : r], channel, 0);
    const T* const grad = call.grad_output.data + here;
    const Index* const argmax = call.argmax.data + here;
    const int64_t ahead = next - here;
    int64_t c = 0;
    for (; c + together <= channels; c += together)
      scatter_bins<together>(grad + c * bins, argmax + c * bins, bins, cells, ahead, sums + c * cells);
    for (; c < channels; ++c)
      scatter_bins<1>(grad + c * bins, argmax + c * bins, bins, cells, ahead, sums + c * cells);
  }
  if constexpr (!std::is_same_v<T, W>) put_tile(result, sums, channels * cells, false);
}

// The channels' sums lie side by side: [cell][last - channel]. Of whole rows they are the result.
template <typename T, typename Index>
void scatter_cells(const RoiPoolBackward<T, Index>& call, int64_t image, int64_t channel,
                   int64_t last, const int64_t* rows, int64_t count, Wide<T>* sums) {
  using W = Wide<T>;
  const int64_t cells = call.grad_input.cells(), bins = call.grad_output.cells();
  const int64_t width = last - channel, channels = call.grad_input.c;
  T* const result = call.grad_input.data + call.grad_input.offset(image, channel, 0);
  const bool in_place = std::is_same_v<T, W> && width == channels;
  if constexpr (std::is_same_v<T, W>) sums = in_place ? result : sums;
  for (int64_t i = 0; i < cells * width; ++i) sums[i] = W(0);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = call.grad_output.offset(rows[r], channel, 0);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const T* grad = call.grad_output.data + row + bin * channels;
      const Index* argmax = call.argmax.data + row + bin * channels;
      for (int64_t c = 0; c < width; ++c)
        if (in_map(argmax[c], cells)) sums[argmax[c] * width + c] += semantics::widen(grad[c]);
    }
  }
  if (in_place) return;
  for (int64_t cell = 0; cell < cells; ++cell)
    put_tile(result + cell * channels, sums + cell * width, width, false);
}

}  // namespace

template <typename T, typename Index>
RoiPoolKernels<T, Index> roi_pool_kernels() {
  return {kBlock<Wide<T>>,         pool_planes<T, Index>,    pool_scratch<T>,
          pool_cells<T, Index>,    scatter_planes<T, Index>, scatter_cells<T, Index>};
}

#define FRCNN_INSTANTIATE(T)                               \
  template RoiPoolKernels<T, int32_t> roi_pool_kernels();  \
  template RoiPoolKernels<T, uint16_t> roi_pool_kernels();
FRCNN_INSTANTIATE(float)
FRCNN_INSTANTIATE(double)
FRCNN_INSTANTIATE(float16)
FRCNN_INSTANTIATE(bfloat16)

}  // namespace fastrcnn_engine::cpu::FRCNN_SET
