// From run-time dtype and device to a call of the engine.
#pragma once

#include <chrono>
#include <initializer_list>
#include <optional>
#include <thread>
#include <vector>

#include "array.h"
#include "fastrcnn_engine/build_info.h"
#include "fastrcnn_engine/stream.h"

namespace fastrcnn_engine::bindings {

// Calls run.operator()<T>() with the array's type; `wanted` is what the message asks for.
template <typename Run>
auto for_float(const Array& array, Run run, const char* wanted = "float32 or float64") {
  const DLDataType dtype = array.dtype();
  const bool floating = dtype.code == dlpack::kFloat && dtype.lanes == 1;
  if (floating && dtype.bits == 32) return run.template operator()<float>();
  if (floating && dtype.bits == 64) return run.template operator()<double>();
  fail(array.name(), " must be ", wanted, ", got ", dtype_name(dtype));
}

inline std::string place_name(const Array& array) {
  if (array.device().device_type != dlpack::kCUDA) return "cpu";
  return "cuda:" + std::to_string(array.device().device_id);
}

// Temporary memory from the pool of the arrays' library: `new_bytes(count)` returns an array of uint8.
class ArrayMemory : public DeviceMemory {
 public:
  ArrayMemory(py::handle new_bytes, uintptr_t stream) : new_bytes_(new_bytes), stream_(stream) {}
  void* allocate(int64_t bytes) override {
    const py::gil_scoped_acquire gil;
    held_.push_back(new_bytes_(bytes));
    return Array(held_.back(), "temporary memory", Access::write, stream_).view<uint8_t, 1>().data;
  }

 private:
  py::handle new_bytes_;
  uintptr_t stream_;
  std::vector<py::object> held_;
};

// The interpreter's lock, given up for a block. Who asks for it again when the interpreter has ended, as a
// daemon thread may, is ended by Python before 3.14, with an exception of the C library's that must not leave
// a destructor: the process would abort. Here the thread waits for the process to end, as since 3.14.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* state_;
};

// Runs `on_cpu()` or `on_cuda(stream)` where the arrays are, with the GIL released. on_cuda must take
// its stream as auto: without CUDA it is then never compiled, and nothing is left to link. `new_bytes`: see
// ArrayMemory; without it, or where it is None, temporary memory comes from CUDA's own pool.
template <typename OnCpu, typename OnCuda>
auto on_device(std::initializer_list<const Array*> arrays, uintptr_t stream, OnCpu on_cpu,
               [[maybe_unused]] OnCuda on_cuda, [[maybe_unused]] py::handle new_bytes = py::none()) {
  const Array& first = **arrays.begin();
  const auto place = [](const Array& a) {
    return a.device().device_type == dlpack::kCUDA ? a.device().device_id : -1;
  };
  for (const Array* array : arrays)
    if (place(*array) != place(first))
      fail(array->name(), " must be on the device of ", first.name(), " (", place_name(first),
           "), got ", place_name(*array));
  if (place(first) < 0) {
    const Unlocked unlocked;
    return on_cpu();
  }
#ifdef FRCNN_WITH_CUDA
  ArrayMemory memory(new_bytes, stream);
  const Unlocked unlocked;
  return on_cuda(Stream(reinterpret_cast<CUstream_st*>(stream), place(first),
                        new_bytes.is_none() ? nullptr : &memory));
#else
  (void)stream;
  throw DeviceError(std::string(first.name()) +
                    " is on a CUDA device, but this build has no CUDA kernels: " +
                    build_info().cuda_reason);
#endif
}

// What an operator that counts its results returns: the number, or nothing where it goes to `count`.
template <typename Now, typename Later>
std::optional<int64_t> counted(int64_t* count, Now now, Later later) {
  if (count == nullptr) return now();
  later();
  return std::nullopt;
}

}  // namespace fastrcnn_engine::bindings
