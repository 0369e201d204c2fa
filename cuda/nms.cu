// Overlaps of pairs, and greedy suppression in three kernels: order the boxes by counting, walk
// each class in that order, count again for the places of the kept. No sort, no atomics.
#include "fastrcnn_engine/nms.h"

#include "fastrcnn_engine/semantics/box_rows.h"
#include "fastrcnn_engine/semantics/iou.h"
#include "launch.cuh"
#include "nms_steps.cuh"

namespace fastrcnn_engine::cuda {
namespace {

using semantics::box_at;

template <typename T>
__global__ void iou_kernel(BoxIou<T> call) {
  const int64_t columns = call.boxes2.shape[0], count = call.boxes1.shape[0] * columns;
  const T side = call.inclusive ? 1 : 0;
  for (int64_t i = first_element(); i < count; i += element_stride())
    call.iou.data[i] = semantics::iou(box_at(call.boxes1.data, i / columns),
                                      box_at(call.boxes2.data, i % columns), side);
}

template <typename T>
__device__ int64_t class_of(const ScoredBoxes<T>& list, int64_t box) {
  return list.class_ids == nullptr ? 0 : list.class_ids[box];
}

// order (B,): the boxes with a score by rising class, then as they rank. -1 in the places of those
// without one has been written before.
template <typename T>
__global__ void order_kernel(ScoredBoxes<T> list, int64_t* order) {
  for (int64_t i = first_element(); i < list.count; i += element_stride()) {
    const T score = list.scores[i];
    if (score != score) continue;
    const int64_t class_id = class_of(list, i);
    int64_t before = 0;
    for (int64_t j = 0; j < list.count; ++j) {
      const T other = list.scores[j];
      if (other != other) continue;
      const int64_t other_class = class_of(list, j);
      before += other_class == class_id ? semantics::ranks_before(other, j, score, i)
                                        : other_class < class_id;
    }
    order[before] = i;
  }
}

// Whether place `p` of the order holds a box of this class.
template <typename T>
__device__ bool holds_class(const ScoredBoxes<T>& list, const int64_t* order, int64_t p,
                            int64_t class_id) {
  return p < list.count && order[p] >= 0 && class_of(list, order[p]) == class_id;
}

// suppressed (B,), by place in the order, zero before. The block that meets the first place of a
// class walks that class; every branch around __syncthreads is the same for all its threads.
template <typename T>
__global__ void suppress_kernel(ScoredBoxes<T> list, const int64_t* order, float iou_threshold,
                                bool inclusive, uint8_t* suppressed) {
  const T side = inclusive ? 1 : 0;
  for (int64_t first = blockIdx.x; first < list.count; first += gridDim.x) {
    if (order[first] < 0) continue;
    const int64_t class_id = class_of(list, order[first]);
    if (first > 0 && class_of(list, order[first - 1]) == class_id) continue;

    for (int64_t p = first; holds_class(list, order, p, class_id); ++p) {
      if (suppressed[p]) continue;
      const auto kept = box_at(list.boxes, order[p]);
      for (int64_t q = p + 1 + threadIdx.x; holds_class(list, order, q, class_id); q += blockDim.x)
        if (semantics::suppresses(kept, box_at(list.boxes, order[q]), iou_threshold, side))
          suppressed[q] = 1;
      __syncthreads();  // the next places are read by all threads
    }
  }
}

// keep (capacity,): the kept boxes as they rank among all classes. The one that ranks first writes
// how many there are; zero has been written before.
template <typename T>
__global__ void collect_kernel(ScoredBoxes<T> list, const int64_t* order, const uint8_t* suppressed,
                               int64_t* keep, int64_t capacity, int64_t* kept) {
  for (int64_t p = first_element(); p < list.count; p += element_stride()) {
    const int64_t box = order[p];
    if (box < 0 || suppressed[p]) continue;
    int64_t before = 0, total = 0;
    for (int64_t q = 0; q < list.count && order[q] >= 0; ++q) {
      if (suppressed[q]) continue;
      ++total;
      before += semantics::ranks_before(list.scores[order[q]], order[q], list.scores[box], box);
    }
    if (before < capacity) keep[before] = box;
    if (before == 0) *kept = total;
  }
}

}  // namespace

template <typename T>
void queue_nms(const ScoredBoxes<T>& list, float iou_threshold, bool inclusive, int64_t* keep,
               int64_t capacity, int64_t* kept, const Stream& stream) {
  const TemporaryBuffer<int64_t> order(list.count, stream);
  const TemporaryBuffer<uint8_t> suppressed(list.count, stream);
  fill_bytes(order.data(), 0xFF, list.count, stream);
  fill_bytes(suppressed.data(), 0, list.count, stream);
  fill_bytes(kept, 0, 1, stream);
  launch_threads("nms order", order_kernel<T>, list.count, stream, list, order.data());
  launch_blocks("nms suppress", suppress_kernel<T>, list.count, stream, list, order.data(),
                iou_threshold, inclusive, suppressed.data());
  launch_threads("nms collect", collect_kernel<T>, list.count, stream, list, order.data(),
                 suppressed.data(), keep, capacity, kept);
}

template <typename T>
void box_iou(const BoxIou<T>& call, const Stream& stream) {
  check(call);
  if (call.iou.size() == 0) return;
  const DeviceGuard guard(stream);
  launch_threads("box_iou", iou_kernel<T>, call.iou.size(), stream, call);
}

template <typename T>
int64_t nms(const Nms<T>& call, const Stream& stream) {
  check(call);
  const int64_t count = call.boxes.shape[0];
  if (count == 0) return 0;
  const DeviceGuard guard(stream);
  const TemporaryBuffer<int64_t> kept(1, stream);
  const ScoredBoxes<T> list{call.boxes.data, call.scores.data, call.class_ids, count};
  queue_nms(list, call.iou_threshold, call.inclusive, call.keep.data, call.keep.shape[0],
            kept.data(), stream);
  return fetch(kept.data(), stream);
}

template void queue_nms(const ScoredBoxes<float>&, float, bool, int64_t*, int64_t, int64_t*,
                        const Stream&);
template void queue_nms(const ScoredBoxes<double>&, float, bool, int64_t*, int64_t, int64_t*,
                        const Stream&);
template void box_iou(const BoxIou<float>&, const Stream&);
template void box_iou(const BoxIou<double>&, const Stream&);
template int64_t nms(const Nms<float>&, const Stream&);
template int64_t nms(const Nms<double>&, const Stream&);

}  // namespace fastrcnn_engine::cuda
