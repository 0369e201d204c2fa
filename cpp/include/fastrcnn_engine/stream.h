// A CUDA stream and the device it belongs to, without any CUDA header.
#pragma once

#include <cstddef>

struct CUstream_st;  // what cudaStream_t points at; must be declared in the global namespace

namespace fastrcnn_engine {

// Every CUDA call of the engine takes one of these. There is no default: the caller says where its
// work is queued (a null handle is CUDA's legacy default stream and has to be asked for by name).
class Stream {
 public:
  Stream(CUstream_st* handle, int device) : handle_(handle), device_(device) {}
  Stream(std::nullptr_t, int) = delete;
  static Stream legacy_default(int device) {
    return Stream(static_cast<CUstream_st*>(nullptr), device);
  }

  CUstream_st* handle() const { return handle_; }
  int device() const { return device_; }

 private:
  CUstream_st* handle_;
  int device_;
};

}  // namespace fastrcnn_engine
