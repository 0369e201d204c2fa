// RoI max pooling: a slab of channels lies in shared memory and every RoI is pooled from there; what does not
// fit, and few RoIs, directly from the map. The gradient is in roi_pool_gradient.cu.
#include "fastrcnn_engine/roi_pool.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <limits>
#include <type_traits>

#include "fastrcnn_engine/semantics/roi_bins.h"
#include "half.cuh"
#include "launch.cuh"

namespace fastrcnn_engine::cuda {
namespace {

using semantics::BinRange;
using semantics::RoiSpan;

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
// A slab is `Quads` times 16 bytes of channels of every cell of one image: [cell][channels]. Its cells are
// numbered by int16_t, -1 for none. The lanes of a warp are (bin, quad): neighbouring lanes read the quads of
// one cell, and a RoI's bins take turns.

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

// Numbers are ordered where no NaN and no -0 is among them. Then whichever beats the others is their maximum
// to the machine as well, which takes one instruction for a float or for two numbers of 16 bits.
template <typename T>
using Compared = std::conditional_t<
    std::is_same_v<T, float16>, __half2,
    std::conditional_t<std::is_same_v<T, bfloat16>, __nv_bfloat162, T>>;

template <typename C>
__device__ C maximum(C a, C b) {
  if constexpr (std::is_same_v<C, float>)
    return fmaxf(a, b);
  else
    return __hmax2(a, b);
}

// Whether the machine has that instruction. Others take several, more than comparing each number does.
template <typename T>
constexpr bool kHasMaximum = std::is_same_v<T, float> || (FRCNN_MAXIMA_BY_TWO && sizeof(T) == 2);

template <typename T>
__device__ Quad<T> maxima(const Quad<T>& a, const Quad<T>& b) {
  constexpr int size = sizeof(Compared<T>);
  Quad<T> result;
#pragma unroll
  for (int i = 0; i < kQuad<T>; i += size / sizeof(T)) {
    Compared<T> x, y;
    memcpy(&x, a.numbers + i, size), memcpy(&y, b.numbers + i, size);
    x = maximum(x, y);
    memcpy(result.numbers + i, &x, size);
  }
  return result;
}

// The same of 16-bit numbers with their cells, two of either together.
template <typename T>
__device__ void meet(Quad<T>& best, unsigned (&cells)[kQuad<T> / 2], const Quad<T>& others, int cell) {
#pragma unroll
  for (int i = 0; i < kQuad<T> / 2; ++i) {
    Compared<T> x, y;
    memcpy(&x, best.numbers + 2 * i, 4), memcpy(&y, others.numbers + 2 * i, 4);
    const unsigned better = __hgt2_mask(y, x);
    cells[i] = (better & (static_cast<unsigned>(cell) * 0x10001)) | (~better & cells[i]);
  }
  best = maxima<T>(best, others);
}

// Whether the numbers of a quad are ordered. Those of 16 bits are looked at by twos.
template <typename T>
__device__ bool is_ordered(const Quad<T>& quad) {
  unsigned disorder = 0;
  if constexpr (sizeof(T) == 2) {
    constexpr unsigned signs = 0x80008000;
    constexpr unsigned infinities = std::is_same_v<T, float16> ? 0x7c007c00 : 0x7f807f80;
#pragma unroll
    for (const unsigned two : semantics::same_bits<Vector<unsigned, 4>>(quad).numbers) {
      const unsigned magnitudes = two & ~signs;
      // The sign bits of those beyond infinity, and of those that have one and are not less than 0.
      disorder |= (magnitudes + (~signs - infinities)) | ((signs - magnitudes) & two);
    }
    disorder &= signs;
  } else {
    constexpr unsigned minus_zero = 0x80000000;
#pragma unroll
    for (const T number : quad.numbers)
      disorder |= unsigned{number != number} |
                  unsigned{semantics::same_bits<unsigned>(number) == minus_zero};
  }
  return disorder == 0;
}

// A quad in one load, whatever becomes of its parts.
template <typename T, int Count>
__device__ Vector<T, Count> whole(const Vector<T, Count>* quad) {
  const uint4 words = *reinterpret_cast<const uint4*>(quad);
  return semantics::same_bits<Vector<T, Count>>(words);
}

// Whether the channels of a quad lie together, and where vectors may.
template <typename T, typename N>
__device__ bool has_whole_quads(const MapView<N>& map) {
  return map.layout == Layout::nhwc && map.c % kQuad<T> == 0 &&
         reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

// Where the numbers of a quad lie in a map: those of `channel` and on. Counted by int, of which one
// instruction compares two and one adds one to an address.
struct QuadPlace {
  bool is_whole;
  int count;   // of the channels that there are
  int stride;  // from one to the next

  template <typename T>
  __device__ static QuadPlace of(const MapView<T>& map, int64_t channel, bool is_whole) {
    const int64_t left = map.c - channel;
    const auto count = static_cast<int>(left < 0 ? 0 : left < kQuad<T> ? left : kQuad<T>);
    return {is_whole, count, static_cast<int>(map.channel_stride())};
  }
};

constexpr int kTogether = 4;  // loads under way together

// Calls load(cell) for kTogether cells of this thread and puts them in the slab, until all are there.
// Returns whether they are ordered, if that is asked.
template <bool Asked, typename T, int Quads, typename Load>
__device__ bool fill_cells(int cells, Quad<T>* slab, const Load& load) {
  constexpr int step = kSlabThreads / Quads;
  int cell = static_cast<int>(threadIdx.x) / Quads;
  bool ordered = true;
  for (; cell + (kTogether - 1) * step < cells; cell += kTogether * step) {
    Quad<T> values[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) values[i] = load(cell + i * step);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      slab[(cell + i * step) * Quads] = values[i];
      if constexpr (Asked) ordered &= is_ordered<T>(values[i]);
    }
  }
  for (; cell < cells; cell += step) {
    const Quad<T> values = load(cell);
    slab[cell * Quads] = values;
    if constexpr (Asked) ordered &= is_ordered<T>(values);
  }
  return ordered;
}

// The slab from `channel` on; 0 for channels that a last slab lacks. `slab` is where this lane's quads lie.
// Returns whether they are ordered, if that is asked.
template <bool Asked, typename T, int Quads>
__device__ bool fill_slab(const MapView<const T>& map, int64_t image, int64_t channel, bool whole_quads,
                          Quad<T>* slab) {
  const int cells = static_cast<int>(map.cells());
  const QuadPlace place = QuadPlace::of(map, channel, whole_quads);
  const T* const first = map.data + map.offset(image, channel, 0);
  const int64_t cell_stride = map.cell_stride();
  if (place.is_whole && place.count > 0)
    return fill_cells<Asked, T, Quads>(cells, slab, [&](int cell) {
      return *reinterpret_cast<const Quad<T>*>(first + cell * cell_stride);
    });
  // Without a condition where none is needed, which is nearly everywhere.
  const auto by_channels = [&](auto all) {
    return fill_cells<Asked, T, Quads>(cells, slab, [&](int cell) {
      Quad<T> values{};
      const T* from = first + cell * cell_stride;
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c, from += place.stride)
        if (decltype(all)::value || c < place.count) values.numbers[c] = *from;
      return values;
    });
  };
  return place.count == kQuad<T> ? by_channels(std::true_type{}) : by_channels(std::false_type{});
}

template <typename N, int Count>
__device__ void put(const Vector<N, Count>& values, N* to, const QuadPlace& place) {
  if (place.is_whole) {
    *reinterpret_cast<Vector<N, Count>*>(to) = values;
    return;
  }
#pragma unroll
  for (int c = 0; c < Count; ++c, to += place.stride) {
    if (c >= place.count) return;
    *to = values.numbers[c];
  }
}

// The rows or columns of a bin.
struct SlabRange {
  uint16_t begin, end;
};

// The ranges of a RoI's rows of bins and, after them, of its columns. All empty where it has no image.
template <typename T, typename Index>
__device__ void find_ranges(const RoiPoolForward<T, Index>& call, int64_t row, bool has_image,
                            SlabRange* ranges) {
  const int ph = static_cast<int>(call.output.h), pw = static_cast<int>(call.output.w);
#pragma unroll 1
  for (int i = lane_of(); i < ph + pw; i += kWarp) {
    const bool is_row = i < ph;
    const float* const first = call.rois.data + 5 * row + (is_row ? 2 : 1);
    const BinRange range = semantics::bin_range(
        semantics::roi_span(first[0], first[2], call.spatial_scale, is_row ? ph : pw),
        is_row ? i : i - ph, is_row ? call.features.h : call.features.w);
    ranges[i] = {static_cast<uint16_t>(range.begin),
                 static_cast<uint16_t>(has_image ? range.end : range.begin)};
  }
}

// One bin of one RoI for the channels of one quad. Where argmax is not wanted there is no place for it.
template <bool Ordered, bool WithArgmax, int Quads, typename T, typename Index>
__device__ void pool_quad(int width, SlabRange y, SlabRange x, const Quad<T>* slab,
                          const QuadPlace& place, T* output, Index* argmax) {
  const bool empty = y.begin >= y.end || x.begin >= x.end;
  const int first = empty ? 0 : y.begin * width + x.begin;
  // A cell a step: lanes have bins of different sizes, and what several a step leave over would be another
  // branch for some of them.
  const auto for_each_cell = [&](const auto& meet) {
    const int columns = x.end - x.begin;
    const Quad<T>* line = slab + first * Quads;
    int cell = first;
#pragma unroll 1
    for (int rows = empty ? 0 : y.end - y.begin; rows > 0; --rows) {
      const Quad<T>* const end = line + columns * Quads;
#pragma unroll 1
      for (const Quad<T>* at = line; at < end; at += Quads) meet(whole(at), cell++);
      line += width * Quads, cell += width - columns;
    }
  };
  const Quad<T> corner = whole(slab + first * Quads);
  Quad<T> values;
  [[maybe_unused]] Vector<Index, kQuad<T>> cells;
  if constexpr (Ordered) {
    values = corner;
    if constexpr (WithArgmax) {
      unsigned two_cells[kQuad<T> / 2];
      for (unsigned& two : two_cells) two = empty ? ~0u : static_cast<unsigned>(first) * 0x10001;
      for_each_cell([&](const Quad<T>& others, int cell) { meet<T>(values, two_cells, others, cell); });
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c)
        cells.numbers[c] = static_cast<Index>(static_cast<int16_t>(two_cells[c / 2] >> (c % 2 * 16)));
    } else {
      for_each_cell([&](const Quad<T>& others, int) { values = maxima<T>(values, others); });
    }
    if (empty) values = {};
  } else {
    Maximum<T, int> best[kQuad<T>];
#pragma unroll
    for (int c = 0; c < kQuad<T>; ++c) best[c].begin(corner.numbers[c], empty ? -1 : first);
    for_each_cell([&](const Quad<T>& others, int cell) {
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c) best[c].meet(others.numbers[c], cell);
    });
#pragma unroll
    for (int c = 0; c < kQuad<T>; ++c) {
      values.numbers[c] = empty ? T{} : best[c].result(corner.numbers[c]);
      cells.numbers[c] = static_cast<Index>(best[c].cell);
    }
  }
  put(values, output, place);
  if constexpr (WithArgmax) put(cells, argmax, place);
}

// The RoIs of a warp, `row` and every `step`-th after it, for the channels of a slab, `channel` and on.
template <bool Ordered, bool WithArgmax, int Quads, typename T, typename Index>
__device__ void pool_rois(const RoiPoolForward<T, Index>& call, int64_t image, int64_t row, int64_t step,
                          int64_t channel, const Quad<T>* slab, SlabRange* ranges) {
  constexpr int together = kWarp / Quads;
  const int ph = static_cast<int>(call.output.h), pw = static_cast<int>(call.output.w);
  const int bins = ph * pw, width = static_cast<int>(call.features.w);
  const int first_bin = lane_of() / Quads, first_y = first_bin / pw, first_x = first_bin % pw;
  const int step_y = together / pw, step_x = together % pw;
  const bool is_whole = has_whole_quads<T>(call.output) &&
                        (!WithArgmax || has_whole_quads<T>(call.argmax));
  const QuadPlace place = QuadPlace::of(call.output, channel, is_whole);
  const int64_t bin_step = together * call.output.cell_stride();
  for (; row < call.rois.shape[0]; row += step) {
    const int64_t its_image = semantics::roi_image(call.rois.data[5 * row], call.features.n);
    // Rows of no image are empty ones of the first.
    if (its_image != image && !(its_image < 0 && image == 0)) continue;
    __syncwarp();  // the ranges before these are done with
    find_ranges(call, row, its_image >= 0, ranges);
    __syncwarp();
    if (place.count == 0) continue;
    const int64_t at = call.output.offset(row, channel, 0) + first_bin * call.output.cell_stride();
    T* output = call.output.data + at;
    Index* argmax = WithArgmax ? call.argmax.data + at : nullptr;
    int bin_y = first_y, bin_x = first_x;
    for (int bin = first_bin; bin < bins; bin += together) {
      pool_quad<Ordered, WithArgmax, Quads>(width, ranges[bin_y], ranges[ph + bin_x], slab, place, output,
                                            argmax);
      output += bin_step;
      if constexpr (WithArgmax) argmax += bin_step;
      bin_x += step_x, bin_y += step_y;
      if (bin_x >= pw) bin_x -= pw, ++bin_y;
    }
  }
}

// Bytes of shared memory for `cells` cells and the ranges of every warp's RoI.
inline int64_t slab_bytes(int64_t cells, int quads, int64_t ranges) {
  return cells * quads * 16 + kSlabThreads / kWarp * ranges * static_cast<int64_t>(sizeof(SlabRange));
}

// A block is (slab, image, share): every `shares`-th group of RoIs is pooled by this one.
template <typename T, typename Index, bool WithArgmax, int Quads>
__global__ __launch_bounds__(kSlabThreads, 1) void pool_slabs_kernel(
    RoiPoolForward<T, Index> call, int64_t shares) {
  constexpr int slab_channels = Quads * kQuad<T>, warps = kSlabThreads / kWarp;
  Quad<T>* const slab = reinterpret_cast<Quad<T>*>(dynamic_shared);
  SlabRange* const ranges = reinterpret_cast<SlabRange*>(slab + call.features.cells() * Quads) +
                            warp_of() * (call.output.h + call.output.w);
  const int64_t slabs = ceil_div(call.features.c, slab_channels), images = call.features.n;
  const int quad = lane_of() % Quads;
  Quad<T>* const mine = slab + quad;  // the quads that this lane fills are those it reads
  const bool read_whole = has_whole_quads<T>(call.features);
  for (int64_t block = blockIdx.x; block < slabs * images * shares; block += gridDim.x) {
    const int64_t image = block / slabs % images, share = block / slabs / images;
    const int64_t channel = block % slabs * slab_channels + quad * kQuad<T>;
    __syncthreads();  // the slab before this one is done with
    constexpr bool asked = kHasMaximum<T> && (!WithArgmax || sizeof(T) == 2);
    const bool ordered = __syncthreads_and(
        fill_slab<asked, T, Quads>(call.features, image, channel, read_whole, mine));
    const int64_t row = share * warps + warp_of(), step = shares * warps;
    if constexpr (asked)
      if (ordered) {
        pool_rois<true, WithArgmax, Quads>(call, image, row, step, channel, mine, ranges);
        continue;
      }
    pool_rois<false, WithArgmax, Quads>(call, image, row, step, channel, mine, ranges);
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
  const BlockShape shape{
      kSlabThreads, slab_bytes(call.features.cells(), Quads, call.output.h + call.output.w)};
  const auto launch = [&](auto kernel) {
    launch_blocks("roi_pool_forward", kernel, blocks * shares, shape, stream, call, shares);
  };
  if (call.argmax.data != nullptr)
    launch(pool_slabs_kernel<T, Index, true, Quads>);
  else if constexpr (std::is_same_v<Index, int32_t>)
    launch(pool_slabs_kernel<T, Index, false, Quads>);
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
                     cells <= std::numeric_limits<int16_t>::max() &&
                     call.output.cells() <= std::numeric_limits<int>::max() / 2;
  const auto fits = [&](int quads) {
    return slab_bytes(cells, quads, call.output.h + call.output.w) <= limit;
  };
  if (slabs && fits(4))
    launch_slabs<4>(call, stream);
  else if (slabs && fits(1))
    launch_slabs<1>(call, stream);
  else
    launch_threads("roi_pool_forward", pool_directly_kernel<T, Index>, call.output.size(), stream, call);
}

#define FRCNN_INSTANTIATE(T, Index) \
  template void roi_pool_forward(const RoiPoolForward<T, Index>&, const Stream&);
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)
#undef FRCNN_INSTANTIATE

}  // namespace fastrcnn_engine::cuda
