// The sort that nms and detections begin with, by the digits of a key. semantics/iou.h makes keys; boxes and
// classes are unknown here.
#include "score_order.h"

#include <algorithm>

namespace fastrcnn_engine::cpu {
namespace {

constexpr size_t kWorthDigits = 64;  // below this the counters cost more than the comparisons

}  // namespace

// By digits, the lowest first, each pass keeping the order of the one before.
template <typename T>
void sort_by_score(std::vector<Ranked<T>>& list) {
  if (list.size() < kWorthDigits) {
    std::stable_sort(list.begin(), list.end(),
                     [](const auto& a, const auto& b) { return a.key < b.key; });
    return;
  }
  constexpr int bits = 8, values = 1 << bits, passes = sizeof(T) * 8 / bits;
  const auto digit = [](const Ranked<T>& entry, int pass) {
    return static_cast<size_t>(entry.key >> (bits * pass) & (values - 1));
  };
  std::vector<size_t> counts(passes * values);
  for (const Ranked<T>& entry : list)
    for (int pass = 0; pass < passes; ++pass) ++counts[pass * values + digit(entry, pass)];
  std::vector<Ranked<T>> other(list.size());
  for (int pass = 0; pass < passes; ++pass) {
    size_t* place = &counts[pass * values];
    if (place[digit(list.front(), pass)] == list.size()) continue;  // the same digit everywhere
    size_t before = 0;
    for (int value = 0; value < values; ++value) {
      const size_t count = place[value];
      place[value] = before;
      before += count;
    }
    for (const Ranked<T>& entry : list) other[place[digit(entry, pass)]++] = entry;
    list.swap(other);
  }
}

template void sort_by_score(std::vector<Ranked<float>>&);
template void sort_by_score(std::vector<Ranked<double>>&);

}  // namespace fastrcnn_engine::cpu
