// The device behind cuda_runtime.h.
#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "sanitizer.h"

struct CUstream_st {};

// Declared by cuda/launch.cuh. More than any device has, so that there is something beyond.
constexpr size_t kSharedBytes = 256 * 1024;
namespace fastrcnn_engine::cuda {
alignas(emulation::kPageBytes) thread_local uint4 dynamic_shared[kSharedBytes / sizeof(uint4)];
}

namespace emulation {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
CUstream_st the_stream;
std::deque<std::function<void()>> queued;
std::set<void*> allocated;
int current_device = 0;
int calls_until_failure = 0;
std::map<const void*, int> shared_limits;  // of kernels that asked for more than 48 KiB
cudaError_t last_error = cudaSuccess;

// A fiber runs thread after thread of the block until one of them waits for others; then it is parked
// with that thread, and another fiber goes on. Kernels without barriers need a single one.
struct Fiber {
  void* place[5];  // where it left off, for __builtin_longjmp
  bool started = false;
  Watched watched;
  std::unique_ptr<char[]> stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  uint3 thread;
  std::source_location where;  // it waits
  uint64_t value;              // what its lane brought
};

// Places by which a block's threads come after what was before the block, and before what follows the kernel.
uint64_t begun, ended;

class Block {
 public:
  // `by_warp`: a warp goes on before the threads behind it begin. Else all of them begin first.
  void run(const std::vector<unsigned>& order, bool by_warp, const std::function<void()>& thread) {
    order_ = order;
    by_warp_ = by_warp;
    thread_ = &thread;
    next_ = finished_ = 0;
    idle_.insert(idle_.end(), used_.begin(), used_.end());
    used_.clear();
    // What a fiber does in this block seems to come after what it did in the last: other threads have it now.
    if (kWatchesRaces) std::shuffle(idle_.begin(), idle_.end(), random_);
    for (;;) {
      if (Fiber* fiber = next_fiber()) resume(fiber);
      if (!broken_.empty()) throw Error(broken_);
      check_lanes();
      if (parked_.empty()) return;
      check_barrier();
      ready_.insert(ready_.end(), parked_.begin(), parked_.end());
      parked_.clear();
    }
  }

  void park(std::source_location here) {
    const Unwatched unwatched;
    Fiber* self = running_;
    self->where = here;
    self->thread = threadIdx;
    parked_.push_back(self);
    leave(barriers_.place());
    threadIdx = self->thread;
  }

  // `orders`: all see what each of them did before.
  const uint64_t* exchange(unsigned mask, uint64_t value, bool orders, const Here& here) {
    const Unwatched unwatched;
    Fiber* self = running_;
    self->where = here;
    self->thread = threadIdx;
    self->value = value;
    Warp& warp = warps_[threadIdx.x / kLanes];
    warp.waiting.push_back(self);
    if (mask != ~0u) broken_ = "an operation of some lanes of a warp is not emulated";
    void* const place = orders ? warp.meetings.place() : nullptr;
    if (warp.waiting.size() == kLanes) meet(warp);
    leave(place);
    threadIdx = self->thread;
    return warp.values.data();
  }

 private:
  bool must_begin() const {
    return next_ < order_.size() && (ready_.empty() || !by_warp_);
  }

  // Null where none can go on, or none should.
  Fiber* next_fiber() {
    if (!broken_.empty()) return nullptr;
    if (must_begin()) return idle();
    if (ready_.empty()) return nullptr;
    Fiber* fiber = ready_.front();
    ready_.pop_front();
    return fiber;
  }

  // Those who meet release and acquire one of two places. The next time it is the other one: who goes on
  // first may be there before all have acquired this one.
  class Meetings {
   public:
    void* place() { return &places_[turn_]; }
    void end() { turn_ ^= 1; }

   private:
    uint64_t places_[2];
    int turn_ = 0;
  };

  struct Warp {
    std::vector<Fiber*> waiting;          // lanes, for the others
    std::array<uint64_t, kLanes> values;  // what all brought when they last met
    Meetings meetings;
  };

  // All lanes are there, and have read what they brought before: they exchange what they bring and go on.
  void meet(Warp& warp) {
    std::vector<Fiber*>& lanes = warp.waiting;
    warp.meetings.end();
    for (const Fiber* fiber : lanes) {
      warp.values[fiber->thread.x % kLanes] = fiber->value;
      if (fiber->where.line() != lanes[0]->where.line())
        broken_ = "lanes of one warp wait in lines " + std::to_string(lanes[0]->where.line()) +
                  " and " + std::to_string(fiber->where.line());
    }
    ready_.insert(by_warp_ ? ready_.begin() : ready_.end(), lanes.begin(), lanes.end());
    lanes.clear();
  }

  void check_lanes() {
    for (const Warp& warp : warps_)
      if (!warp.waiting.empty())
        throw Error(std::to_string(warp.waiting.size()) + " lanes of a warp wait in line " +
                    std::to_string(warp.waiting[0]->where.line()) + " for the others, who never come");
  }

  Fiber* idle() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      idle_.push_back(fibers_.back().get());
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  static void enter();

  void work() {
    for (;;) {
      // A fiber's second thread would seem to come after its first.
      for (bool first = true; must_begin() && (first || !kWatchesRaces); first = false) {
        threadIdx = {order_[next_++], 0, 0};
        acquire(&begun);
        (*thread_)();
        release(&ended);
        ++finished_;
      }
      const Unwatched unwatched;
      (kWatchesRaces ? used_ : idle_).push_back(running_);
      leave(nullptr);
    }
  }

  // Each fiber leads to the next, and the one behind which none can go on leads back. Stacks are changed by
  // __builtin_setjmp and __builtin_longjmp, a few instructions where swapcontext makes system calls. Each
  // change is announced to the sanitizer, or it would take the other stack for an overflow. noipa, or the
  // compiler finds out that a call of go_to_main never returns.
  void resume(Fiber* fiber) {
    running_ = fiber;
    Watched::leave_main(fiber->watched, fiber->stack.get(), kStackBytes);
    if (__builtin_setjmp(main_) == 0) go_to(fiber);
    Watched::is_in_main();
  }

  [[gnu::noipa]] void go_to(Fiber* fiber) {
    if (std::exchange(fiber->started, true)) __builtin_longjmp(fiber->place, 1);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber->stack.get();
    context.uc_stack.ss_size = kStackBytes;
    makecontext(&context, &Block::enter, 0);
    setcontext(&context);
  }

  // `meeting`: where what those who meet did is put in order, if it is.
  [[gnu::noinline]] void leave(void* meeting) {
    Fiber* self = running_;
    if (meeting != nullptr) release(meeting);
    if (Fiber* next = next_fiber(); next != self) {
      if (next != nullptr)
        self->watched.leave(next->watched, next->stack.get(), kStackBytes);
      else
        self->watched.leave_for_main();
      running_ = next;
      if (__builtin_setjmp(self->place) == 0) next != nullptr ? go_to(next) : go_to_main();
      self->watched.is_there();
    }
    if (meeting != nullptr) acquire(meeting);
  }

  [[gnu::noipa]] void go_to_main() { __builtin_longjmp(main_, 1); }

  // All threads wait at the same barrier.
  void check_barrier() {
    barriers_.end();
    const auto line = parked_[0]->where.line();
    if (finished_ > 0)
      throw Error("__syncthreads in line " + std::to_string(line) + ": " +
                  std::to_string(parked_.size()) + " threads wait, " + std::to_string(finished_) +
                  " have left the kernel");
    for (const Fiber* fiber : parked_)
      if (fiber->where.line() != line)
        throw Error("threads of one block wait at the __syncthreads of lines " +
                    std::to_string(line) + " and " + std::to_string(fiber->where.line()));
  }

  std::vector<unsigned> order_;  // of the threads
  bool by_warp_ = false;
  const std::function<void()>* thread_ = nullptr;
  size_t next_ = 0, finished_ = 0;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_, used_, parked_;  // used: not again in this block; parked: at __syncthreads
  std::deque<Fiber*> ready_;
  std::array<Warp, 1024 / kLanes> warps_;
  std::string broken_;  // what a fiber found; it cannot throw to the outside
  Fiber* running_ = nullptr;
  std::mt19937 random_;
  void* main_[5];
  Meetings barriers_;
};

std::unique_ptr<Block> the_block;

void Block::enter() {
  the_block->running_->watched.is_there();
  the_block->work();
}

bool is_by_warp() { return schedule == Schedule::odd_warps || schedule == Schedule::even_warps; }

std::vector<unsigned> ordered(unsigned count) {
  std::vector<unsigned> order;
  if (is_by_warp()) {
    const unsigned first = schedule == Schedule::odd_warps ? 1 : 0;
    for (unsigned parity : {first, 1 - first})
      for (unsigned i = 0; i < count; ++i)
        if (i / kLanes % 2 == parity) order.push_back(i);
  } else {
    for (unsigned i = 0; i < count; ++i)
      order.push_back(schedule == Schedule::reverse ? count - 1 - i : i);
  }
  return order;
}

void run_kernel(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  if (schedule == Schedule::few_blocks) gridDim.x = std::min(gridDim.x, 2u);
  const std::vector<unsigned> threads = ordered(blockDim.x);
  if (!the_block) the_block = std::make_unique<Block>();
  using fastrcnn_engine::cuda::dynamic_shared;
  const size_t shared = config.dynamicSmemBytes;
  try {
    for (unsigned x : ordered(gridDim.x)) {
      blockIdx = {x, 0, 0};
      begin_shared(dynamic_shared, shared, kSharedBytes);
      release(&begun);
      the_block->run(threads, is_by_warp(), thread);
    }
    acquire(&ended);
  } catch (const Error&) {
    the_block.reset();  // with the threads that still wait
    throw;
  }
}

void run_queued() {
  while (!queued.empty()) {
    const auto work = std::move(queued.front());
    queued.pop_front();
    work();
  }
}

// Every call of the runtime begins here.
cudaError_t begin_call() {
  if (calls_until_failure == 0 || --calls_until_failure > 0) return cudaSuccess;
  calls_until_failure = 0;
  return last_error = cudaErrorEmulated;
}

cudaError_t begin_stream_call(cudaStream_t stream) {
  if (stream != (is_stream_legacy ? cudaStreamLegacy : &the_stream))
    throw Error("a call on another stream than the one given");
  if (current_device != kDevice) throw Error("the device of the stream is not current");
  return begin_call();
}

}  // namespace

cudaStream_t stream() { return &the_stream; }

bool fail_call(int nth) {
  const bool failed = calls_until_failure == 0;
  calls_until_failure = nth;
  return failed;
}

void finish() {
  calls_until_failure = 0;
  run_queued();
  const size_t left = allocated.size();
  for (void* memory : std::exchange(allocated, {})) std::free(memory);
  if (left > 0) throw Error(std::to_string(left) + " device allocations were never freed");
  if (std::exchange(last_error, cudaSuccess) != cudaSuccess)
    throw Error("an error was left for somebody else's cudaGetLastError");
  if (std::exchange(current_device, 0) != 0) throw Error("the caller's device was not restored");
}

cudaError_t set_shared_limit(const void* kernel, int bytes) {
  if (bytes > shared_limit) throw Error("more shared memory than a block can have");
  const cudaError_t status = begin_call();
  if (status == cudaSuccess) shared_limits[kernel] = bytes;
  return status;
}

cudaError_t queue_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                         std::function<void()> thread) {
  const cudaError_t status = begin_stream_call(config.stream);
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  if (grid.x == 0 || grid.x > 0x7fffffffu || block.x == 0 || block.x > 1024 || grid.y != 1 ||
      grid.z != 1 || block.y != 1 || block.z != 1)
    throw Error("bad launch configuration");
  const auto limit = shared_limits.find(kernel);
  if (config.dynamicSmemBytes > (limit == shared_limits.end() ? 48 * 1024u : limit->second))
    throw Error("more shared memory than was set for the kernel");
  if (status == cudaSuccess)
    queued.push_back([config, thread = std::move(thread)] { run_kernel(config, thread); });
  return status;
}

}  // namespace emulation

using namespace emulation;

void __syncthreads(Here here) { the_block->park(here); }

int __syncthreads_and(int holds, Here here) {
  static bool all;
  __syncthreads(here);
  all = true;
  __syncthreads(here);
  all = all && holds != 0;
  __syncthreads(here);
  return all;
}

const uint64_t* emulation::exchange(unsigned mask, uint64_t value, const Here& here) {
  return the_block->exchange(mask, value, false, here);
}

unsigned __ballot_sync(unsigned mask, int holds, Here here) {
  return __match_any_sync(mask, holds != 0, here) ^ (holds != 0 ? 0 : ~0u);
}

unsigned __match_any_sync(unsigned mask, unsigned value, Here here) {
  const uint64_t* all = exchange(mask, value, here);
  unsigned bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= unsigned(all[lane] == value) << lane;
  return bits;
}

void __syncwarp(unsigned mask, Here here) { the_block->exchange(mask, 0, true, here); }

#ifdef FRCNN_RACES
// Races that are meant are volatile, and not watched. A word that is written so may be written by several at
// once, but who reads it in the usual way must come before or after them: as if it were written by atomics.
extern "C" int __tsan_atomic32_fetch_or(volatile int* place, int bits, int order);
extern "C" void __tsan_volatile_read4(void*) {}
extern "C" void __tsan_volatile_write1(void*) {}
extern "C" void __tsan_volatile_write4(void* place) {
  __tsan_atomic32_fetch_or(static_cast<volatile int*>(place), 0, __ATOMIC_RELAXED);
}
#endif

const char* cudaGetErrorString(cudaError_t) { return "emulated failure"; }

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return begin_call();
}

cudaError_t cudaSetDevice(int device) {
  const cudaError_t status = begin_call();
  // Failing to go back is the driver's fault, not the launcher's: the test goes on as if it had.
  if (status == cudaSuccess || device == 0) current_device = device;
  return status;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? kMultiprocessors : shared_limit;
  return begin_call();
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 2;
  return begin_call();
}

cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t stream) {
  const cudaError_t status = begin_stream_call(stream);
  if (status != cudaSuccess) return status;
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xFF, bytes);
  allocated.insert(*memory);
  return status;
}

cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  queued.push_back([memory] {  // also where the call "fails": that leak is not the launcher's
    if (allocated.erase(memory) == 0) throw Error("cudaFreeAsync of memory that is not allocated");
    std::free(memory);
  });
  return begin_stream_call(stream);
}

cudaError_t cudaMemsetAsync(void* memory, int byte, size_t bytes, cudaStream_t stream) {
  const cudaError_t status = begin_stream_call(stream);
  if (status == cudaSuccess) queued.push_back([=] { std::memset(memory, byte, bytes); });
  return status;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const cudaError_t status = begin_stream_call(stream);
  if (status == cudaSuccess) queued.push_back([=] { std::memcpy(to, from, bytes); });
  return status;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const cudaError_t status = begin_stream_call(stream);
  run_queued();  // also where the call fails: the work is done or not, nobody may look
  return status;
}
