// How many threads a call gets, and which: those of the process's OpenMP runtime, else its own. The runtime
// is looked up when called, not linked. Knows no operator.
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <sstream>
#include <string>
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

using Take = std::function<void(int thread)>;

#if defined(__linux__)
// Whether this process began as a copy of another and goes on running its program.
bool is_forked() {
  constexpr unsigned long kForkedNoExec = 0x40;  // PF_FORKNOEXEC
  std::ifstream stat("/proc/self/stat");
  std::string line, field;
  std::getline(stat, line);
  const size_t name_end = line.rfind(')');  // the name before it may hold anything
  if (name_end == std::string::npos) return false;
  std::istringstream fields(line.substr(name_end + 1));
  for (int i = 3; i <= 9; ++i) fields >> field;
  return std::strtoul(field.c_str(), nullptr, 10) & kForkedNoExec;
}

const pid_t loading_process = is_forked() ? -1 : getpid();
#endif

// Shares take(0), take(1) and so on, below `threads`, out to the OpenMP runtime of the process, where it
// has one that everybody can see, as torch's is. Between two operators its threads wait by spinning, and
// any others would have to share the cores with them. There may be fewer of them: in a parallel region
// of the caller's only one. False where that cannot be done.
bool run_on_openmp([[maybe_unused]] int threads, [[maybe_unused]] const Take& take) {
#if defined(__linux__)
  if (getpid() != loading_process) return false;  // OpenMP's threads do not survive a fork
  // The interface that compilers call, GCC's name for it; Intel's and LLVM's runtimes have it too.
  using Parallel = void (*)(void (*run)(void*), void* data, unsigned team, unsigned flags);
  const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  const auto most = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
  if (parallel == nullptr || most == nullptr || most() < threads) return false;
  struct Team {
    int threads;
    const Take& take;
    std::fenv_t rounding{};  // the caller's, and whether denormals count as zeros
    std::atomic<int> begun = 0;
  } team{threads, take};
  std::fegetenv(&team.rounding);
  const auto run = [](void* data) {
    auto& its_team = *static_cast<Team*>(data);
    const int thread = its_team.begun++;
    if (thread >= its_team.threads) return;
    std::fenv_t own;
    std::fegetenv(&own);
    std::fesetenv(&its_team.rounding);
    its_team.take(thread);
    std::fesetenv(&own);
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

// Microseconds that starting and joining a thread cost, generously.
#ifndef FRCNN_THREAD_COST  // less in a test
#define FRCNN_THREAD_COST 50
#endif

int worthwhile_threads(int64_t items, double microseconds, int most) {
  constexpr double start = FRCNN_THREAD_COST;
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
  } catch (const std::exception&) {
    // No more threads, or no memory for one: those there are do the work.
  }
  take(0);
  for (std::thread& other : others) other.join();
}

}  // namespace cpu
}  // namespace fastrcnn_engine
