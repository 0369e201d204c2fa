#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/threads.h"

namespace fastrcnn_engine {

namespace {

int available_cores() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return std::max(CPU_COUNT(&allowed), 1);
#endif
  return static_cast<int>(std::max(std::thread::hardware_concurrency(), 1u));
}

std::atomic<int>& thread_count() {
  static std::atomic<int> count = available_cores();
  return count;
}

}  // namespace

int num_threads() { return thread_count(); }

void set_num_threads(int threads) {
  require(threads >= 1, "threads must be at least 1, got ", threads);
  thread_count() = threads;
}

namespace cpu {

int worthwhile_threads(int64_t items, double microseconds, int most) {
  constexpr double start = 50;  // microseconds that starting and joining a thread cost, generously
  const int64_t paid = static_cast<int64_t>(std::min(microseconds / start, 1e6));
  const int64_t limit = std::min<int64_t>(most > 0 ? most : num_threads(), items);
  return static_cast<int>(std::max<int64_t>(std::min(paid, limit), 1));
}

void parallel_for(int64_t items, int threads, const std::function<void(int, int64_t)>& work) {
  std::atomic<int64_t> next = 0;
  const auto take = [&](int thread) {
    for (int64_t item = next++; item < items; item = next++) work(thread, item);
  };
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (int t = 1; t < threads; ++t) others.emplace_back(take, t);
  } catch (const std::system_error&) {
    // No more threads to be had: those there are do the work.
  }
  take(0);
  for (std::thread& other : others) other.join();
}

}  // namespace cpu
}  // namespace fastrcnn_engine
