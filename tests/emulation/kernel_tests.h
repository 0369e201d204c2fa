// What the tests of the kernels share. Each compares the device with the CPU engine, bit by bit, in
// every schedule.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrcnn_engine/semantics/half.h"
#include "fastrcnn_engine/stream.h"
#include "fastrcnn_engine/tensor.h"

// The tests, one or more in each test_*.cpp.
void roi_pool_forward();
void roi_pool_forward_of_16_bits();
void roi_pool_backward();
void smooth_l1();
void box_codec();
void box_iou();
void nms();
void nms_of_long_lists();
void nms_at_threshold();
void detections();
void device_errors();
void the_emulator_notices();

using namespace fastrcnn_engine;

using emulation::kWatchesRaces;  // which takes so long that fewer cases have to do

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Counts, and says what failed.
void expect(bool condition, const std::string& what);

inline const Stream& stream() {
  static const Stream the_stream(emulation::stream(), emulation::kDevice);
  return the_stream;
}

template <typename T>
bool is_nan(T value) {
  if constexpr (std::is_integral_v<T>)
    return false;
  else
    return std::isnan(semantics::widen(value));
}

// NaN equals NaN; everything else is compared as bits, so 0 differs from -0.
template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  if (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0) return true;
  for (size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0 && !(is_nan(a[i]) && is_nan(b[i]))) return false;
  return true;
}

inline constexpr emulation::Schedule kSchedules[] = {
    emulation::Schedule::forward, emulation::Schedule::reverse, emulation::Schedule::few_blocks,
    emulation::Schedule::odd_warps, emulation::Schedule::even_warps};

// Calls check(where) with `schedule` set; `where` ends the messages.
template <typename Check>
void in_schedule(emulation::Schedule schedule, const Check& check) {
  emulation::schedule = schedule;
  check(" (schedule " + std::to_string(static_cast<int>(schedule)) + ")");
  emulation::schedule = emulation::Schedule::forward;
}

// Races are found in whatever order the threads run; on few blocks, each has several classes or slabs.
template <typename Check>
void in_every_schedule(const Check& check) {
  if (kWatchesRaces) return in_schedule(emulation::Schedule::few_blocks, check);
  for (const emulation::Schedule schedule : kSchedules) in_schedule(schedule, check);
}

// In one only, with each call in another: where there are many cases, all are met by every kernel.
template <typename Check>
void in_next_schedule(const Check& check) {
  static int next = 0;
  in_schedule(kSchedules[next++ % std::size(kSchedules)], check);
}

// Calls work() on a device whose blocks may have `bytes` of shared memory.
template <typename Work>
void with_shared_bytes(int bytes, const Work& work) {
  const int limit = std::exchange(emulation::shared_limit, bytes);
  work();
  emulation::shared_limit = limit;
}

// Numbers in steps of a quarter, so that ties and exact thresholds happen.
class Random {
 public:
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  float quarters(int64_t low, int64_t high) { return integer(4 * low, 4 * high) / 4.0f; }
  template <typename T>
  std::vector<T> many(int64_t count, int64_t low, int64_t high) {
    std::vector<T> values(count);
    for (T& value : values) value = static_cast<T>(quarters(low, high));
    return values;
  }

 private:
  std::mt19937_64 engine_{20150430};
};

template <typename T>
View<T, 2> rows_of(std::vector<T>& values, int64_t columns) {
  return {values.data(), {static_cast<int64_t>(values.size()) / columns, columns}};
}
template <typename T>
View<const T, 2> rows_of(const std::vector<T>& values, int64_t columns) {
  return {values.data(), {static_cast<int64_t>(values.size()) / columns, columns}};
}
template <typename T>
View<T, 1> list_of(std::vector<T>& values) {
  return {values.data(), {static_cast<int64_t>(values.size())}};
}

// Small boxes, some reversed, without area or not finite. They lie close together where `extent` is small.
template <typename T>
std::vector<T> crowded_boxes(int64_t count, Random& random, int64_t extent = 6) {
  std::vector<T> boxes;
  for (int64_t i = 0; i < count; ++i) {
    const float x = random.quarters(0, extent), y = random.quarters(0, extent);
    const float w = random.quarters(0, 4), h = random.quarters(0, 4);
    std::array<float, 4> box{x, y, x + w, y + h};
    const int64_t kind = random.integer(0, 29);
    if (kind == 0) box = {x, y, x - w, y - h};
    if (kind == 1) box = {x, y, x, y};
    if (kind == 2) box[random.integer(0, 3)] = kNan;
    if (kind == 3) box[random.integer(0, 3)] = kInf;
    if (kind == 4) box = {0, 0, 3e38f, 3e38f};
    boxes.insert(boxes.end(), box.begin(), box.end());
  }
  return boxes;
}

// Scores in few steps, so that many tie; some NaN or infinite.
template <typename T>
std::vector<T> tied_scores(int64_t count, Random& random) {
  auto scores = random.many<T>(count, 0, 3);
  for (T& score : scores) {
    const int64_t kind = random.integer(0, 29);
    if (kind == 0) score = kNan;
    if (kind == 1) score = kInf;
    if (kind == 2) score = -kInf;
    if (kind == 3) score = T(-0.0);
  }
  return scores;
}
