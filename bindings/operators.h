// One registration function per operator file.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrcnn_engine::bindings {

void bind_roi_pool(pybind11::module_& module);
void bind_smooth_l1(pybind11::module_& module);
void bind_box_codec(pybind11::module_& module);
void bind_nms(pybind11::module_& module);
void bind_detections(pybind11::module_& module);
void bind_build_info(pybind11::module_& module);

}  // namespace fastrcnn_engine::bindings
