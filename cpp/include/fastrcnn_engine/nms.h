// Pairwise overlap and greedy non-maximum suppression, plain or per class.
#pragma once

#include <cstdint>

#include "fastrcnn_engine/stream.h"
#include "fastrcnn_engine/tensor.h"

namespace fastrcnn_engine {

template <typename T>
struct BoxIou {
  View<const T, 2> boxes1;  // (A, 4)
  View<const T, 2> boxes2;  // (B, 4)
  bool inclusive = false;   // widths x2 - x1 + 1 (VOC)
  View<T, 2> iou;           // (A, B)
};

// Boxes are visited by falling score, then rising index. One is kept unless a kept one of the same
// class overlaps it by more than the threshold. NaN scores are never kept.
template <typename T>
struct Nms {
  View<const T, 2> boxes;              // (B, 4)
  View<const T, 1> scores;             // (B,)
  const int64_t* class_ids = nullptr;  // (B,) any numbers, or null: one class
  float iou_threshold = 0;
  bool inclusive = false;
  // (M,): the first M kept indices by falling score, then -1. M is the caller's choice, 0 too; there is none
  // where this is left as it is, which check() refuses.
  View<int64_t, 1> keep{nullptr, {-1}};
};

template <typename T>
void check(const BoxIou<T>& call);
template <typename T>
void check(const Nms<T>& call);

// nms returns how many indices of kept boxes were written, at most M.
namespace cpu {
template <typename T>
void box_iou(const BoxIou<T>& call);
template <typename T>
int64_t nms(const Nms<T>& call);
}  // namespace cpu

namespace cuda {
template <typename T>
void box_iou(const BoxIou<T>& call, const Stream& stream);
// Waits for the stream: the number of boxes is needed on the host.
template <typename T>
int64_t nms(const Nms<T>& call, const Stream& stream);
// Does not wait: the number goes to `count`, in device memory. May be captured in a CUDA graph.
template <typename T>
void nms(const Nms<T>& call, int64_t* count, const Stream& stream);
}  // namespace cuda

}  // namespace fastrcnn_engine
