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
// numbered by int16_t, -1 for none. The warps of a block take RoIs one after the other. The lanes of a warp
// are (column of bins, quad): neighbouring lanes read the quads of one cell, and each goes down its column.

// Warps of a block, as many as have registers enough. In a trial on an H200 24 hid more of each other's waits
// than 16 did: 105 and 124 us for 2000 RoIs, values only.
template <typename T, bool WithArgmax>
constexpr int kMostWarps = sizeof(T) == 2 || WithArgmax ? 20 : 24;

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

// Maxima of ordered numbers, with argmax each with a cell; two cells of 16-bit numbers together.
template <typename T, bool WithArgmax>
struct Best {
  static constexpr int kWords = 4;
  Quad<T> values;
  unsigned cells[kWords];

  __device__ static Best of(const Quad<T>& values, int cell) {
    Best best{values, {}};
    if constexpr (WithArgmax)
      for (unsigned& word : best.cells) word = words_of(cell);
    return best;
  }
  // Of equal ones those that are here stay.
  __device__ void meet(const Quad<T>& others, int cell) { meet(others, [&](int) { return words_of(cell); }); }
  __device__ void meet(const Best& others) { meet(others.values, [&](int i) { return others.cells[i]; }); }

  template <typename Cells>
  __device__ void meet(const Quad<T>& others, const Cells& other_cells) {
    if constexpr (WithArgmax) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        Compared<T> x, y;
        memcpy(&x, values.numbers + i * kQuad<T> / kWords, 4);
        memcpy(&y, others.numbers + i * kQuad<T> / kWords, 4);
        if constexpr (sizeof(T) == 2) {
          const unsigned better = __hgt2_mask(y, x);
          cells[i] = (better & other_cells(i)) | (~better & cells[i]);
        } else {
          cells[i] = y > x ? other_cells(i) : cells[i];
        }
      }
    }
    values = maxima<T>(values, others);
  }
  __device__ int cell(int c) const {
    return static_cast<int>(sizeof(T) == 2 ? cells[c / 2] >> (c % 2 * 16) & 0xffff : cells[c]);
  }
  __device__ static unsigned words_of(int cell) {
    return static_cast<unsigned>(cell) * (sizeof(T) == 2 ? 0x10001 : 1);
  }
};

// Whether the numbers of a quad are ordered. Those of 16 bits are looked at by twos.
template <typename T>
__device__ bool is_ordered(const Quad<T>& quad) {
  constexpr unsigned signs = sizeof(T) == 2 ? 0x80008000 : 0x80000000;
  constexpr unsigned infinities = std::is_same_v<T, float>     ? 0x7f800000
                                  : std::is_same_v<T, float16> ? 0x7c007c00
                                                               : 0x7f807f80;
  unsigned disorder = 0;
#pragma unroll
  for (const unsigned word : semantics::same_bits<Vector<unsigned, 4>>(quad).numbers) {
    const unsigned magnitudes = word & ~signs;
    // The sign bits of those beyond infinity, and of those that have one and are not less than 0.
    disorder |= (magnitudes + (~signs - infinities)) | ((signs - magnitudes) & word);
  }
  return (disorder & signs) == 0;
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

// Calls load(cell) for the cells of this thread, `Together` at a time, and puts them in the slab. Each time
// waits for the memory once; so what is left over is one more time, in which who has no cell loads the last.
// Returns whether they are ordered, if that is asked.
template <bool Asked, int Together, typename T, int Quads, typename Load>
__device__ bool fill_cells(int cells, Quad<T>* slab, const Load& load) {
  const int step = static_cast<int>(blockDim.x) / Quads, last = cells - 1;
  bool ordered = true;
  for (int cell = static_cast<int>(threadIdx.x) / Quads; cell < cells; cell += Together * step) {
    Quad<T> values[Together];
#pragma unroll
    for (int i = 0; i < Together; ++i) values[i] = load(cell + i * step < last ? cell + i * step : last);
#pragma unroll
    for (int i = 0; i < Together; ++i) {
      if (cell + i * step < cells) slab[(cell + i * step) * Quads] = values[i];
      if constexpr (Asked) ordered &= is_ordered<T>(values[i]);
    }
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
    return fill_cells<Asked, 8, T, Quads>(cells, slab, [&](int cell) {
      return *reinterpret_cast<const Quad<T>*>(first + cell * cell_stride);
    });
  // Without a condition where none is needed, which is nearly everywhere.
  const auto by_channels = [&](auto all) {
    constexpr bool is_all = decltype(all)::value;
    // As many as have registers: a number of 16 bits takes one too, until it is joined to others.
    constexpr int together = !is_all ? 2 : sizeof(T) == 2 ? 3 : 8;
    return fill_cells<Asked, together, T, Quads>(cells, slab, [&](int cell) {
      Quad<T> values{};
      const T* from = first + cell * cell_stride;
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c, from += place.stride)
        if (is_all || c < place.count) values.numbers[c] = *from;
      return values;
    });
  };
  return place.count == kQuad<T> ? by_channels(std::true_type{}) : by_channels(std::false_type{});
}

// The rows or columns of a bin, in one word.
struct SlabRange {
  unsigned bits;

  __device__ static SlabRange of(int64_t begin, int64_t end) {
    return {static_cast<unsigned>(begin) | static_cast<unsigned>(end) << 16};
  }
  __device__ int begin() const { return static_cast<int>(bits & 0xffff); }
  __device__ int end() const { return static_cast<int>(bits >> 16); }
  __device__ int size() const { return end() - begin(); }
};

// So many RoIs a warp takes together while there are many left: most of its lanes find a range.
constexpr int kBatch = 4;

// What a warp has in shared memory: for each RoI of a batch the ranges of its rows of bins and, after them,
// of its columns. Where a result lies in planes, also a RoI's part of it, [channel][bin], as it will lie
// there: neighbouring lanes hold the same bins of many planes, and would write a little of each. On an H200
// that took most of 268 us for 2000 RoIs, and of 696 with argmax; now all takes 115 and 215.
template <typename T>
struct WarpMemory {
  SlabRange* ranges;
  T* values;
  int16_t* cells;

  // For `ranges` a RoI and `planes` numbers of a result. Returns the bytes.
  FRCNN_HD static int64_t divide(char* memory, int64_t ranges, int64_t planes, bool with_argmax,
                                 WarpMemory& parts) {
    const int64_t values = round_up(kBatch * ranges * static_cast<int64_t>(sizeof(SlabRange)));
    const int64_t cells = values + round_up(planes * static_cast<int64_t>(sizeof(T)));
    parts = {reinterpret_cast<SlabRange*>(memory), reinterpret_cast<T*>(memory + values),
             reinterpret_cast<int16_t*>(memory + cells)};
    return cells + (with_argmax ? round_up(planes * static_cast<int64_t>(sizeof(int16_t))) : 0);
  }
  FRCNN_HD static int64_t round_up(int64_t bytes) { return ceil_div(bytes, 16) * 16; }
};

// RoIs of a share, every `shares`-th, that a warp takes together; their numbers are in the first lanes.
struct TakenRois {
  int first, count;
  float number;

  // `taken` counts for all warps of the block. Nobody minds who has which.
  __device__ static TakenRois next(const View<const float, 2>& rois, int64_t share, int64_t shares, int total,
                                   int* taken) {
    int first = 0, count = 0;
    if (lane_of() == 0) {
      const int left = total - *const_cast<volatile int*>(taken);
      count = left > 2 * kBatch * static_cast<int>(blockDim.x) / kWarp ? kBatch : 1;
      first = atomicAdd(taken, count);
    }
    first = __shfl_sync(kAllLanes, first, 0), count = __shfl_sync(kAllLanes, count, 0);
    count = count < total - first ? count : total - first;  // none where it is negative
    const int lane = lane_of();
    const int64_t row = share + (first + lane / 5) * shares;
    return {first, count, lane < 5 * count ? rois.data[5 * row + lane % 5] : 0.0f};
  }
  __device__ float at(int roi, int i) const { return __shfl_sync(kAllLanes, number, 5 * roi + i); }
};

// All empty where a RoI has no image.
template <typename T, typename Index>
__device__ void find_ranges(const RoiPoolForward<T, Index>& call, const TakenRois& rois, SlabRange* ranges) {
  const int ph = static_cast<int>(call.output.h), pw = static_cast<int>(call.output.w), each = ph + pw;
#pragma unroll 1
  for (int first = 0; first < rois.count * each; first += kWarp) {
    const int i = first + lane_of();
    const int roi = i / each < kBatch ? i / each : kBatch - 1, bin = i % each;
    const bool is_row = bin < ph;
    const float image = rois.at(roi, 0);
    const float begin = rois.at(roi, is_row ? 2 : 1), end = rois.at(roi, is_row ? 4 : 3);
    const BinRange range = semantics::bin_range(
        semantics::roi_span(begin, end, call.spatial_scale, is_row ? ph : pw), is_row ? bin : bin - ph,
        is_row ? call.features.h : call.features.w);
    const bool has_image = semantics::roi_image(image, call.features.n) >= 0;
    if (i < rois.count * each) ranges[i] = SlabRange::of(range.begin, has_image ? range.end : range.begin);
  }
}

// The cells of a column of bins in a line of the map, by twos. Of an odd number the last two overlap with
// those before; one alone is a pair with itself. Cells of 64 bytes lie in the banks of the even or of the odd
// ones. So of every pair neighbouring columns read another one first.
template <int Quads>
struct Pairs {
  int first_x, last_x;    // of the first pair and of the last
  int first[2], last[2];  // quads from the line's begin to their cells
  int length;             // quads of the pairs before the last

  __device__ Pairs(SlabRange x, int column) {
    const int count = x.size();
    first_x = count > 0 ? x.begin() : 0;
    last_x = count > 1 ? x.end() - 2 : first_x;
    length = count > 2 ? (count - 1) / 2 * 2 * Quads : 0;
    const int other = count > 1 ? 1 : 0, turned = (first_x + column) & other;
    const int last_turned = (last_x + column) & other;
    first[0] = (first_x + turned) * Quads, first[1] = (first_x + other - turned) * Quads;
    last[0] = (last_x + last_turned) * Quads, last[1] = (last_x + other - last_turned) * Quads;
  }
};

// Whether any lane has bins of more than one pair a line, and of more than two: the same in all lanes, which
// then stay together.
struct Widths {
  bool two, more;
};

// The best of a line of a bin: `line` is where it begins in the slab, `cell` that cell.
template <typename T, bool WithArgmax, int Quads>
__device__ Best<T, WithArgmax> best_of_line(const Quad<T>* line, int cell, const Pairs<Quads>& pairs,
                                            Widths widths) {
  using Bests = Best<T, WithArgmax>;
  const auto pair = [&](int a, int b) { return maxima<T>(whole(line + a), whole(line + b)); };
  const Quad<T> last = pair(pairs.last[0], pairs.last[1]);
  if (!widths.two) return Bests::of(last, cell + pairs.last_x);
  Bests best = Bests::of(pair(pairs.first[0], pairs.first[1]), cell + pairs.first_x);
  // Apart from the loop, for whose sake a register a channel would be made of the first pair's cell.
  if (!widths.more) {
    best.meet(last, cell + pairs.last_x);
    return best;
  }
  int x = pairs.first_x + 2;
#pragma unroll 1
  for (int at = 2 * Quads; at < pairs.length; at += 2 * Quads, x += 2)
    best.meet(pair(pairs.first[0] + at, pairs.first[1] + at), cell + x);
  best.meet(last, cell + pairs.last_x);
  return best;
}

// The bins of a column, one after the other: calls write(row of bins, values, cells) for `begin` to `end`.
template <bool Ordered, bool WithArgmax, int Quads, typename T, typename Write>
__device__ void pool_column(int width, const SlabRange* rows, SlabRange x, Widths widths, int column,
                            int begin, int end, const Quad<T>* slab, const Write& write) {
  const Pairs<Quads> pairs(x, column);
  [[maybe_unused]] Best<T, WithArgmax> line;  // the line read last, which may be the next bin's first
  [[maybe_unused]] int line_read = -1;
#pragma unroll 1
  for (int bin_row = begin; bin_row < end; ++bin_row) {
    const SlabRange y = rows[bin_row];
    const bool empty = x.size() <= 0 || y.size() <= 0;
    const int row = y.begin();
    int left = empty ? 0 : y.size();
    Quad<T> values{};
    Vector<int16_t, kQuad<T>> cells;
    if constexpr (Ordered) {
      if (empty) {
        for (int16_t& cell : cells.numbers) cell = -1;
        write(bin_row, values, cells);
        continue;
      }
      int cell = row * width;
      const Quad<T>* from = slab + cell * Quads;
      if (row != line_read) line = best_of_line<T, WithArgmax>(from, cell, pairs, widths);
      line_read = row + left - 1;
      auto best = line;
#pragma unroll 1
      for (from += width * Quads, cell += width; --left > 0; from += width * Quads, cell += width) {
        line = best_of_line<T, WithArgmax>(from, cell, pairs, widths);
        best.meet(line);
      }
      values = best.values;
      if constexpr (WithArgmax) {
#pragma unroll
        for (int c = 0; c < kQuad<T>; ++c) {
          // Which of the pair it is.
          using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
          const int first = best.cell(c);
          const bool is_first = semantics::same_bits<Bits>(slab[first * Quads].numbers[c]) ==
                                semantics::same_bits<Bits>(values.numbers[c]);
          cells.numbers[c] = static_cast<int16_t>(is_first ? first : first + 1);
        }
      }
    } else {
      const int columns = x.size();
      int cell = empty ? 0 : row * width + x.begin();
      const Quad<T> corner = whole(slab + cell * Quads);
      Maximum<T, int> best[kQuad<T>];
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c) best[c].begin(corner.numbers[c], empty ? -1 : cell);
#pragma unroll 1
      for (; left > 0; --left, cell += width - columns)
#pragma unroll 1
        for (const int line_end = cell + columns; cell < line_end; ++cell) {
          const Quad<T> others = whole(slab + cell * Quads);
#pragma unroll
          for (int c = 0; c < kQuad<T>; ++c) best[c].meet(others.numbers[c], cell);
        }
#pragma unroll
      for (int c = 0; c < kQuad<T>; ++c) {
        values.numbers[c] = empty ? T{} : best[c].result(corner.numbers[c]);
        cells.numbers[c] = static_cast<int16_t>(best[c].cell);
      }
    }
    write(bin_row, values, cells);
  }
}

// `count` numbers from shared memory to a result, by one warp; by 16 bytes where the result may.
template <typename N, typename M>
__device__ void copy_out(const M* from, N* to, int count) {
  constexpr int together = 16 / sizeof(N);
  int whole_vectors = 0;
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0) whole_vectors = count / together;
#pragma unroll 2
  for (int i = lane_of(); i < whole_vectors; i += kWarp) {
    const auto some = reinterpret_cast<const Vector<M, together>*>(from)[i];
    Vector<N, together> vector;
#pragma unroll
    for (int k = 0; k < together; ++k) vector.numbers[k] = static_cast<N>(some.numbers[k]);
    reinterpret_cast<Vector<N, together>*>(to)[i] = vector;
  }
  for (int i = whole_vectors * together + lane_of(); i < count; i += kWarp) to[i] = static_cast<N>(from[i]);
}

template <typename N, typename M, int Count>
__device__ void put(const Vector<M, Count>& values, N* to, const QuadPlace& place) {
  Vector<N, Count> vector;
#pragma unroll
  for (int c = 0; c < Count; ++c) vector.numbers[c] = static_cast<N>(values.numbers[c]);
  if (place.is_whole) {
    *reinterpret_cast<Vector<N, Count>*>(to) = vector;
    return;
  }
#pragma unroll
  for (int c = 0; c < Count; ++c, to += place.stride) {
    if (c >= place.count) return;
    *to = vector.numbers[c];
  }
}

// The RoIs that a warp takes of a share, for the channels of a slab, `channel` and on.
template <bool Ordered, bool WithArgmax, bool ByPlanes, int Quads, typename T, typename Index>
__device__ void pool_rois(const RoiPoolForward<T, Index>& call, int64_t image, int64_t share, int64_t shares,
                          int64_t channel, const Quad<T>* slab, const WarpMemory<T>& memory, int* taken) {
  constexpr int together = kWarp / Quads, slab_channels = Quads * kQuad<T>;
  const int ph = static_cast<int>(call.output.h), pw = static_cast<int>(call.output.w), bins = ph * pw;
  const int width = static_cast<int>(call.features.w);
  const int quad = lane_of() % Quads, slot = lane_of() / Quads;
  // Where columns are few, several groups of lanes share the rows.
  const int groups = pw < together ? together / pw : 1, group = pw < together ? slot / pw : 0;
  const int first_column = pw < together ? slot % pw : slot;
  const int begin = group * ph / groups, end = group < groups ? (group + 1) * ph / groups : begin;
  const bool is_whole = has_whole_quads<T>(call.output) &&
                        (!WithArgmax || has_whole_quads<T>(call.argmax));
  const QuadPlace place = QuadPlace::of(call.output, channel + quad * kQuad<T>, is_whole);
  const int64_t left = call.output.c - channel, row_stride = call.output.c * bins;
  const int planes = static_cast<int>(left < slab_channels ? left : slab_channels) * bins;
  const auto bin_stride = static_cast<int>(call.output.cell_stride());
  const int64_t origin = call.output.offset(0, ByPlanes ? channel : channel + quad * kQuad<T>, 0);
  const int total = static_cast<int>(ceil_div(call.rois.shape[0] - share, shares));
  TakenRois next = TakenRois::next(call.rois, share, shares, total, taken);
  while (next.count > 0) {
    const TakenRois rois = next;
    next = TakenRois::next(call.rois, share, shares, total, taken);  // on its way while these are pooled
    __syncwarp();  // the ranges before these are done with
    find_ranges(call, rois, memory.ranges);
    __syncwarp();
#pragma unroll 1
    for (int roi = 0; roi < rois.count; ++roi) {
      const int64_t its_image = semantics::roi_image(rois.at(roi, 0), call.features.n);
      // Rows of no image are empty ones of the first.
      if (its_image != image && !(its_image < 0 && image == 0)) continue;
      const SlabRange* const rows = memory.ranges + roi * (ph + pw);
      const SlabRange* const columns = rows + ph;
      const int64_t to = origin + (share + (rois.first + roi) * shares) * row_stride;
      int widest = 0;
#pragma unroll 1
      for (int column = first_column; column < pw; column += together)
        widest = columns[column].size() > widest ? columns[column].size() : widest;
      const Widths widths{__ballot_sync(kAllLanes, widest > 2) != 0,
                          __ballot_sync(kAllLanes, widest > 4) != 0};
#pragma unroll 1
      for (int column = first_column; column < pw; column += together)
        pool_column<Ordered, WithArgmax, Quads>(
            width, rows, columns[column], widths, column, begin, end, slab,
            [&](int row, const Quad<T>& values, const Vector<int16_t, kQuad<T>>& cells) {
              const int bin = row * pw + column;
              if constexpr (ByPlanes) {
                const int first = quad * kQuad<T> * bins + bin;
#pragma unroll
                for (int c = 0; c < kQuad<T>; ++c) {
                  memory.values[first + c * bins] = values.numbers[c];
                  if constexpr (WithArgmax) memory.cells[first + c * bins] = cells.numbers[c];
                }
              } else if (place.count > 0) {
                put(values, call.output.data + to + bin * bin_stride, place);
                if constexpr (WithArgmax) put(cells, call.argmax.data + to + bin * bin_stride, place);
              }
            });
      if constexpr (ByPlanes) {
        __syncwarp();
        copy_out(memory.values, call.output.data + to, planes);
        if constexpr (WithArgmax) copy_out(memory.cells, call.argmax.data + to, planes);
        __syncwarp();  // the next RoI's may lie there
      }
    }
  }
}

// A block is (slab, image, share): every `shares`-th RoI is pooled by this one. `planes`: see WarpMemory.
template <typename T, typename Index, bool WithArgmax, bool ByPlanes, int Quads>
__global__ __launch_bounds__(kMostWarps<T, WithArgmax>* kWarp, 1) void pool_slabs_kernel(
    RoiPoolForward<T, Index> call, int64_t shares, int64_t planes) {
  constexpr int slab_channels = Quads * kQuad<T>;
  Quad<T>* const slab = reinterpret_cast<Quad<T>*>(dynamic_shared);
  uint4* const counter = reinterpret_cast<uint4*>(slab + call.features.cells() * Quads);
  int* const taken = reinterpret_cast<int*>(counter);
  char* const behind = reinterpret_cast<char*>(counter + 1);
  const int64_t ranges = call.output.h + call.output.w;
  WarpMemory<T> memory;
  const int64_t bytes = WarpMemory<T>::divide(behind, ranges, planes, WithArgmax, memory);
  WarpMemory<T>::divide(behind + warp_of() * bytes, ranges, planes, WithArgmax, memory);
  const int64_t slabs = ceil_div(call.features.c, slab_channels), images = call.features.n;
  const int quad = lane_of() % Quads;
  Quad<T>* const mine = slab + quad;  // the quads that this lane fills are those it reads
  const bool read_whole = has_whole_quads<T>(call.features);
  for (int64_t block = blockIdx.x; block < slabs * images * shares; block += gridDim.x) {
    const int64_t image = block / slabs % images, share = block / slabs / images;
    const int64_t channel = block % slabs * slab_channels;
    __syncthreads();  // the slab before this one is done with
    if (threadIdx.x == 0) *taken = 0;
    const bool ordered = __syncthreads_and(fill_slab<kHasMaximum<T>, T, Quads>(
        call.features, image, channel + quad * kQuad<T>, read_whole, mine));
    if constexpr (kHasMaximum<T>)
      if (ordered) {
        pool_rois<true, WithArgmax, ByPlanes, Quads>(call, image, share, shares, channel, mine, memory,
                                                     taken);
        continue;
      }
    pool_rois<false, WithArgmax, ByPlanes, Quads>(call, image, share, shares, channel, mine, memory, taken);
  }
}

// ---- launches -----------------------------------------------------------------------------------------

// A block of pool_slabs_kernel: its warps, 0 where a slab does not fit, and its shared memory.
struct SlabBlock {
  int64_t warps, planes, bytes;

  template <int Quads, typename T, typename Index>
  static SlabBlock of(const RoiPoolForward<T, Index>& call, int64_t limit) {
    const bool with_argmax = call.argmax.data != nullptr;
    const int64_t most = with_argmax ? kMostWarps<T, true> : kMostWarps<T, false>;
    const int64_t slab = call.features.cells() * Quads * 16 + static_cast<int64_t>(sizeof(uint4));
    const auto block = [&](int64_t planes) {
      WarpMemory<T> none;
      const int64_t bytes = WarpMemory<T>::divide(nullptr, call.output.h + call.output.w, planes,
                                                  with_argmax, none);
      const int64_t warps = slab > limit ? 0 : std::min<int64_t>(most, (limit - slab) / bytes);
      return SlabBlock{warps, planes, slab + warps * bytes};
    };
    const bool by_planes = call.output.layout == Layout::nchw &&
                           (!with_argmax || call.argmax.layout == Layout::nchw);
    if (by_planes) {
      const SlabBlock shape = block(Quads * kQuad<T> * call.output.cells());
      if (shape.warps >= kFewestWarps) return shape;
    }
    const SlabBlock shape = block(0);
    return shape.warps >= kFewestWarps ? shape : SlabBlock{};
  }
  static constexpr int64_t kFewestWarps = 8;
};

template <int Quads, typename T, typename Index>
void launch_slabs(const RoiPoolForward<T, Index>& call, const SlabBlock& block, const Stream& stream) {
  const int64_t blocks = ceil_div(call.features.c, Quads * kQuad<T>) * call.features.n;
  // As many shares as keep every multiprocessor busy: each costs another copy of the slab.
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount, stream);
  const int64_t most = ceil_div(call.rois.shape[0], block.warps);
  const int64_t shares = std::clamp<int64_t>(processors / blocks, 1, most);
  const BlockShape shape{static_cast<int>(block.warps) * kWarp, block.bytes};
  const auto launch = [&](auto kernel) {
    launch_blocks("roi_pool_forward", kernel, blocks * shares, shape, stream, call, shares, block.planes);
  };
  const auto launch_by = [&](auto by_planes) {
    if (call.argmax.data != nullptr)
      launch(pool_slabs_kernel<T, Index, true, decltype(by_planes)::value, Quads>);
    else if constexpr (std::is_same_v<Index, int32_t>)
      launch(pool_slabs_kernel<T, Index, false, decltype(by_planes)::value, Quads>);
  };
  block.planes > 0 ? launch_by(std::true_type{}) : launch_by(std::false_type{});
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
  // A slab is worth its copy where the RoIs read the map several times over. In a trial on an H200 16 RoIs
  // took 15 us directly and 20 by slabs, 32 took 25 and 20.
  constexpr int64_t kFewRois = 32;
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
  const int64_t cells = call.features.cells(), images = call.features.n;
  const bool slabs = call.rois.shape[0] >= kFewRois * images && images > 0 && cells > 0 &&
                     call.rois.shape[0] <= std::numeric_limits<int>::max() / kBatch &&
                     cells <= std::numeric_limits<int16_t>::max() &&
                     call.output.cells() <= std::numeric_limits<int>::max() / 2 &&
                     call.output.c * call.output.cells() <= std::numeric_limits<int>::max();  // of a RoI
  const SlabBlock wide = slabs ? SlabBlock::of<4>(call, limit) : SlabBlock{};
  const SlabBlock narrow = slabs ? SlabBlock::of<1>(call, limit) : SlabBlock{};
  if (wide.warps > 0)
    launch_slabs<4>(call, wide, stream);
  else if (narrow.warps > 0)
    launch_slabs<1>(call, narrow, stream);
  else
    launch_threads("roi_pool_forward", pool_directly_kernel<T, Index>, call.output.size(), stream, call);
}

#define FRCNN_INSTANTIATE(T, Index) \
  template void roi_pool_forward(const RoiPoolForward<T, Index>&, const Stream&);
FRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)
#undef FRCNN_INSTANTIATE

}  // namespace fastrcnn_engine::cuda
