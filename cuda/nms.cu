// Overlaps of pairs, and greedy suppression. What is done about class ids, which may be any numbers:
//
// A hash table finds the classes that occur, in a kernel of its own, and the block of a class picks its boxes
// by comparing every id. That reads all ids once a class, but by blocks at the same time: 80 classes x 300
// boxes are 15 MB from the L2 cache.
#include "fastrcnn_engine/nms.h"

#include <algorithm>

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

// The classes that occur. `table` finds them: a box of the class and 1 more, 0 where free; its size is
// 2^slot_bits, greater than the number of boxes.
struct Classes {
  int64_t* count;
  int64_t* ids;
  int64_t* table;
  int slot_bits;

  // The highest bits of the product: every bit of the id counts for them.
  __device__ uint64_t slot_of(int64_t id) const {
    return static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u >> (64 - slot_bits);
  }
};

__device__ inline int64_t exchange_if_zero(int64_t* place, int64_t value) {
  return static_cast<int64_t>(atomicCAS(reinterpret_cast<unsigned long long*>(place), 0ull,
                                        static_cast<unsigned long long>(value)));
}

__global__ void classes_kernel(const int64_t* ids, int64_t boxes, Classes classes) {
  const uint64_t last = (uint64_t{1} << classes.slot_bits) - 1;
  for (int64_t i = first_element(); i < boxes; i += element_stride()) {
    const int64_t id = ids[i];
    if (i > 0 && ids[i - 1] == id) continue;  // that box sees to it
    for (uint64_t slot = classes.slot_of(id);; slot = (slot + 1) & last) {
      const int64_t found = exchange_if_zero(classes.table + slot, i + 1);
      if (found == 0) classes.ids[reserve(classes.count, 1)] = id;
      if (found == 0 || ids[found - 1] == id) break;
    }
  }
}

template <typename T>
struct BoxesOfClasses {
  const T* boxes;
  const T* scores;
  const int64_t* class_ids;  // null: one class
  int64_t rows;
  Classes found;
  int64_t places;
  int64_t* keep;

  __device__ int64_t classes() const { return class_ids == nullptr ? 1 : *found.count; }
  __device__ int64_t class_id(int64_t number) const {
    return class_ids == nullptr ? 0 : found.ids[number];
  }
  __device__ int64_t index(int64_t row, int64_t) const { return row; }
  __device__ int64_t class_of(int64_t index, int64_t id) const {
    return class_ids == nullptr ? id : class_ids[index];
  }
  __device__ bool wants(T score) const { return score == score; }
  __device__ bool can_be_kept(const Box<T>&) const { return true; }
  __device__ T score(int64_t index) const { return scores[index]; }
  __device__ Box<T> box(int64_t index) const { return box_at(boxes, index); }
  __device__ void write(int64_t place, int64_t index) const { keep[place] = index; }
  __device__ void write_nothing(int64_t place) const { keep[place] = -1; }
};

template <typename T>
int64_t keep_boxes(const Nms<T>& call, int64_t* kept, const Stream& stream) {
  const int64_t boxes = call.boxes.shape[0], places = call.keep.shape[0];
  require_countable(boxes);
  const DeviceGuard guard(stream);
  const SuppressionRule<T> rule{call.iou_threshold, static_cast<T>(call.inclusive ? 1 : 0),
                                std::min(boxes, places)};
  BoxesOfClasses<T> source{call.boxes.data, call.scores.data, call.class_ids, boxes,
                           {},              places,           call.keep.data};
  if (call.class_ids == nullptr)
    return suppress_and_write(source, rule, boxes, 1, kept, stream);
  Classes& found = source.found;
  found.slot_bits = 1;
  while (int64_t{1} << found.slot_bits < 2 * boxes) ++found.slot_bits;
  const int64_t slots = int64_t{1} << found.slot_bits;
  const DividedBuffer memory(stream, [&](Parts& parts) {
    found.count = parts.take<int64_t>(1 + slots);
    found.ids = parts.take<int64_t>(boxes);
  });
  found.table = found.count + 1;
  fill_bytes(found.count, 0, 1 + slots, stream);
  launch_threads("classes", classes_kernel, boxes, stream, call.class_ids, boxes, found);
  return suppress_and_write(source, rule, boxes, boxes, kept, stream);
}

}  // namespace

template <typename T>
void box_iou(const BoxIou<T>& call, const Stream& stream) {
  check(call);
  if (call.iou.size() == 0) return;
  const DeviceGuard guard(stream);
  launch_threads("box_iou", iou_kernel<T>, call.iou.size(), stream, call);
}

template <typename T>
void nms(const Nms<T>& call, int64_t* kept, const Stream& stream) {
  check(call);
  require_count(kept);
  keep_boxes(call, kept, stream);
}

template <typename T>
int64_t nms(const Nms<T>& call, const Stream& stream) {
  check(call);
  return keep_boxes(call, nullptr, stream);
}

template void box_iou(const BoxIou<float>&, const Stream&);
template void box_iou(const BoxIou<double>&, const Stream&);
template void nms(const Nms<float>&, int64_t*, const Stream&);
template void nms(const Nms<double>&, int64_t*, const Stream&);
template int64_t nms(const Nms<float>&, const Stream&);
template int64_t nms(const Nms<double>&, const Stream&);

}  // namespace fastrcnn_engine::cuda
