// What suppression asks of its kernels, which exist once per instruction set.
#pragma once

#include <cstdint>

#include "fastrcnn_engine/semantics/box_codec.h"
#include "instruction_set.h"

namespace fastrcnn_engine::cpu {

constexpr int kTileBoxes = 16;  // whole vectors of every set: the longest has 16 floats
constexpr int kTileStep = 4;    // a list of more than one tile has a multiple of so many: the most of a step

// Kept boxes side by side. Places not taken hold boxes that overlap nothing.
template <typename T>
struct alignas(64) KeptTile {
  T x1[kTileBoxes], y1[kTileBoxes], x2[kTileBoxes], y2[kTileBoxes], area[kTileBoxes];
};

// The first `count` places of one tile or of a multiple of kTileStep, lying together.
struct KeptList {
  int64_t first = 0, tiles = 0, count = 0;
};

// The lists of a class. Their tiles are among `tiles`.
template <typename T>
struct KeptLists {
  const KeptTile<T>* tiles;
  const KeptList* lists;
  uint32_t mask;  // how many lists there are, less one
};

template <typename T>
struct SuppressionRule {
  T threshold;
  T side;  // as in semantics::area
};

template <typename T>
struct NmsKernels {
  // Whether a kept box in list l & mask, first <= l <= last, suppresses this one.
  bool (*suppressed)(const KeptLists<T>& kept, uint32_t first, uint32_t last,
                     const semantics::Box<T>& box, T area, const SuppressionRule<T>& rule);
  // Writes the positions of the scores that are greater than the threshold, rising, and returns how
  // many there are.
  int32_t (*positions_above)(const T* scores, int32_t count, T threshold, int32_t* positions);
};

#define FRCNN_DECLARE(set)        \
  namespace set {                 \
  template <typename T>           \
  NmsKernels<T> nms_kernels();    \
  }
FRCNN_FOR_EACH_SET(FRCNN_DECLARE)
#undef FRCNN_DECLARE

}  // namespace fastrcnn_engine::cpu
