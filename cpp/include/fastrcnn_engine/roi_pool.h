// RoI max pooling (paper section 2.1) and its gradient by argmax (section 2.3, equation 4).
#pragma once

#include <cstdint>

#include "fastrcnn_engine/semantics/half.h"
#include "fastrcnn_engine/stream.h"
#include "fastrcnn_engine/tensor.h"

namespace fastrcnn_engine {

// The types that there are, as Do(T, Index).
#define FRCNN_FOR_EACH_POOLED(Do)                                          \
  Do(float, int32_t) Do(double, int32_t) Do(float16, int32_t) Do(bfloat16, int32_t) \
  Do(float, uint16_t) Do(double, uint16_t) Do(float16, uint16_t) Do(bfloat16, uint16_t)

// Bins: semantics/roi_bins.h. The first maximum in row-major order wins and NaN never beats a
// number; if nothing in a bin is greater than -inf its first cell is taken. An empty bin gives 0 and
// argmax -1.
//
// T is float, double, float16 or bfloat16. Index is int32_t, or uint16_t for maps of
// fewer than 65536 cells, where 65535 stands for -1.
template <typename T, typename Index = int32_t>
struct RoiPoolForward {
  MapView<const T> features;    // (N, C, H, W)
  View<const float, 2> rois;    // (R, 5): batch index, x1, y1, x2, y2 in image pixels, inclusive
  float spatial_scale = 1.0f;   // cells per image pixel
  MapView<T> output;            // (R, C, PH, PW), the layout of features
  MapView<Index> argmax;        // the same, h * W + w of the maximum or -1; null data: not wanted
  int threads = 0;              // at most, on the CPU; 0: num_threads() of threads.h
};

// Adds each output's gradient to the cell its argmax names, in ascending order of (RoI, bin), so the
// result does not depend on the machine. grad_input is overwritten. An argmax outside the map, or a
// RoI without an image, passes nothing. 16-bit gradients are summed in float32 and rounded once.
template <typename T, typename Index = int32_t>
struct RoiPoolBackward {
  MapView<const T> grad_output;     // (R, C, PH, PW)
  MapView<const Index> argmax;      // (R, C, PH, PW), same layout
  View<const float, 2> rois;        // (R, 5)
  MapView<T> grad_input;            // (N, C, H, W), same layout
  int threads = 0;                  // as above
  // That of the forward pass, where known: it tells in which cells an argmax may be, which makes it faster on
  // some machines and changes no result (but the bits of a NaN). 0: of rois only the batch index is read.
  float spatial_scale = 0;
};

// Shapes and layouts that do not fit: InvalidArgument. Both backends call these.
template <typename T, typename Index>
void check(const RoiPoolForward<T, Index>& call);
template <typename T, typename Index>
void check(const RoiPoolBackward<T, Index>& call);

namespace cpu {
// Also InvalidArgument, naming the row, for a RoI whose image does not exist.
template <typename T, typename Index>
void roi_pool_forward(const RoiPoolForward<T, Index>& call);
template <typename T, typename Index>
void roi_pool_backward(const RoiPoolBackward<T, Index>& call);
}  // namespace cpu

namespace cuda {
// The batch index cannot be checked without waiting for the device: a RoI whose image does not exist
// gives 0 and argmax -1. InvalidArgument for a gradient of 2^31 numbers a RoI, C * PH * PW, or more.
template <typename T, typename Index>
void roi_pool_forward(const RoiPoolForward<T, Index>& call, const Stream& stream);
template <typename T, typename Index>
void roi_pool_backward(const RoiPoolBackward<T, Index>& call, const Stream& stream);
}  // namespace cuda

}  // namespace fastrcnn_engine
