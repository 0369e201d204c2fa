// What roi_pool.cpp asks of the RoI pooling kernels, which exist once per instruction set.
//
// Lane = channel: a kernel pools vectors of channels side by side, so a bin's cells are read as whole
// vectors and no lane does anything another does not. Of any map, a block of channels is brought into
// that order first (packed): it then lies together in the L2 cache, for all RoIs.
#pragma once

#include <cstdint>

#include "fastrcnn_engine/roi_pool.h"
#include "fastrcnn_engine/semantics/half.h"
#include "fastrcnn_engine/semantics/roi_bins.h"
#include "instruction_set.h"

namespace fastrcnn_engine::cpu {

// One RoI on its image's map: its bins' edges, computed once and used by every channel.
struct PooledRoi {
  int64_t row;                    // of rois, output and argmax
  const semantics::BinRange* ys;  // PH
  const semantics::BinRange* xs;  // PW
  int64_t cells;                  // of all bins together
};

// Rows [y, y + height) and columns [x, x + width) of a map.
struct Window {
  int64_t y, x, height, width;
  FRCNN_HD int64_t cells() const { return height * width; }
};

// RoIs of one image, and a part of its map that holds their bins.
struct RoiGroup {
  int64_t image;
  const PooledRoi* rois;
  int64_t count;
  Window window;
  bool with_quads;  // the maxima of every 2 x 2 cells are made first: no argmax is wanted, and it pays
};

template <typename T, typename Index>
struct RoiPoolKernels {
  using Forward = RoiPoolForward<T, Index>;

  int64_t block;  // channels packed together
  // Pools a group for channels [channel, channel + block), as far as there are so many. `past_caches`:
  // the result is too large to stay in them.
  void (*pool_block)(const Forward& call, const RoiGroup& group, int64_t channel, bool past_caches,
                     void* scratch);
  // Bytes of scratch memory for that, aligned to 64.
  int64_t (*block_scratch)(int64_t window_cells, int64_t bins, bool with_quads);
};

template <typename T, typename Index>
struct RoiPoolGradientKernels {
  using Backward = RoiPoolBackward<T, Index>;
  using Wide = semantics::Wide<T>;

  // Gradient of channels [channel, last) of one image, whose RoIs are `rows`, ascending. `sums` holds
  // a map of Wide for every channel, for where the result cannot be summed in: it is of another type, or
  // its rows hold other channels too. `rois`: the rows as located, or null.
  void (*scatter_planes)(const Backward& call, int64_t image, int64_t channel, int64_t last,
                         const int64_t* rows, int64_t count, Wide* sums);
  void (*scatter_cells)(const Backward& call, int64_t image, int64_t channel, int64_t last,
                        const int64_t* rows, const PooledRoi* rois, int64_t count, Wide* sums);
  bool lanes_pay;  // blocks of channels of located RoIs are faster than whole rows: vectors are long enough
};

// Bins with more cells than this, on average, are added faster one by one than by lanes. Measured.
constexpr int64_t kMostCellsByLanes = 12;

// Channels whose sums lie together: as many as leave those of a usual map in the L2 cache.
template <typename W>
constexpr int64_t kGradientBlock = 256 / sizeof(W);

#define FRCNN_DECLARE(set)                                      \
  namespace set {                                               \
  template <typename T, typename Index>                         \
  RoiPoolKernels<T, Index> roi_pool_kernels();                  \
  template <typename T, typename Index>                         \
  RoiPoolGradientKernels<T, Index> roi_pool_gradient_kernels(); \
  }
FRCNN_FOR_EACH_SET(FRCNN_DECLARE)
#undef FRCNN_DECLARE

}  // namespace fastrcnn_engine::cpu
