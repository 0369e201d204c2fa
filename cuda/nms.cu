// Overlaps of pairs, and greedy suppression. What is done about class ids, which may be any numbers:
//
// A hash table finds the classes that occur, in a kernel of its own, and the block of a class picks its boxes
// by comparing every id. That reads all ids once a class, but by blocks at the same time: 80 classes x 300
// boxes are 15 MB from the L2 cache, a few microseconds. Then a class is sorted by its own block: for 300
// boxes 45 exchanges of one box a thread. Sorting all 24 000 by (class, score) in one block would be 120
// exchanges of 47 boxes a thread, many times as long, and more than shared memory holds; 20 x 300 is the same
// to a lesser degree.
//
// Without ids, one class of 2000 or 12 000, suppressing takes longest, as every kept box is compared with
// most of the others. So a long list is sorted by one block, and then suppressed by chunks, each in a launch:
// every block finds for itself which boxes of the chunk are kept, and suppresses its share of the later ones.
//
// Predicted, not measured.
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

// The classes that occur. `table` finds them: a box of the class and 1 more, 0 where free; its size is a
// power of two greater than the number of boxes.
struct Classes {
  int64_t* count;
  int64_t* ids;
  int64_t* table;
  int64_t slots;
};

__device__ inline uint64_t scattered(int64_t id) {
  const uint64_t product = static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u;
  return product ^ product >> 32;
}

__device__ inline int64_t exchange_if_zero(int64_t* place, int64_t value) {
  return static_cast<int64_t>(atomicCAS(reinterpret_cast<unsigned long long*>(place), 0ull,
                                        static_cast<unsigned long long>(value)));
}

__global__ void classes_kernel(const int64_t* ids, int64_t boxes, Classes classes) {
  const auto last = static_cast<uint64_t>(classes.slots - 1);
  for (int64_t i = first_element(); i < boxes; i += element_stride()) {
    const int64_t id = ids[i];
    if (i > 0 && ids[i - 1] == id) continue;  // that box sees to it
    for (uint64_t slot = scattered(id) & last;; slot = (slot + 1) & last) {
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
  __device__ bool wants(int64_t index, int64_t id) const {
    return (class_ids == nullptr || class_ids[index] == id) && scores[index] == scores[index];
  }
  __device__ T score(int64_t index) const { return scores[index]; }
  __device__ Box<T> box(int64_t index) const { return box_at(boxes, index); }
  __device__ void write(int64_t place, int64_t index) const { keep[place] = index; }
  __device__ void write_nothing(int64_t place) const { keep[place] = -1; }
};

// ---- a long list of one class -------------------------------------------------------------------------

// Shorter lists are left to one block.
constexpr int64_t kLongList = 1024;
constexpr int kChunk = kClassThreads;

template <typename T>
struct LongList {
  Ranked<T>* ranked;
  StoredBox<T>* boxes;
  uint8_t* dead;
  int64_t* count;  // boxes with a score
  int64_t* kept;   // boxes kept so far
};

// For the number of boxes gathered, before the list in shared memory.
constexpr int64_t kGatheredBytes = sizeof(uint4);

template <typename T>
__global__ __launch_bounds__(kClassThreads, 1) void sort_kernel(BoxesOfClasses<T> source,
                                                                 int64_t shared_bytes, LongList<T> list) {
  int& gathered = *reinterpret_cast<int*>(dynamic_shared);
  Ranked<T>* const shared =
      reinterpret_cast<Ranked<T>*>(reinterpret_cast<char*>(dynamic_shared) + kGatheredBytes);
  const int64_t capacity = (shared_bytes - kGatheredBytes) / static_cast<int64_t>(sizeof(Ranked<T>));
  const int rows = static_cast<int>(source.rows);
  if (rows <= capacity) {
    gather(source, 0, shared, rows, &gathered);
    sort(shared, gathered);
    for (int i = static_cast<int>(threadIdx.x); i < gathered; i += kClassThreads)
      list.ranked[i] = shared[i];  // and the same thread fetches this box
  } else {
    gather(source, 0, list.ranked, rows, &gathered);
    sort(list.ranked, gathered);
  }
  fetch_boxes<T>(source, {list.boxes, list.dead, gathered}, list.ranked);
  for (int64_t place = threadIdx.x; place < source.places; place += kClassThreads)
    source.write_nothing(place);
  if (threadIdx.x == 0) *list.count = gathered, *list.kept = 0;
}

template <typename T>
struct alignas(16) Chunk {
  BlockState<T> state;
  StoredBox<T> boxes[kChunk];
  Suppressor<T> kept[kChunk];
  Ranked<T> ranked[kChunk];
  uint8_t dead[kChunk];
};

// `first`: the chunk's first place. The chunks before it are done with.
template <typename T>
__global__ __launch_bounds__(kClassThreads, 1) void chunk_kernel(BoxesOfClasses<T> source,
                                                                  SuppressionRule<T> rule,
                                                                  LongList<T> list, int first) {
  Chunk<T>& chunk = *reinterpret_cast<Chunk<T>*>(dynamic_shared);
  const int64_t count = *list.count;
  const int thread = static_cast<int>(threadIdx.x);
  // One thread decides for its block: block 0 of this very launch writes the number of kept boxes, and may do
  // so while others begin. Which of them still see the old one does not matter, as nobody looks any more at
  // what they would suppress.
  if (thread == 0) chunk.state.gathered = first < count && *list.kept < rule.enough;
  __syncthreads();
  if (chunk.state.gathered == 0) return;
  if (first + thread < count) {
    chunk.boxes[thread] = list.boxes[first + thread];
    chunk.ranked[thread] = list.ranked[first + thread];
    chunk.dead[thread] = list.dead[first + thread];
  }
  __syncthreads();
  const int chunk_count = count - first < kChunk ? static_cast<int>(count - first) : kChunk;
  const int kept = suppress<T>({chunk.boxes, chunk.dead, chunk_count}, rule, chunk.ranked, chunk.state);
  if (thread < kept)
    chunk.kept[thread].set(source.box(static_cast<int64_t>(chunk.ranked[thread].index)), rule.side);
  else
    chunk.kept[thread].fill_up();
  __syncthreads();
  // Warps take turns by block, so that few of them are still spread over all multiprocessors.
  const int64_t warp = static_cast<int64_t>(warp_of()) * gridDim.x + blockIdx.x;
  for (int64_t i = first + kChunk + warp * kWarp + lane_of(); i < count; i += element_stride())
    if (!list.dead[i] && is_suppressed<T>(rule, chunk.kept, kept, list.boxes[i])) list.dead[i] = 1;

  if (blockIdx.x > 0) return;
  const int64_t before = *list.kept, place = before + thread;
  if (thread < kept && place < rule.enough)
    source.write(place, static_cast<int64_t>(chunk.ranked[thread].index));
  __syncthreads();  // all have read how many there were before
  if (thread == 0) *list.kept = before + kept < rule.enough ? before + kept : rule.enough;
}

template <typename T>
void suppress_long_list(const BoxesOfClasses<T>& source, const SuppressionRule<T>& rule, int64_t* kept,
                        const Stream& stream) {
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount, stream);
  const int64_t wanted = kGatheredBytes + source.rows * static_cast<int64_t>(sizeof(Ranked<T>));
  const int64_t sort_bytes = wanted <= limit ? wanted : kGatheredBytes;

  LongList<T> list;
  const DividedBuffer memory(stream, [&](Parts& parts) {
    list = {parts.take<Ranked<T>>(source.rows), parts.take<StoredBox<T>>(source.rows),
            parts.take<uint8_t>(source.rows), parts.take<int64_t>(1), kept};
  });

  launch_blocks("sort of boxes", sort_kernel<T>, 1, {kClassThreads, sort_bytes}, stream, source,
                sort_bytes, list);
  for (int64_t first = 0; first < source.rows; first += kChunk) {
    const int64_t later_warps = ceil_div(source.rows - first - kChunk, kWarp);
    launch_blocks("suppression", chunk_kernel<T>, std::clamp<int64_t>(later_warps, 1, processors),
                  {kClassThreads, static_cast<int64_t>(sizeof(Chunk<T>))}, stream, source, rule, list,
                  static_cast<int>(first));
  }
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
  const int64_t boxes = call.boxes.shape[0], places = call.keep.shape[0];
  require_countable(boxes);
  const DeviceGuard guard(stream);
  const SuppressionRule<T> rule{call.iou_threshold, static_cast<T>(call.inclusive ? 1 : 0),
                                std::min(boxes, places)};
  BoxesOfClasses<T> source{call.boxes.data, call.scores.data, call.class_ids, boxes,
                           {},              places,           call.keep.data};
  if (call.class_ids == nullptr) {
    if (boxes > kLongList) return suppress_long_list(source, rule, kept, stream);
    return suppress_and_write(source, rule, boxes, 1, kept, stream);
  }
  int64_t slots = 2;
  while (slots < 2 * boxes) slots *= 2;
  const TemporaryBuffer<int64_t> ids(boxes, stream), table(1 + slots, stream);
  source.found = {table.data(), ids.data(), table.data() + 1, slots};
  fill_bytes(table.data(), 0, 1 + slots, stream);
  launch_threads("classes", classes_kernel, boxes, stream, call.class_ids, boxes, source.found);
  suppress_and_write(source, rule, boxes, boxes, kept, stream);
}

template <typename T>
int64_t nms(const Nms<T>& call, const Stream& stream) {
  return counted([&](int64_t* kept) { nms(call, kept, stream); }, stream);
}

template void box_iou(const BoxIou<float>&, const Stream&);
template void box_iou(const BoxIou<double>&, const Stream&);
template void nms(const Nms<float>&, int64_t*, const Stream&);
template void nms(const Nms<double>&, int64_t*, const Stream&);
template int64_t nms(const Nms<float>&, const Stream&);
template int64_t nms(const Nms<double>&, const Stream&);

}  // namespace fastrcnn_engine::cuda
