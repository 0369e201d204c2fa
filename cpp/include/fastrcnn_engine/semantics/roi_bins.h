// Where the bins of a region of interest lie on the feature map: the one definition, for g++ and
// nvcc. Paper section 2.1; exact rounding as in the original Caffe layer.
//
// All of it is float32 whatever the type of the features: fl32(size / P) may round up, and then the
// last bin reaches one cell further than exact arithmetic would (57 cells in 7 bins end at 58). That
// is what Caffe and torchvision compute, and pre-trained networks were trained with it.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastrcnn_engine/host_device.h"

namespace fastrcnn_engine::semantics {

// Half-open range of rows or columns.
struct BinRange {
  int64_t begin, end;
};

// The span of a RoI along one axis of the map, before it is clipped to the map.
struct RoiSpan {
  int64_t start;   // first cell
  float bin_size;  // cells per bin, not rounded
};

// Image coordinate -> cell: halves round away from zero. The clamp comes before the cast, because
// out-of-range floats convert differently on host and device; NaN becomes the low bound. Within
// +-1e9 the rule is Caffe's to the letter.
FRCNN_HD int64_t map_cell(float coordinate, float spatial_scale) {
  constexpr float bound = 1e9f;
  const float cell = roundf(coordinate * spatial_scale);
  const float clamped = cell >= -bound ? (cell <= bound ? cell : bound) : -bound;
  return static_cast<int64_t>(clamped);
}

// Both corners are inclusive; a reversed RoI is one cell at its first corner.
FRCNN_HD RoiSpan roi_span(float first, float last, float spatial_scale, int64_t bins) {
  const int64_t start = map_cell(first, spatial_scale);
  const int64_t end = map_cell(last, spatial_scale);
  const int64_t size = end - start + 1 > 1 ? end - start + 1 : 1;
  return {start, static_cast<float>(size) / static_cast<float>(bins)};
}

// The cells of bin `p`, clipped to a map of `limit` cells. Empty where end <= begin.
FRCNN_HD BinRange bin_range(const RoiSpan& span, int64_t p, int64_t limit) {
  const auto clip = [limit](int64_t x) { return x < 0 ? int64_t{0} : (x > limit ? limit : x); };
  const auto begin = static_cast<int64_t>(floorf(static_cast<float>(p) * span.bin_size));
  const auto end = static_cast<int64_t>(ceilf(static_cast<float>(p + 1) * span.bin_size));
  return {clip(span.start + begin), clip(span.start + end)};
}

// Whether a cell takes the place of the bin's maximum so far. Strict, so that the first of equals
// stays, and false for NaN. The scan starts at (-inf, none) and runs in row-major order; where nothing
// beats -inf the bin's first cell stands for it. For numbers, and lane by lane for vectors of them.
template <typename T>
FRCNN_HD auto beats(const T& candidate, const T& best) {
  return candidate > best;
}

// The image a RoI belongs to, -1 if there is no such image. Fractions are cut off, as in C.
FRCNN_HD int64_t roi_image(float batch_index, int64_t images) {
  if (!(batch_index > -1.0f && batch_index < 9e18f)) return -1;  // NaN fails too
  const auto image = static_cast<int64_t>(batch_index);
  return image < images ? image : -1;
}

}  // namespace fastrcnn_engine::semantics
