// Whether a GPU can be used, and if not, the driver's reason. Launches nothing; having none is no error.
#include "fastrcnn_engine/build_info.h"

#include <cuda_runtime.h>

namespace fastrcnn_engine::cuda {

std::string why_unavailable() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaSuccess) return devices > 0 ? "" : "the driver reports no CUDA device";
  cudaGetLastError();  // clears it: asking is not a fault
  return cudaGetErrorString(status);
}

}  // namespace fastrcnn_engine::cuda
