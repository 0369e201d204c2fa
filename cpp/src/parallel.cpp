#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <sched.h>
#include <unistd.h>
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

#if defined(__linux__)
const pid_t process = getpid();
#endif

using Take = std::function<void(int thread)>;

// Runs take(0) to take(threads - 1) on the threads of the process's OpenMP runtime, where it has one
// that everybody can see, as torch's is. Between two operators those threads wait by spinning, and any
// others would have to share the cores with them. False where that cannot be done.
bool run_on_openmp([[maybe_unused]] int threads, [[maybe_unused]] const Take& take) {
#if defined(__linux__)
  if (getpid() != process) return false;  // its threads do not survive a fork
  // The interface that compilers call, GCC's name for it; Intel's and LLVM's runtimes have it too.
  using Parallel = void (*)(void (*run)(void*), void* data, unsigned team, unsigned flags);
  using Number = int (*)();
  const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  const auto thread_number = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  const auto max_threads = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
  if (!parallel || !thread_number || !max_threads || max_threads() < threads) return false;
  struct Team {
    int threads;
    const Take& take;
    Number thread_number;
  } team{threads, take, thread_number};
  const auto run = [](void* data) {
    const auto& team = *static_cast<Team*>(data);
    if (const int thread = team.thread_number(); thread < team.threads) team.take(thread);
  };
  parallel(run, &team, 0, 0);  // all of them: a team of another size would have to be made anew
  return true;
#else
  return false;
#endif
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
  const Take take = [&](int thread) {
    for (int64_t item = next++; item < items; item = next++) work(thread, item);
  };
  if (threads > 1 && run_on_openmp(threads, take)) return;
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
