// Sorting by semantics::rank_key: falling score, then rising index.
#pragma once

#include <cstdint>
#include <vector>

#include "fastrcnn_engine/semantics/iou.h"

namespace fastrcnn_engine::cpu {

template <typename T>
struct Ranked {
  semantics::RankKey<T> key;
  int64_t index;
};

// The list must come by rising index; equal scores then stay so.
template <typename T>
void sort_by_score(std::vector<Ranked<T>>& list);

}  // namespace fastrcnn_engine::cpu
