// The hot loops of RoI pooling's gradient: each bin's gradient is added to the cell that argmax names. Knows
// no threads; where bins lie it is told, if at all. Uses plain pointers, lanes.h and semantics/ only:
// docs/cpu-kernels.md.
#include <bit>

#include "lanes.h"
#include "roi_pool_kernels.h"

namespace fastrcnn_engine::cpu::FRCNN_SET {
namespace {

using semantics::BinRange;
using semantics::Wide;

// One test for both ends of the map: -1, and 65535 of uint16, are large without a sign.
FRCNN_INLINE bool in_map(uint64_t cell, int64_t cells) { return cell < static_cast<uint64_t>(cells); }

// `Count` numbers of cells, without their sign, loaded together.
template <typename Index, int Count>
struct CellNumbers {
  static constexpr int kBits = 8 * sizeof(Index), kInWord = 64 / kBits;
  static_assert(Count % kInWord == 0);
  uint64_t words[Count / kInWord];

  FRCNN_INLINE uint64_t operator[](int i) const {
    constexpr bool lowest_first = std::endian::native == std::endian::little;
    const int place = lowest_first ? i % kInWord : kInWord - 1 - i % kInWord;
    return words[i / kInWord] >> (place * kBits) & ((uint64_t{1} << kBits) - 1);
  }
};

// `Count` numbers to be indexed: those of 16 bits are widened together, others are read where they are added.
template <int Count, typename T>
FRCNN_INLINE auto widened(const T* from) {
  if constexpr (std::is_same_v<T, Wide<T>>)
    return from;
  else
    return load_wide<Count>(from);
}

// Adds one RoI's gradients of `Planes` channels, `Together` bins of each loaded at once. The planes take
// turns: two bins of one plane often share a cell, and the second addition would wait for the first.
// `ahead` elements on is the next RoI's run, too far away for the hardware prefetcher.
template <int Planes, int Together, typename T, typename Index, typename W>
FRCNN_INLINE void scatter_bins(const T* grad, const Index* argmax, int64_t bins, int64_t cells,
                               int64_t ahead, W* sums) {
  int64_t bin = 0;
  for (; bin + Together <= bins; bin += Together) {
    __builtin_prefetch(grad + ahead + bin * Planes);
    __builtin_prefetch(argmax + ahead + bin * Planes);
    CellNumbers<Index, Together> numbers[Planes];
    decltype(widened<Together>(grad)) gradients[Planes];
#pragma GCC unroll 8
    for (int p = 0; p < Planes; ++p) {
      std::memcpy(&numbers[p], argmax + p * bins + bin, sizeof(numbers[p]));
      gradients[p] = widened<Together>(grad + p * bins + bin);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Together; ++i) {
#pragma GCC unroll 8
      for (int p = 0; p < Planes; ++p) {
        const uint64_t cell = numbers[p][i];
        if (in_map(cell, cells)) sums[p * cells + cell] += gradients[p][i];
      }
    }
  }
  for (; bin < bins; ++bin) {
    for (int p = 0; p < Planes; ++p) {
      const auto cell = static_cast<std::make_unsigned_t<Index>>(argmax[p * bins + bin]);
      if (in_map(cell, cells)) sums[p * cells + cell] += semantics::widen(grad[p * bins + bin]);
    }
  }
}

template <typename T, typename Index>
void scatter_planes(const RoiPoolBackward<T, Index>& call, int64_t image, int64_t channel,
                    int64_t last, const int64_t* rows, int64_t count, Wide<T>* sums) {
  using W = Wide<T>;
  constexpr int planes = 2, together = 4;
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
    for (; c + planes <= channels; c += planes)
      scatter_bins<planes, together>(grad + c * bins, argmax + c * bins, bins, cells, ahead, sums + c * cells);
    for (; c < channels; ++c)
      scatter_bins<1, together>(grad + c * bins, argmax + c * bins, bins, cells, ahead, sums + c * cells);
  }
  if constexpr (!std::is_same_v<T, W>) put_run(result, sums, channels * cells, false);
}

// ---- channels-last: the sums of some channels as [cell][channel], of whole rows in the result -----------

// Adds one bin's gradients of `count` channels one by one; a cell's sums lie `block` numbers from the next
// one's.
template <typename T, typename Index, typename W>
FRCNN_INLINE void add_one_by_one(const T* grad, const Index* argmax, int64_t count, int64_t cells,
                                 int64_t block, W* sums) {
  constexpr int64_t together = kLanes<W>;
  const auto add = [&](int64_t c, W gradient) __attribute__((always_inline)) {
    const auto cell = static_cast<std::make_unsigned_t<Index>>(argmax[c]);
    if (in_map(cell, cells)) sums[cell * block + c] += gradient;
  };
  int64_t first = 0;
  for (; first + together <= count; first += together) {
    const auto gradients = widened<together>(grad + first);
    for (int64_t c = 0; c < together; ++c) add(first + c, gradients[c]);
  }
  for (; first < count; ++first) add(first, semantics::widen(grad[first]));
}

// Lane = channel, where vectors are long enough: the argmax is compared with each cell of the bin, and the
// gradient is added in the lanes that name it, with one load and one store for all of them.
#if defined(__AVX512F__)
template <typename W>
constexpr bool kByLanes = sizeof(W) == 4;

template <typename Index>
FRCNN_INLINE Vector<int32_t> load_cells(const Index* from) {
  if constexpr (sizeof(Index) == 4)
    return load(from);
  else
    return __builtin_convertvector(load_as<Vector<uint16_t, kLanes<float>>>(from), Vector<int32_t>);
}

// Adds one bin's gradients of a whole block. An argmax in none of its cells, of a caller's own making, counts
// too.
template <typename T, typename Index>
FRCNN_INLINE void add_by_lanes(const T* grad, const Index* argmax, const BinRange& y, const BinRange& x,
                               int64_t map_width, int64_t cells, float* sums) {
  constexpr int64_t block = kGradientBlock<float>, lanes = kLanes<float>, vectors = block / lanes;
  Vector<float> gradient[vectors];
  Vector<int32_t> wanted[vectors], added[vectors];
  for (int v = 0; v < vectors; ++v) {
    gradient[v] = load_wide<lanes>(grad + v * lanes);
    wanted[v] = load_cells(argmax + v * lanes);
    added[v] = Vector<int32_t>{};
  }
  for (int64_t row = y.begin; row < y.end; ++row) {
    const int64_t first = row * map_width + x.begin;
    Vector<int32_t> here = splat<lanes>(static_cast<int32_t>(first));
    float* sum = sums + first * block;
    for (int64_t column = x.begin; column < x.end; ++column, sum += block, here += 1) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        const Holds<float> holds = equal(wanted[v], here);
        store(sum + v * lanes, add_where(holds, load(sum + v * lanes), gradient[v]));
        added[v] = set_where(holds, added[v]);
      }
    }
  }
  Vector<int32_t> all = added[0];
  for (int v = 1; v < vectors; ++v) all &= added[v];
  if (!any_lane(~all)) return;
  for (int64_t c = 0; c < block; ++c) {
    const auto cell = static_cast<std::make_unsigned_t<Index>>(argmax[c]);
    if (added[c / lanes][c % lanes] == 0 && in_map(cell, cells))
      sums[cell * block + c] += semantics::widen(grad[c]);
  }
}
#else
template <typename W>
constexpr bool kByLanes = false;
#endif

template <typename T, typename Index>
void scatter_cells(const RoiPoolBackward<T, Index>& call, int64_t image, int64_t channel, int64_t last,
                   const int64_t* rows, const PooledRoi* rois, int64_t count, Wide<T>* sums) {
  using W = Wide<T>;
  const int64_t cells = call.grad_input.cells(), bins = call.grad_output.cells();
  const int64_t channels = call.grad_input.c, block = last - channel;
  T* const result = call.grad_input.data + call.grad_input.offset(image, channel, 0);
  const bool in_place = std::is_same_v<T, W> && block == channels;
  if constexpr (std::is_same_v<T, W>) sums = in_place ? result : sums;
  // Prefetched: bins that come about 512 elements later. What is added to lies so far apart that the hardware
  // prefetcher has no time for these, even of whole rows.
  constexpr int64_t later = 512, run = 64;
  const int64_t ahead = (later + block - 1) / block * channels;
  for (int64_t i = 0; i < cells * block; ++i) sums[i] = W(0);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t place = call.grad_output.offset(rows[r], channel, 0);
    const T* grad = call.grad_output.data + place;
    const Index* argmax = call.argmax.data + place;
    [[maybe_unused]] const bool by_lanes =
        rois != nullptr && block == kGradientBlock<W> && rois[r].cells <= kMostCellsByLanes * bins;
    for (int64_t bin = 0; bin < bins; ++bin, grad += channels, argmax += channels) {
      if constexpr (kByLanes<W>) {
        if (by_lanes) {
          prefetch(grad + ahead, kGradientBlock<W> * sizeof(T));
          prefetch(argmax + ahead, kGradientBlock<W> * sizeof(Index));
          const int64_t pw = call.grad_output.w;
          add_by_lanes(grad, argmax, rois[r].ys[bin / pw], rois[r].xs[bin % pw], call.grad_input.w, cells,
                       sums);
          continue;
        }
      }
      for (int64_t first = 0; first < block; first += run) {
        const int64_t part = first + run < block ? run : block - first;
        prefetch(grad + ahead + first, part * sizeof(T));
        prefetch(argmax + ahead + first, part * sizeof(Index));
        add_one_by_one(grad + first, argmax + first, part, cells, block, sums + first);
      }
    }
  }
  if (in_place) return;
  for (int64_t cell = 0; cell < cells; ++cell)
    put_run(result + cell * channels, sums + cell * block, block, false);
}

}  // namespace

template <typename T, typename Index>
RoiPoolGradientKernels<T, Index> roi_pool_gradient_kernels() {
  return {scatter_planes<T, Index>, scatter_cells<T, Index>, kByLanes<Wide<T>>};
}

#define FRCNN_INSTANTIATE(T, Index) \
  template RoiPoolGradientKernels<T, Index> roi_pool_gradient_kernels();
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)

}  // namespace fastrcnn_engine::cpu::FRCNN_SET
