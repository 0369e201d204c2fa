// A CUDA device made of CPU fibers, for the tests only: g++ compiles the files of cuda/ unchanged,
//     g++ -x c++ -I tests/emulation -I cpp/include cuda/roi_pool.cu ...
// because this directory stands where the toolkit's headers would. What is emulated is what these
// kernels use:
//   - blocks run one after another; the threads of a block are fibers that switch at __syncthreads and
//     at what the lanes of a warp do together
//   - dynamic shared memory is of the size asked for, and what lies beyond it is poisoned; it begins as
//     NaN with every block
//   - work queued on a stream starts when the stream is waited for and not before, so a result read
//     too early, or an argument that has gone out of scope, is an error here
//   - device memory is heap memory, which AddressSanitizer watches; new memory is filled with 0xFF
//   - errors of the program that a device would answer with undefined behaviour throw
//     emulation::Error: divergent barriers, lanes that do not meet, a call on the wrong stream or device,
//     bad grids, more shared memory than there is or was set for the kernel
//   - any call of the runtime can be made to fail (emulation::fail_call)
//   - what threads do at the same time without a barrier between them is found by ThreadSanitizer, where
//     that is used in place of AddressSanitizer (sanitizer.h)
// Not emulated: warp operations of fewer than all lanes, static __shared__ being undefined at the start,
// the arithmetic of the device's own exp and log. Passing here is not passing on a GPU.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>

struct CUstream_st;
using cudaStream_t = CUstream_st*;
inline const cudaStream_t cudaStreamLegacy = reinterpret_cast<cudaStream_t>(1);

enum cudaError_t { cudaSuccess = 0, cudaErrorEmulated = 1, cudaErrorInsufficientDriver = 35 };
#define CUDART_VERSION 13000
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

#define __global__
#define __device__
// Where there is one host thread, `extern __shared__` and `__shared__` in a function can be the same word.
#define __shared__ thread_local
#define __launch_bounds__(...)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

using Here = std::source_location;

void __syncthreads(Here here = Here::current());
int __syncthreads_and(int holds, Here here = Here::current());
inline void __threadfence() {}  // blocks run one after another

namespace emulation {
constexpr int kLanes = 32;
// Waits for all lanes of the warp; what each of them gave, until they meet again. `mask` must name them all.
const uint64_t* exchange(unsigned mask, uint64_t value, const Here& here);
}  // namespace emulation

void __syncwarp(unsigned mask = ~0u, Here here = Here::current());
unsigned __ballot_sync(unsigned mask, int holds, Here here = Here::current());
unsigned __match_any_sync(unsigned mask, unsigned value, Here here = Here::current());
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, Here here = Here::current()) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const int self = static_cast<int>(threadIdx.x) % emulation::kLanes;
  const uint64_t* all = emulation::exchange(mask, bits, here);
  std::memcpy(&value, &all[self / width * width + lane % width], sizeof(T));
  return value;
}
// What is an unsigned long long here may lie there as an int64_t.
template <typename T>
T atomicAdd(T* place, T value) {
  using Any [[gnu::may_alias]] = T;
  return __atomic_fetch_add(static_cast<Any*>(place), value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicMax(T* place, T value) {
  T old = __atomic_load_n(place, __ATOMIC_RELAXED);
  while (old < value &&
         !__atomic_compare_exchange_n(place, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <typename T>
T atomicOr(T* place, T value) {
  return __atomic_fetch_or(place, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicCAS(T* place, T expected, T value) {
  using Any [[gnu::may_alias]] = T;
  __atomic_compare_exchange_n(static_cast<Any*>(place), &expected, value, false, __ATOMIC_RELAXED,
                              __ATOMIC_RELAXED);
  return expected;
}
inline bool __isGlobal(const void*) { return true; }  // there is one kind of address
#ifndef __clang__
#define __builtin_assume(holds) static_cast<void>(holds)
#endif
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int byte, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);

namespace emulation {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The order in which blocks and the threads of a block run. A correct kernel does not notice.
enum class Schedule {
  forward,     // thread by thread, from each switch to the next
  reverse,     // the same from the last
  few_blocks,  // forward, on a grid of at most 2 blocks: every grid-stride loop takes several turns
  odd_warps,   // every second warp runs as far as it can before the others begin
  even_warps,
};
inline Schedule schedule = Schedule::forward;

#ifdef FRCNN_RACES
constexpr bool kWatchesRaces = true;
#else
constexpr bool kWatchesRaces = false;
#endif

// Of the device: bytes of shared memory that a block may have.
inline int shared_limit = 227 * 1024;
constexpr int kMultiprocessors = 5;

// The one stream there is, and its device. Another device is current when a test begins.
cudaStream_t stream();
constexpr int kDevice = 1;
// Or the legacy default stream, which calls must then name: null may be another one.
inline bool is_stream_legacy = false;

// Lets the `nth` call of the runtime from now fail, counting from 1; 0: none. Returns whether the
// failure set before this one has happened.
bool fail_call(int nth);
// Runs what is queued and throws Error if device memory is still allocated, an error is left to be
// reported, or the device that was current is not.
void finish();
// For what is not reached through a launcher.
cudaError_t queue_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                         std::function<void()> thread);
cudaError_t set_shared_limit(const void* kernel, int bytes);

}  // namespace emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  // Arguments are converted to the kernel's parameters and copied at the launch, as CUDA does.
  const auto bound = [kernel](Parameters... copies) {
    return [=]() { kernel(copies...); };
  };
  return emulation::queue_kernel(*config, reinterpret_cast<const void*>(kernel), bound(arguments...));
}

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  return emulation::set_shared_limit(reinterpret_cast<const void*>(kernel), bytes);
}
