// The module _core: calls the bind_ functions of the other files; arguments are theirs.
#include <pybind11/pybind11.h>

#include "fastrcnn_engine/error.h"
#include "operators.h"

namespace engine = fastrcnn_engine;

PYBIND11_MODULE(_core, module) {
  module.doc() = "The engine's operators on caller-allocated arrays. Use fastrcnn_engine.ops instead.";
  // std::invalid_argument and std::runtime_error already become ValueError and RuntimeError.
  engine::bindings::bind_build_info(module);
  engine::bindings::bind_roi_pool(module);
  engine::bindings::bind_smooth_l1(module);
  engine::bindings::bind_box_codec(module);
  engine::bindings::bind_nms(module);
  engine::bindings::bind_detections(module);
}
