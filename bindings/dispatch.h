// From run-time dtype and device to a call of the engine.
#pragma once

#include <initializer_list>

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

// Runs `on_cpu()` or `on_cuda(stream)` where the arrays are, with the GIL released. on_cuda must take
// its stream as auto: without CUDA it is then never compiled, and nothing is left to link.
template <typename OnCpu, typename OnCuda>
auto on_device(std::initializer_list<const Array*> arrays, uintptr_t stream, OnCpu on_cpu,
               [[maybe_unused]] OnCuda on_cuda) {
  const Array& first = **arrays.begin();
  const auto place = [](const Array& a) {
    return a.device().device_type == dlpack::kCUDA ? a.device().device_id : -1;
  };
  for (const Array* array : arrays)
    if (place(*array) != place(first))
      fail(array->name(), " must be on the device of ", first.name(), " (", place_name(first),
           "), got ", place_name(*array));
  if (place(first) < 0) {
    py::gil_scoped_release release;
    return on_cpu();
  }
#ifdef FRCNN_WITH_CUDA
  py::gil_scoped_release release;
  return on_cuda(Stream(reinterpret_cast<CUstream_st*>(stream), place(first)));
#else
  (void)stream;
  throw DeviceError(std::string(first.name()) +
                    " is on a CUDA device, but this build has no CUDA kernels: " +
                    build_info().cuda_reason);
#endif
}

}  // namespace fastrcnn_engine::bindings
