// The module _core: calls the bind_ functions of the other files; arguments are theirs.
#include <pybind11/pybind11.h>

#include "fastrcnn_engine/error.h"
#include "operators.h"

namespace engine = fastrcnn_engine;

#if PY_VERSION_HEX < 0x030c0000
// What pybind11 calls so asks for the interpreter's lock first, in a way that before Python 3.12 knows the main
// interpreter alone: in another one it would wait for the lock that its own thread holds. See the end.
#define PyInit__core init_in_main_interpreter
#endif

// Whatever the engine and the bindings share between calls is constant, atomic or each thread's own.
PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "The engine's operators on caller-allocated arrays. Use fastrcnn_engine.ops instead.";
  // std::invalid_argument and std::runtime_error already become ValueError and RuntimeError.
  engine::bindings::bind_build_info(module);
  engine::bindings::bind_roi_pool(module);
  engine::bindings::bind_smooth_l1(module);
  engine::bindings::bind_box_codec(module);
  engine::bindings::bind_nms(module);
  engine::bindings::bind_detections(module);
}

#if PY_VERSION_HEX < 0x030c0000
#undef PyInit__core
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
  if (PyInterpreterState_Get() == PyInterpreterState_Main()) return init_in_main_interpreter();
  PyErr_SetString(PyExc_ImportError,
                  "before Python 3.12 fastrcnn_engine._core works in the main interpreter alone, and this is a "
                  "subinterpreter; under mod_wsgi set WSGIApplicationGroup %{GLOBAL}");
  return nullptr;
}
#endif
