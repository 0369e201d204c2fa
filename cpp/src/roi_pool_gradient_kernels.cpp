// The hot loops of RoI pooling's gradient: each bin's gradient is added to the cell that argmax names. Knows
// neither threads nor where bins lie. Uses plain pointers, lanes.h and semantics/ only: docs/cpu-kernels.md.
#include <bit>

#include "lanes.h"
#include "roi_pool_kernels.h"

namespace fastrcnn_engine::cpu::FRCNN_SET {
namespace {

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
#pragma GCC unroll 8
    for (int p = 0; p < Planes; ++p)
      std::memcpy(&numbers[p], argmax + p * bins + bin, sizeof(numbers[p]));
#pragma GCC unroll 8
    for (int i = 0; i < Together; ++i) {
#pragma GCC unroll 8
      for (int p = 0; p < Planes; ++p) {
        const uint64_t cell = numbers[p][i];
        if (in_map(cell, cells))
          sums[p * cells + cell] += semantics::widen(grad[p * bins + bin + i]);
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

// The channels' sums lie side by side: [cell][last - channel]. Of whole rows they are the result.
template <typename T, typename Index>
void scatter_cells(const RoiPoolBackward<T, Index>& call, int64_t image, int64_t channel,
                   int64_t last, const int64_t* rows, int64_t count, Wide<T>* sums) {
  using W = Wide<T>;
  const int64_t cells = call.grad_input.cells(), bins = call.grad_output.cells();
  const int64_t width = last - channel, channels = call.grad_input.c;
  T* const result = call.grad_input.data + call.grad_input.offset(image, channel, 0);
  // Prefetched when a line of floats is added: bins that come about 512 elements later. What is added to lies
  // so far apart that the hardware prefetcher has no time for these.
  constexpr int64_t run = 16, later = 512;
  const int64_t ahead = (later + width - 1) / width * channels;
  const bool in_place = std::is_same_v<T, W> && width == channels;
  if constexpr (std::is_same_v<T, W>) sums = in_place ? result : sums;
  for (int64_t i = 0; i < cells * width; ++i) sums[i] = W(0);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = call.grad_output.offset(rows[r], channel, 0);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const T* grad = call.grad_output.data + row + bin * channels;
      const Index* argmax = call.argmax.data + row + bin * channels;
      for (int64_t first = 0; first < width; first += run) {
        __builtin_prefetch(grad + ahead + first);
        __builtin_prefetch(argmax + ahead + first);
        const int64_t end = first + run < width ? first + run : width;
        for (int64_t c = first; c < end; ++c)
          if (const auto cell = static_cast<std::make_unsigned_t<Index>>(argmax[c]);
              in_map(cell, cells))
            sums[cell * width + c] += semantics::widen(grad[c]);
      }
    }
  }
  if (in_place) return;
  for (int64_t cell = 0; cell < cells; ++cell)
    put_run(result + cell * channels, sums + cell * width, width, false);
}

}  // namespace

template <typename T, typename Index>
RoiPoolGradientKernels<T, Index> roi_pool_gradient_kernels() {
  return {scatter_planes<T, Index>, scatter_cells<T, Index>};
}

#define FRCNN_INSTANTIATE(T, Index) \
  template RoiPoolGradientKernels<T, Index> roi_pool_gradient_kernels();
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)

}  // namespace fastrcnn_engine::cpu::FRCNN_SET
