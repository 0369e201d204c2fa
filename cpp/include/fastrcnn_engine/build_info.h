// What this build of the engine is.
#pragma once

#include <string>

namespace fastrcnn_engine {

struct BuildInfo {
  std::string version;
  std::string compiler;
  bool cuda;                       // compiled with CUDA kernels
  std::string cuda_reason;         // which toolkit, or why CUDA was left out
  std::string cuda_architectures;  // as CMake names them, empty without CUDA
  std::string instruction_sets;    // what the CPU kernels were compiled for
};

BuildInfo build_info();

namespace cuda {
// Empty when a device can be used, else the driver's reason, or cuda_reason. Never throws.
std::string why_unavailable();
}  // namespace cuda

}  // namespace fastrcnn_engine
