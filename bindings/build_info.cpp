// The engine's build_info as a dictionary.
#include "fastrcnn_engine/build_info.h"

#include <pybind11/pybind11.h>

#include "operators.h"

namespace fastrcnn_engine::bindings {

namespace py = pybind11;

void bind_build_info(py::module_& module) {
  module.def("build_info", [] {
    const BuildInfo info = build_info();
    py::dict result;
    result["version"] = info.version;
    result["compiler"] = info.compiler;
    result["cuda"] = info.cuda;
    result["cuda_reason"] = info.cuda_reason;
    result["cuda_architectures"] = info.cuda_architectures;
    result["instruction_sets"] = info.instruction_sets;
    return result;
  });
  module.def("why_no_cuda_device", &cuda::why_unavailable);
}

}  // namespace fastrcnn_engine::bindings
