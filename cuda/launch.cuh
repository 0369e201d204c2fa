// What every launcher needs: checked calls, the device of the stream, launches, grid-stride loops,
// temporary memory in stream order.
//
// Kernels are started with cudaLaunchKernelEx, not with <<< >>>: it returns the error of this very
// launch, and it is plain C++, so g++ compiles the same files for tests/emulation.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/host_device.h"
#include "fastrcnn_engine/stream.h"

namespace fastrcnn_engine::cuda {

// Throws DeviceError unless `status` is success. The runtime also remembers the error; it is
// cleared, so that nobody's next check reports ours.
inline void expect_success(cudaError_t status, const std::string& call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw DeviceError(call + ": " + cudaGetErrorString(status));
}

// What CUDA calls the stream. A null handle means the legacy default stream, says stream.h, but to CUDA's
// functions it is the thread's own one where somebody builds with --default-stream per-thread.
inline cudaStream_t handle_of(const Stream& stream) {
  return stream.handle() == nullptr ? cudaStreamLegacy : stream.handle();
}

// Makes the stream's device current, and the caller's again at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Stream& stream) {
    expect_success(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ == stream.device()) return;
    expect_success(cudaSetDevice(stream.device()),
                   "cudaSetDevice(" + std::to_string(stream.device()) + ")");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_ && cudaSetDevice(previous_) != cudaSuccess) cudaGetLastError();
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

FRCNN_HD int64_t ceil_div(int64_t total, int64_t part) { return (total + part - 1) / part; }

// `count` elements of uninitialised device memory that live in stream order: work queued before the
// destructor runs may still use them.
template <typename T>
class TemporaryBuffer {
 public:
  TemporaryBuffer(int64_t count, const Stream& stream) : stream_(stream) {
    if (count <= 0) return;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (stream.memory() != nullptr) {
      data_ = static_cast<T*>(stream.memory()->allocate(static_cast<int64_t>(bytes)));
      return;
    }
    void* memory = nullptr;
    expect_success(cudaMallocAsync(&memory, bytes, handle_of(stream)),
                   "cudaMallocAsync of " + std::to_string(bytes) + " bytes");
    data_ = static_cast<T*>(memory);
  }
  ~TemporaryBuffer() {
    if (data_ == nullptr || stream_.memory() != nullptr) return;
    if (cudaFreeAsync(data_, handle_of(stream_)) != cudaSuccess) cudaGetLastError();
  }
  TemporaryBuffer(const TemporaryBuffer&) = delete;
  TemporaryBuffer& operator=(const TemporaryBuffer&) = delete;

  T* data() const { return data_; }

 private:
  Stream stream_;
  T* data_ = nullptr;
};

// Parts of a piece of memory, each at a multiple of 256 bytes. Without memory it only adds up their sizes.
class Parts {
 public:
  explicit Parts(char* memory = nullptr) : memory_(memory) {}
  template <typename T>
  T* take(int64_t count) {
    char* const begin = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return reinterpret_cast<T*>(begin);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// One temporary buffer for all that `take(Parts&)` takes: it runs once for the size, once for the places.
class DividedBuffer {
 public:
  template <typename Take>
  DividedBuffer(const Stream& stream, const Take& take) : memory_(bytes_of(take), stream) {
    Parts parts(memory_.data());
    take(parts);
  }

 private:
  template <typename Take>
  static int64_t bytes_of(const Take& take) {
    Parts parts;
    take(parts);
    return parts.bytes();
  }
  TemporaryBuffer<char> memory_;
};

template <typename T>
void fill_bytes(T* data, int byte, int64_t count, const Stream& stream) {
  if (count <= 0) return;
  expect_success(
      cudaMemsetAsync(data, byte, static_cast<size_t>(count) * sizeof(T), handle_of(stream)),
      "cudaMemsetAsync");
}

// Waits for the stream and returns the number at `value` in device memory.
inline int64_t fetch(const int64_t* value, const Stream& stream) {
  int64_t result = 0;
  expect_success(cudaMemcpyAsync(&result, value, sizeof result, cudaMemcpyDeviceToHost,
                                 handle_of(stream)),
                 "cudaMemcpyAsync");
  expect_success(cudaStreamSynchronize(handle_of(stream)), "cudaStreamSynchronize");
  return result;
}

constexpr int kThreads = 256;
// Far more blocks than any device runs at a time; the grid-stride loops do the rest.
constexpr int64_t kMaxBlocks = 65535;

// Shared memory whose size the launch says.
extern __shared__ uint4 dynamic_shared[];

struct BlockShape {
  int threads = kThreads;
  int64_t shared_bytes = 0;  // of dynamic_shared
};

inline int64_t device_attribute(cudaDeviceAttr attribute, const Stream& stream) {
  int value = 0;
  expect_success(cudaDeviceGetAttribute(&value, attribute, stream.device()),
                 "cudaDeviceGetAttribute");
  return value;
}

// Starts `kernel` with min(blocks, kMaxBlocks) blocks: kernels loop over what they own.
template <typename... Parameters, typename... Arguments>
void launch_blocks(const char* name, void (*kernel)(Parameters...), int64_t blocks, BlockShape shape,
                   const Stream& stream, const Arguments&... arguments) {
  if (blocks <= 0) return;
  constexpr int64_t unasked = 48 * 1024;  // bytes of shared memory that every kernel may have
  if (shape.shared_bytes > unasked) {
    // All there is, every time: the limit belongs to the kernel, and other threads launch it too.
    const int64_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
    expect_success(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(most)),
                   std::string("shared memory of ") + name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks)));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = handle_of(stream);
  expect_success(cudaLaunchKernelEx(&config, kernel, arguments...),
                 std::string("launch of ") + name);
}
template <typename... Parameters, typename... Arguments>
void launch_blocks(const char* name, void (*kernel)(Parameters...), int64_t blocks,
                   const Stream& stream, const Arguments&... arguments) {
  launch_blocks(name, kernel, blocks, BlockShape{}, stream, arguments...);
}

// The same with a thread per element. Zero elements launch nothing.
template <typename... Parameters, typename... Arguments>
void launch_threads(const char* name, void (*kernel)(Parameters...), int64_t elements,
                    const Stream& stream, const Arguments&... arguments) {
  launch_blocks(name, kernel, ceil_div(elements, kThreads), stream, arguments...);
}

// for (int64_t i = first_element(); i < count; i += element_stride())
__device__ inline int64_t first_element() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t element_stride() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// ---- warps --------------------------------------------------------------------------------------------
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

__device__ inline int lane_of() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_of() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline unsigned lanes_before(int lane) { return (1u << lane) - 1; }
__device__ inline unsigned lanes_after(int lane) { return ~1u << lane; }

}  // namespace fastrcnn_engine::cuda
