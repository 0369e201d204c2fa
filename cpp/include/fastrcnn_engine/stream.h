// A CUDA stream and the device it belongs to, without any CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;  // what cudaStream_t points at; must be declared in the global namespace

namespace fastrcnn_engine {

// Temporary device memory from a pool of the caller's, for calls on one stream.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // `bytes` of it, aligned to 256, or an exception. Once the call that asked has returned, the memory may
  // be given to work queued later on the same stream.
  virtual void* allocate(int64_t bytes) = 0;
};

// Every CUDA call of the engine takes one of these. There is no default: the caller says where its
// work is queued (a null handle is CUDA's legacy default stream and has to be asked for by name). A call makes
// the device current, and at its end the caller's again. That is device 0 for a thread that never chose one by
// cudaSetDevice, and CUDA then has a context there too.
//
// Without a `memory`, temporary memory comes from cudaMallocAsync. What that returns to the system at every
// synchronisation is said by the pool's cudaMemPoolAttrReleaseThreshold: everything, unless it is raised.
class Stream {
 public:
  Stream(CUstream_st* handle, int device, DeviceMemory* memory = nullptr)
      : handle_(handle), device_(device), memory_(memory) {}
  Stream(std::nullptr_t, int, DeviceMemory* = nullptr) = delete;
  static Stream legacy_default(int device) {
    return Stream(static_cast<CUstream_st*>(nullptr), device);
  }

  CUstream_st* handle() const { return handle_; }
  int device() const { return device_; }
  DeviceMemory* memory() const { return memory_; }

 private:
  CUstream_st* handle_;
  int device_;
  DeviceMemory* memory_ = nullptr;
};

}  // namespace fastrcnn_engine
