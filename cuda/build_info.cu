// Whether a GPU can be used, and if not, the driver's reason. Launches nothing; having none is no error.
#include "fastrcnn_engine/build_info.h"

#include <cuda_runtime.h>

#include <string>

namespace fastrcnn_engine::cuda {

std::string why_unavailable() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaSuccess) return devices > 0 ? "" : "the driver reports no CUDA device";
  cudaGetLastError();  // clears it: asking is not a fault
  // CUDA speaks of a version that is insufficient, also where there is no driver at all.
  if (status == cudaErrorInsufficientDriver)
    return "no NVIDIA driver, or one that is too old for CUDA " + std::to_string(CUDART_VERSION / 1000) +
           "." + std::to_string(CUDART_VERSION % 1000 / 10);
  return cudaGetErrorString(status);
}

}  // namespace fastrcnn_engine::cuda
