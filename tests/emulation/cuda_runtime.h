// A CUDA device made of CPU fibers, for the tests only: g++ compiles the files of cuda/ unchanged,
//     g++ -x c++ -I tests/emulation -I cpp/include cuda/roi_pool.cu ...
// because this directory stands where the toolkit's headers would. What is emulated is what these
// kernels use:
//   - blocks run one after another; the threads of a block are fibers that switch at __syncthreads
//   - work queued on a stream starts when the stream is waited for and not before, so a result read
//     too early, or an argument that has gone out of scope, is an error here
//   - device memory is heap memory, which AddressSanitizer watches; new memory is filled with 0xFF
//   - errors of the program that a device would answer with undefined behaviour throw
//     emulation::Error: divergent barriers, a call on the wrong stream or device, bad grids
//   - any call of the runtime can be made to fail (emulation::fail_call)
// Not emulated: threads that run at the same time (a lost update between two switches), weak memory
// order, warp operations, atomics, dynamic shared memory, __shared__ being undefined at the start,
// the arithmetic of the device's own exp and log. Passing here is not passing on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorEmulated = 1 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };

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
#define __shared__ static

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

void __syncthreads(std::source_location here = std::source_location::current());

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int* count);
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
  forward,
  reverse,
  few_blocks,  // forward, on a grid of at most 2 blocks: every grid-stride loop takes several turns
  odd_warps,   // every second warp runs as far as it can before the others begin
};
inline Schedule schedule = Schedule::forward;

// The one stream there is, and its device. Another device is current when a test begins.
cudaStream_t stream();
constexpr int kDevice = 1;

// Lets the `nth` call of the runtime from now fail, counting from 1; 0: none. Returns whether the
// failure set before this one has happened.
bool fail_call(int nth);
// Runs what is queued and throws Error if device memory is still allocated, an error is left to be
// reported, or the device that was current is not.
void finish();
// For what is not reached through a launcher.
cudaError_t queue_kernel(const cudaLaunchConfig_t& config, std::function<void()> thread);

}  // namespace emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  // Arguments are converted to the kernel's parameters and copied at the launch, as CUDA does.
  const auto bound = [kernel](Parameters... copies) {
    return [=]() { kernel(copies...); };
  };
  return emulation::queue_kernel(*config, bound(arguments...));
}
